//! The command line of `cofferdam-agent`: the daemon, and the operator's verbs on this host.
//!
//! `status`, `confirm`, `panic` and `detach` work without the daemon too: then they act on the pinned maps.

mod args;
mod preflight;
mod replay;
mod verbs;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use crate::config::{self, Config};
use crate::daemon;
use args::{Arguments, ConfigVerb, Output, Verb};

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let output = arguments.output;
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            match output {
                Output::Json => {
                    println!("{}", serde_json::json!({ "error": chain(&error) }))
                }
                Output::Text => eprintln!("cofferdam-agent: {}", chain(&error)),
            }
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes; a cause that its parent's words hold already is not said again.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let mut config = load(&arguments)?;
    let configured =
        arguments.config.is_some() || std::path::Path::new(config::DEFAULT_PATH).exists();
    let output = arguments.output;
    match arguments.verb {
        Verb::Run { standalone, policy } => {
            if let Some(policy) = policy {
                config.policy_dir = Some(policy);
            }
            if standalone {
                config.controller.endpoints.clear();
                anyhow::ensure!(
                    config.policy_dir.is_some(),
                    "--standalone needs --policy DIR, or policy_dir in the configuration"
                );
            }
            config.check()?;
            serve(config)?;
        }
        Verb::Config {
            verb: ConfigVerb::Check,
        } => match output {
            Output::Text => println!("the configuration is good"),
            Output::Json => println!("{}", serde_json::json!({ "ok": true })),
        },
        Verb::Config {
            verb: ConfigVerb::Print,
        } => {
            let mut shown = config;
            if shown.controller.token.is_some() {
                shown.controller.token = Some("(secret)".to_owned());
            }
            // JSON is YAML, and every key is there.
            println!("{}", serde_json::to_string_pretty(&shown)?);
        }
        Verb::Preflight => return preflight::run(&config, output),
        Verb::Status => verbs::status(&config, output)?,
        Verb::Flows { follow, limit } => verbs::flows(&config, output, follow, limit)?,
        Verb::Explain { from, to, port } => verbs::explain(&config, output, from, to, &port)?,
        Verb::Confirm { revision } => verbs::confirm(&config, output, revision)?,
        Verb::Apply {
            confirm_within,
            now,
        } => {
            let within = if now {
                Some(0)
            } else {
                confirm_within.map(|time| time.as_secs().max(1))
            };
            verbs::apply(&config, output, within)?;
        }
        Verb::Panic { mode } => verbs::panic(&config, output, mode.into())?,
        Verb::Replay(asked) => replay::run(config, configured, output, asked)?,
        Verb::Detach { leave } => verbs::detach(&config, output, leave.map(Into::into))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn load(arguments: &Arguments) -> anyhow::Result<Config> {
    let (path, required) = match &arguments.config {
        Some(path) => (path.clone(), true),
        None => (config::DEFAULT_PATH.into(), false),
    };
    let mut config = config::load(&path, required, std::env::vars())?;
    let overrides = &arguments.overrides;
    if let Some(value) = &overrides.state_dir {
        config.state_dir.clone_from(value);
    }
    if let Some(value) = &overrides.pin_dir {
        config.pin_dir.clone_from(value);
    }
    if let Some(value) = &overrides.admin_socket {
        config.admin_socket.clone_from(value);
    }
    if let Some(value) = &overrides.netns {
        config.netns = Some(value.clone());
    }
    Ok(config)
}

fn logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("COFFERDAM_AGENT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let json = std::env::var("COFFERDAM_AGENT_LOG_FORMAT").is_ok_and(|format| format == "json");
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if json {
        builder.json().init();
    } else {
        builder.init();
    }
}

fn serve(config: Config) -> anyhow::Result<()> {
    logging();
    // Before any thread: namespaces belong to threads, and new ones inherit.
    daemon::enter_netns(&config).context("entering the network namespace")?;
    let host = daemon::Host::prepare(config).context("this host could not be armed")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(daemon::run(host))?;
    // Whatever still blocks (a name look-up) must not keep a stopping agent.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    Ok(())
}
