//! Real traffic on a veth pair, captured; captures made by hand; the verb and tshark, run.
#![allow(
    dead_code,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests: one that fails fails the test"
)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::common::{BINARY, Lab, skip};

/// Long enough that only what never comes is not there yet.
const LONG: Duration = Duration::from_secs(30);

/// What the verb printed.
pub(crate) struct Replayed {
    pub(crate) code: Option<i32>,
    pub(crate) frames: Vec<Value>,
    pub(crate) flows: Vec<Value>,
    pub(crate) totals: Value,
    pub(crate) error: String,
}

pub(crate) fn replay(pcap: &Path, policy: &Path, local: &[&str], more: &[&str]) -> Replayed {
    let done = Command::new(BINARY)
        .args(["-o", "jsonl", "replay", "--pcap"])
        .arg(pcap)
        .arg("--policy")
        .arg(policy)
        .arg("--local")
        .args(local)
        .args(more)
        .output()
        .expect("the verb runs");
    let mut replayed = Replayed {
        code: done.status.code(),
        frames: Vec::new(),
        flows: Vec::new(),
        totals: Value::Null,
        error: String::from_utf8_lossy(&done.stderr).into_owned(),
    };
    for line in String::from_utf8_lossy(&done.stdout).lines() {
        let value: Value = serde_json::from_str(line).expect("a JSON line");
        match value["type"].as_str() {
            Some("frame") => replayed.frames.push(value),
            Some("flow") => replayed.flows.push(value),
            Some("totals") => replayed.totals = value,
            _ => write!(replayed.error, "{}", value["error"]).expect("text"),
        }
    }
    replayed
}

pub(crate) fn records_of(done: &Replayed) -> Vec<Value> {
    done.flows.clone()
}

pub(crate) fn field<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

pub(crate) fn numbers(value: &Value, key: &str) -> u64 {
    value[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key}: {value}"))
}

/// An end of a conversation, in one spelling.
pub(crate) fn on_link(address: &str, port: Option<u64>) -> String {
    format!("{address}|{}", port.expect("a port"))
}

/// Whether everything is installed; loud if not.
pub(crate) fn tools(test: &str, programs: &[&str]) -> bool {
    for program in programs {
        let found = std::env::var_os("PATH").is_some_and(|path| {
            std::env::split_paths(&path)
                .chain(["/usr/sbin".into(), "/sbin".into()])
                .any(|dir| dir.join(program).is_file())
        });
        if !found {
            skip(
                test,
                &format!("{program} is not installed (cargo xtask setup)"),
            );
            return false;
        }
    }
    true
}

/// Rows of fields of the frames that a display filter selects.
pub(crate) fn tshark(pcap: &Path, filter: &str, fields: &[&str]) -> Vec<Vec<String>> {
    let mut command = Command::new("tshark");
    command
        .arg("-r")
        .arg(pcap)
        .args(["-Y", filter, "-T", "fields"]);
    for field in fields {
        command.args(["-e", field]);
    }
    stdout(&command.output().expect("tshark runs"))
        .lines()
        .map(|line| line.split('\t').map(str::to_owned).collect())
        .collect()
}

pub(crate) fn tshark_table(pcap: &Path, kind: &str) -> String {
    stdout(
        &Command::new("tshark")
            .arg("-r")
            .arg(pcap)
            .args(["-q", "-n", "-z", &format!("conv,{kind}")])
            .output()
            .expect("tshark runs"),
    )
}

fn stdout(done: &Output) -> String {
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// db-1 may be reached by web-1 on these ports (none = on all and by every protocol), and reach everything.
pub(crate) fn write_policy(dir: &Path, ports: &[u16]) {
    let mut rule =
        serde_json::json!({ "action": "allow", "peers": [{ "selector": { "role": "web" } }] });
    if !ports.is_empty() {
        rule["ports"] = ports
            .iter()
            .map(|port| serde_json::json!({ "port": port }))
            .collect();
    }
    let workload = |name: &str, role: &str, addresses: &[&str]| {
        serde_json::json!({
            "apiVersion": "cofferdam.dev/v1", "kind": "Workload",
            "metadata": { "name": name, "labels": { "role": role } }, "spec": { "addresses": addresses },
        })
    };
    let policy = |name: &str, role: &str, ingress: Value, egress: Value| {
        serde_json::json!({
            "apiVersion": "cofferdam.dev/v1", "kind": "Policy", "metadata": { "name": name },
            "spec": { "state": "enforced", "subject": { "role": role }, "ingress": ingress, "egress": egress },
        })
    };
    let all = serde_json::json!([{ "action": "allow" }]);
    let files = [
        policy("db", "db", serde_json::json!([rule]), all),
        policy("web", "web", serde_json::json!([]), serde_json::json!([])),
        workload("db-1", "db", &["10.66.0.1", "fd66::1"]),
        workload("web-1", "web", &["10.66.0.2", "fd66::2"]),
    ];
    for (number, file) in files.iter().enumerate() {
        std::fs::write(dir.join(format!("{number}.json")), file.to_string()).expect("policy");
    }
}

/// Real clients and servers on the lab's wire.
pub(crate) struct Traffic {
    pub(crate) lab: Lab,
}

/// Ends its process when it goes.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // The child is `timeout`, which hands a request to end on to its program; killed, it would leave the program
        // behind. Gone already is fine.
        if let Ok(pid) = i32::try_from(self.0.id()) {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        }
        let _ = self.0.wait();
    }
}

impl Traffic {
    pub(crate) fn new(test: &str) -> Option<Self> {
        let lab = Lab::new(test)?;
        let traffic = Self { lab };
        // What is captured is to be what a wire would carry.
        for (ns, device) in [(&traffic.lab.host, "h0"), (&traffic.lab.peer, "p0")] {
            let done = inside(ns, "ethtool")
                .args(["-K", device, "tso", "off", "gso", "off", "gro", "off"])
                .output();
            assert!(done.expect("ethtool runs").status.success());
        }
        Some(traffic)
    }

    /// Captures on the host's device while something happens.
    pub(crate) fn record(&self, happens: impl FnOnce(&Self)) -> PathBuf {
        let file = self.lab.dir.path().join("c.pcap");
        let mut tcpdump = Guard(
            inside(&self.lab.host, "tcpdump")
                .args(["-i", "h0", "-s", "0", "-U", "-Z", "root", "-w"])
                .arg(&file)
                .stderr(Stdio::null())
                .spawn()
                .expect("tcpdump starts"),
        );
        // The header is written once the device is listened to.
        wait("tcpdump listens", || {
            std::fs::metadata(&file).is_ok_and(|meta| meta.len() >= 24)
        });
        let server = self.nginx();
        happens(self);
        drop(server);
        // A last packet that is known: when it is in the file, everything before it is.
        let mark = b"that was all";
        let socket = super::common::in_namespace(&self.lab.peer, || {
            std::net::UdpSocket::bind("10.66.0.2:9").expect("socket")
        });
        let listener = super::common::in_namespace(&self.lab.host, || {
            std::net::UdpSocket::bind("10.66.0.1:9").expect("socket")
        });
        socket.send_to(mark, "10.66.0.1:9").expect("sent");
        wait("everything is captured", || {
            std::fs::read(&file)
                .is_ok_and(|bytes| bytes.windows(mark.len()).rev().any(|part| part == mark))
        });
        drop(listener);
        let pid = nix::unistd::Pid::from_raw(tcpdump.0.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("told to end");
        assert!(tcpdump.0.wait().expect("ends").success());
        file
    }

    fn nginx(&self) -> Guard {
        let dir = self.lab.dir.path();
        let blob: Vec<u8> = (0u32..1 << 21)
            .map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        std::fs::write(dir.join("blob"), blob).expect("file");
        let root = dir.display();
        let config = format!(
            "daemon off; master_process off; user root; pid {root}/nginx.pid; error_log {root}/nginx.log;\n\
             events {{}}\nhttp {{ access_log off; client_body_temp_path {root}/t1; proxy_temp_path {root}/t2;\n\
             fastcgi_temp_path {root}/t3; uwsgi_temp_path {root}/t4; scgi_temp_path {root}/t5;\n\
             server {{ listen 8080; listen [::]:8080; root {root}; }} }}\n"
        );
        let file = dir.join("nginx.conf");
        std::fs::write(&file, config).expect("config");
        let server = Guard(
            inside(&self.lab.host, "nginx")
                .arg("-c")
                .arg(&file)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("nginx starts"),
        );
        wait("nginx listens", || {
            super::common::in_namespace(&self.lab.host, || {
                std::net::TcpStream::connect("127.0.0.1:8080").is_ok()
            })
        });
        server
    }

    pub(crate) fn web(&self, urls: &[&str]) {
        for url in urls {
            let done = inside(&self.lab.peer, "curl")
                .args(["-s", "-g", "-m", "20", "-o", "/dev/null", url])
                .status();
            assert!(done.expect("curl runs").success(), "{url}");
        }
    }

    /// A download of which everything towards the client is lost until the server has repeated itself: the host
    /// holds a wrong address for its neighbour, who takes no frame that is not for him.
    pub(crate) fn lossy_download(&self) {
        let neighbour = |arguments: &[&str]| {
            let mut command = Command::new("ip");
            command
                .args(["-n", &self.lab.host, "neigh"])
                .args(arguments);
            let done = command.args(["10.66.0.2", "dev", "h0"]).status();
            done.is_ok_and(|done| done.success())
        };
        let before = self.repeated();
        assert!(neighbour(&[
            "replace",
            "lladdr",
            "02:00:00:00:00:99",
            "nud",
            "permanent",
            "to"
        ]));
        let mut client = Guard(
            inside(&self.lab.peer, "curl")
                .args(["-s", "-m", "25", "-o", "/dev/null"])
                .arg("http://10.66.0.1:8080/blob")
                .spawn()
                .expect("curl starts"),
        );
        wait("the server repeats itself", || self.repeated() > before);
        assert!(neighbour(&["del", "to"]));
        let done = client.0.wait().expect("curl ends");
        assert!(done.success(), "the download is whole");
    }

    /// Segments that the host has sent again.
    fn repeated(&self) -> u64 {
        let text = stdout(
            &inside(&self.lab.host, "cat")
                .arg("/proc/net/snmp")
                .output()
                .expect("cat runs"),
        );
        let mut rows = text.lines().filter(|line| line.starts_with("Tcp:"));
        let names = rows.next().expect("names").split_whitespace();
        let values = rows.next().expect("values").split_whitespace();
        names
            .zip(values)
            .find(|(name, _)| *name == "RetransSegs")
            .and_then(|(_, value)| value.parse().ok())
            .expect("counted")
    }

    /// UDP both ways, on both families.
    pub(crate) fn datagrams(&self) {
        for (address, port) in [("10.66.0.1", "5353"), ("fd66::1", "5354")] {
            let mut server = Guard(
                inside(&self.lab.host, "nc")
                    .args(["-u", "-l", address, port])
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()
                    .expect("nc starts"),
            );
            let bound = format!(":{:04X}", port.parse::<u16>().expect("port"));
            wait("nc listens", || {
                let table = inside(&self.lab.host, "cat")
                    .args(["/proc/net/udp", "/proc/net/udp6"])
                    .output();
                stdout(&table.expect("cat runs")).contains(&bound)
            });
            let mut client = Guard(
                inside(&self.lab.peer, "nc")
                    .args(["-u", address, port])
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()
                    .expect("nc starts"),
            );
            say(&mut client.0, &mut server.0);
            say(&mut server.0, &mut client.0);
        }
    }

    pub(crate) fn echo(&self) {
        for address in ["10.66.0.1", "fd66::1"] {
            let done = inside(&self.lab.peer, "ping")
                .args(["-c", "3", "-i", "0.1", "-W", "10", address])
                .output();
            let done = done.expect("ping runs");
            assert!(
                done.status.success(),
                "{}",
                String::from_utf8_lossy(&done.stdout)
            );
        }
    }
}

/// One side says a line, the other hears it.
fn say(from: &mut Child, to: &mut Child) {
    use std::io::{Read, Write};
    let line = b"which address has db.example?\n";
    from.stdin
        .as_mut()
        .expect("piped")
        .write_all(line)
        .expect("said");
    let mut heard = [0; 30];
    to.stdout
        .as_mut()
        .expect("piped")
        .read_exact(&mut heard)
        .expect("heard");
    assert_eq!(&heard, line);
}

fn inside(ns: &str, program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["60", "nsenter", &format!("--net=/run/netns/{ns}"), program]);
    // Whoever ends the guard of this process means the program.
    command.stdin(Stdio::null());
    command
}

fn wait(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !so() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// A pcap with nanoseconds since the epoch.
pub(crate) fn pcap_file(frames: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for word in [0xa1b2_3c4du32, 0x0004_0002, 0, 0, 262_144, 1] {
        out.extend(word.to_le_bytes());
    }
    for (at, frame) in frames {
        let length = u32::try_from(frame.len()).expect("short");
        for word in [
            (at / 1_000_000_000) as u32,
            (at % 1_000_000_000) as u32,
            length,
            length,
        ] {
            out.extend(word.to_le_bytes());
        }
        out.extend(frame);
    }
    out
}

/// The same, by milliseconds of this century.
pub(crate) fn capture_of(frames: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let at = |milliseconds: u64| 1_700_000_000_000_000_000 + milliseconds * 1_000_000;
    let frames: Vec<_> = frames
        .iter()
        .map(|(when, frame)| (at(*when), frame.clone()))
        .collect();
    pcap_file(&frames)
}

fn ipv4(from: [u8; 4], to: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let total = u16::try_from(20 + payload.len()).expect("short");
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
    frame.extend(total.to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
    frame.extend(from);
    frame.extend(to);
    frame.extend(payload);
    frame
}

pub(crate) fn tcp(from: [u8; 4], to: [u8; 4], from_port: u16, to_port: u16, flags: u8) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(from_port.to_be_bytes());
    segment.extend(to_port.to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 255, 255, 0, 0, 0, 0]);
    ipv4(from, to, 6, &segment)
}

pub(crate) fn udp(
    from: [u8; 4],
    to: [u8; 4],
    from_port: u16,
    to_port: u16,
    data: usize,
) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend(from_port.to_be_bytes());
    datagram.extend(to_port.to_be_bytes());
    datagram.extend(u16::try_from(8 + data).expect("short").to_be_bytes());
    datagram.extend([0, 0]);
    datagram.resize(8 + data, 0);
    ipv4(from, to, 17, &datagram)
}

/// A little-endian capture whose frames are all damaged: headers with bits flipped, and cut at every length.
pub(crate) fn damaged_frames(capture: &[u8]) -> (Vec<u8>, u64) {
    let word = |at: usize| {
        let bytes = capture.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    };
    let mut frames = Vec::new();
    let mut at = 24;
    let mut random = 0x2545_f491_4f6c_dd1du64;
    while let Some(length) = word(at + 8) {
        let Some(frame) = capture.get(at + 16..at + 16 + length) else {
            break;
        };
        let mut frame = frame.to_vec();
        for _ in 0..3 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let headers = frame.len().min(90) as u64;
            if headers > 0 {
                frame[(random % headers) as usize] ^= 1 << ((random >> 32) % 8);
            }
        }
        if frames.len() % 3 == 0 {
            frame.truncate(frames.len() / 3 % 100);
        }
        frames.push((frames.len() as u64, frame));
        at += 16 + length;
    }
    (capture_of(&frames), frames.len() as u64)
}
