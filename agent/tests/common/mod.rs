//! Two network namespaces and a veth pair between them: a host with the agent, and a peer.
//!
//! Everything is named by process and test, and goes away when the guard does, whatever happened.
#![allow(
    dead_code,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests: each binary uses its own part, and a helper that fails fails the test"
)]

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_cofferdam-agent");
/// Long enough that only what is dropped is not there yet.
pub(crate) fn brief() -> Duration {
    Duration::from_millis(700) * scale()
}

/// Long enough for whatever is going to happen at all.
pub(crate) fn patience() -> Duration {
    Duration::from_secs(30) * scale()
}

/// How much slower than usual this machine is known to be; 1 when nobody says.
fn scale() -> u32 {
    std::env::var("COFFERDAM_TEST_SCALE").map_or(1, |scale| scale.parse().expect("a number"))
}

/// Says loudly that a test did not run.
pub(crate) fn skip(test: &str, why: &str) {
    let line = format!("SKIP: {test}: {why}");
    eprintln!("{line}");
    if let Some(path) = std::env::var_os("COFFERDAM_SKIP_LOG").filter(|path| !path.is_empty()) {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .expect("skip log");
        // In one write: tests run at the same time.
        file.write_all(format!("{line}\n").as_bytes())
            .expect("skip log");
    }
}

pub(crate) struct Lab {
    pub(crate) host: String,
    pub(crate) peer: String,
    pub(crate) dir: tempfile::TempDir,
    pin: PathBuf,
    agents: Vec<Child>,
    confined: bool,
    wrapper: Vec<String>,
}

fn ip(arguments: &[&str]) {
    let done = Command::new("ip")
        .args(arguments)
        .output()
        .expect("ip runs");
    assert!(
        done.status.success(),
        "ip {arguments:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

impl Lab {
    /// `None` (said loudly) when this machine cannot run it.
    pub(crate) fn new(test: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip(test, "needs root");
            return None;
        }
        if Command::new("ip").arg("-V").output().is_err() {
            skip(test, "needs iproute2");
            return None;
        }
        let id = format!("{}{}", std::process::id(), short(test));
        let dir = tempfile::tempdir().expect("dir");
        let lab = Self {
            host: format!("cfh{id}"),
            peer: format!("cfp{id}"),
            pin: dir.path().join("bpf/cofferdam"),
            dir,
            agents: Vec::new(),
            confined: false,
            wrapper: Vec::new(),
        };
        if let Err(errno) = lab.mount() {
            skip(test, &format!("no bpffs of its own: {errno}"));
            return None;
        }
        ip(&["netns", "add", &lab.host]);
        ip(&["netns", "add", &lab.peer]);
        ip(&[
            "link", "add", "h0", "netns", &lab.host, "type", "veth", "peer", "name", "p0", "netns",
            &lab.peer,
        ]);
        for (ns, device, last) in [(&lab.host, "h0", 1), (&lab.peer, "p0", 2)] {
            ip(&[
                "-n",
                ns,
                "addr",
                "add",
                &format!("10.66.0.{last}/24"),
                "dev",
                device,
            ]);
            ip(&[
                "-n",
                ns,
                "addr",
                "add",
                &format!("fd66::{last}/64"),
                "dev",
                device,
                "nodad",
            ]);
            ip(&["-n", ns, "link", "set", device, "up"]);
            ip(&["-n", ns, "link", "set", "lo", "up"]);
        }
        let config = serde_json::json!({
            "state_dir": lab.dir.path().join("state"),
            "pin_dir": lab.pin,
            "admin_socket": lab.socket(),
            "netns": lab.host,
            "mode": "enforce",
            "workload": { "name": "db-1", "labels": { "role": "db" } },
            "managed_networks": ["10.66.0.0/24", "fd66::/64"],
            "failsafes": { "resolvers": [] },
            "tables": { "flows4": 16384, "flows6": 4096, "denies": 4096 },
            "confirm_within": "0s",
            "policy_dir": lab.policy_dir(),
        });
        std::fs::write(lab.config(), config.to_string()).expect("config");
        std::fs::create_dir(lab.policy_dir()).expect("policy dir");
        Some(lab)
    }

    /// A bpffs of its own: processes that run at the same time cannot mount over each other.
    fn mount(&self) -> nix::Result<()> {
        let target = self.bpffs();
        std::fs::create_dir(&target).expect("mount point");
        nix::mount::mount(
            Some("bpf"),
            &target,
            Some("bpf"),
            nix::mount::MsFlags::empty(),
            Some("mode=0700"),
        )
    }

    fn bpffs(&self) -> PathBuf {
        self.dir.path().join("bpf")
    }

    /// Where the pins of this build's layout are.
    pub(crate) fn pinned(&self) -> PathBuf {
        self.pin.join(format!("v{}", datapath::abi::ABI_VERSION))
    }

    pub(crate) fn pin(&self) -> &Path {
        &self.pin
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.path().join("agent.yaml")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    pub(crate) fn policy_dir(&self) -> PathBuf {
        self.dir.path().join("policy")
    }

    /// The peer may reach these TCP ports; everything else into the host is closed, out of it is open.
    pub(crate) fn allow(&self, ports: &[u16]) {
        let rules: Vec<Value> = ports
            .iter()
            .map(|port| {
                serde_json::json!({
                    "action": "allow",
                    "peers": [{ "selector": { "role": "web" } }],
                    "ports": [{ "port": port }],
                })
            })
            .collect();
        let policy = serde_json::json!({
            "apiVersion": "cofferdam.dev/v1", "kind": "Policy", "metadata": { "name": "db" },
            "spec": { "state": "enforced", "subject": { "role": "db" }, "ingress": rules,
                      "egress": [{ "action": "allow" }] },
        });
        let peer = serde_json::json!({
            "apiVersion": "cofferdam.dev/v1", "kind": "Workload",
            "metadata": { "name": "web-1", "labels": { "role": "web" } },
            "spec": { "addresses": ["10.66.0.2", "fd66::2"] },
        });
        let dir = self.policy_dir();
        std::fs::write(dir.join("policy.json"), policy.to_string()).expect("policy");
        std::fs::write(dir.join("peer.json"), peer.to_string()).expect("peer");
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Agents from now on have another value of a key.
    pub(crate) fn configure(&self, key: &str, value: Value) {
        let text = std::fs::read_to_string(self.config()).expect("config");
        let mut config: Value = serde_json::from_str(&text).expect("config");
        config[key] = value;
        std::fs::write(self.config(), config.to_string()).expect("config");
    }

    /// Agents from now on follow a controller instead of a directory.
    pub(crate) fn follow(&self, endpoint: &str, pin: &str, token: &str) {
        let text = std::fs::read_to_string(self.config()).expect("config");
        let mut config: Value = serde_json::from_str(&text).expect("config");
        config["policy_dir"] = Value::Null;
        config["controller"] =
            serde_json::json!({ "endpoints": [endpoint], "ca_sha256": pin, "token": token });
        std::fs::write(self.config(), config.to_string()).expect("config");
    }

    /// Agents from now on have the capabilities of the unit file and no others; the namespace, which takes
    /// more to enter, is entered for them.
    pub(crate) fn confine(&mut self) {
        self.configure("netns", Value::Null);
        self.confined = true;
    }

    /// Agents from now on are started by this command, which ends by running its arguments.
    pub(crate) fn wrap(&mut self, command: &[&str]) {
        self.wrapper = command.iter().map(|word| (*word).to_owned()).collect();
    }

    fn program(&self) -> Command {
        if let Some((first, rest)) = self.wrapper.split_first() {
            let mut command = Command::new(first);
            command.args(rest).arg(BINARY);
            return command;
        }
        if !self.confined {
            return Command::new(BINARY);
        }
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.host))
            .args([
                "setpriv",
                "--bounding-set=-all,+bpf,+net_admin,+perfmon",
                "--inh-caps=-all,+bpf,+net_admin,+perfmon",
                "--no-new-privs",
                BINARY,
            ]);
        command
    }

    /// What starts an agent, its output in the log.
    pub(crate) fn command(&self) -> Command {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .expect("log");
        let mut command = self.program();
        command
            .arg("--config")
            .arg(self.config())
            .arg("run")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log);
        command
    }

    /// Starts an agent without waiting for it.
    pub(crate) fn spawn(&mut self) {
        let child = self.command().spawn().expect("agent starts");
        self.agents.push(child);
    }

    /// Starts an agent and waits until it has armed the host.
    pub(crate) fn start(&mut self) -> Value {
        self.spawn();
        self.wait("the agent is ready", |lab| {
            lab.socket().exists()
                && lab
                    .try_verb(&["status"])
                    .is_ok_and(|status| status["daemon"] == true && status["state"] == "armed")
        });
        self.verb(&["status"])
    }

    /// SIGKILL: no farewell of any kind.
    pub(crate) fn kill(&mut self) {
        for mut agent in self.agents.drain(..) {
            agent.kill().expect("kill");
            agent.wait().expect("wait");
        }
    }

    /// Waits until no agent runs any more.
    pub(crate) fn wait_for_end(&mut self) {
        let mut agents = std::mem::take(&mut self.agents);
        self.wait("the agents have ended", |_| {
            agents
                .iter_mut()
                .all(|agent| !matches!(agent.try_wait(), Ok(None)))
        });
    }

    /// As if there had never been an agent: its pins and its state are gone. None may run.
    pub(crate) fn forget(&self) {
        for dir in [self.pin.clone(), self.dir.path().join("state")] {
            match std::fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    panic!("{}: {error}", dir.display())
                }
                _ => {}
            }
        }
    }

    /// Runs an operator's verb.
    pub(crate) fn try_verb(&self, arguments: &[&str]) -> Result<Value, String> {
        let done = Command::new(BINARY)
            .arg("--config")
            .arg(self.config())
            .args(["-o", "json"])
            .args(arguments)
            .output()
            .expect("verb runs");
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        if done.status.success() {
            Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
        } else {
            Err(format!("{text}{}", String::from_utf8_lossy(&done.stderr)))
        }
    }

    pub(crate) fn verb(&self, arguments: &[&str]) -> Value {
        self.try_verb(arguments)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}\n{}", self.log()))
    }

    /// Every record so far.
    pub(crate) fn records(&self) -> Vec<Value> {
        let done = Command::new(BINARY)
            .arg("--config")
            .arg(self.config())
            .args(["-o", "json", "flows"])
            .output()
            .expect("verb runs");
        String::from_utf8_lossy(&done.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).expect("record"))
            .collect()
    }

    /// Polls until it is so.
    pub(crate) fn wait(&self, what: &str, mut so: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + patience();
        while !so(self) {
            assert!(
                Instant::now() < deadline,
                "{what}: not in time\n{}",
                self.log()
            );
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Listens in the host's namespace, on both families.
    pub(crate) fn listen(&self, port: u16) -> TcpListener {
        in_namespace(&self.host, || TcpListener::bind(("::", port))).expect("listen")
    }

    /// Connects from the peer.
    pub(crate) fn connect(&self, to: IpAddr, port: u16) -> io::Result<TcpStream> {
        in_namespace(&self.peer, || {
            TcpStream::connect_timeout(&SocketAddr::new(to, port), brief())
        })
    }

    /// A SYN from the peer; whoever answers it, nobody waits.
    pub(crate) fn knock(&self, to: IpAddr, port: u16) -> std::os::fd::OwnedFd {
        use nix::sys::socket::{
            AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket,
        };
        in_namespace(&self.peer, || {
            let family = match to {
                IpAddr::V4(_) => AddressFamily::Inet,
                IpAddr::V6(_) => AddressFamily::Inet6,
            };
            let fd =
                socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).expect("socket");
            let to = SockaddrStorage::from(SocketAddr::new(to, port));
            match connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &to) {
                Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => fd,
                Err(errno) => panic!("connect: {errno}"),
            }
        })
    }

    pub(crate) fn v4(&self) -> IpAddr {
        "10.66.0.1".parse().expect("address")
    }

    pub(crate) fn v6(&self) -> IpAddr {
        "fd66::1".parse().expect("address")
    }

    /// A connection with both its ends.
    pub(crate) fn session(&self, listener: &TcpListener, to: IpAddr) -> Session {
        let port = listener.local_addr().expect("address").port();
        let client = self.connect(to, port).expect("connect");
        let (server, _) = listener.accept().expect("accept");
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(brief())).expect("timeout");
        }
        Session { client, server }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- agent's log\n{}", self.log());
        }
        for agent in &mut self.agents {
            // Gone already is fine.
            let _ = agent.kill();
            let _ = agent.wait();
        }
        // Links and maps go with the file system that pins them.
        let _ = nix::mount::umount2(&self.bpffs(), nix::mount::MntFlags::MNT_DETACH);
        for ns in [&self.host, &self.peer] {
            let _ = Command::new("ip").args(["netns", "del", ns]).output();
        }
    }
}

/// Both ends of a connection.
pub(crate) struct Session {
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
}

impl Session {
    /// Whether a byte still goes each way.
    pub(crate) fn works(&mut self) -> bool {
        one_way(&mut self.client, &mut self.server) && one_way(&mut self.server, &mut self.client)
    }
}

fn one_way(from: &mut TcpStream, to: &mut TcpStream) -> bool {
    let mut byte = [0];
    from.write_all(b"x").is_ok() && to.read_exact(&mut byte).is_ok()
}

/// Runs in a thread of its own inside a namespace; sockets made there stay there.
pub(crate) fn in_namespace<T: Send>(ns: &str, run: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                agent::kernel::netns::enter(ns).expect("enter");
                run()
            })
            .join()
            .expect("thread")
    })
}

/// A few letters for a test's name: device and namespace names are short.
fn short(test: &str) -> String {
    test.split('_')
        .filter_map(|word| word.chars().next())
        .collect()
}
