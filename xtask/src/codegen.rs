//! `cargo xtask codegen`: writes the generated code of `proto`, or proves that it is fresh. The
//! generator is a test of that package, so that its tools never reach a shipped binary.

use anyhow::{Result, bail};

use crate::cargo_test;
use crate::project::Project;
use crate::run;

/// The test that compares, and writes when asked to.
const TEST: &str = "generated_code_is_fresh";
/// Asks it to write.
const WRITE: &str = "COFFERDAM_CODEGEN";

/// Arguments of `cargo xtask codegen`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write nothing; fail if the generated code is stale.
    #[arg(long)]
    check: bool,
}

/// Runs the verb.
pub(crate) fn run(project: &Project, args: &Args) -> Result<()> {
    let mut command = run::cargo();
    command
        .current_dir(project.root())
        .args(["test", "--quiet", "--package=proto", TEST]);
    if args.check {
        command.env_remove(WRITE);
    } else {
        command.env(WRITE, "write");
    }
    let results = cargo_test::run(&mut command)?;
    if !results.success {
        bail!("the generated code of proto is not fresh: run cargo xtask codegen and commit");
    }
    if results.passed == 0 {
        bail!("proto has no test {TEST}: nothing was checked");
    }
    println!("codegen: the generated code is fresh");
    Ok(())
}
