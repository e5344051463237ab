//! From the agents' streams to the database: several batches share one commit.

use std::sync::Arc;

use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{Batch, Flow, FlowDb, Outcome};
use crate::detect::Finding;
use crate::metrics::Metrics;
use crate::sql::SqlError;

/// Batches that may wait for the database; agents wait in front of them.
const QUEUE: usize = 64;
/// Batches in one commit.
const GROUP: usize = 16;

/// What a submitter hears.
pub type Submitted = Result<Outcome, Arc<SqlError>>;

/// Live records go to followers through this.
pub type Live = broadcast::Sender<Arc<Flow>>;

/// Where batches are handed in.
#[derive(Clone, Debug)]
pub struct Ingest {
    queue: mpsc::Sender<(Batch, oneshot::Sender<Submitted>)>,
    /// Follow this for live records.
    pub live: Live,
}

impl Ingest {
    /// Starts the task that writes. It ends with `stop`, after what was handed in.
    #[must_use]
    pub fn start(
        db: FlowDb,
        metrics: Arc<Metrics>,
        findings: impl Fn(Finding) + Send + 'static,
        backlog: u32,
        stop: CancellationToken,
    ) -> Self {
        let (queue, mut waiting) = mpsc::channel::<(Batch, oneshot::Sender<Submitted>)>(QUEUE);
        let live = Live::new(usize::try_from(backlog).unwrap_or(1).max(1));
        let followers = live.clone();
        tokio::spawn(async move {
            let mut group = Vec::new();
            loop {
                let count = tokio::select! {
                    biased;
                    count = waiting.recv_many(&mut group, GROUP) => count,
                    () = stop.cancelled() => 0,
                };
                if count == 0 {
                    return;
                }
                let (batches, answers): (Vec<_>, Vec<_>) = group.drain(..).unzip();
                let batches = Arc::new(batches);
                match db.ingest(batches.clone()).await {
                    Ok((outcomes, found)) => {
                        publish(&batches, &outcomes, &metrics, &followers);
                        for finding in found {
                            metrics.findings.inc();
                            findings(finding);
                        }
                        for (answer, outcome) in answers.into_iter().zip(outcomes) {
                            // The agent may be gone; it will ask again and hear "repeated".
                            let _gone = answer.send(Ok(outcome));
                        }
                    }
                    Err(error) => {
                        if matches!(error, SqlError::DiskFull) {
                            metrics.disk_full.inc();
                        }
                        tracing::error!(%error, "flow records were not stored; their agents keep them");
                        let error = Arc::new(error);
                        for answer in answers {
                            let _gone = answer.send(Err(error.clone()));
                        }
                    }
                }
            }
        });
        Self { queue, live }
    }

    /// Hands in a batch and waits until it is durable.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn submit(&self, batch: Batch) -> Submitted {
        let (answer, wait) = oneshot::channel();
        let closed = || Arc::new(SqlError::Closed);
        self.queue
            .send((batch, answer))
            .await
            .map_err(|_| closed())?;
        wait.await.map_err(|_| closed())?
    }
}

fn publish(batches: &[Batch], outcomes: &[Outcome], metrics: &Metrics, followers: &Live) {
    for (batch, outcome) in batches.iter().zip(outcomes) {
        let Outcome::Stored(ingested) = outcome else {
            metrics.flow_batches_repeated.inc();
            continue;
        };
        metrics.flow_batches_lost.inc_by(ingested.gap);
        metrics.flows_forgotten_open.inc_by(ingested.forgotten_open);
        metrics
            .flow_records
            .inc_by(u64::try_from(batch.flows.len()).unwrap_or(0));
        if batch.refused {
            metrics.flow_batches_refused.inc();
        }
        if followers.receiver_count() > 0 {
            for flow in &batch.flows {
                let _nobody = followers.send(Arc::new(flow.clone()));
            }
        }
    }
}
