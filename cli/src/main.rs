//! `cofferdam`: the operator's command line.
//!
//! Only a client: every verb is one or two calls of the controller's API, or, for `policy`, a pure
//! function over files. Exit codes: 0 done, 1 refused or failed, 2 `diff` found changes, `plan` what
//! `--fail-on` names, `policy fmt --check` files to format or `policy reach` a way, 130
//! interrupted. A reader that goes away (`cofferdam flows | head`) ends the program quietly.

mod change;
mod client;
mod error;
mod model;
mod options;
mod output;
mod records;
mod sources;
mod verbs;

use std::io;
use std::process::ExitCode;

use clap::Parser as _;

use crate::error::{Failure, Interrupted};
use crate::options::Cli;
use crate::output::Screen;

/// How a verb that did not fail ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Done.
    Done,
    /// Refused, or not everything that was asked for came true.
    Refused,
    /// `diff` found changes, `plan` what `--fail-on` names, `policy fmt --check` files to format,
    /// `policy reach` a way.
    Changes,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Done => 0,
            Outcome::Refused => 1,
            Outcome::Changes => 2,
        })
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not errors; a closed pipe is nobody's error.
            let code = u8::from(error.use_stderr());
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let mut screen = Screen::new(cli.global.output);
    let result = runtime().and_then(|runtime| {
        let result = runtime.block_on(verbs::run(cli, &mut screen));
        // A blocked name resolution must not hold up the end.
        runtime.shutdown_background();
        result
    });
    finish(result.and_then(|outcome| {
        screen.flush()?;
        Ok(outcome)
    }))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?)
}

/// Turns the end of a verb into an exit code, and an error into its text on stderr.
fn finish(result: anyhow::Result<Outcome>) -> ExitCode {
    let error = match result {
        Ok(outcome) => return outcome.into(),
        Err(error) => error,
    };
    if is_broken_pipe(&error) {
        return ExitCode::SUCCESS;
    }
    if let Some(interrupted) = error.downcast_ref::<Interrupted>() {
        if let Some(note) = &interrupted.note {
            error::complain(&format!("interrupted: {note}"));
        }
        return ExitCode::from(130);
    }
    error::complain(&format!("error: {error:#}"));
    if let Some(next) = error.downcast_ref::<Failure>().and_then(Failure::next) {
        error::complain(&format!("next: {next}"));
    }
    ExitCode::FAILURE
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
    }) && error.downcast_ref::<Failure>().is_none()
}
