//! A network namespace without a name: it lives as long as this process holds its file, so that nothing is left behind
//! however the process ends.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns, unshare};

/// See the module.
pub(crate) struct Netns {
    file: File,
}

impl Netns {
    /// Makes an empty one; IPv6 is off in it, so that nobody speaks unasked.
    pub(crate) fn new() -> Result<Self> {
        let file = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    unshare(CloneFlags::CLONE_NEWNET)
                        .context("a network namespace of its own needs root")?;
                    File::open("/proc/thread-self/ns/net").context("opening the new namespace")
                })
                .join()
                .map_err(|_| anyhow!("the thread that makes a namespace panicked"))?
        })?;
        let namespace = Self { file };
        namespace.sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
        namespace.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// A path by which another process finds it while this one lives.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Calls `work` on a thread of its own inside the namespace; what it starts is inside too.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter()?;
                    work()
                })
                .join()
                .map_err(|_| anyhow!("a thread in a namespace panicked"))?
        })
    }

    /// Moves the calling thread into it.
    pub(crate) fn enter(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).context("entering a namespace")
    }

    /// Runs `ip` in it.
    pub(crate) fn ip(&self, arguments: &[&str]) -> Result<()> {
        self.tool("ip", arguments, "").map(drop)
    }

    /// Runs a program in it to its end, gives it `input`, and returns what it printed.
    pub(crate) fn tool(&self, program: &str, arguments: &[&str], input: &str) -> Result<String> {
        self.run(|| {
            let mut child = Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| format!("cannot run {program}"))?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(input.as_bytes()).ok();
            }
            let done = child.wait_with_output()?;
            if !done.status.success() {
                bail!(
                    "{program} {}: {}",
                    arguments.join(" "),
                    String::from_utf8_lossy(&done.stderr).trim()
                );
            }
            Ok(String::from_utf8_lossy(&done.stdout).into_owned())
        })
    }

    /// Writes a kernel parameter of the namespace, by its path below `/proc/sys`.
    pub(crate) fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.run(|| {
            std::fs::write(format!("/proc/sys/{name}"), value)
                .with_context(|| format!("setting {name} to {value}"))
        })
    }
}

/// One counter of the calling thread's namespace, such as `Udp`, `RcvbufErrors` (RFC 1213 groups, `/proc/net/snmp`).
pub(crate) fn counter(group: &str, name: &str) -> Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp")
        .context("reading the namespace's counters")?;
    find_counter(&text, group, name).with_context(|| format!("no counter {group} {name}"))
}

/// Finds it in the kernel's text: a line of names, then a line of values, each after the group's name.
fn find_counter(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text
        .lines()
        .filter_map(|line| line.strip_prefix(group)?.strip_prefix(':'));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names.split_whitespace().position(|word| word == name)?;
    values.split_whitespace().nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_found_under_its_name() {
        let text = "Ip: Forwarding InReceives\nIp: 1 7\nUdp: InDatagrams NoPorts\nUdp: 3 4\nUdpLite: InDatagrams\nUdpLite: 9\n";
        assert_eq!(find_counter(text, "Udp", "NoPorts"), Some(4));
        assert_eq!(find_counter(text, "Ip", "InReceives"), Some(7));
        assert_eq!(find_counter(text, "Udp", "InErrors"), None);
    }
}
