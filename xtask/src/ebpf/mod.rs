//! The kernel object: building it reproducibly, looking at what came out, and recording it beside
//! a digest of its sources in `agent-ebpf/prebuilt`, from where the agent embeds it.

mod build;
mod inspect;
mod sources;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::project::{Project, sha256};
use crate::setup::bpf;

/// Arguments of `cargo xtask build-ebpf`.
#[derive(clap::Args)]
pub(crate) struct BuildArgs {
    /// Build from nothing into a temporary directory and compare with the recorded object, bit for bit.
    #[arg(long)]
    check: bool,
}

/// The recorded files.
struct Prebuilt {
    object: PathBuf,
    sums: PathBuf,
    sources: PathBuf,
}

/// The object's name in `prebuilt` and in `SHA256SUMS`.
const OBJECT: &str = "cofferdam.bpf.o";

impl Prebuilt {
    fn of(project: &Project) -> Self {
        let dir = project.path("agent-ebpf/prebuilt");
        Self {
            object: dir.join(OBJECT),
            sums: dir.join("SHA256SUMS"),
            sources: dir.join("SOURCES.sha256"),
        }
    }
}

/// `cargo xtask build-ebpf`.
pub(crate) fn build(project: &Project, args: &BuildArgs) -> Result<()> {
    let toolchain = bpf::prepare(project)?;
    let sources = sources::record(project.root(), &toolchain.rustc_commit)?;
    let temporary;
    let target_dir = if args.check {
        fs::create_dir_all(project.scratch()).context("cannot create the scratch directory")?;
        temporary = tempfile::Builder::new()
            .prefix("bpf-check-")
            .tempdir_in(project.scratch())
            .context("cannot create a temporary directory")?;
        temporary.path().to_path_buf()
    } else {
        project.scratch().join("bpf")
    };
    let object = build::object(project, &toolchain, &target_dir)?;
    let report = inspect::Report::of(&object)?;
    report.print();
    report.verdict()?;
    let prebuilt = Prebuilt::of(project);
    let sums = format!("{}  {OBJECT}\n", sha256(&object));
    if args.check {
        return compare(&prebuilt, &object, &sums, &sources);
    }
    let dir = project.path("agent-ebpf/prebuilt");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    for (path, contents) in [
        (&prebuilt.object, object.as_slice()),
        (&prebuilt.sums, sums.as_bytes()),
        (&prebuilt.sources, sources.as_bytes()),
    ] {
        fs::write(path, contents).with_context(|| format!("cannot write {}", path.display()))?;
    }
    print!("{} bytes, sha256 {sums}", object.len());
    Ok(())
}

/// Builds the object of a workspace and records nothing.
pub(crate) fn object_of(
    project: &Project,
    toolchain: &bpf::BpfToolchain,
    target_dir: &Path,
) -> Result<Vec<u8>> {
    build::object(project, toolchain, target_dir)
}

/// A number that changes with the sources of the object.
pub(crate) fn sources_seed(project: &Project) -> Result<u64> {
    let record = sources::record(project.root(), &project.tools_lock()?.rustc_commit)?;
    let digits = record.get(..16).context("a digest is longer")?;
    u64::from_str_radix(digits, 16).context("a digest is hexadecimal")
}

/// `cargo xtask clippy-ebpf`.
pub(crate) fn clippy(project: &Project) -> Result<()> {
    let toolchain = bpf::prepare(project)?;
    build::clippy(project, &toolchain, &project.scratch().join("bpf"))
}

fn compare(prebuilt: &Prebuilt, object: &[u8], sums: &str, sources: &str) -> Result<()> {
    let read = |path: &PathBuf| {
        fs::read(path)
            .with_context(|| format!("cannot read {}; run cargo xtask build-ebpf", path.display()))
    };
    let recorded = read(&prebuilt.object)?;
    if recorded != object {
        bail!(
            "the recorded object is not what its sources build to:\n  recorded {} ({} bytes)\n  \
             built    {} ({} bytes)\nrun cargo xtask build-ebpf and commit agent-ebpf/prebuilt",
            sha256(&recorded),
            recorded.len(),
            sha256(object),
            object.len()
        );
    }
    for (path, expected) in [(&prebuilt.sums, sums), (&prebuilt.sources, sources)] {
        if read(path)? != expected.as_bytes() {
            bail!("{} is stale; run cargo xtask build-ebpf", path.display());
        }
    }
    println!(
        "the recorded object is exactly what its sources build to: {}",
        sums.trim_end()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody may forget to rebuild: cheap, needs no BPF toolchain, always run.
    #[test]
    fn the_recorded_object_was_built_from_these_sources() {
        let project = Project::find().unwrap();
        let prebuilt = Prebuilt::of(&project);
        let Ok(object) = fs::read(&prebuilt.object) else {
            println!("no prebuilt object yet: nothing to compare");
            return;
        };
        let lock = project.tools_lock().unwrap();
        let sources = sources::record(project.root(), &lock.rustc_commit).unwrap();
        assert_eq!(
            fs::read_to_string(&prebuilt.sources).unwrap_or_default(),
            sources,
            "the kernel sources changed since the object was built: run cargo xtask build-ebpf"
        );
        assert_eq!(
            fs::read_to_string(&prebuilt.sums).unwrap_or_default(),
            format!("{}  {OBJECT}\n", sha256(&object)),
            "the recorded object is not the one that was built: run cargo xtask build-ebpf"
        );
    }

    #[test]
    fn any_difference_fails_the_comparison() {
        let dir = tempfile::tempdir().unwrap();
        let prebuilt = Prebuilt {
            object: dir.path().join(OBJECT),
            sums: dir.path().join("SHA256SUMS"),
            sources: dir.path().join("SOURCES.sha256"),
        };
        let error = compare(&prebuilt, b"o", "sums", "sources").unwrap_err();
        assert!(
            format!("{error:#}").contains("run cargo xtask build-ebpf"),
            "{error:#}"
        );
        fs::write(&prebuilt.object, "o").unwrap();
        fs::write(&prebuilt.sums, "sums").unwrap();
        fs::write(&prebuilt.sources, "sources").unwrap();
        compare(&prebuilt, b"o", "sums", "sources").unwrap();
        assert!(compare(&prebuilt, b"p", "sums", "sources").is_err());
        assert!(compare(&prebuilt, b"o", "other", "sources").is_err());
        assert!(compare(&prebuilt, b"o", "sums", "other").is_err());
    }
}
