//! Tools that are crates: the exact version, built once, kept inside the repository's own `target`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::project::Project;
use crate::run;

/// The program `name` in this very version; built from the registry when it is not there.
pub(crate) fn get(project: &Project, name: &str, version: &str) -> Result<PathBuf> {
    let root = project.tools().join("tools");
    let file = root.join("bin").join(name);
    if is(&file, version) {
        return Ok(file);
    }
    println!("setup: building {name} {version} (this takes a minute or more)");
    fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
    run::check(
        run::cargo()
            .args(["install", "--quiet", "--locked", "--force", name])
            .arg(format!("--version=={version}"))
            .arg("--root")
            .arg(&root)
            // Its own directory: a tool never waits for, or clears away, a build of ours.
            .arg("--target-dir")
            .arg(project.tools().join("tools-build"))
            .env_remove("RUSTFLAGS"),
    )
    .with_context(|| format!("cannot build {name}"))?;
    if !is(&file, version) {
        bail!(
            "{name} {version} was installed, but {} does not say so",
            file.display()
        );
    }
    // Large, and of use only for another version of the same tool. Failing to remove it is no harm.
    fs::remove_dir_all(project.tools().join("tools-build")).unwrap_or_default();
    Ok(file)
}

/// Whether the program runs and says that it has this version.
fn is(file: &Path, version: &str) -> bool {
    file.is_file()
        && run::output(Command::new(file).arg("--version"))
            .is_ok_and(|text| text.split_whitespace().any(|word| word == version))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_the_exact_version_will_do() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tool");
        assert!(!is(&file, "1.2.3"));
        fs::write(&file, "#!/bin/sh\necho tool 1.2.3\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(is(&file, "1.2.3"));
        assert!(!is(&file, "1.2"));
    }
}
