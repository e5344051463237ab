//! What agents call: policy down, flows up, new certificates.

use std::sync::Arc;

use futures_util::StreamExt as _;
use proto::v1;
use proto::v1::agent_sync_server::AgentSync;
use proto::v1::flow_ingest_server::FlowIngest;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Answers, Api, Feed, agent, enrollment};
use crate::auth::Caller;
use crate::clock;
use crate::core::{Core, sql_status};
use crate::distribute::session;
use crate::flows::{Batch, Ingest, Outcome, check};

#[tonic::async_trait]
impl AgentSync for Api {
    type SyncStream = Answers<v1::ControllerMessage>;

    async fn sync(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let (caller, workload) = agent(&request)?;
        let outbound = session::open(
            self.core.clone(),
            caller,
            workload,
            request.into_inner(),
            self.stop.clone(),
        );
        Ok(Response::new(Box::pin(ReceiverStream::new(outbound))))
    }

    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::EnrollResponse>, Status> {
        let (caller, workload) = agent(&request)?;
        let lifetime = self.core.config.certificates.agent;
        let issued = self
            .core
            .authority
            .sign(
                &request.into_inner().csr_der,
                &caller.identity,
                caller.enrolment,
                lifetime,
            )
            .map_err(|error| Status::invalid_argument(format!("csr_der: {error}")))?;
        let mut change = self.core.change().await;
        change.audit(&caller.uri, "agent.renew", &workload, "");
        change.commit().await?;
        Ok(Response::new(enrollment::respond(
            &self.core,
            &caller.identity,
            &workload,
            issued,
        )))
    }
}

#[tonic::async_trait]
impl FlowIngest for Api {
    type ExportStream = Answers<v1::FlowAck>;

    async fn export(
        &self,
        request: Request<Streaming<v1::FlowBatch>>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let (caller, workload) = agent(&request)?;
        let batches = request.into_inner();
        let (core, ingest) = (self.core.clone(), self.ingest.clone());
        Ok(Response::new(self.stream(|feed| async move {
            let exporter = Exporter {
                core,
                ingest,
                caller,
                workload,
            };
            if let Err(status) = exporter.run(batches, &feed).await {
                // Nobody may listen any more.
                let _gone = feed.send(Err(status)).await;
            }
        })))
    }
}

struct Exporter {
    core: Arc<Core>,
    ingest: Ingest,
    caller: Caller,
    workload: String,
}

impl Exporter {
    async fn run(
        &self,
        mut batches: Streaming<v1::FlowBatch>,
        feed: &Feed<v1::FlowAck>,
    ) -> Result<(), Status> {
        let durable = self.core.flows.sequence(&self.workload).await;
        let durable = durable.map_err(|error| sql_status(&error))?;
        feed.send(Ok(self.ack(durable, String::new()))).await;
        let end = tokio::time::sleep(clock::until(self.caller.not_after));
        tokio::pin!(end);
        loop {
            let batch = tokio::select! {
                batch = batches.next() => batch,
                () = &mut end => return Err(Status::unauthenticated("the certificate has ended")),
            };
            let Some(batch) = batch else {
                return Ok(());
            };
            let ack = self.take(batch?).await?;
            if !feed.send(Ok(ack)).await {
                return Ok(());
            }
        }
    }

    fn ack(&self, sequence: u64, refused: String) -> v1::FlowAck {
        v1::FlowAck {
            sequence,
            credit: self.core.config.flows.credit,
            refused,
        }
    }

    async fn take(&self, batch: v1::FlowBatch) -> Result<v1::FlowAck, Status> {
        self.core.admit(&self.caller)?;
        let sequence = batch.sequence;
        if sequence == 0 || sequence > i64::MAX.unsigned_abs() {
            return Err(Status::invalid_argument("sequence: counts from 1"));
        }
        let limit = self.core.config.flows.max_batch;
        let checked = if batch.records.len() > usize::try_from(limit).unwrap_or(usize::MAX) {
            Err(format!(
                "{} records in one batch, at most {limit}",
                batch.records.len()
            ))
        } else {
            check(&self.core.state(), &self.workload, batch.records)
                .map_err(|refusal| refusal.to_string())
        };
        let refused = checked.as_ref().err().cloned().unwrap_or_default();
        if !refused.is_empty() {
            (self.core)
                .audit_refusal(&self.caller.uri, "flows.export", &self.workload, &refused)
                .await;
        }
        let lost = batch
            .lost
            .values()
            .fold(0u64, |sum, lost| sum.saturating_add(*lost));
        let submitted = Batch {
            host: self.workload.clone(),
            sequence,
            refused: checked.is_err(),
            flows: checked.unwrap_or_default(),
            lost,
        };
        match self.ingest.submit(submitted).await {
            Ok(Outcome::Stored(_)) => Ok(self.ack(sequence, refused)),
            Ok(Outcome::Repeated) => {
                let durable = self.core.flows.sequence(&self.workload).await;
                Ok(self.ack(durable.map_err(|error| sql_status(&error))?, refused))
            }
            Err(error) => Err(sql_status(&error)),
        }
    }
}
