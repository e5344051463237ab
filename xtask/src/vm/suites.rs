//! What runs in the guest: the agent's kernel suites, linked statically, and the agent itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::project::Project;
use crate::run;

/// The target whose programs need nothing of the guest.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Runs on every kernel, those that are refused included: it says whether the kernel is taken at all.
pub(super) const SUPPORT: &str = "kernel_support";

/// The suites: those test targets of the agent that are named for the kernel, and the one for clsact.
pub(super) fn all(project: &Project) -> Result<Vec<String>> {
    let dir = project.path("agent/tests");
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let is_suite = path.extension().is_some_and(|extension| extension == "rs")
            || path.join("main.rs").is_file();
        let name = path.file_stem().and_then(|name| name.to_str());
        names.extend(
            name.filter(|name| is_suite && is_for_guests(name))
                .map(str::to_owned),
        );
    }
    names.sort();
    if !names.iter().any(|name| name == SUPPORT) {
        bail!("{} has no suite {SUPPORT}", dir.display());
    }
    names.sort_by_key(|name| name != SUPPORT);
    Ok(names)
}

fn is_for_guests(name: &str) -> bool {
    name == "clsact" || name == "kernel" || name.starts_with("kernel_")
}

/// Built programs.
pub(super) struct Programs {
    /// The agent. Tests look for it where it was built.
    pub(super) agent: PathBuf,
    /// Suites by name.
    pub(super) suites: BTreeMap<String, PathBuf>,
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Builds them. Somewhat optimised: the guest's processor is emulated.
pub(super) fn build(project: &Project, suites: &[String]) -> Result<Programs> {
    println!("vm: building the suites");
    let mut command = run::cargo();
    command
        .current_dir(project.root())
        .args([
            "test",
            "--locked",
            "--no-run",
            "--quiet",
            "--package",
            "agent",
            "--target",
            TARGET,
        ])
        .args(["--message-format", "json-render-diagnostics"])
        .args(["--config", "profile.dev.opt-level=1"])
        .args(["--config", "profile.dev.strip=\"debuginfo\""])
        .arg("--config")
        .arg(format!(
            "target.{TARGET}.rustflags=[\"-Ctarget-feature=+crt-static\"]"
        ))
        .env_remove("RUSTFLAGS")
        .stderr(Stdio::inherit());
    for suite in suites {
        command.args(["--test", suite]);
    }
    programs(&run::output(&mut command)?, suites)
}

fn programs(messages: &str, suites: &[String]) -> Result<Programs> {
    let mut found = BTreeMap::new();
    for line in messages.lines() {
        let message: Message =
            serde_json::from_str(line).context("cargo says what we cannot read")?;
        if let (Some(target), Some(file), "compiler-artifact") =
            (message.target, message.executable, message.reason.as_str())
        {
            found.insert(target.name, file);
        }
    }
    let agent = found
        .remove("cofferdam-agent")
        .context("cargo built no agent")?;
    for suite in suites {
        if !found.contains_key(suite) {
            bail!("cargo built no suite {suite}");
        }
    }
    Ok(Programs {
        agent,
        suites: found,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suites_are_those_of_the_kernel() {
        let suites = all(&Project::find().unwrap()).unwrap();
        assert_eq!(suites[0], SUPPORT);
        for name in [
            "kernel",
            "kernel_differential",
            "kernel_scenarios",
            "kernel_wire",
            "clsact",
        ] {
            assert!(
                suites.iter().any(|suite| suite == name),
                "{name}: {suites:?}"
            );
        }
        assert!(
            !suites
                .iter()
                .any(|suite| suite == "controller" || suite == "support_kernel")
        );
    }

    #[test]
    fn programs_are_found_in_what_cargo_says() {
        let line = |name: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"name":"{name}"}},"executable":"/t/{name}"}}"#
            )
        };
        let suites = ["kernel".to_owned(), "clsact".to_owned()];
        let mut lines: Vec<String> = suites.iter().map(|name| line(name)).collect();
        lines.push(r#"{"reason":"build-finished","success":true}"#.into());
        assert!(programs(&lines.join("\n"), &suites).is_err());
        lines.push(line("cofferdam-agent"));
        let found = programs(&lines.join("\n"), &suites).unwrap();
        assert_eq!(found.agent, PathBuf::from("/t/cofferdam-agent"));
        assert_eq!(found.suites.len(), 2);
        assert!(programs(&lines[1..].join("\n"), &suites).is_err());
    }
}
