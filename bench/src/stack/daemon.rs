//! The agent itself, as a process in the host's namespace: started, watched, stopped, and its spool read.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::{self, File};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agent::flows::spool::Spool;
use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;
use prost::Message;
use proto::v1::FlowBatch;
use serde_json::{Value, json};

use super::netns::Netns;
use super::policy::PEER_COUNT;
use super::world::{HOST_DEVICE, PEER_DEVICE, index, wire_up};
use crate::frames::{LOCAL4, PEERS, SERVICE, peer4};
use crate::host::BPFFS;

/// For what must happen, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// A spool that has not grown for so long has everything that there is: the agent empties its ring every 10 ms and sweeps
/// the tables every second.
const QUIET: Duration = Duration::from_secs(3);
/// Room for every record of a run.
const SPOOL_BYTES: u64 = 4 << 30;

/// A running agent. Its state lies in a file system in memory, its pins in one that only this process sees: nothing is left
/// however the process ends.
pub(crate) struct Daemon {
    binary: PathBuf,
    dir: PathBuf,
    child: Child,
    pub(crate) host: Netns,
    /// Has every peer's address.
    pub(crate) peer: Netns,
    pub(crate) peer_device: u32,
    /// Takes and drops the datagrams: nobody answers them, and no error either.
    _sink: UdpSocket,
}

/// Processor time of a process, how long it was ready and did not get any, and when both were read.
#[derive(Clone, Copy)]
pub(crate) struct Used {
    cpu_ns: u64,
    wait_ns: u64,
    at: Instant,
}

impl Used {
    /// Percent of one CPU since then.
    pub(crate) fn percent_until(self, now: Self) -> f64 {
        self.share(now, now.cpu_ns.saturating_sub(self.cpu_ns))
    }

    /// Percent of the time since then that a thread was ready to run and waited for a CPU.
    pub(crate) fn waited_until(self, now: Self) -> f64 {
        self.share(now, now.wait_ns.saturating_sub(self.wait_ns))
    }

    fn share(self, now: Self, ns: u64) -> f64 {
        100.0 * ns as f64 / 1e9 / now.at.duration_since(self.at).as_secs_f64()
    }
}

impl Daemon {
    /// Starts the agent with the policy of ten thousand rules and waits until it has armed the host.
    pub(crate) fn start(binary: &Path) -> Result<Self> {
        let (host, peer) = wire_up()?;
        peer.ip(&["route", "add", "local", "10.64.0.0/16", "dev", "lo"])?;
        let sink = host.run(|| UdpSocket::bind((LOCAL4, SERVICE)).context("binding the sink"))?;
        setsockopt(&sink, sockopt::RcvBuf, &0)?;
        let dir = Path::new(BPFFS).join("cofferdam-bench-state");
        fs::create_dir_all(&dir).context("making a mount point")?;
        let none: Option<&Path> = None;
        mount(Some("tmpfs"), &dir, Some("tmpfs"), MsFlags::empty(), none)
            .context("mounting a file system in memory")?;
        fs::create_dir(dir.join("policy"))?;
        fs::write(dir.join("policy/bench.yaml"), documents()?)?;
        let config = json!({
            "state_dir": dir.join("state"),
            "pin_dir": Path::new(BPFFS).join("cofferdam-bench-agent"),
            "admin_socket": dir.join("socket"),
            "netns": host.path(),
            "mode": "enforce",
            "workload": { "name": "bench", "labels": { "role": "bench" } },
            "managed_networks": ["10.64.0.0/16"],
            "failsafes": { "resolvers": [] },
            "confirm_within": "0s",
            "policy_dir": dir.join("policy"),
            "flows": { "spool_bytes": SPOOL_BYTES },
        });
        fs::write(dir.join("agent.yaml"), config.to_string())?;
        let log = File::create(dir.join("log"))?;
        let child = Command::new(binary)
            .arg("--config")
            .arg(dir.join("agent.yaml"))
            .arg("run")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let mut daemon = Self {
            binary: binary.to_owned(),
            dir,
            child,
            peer_device: index(&peer, PEER_DEVICE)?,
            host,
            peer,
            _sink: sink,
        };
        daemon.wait_until_armed()?;
        Ok(daemon)
    }

    fn wait_until_armed(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("the agent ended with {status}:\n{}", self.log());
            }
            if let Ok(status) = self.status()
                && status["state"] == "armed"
                && status["devices"]
                    .as_array()
                    .is_some_and(|devices| devices.iter().any(|one| one["device"] == HOST_DEVICE))
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the agent was not ready in time:\n{}", self.log());
            }
            std::thread::sleep(LOOK);
        }
    }

    fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// What the agent says of itself.
    pub(crate) fn status(&self) -> Result<Value> {
        let done = Command::new(&self.binary)
            .arg("--config")
            .arg(self.dir.join("agent.yaml"))
            .args(["-o", "json", "status"])
            .output()
            .context("asking the agent")?;
        if !done.status.success() {
            bail!("{}", String::from_utf8_lossy(&done.stderr).trim());
        }
        serde_json::from_slice(&done.stdout).context("the agent's status")
    }

    /// Lost records by cause, since it began.
    pub(crate) fn losses(&self) -> Result<BTreeMap<String, u64>> {
        let status = self.status()?;
        serde_json::from_value(status["losses"].clone()).context("the agent's losses")
    }

    /// Processor time of every thread so far (`/proc/PID/task/TID/schedstat`, nanoseconds: ran, waited; threads that
    /// ended are in none, and the agent ends none while it runs).
    pub(crate) fn used(&self) -> Result<Used> {
        let mut used = Used {
            cpu_ns: 0,
            wait_ns: 0,
            at: Instant::now(),
        };
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            let mut words = text
                .split_whitespace()
                .filter_map(|word| word.parse::<u64>().ok());
            used.cpu_ns += words.next().unwrap_or(0);
            used.wait_ns += words.next().unwrap_or(0);
        }
        Ok(used)
    }

    /// Resident bytes but those of mapped kernel maps.
    pub(crate) fn resident(&self) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/smaps", self.child.id()))?;
        Ok(resident(&text))
    }

    /// Waits until everything that happened is in the spool.
    pub(crate) fn settle(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let (mut batches, mut since) = (Value::Null, Instant::now());
        while since.elapsed() < QUIET {
            let now = self.status()?["spooled_batches"].clone();
            if now != batches {
                (batches, since) = (now, Instant::now());
            }
            if Instant::now() > deadline {
                bail!("the agent's spool never stopped growing");
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Calls `each` with every batch of the spool. The agent may run meanwhile: batches are only appended.
    pub(crate) fn batches(&self, each: &mut dyn FnMut(&FlowBatch)) -> Result<()> {
        const AT_ONCE: usize = 4_096;
        let spool = Spool::open(&self.dir.join("state/spool"), SPOOL_BYTES)?;
        let mut from = 1;
        while from < spool.next_sequence() {
            let batches = spool.read_from(from, AT_ONCE)?;
            let Some(last) = batches.last() else { break };
            from = last.sequence + 1;
            for batch in &batches {
                each(&FlowBatch::decode(batch.payload.as_slice())?);
            }
        }
        Ok(())
    }

    /// Asks the agent to end and waits for it.
    pub(crate) fn stop(&mut self) -> Result<()> {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            kill(Pid::from_raw(pid), Signal::SIGTERM)?;
        }
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("the agent did not end:\n{}", self.log());
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Gone already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The policy as files: each peer, and for each a rule with two ports.
fn documents() -> Result<String> {
    let mut rules = Vec::new();
    let mut text = String::new();
    for number in 0..PEER_COUNT {
        let name = format!("peer-{number}");
        rules.push(json!({
            "action": "allow",
            "peers": [{ "selector": { "peer": &name } }],
            "ports": [{ "port": SERVICE }, { "port": SERVICE, "protocol": "udp" }],
        }));
        let peer = json!({
            "apiVersion": "cofferdam.dev/v1", "kind": "Workload",
            "metadata": { "name": &name, "labels": { "peer": &name } },
            "spec": { "addresses": [peer4(PEERS + number)] },
        });
        writeln!(text, "---\n{peer}")?;
    }
    let policy = json!({
        "apiVersion": "cofferdam.dev/v1", "kind": "Policy", "metadata": { "name": "bench" },
        "spec": { "state": "enforced", "subject": { "role": "bench" }, "ingress": rules, "egress": [] },
    });
    writeln!(text, "---\n{policy}")?;
    Ok(text)
}

/// Sums `Rss` of every mapping that is not a BPF map (proc_pid_smaps(5)).
fn resident(smaps: &str) -> u64 {
    let (mut sum, mut is_map) = (0, false);
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some(size) = line.strip_prefix("Rss:") {
            let kib = size.trim().trim_end_matches("kB").trim();
            if !is_map {
                sum += kib.parse::<u64>().unwrap_or(0) * 1024;
            }
        } else if !first.ends_with(':') {
            is_map = line.contains("bpf-map");
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_kernel_maps_are_not_the_agents_memory() {
        let smaps = "7f00-7f01 rw-p 00 00:01 5    [heap]\nSize: 9 kB\nRss:                  12 kB\n\
                     7f02-7f09 rw-s 00 00:0f 6    anon_inode:bpf-map\nRss:               8192 kB\n\
                     7f10-7f11 r-xp 00 08:01 7    /usr/bin/cofferdam-agent\nRss:                   8 kB\n";
        assert_eq!(resident(smaps), 20 * 1024);
    }
}
