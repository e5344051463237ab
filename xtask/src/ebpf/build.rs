//! The cargo invocation that compiles and links `agent-ebpf`, and the stripping of its DWARF.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::project::Project;
use crate::run;
use crate::setup::bpf::{BpfToolchain, TARGET};

const WRAPPER: &str = include_str!("bpf-rustc.sh");

/// Flags of the BPF target. Debug information is what BTF is made from; with the source embedded
/// in it (which wants DWARF 5) BTF carries the source lines, and the verifier's log shows them
/// although the paths are made up. `v3` allows atomics that return a value (kernel 5.12).
const RUSTFLAGS: &str = "-Cdebuginfo=2\x1f-Zembed-source=yes\x1f-Zdwarf-version=5\x1f\
                         -Clink-arg=--btf\x1f-Ctarget-cpu=v3";

/// Builds the kernel object and returns its bytes: BTF kept, DWARF gone.
pub(super) fn object(
    project: &Project,
    toolchain: &BpfToolchain,
    target_dir: &Path,
) -> Result<Vec<u8>> {
    run::check(
        cargo(project, toolchain, target_dir, "build")?.args(["--bin=cofferdam", "--release"]),
    )
    .context("cannot build the kernel object")?;
    let linked = target_dir.join(TARGET).join("release/cofferdam");
    let stripped = target_dir.join("cofferdam.bpf.o");
    run::check(
        Command::new(&toolchain.strip)
            .arg("-g")
            .arg("-o")
            .arg(&stripped)
            .arg(&linked),
    )
    .context("cannot strip the kernel object")?;
    fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))
}

/// Lints the kernel crate as it is compiled for the kernel.
pub(super) fn clippy(project: &Project, toolchain: &BpfToolchain, target_dir: &Path) -> Result<()> {
    run::check(cargo(project, toolchain, target_dir, "clippy")?.args([
        "--release",
        "--",
        "-D",
        "warnings",
    ]))
    .context("clippy found fault with the kernel crate")
}

/// `cargo <verb>` on the kernel crate, shielded from settings of the user that would change the
/// result.
fn cargo(
    project: &Project,
    toolchain: &BpfToolchain,
    target_dir: &Path,
    verb: &str,
) -> Result<Command> {
    let wrapper = wrapper(project)?;
    let mut path = Vec::from_iter(toolchain.linker.parent().map(Path::to_path_buf));
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    let mut command = run::cargo();
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let meddles = text.starts_with("CARGO_PROFILE_")
            || text.starts_with("CARGO_BUILD_")
            || text.starts_with("CARGO_TARGET_");
        if meddles {
            command.env_remove(&name);
        }
    }
    command
        .current_dir(project.root())
        .args([verb, "--locked", "--package=agent-ebpf", "--target", TARGET])
        .arg("--target-dir")
        .arg(target_dir)
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env("CARGO_INCREMENTAL", "0")
        // One object for every machine: else aya's bindings follow the architecture of the builder.
        .env("AYA_BPF_TARGET_ARCH", "x86_64")
        .env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS)
        .env("RUSTC_WRAPPER", wrapper)
        .env("COFFERDAM_BPF_SYSROOT", &toolchain.sysroot)
        .env("COFFERDAM_BPF_WORKSPACE", project.root())
        .env("COFFERDAM_BPF_REGISTRY", registry(project)?)
        .env(
            "PATH",
            env::join_paths(path).context("PATH cannot be extended")?,
        )
        // bpf-linker loads the LLVM that it finds here first; it must be rustc's own.
        .env("LD_LIBRARY_PATH", toolchain.sysroot.join("lib"));
    Ok(command)
}

/// Writes the compiler wrapper where cargo can run it. A script and not this program, which may be
/// rebuilt while the kernel object is.
fn wrapper(project: &Project) -> Result<PathBuf> {
    let dir = project.scratch();
    let place = dir.join("bpf-rustc");
    if fs::read_to_string(&place).is_ok_and(|text| text == WRAPPER) {
        return Ok(place);
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let fresh = tempfile::NamedTempFile::new_in(&dir).context("cannot create the wrapper")?;
    fs::write(fresh.path(), WRAPPER).context("cannot write the wrapper")?;
    fs::set_permissions(fresh.path(), fs::Permissions::from_mode(0o755))
        .context("cannot make the wrapper executable")?;
    fresh
        .persist(&place)
        .context("cannot put the wrapper in place")?;
    Ok(place)
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<MetadataPackage>,
}

#[derive(Deserialize)]
struct MetadataPackage {
    source: Option<String>,
    manifest_path: PathBuf,
}

/// The directory that holds the sources of the registry's packages. Asking also downloads them.
fn registry(project: &Project) -> Result<PathBuf> {
    let text = run::output(
        run::cargo()
            .current_dir(project.root())
            .args([
                "metadata",
                "--locked",
                "--format-version=1",
                "--filter-platform",
                TARGET,
            ])
            .args(["--manifest-path", "agent-ebpf/Cargo.toml"]),
    )?;
    let metadata: Metadata =
        serde_json::from_str(&text).context("cannot understand cargo metadata")?;
    let places: BTreeSet<PathBuf> = metadata
        .packages
        .iter()
        .filter(|package| package.source.is_some())
        .filter_map(|package| {
            package
                .manifest_path
                .ancestors()
                .nth(2)
                .map(Path::to_path_buf)
        })
        .collect();
    match Vec::from_iter(places).as_slice() {
        [place] => Ok(place.clone()),
        places => bail!(
            "expected the registry's sources in one directory, found {places:?}; \
             the object would name them differently from machine to machine"
        ),
    }
}
