//! `cargo xtask deny`: licences, sources and bans of everything we depend on, and known
//! vulnerabilities where the advisory database can be reached.

use std::process::Command;

use anyhow::{Context, Result};

use crate::project::Project;
use crate::run;
use crate::setup::tool;

/// Runs the verb.
pub(crate) fn run(project: &Project) -> Result<()> {
    let deny = tool::get(project, "cargo-deny", &project.tools_lock()?.cargo_deny)?;
    let deny = || {
        let mut command = Command::new(&deny);
        command.current_dir(project.root()).arg("--locked");
        command
    };
    run::check(deny().args(["check", "licenses", "bans", "sources"]))
        .context("a dependency breaks deny.toml")?;
    if let Err(error) = run::output(deny().args(["fetch", "db"])) {
        println!("SKIP: advisories were not checked, the database cannot be had: {error:#}");
        return Ok(());
    }
    run::check(deny().args(["check", "--disable-fetch", "advisories"]))
        .context("a dependency has a known problem")
}
