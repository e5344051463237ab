//! Where things are: the root of the workspace, the place for tools, the lock file of the tools.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// The workspace this tool works on.
pub(crate) struct Project {
    root: PathBuf,
}

impl Project {
    /// Finds the workspace: cargo says where this package is, else the current directory is inside it.
    pub(crate) fn find() -> Result<Self> {
        let start = match env::var_os("CARGO_MANIFEST_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => env::current_dir().context("no current directory")?,
        };
        start
            .ancestors()
            .find(|dir| dir.join("xtask/tools.lock").is_file())
            .map(|dir| Self {
                root: dir.to_path_buf(),
            })
            .with_context(|| format!("{} is not inside the Cofferdam workspace", start.display()))
    }

    /// A workspace whose place is known.
    pub(crate) const fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// The root of the workspace.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A path inside the workspace.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// This checkout's scratch space: build directories of the kernel object, never shared.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.root.join("target/xtask")
    }

    /// Where tools and the sysroot are kept. `COFFERDAM_TOOLS_DIR` lets several checkouts share them.
    pub(crate) fn tools(&self) -> PathBuf {
        env::var_os("COFFERDAM_TOOLS_DIR").map_or_else(|| self.scratch(), PathBuf::from)
    }

    /// The exact tools of the kernel object.
    pub(crate) fn tools_lock(&self) -> Result<ToolsLock> {
        let path = self.path("xtask/tools.lock");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        ToolsLock::parse(&text).with_context(|| format!("in {}", path.display()))
    }
}

/// The contents of `xtask/tools.lock`: one `name value` a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ToolsLock {
    /// `release` of `rustc -vV`.
    pub(crate) rustc_release: String,
    /// `commit-hash` of `rustc -vV`.
    pub(crate) rustc_commit: String,
    /// Version of bpf-linker.
    pub(crate) bpf_linker: String,
    /// Version of cargo-deny.
    pub(crate) cargo_deny: String,
    /// Digest of the archive with the source of `core`.
    pub(crate) rust_core_sha256: String,
}

impl ToolsLock {
    fn parse(text: &str) -> Result<Self> {
        let mut values = BTreeMap::new();
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((name, value)) = line.split_once(' ') else {
                bail!("not `name value`: {line:?}");
            };
            values.insert(name, value.trim().to_owned());
        }
        let mut take = |name: &str| {
            values
                .remove(name)
                .with_context(|| format!("{name} is missing"))
        };
        Ok(Self {
            rustc_release: take("rustc-release")?,
            rustc_commit: take("rustc-commit")?,
            bpf_linker: take("bpf-linker")?,
            cargo_deny: take("cargo-deny")?,
            rust_core_sha256: take("rust-core-sha256")?,
        })
    }
}

/// SHA-256 of some bytes, in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_lock_reads_all_names_and_refuses_gaps() {
        let text = "# tools\nrustc-release 1\nrustc-commit abc\nbpf-linker 2\n\
                    cargo-deny 3\nrust-core-sha256 ff\n";
        let lock = ToolsLock::parse(text).unwrap();
        assert_eq!(lock.rustc_commit, "abc");
        assert_eq!(lock.rust_core_sha256, "ff");
        let error = ToolsLock::parse("rustc-release 1\n").unwrap_err();
        assert!(
            error.to_string().contains("rustc-commit is missing"),
            "{error}"
        );
        assert!(ToolsLock::parse("nonsense\n").is_err());
    }

    #[test]
    fn the_lock_file_of_this_tree_is_readable() {
        let lock = Project::find().unwrap().tools_lock().unwrap();
        assert_eq!(lock.rustc_commit.len(), 40);
        assert_eq!(lock.rust_core_sha256.len(), 64);
    }
}
