//! The daemon's parts, started and stopped together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::{Host, HostError, collector, devices, system};
use crate::kernel::clock;
use crate::reconcile::Notice;
use crate::{admin, control, metrics};

/// Why the daemon stops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// A signal: enforcement goes on.
    Signal,
    /// The operator detached the agent.
    Detach {
        /// Take the hooks off: everything passes.
        open: bool,
    },
}

const TICK: Duration = Duration::from_secs(1);
/// A sweep older than this means that the collector hangs.
const STALE: u64 = 15;

/// Runs until it is told to stop. Hooks and maps stay unless the operator said otherwise.
///
/// # Errors
/// When a socket cannot be opened.
pub async fn run(host: Arc<Host>) -> Result<(), HostError> {
    let (stop, mut stopped) = mpsc::channel::<Stop>(4);
    let finish = Arc::new(AtomicBool::new(false));
    let worker = {
        let (host, finish) = (Arc::clone(&host), Arc::clone(&finish));
        std::thread::Builder::new()
            .name("collector".into())
            .spawn(move || collector::run(&host, &finish))
            .map_err(system("starting the collector"))?
    };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(devices::follow(Arc::clone(&host)));
    tasks.spawn(tick(Arc::clone(&host)));
    let listener =
        admin::listen(&host.config.admin_socket).map_err(system("opening the admin socket"))?;
    tasks.spawn(admin::serve(Arc::clone(&host), listener, stop.clone()));
    if let Some(address) = host.config.metrics_listen {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .map_err(system("opening the metrics port"))?;
        tasks.spawn(metrics::serve(Arc::clone(&host), listener));
    }
    if !host.config.controller.endpoints.is_empty() {
        tasks.spawn(control::follow(Arc::clone(&host)));
    }
    tasks.spawn(signals(Arc::clone(&host), stop)?);
    notify(&[NotifyState::Ready]);
    info!("ready");

    let why = stopped.recv().await.unwrap_or(Stop::Signal);
    notify(&[NotifyState::Stopping]);
    tasks.shutdown().await;
    finish.store(true, Ordering::Relaxed);
    worker.thread().unpark();
    let joined = tokio::task::spawn_blocking(move || worker.join()).await;
    if !matches!(joined, Ok(Ok(()))) {
        error!("the collector did not end well");
    }
    remove_socket(&host);
    if why == (Stop::Detach { open: true }) {
        admin::release(host.kernel.dir()).map_err(HostError::Kernel)?;
        warn!("detached: nothing is enforced on this host");
    } else {
        info!("stopped; enforcement goes on");
    }
    Ok(())
}

fn remove_socket(host: &Host) {
    if let Err(error) = std::fs::remove_file(&host.config.admin_socket) {
        tracing::debug!(%error, "removing the admin socket");
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "telling the service manager");
    }
}

fn signals(
    host: Arc<Host>,
    stop: mpsc::Sender<Stop>,
) -> Result<impl Future<Output = ()> + Send + 'static, HostError> {
    let open = |kind| signal(kind).map_err(system("catching signals"));
    let mut terminate = open(SignalKind::terminate())?;
    let mut interrupt = open(SignalKind::interrupt())?;
    let mut hangup = open(SignalKind::hangup())?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => reload(&host).await,
            }
        }
        // The receiver is gone only when the daemon is stopping already.
        let _ = stop.send(Stop::Signal).await;
    })
}

async fn reload(host: &Arc<Host>) {
    let host = Arc::clone(host);
    let done = tokio::task::spawn_blocking(move || {
        let result = host
            .read_policy()
            .and_then(|policy| Ok(host.apply_local(policy, None)?));
        match result {
            Ok(applied) => info!(revision = applied.revision, "policy files read again"),
            Err(HostError::NotStandalone) => {
                info!("nothing to read again: this agent follows a controller")
            }
            Err(error) => host.report_error(&error),
        }
    })
    .await;
    if let Err(error) = done {
        error!(%error, "reading the policy files again was not finished");
    }
}

/// Once a second: what the kernel did by itself, the clocks, the watchdog.
async fn tick(host: Arc<Host>) {
    let watched = sd_notify::watchdog_enabled().is_some();
    let mut timer = tokio::time::interval(TICK);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let started = clock::boot_ns() / 1_000_000_000;
    loop {
        timer.tick().await;
        let ticking = Arc::clone(&host);
        let done = tokio::task::spawn_blocking(move || ticking.tick()).await;
        if let Err(error) = done {
            error!(%error, "the second's work was not finished");
        }
        let now = clock::boot_ns() / 1_000_000_000;
        let swept = host.counters.swept_at.load(Ordering::Relaxed).max(started);
        // The service manager restarts an agent whose collector hangs; enforcement goes on meanwhile.
        if watched && now.saturating_sub(swept) < STALE {
            notify(&[NotifyState::Watchdog]);
        }
    }
}

impl Host {
    fn tick(&self) {
        let before = self.kernel.word().generation();
        let notices = self.engine().tick();
        match notices {
            Ok(notices) => {
                for notice in &notices {
                    match notice {
                        Notice::FellBack { from, to } => self.report_error(&format!(
                            "revision {from} was not confirmed in time: the kernel fell back to revision {to}"
                        )),
                        Notice::ClockMoved => warn!("the clock moved: expiries were computed again"),
                    }
                }
                if notices
                    .iter()
                    .any(|notice| matches!(notice, Notice::FellBack { .. }))
                {
                    self.forget_waiting();
                }
                if !notices.is_empty() || self.kernel.word().generation() != before {
                    self.refresh_names();
                }
            }
            Err(error) => self.report_error(&error),
        }
    }
}
