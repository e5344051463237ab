//! A server that speaks the API over mutual TLS, answers from [`crate::samples`], and keeps the
//! requests it got.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::v1;
use proto::v1::detections_server::{Detections, DetectionsServer};
use proto::v1::flows_server::{Flows, FlowsServer};
use proto::v1::inventory_server::{Inventory, InventoryServer};
use proto::v1::policies_server::{Policies, PoliciesServer};
use proto::v1::responses_server::{Responses, ResponsesServer};
use proto::v1::status_server::{Status as StatusService, StatusServer};
use rcgen::ExtendedKeyUsagePurpose;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Code, Request, Response, Status, async_trait};

use crate::command::{self, Run};
use crate::pki::Ca;
use crate::samples;

/// What the server should do differently.
#[derive(Clone, Debug, Default)]
pub(crate) struct Behaviour {
    /// Every call fails like this.
    pub(crate) fail: Option<(Code, String)>,
    /// Calls are never answered.
    pub(crate) hang: bool,
    /// Streams end after the samples instead of staying open.
    pub(crate) end_streams: bool,
    /// `apply` finds this.
    pub(crate) problems: Vec<v1::Problem>,
    /// `apply` finds nothing to change.
    pub(crate) unchanged: bool,
    /// `isolate` is proved by all.
    pub(crate) isolation_complete: bool,
    /// Revisions that `watch` reports as verified, one message each.
    pub(crate) verified: Vec<u64>,
    /// Flows are hostile to terminals.
    pub(crate) hostile: bool,
    /// Stored objects by kind, name and text, instead of the samples.
    pub(crate) stored: Vec<[String; 3]>,
    /// Rows a page holds at most; 0 = all.
    pub(crate) page: usize,
}

/// Requests as they came, in debug form.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

#[derive(Clone)]
struct Service {
    behaviour: Arc<Behaviour>,
    seen: Seen,
}

/// The running server and an operator's home directory that knows it.
pub(crate) struct Fake {
    url: String,
    home: tempfile::TempDir,
    seen: Seen,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Fake {
    pub(crate) fn start(behaviour: Behaviour) -> Self {
        let home = tempfile::tempdir().unwrap();
        let ca = Ca::new();
        ca.write_operator(&home.path().join("operator"));
        let leaf = ca.leaf(&["127.0.0.1"], ExtendedKeyUsagePurpose::ServerAuth);
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(leaf.cert, leaf.key))
            .client_ca_root(Certificate::from_pem(ca.pem()));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let seen = Seen::default();
        let service = Service {
            behaviour: Arc::new(behaviour),
            seen: seen.clone(),
        };
        let url = {
            let _inside = runtime.enter();
            let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).unwrap();
            let address = incoming.local_addr().unwrap();
            let server = Server::builder()
                .tls_config(tls)
                .unwrap()
                .add_service(PoliciesServer::new(service.clone()))
                .add_service(InventoryServer::new(service.clone()))
                .add_service(FlowsServer::new(service.clone()))
                .add_service(DetectionsServer::new(service.clone()))
                .add_service(ResponsesServer::new(service.clone()))
                .add_service(StatusServer::new(service))
                .serve_with_incoming(incoming);
            runtime.spawn(server);
            format!("https://{address}")
        };
        Self {
            url,
            home,
            seen,
            runtime: Some(runtime),
        }
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn operator_dir(&self) -> PathBuf {
        self.home.path().join("operator")
    }

    /// The binary, told by the environment where the server is.
    pub(crate) fn command(&self) -> Command {
        let mut command = command::command(self.home());
        command
            .current_dir(self.home())
            .env("COFFERDAM_CONTROLLER", &self.url)
            .env("COFFERDAM_OPERATOR_DIR", self.operator_dir());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Run {
        Run::from(self.command().args(args).output().unwrap())
    }

    /// Requests so far, in debug form.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.0.lock().unwrap().clone()
    }

    /// Goes away without a word to anybody.
    pub(crate) fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_millis(100));
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop();
    }
}

type Answer<T> = Result<Response<T>, Status>;
type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    async fn take<T: std::fmt::Debug>(&self, request: Request<T>) -> Result<T, Status> {
        let request = request.into_inner();
        self.seen.0.lock().unwrap().push(format!("{request:?}"));
        if self.behaviour.hang {
            std::future::pending::<()>().await;
        }
        match &self.behaviour.fail {
            Some((code, message)) => Err(Status::new(*code, message)),
            None => Ok(request),
        }
    }

    fn page<T>(&self, rows: Vec<T>, size: u32, token: &str) -> (Vec<T>, String) {
        let size = match self.behaviour.page {
            0 => size as usize,
            page => page.min(size as usize),
        };
        let from: usize = token.parse().unwrap_or(0);
        let to = rows.len().min(from + size);
        let next = if to < rows.len() {
            to.to_string()
        } else {
            String::new()
        };
        (rows.into_iter().take(to).skip(from).collect(), next)
    }

    fn messages<T: Send + 'static>(&self, rows: Vec<T>) -> Answer<Messages<T>> {
        let sent = tokio_stream::iter(rows.into_iter().map(Ok));
        Ok(Response::new(if self.behaviour.end_streams {
            Box::pin(sent)
        } else {
            Box::pin(sent.chain(tokio_stream::pending()))
        }))
    }

    fn applied(&self, dry_run: bool) -> v1::ApplyResponse {
        let mut response = samples::applied(dry_run);
        if self.behaviour.unchanged {
            response
                .changes
                .retain(|change| change.change == "unchanged");
            response.confirm_deadline = None;
        }
        response.problems.clone_from(&self.behaviour.problems);
        response
    }
}

#[async_trait]
impl Policies for Service {
    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Answer<v1::ApplyResponse> {
        let request = self.take(request).await?;
        let dry_run = request.options.unwrap_or_default().dry_run;
        Ok(Response::new(self.applied(dry_run)))
    }

    async fn confirm(&self, request: Request<v1::ConfirmRequest>) -> Answer<v1::ConfirmResponse> {
        let revision = self.take(request).await?.revision.max(12);
        Ok(Response::new(v1::ConfirmResponse { revision }))
    }

    async fn list(
        &self,
        request: Request<v1::ListObjectsRequest>,
    ) -> Answer<v1::ListObjectsResponse> {
        let request = self.take(request).await?;
        let mut rows = samples::objects();
        if !self.behaviour.stored.is_empty() {
            rows = samples::stored(&self.behaviour.stored);
        }
        rows.retain(|object| request.kind.is_empty() || object.kind == request.kind);
        rows.retain(|object| request.name.is_empty() || object.name == request.name);
        let (objects, next_page_token) = self.page(rows, request.page_size, &request.page_token);
        Ok(Response::new(v1::ListObjectsResponse {
            objects,
            revision: 12,
            next_page_token,
        }))
    }

    async fn history(&self, request: Request<v1::HistoryRequest>) -> Answer<v1::HistoryResponse> {
        let request = self.take(request).await?;
        let (entries, next_page_token) =
            self.page(samples::history(), request.page_size, &request.page_token);
        Ok(Response::new(v1::HistoryResponse {
            entries,
            next_page_token,
        }))
    }

    async fn rollback(&self, request: Request<v1::RollbackRequest>) -> Answer<v1::ApplyResponse> {
        let request = self.take(request).await?;
        let dry_run = request.options.unwrap_or_default().dry_run;
        Ok(Response::new(self.applied(dry_run)))
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Answer<v1::ExplainResponse> {
        self.take(request).await?;
        Ok(Response::new(samples::explained()))
    }
}

#[async_trait]
impl Inventory for Service {
    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Answer<v1::CreateTokenResponse> {
        self.take(request).await?;
        Ok(Response::new(v1::CreateTokenResponse {
            token: "cdj_secret".into(),
            expires_at: samples::at(3_600_000),
            ca_sha256: "ab".repeat(32),
        }))
    }

    async fn revoke_agent(
        &self,
        request: Request<v1::RevokeAgentRequest>,
    ) -> Answer<v1::RevokeAgentResponse> {
        self.take(request).await?;
        Ok(Response::new(v1::RevokeAgentResponse { revision: 14 }))
    }

    async fn list_workloads(
        &self,
        request: Request<v1::ListWorkloadsRequest>,
    ) -> Answer<v1::ListWorkloadsResponse> {
        let request = self.take(request).await?;
        let (workloads, next_page_token) =
            self.page(samples::workloads(), request.page_size, &request.page_token);
        Ok(Response::new(v1::ListWorkloadsResponse {
            workloads,
            next_page_token,
            managed_networks: samples::managed_networks(),
            default_mode: v1::Mode::Enforce.into(),
        }))
    }
}

fn flows(hostile: bool) -> Vec<v1::FlowRecord> {
    if hostile {
        return vec![samples::hostile(), samples::missed()];
    }
    vec![
        samples::flow("u-1", false),
        samples::flow("u-2", true),
        samples::ping(),
    ]
}

#[async_trait]
impl Flows for Service {
    async fn list(&self, request: Request<v1::ListFlowsRequest>) -> Answer<v1::ListFlowsResponse> {
        let request = self.take(request).await?;
        let (flows, next_page_token) = self.page(
            flows(self.behaviour.hostile),
            request.page_size,
            &request.page_token,
        );
        Ok(Response::new(v1::ListFlowsResponse {
            flows,
            next_page_token,
        }))
    }

    type FollowStream = Messages<v1::FlowRecord>;

    async fn follow(&self, request: Request<v1::FollowFlowsRequest>) -> Answer<Self::FollowStream> {
        self.take(request).await?;
        self.messages(flows(self.behaviour.hostile))
    }

    async fn edges(&self, request: Request<v1::ListEdgesRequest>) -> Answer<v1::ListEdgesResponse> {
        self.take(request).await?;
        Ok(Response::new(v1::ListEdgesResponse {
            edges: vec![samples::edge()],
            next_page_token: String::new(),
        }))
    }
}

#[async_trait]
impl Detections for Service {
    async fn list(
        &self,
        request: Request<v1::ListFindingsRequest>,
    ) -> Answer<v1::ListFindingsResponse> {
        self.take(request).await?;
        Ok(Response::new(v1::ListFindingsResponse {
            findings: vec![samples::finding()],
            next_page_token: String::new(),
        }))
    }

    type FollowStream = Messages<v1::Finding>;

    async fn follow(
        &self,
        request: Request<v1::FollowFindingsRequest>,
    ) -> Answer<Self::FollowStream> {
        self.take(request).await?;
        self.messages(vec![samples::finding()])
    }
}

#[async_trait]
impl Responses for Service {
    async fn isolate(&self, request: Request<v1::IsolateRequest>) -> Answer<v1::IsolateResponse> {
        self.take(request).await?;
        Ok(Response::new(samples::isolated(
            self.behaviour.isolation_complete,
        )))
    }

    async fn restore(&self, request: Request<v1::RestoreRequest>) -> Answer<v1::IsolateResponse> {
        self.take(request).await?;
        Ok(Response::new(samples::isolated(
            self.behaviour.isolation_complete,
        )))
    }
}

#[async_trait]
impl StatusService for Service {
    async fn get(&self, request: Request<v1::GetStatusRequest>) -> Answer<v1::GetStatusResponse> {
        self.take(request).await?;
        Ok(Response::new(samples::status(11)))
    }

    type WatchStream = Messages<v1::GetStatusResponse>;

    async fn watch(&self, request: Request<v1::GetStatusRequest>) -> Answer<Self::WatchStream> {
        self.take(request).await?;
        let verified = self.behaviour.verified.iter();
        self.messages(
            verified
                .map(|verified| samples::status(*verified))
                .collect(),
        )
    }
}
