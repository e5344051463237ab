//! The toolchain of the kernel object: the locked rustc with a private sysroot that has `core` for
//! the BPF target, the locked bpf-linker, and llvm-strip.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{debian, sysroot, tool};
use crate::project::{Project, ToolsLock};
use crate::run;

/// The target triple of the kernel object.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// A prepared toolchain.
pub(crate) struct BpfToolchain {
    /// Sysroot with `core` for the BPF target.
    pub(crate) sysroot: PathBuf,
    /// bpf-linker.
    pub(crate) linker: PathBuf,
    /// llvm-strip.
    pub(crate) strip: PathBuf,
    /// Commit of the rustc in use.
    pub(crate) rustc_commit: String,
}

/// What `rustc -vV` says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RustcVersion {
    pub(crate) release: String,
    pub(crate) commit: String,
    pub(crate) host: String,
}

impl RustcVersion {
    fn parse(text: &str) -> Result<Self> {
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .map(str::to_owned)
                .with_context(|| format!("rustc -vV does not say its {name}"))
        };
        Ok(Self {
            release: field("release")?,
            commit: field("commit-hash")?,
            host: field("host")?,
        })
    }

    /// Refuses any other compiler than the locked one: its object would differ from the recorded.
    fn matches(&self, lock: &ToolsLock) -> Result<()> {
        if self.release == lock.rustc_release && self.commit == lock.rustc_commit {
            return Ok(());
        }
        bail!(
            "the kernel object is built with rustc {} ({}), this is {} ({}); \
             use that release (rustup toolchain install {}, then cargo +{0} xtask ...) \
             or change xtask/tools.lock and rebuild the object",
            lock.rustc_release,
            lock.rustc_commit,
            self.release,
            self.commit,
            lock.rustc_release,
        )
    }
}

/// Prepares everything; what is already there is left alone.
pub(crate) fn prepare(project: &Project) -> Result<BpfToolchain> {
    let lock = project.tools_lock()?;
    let rustc = RustcVersion::parse(&run::output(run::rustc().arg("-vV"))?)?;
    rustc.matches(&lock)?;
    let strip = llvm_strip()?;
    let sysroot = sysroot::prepare(project, &lock, &rustc)?;
    let linker = tool::get(project, "bpf-linker", &lock.bpf_linker)?;
    Ok(BpfToolchain {
        sysroot,
        linker,
        strip,
        rustc_commit: rustc.commit,
    })
}

fn llvm_strip() -> Result<PathBuf> {
    let find = || {
        run::find_program("llvm-strip")
            .or_else(|| debian::versioned(Path::new("/usr/lib"), "llvm-strip"))
    };
    if let (Some(file), Some(_)) = (find(), run::find_program("xz")) {
        return Ok(file);
    }
    debian::ensure(debian::FOR_BPF)?;
    find().context("llvm-strip was installed but cannot be found")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock() -> ToolsLock {
        ToolsLock {
            rustc_release: "1.95.0".into(),
            rustc_commit: "abc".into(),
            bpf_linker: "0.10.3".into(),
            cargo_deny: "0.20.2".into(),
            rust_core_sha256: "ff".into(),
        }
    }

    #[test]
    fn only_the_locked_rustc_is_accepted() {
        let text = "rustc 1.95.0 (x)\nbinary: rustc\ncommit-hash: abc\nhost: h\nrelease: 1.95.0\n";
        let rustc = RustcVersion::parse(text).unwrap();
        assert_eq!(rustc.host, "h");
        rustc.matches(&lock()).unwrap();
        let other = RustcVersion {
            commit: "abd".into(),
            ..rustc
        };
        let error = other.matches(&lock()).unwrap_err().to_string();
        assert!(
            error.contains("abd") && error.contains("tools.lock"),
            "{error}"
        );
    }

    #[test]
    fn a_rustc_without_a_commit_is_an_error() {
        assert!(RustcVersion::parse("release: 1.95.0\nhost: h\n").is_err());
    }
}
