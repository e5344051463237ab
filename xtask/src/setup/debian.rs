//! Debian packages: which are missing, and installing them by name without starting any service.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run;

/// A Debian package and how to see that what we want of it is there, on any distribution.
pub(crate) struct Package {
    /// The name apt-get knows.
    name: &'static str,
    probe: Probe,
}

enum Probe {
    /// A program in `PATH` or in a system directory.
    Program(&'static str),
    /// A program under `<base>/<any version>/bin`.
    Versioned {
        base: &'static str,
        program: &'static str,
    },
}

impl Package {
    const fn program(name: &'static str, program: &'static str) -> Self {
        Self {
            name,
            probe: Probe::Program(program),
        }
    }

    fn present(&self) -> bool {
        match &self.probe {
            Probe::Program(program) => run::find_program(program).is_some(),
            Probe::Versioned { base, program } => {
                run::find_program(program).is_some()
                    || versioned(Path::new(base), program).is_some()
            }
        }
    }
}

/// What the test-suite uses: traffic, real services to segment, and tools that look at both.
pub(crate) const FOR_TESTS: &[Package] = &[
    Package::program("iproute2", "ip"),
    Package::program("tcpdump", "tcpdump"),
    Package::program("nginx-light", "nginx"),
    Package {
        name: "postgresql",
        probe: Probe::Versioned {
            base: "/usr/lib/postgresql",
            program: "postgres",
        },
    },
    Package::program("redis-server", "redis-server"),
    Package::program("openssh-server", "sshd"),
    Package::program("openssh-client", "ssh"),
    Package::program("nmap", "nmap"),
    Package::program("curl", "curl"),
    Package::program("python3", "python3"),
    Package::program("ethtool", "ethtool"),
    Package::program("nftables", "nft"),
    Package::program("iptables", "iptables-restore"),
    Package::program("ipset", "ipset"),
    Package::program("netcat-openbsd", "nc"),
    Package::program("iputils-ping", "ping"),
    Package::program("iperf3", "iperf3"),
    Package::program("traceroute", "traceroute"),
    Package::program("procps", "ps"),
    Package::program("tshark", "tshark"),
];

/// What building the kernel object uses besides the Rust toolchain.
pub(crate) const FOR_BPF: &[Package] = &[
    Package::program("xz-utils", "xz"),
    Package {
        name: "llvm",
        probe: Probe::Versioned {
            base: "/usr/lib",
            program: "llvm-strip",
        },
    },
];

/// What booting other kernels uses; iproute2 and util-linux go into the guest.
pub(crate) const FOR_VM: &[Package] = &[
    Package::program("qemu-system-x86", "qemu-system-x86_64"),
    Package::program("busybox-static", "busybox"),
    Package::program("iproute2", "ip"),
    Package::program("util-linux", "setpriv"),
    Package::program("xz-utils", "xz"),
    Package::program("dpkg", "dpkg-deb"),
    Package::program("libc-bin", "ldd"),
    Package::program("gpgv", "gpgv"),
    Package::program("curl", "curl"),
];

/// Finds `<base>/<any>/bin/<program>`, the newest name first.
pub(crate) fn versioned(base: &Path, program: &str) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(base)
        .ok()?
        .flatten()
        .map(|entry| entry.path().join("bin").join(program))
        .filter(|file| file.is_file())
        .collect();
    found.sort();
    found.pop()
}

/// Installs those packages that are missing.
pub(crate) fn ensure(packages: &[Package]) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .filter(|package| !package.present())
        .map(|package| package.name)
        .collect();
    if missing.is_empty() {
        println!("setup: all {} packages are there", packages.len());
        return Ok(());
    }
    let list = missing.join(" ");
    if run::find_program("apt-get").is_none() {
        bail!(
            "this machine has no apt-get; install what these Debian packages provide by other means: {list}"
        );
    }
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "packages are missing and only root can install them; run\n    sudo apt-get install --no-install-recommends {list}"
        );
    }
    println!("setup: installing {list} (no service is started)");
    let _quiet = NoServices::start()?;
    run::check(apt_get().arg("update"))?;
    run::check(
        apt_get()
            .args(["install", "--yes", "--no-install-recommends"])
            .args(&missing),
    )?;
    // A package may install and still not give what we probe for; better to hear it here.
    let still: Vec<&str> = packages
        .iter()
        .filter(|package| !package.present())
        .map(|package| package.name)
        .collect();
    if !still.is_empty() {
        bail!(
            "apt-get succeeded, but these are still not usable: {}",
            still.join(" ")
        );
    }
    Ok(())
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .arg("--quiet")
        // Another apt-get (unattended upgrades, say) may hold the lock for a while.
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .env("DEBIAN_FRONTEND", "noninteractive")
        // invoke-rc.d starts nothing in single-user mode.
        .env("RUNLEVEL", "1");
    command
}

/// While it lives, packages that are installed do not start their services.
struct NoServices {
    /// The policy file we wrote; `None` when the machine has its own, which is left alone.
    written: Option<&'static Path>,
}

impl NoServices {
    fn start() -> Result<Self> {
        let path = Path::new("/usr/sbin/policy-rc.d");
        if path.exists() {
            return Ok(Self { written: None });
        }
        fs::write(path, "#!/bin/sh\nexit 101\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
        let guard = Self {
            written: Some(path),
        };
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} executable", path.display()))?;
        Ok(guard)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(path) = self.written
            && let Err(error) = fs::remove_file(path)
        {
            eprintln!(
                "xtask: cannot remove {}: {error}; please do",
                path.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_missing_means_nothing_is_run() {
        ensure(&[Package::program("dash", "sh")]).unwrap();
    }

    #[test]
    fn the_newest_version_is_found() {
        let dir = tempfile::tempdir().unwrap();
        for version in ["13", "15"] {
            let bin = dir.path().join(version).join("bin");
            fs::create_dir_all(&bin).unwrap();
            fs::write(bin.join("postgres"), "").unwrap();
        }
        let found = versioned(dir.path(), "postgres").unwrap();
        assert!(found.ends_with("15/bin/postgres"), "{}", found.display());
        assert!(versioned(dir.path(), "mysqld").is_none());
    }
}
