//! The agent and a controller that the test plays: enrolment, what is pushed, what is acknowledged, what is sent.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests: one that fails fails the test"
)]

mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::Lab;
use policy::snapshot::{Endpoint, Mode, Snapshot};
use proto::v1::agent_message::Message as Up;
use proto::v1::agent_sync_server::{AgentSync, AgentSyncServer};
use proto::v1::controller_message::Message as Down;
use proto::v1::enrollment_server::{Enrollment, EnrollmentServer};
use proto::v1::flow_ingest_server::{FlowIngest, FlowIngestServer};
use proto::v1::{self, ControllerMessage};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, SanType,
};
use rustls::pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).expect("ca").der().clone();
        Self {
            issuer: Issuer::new(params, key),
            ca,
        }
    }

    fn pin(&self) -> String {
        hex::encode(Sha256::digest(&self.ca))
    }

    fn server(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName(
            "cofferdam-controller".try_into().expect("name"),
        )];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params
            .signed_by(&key, &self.issuer)
            .expect("leaf")
            .der()
            .clone();
        (
            vec![leaf, self.ca.clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
    }
}

/// What the controller saw, and how it is told to speak.
#[derive(Default)]
struct Seen {
    tokens: Vec<String>,
    hellos: Vec<v1::Hello>,
    acks: Vec<v1::SnapshotAck>,
    nacks: Vec<v1::SnapshotNack>,
    statuses: Vec<v1::AgentStatus>,
    batches: BTreeMap<u64, usize>,
    repeated: usize,
    down: Option<mpsc::Sender<Result<ControllerMessage, Status>>>,
}

#[derive(Clone)]
struct Controller {
    authority: Arc<Authority>,
    seen: Arc<Mutex<Seen>>,
}

#[tonic::async_trait]
impl Enrollment for Controller {
    async fn enroll(
        &self,
        request: Request<v1::EnrollRequest>,
    ) -> Result<Response<v1::EnrollResponse>, Status> {
        let request = request.into_inner();
        let der = CertificateSigningRequestDer::from(request.csr_der);
        let mut csr = CertificateSigningRequestParams::from_der(&der).expect("csr");
        csr.params.subject_alt_names = vec![SanType::URI(
            "spiffe://test/agent/db-1".try_into().expect("uri"),
        )];
        csr.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let signed = csr.signed_by(&self.authority.issuer).expect("sign");
        self.seen.lock().expect("seen").tokens.push(request.token);
        Ok(Response::new(v1::EnrollResponse {
            certificate_chain_der: vec![signed.der().to_vec()],
            ca_der: vec![self.authority.ca.to_vec()],
            spiffe_id: "spiffe://test/agent/db-1".into(),
            workload: "db-1".into(),
            not_after: None,
        }))
    }
}

#[tonic::async_trait]
impl AgentSync for Controller {
    type SyncStream = ReceiverStream<Result<ControllerMessage, Status>>;

    async fn sync(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let mut up = request.into_inner();
        let (down, queue) = mpsc::channel(16);
        self.seen.lock().expect("seen").down = Some(down);
        let seen = Arc::clone(&self.seen);
        tokio::spawn(async move {
            while let Ok(Some(message)) = up.message().await {
                let mut seen = seen.lock().expect("seen");
                match message.message {
                    Some(Up::Hello(hello)) => seen.hellos.push(hello),
                    Some(Up::Ack(ack)) => seen.acks.push(ack),
                    Some(Up::Nack(nack)) => seen.nacks.push(nack),
                    Some(Up::Status(status)) => seen.statuses.push(status),
                    None => {}
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(queue)))
    }

    async fn renew(
        &self,
        _: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::EnrollResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

#[tonic::async_trait]
impl FlowIngest for Controller {
    type ExportStream = ReceiverStream<Result<v1::FlowAck, Status>>;

    async fn export(
        &self,
        request: Request<Streaming<v1::FlowBatch>>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let mut batches = request.into_inner();
        let (acks, queue) = mpsc::channel(16);
        let seen = Arc::clone(&self.seen);
        tokio::spawn(async move {
            while let Ok(Some(batch)) = batches.message().await {
                {
                    let mut seen = seen.lock().expect("seen");
                    if seen
                        .batches
                        .insert(batch.sequence, batch.records.len())
                        .is_some()
                    {
                        seen.repeated += 1;
                    }
                }
                let ack = v1::FlowAck {
                    sequence: batch.sequence,
                    credit: 2,
                    refused: String::new(),
                };
                if acks.send(Ok(ack)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(queue)))
    }
}

/// A controller in the peer's namespace; it ends with the guard.
struct Running {
    controller: Controller,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Running {
    fn start(lab: &Lab, authority: &Arc<Authority>) -> Self {
        let controller = Controller {
            authority: Arc::clone(authority),
            seen: Arc::default(),
        };
        let listener = common::in_namespace(&lab.peer, || {
            std::net::TcpListener::bind("10.66.0.2:7443").expect("listen")
        });
        listener.set_nonblocking(true).expect("nonblocking");
        let (chain, key) = authority.server();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.ca.clone()).expect("root");
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::clone(&provider),
        )
        .allow_unauthenticated()
        .build()
        .expect("verifier");
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .expect("certificate");
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("runtime");
        let service = controller.clone();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
            let (accepted, incoming) = mpsc::channel::<Result<_, std::io::Error>>(4);
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    // A refused handshake is the agent's affair.
                    if let Ok(stream) = acceptor.accept(stream).await
                        && accepted.send(Ok(stream)).await.is_err()
                    {
                        return;
                    }
                }
            });
            tonic::transport::Server::builder()
                .add_service(EnrollmentServer::new(service.clone()))
                .add_service(AgentSyncServer::new(service.clone()))
                .add_service(
                    FlowIngestServer::new(service)
                        .accept_compressed(tonic::codec::CompressionEncoding::Zstd),
                )
                .serve_with_incoming(ReceiverStream::new(incoming))
                .await
                .expect("server");
        });
        Self {
            controller,
            runtime: Some(runtime),
        }
    }

    fn seen<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.controller.seen.lock().expect("seen"))
    }

    fn push(&self, push: v1::SnapshotPush) {
        self.seen(|seen| {
            seen.down
                .as_ref()
                .expect("connected")
                .try_send(Ok(ControllerMessage {
                    message: Some(Down::Snapshot(push)),
                }))
                .expect("room");
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

fn snapshot(revision: u64, mode: Mode) -> Snapshot {
    Snapshot {
        revision,
        endpoints: vec![Endpoint {
            id: 1,
            name: "db-1".into(),
            mode,
            addresses: vec![],
        }],
        ..Snapshot::default()
    }
}

fn push(snapshot: &Snapshot, nonce: u64) -> v1::SnapshotPush {
    v1::SnapshotPush {
        snapshot: Some(snapshot.into()),
        nonce,
        digest: snapshot.digest().to_vec(),
        ..v1::SnapshotPush::default()
    }
}

#[test]
fn an_agent_joins_obeys_reports_and_goes_on_alone() {
    let Some(mut lab) = Lab::new("an_agent_joins_obeys_reports_and_goes_on_alone") else {
        return;
    };
    let authority = Arc::new(Authority::new());
    let first = Running::start(&lab, &authority);
    lab.follow("10.66.0.2:7443", &authority.pin(), "cfd-1.secret");
    lab.start();
    lab.wait("hello", |_| first.seen(|seen| !seen.hellos.is_empty()));
    first.seen(|seen| {
        assert_eq!(seen.tokens, ["cfd-1.secret"]);
        let hello = &seen.hellos[0];
        assert_eq!(
            (hello.applied_revision, hello.abi_version),
            (0, datapath::abi::ABI_VERSION)
        );
        assert!(
            hello
                .addresses
                .iter()
                .any(|address| address.value == [10, 66, 0, 1])
        );
    });
    let open = lab.listen(5432);
    let mut session = lab.session(&open, lab.v4());
    assert!(session.works(), "observed before there is a policy");

    // Nothing is allowed: the session is cut, the controller connection is a failsafe and goes on.
    let closed = snapshot(7, Mode::Enforce);
    first.push(push(&closed, 1));
    lab.wait("acknowledged", |_| first.seen(|seen| !seen.acks.is_empty()));
    first.seen(|seen| {
        let ack = &seen.acks[0];
        assert_eq!((ack.revision, ack.nonce), (7, 1));
        assert_eq!(ack.digest, closed.digest());
        assert!(ack.apply_ns > 0);
    });
    assert!(!session.works());
    assert!(lab.connect(lab.v4(), 5432).is_err());

    // Older, or not what its digest says: refused, with the reason.
    first.push(push(&snapshot(6, Mode::Observe), 2));
    let mut forged = push(&snapshot(9, Mode::Observe), 3);
    forged.digest = vec![0; 32];
    first.push(forged);
    lab.wait("refused", |_| first.seen(|seen| seen.nacks.len() == 2));
    first.seen(|seen| {
        assert!(
            seen.nacks[0].reason.contains("older than 7"),
            "{}",
            seen.nacks[0].reason
        );
        assert!(
            seen.nacks[1].reason.contains("digest"),
            "{}",
            seen.nacks[1].reason
        );
    });
    assert!(lab.connect(lab.v4(), 5432).is_err());

    lab.wait("records arrive", |_| {
        first.seen(|seen| seen.batches.values().sum::<usize>() > 0)
    });
    let last = first.seen(|seen| {
        assert_eq!(seen.repeated, 0);
        seen.batches.keys().copied().max().unwrap_or(0)
    });

    // The controller vanishes: nothing changes. It comes back with nothing remembered: the agent resumes.
    drop(first);
    assert!(lab.connect(lab.v4(), 5432).is_err());
    let second = Running::start(&lab, &authority);
    lab.wait("hello again", |_| {
        second.seen(|seen| !seen.hellos.is_empty())
    });
    second.seen(|seen| {
        assert_eq!(seen.hellos[0].applied_revision, 7);
        assert_eq!(seen.hellos[0].applied_digest, closed.digest());
        assert!(seen.tokens.is_empty(), "the identity is kept");
    });
    assert!(lab.connect(lab.v4(), 5432).is_err());
    lab.wait("records resume", |_| {
        second.seen(|seen| seen.batches.keys().any(|sequence| *sequence > last))
    });
    second.seen(|seen| {
        let sequences: Vec<u64> = seen.batches.keys().copied().collect();
        assert!(
            sequences.iter().all(|sequence| *sequence >= last),
            "acknowledged ones are not sent again"
        );
        assert!(
            sequences.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "{sequences:?}"
        );
    });
}

#[test]
fn a_controller_with_another_authority_never_sees_the_token() {
    let Some(mut lab) = Lab::new("a_controller_with_another_authority_never_sees_the_token") else {
        return;
    };
    let impostor = Arc::new(Authority::new());
    let running = Running::start(&lab, &impostor);
    lab.follow("10.66.0.2:7443", &Authority::new().pin(), "cfd-1.secret");
    lab.start();
    lab.wait("the agent says whom it does not believe", |lab| {
        lab.log().contains("not connected to the controller")
    });
    assert!(running.seen(|seen| seen.tokens.is_empty() && seen.hellos.is_empty()));
    let status = lab.verb(&["status"]);
    assert_eq!(status["controller"], false);
    assert_eq!(status["state"], "armed");
}
