//! The command line: global options and the list of verbs.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser};

use crate::output::Format;
use crate::verbs::Verb;

/// Microsegmentation from the operator's chair: change policy, see what it does, cut off what is hostile.
#[derive(Debug, Parser)]
#[command(
    name = "cofferdam",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 refused or failed, 2 `diff` found changes, `plan` what --fail-on names, `policy fmt --check` files to format or `policy reach` a way, 130 interrupted."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What every verb understands.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// How to print: a table for people, the rest for machines
    #[arg(
        short = 'o',
        long,
        global = true,
        value_enum,
        default_value_t,
        help_heading = "Output"
    )]
    pub(crate) output: Format,
    #[command(flatten)]
    pub(crate) connection: ConnectionFlags,
}

/// Where the controller is and who asks. Flags win over `--context`, that over the environment
/// (`COFFERDAM_CONTROLLER`, `_CA`, `_CERT`, `_KEY`, `_OPERATOR_DIR`), that over the current context.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ConnectionFlags {
    /// Address of the controller [env: COFFERDAM_CONTROLLER]
    #[arg(long, global = true, value_name = "https://HOST:PORT")]
    pub(crate) controller: Option<String>,
    /// CA certificate of the controller, PEM [env: COFFERDAM_CA]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Your certificate, PEM [env: COFFERDAM_CERT]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) cert: Option<PathBuf>,
    /// Your private key, PEM [env: COFFERDAM_KEY]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Directory with ca.pem, cert.pem and key.pem, as the controller writes it [env: COFFERDAM_OPERATOR_DIR]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) operator_dir: Option<PathBuf>,
    /// Use this context instead of the current one
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Give up on an answer after this long
    #[arg(long, global = true, value_name = "DURATION", default_value = "15s", value_parser = duration)]
    pub(crate) request_timeout: Duration,
}

/// Parses `90s`, `5m`, `1h 30m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write it like 90s, 5m or 1h30m"))?;
    if parsed.is_zero() {
        return Err("must be longer than nothing".into());
    }
    Ok(parsed)
}

/// What every mutation understands.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct MutationFlags {
    /// Refuse if the store has moved on from this revision
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) expect_revision: u64,
    /// Repeating a call with the same key gives the first answer again [default: a fresh one]
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
}
