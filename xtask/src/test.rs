//! `cargo xtask test`: sets up, builds, runs every test and says in one line what came of it.
//! Tests that cannot run where they are do not pass silently: they are counted and listed.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::cargo_test;
use crate::project::Project;
use crate::run;
use crate::setup;

/// Tests append a line `SKIP: <why>` to the file that this names.
const SKIP_LOG: &str = "COFFERDAM_SKIP_LOG";

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Unit tests only, and no set-up.
    #[arg(long)]
    quick: bool,
}

/// Runs the verb.
pub(crate) fn run(project: &Project, args: &Args) -> Result<()> {
    let start = Instant::now();
    if !args.quick {
        setup::for_tests()?;
    }
    // Without --workspace: default-members leaves out what only the BPF target can build.
    run::check(run::cargo().current_dir(project.root()).arg("build"))?;
    let skips = tempfile::NamedTempFile::new().context("cannot create the list of skips")?;
    let mut command = run::cargo();
    command
        .current_dir(project.root())
        .args(["test", "--no-fail-fast"]);
    command.env(SKIP_LOG, skips.path());
    if args.quick {
        command.args(["--lib", "--bins"]);
    }
    let results = cargo_test::run(&mut command)?;
    let log = fs::read_to_string(skips.path()).context("cannot read the list of skips")?;
    let skipped = skipped(&log);
    println!();
    for (line, count) in &skipped {
        println!(
            "{line}{}",
            if *count > 1 {
                format!(" (×{count})")
            } else {
                String::new()
            }
        );
    }
    for name in &results.failures {
        println!("FAILED: {name}");
    }
    let summary = format!(
        "{} passed, {} failed, {} ignored, {} skipped in {} s",
        results.passed,
        results.failed,
        results.ignored,
        skipped.values().sum::<usize>(),
        start.elapsed().as_secs()
    );
    if !results.success {
        bail!("tests failed: {summary}");
    }
    if results.passed == 0 {
        bail!("no test ran: {summary}");
    }
    println!("tests: {summary}");
    Ok(())
}

/// The reasons in the log, each with how often it was given.
fn skipped(log: &str) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for line in log.lines().filter(|line| !line.trim().is_empty()) {
        *counts.entry(line).or_insert(0) += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_are_counted_by_reason() {
        let counts = skipped("SKIP: no root\n\nSKIP: no netkit\nSKIP: no root\n");
        assert_eq!(counts.values().sum::<usize>(), 3);
        assert_eq!(counts.get("SKIP: no root"), Some(&2));
    }
}
