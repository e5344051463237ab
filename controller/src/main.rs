//! `cofferdam-controller`.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use controller::Controller;
use controller::config::{Config, LogFormat, Overrides};
use controller::store::SqliteStore;
use ipnet::IpNet;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Turns policy into what every agent enforces, and flows into findings.
#[derive(Debug, Parser)]
#[command(name = "cofferdam-controller", version)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct Settings {
    /// Configuration file [default: /etc/cofferdam/controller.yaml, if it is there].
    #[arg(long, env = "COFFERDAM_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// Directory of databases, keys and the operator's certificate.
    #[arg(long, env = "COFFERDAM_DATA_DIR", global = true)]
    data_dir: Option<PathBuf>,
    /// Address for gRPC with TLS.
    #[arg(long, env = "COFFERDAM_LISTEN", global = true)]
    listen: Option<SocketAddr>,
    /// Address for /metrics and /healthz.
    #[arg(long, env = "COFFERDAM_HTTP_LISTEN", global = true)]
    http_listen: Option<SocketAddr>,
    /// Trust domain of every identity.
    #[arg(long, env = "COFFERDAM_TRUST_DOMAIN", global = true)]
    trust_domain: Option<String>,
    /// Networks that are inside; may be repeated.
    #[arg(
        long = "managed-network",
        env = "COFFERDAM_MANAGED_NETWORKS",
        value_delimiter = ',',
        global = true
    )]
    managed_networks: Option<Vec<IpNet>>,
    /// What is logged, in the syntax of `tracing`.
    #[arg(long, env = "COFFERDAM_LOG", global = true)]
    log: Option<String>,
    /// Log lines as JSON.
    #[arg(long, env = "COFFERDAM_LOG_JSON", global = true)]
    log_json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer agents and operators; this is also what happens without a command.
    Run,
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Check the hash chain of the audit log.
    AuditVerify,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum ConfigCommand {
    /// Say whether it is in order.
    Check,
    /// Print it as it holds, with every default.
    Print,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let settings = cli.settings;
    let overrides = Overrides {
        data_dir: settings.data_dir,
        listen: settings.listen,
        http_listen: settings.http_listen,
        trust_domain: settings.trust_domain,
        managed_networks: settings.managed_networks,
        log_filter: settings.log,
        log_json: settings.log_json,
    };
    let config = Config::load(settings.config.as_deref(), &overrides)?;
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    match cli.command.unwrap_or(Command::Run) {
        Command::Config(ConfigCommand::Check) => println!("the configuration is in order"),
        Command::Config(ConfigCommand::Print) => println!("{}", config.print()),
        Command::AuditVerify => runtime.block_on(audit_verify(&config))?,
        Command::Run => {
            start_log(&config)?;
            if rustls::crypto::ring::default_provider()
                .install_default()
                .is_err()
            {
                bail!("a cryptographic provider is already there");
            }
            runtime.block_on(run(config))?;
            // Handlers that do not end must not keep the process.
            runtime.shutdown_timeout(Duration::from_secs(2));
        }
    }
    Ok(())
}

fn start_log(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log.filter).context("log.filter")?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match config.log.format {
        LogFormat::Plain => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let controller = Controller::start(config).await?;
    notify(&[NotifyState::Ready]);
    // Half of what systemd allows, as it advises.
    let pace = sd_notify::watchdog_enabled().map(|allowed| allowed / 2);
    let mut watchdog = tokio::time::interval(pace.unwrap_or(Duration::from_secs(3_600)));
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = watchdog.tick() => match controller.probe().await {
                Ok(()) => notify(&[NotifyState::Watchdog]),
                Err(error) => tracing::error!(%error, "not well"),
            },
        }
    }
    tracing::info!("stopping");
    notify(&[NotifyState::Stopping]);
    controller.stop().await;
    Ok(())
}

/// Tells systemd, if it listens.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not told");
    }
}

async fn audit_verify(config: &Config) -> anyhow::Result<()> {
    let store = SqliteStore::open(&config.data_dir.join("state.db"))?;
    match store.verify_audit().await? {
        Ok(entries) => println!("{entries} entries, the chain is whole"),
        Err(entry) => bail!("the chain is broken at entry {entry}"),
    }
    Ok(())
}
