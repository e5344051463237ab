//! Two namespaces and a veth pair between them. Everything is named by process and test, and goes away
//! with the guard.

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use policy::brownfield::{Imported, iptables, nftables};
use policy::source::Source;

use super::{Connection, TCP, UDP, options, probe};

/// Addresses of the namespace with the rules.
pub(crate) const HOST: [&str; 2] = ["10.99.0.1", "fd99::1"];
/// Addresses of the other one.
pub(crate) const PEERS: [&str; 6] = [
    "10.99.0.2",
    "10.99.1.5",
    "10.99.2.9",
    "10.99.200.7",
    "fd99::2",
    "fd99::5:9",
];

pub(crate) struct Lab {
    host: String,
    peer: String,
    stop: Arc<AtomicBool>,
}

/// Says loudly that a test did not run.
fn skip(test: &str, why: &str) {
    let line = format!("SKIP: {test}: {why}");
    eprintln!("{line}");
    if let Some(path) = std::env::var_os("COFFERDAM_SKIP_LOG").filter(|path| !path.is_empty()) {
        let file = File::options().create(true).append(true).open(path);
        // In one write: tests run at the same time.
        file.unwrap()
            .write_all(format!("{line}\n").as_bytes())
            .unwrap();
    }
}

fn run(command: &mut Command, input: &str) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let done = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{command:?}: {error}\n{input}");
    String::from_utf8(done.stdout).unwrap()
}

fn ip(arguments: &str) {
    run(Command::new("ip").args(arguments.split(' ')), "");
}

impl Lab {
    /// `None`, said loudly, when this machine cannot run it.
    pub(crate) fn new(test: &str, needs: &[&str]) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip(test, "needs root");
            return None;
        }
        for program in ["ip"].iter().chain(needs) {
            let found = Command::new(program).arg("-V").output();
            if !found.is_ok_and(|done| done.status.success()) {
                skip(test, &format!("needs the program {program}"));
                return None;
            }
        }
        let tag = format!("{}-{test}", std::process::id());
        let lab = Self {
            host: format!("bf-host-{tag}"),
            peer: format!("bf-peer-{tag}"),
            stop: Arc::default(),
        };
        ip(&format!("netns add {}", lab.host));
        ip(&format!("netns add {}", lab.peer));
        let (host, peer) = (&lab.host, &lab.peer);
        ip(&format!(
            "-n {host} link add h0 type veth peer name p0 netns {peer}"
        ));
        for (name, link, addresses) in [(host, "h0", &HOST[..]), (peer, "p0", &PEERS[..])] {
            for address in addresses {
                let more = if address.contains(':') {
                    "/32 dev LINK nodad"
                } else {
                    "/16 dev LINK"
                };
                let more = more.replace("LINK", link);
                ip(&format!("-n {name} address add {address}{more}"));
            }
            ip(&format!("-n {name} link set lo up"));
            ip(&format!("-n {name} link set {link} up"));
            // Pings without privileges.
            lab.enter(name, || {
                std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
            });
        }
        lab.serve(host, &HOST);
        lab.serve(peer, &PEERS);
        Some(lab)
    }

    /// Calls `work` on a thread inside a namespace.
    fn enter<T: Send>(&self, name: &str, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{name}")).unwrap();
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside.join().unwrap()
        })
    }

    fn serve(&self, name: &str, addresses: &[&str]) {
        for address in addresses {
            self.enter(name, || {
                for port in TCP {
                    probe::serve_tcp(SocketAddr::new(address.parse().unwrap(), port), &self.stop);
                }
                for port in UDP {
                    probe::serve_udp(SocketAddr::new(address.parse().unwrap(), port), &self.stop);
                }
            });
        }
    }

    /// Tries all connections at once; whether each one passes both ways.
    pub(crate) fn try_all(&self, all: &[Connection], patience: Duration) -> Vec<bool> {
        let files =
            [&self.host, &self.peer].map(|name| File::open(format!("/run/netns/{name}")).unwrap());
        let [host, peer] = &files;
        std::thread::scope(|scope| {
            let started: Vec<_> = all
                .iter()
                .map(|connection| {
                    let space = if connection.towards_host { peer } else { host };
                    scope.spawn(move || {
                        setns(space, CloneFlags::CLONE_NEWNET).unwrap();
                        probe::passes(*connection, patience)
                    })
                })
                .collect();
            started
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        })
    }

    fn inside(&self, program: &str, arguments: &[&str], input: &str) -> String {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.host, program])
            .args(arguments);
        run(&mut command, input)
    }

    /// Loads rules, and imports what the kernel has then.
    pub(crate) fn nftables(&self, text: &str) -> (Imported, Imported) {
        self.inside("nft", &["flush", "ruleset"], "");
        self.inside("nft", &["-f", "-"], text);
        let json = self.inside("nft", &["-j", "list", "ruleset"], "");
        let source = Source::new("ruleset.json", json);
        let import = |wide| nftables::import(&source, &options(wide)).unwrap();
        (import(false), import(true))
    }

    /// The same for both families of iptables, and sets that the rules use.
    pub(crate) fn iptables(&self, v4: &str, v6: &str, sets: &str) -> (Imported, Imported) {
        self.inside("nft", &["flush", "ruleset"], "");
        if !sets.is_empty() {
            self.inside("ipset", &["restore", "-exist"], sets);
        }
        self.inside("iptables-restore", &[], v4);
        self.inside("ip6tables-restore", &[], v6);
        let mut sources = vec![
            Source::new("rules.v4", self.inside("iptables-save", &["-c"], "")),
            Source::new("rules.v6", self.inside("ip6tables-save", &[], "")),
        ];
        if !sets.is_empty() {
            sources.push(Source::new("sets", self.inside("ipset", &["save"], "")));
        }
        let import = |wide| iptables::import(&sources, &options(wide)).unwrap();
        (import(false), import(true))
    }

    /// What the kernel has.
    pub(crate) fn ruleset(&self) -> String {
        self.inside("nft", &["list", "ruleset"], "")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for name in [&self.host, &self.peer] {
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
    }
}
