//! The controller: turns policy and inventory into a snapshot for every agent, brings it there,
//! takes flows in, finds who is feeling its way through the network, and cuts it off.
//!
//! One process and one directory, no other service. [`Controller::start`] is everything; the rest is
//! public for tests.

pub mod api;
pub mod auth;
pub mod clock;
pub mod config;
pub mod core;
pub mod detect;
pub mod distribute;
pub mod flows;
mod http;
mod invariants;
pub mod metrics;
pub mod planner;
pub mod sql;
pub mod state;
pub mod store;

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proto::v1;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::auth::{Authority, CaError, Gate};
use crate::config::Config;
use crate::core::{Core, CoreError};
use crate::detect::{Detectors, Probing};
use crate::flows::{FlowDb, Ingest};
use crate::metrics::Metrics;
use crate::sql::SqlError;
use crate::store::{SqliteStore, StoreError};

/// How long streams and requests may take to end.
const GRACE: Duration = Duration::from_secs(5);

/// Why the controller does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error("{path}: {source}")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another controller works there.
    #[error("{0}: another controller uses this directory")]
    Locked(PathBuf),
    /// An address cannot be listened on.
    #[error("listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The authority.
    #[error(transparent)]
    Authority(#[from] CaError),
    /// TLS.
    #[error("TLS: {0}")]
    Tls(String),
    /// The state.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// The flows.
    #[error(transparent)]
    Flows(#[from] SqlError),
    /// The descriptors of the API.
    #[error("reflection: {0}")]
    Reflection(String),
}

/// A running controller.
#[derive(Debug)]
pub struct Controller {
    /// The heart.
    pub core: Arc<Core>,
    /// Where gRPC is answered.
    pub address: SocketAddr,
    /// Where `/metrics` is answered.
    pub http_address: Option<SocketAddr>,
    /// Certificate and key of the operator.
    pub operator_dir: PathBuf,
    stop: CancellationToken,
    server: JoinHandle<()>,
    // Held as long as the controller runs.
    _lock: File,
}

impl Controller {
    /// Opens the data directory and begins to answer.
    ///
    /// # Errors
    /// When something that it needs is not there.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let lock = lock(&config)?;
        let stop = CancellationToken::new();
        let metrics = Arc::new(Metrics::default());
        let authority = Arc::new(Authority::open(&config.data_dir, &config.trust_domain)?);
        let operator_dir =
            authority.ensure_operator(&config.data_dir, config.certificates.operator)?;
        let store = SqliteStore::open(&config.data_dir.join("state.db"))?;
        let detectors = Detectors::new(vec![Box::new(Probing::new(config.probing))]);
        let flows_path = config.data_dir.join("flows.db");
        let flows = FlowDb::open(&flows_path, config.flows.max_records, detectors).await?;
        let core = Core::open(
            config.clone(),
            store,
            authority.clone(),
            flows.clone(),
            metrics.clone(),
        )
        .await?;

        let findings = core.findings.clone();
        let announce = move |finding: detect::Finding| {
            tracing::warn!(
                detector = finding.detector,
                subject = finding.subject,
                reason = finding.reason,
                "finding"
            );
            let _nobody = findings.send(Arc::new(v1::Finding::from(&finding)));
        };
        // Batches that were handed in are still written during a stop.
        let ingest = Ingest::start(
            flows,
            metrics.clone(),
            announce,
            config.flows.follower_backlog,
            stop.clone(),
        );
        tokio::spawn(distribute::follow(core.clone(), stop.clone()));
        tokio::spawn(distribute::timers(core.clone(), stop.clone()));
        tokio::spawn(invariants::watch(core.clone(), stop.clone()));

        let listener = bind(config.listen).await?;
        let address = local(&listener, config.listen)?;
        let http_address = match config.http_listen {
            Some(wanted) => {
                let listener = bind(wanted).await?;
                let address = local(&listener, wanted)?;
                tokio::spawn(http::serve(listener, core.clone(), stop.clone()));
                Some(address)
            }
            None => None,
        };
        let tls = auth::server_config(&authority, &config, &stop)
            .map_err(|error| StartError::Tls(error.to_string()))?;
        let incoming = auth::incoming(listener, tls, &config.trust_domain, metrics, stop.clone());
        let api = Api {
            core: core.clone(),
            ingest,
            stop: stop.clone(),
        };
        let routes = api
            .routes()
            .map_err(|error| StartError::Reflection(error.to_string()))?;
        let server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .concurrency_limit_per_connection(64)
            .max_concurrent_streams(128)
            .layer(Gate::new(core.clone()))
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        let server = tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "gRPC ended");
            }
        });
        tracing::info!(%address, revision = core.state().revision, "the controller answers");
        Ok(Self {
            core,
            address,
            http_address,
            operator_dir,
            stop,
            server,
            _lock: lock,
        })
    }

    /// Whether everything that must answer does.
    ///
    /// # Errors
    /// What does not.
    pub async fn probe(&self) -> Result<(), StoreError> {
        http::probe(&self.core).await
    }

    /// Ends streams, finishes requests, and returns when it is done or the grace period is over.
    pub async fn stop(self) {
        self.stop.cancel();
        if tokio::time::timeout(GRACE, self.server).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
    }
}

fn lock(config: &Config) -> Result<File, StartError> {
    let path = config.data_dir.clone();
    let io = |source| StartError::DataDir {
        path: path.clone(),
        source,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.data_dir)
        .map_err(io)?;
    // It may have been there before, made by hand.
    let mode = fs::metadata(&path).map_err(io)?.permissions().mode();
    let foreign = || -> io::Result<bool> {
        Ok(!path.join("lock").exists() && fs::read_dir(&path)?.next().is_some())
    };
    if mode & 0o002 != 0 && foreign().map_err(io)? {
        return Err(io(io::Error::other(
            "everybody writes there: a directory of its own is needed",
        )));
    }
    if mode & 0o077 != 0 {
        fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(io)?;
    }
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(config.data_dir.join("lock"))
        .map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StartError::Locked(path.clone())),
        Err(TryLockError::Error(source)) => Err(io(source)),
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| StartError::Listen { address, source })
}

fn local(listener: &TcpListener, address: SocketAddr) -> Result<SocketAddr, StartError> {
    let local = listener.local_addr();
    local.map_err(|source| StartError::Listen { address, source })
}
