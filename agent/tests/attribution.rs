//! Who owns a flow: real servers and clients under other users and in cgroups of their own.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod common;

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use agent::kernel::sockowner::SocketList;
use common::{Lab, in_namespace, skip};
use serde_json::Value;

/// Debian's own: another user can run it.
const PYTHON: &str = "/usr/bin/python3";

/// A cgroup that goes away with the guard.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(test: &str, name: &str) -> Option<Self> {
        let Some(root) = agent::kernel::cgroup::mount().expect("mount table") else {
            skip(test, "needs cgroup2");
            return None;
        };
        let dir = root
            .join(format!("cofferdam-test-{}.slice", std::process::id()))
            .join(name);
        std::fs::create_dir_all(&dir).expect("cgroup");
        Some(Self(dir))
    }

    /// The path as seen from the root of the hierarchy.
    fn path(&self) -> String {
        let root = agent::kernel::cgroup::mount()
            .expect("table")
            .expect("mounted");
        format!("/{}", self.0.strip_prefix(root).expect("below").display())
    }

    /// A command that runs in this cgroup, under another user, in a network namespace.
    fn command(&self, ns: &str, uid: u32, program: &str) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ > \"$1/cgroup.procs\"; ns=$2; uid=$3; shift 3; exec nsenter --net=\"$ns\" setpriv --reuid=\"$uid\" --regid=\"$uid\" --clear-groups \"$@\"", "sh"])
            .arg(&self.0)
            .arg(format!("/run/netns/{ns}"))
            .arg(uid.to_string())
            .arg(program)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0);
        command
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Empty only when its processes are gone, which their guards see to.
        let _ = std::fs::remove_dir(&self.0);
        if let Some(parent) = self.0.parent() {
            let _ = std::fs::remove_dir(parent);
        }
    }
}

/// A process that ends with the guard.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server that answers every connection and every datagram, in a process of its own.
const SERVER: &str = r#"
import socket, sys
kind, port = sys.argv[1], int(sys.argv[2])
if kind == "tcp":
    s = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("::", port)); s.listen(16)
    held = []
    while True:
        c, _ = s.accept(); c.sendall(b"hello"); held.append(c)
else:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("0.0.0.0", port))
    while True:
        data, peer = s.recvfrom(100); s.sendto(data, peer)
"#;

/// Waits until somebody takes what comes in to a port. Asked of the kernel: a probe that binds would be in the way.
fn listens(lab: &Lab, kind: &str, port: u16) {
    let number = if kind == "tcp" { 6 } else { 17 };
    let local = SocketAddr::new(lab.v4(), port);
    let remote = "10.66.0.2:1".parse().expect("address");
    lab.wait("the server listens", |lab| {
        in_namespace(&lab.host, || {
            let mut list = SocketList::open().expect("netlink");
            list.find(number, local, remote).expect("answer").is_some()
        })
    });
}

/// The process of the newest record that fits.
fn process_of(lab: &Lab, direction: &str, protocol: u64, port: u64) -> Option<Value> {
    lab.records()
        .into_iter()
        .rev()
        .find(|record| {
            record["direction"] == direction
                && record["protocol"] == protocol
                && record["responder_port"] == port
                && record["process"].is_object()
        })
        .map(|record| record["process"].clone())
}

fn wait_for(lab: &Lab, direction: &str, protocol: u64, port: u64) -> Value {
    let mut found = None;
    lab.wait("the record names its process", |lab| {
        found = process_of(lab, direction, protocol, port);
        found.is_some()
    });
    found.expect("found")
}

fn exe(name: &str) -> String {
    let path = Path::new(name).canonicalize().expect("program");
    path.to_string_lossy().into_owned()
}

fn lab(test: &str) -> Option<Lab> {
    if Command::new(PYTHON).arg("-V").output().is_err() {
        skip(test, "needs /usr/bin/python3");
        return None;
    }
    let lab = Lab::new(test)?;
    // The egress of the host is open, ingress to these ports.
    lab.allow(&[8080, 8081, 8082]);
    let more = serde_json::json!({
        "apiVersion": "cofferdam.dev/v1", "kind": "Policy", "metadata": { "name": "udp" },
        "spec": { "state": "enforced", "subject": { "role": "db" }, "ingress": [{
            "action": "allow", "peers": [{ "selector": { "role": "web" } }],
            "ports": [{ "port": 5300, "protocol": "udp" }] }] },
    });
    std::fs::write(lab.policy_dir().join("udp.json"), more.to_string()).expect("policy");
    Some(lab)
}

#[test]
fn servers_and_clients_of_another_user_in_a_unit_and_a_container() {
    let test = "servers_and_clients_of_another_user_in_a_unit_and_a_container";
    let id = "4c2f8a3e9b7d6f1052c8e4a9b3d7f60182e5c9a4b8d3f7e1629504c8a7b6d3e9";
    let Some(unit) = Cgroup::new(test, "web.service") else {
        return;
    };
    let Some(container) = Cgroup::new(test, &format!("docker-{id}.scope")) else {
        return;
    };
    let Some(mut lab) = lab(test) else { return };
    let status = lab.start();
    assert_eq!(
        status["attribution"]["state"], "on",
        "{}",
        status["attribution"]
    );

    // Inbound TCP: the child of a listening socket that was bound in the unit.
    let server = Running(
        unit.command(&lab.host, 4001, PYTHON)
            .args(["-c", SERVER, "tcp", "8080"])
            .spawn()
            .expect("server"),
    );
    listens(&lab, "tcp", 8080);
    let held: Vec<TcpStream> = [lab.v4(), lab.v6()]
        .into_iter()
        .map(|to| lab.connect(to, 8080).expect("connect"))
        .collect();
    for family in ["10.66.0.1", "fd66::1"] {
        let mut accepted = None;
        lab.wait("the accepted connection has its owner", |lab| {
            accepted = lab.records().into_iter().rev().find(|record| {
                record["responder"] == family
                    && record["direction"] == "ingress"
                    && record["process"].is_object()
                    && record["cookie"] != 0
            });
            accepted.is_some()
        });
        let record = accepted.expect("record");
        let process = &record["process"];
        assert_eq!(process["pid"], u64::from(server.0.id()), "{record}");
        assert_eq!(process["uid"], 4001, "{record}");
        assert_eq!(process["unit"], "web.service", "{record}");
        assert_eq!(process["cgroup"], unit.path(), "{record}");
        assert_eq!(process["executable"], exe(PYTHON), "{record}");
        assert_eq!(process["learnt"], "bind", "{record}");
        assert!(
            process["name"]
                .as_str()
                .is_some_and(|name| name.starts_with("python3"))
        );
        let start = process["start_ns"].as_i64().expect("start");
        let first = record["first_ns"].as_i64().expect("first");
        assert!(start < first && first - start < 60_000_000_000, "{record}");
    }
    drop(held);

    // Inbound UDP: the socket is found by asking who takes the datagram.
    let resolver = Running(
        container
            .command(&lab.host, 4002, PYTHON)
            .args(["-c", SERVER, "udp", "5300"])
            .spawn()
            .expect("server"),
    );
    listens(&lab, "udp", 5300);
    let client = in_namespace(&lab.peer, || UdpSocket::bind("10.66.0.2:0")).expect("socket");
    client.send_to(b"x", "10.66.0.1:5300").expect("send");
    let process = wait_for(&lab, "ingress", 17, 5300);
    assert_eq!(process["pid"], u64::from(resolver.0.id()), "{process}");
    assert_eq!(process["uid"], 4002, "{process}");
    assert_eq!(process["container"], id, "{process}");

    // Outbound TCP, and a program that is gone by the time it is asked about has all but what /proc knows.
    let listener = in_namespace(&lab.peer, || TcpListener::bind("10.66.0.2:9090")).expect("listen");
    let connects = "import socket,time; s=socket.create_connection(('10.66.0.2',9090)); s.recv(1)";
    let client = Running(
        container
            .command(&lab.host, 4003, PYTHON)
            .args(["-c", connects])
            .spawn()
            .expect("client"),
    );
    let (accepted, _) = listener.accept().expect("accept");
    let process = wait_for(&lab, "egress", 6, 9090);
    assert_eq!(process["pid"], u64::from(client.0.id()), "{process}");
    assert_eq!(process["uid"], 4003, "{process}");
    assert_eq!(process["learnt"], "connect", "{process}");
    assert_eq!(process["container"], id, "{process}");
    drop(accepted);

    // Outbound UDP without connect: known from the socket's making.
    let sends = "import socket; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.sendto(b'x',('10.66.0.2',9191)); s.recv(1)";
    let sender = Running(
        unit.command(&lab.host, 4004, PYTHON)
            .args(["-c", sends])
            .spawn()
            .expect("client"),
    );
    let process = wait_for(&lab, "egress", 17, 9191);
    assert_eq!(process["pid"], u64::from(sender.0.id()), "{process}");
    assert_eq!(process["learnt"], "create", "{process}");

    // The next agent finds the links and what they learnt meanwhile.
    lab.kill();
    let between = Running(
        unit.command(&lab.host, 4005, PYTHON)
            .args(["-c", SERVER, "tcp", "8081"])
            .spawn()
            .expect("server"),
    );
    listens(&lab, "tcp", 8081);
    let status = lab.start();
    assert_eq!(
        status["attribution"]["state"], "on",
        "{}",
        status["attribution"]
    );
    let _held = lab.connect(lab.v4(), 8081).expect("connect");
    let process = wait_for(&lab, "ingress", 6, 8081);
    assert_eq!(process["pid"], u64::from(between.0.id()), "{process}");
    assert_eq!(process["uid"], 4005, "{process}");
}

#[test]
fn sockets_older_than_the_hooks_have_user_and_cgroup() {
    let test = "sockets_older_than_the_hooks_have_user_and_cgroup";
    let Some(unit) = Cgroup::new(test, "old.service") else {
        return;
    };
    let Some(mut lab) = lab(test) else { return };
    let _server = Running(
        unit.command(&lab.host, 4011, PYTHON)
            .args(["-c", SERVER, "tcp", "8082"])
            .spawn()
            .expect("server"),
    );
    listens(&lab, "tcp", 8082);
    let before = lab.connect(lab.v4(), 8082).expect("connect");
    lab.start();
    // One that was adopted, and one that came after.
    let after = lab.connect(lab.v4(), 8082).expect("connect");
    for client in [&before, &after] {
        let port = client.local_addr().expect("address").port();
        let mut found = None;
        lab.wait("the record names its user", |lab| {
            found =
                lab.records().into_iter().rev().find(|record| {
                    record["initiator_port"] == port && record["process"].is_object()
                });
            found.is_some()
        });
        let process = &found.expect("record")["process"];
        assert_eq!(process["uid"], 4011, "{process}");
        assert_eq!(process["unit"], "old.service", "{process}");
        assert_eq!(process["learnt"], "listed", "{process}");
        // Not known is absent.
        assert_eq!(process.get("pid"), None, "{process}");
        assert_eq!(process.get("executable"), None, "{process}");
    }
}

#[test]
fn without_cgroup2_flows_are_recorded_and_the_status_says_why() {
    let test = "without_cgroup2_flows_are_recorded_and_the_status_says_why";
    let Some(mut lab) = lab(test) else { return };
    let Some(root) = agent::kernel::cgroup::mount().expect("mount table") else {
        skip(
            test,
            "cgroup2 is not mounted anyway; the other tests say so",
        );
        return;
    };
    lab.wrap(&[
        "unshare",
        "--mount",
        "--propagation=private",
        "sh",
        "-c",
        &format!("umount -l '{}' && exec \"$@\"", root.display()),
        "sh",
    ]);
    let status = lab.start();
    assert_eq!(status["attribution"]["state"], "off");
    assert_eq!(
        status["attribution"]["missing"]["all"],
        "cgroup2 is not mounted"
    );
    let listener = lab.listen(8080);
    let _session = lab.session(&listener, lab.v4());
    lab.wait("the flow is recorded", |lab| {
        lab.records()
            .iter()
            .any(|record| record["responder_port"] == 8080)
    });
    assert!(
        lab.records()
            .iter()
            .all(|record| record.get("process").is_none())
    );
}

#[test]
fn who_was_not_let_out_and_nginx_with_its_workers() {
    let test = "who_was_not_let_out_and_nginx_with_its_workers";
    let Some(unit) = Cgroup::new(test, "nginx.service") else {
        return;
    };
    let Some(mut lab) = lab(test) else { return };
    let closed = serde_json::json!({
        "apiVersion": "cofferdam.dev/v1", "kind": "Policy", "metadata": { "name": "db" },
        "spec": { "state": "enforced", "subject": { "role": "db" }, "ingress": [{
            "action": "allow", "peers": [{ "selector": { "role": "web" } }],
            "ports": [{ "port": 8080 }] }], "egress": [] },
    });
    std::fs::write(lab.policy_dir().join("policy.json"), closed.to_string()).expect("policy");
    lab.start();

    let mut curl = unit
        .command(&lab.host, 4021, "curl")
        .args(["--max-time", "1", "http://10.66.0.2:9999/"])
        .stderr(Stdio::null())
        .spawn()
        .expect("curl");
    let pid = u64::from(curl.id());
    // The first notice comes while it waits; the program behind it is there to be looked at.
    let process = wait_for(&lab, "egress", 6, 9999);
    assert!(!curl.wait().expect("wait").success(), "it was let out");
    assert_eq!(process["pid"], pid, "{process}");
    assert_eq!(process["uid"], 4021, "{process}");
    assert_eq!(process["name"], "curl", "{process}");
    assert_eq!(process["executable"], exe("/usr/bin/curl"), "{process}");
    assert!(lab.records().iter().any(|record| record["denial"] == true
        && record["process"]["pid"] == pid
        && record["reason"] != "none"));

    if !Path::new("/usr/sbin/nginx").exists() {
        skip(test, "needs nginx-light for its second half");
        return;
    }
    let dir = lab.dir.path().join("nginx");
    std::fs::create_dir(&dir).expect("dir");
    let config = dir.join("nginx.conf");
    let text = format!(
        "daemon off; user root root; worker_processes 2; pid {dir}/pid; error_log {dir}/log;\n\
         events {{ }}\nhttp {{ access_log off; server {{ listen 8080 reuseport; return 200 hello; }} }}\n",
        dir = dir.display()
    );
    std::fs::write(&config, text).expect("config");
    let master = Running(
        unit.command(&lab.host, 0, "/usr/sbin/nginx")
            .arg("-e")
            .arg(dir.join("log"))
            .arg("-c")
            .arg(&config)
            .spawn()
            .expect("nginx"),
    );
    listens(&lab, "tcp", 8080);
    let answer = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", lab.peer))
        .args([
            "curl",
            "--silent",
            "--max-time",
            "5",
            "http://10.66.0.1:8080/",
        ])
        .output()
        .expect("curl");
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "hello");
    let process = wait_for(&lab, "ingress", 6, 8080);
    assert_eq!(process["pid"], u64::from(master.0.id()), "{process}");
    assert_eq!(process["executable"], exe("/usr/sbin/nginx"), "{process}");
    assert_eq!(process["unit"], "nginx.service", "{process}");
    // Its workers end with it.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(master.0.id()).expect("pid")),
        nix::sys::signal::Signal::SIGTERM,
    )
    .expect("signal");
    let mut master = master;
    master.0.wait().expect("wait");
}
