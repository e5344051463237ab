//! `completions`: for the shell.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::Outcome;
use crate::options::Cli;
use crate::output::Screen;

/// Print the completion script of a shell
#[derive(Debug, Args)]
pub(crate) struct Completions {
    shell: Shell,
}

impl Completions {
    /// Runs the verb.
    pub(crate) fn run(self, screen: &mut Screen) -> anyhow::Result<Outcome> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "cofferdam", &mut script);
        screen.raw(&String::from_utf8_lossy(&script))?;
        Ok(Outcome::Done)
    }
}
