//! A small estate of hosts in network namespaces, with real servers, an agent a host and a controller:
//! what the demo and the end-to-end tests run on. Everything it makes is removed when it is dropped.

pub(crate) mod capture;
pub(crate) mod cofferdam;
pub(crate) mod netns;
pub(crate) mod probe;
pub(crate) mod process;
pub(crate) mod servers;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use netns::Namespace;

/// Set by Ctrl-C; every wait looks at it, so that clean-up runs in the ordinary way.
pub(crate) static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes Ctrl-C and SIGTERM end the waits instead of the process.
pub(crate) fn catch_signals() -> Result<()> {
    extern "C" fn note(_: libc::c_int) {
        INTERRUPTED.store(true, Ordering::SeqCst);
    }
    let action = nix::sys::signal::SigAction::new(
        nix::sys::signal::SigHandler::Handler(note),
        nix::sys::signal::SaFlags::empty(),
        nix::sys::signal::SigSet::empty(),
    );
    for signal in [nix::sys::signal::SIGINT, nix::sys::signal::SIGTERM] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { nix::sys::signal::sigaction(signal, &action) }.context("cannot catch signals")?;
    }
    Ok(())
}

/// Polls until `condition` gives a value; fails after `limit` with `what` in the message.
pub(crate) fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if INTERRUPTED.load(Ordering::SeqCst) {
            bail!("interrupted while waiting for {what}");
        }
        if let Some(value) = condition() {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("waited {limit:?} in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One host of the estate.
pub(crate) struct Host {
    /// Name of the workload.
    pub(crate) name: &'static str,
    /// Labels as `key=value`.
    pub(crate) labels: &'static [&'static str],
    /// Its namespace.
    pub(crate) netns: Namespace,
    /// Last byte of both addresses.
    number: u8,
}

impl Host {
    /// IPv4 address.
    pub(crate) fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.number)
    }

    /// IPv6 address.
    pub(crate) fn v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(self.number))
    }

    /// Both.
    pub(crate) fn addresses(&self) -> [IpAddr; 2] {
        [IpAddr::V4(self.v4()), IpAddr::V6(self.v6())]
    }
}

/// The networks of the estate: everything inside is managed.
pub(crate) const NETWORKS: [&str; 2] = ["10.77.0.0/24", "fd77::/64"];

/// All hosts on one bridge, and a directory for what they write.
pub(crate) struct Estate {
    /// Hosts by name.
    pub(crate) hosts: Vec<Host>,
    dir: PathBuf,
    /// Holds the bridge; the far ends of the hosts' links are in it: the wire.
    pub(crate) switch: Namespace,
    keep: bool,
    logs: PathBuf,
}

impl Estate {
    /// Builds namespaces, bridge and links. `plan`: name, last address byte, labels.
    pub(crate) fn build(
        plan: &[(&'static str, u8, &'static [&'static str])],
        keep: bool,
        logs: &Path,
    ) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("network namespaces and eBPF need root; run it as root");
        }
        let tag = std::process::id();
        let dir = std::env::temp_dir().join(format!("cofferdam-estate-{tag}"));
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        // Servers drop to their own users and must still reach their files.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        let switch = Namespace::create(&format!("cfd{tag}-switch"))?;
        switch.ip(&[
            "link",
            "add",
            "br0",
            "type",
            "bridge",
            "forward_delay",
            "0",
            "stp_state",
            "0",
        ])?;
        switch.ip(&["link", "set", "br0", "up"])?;
        let mut estate = Self {
            hosts: Vec::new(),
            dir,
            switch,
            keep,
            logs: logs.to_path_buf(),
        };
        for (name, number, labels) in plan {
            let netns = Namespace::create(&format!("cfd{tag}-{name}"))?;
            estate.hosts.push(Host {
                name,
                labels,
                netns,
                number: *number,
            });
            estate.connect(*number)?;
        }
        Ok(estate)
    }

    /// Links the newest host to the bridge: one wire packet per segment (offloads off), so that a capture and a
    /// flow record can be compared to the byte.
    fn connect(&self, number: u8) -> Result<()> {
        let host = self.hosts.last().context("no host")?;
        let wire = wire_name(number);
        self.switch.ip(&[
            "link",
            "add",
            &wire,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            host.netns.name(),
        ])?;
        self.switch
            .ip(&["link", "set", &wire, "master", "br0", "up"])?;
        let v4 = format!("{}/24", host.v4());
        let v6 = format!("{}/64", host.v6());
        host.netns.ip(&["address", "add", &v4, "dev", "eth0"])?;
        host.netns
            .ip(&["address", "add", &v6, "dev", "eth0", "nodad"])?;
        host.netns.ip(&["link", "set", "lo", "up"])?;
        host.netns.ip(&["link", "set", "eth0", "up"])?;
        for (netns, device) in [(&host.netns, "eth0"), (&self.switch, wire.as_str())] {
            netns.run(
                "ethtool",
                &["-K", device, "tso", "off", "gso", "off", "gro", "off"],
            )?;
        }
        Ok(())
    }

    /// The host of a name.
    pub(crate) fn host(&self, name: &str) -> Result<&Host> {
        self.hosts
            .iter()
            .find(|host| host.name == name)
            .with_context(|| format!("no host {name}"))
    }

    /// A directory of its own for one purpose, made if it is not there.
    pub(crate) fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        Ok(dir)
    }

    /// The estate's root directory.
    pub(crate) fn root(&self) -> &Path {
        &self.dir
    }
}

impl Estate {
    /// Ends what the agents mounted below the estate's directory: with the mounts go the pins and the programs.
    fn unmount(&self) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for target in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
            if Path::new(target).starts_with(&self.dir) {
                let _ = nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH);
            }
        }
    }

    /// Puts what every program printed where it can be read afterwards, in place of the run before.
    fn save_logs(&self) {
        let _ = fs::remove_dir_all(&self.logs);
        let _ = fs::create_dir_all(&self.logs);
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let log = entry.path().join("log");
            if log.is_file() {
                let _ = fs::copy(
                    &log,
                    self.logs.join(entry.file_name()).with_extension("log"),
                );
            }
        }
    }
}

/// Name of the switch's end of a host's link.
pub(crate) fn wire_name(number: u8) -> String {
    format!("wire{number}")
}

impl Drop for Estate {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        for host in &self.hosts {
            // Whatever was started on the host by what we started (ssh sessions, workers) lives in its namespace.
            host.netns.end_processes();
            host.netns.delete();
        }
        self.switch.delete();
        self.unmount();
        self.save_logs();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_gives_up_and_says_for_what() {
        let error = wait_for::<()>("a miracle", Duration::from_millis(20), || None).unwrap_err();
        assert!(error.to_string().contains("a miracle"));
        assert_eq!(
            wait_for("one", Duration::from_secs(1), || Some(1)).unwrap(),
            1
        );
    }
}
