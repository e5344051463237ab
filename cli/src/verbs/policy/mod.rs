//! `policy`: what needs no controller.

pub(super) mod offline;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::Outcome;
use crate::output::Screen;
use crate::{model, sources};

/// Check policy files without a controller
#[derive(Debug, Args)]
pub(crate) struct Policy {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Check(Check),
}

/// Check that policy files can be read
#[derive(Debug, Args)]
struct Check {
    /// Files or directories; - for stdin
    #[arg(value_name = "FILE|DIR", required = true)]
    files: Vec<PathBuf>,
}

impl Policy {
    /// Runs the verb.
    pub(crate) fn run(self, screen: &mut Screen) -> anyhow::Result<Outcome> {
        let Verb::Check(check) = self.verb;
        let sources = sources::read(&check.files)?;
        match offline::check(&sources) {
            Ok(()) => Ok(Outcome::Done),
            Err(problems) => {
                screen.show(&model::Problems { problems })?;
                Ok(Outcome::Refused)
            }
        }
    }
}
