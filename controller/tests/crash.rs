//! The real program: killed and started again, stopped in order, and refusing nonsense.
#![allow(clippy::expect_used, reason = "a test says so by failing")]

mod common;

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use common::{Agent, Operator, content, eventually};
use proto::v1;
use proto::v1::flows_client::FlowsClient;
use proto::v1::policies_client::PoliciesClient;
use proto::v1::responses_client::ResponsesClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const POLICY: &str = "
apiVersion: cofferdam.dev/v1
kind: Mode
metadata: {name: all}
spec: {subject: all, mode: enforce}
";

/// The program, killed when the test ends.
struct Running {
    child: Child,
    address: SocketAddr,
    http: SocketAddr,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

fn program(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cofferdam-controller"));
    command
        .args([
            "--data-dir",
            &dir.to_string_lossy(),
            "--trust-domain",
            "test",
        ])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(dir: &Path, arguments: &[&str]) -> Output {
    program(dir, arguments).output().expect("it runs")
}

impl Running {
    async fn start(dir: &Path, address: SocketAddr) -> Self {
        let http = free();
        let listen = [address.to_string(), http.to_string()];
        let child = program(
            dir,
            &[
                "--listen",
                &listen[0],
                "--http-listen",
                &listen[1],
                "--log-json",
            ],
        )
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
        let running = Self {
            child,
            address,
            http,
        };
        eventually("it is well", async || {
            running
                .get("/healthz")
                .await
                .filter(|text| text.contains("ok"))
        })
        .await;
        running
    }

    async fn get(&self, path: &str) -> Option<String> {
        let mut stream = tokio::net::TcpStream::connect(self.http).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Some(text)
    }

    fn crash(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("gone");
    }

    async fn operator(&self, dir: &Path) -> Operator {
        Operator::connect(self.address, &dir.join("operator")).await
    }
}

async fn edge_flows(operator: &Operator) -> u64 {
    let mut client = FlowsClient::new(operator.channel.clone());
    let edges = client
        .edges(v1::ListEdgesRequest::default())
        .await
        .expect("edges");
    edges.into_inner().edges.iter().map(|edge| edge.flows).sum()
}

#[tokio::test]
async fn what_was_acknowledged_outlives_kill_9() {
    let dir = tempfile::tempdir().expect("a directory");
    let running = Running::start(dir.path(), free()).await;
    let operator = running.operator(dir.path()).await;
    let agent = Agent::join(
        running.address,
        &operator,
        "web",
        &["10.1.0.1"],
        &[("app", "web")],
    )
    .await;
    operator.apply(POLICY).await;
    let isolate = v1::IsolateRequest {
        options: common::options(),
        workload: "web".into(),
        ttl_seconds: 3_600,
        ..v1::IsolateRequest::default()
    };
    let mut responses = ResponsesClient::new(operator.channel.clone());
    responses.isolate(isolate).await.expect("isolated");
    let (session, push) = agent.start().await;
    assert_eq!(
        content(&push).endpoints[0].mode,
        policy::snapshot::Mode::Isolate
    );
    let mut export = agent.export().await;
    let batch = |n: u64| (0..50).map(move |i| (n, i));
    let records = |n: u64| {
        batch(n)
            .map(|(n, i)| agent.flow(&format!("{n}-{i}"), "10.9.0.1", 80))
            .collect::<Vec<_>>()
    };
    export.send(1, records(1)).await.expect("acknowledged");
    // Of these the agent hears nothing before the controller dies: some are durable, some are not.
    for sequence in 2..=5 {
        let sent = v1::FlowBatch {
            sequence,
            records: records(sequence),
            ..Default::default()
        };
        export.up.send(sent).await.expect("open");
    }
    let address = running.address;
    running.crash();
    drop((session, export));

    let running = Running::start(dir.path(), address).await;
    let operator = running.operator(dir.path()).await;
    let agent = Agent {
        channel: common::channel(address, &agent.ca, Some((&agent.cert, &agent.key))).await,
        ..agent.clone()
    };
    // Nothing to send: the agent has what it should have.
    let mut hello = agent.hello(content(&push).revision, &push.digest);
    hello.version = "again".into();
    let _session = agent.sync(hello).await.expect("a session");
    let mut status = v1::status_client::StatusClient::new(operator.channel.clone());
    eventually("the agent is verified", async || {
        let agents = status
            .get(v1::GetStatusRequest {})
            .await
            .expect("a status")
            .into_inner()
            .agents;
        let known = agents.into_iter().find(|known| known.version == "again")?;
        (known.digest_matches && known.verified_revision == content(&push).revision).then_some(())
    })
    .await;
    let mut export = agent.export().await;
    assert!((1..=5).contains(&export.durable), "{}", export.durable);
    // The agent sends again whatever was not acknowledged.
    for sequence in 2..=5 {
        export
            .send(sequence, records(sequence))
            .await
            .expect("acknowledged");
    }
    assert_eq!(edge_flows(&operator).await, 250);
    let mut policies = PoliciesClient::new(operator.channel.clone());
    let listed = policies
        .list(v1::ListObjectsRequest::default())
        .await
        .expect("a list")
        .into_inner();
    assert_eq!(listed.objects[0].text.trim(), POLICY.trim());
    assert!(listed.objects[0].actor.ends_with("/user/admin"));
    drop(running);
    let verified = run(dir.path(), &["audit-verify"]);
    assert!(verified.status.success(), "{verified:?}");
}

#[tokio::test]
async fn an_unconfirmed_change_falls_back_although_the_controller_died() {
    let dir = tempfile::tempdir().expect("a directory");
    let running = Running::start(dir.path(), free()).await;
    let operator = running.operator(dir.path()).await;
    Agent::join(running.address, &operator, "web", &["10.1.0.1"], &[]).await;
    let applied = operator.apply_within(POLICY, 2).await;
    assert!(applied.confirm_deadline.is_some());
    let address = running.address;
    running.crash();
    let running = Running::start(dir.path(), address).await;
    let operator = running.operator(dir.path()).await;
    let mut client = PoliciesClient::new(operator.channel.clone());
    eventually("it is rolled back", async || {
        let history = client
            .history(v1::HistoryRequest::default())
            .await
            .expect("a history")
            .into_inner();
        let entry = history
            .entries
            .into_iter()
            .find(|entry| entry.revision == applied.revision)?;
        (entry.state == "rolled-back").then_some(())
    })
    .await;
    let listed = client
        .list(v1::ListObjectsRequest::default())
        .await
        .expect("a list")
        .into_inner();
    assert_eq!(listed.objects, []);
}

#[tokio::test]
async fn it_stops_in_order_and_shares_its_directory_with_nobody() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut running = Running::start(dir.path(), free()).await;
    let second = run(
        dir.path(),
        &["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"],
    );
    assert!(!second.status.success());
    assert!(
        String::from_utf8_lossy(&second.stderr).contains("another controller"),
        "{second:?}"
    );
    let metrics = running.get("/metrics").await.expect("an answer");
    assert!(
        metrics.contains("cofferdam_controller_agents_connected 0"),
        "{metrics}"
    );
    // A session is open while it stops.
    let operator = running.operator(dir.path()).await;
    let agent = Agent::join(running.address, &operator, "web", &["10.1.0.1"], &[]).await;
    let (mut session, _) = agent.start().await;
    let pid = running.child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .expect("kill")
            .success()
    );
    assert_eq!(
        session.next().await.expect_err("ended").code(),
        tonic::Code::Unavailable
    );
    let ended = eventually("it ends", async || {
        running.child.try_wait().expect("a child")
    })
    .await;
    assert!(ended.success(), "{ended}");
}

#[test]
fn its_configuration_is_checked() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("c.yaml");
    let config = path.to_string_lossy().into_owned();
    std::fs::write(
        &path,
        "managed_networks: [10.0.0.0/8]\ncertificates: {agent: 12h}\n",
    )
    .expect("written");
    let checked = run(dir.path(), &["--config", &config, "config", "check"]);
    assert!(checked.status.success(), "{checked:?}");
    let printed = run(dir.path(), &["--config", &config, "config", "print"]);
    assert!(
        String::from_utf8_lossy(&printed.stdout).contains("12h"),
        "{printed:?}"
    );
    std::fs::write(&path, "managed_netwroks: []\n").expect("written");
    let refused = run(dir.path(), &["--config", &config, "config", "check"]);
    assert!(!refused.status.success());
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("managed_netwroks"),
        "{refused:?}"
    );
}

#[test]
fn run_by_hand_it_keeps_its_data_to_itself_and_its_log_plain() {
    use std::os::unix::fs::PermissionsExt as _;
    let outer = tempfile::tempdir().expect("a directory");
    let dir = outer.path().join("data");
    std::fs::create_dir(&dir).expect("made by hand");
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).expect("readable");
    std::fs::write(dir.join("flows.db"), "").expect("written");
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(dir.join("flows.db"), open).expect("readable");
    let address = free();
    let listen = address.to_string();
    let mut child = program(&dir, &["--listen", &listen])
        .spawn()
        .expect("it starts");
    let mut log = String::new();
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe"));
    while !log.contains("the controller answers") {
        let read = lines.read_line(&mut log).expect("a log");
        assert!(read > 0, "it ended: {log}");
    }
    let modes = [
        "",
        "state.db",
        "state.db-wal",
        "flows.db",
        "flows.db-wal",
        "lock",
    ]
    .map(|name| mode(&dir.join(name)));
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert_eq!(modes, [0o700, 0o600, 0o600, 0o600, 0o600, 0o600]);
    assert!(!log.contains('\x1b'), "{log}");
}

#[test]
fn a_directory_that_everybody_uses_is_left_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("of-another"), "").expect("written");
    let shared = std::fs::Permissions::from_mode(0o1777);
    std::fs::set_permissions(dir.path(), shared).expect("shared");
    let output = run(dir.path(), &["run"]);
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && log.contains("of its own"),
        "{log}"
    );
    let mode = std::fs::metadata(dir.path())
        .expect("there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o1777);
}
