//! `cargo xtask check`: rules of this repository that neither the compiler nor clippy knows. Each
//! rule is a function from text to findings, so that a test can show that it fires.

mod arrows;
mod members;
mod scan;
mod sources;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::project::Project;
use crate::run;

/// Something a rule found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Where: a file, a file and line, or a package.
    place: String,
    /// What is wrong.
    text: String,
    /// Whether it fails the check.
    severity: Severity,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Severity {
    Warning,
    Error,
}

impl Finding {
    fn error(place: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            text: text.into(),
            severity: Severity::Error,
        }
    }

    fn warning(place: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            text: text.into(),
            severity: Severity::Warning,
        }
    }
}

/// Runs the verb.
pub(crate) fn run(project: &Project) -> Result<()> {
    let metadata = arrows::metadata(&run::output(
        run::cargo().current_dir(project.root()).args([
            "metadata",
            "--format-version=1",
            "--no-deps",
            "--offline",
        ]),
    )?)?;
    let mut findings = arrows::check(&metadata);
    for package in &metadata.packages {
        findings.extend(members::check(
            &package.name,
            &read(&package.manifest_path)?,
        ));
    }
    let files = files(project.root())?;
    for (name, text) in &files {
        findings.extend(sources::check(name, text));
    }
    let errors = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
        .count();
    for Finding {
        place,
        text,
        severity,
    } in &findings
    {
        let word = match severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        println!("{word}: {place}: {text}");
    }
    if errors > 0 {
        bail!("{errors} rules of the repository are broken");
    }
    println!(
        "check: {} packages and {} files follow the rules ({} warnings)",
        metadata.packages.len(),
        files.len(),
        findings.len()
    );
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Every text file of the tree by its path from the root, in order. Not what git lists: the rules
/// also hold in an unpacked release, and for files not yet added.
fn files(root: &Path) -> Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        let list = || format!("cannot list {}", dir.display());
        for entry in fs::read_dir(&dir).with_context(list)? {
            let entry = entry.with_context(list)?;
            let path = entry.path();
            // In a worktree `.git` is a file.
            if [".git", "target"]
                .iter()
                .any(|name| entry.file_name() == *name)
            {
                continue;
            }
            if entry.file_type().with_context(list)?.is_dir() {
                dirs.push(path);
            // What is not text cannot break a rule.
            } else if let Ok(text) = fs::read_to_string(&path) {
                let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy();
                files.push((name.into_owned(), text));
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_except_what_is_built() {
        let root = tempfile::tempdir().unwrap();
        for name in ["a/b.rs", ".ci/run", ".git/config", "target/x.rs", "c.md"] {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "text").unwrap();
        }
        fs::write(root.path().join("binary"), [0xff, 0xfe]).unwrap();
        let files = files(root.path()).unwrap();
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, [".ci/run", "a/b.rs", "c.md"]);
    }
}
