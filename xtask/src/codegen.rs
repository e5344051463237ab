//! `cargo xtask codegen`: writes what is generated and checked in, or proves that it is fresh. Each generator
//! is a test of the package that owns it, so that its tools never reach a shipped binary.

use anyhow::{Result, bail};

use crate::cargo_test;
use crate::project::Project;
use crate::run;

/// Package and test that compare, and write when asked to.
const GENERATORS: &[(&str, &str)] = &[
    ("proto", "generated_code_is_fresh"),
    ("datapath", "the_page_of_drop_reasons_is_fresh"),
];
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
    for (package, test) in GENERATORS {
        let mut command = run::cargo();
        command
            .current_dir(project.root())
            .args(["test", "--quiet", "--package", package, test]);
        if args.check {
            command.env_remove(WRITE);
        } else {
            command.env(WRITE, "write");
        }
        let results = cargo_test::run(&mut command)?;
        if !results.success {
            bail!("what {package} generates is not fresh: run cargo xtask codegen and commit");
        }
        if results.passed == 0 {
            bail!("{package} has no test {test}: nothing was checked");
        }
    }
    println!("codegen: everything generated is fresh");
    Ok(())
}
