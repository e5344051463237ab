//! A private sysroot with `core` and `compiler_builtins` for the BPF target, which no Rust
//! component provides. It is built from source with fixed names and remapped paths, so that what
//! is compiled against it does not depend on where anything lies.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::bpf::{RustcVersion, TARGET};
use crate::project::{Project, ToolsLock, sha256};
use crate::run;

/// Names the archive with the source of `core`.
const CORE_VARIABLE: &str = "COFFERDAM_RUST_CORE";

/// Changes when the recipe below does, so that old sysroots are not reused.
const RECIPE: &str = "1";

/// Where the source of `core` comes from.
enum CoreSource {
    /// An archive with the `library` directory's files at its top.
    Archive(PathBuf),
    /// The `library` directory of a rust-src component.
    Library(PathBuf),
}

/// Builds the sysroot unless it is there already, and returns its path.
pub(super) fn prepare(
    project: &Project,
    lock: &ToolsLock,
    rustc: &RustcVersion,
) -> Result<PathBuf> {
    let home = project.tools();
    let name = |origin: &str| {
        let key = sha256(format!("{RECIPE} {origin} {}", rustc.commit).as_bytes());
        home.join(format!("sysroot-{}", &key[..16]))
    };
    // Both sources build to the same bytes, so whichever is there will do.
    let from_archive = name(&lock.rust_core_sha256);
    // rust-src always comes with, and only fits, its own rustc.
    let from_component = name("rust-src");
    if let Some(place) = [&from_archive, &from_component]
        .into_iter()
        .find(|dir| usable(dir))
    {
        return Ok(place.clone());
    }
    let toolchain = PathBuf::from(run::output(run::rustc().args(["--print", "sysroot"]))?.trim());
    let source = core_source(lock, &toolchain)?;
    let place = match source {
        CoreSource::Archive(_) => from_archive,
        CoreSource::Library(_) => from_component,
    };
    println!("setup: building core for {TARGET}");
    fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
    let work = tempfile::Builder::new()
        .prefix("sysroot-")
        .tempdir_in(&home)
        .context("cannot create a directory for the sysroot")?;
    let library = match source {
        CoreSource::Library(library) => library,
        CoreSource::Archive(archive) => unpack(&archive, &work.path().join("library"))?,
    };
    let fresh = work.path().join("sysroot");
    link_toolchain(&toolchain, &rustc.host, &fresh)?;
    compile(&library, &fresh)?;
    fs::write(fresh.join("stamp"), "complete\n").context("cannot stamp the sysroot")?;
    if place.exists() {
        fs::remove_dir_all(&place)
            .with_context(|| format!("cannot remove the unfinished {}", place.display()))?;
    }
    // Someone else may have finished the same sysroot in the meantime: theirs is as good.
    if let Err(error) = fs::rename(&fresh, &place)
        && !usable(&place)
    {
        return Err(error).with_context(|| format!("cannot create {}", place.display()));
    }
    Ok(place)
}

/// Whether a sysroot is complete and the toolchain its links lead to is still there.
fn usable(place: &Path) -> bool {
    place.join("stamp").is_file() && place.join("bin/rustc").exists()
}

/// Finds the source of `core`: the named archive, then rust-src, then rust-src from rustup.
fn core_source(lock: &ToolsLock, toolchain: &Path) -> Result<CoreSource> {
    if let Some(name) = env::var_os(CORE_VARIABLE).filter(|name| !name.is_empty()) {
        let archive = PathBuf::from(name);
        let bytes = fs::read(&archive)
            .with_context(|| format!("{CORE_VARIABLE}: cannot read {}", archive.display()))?;
        verify_archive(&bytes, &lock.rust_core_sha256)
            .with_context(|| format!("{CORE_VARIABLE}: {}", archive.display()))?;
        return Ok(CoreSource::Archive(archive));
    }
    let library = toolchain.join("lib/rustlib/src/rust/library");
    if library.join("core/src/lib.rs").is_file() {
        return Ok(CoreSource::Library(library));
    }
    println!("setup: trying rustup component add rust-src");
    let rustup = run::output(Command::new("rustup").args(["component", "add", "rust-src"]));
    if library.join("core/src/lib.rs").is_file() {
        return Ok(CoreSource::Library(library));
    }
    let reason = match rustup {
        Ok(_) => "rustup reported success, but the source is not there".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    bail!(
        "the kernel object needs the source of Rust's core library, which is not installed.\n\
         Either run `rustup component add rust-src` where the network allows it, or set \
         {CORE_VARIABLE} to an archive (tar.xz) of the library files of rustc {} whose sha256 is in \
         xtask/tools.lock.\nrustup said: {reason}",
        lock.rustc_release
    )
}

fn verify_archive(bytes: &[u8], expected: &str) -> Result<()> {
    let actual = sha256(bytes);
    if actual != expected {
        bail!("its sha256 is {actual}, xtask/tools.lock wants {expected}");
    }
    Ok(())
}

fn unpack(archive: &Path, library: &Path) -> Result<PathBuf> {
    // A `#[path]` in compiler_builtins passes through the second of these, otherwise empty.
    for dir in ["core/src", "compiler-builtins/compiler-builtins/src/math"] {
        fs::create_dir_all(library.join(dir)).context("cannot create the library directory")?;
    }
    run::check(
        Command::new("tar")
            .arg("-xJf")
            .arg(archive)
            .arg("-C")
            .arg(library),
    )?;
    Ok(library.to_path_buf())
}

/// Links what the toolchain has for the host, so that proc macros and build scripts still compile.
fn link_toolchain(toolchain: &Path, host: &str, fresh: &Path) -> Result<()> {
    let link = |from: PathBuf, to: PathBuf| {
        symlink(&from, &to)
            .with_context(|| format!("cannot link {} to {}", to.display(), from.display()))
    };
    let lib = fresh.join("lib");
    fs::create_dir_all(lib.join("rustlib").join(TARGET).join("lib"))
        .context("cannot create the sysroot")?;
    link(
        toolchain.join("lib/rustlib").join(host),
        lib.join("rustlib").join(host),
    )?;
    link(toolchain.join("bin"), fresh.join("bin"))?;
    let libraries = toolchain.join("lib");
    for entry in
        fs::read_dir(&libraries).with_context(|| format!("cannot list {}", libraries.display()))?
    {
        let entry = entry.context("cannot list the toolchain's libraries")?;
        if entry.file_name().to_string_lossy().contains(".so") {
            link(entry.path(), lib.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn compile(library: &Path, fresh: &Path) -> Result<()> {
    let out = fresh.join("lib/rustlib").join(TARGET).join("lib");
    let rustc = |name: &str, root: &str| {
        let mut command = run::rustc();
        command
            .args(["--crate-name", name, "--edition=2024"])
            .arg(library.join(root))
            .args([
                "-Copt-level=3",
                "-Cpanic=abort",
                "-Cembed-bitcode=no",
                "-Ccodegen-units=1",
            ])
            .args([
                "-Cdebuginfo=2",
                "-Zforce-unstable-if-unmarked",
                "--cap-lints=allow",
            ])
            .args([
                "--target",
                TARGET,
                "--crate-type=lib",
                "--emit=link,metadata",
            ])
            .arg(format!(
                "--remap-path-prefix={}=/rustc/library",
                library.display()
            ))
            .arg("--out-dir")
            .arg(&out)
            .args([
                format!("-Cmetadata=bpf-{name}"),
                "-Cextra-filename=-bpf".to_owned(),
            ])
            // core is full of unstable features by design.
            .env("RUSTC_BOOTSTRAP", "1");
        command
    };
    run::check(&mut rustc("core", "core/src/lib.rs")).context("cannot build core")?;
    let mut builtins = rustc(
        "compiler_builtins",
        "compiler-builtins/compiler-builtins/src/lib.rs",
    );
    builtins.arg("--sysroot").arg(fresh).arg("--extern");
    builtins.arg(format!("core={}", out.join("libcore-bpf.rmeta").display()));
    for feature in [
        "compiler-builtins",
        "rustc-dep-of-std",
        "mem",
        "mem-unaligned",
        "unstable-intrinsics",
    ] {
        builtins.arg("--cfg").arg(format!("feature=\"{feature}\""));
    }
    for cfg in [
        "intrinsics_enabled",
        "arch_enabled",
        "optimizations_enabled",
        "f16_enabled",
        "f128_enabled",
    ] {
        builtins.args(["--cfg", cfg]);
    }
    run::check(&mut builtins).context("cannot build compiler_builtins")?;
    for name in ["libcore-bpf.rmeta", "libcompiler_builtins-bpf.rmeta"] {
        fs::remove_file(out.join(name)).with_context(|| format!("cannot remove {name}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_with_another_digest_is_refused() {
        verify_archive(b"abc", &sha256(b"abc")).unwrap();
        let error = verify_archive(b"abd", &sha256(b"abc"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("tools.lock wants"), "{error}");
    }
}
