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

/// Every text file of the repository that git knows or would add, by its path from the root.
fn files(root: &Path) -> Result<Vec<(String, String)>> {
    let list = run::output(std::process::Command::new("git").arg("-C").arg(root).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "-z",
    ]))?;
    let mut files = Vec::new();
    for name in list.split('\0').filter(|name| !name.is_empty()) {
        // A file may be listed and already deleted, or not be text: neither can break a rule.
        if let Ok(text) = fs::read_to_string(root.join(name)) {
            files.push((name.to_owned(), text));
        }
    }
    Ok(files)
}
