//! A controller on loopback, and clients that prove who they are.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    reason = "shared by several test binaries; a test says so by failing"
)]

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use controller::Controller;
use controller::config::{Config, SERVER_NAME};
use ipnet::IpNet;
use policy::snapshot::Snapshot;
use proto::v1::agent_sync_client::AgentSyncClient;
use proto::v1::enrollment_client::EnrollmentClient;
use proto::v1::flow_ingest_client::FlowIngestClient;
use proto::v1::inventory_client::InventoryClient;
use proto::v1::policies_client::PoliciesClient;
use proto::v1::{self, agent_message, controller_message};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Status, Streaming};

/// Everything has to happen within this.
pub const LIMIT: Duration = Duration::from_secs(20);

/// A controller and its directory.
pub struct Lab {
    pub dir: tempfile::TempDir,
    pub controller: Controller,
}

/// Someone who can be reached at an address and proves who they are with a bundle.
pub fn config(dir: &Path) -> Config {
    Config {
        data_dir: dir.to_owned(),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        http_listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        trust_domain: "test".into(),
        ..Config::default()
    }
}

impl Lab {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = config(dir.path());
        change(&mut config);
        let controller = Controller::start(config).await.expect("it starts");
        Self { dir, controller }
    }

    pub async fn operator(&self) -> Operator {
        Operator::connect(self.controller.address, &self.controller.operator_dir).await
    }

    pub async fn agent(&self, name: &str, address: &str) -> Agent {
        let operator = self.operator().await;
        Agent::join(self.controller.address, &operator, name, &[address], &[]).await
    }
}

/// A channel to the controller, with or without a certificate.
pub async fn channel(address: SocketAddr, ca: &str, identity: Option<(&str, &str)>) -> Channel {
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(ca))
        .domain_name(SERVER_NAME);
    if let Some((cert, key)) = identity {
        tls = tls.identity(Identity::from_pem(cert, key));
    }
    Endpoint::from_shared(format!("https://{address}"))
        .and_then(|endpoint| endpoint.tls_config(tls))
        .expect("an endpoint")
        .connect()
        .await
        .expect("it connects")
}

/// A person.
#[derive(Clone)]
pub struct Operator {
    pub channel: Channel,
    pub ca: String,
    pub dir: PathBuf,
}

impl Operator {
    pub async fn connect(address: SocketAddr, dir: &Path) -> Self {
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect("a bundle");
        let (ca, cert, key) = (read("ca.pem"), read("cert.pem"), read("key.pem"));
        Self {
            channel: channel(address, &ca, Some((&cert, &key))).await,
            ca,
            dir: dir.to_owned(),
        }
    }

    pub async fn token(
        &self,
        workload: &str,
        addresses: &[&str],
        labels: &[(&str, &str)],
    ) -> String {
        let request = v1::CreateTokenRequest {
            options: options(),
            workload: workload.into(),
            labels: labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            addresses: addresses.iter().map(|text| net(text).into()).collect(),
            ..v1::CreateTokenRequest::default()
        };
        let response = InventoryClient::new(self.channel.clone())
            .create_token(request)
            .await
            .expect("a token");
        response.into_inner().token
    }

    pub async fn apply(&self, text: &str) -> v1::ApplyResponse {
        self.apply_within(text, -1).await
    }

    pub async fn apply_within(&self, text: &str, seconds: i32) -> v1::ApplyResponse {
        let request = v1::ApplyRequest {
            options: options(),
            files: vec![v1::SourceFile {
                name: "p.yaml".into(),
                text: text.into(),
            }],
            prune: false,
            confirm_within_seconds: seconds,
        };
        let response = PoliciesClient::new(self.channel.clone())
            .apply(request)
            .await;
        response.expect("an answer").into_inner()
    }
}

/// A prefix; an address is one of full length.
pub fn net(text: &str) -> IpNet {
    text.parse()
        .unwrap_or_else(|_| IpNet::from(text.parse::<IpAddr>().expect("an address or prefix")))
}

/// A fresh idempotency key.
pub fn options() -> Option<v1::MutationOptions> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let key = NEXT.fetch_add(1, Ordering::Relaxed);
    Some(v1::MutationOptions {
        idempotency_key: format!("{}-{key}", std::process::id()),
        ..v1::MutationOptions::default()
    })
}

/// A certificate request with its key.
pub fn csr() -> (Vec<u8>, rcgen::KeyPair) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::default();
    let csr = params.serialize_request(&key).expect("a request");
    (csr.der().to_vec(), key)
}

pub fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

pub async fn enroll(
    address: SocketAddr,
    ca: &str,
    token: &str,
    csr_der: &[u8],
    addresses: &[&str],
) -> Result<v1::EnrollResponse, Status> {
    let channel = channel(address, ca, None).await;
    let request = v1::EnrollRequest {
        token: token.into(),
        csr_der: csr_der.to_vec(),
        hostname: "host".into(),
        addresses: wire(addresses),
        agent_version: "test".into(),
    };
    let response = EnrollmentClient::new(channel).enroll(request).await?;
    Ok(response.into_inner())
}

pub fn wire(addresses: &[&str]) -> Vec<v1::Address> {
    addresses
        .iter()
        .map(|text| text.parse::<IpAddr>().expect("an address").into())
        .collect()
}

/// An agent that does what it is told.
#[derive(Clone)]
pub struct Agent {
    pub name: String,
    pub addresses: Vec<String>,
    pub channel: Channel,
    pub cert: String,
    pub key: String,
    pub ca: String,
}

impl Agent {
    pub async fn join(
        address: SocketAddr,
        operator: &Operator,
        name: &str,
        addresses: &[&str],
        labels: &[(&str, &str)],
    ) -> Self {
        let token = operator.token(name, addresses, labels).await;
        let (csr, key) = csr();
        let enrolled = enroll(address, &operator.ca, &token, &csr, addresses)
            .await
            .expect("enrolled");
        assert_eq!(enrolled.workload, name);
        let (cert, key) = (pem(&enrolled.certificate_chain_der[0]), key.serialize_pem());
        Self {
            name: name.into(),
            addresses: addresses.iter().map(|text| (*text).to_owned()).collect(),
            channel: channel(address, &operator.ca, Some((&cert, &key))).await,
            cert,
            key,
            ca: operator.ca.clone(),
        }
    }

    pub fn hello(&self, revision: u64, digest: &[u8]) -> v1::Hello {
        let addresses: Vec<_> = self.addresses.iter().map(String::as_str).collect();
        v1::Hello {
            hostname: self.name.clone(),
            version: "test".into(),
            addresses: wire(&addresses),
            applied_revision: revision,
            applied_digest: digest.to_vec(),
            ..v1::Hello::default()
        }
    }

    pub async fn sync(&self, hello: v1::Hello) -> Result<Session, Status> {
        let (up, receiver) = mpsc::channel(16);
        let session_up = up.clone();
        up.send(agent_message::Message::Hello(hello).wrap())
            .await
            .expect("a queue");
        let down = AgentSyncClient::new(self.channel.clone())
            .max_decoding_message_size(64 << 20)
            .sync(ReceiverStream::new(receiver))
            .await?
            .into_inner();
        Ok(Session {
            up: session_up,
            down,
        })
    }

    /// Connects with nothing applied, and takes the first snapshot.
    pub async fn start(&self) -> (Session, v1::SnapshotPush) {
        let mut session = self.sync(self.hello(0, &[])).await.expect("a session");
        let push = session.push().await;
        session.ack(&push).await;
        (session, push)
    }

    /// Connects, and takes every snapshot until `until` is dropped.
    pub fn obey(&self) -> tokio::task::JoinHandle<()> {
        let agent = self.clone();
        tokio::spawn(async move {
            let mut session = agent.sync(agent.hello(0, &[])).await.expect("a session");
            while let Ok(Some(message)) = session.down.message().await {
                if let Some(controller_message::Message::Snapshot(push)) = message.message {
                    session.ack(&push).await;
                }
            }
        })
    }

    pub async fn export(&self) -> Export {
        let (up, receiver) = mpsc::channel(64);
        let mut client = FlowIngestClient::new(self.channel.clone());
        let down = client
            .export(ReceiverStream::new(receiver))
            .await
            .expect("a stream")
            .into_inner();
        let mut export = Export {
            up,
            down,
            durable: 0,
        };
        export.durable = export.answer().await.expect("the first word").sequence;
        export
    }

    /// A record of this agent, opened by it.
    pub fn flow(&self, uid: &str, to: &str, port: u32) -> v1::FlowRecord {
        let now = proto::convert::from_system_time(std::time::SystemTime::now());
        v1::FlowRecord {
            uid: uid.into(),
            host: self.name.clone(),
            first_seen: Some(now),
            last_seen: Some(now),
            direction: v1::Direction::Egress.into(),
            protocol: 6,
            initiator: wire(&[&self.addresses[0]]).pop(),
            responder: wire(&[to]).pop(),
            initiator_port: 40_000,
            responder_port: port,
            packets_out: 3,
            bytes_out: 300,
            packets_in: 2,
            bytes_in: 200,
            state: "closed".into(),
            closed: true,
            allowed: true,
            evaluated_allow: true,
            draft_allow: true,
            ..v1::FlowRecord::default()
        }
    }

    /// A denial of this agent's own.
    pub fn denied(&self, uid: &str, to: &str, port: u32) -> v1::FlowRecord {
        v1::FlowRecord {
            allowed: false,
            evaluated_allow: false,
            denial: true,
            opening: true,
            rule: "standard/closed/egress".into(),
            packets_in: 0,
            bytes_in: 0,
            ..self.flow(uid, to, port)
        }
    }
}

/// Messages are wrapped.
pub trait Wrap {
    fn wrap(self) -> v1::AgentMessage;
}

impl Wrap for agent_message::Message {
    fn wrap(self) -> v1::AgentMessage {
        v1::AgentMessage {
            message: Some(self),
        }
    }
}

/// An open session.
pub struct Session {
    pub up: mpsc::Sender<v1::AgentMessage>,
    pub down: Streaming<v1::ControllerMessage>,
}

impl Session {
    pub async fn next(&mut self) -> Result<controller_message::Message, Status> {
        let next = tokio::time::timeout(LIMIT, self.down.message()).await;
        let next = next.expect("in time")?;
        next.and_then(|message| message.message)
            .ok_or_else(|| Status::cancelled("ended"))
    }

    pub async fn push(&mut self) -> v1::SnapshotPush {
        match self.next().await.expect("a message") {
            controller_message::Message::Snapshot(push) => push,
            other => panic!("not a snapshot: {other:?}"),
        }
    }

    pub async fn ack(&self, push: &v1::SnapshotPush) {
        let content = content(push);
        let ack = v1::SnapshotAck {
            revision: content.revision,
            nonce: push.nonce,
            digest: content.digest().to_vec(),
            generation: 1,
            apply_ns: 1,
            confirm_deadline: (push.confirm_within_seconds > 0).then(Default::default),
        };
        self.send(agent_message::Message::Ack(ack)).await;
    }

    pub async fn send(&self, message: agent_message::Message) {
        // A session that the controller ended hears nothing.
        let _ended = self.up.send(message.wrap()).await;
    }
}

/// What a push holds, checked as an agent does.
pub fn content(push: &v1::SnapshotPush) -> Snapshot {
    let wire = push.snapshot.as_ref().expect("a snapshot");
    let snapshot = Snapshot::try_from(wire).expect("it converts");
    assert_eq!(snapshot.digest().to_vec(), push.digest);
    snapshot
}

/// A stream of flows.
pub struct Export {
    pub up: mpsc::Sender<v1::FlowBatch>,
    pub down: Streaming<v1::FlowAck>,
    pub durable: u64,
}

impl Export {
    pub async fn answer(&mut self) -> Result<v1::FlowAck, Status> {
        let answer = tokio::time::timeout(LIMIT, self.down.message()).await;
        answer
            .expect("in time")?
            .ok_or_else(|| Status::cancelled("ended"))
    }

    pub async fn send(
        &mut self,
        sequence: u64,
        records: Vec<v1::FlowRecord>,
    ) -> Result<v1::FlowAck, Status> {
        let batch = v1::FlowBatch {
            sequence,
            records,
            ..v1::FlowBatch::default()
        };
        self.up.send(batch).await.expect("an open stream");
        self.answer().await
    }
}

/// Asks again and again until the answer is there.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = tokio::time::Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begun.elapsed() < LIMIT, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
