//! The daemon: arms the host, keeps it armed, accounts for its flows.
//!
//! [`Host`] is what all its parts share. The order of [`Host::prepare`] is the order of safety: content
//! before hooks, learning before enforcing, adopted connections before the first drop.

pub mod adopt;
mod attribution;
mod breaker;
pub mod collector;
mod devices;
mod memory;
pub mod status;
mod tasks;

use std::collections::VecDeque;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use datapath::abi::config_flags;
use datapath::ids::EndpointId;
use policy::snapshot::Snapshot;
use policy::source::Source;
use tokio::sync::{Notify, broadcast, watch};
use tracing::{error, info, warn};

use crate::config::{Config, FullTable, L2};
use crate::flows::Record;
use crate::flows::names::Names;
use crate::flows::spool::Spool;
use crate::kernel::attach::Attached;
use crate::kernel::attribution::Attribution;
use crate::kernel::clock::{self, Converter};
use crate::kernel::loader::TableSizes;
use crate::kernel::{Kernel, KernelError, netns, sockdiag};
use crate::reconcile::failsafes::{self, Needs};
use crate::reconcile::lookup::Lookup;
use crate::reconcile::plan;
use crate::reconcile::store::{Store, StoreError};
use crate::reconcile::{Applied, ApplyError, Engine, Found, Push, SystemClock};
use crate::standalone::{self, StandaloneError};

pub use tasks::{Stop, run};

/// Why the daemon cannot start or a local change cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The kernel side.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The engine.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The state directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The policy files.
    #[error(transparent)]
    Standalone(#[from] StandaloneError),
    /// The operating system.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The agent follows a controller.
    #[error("this agent follows a controller; policy is applied there")]
    NotStandalone,
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> HostError {
    move |source| HostError::System { what, source }
}

/// Engine over the real kernel.
pub type HostEngine = Engine<Arc<Kernel>, SystemClock>;

/// A policy directory, compiled for this host.
#[derive(Clone, Debug)]
pub struct LocalPolicy {
    sources: Vec<Source>,
    snapshot: Snapshot,
}

/// The texts behind what is applied: what is good, and what waits for a confirmation.
#[derive(Debug, Default)]
struct Sources {
    good: Option<Vec<Source>>,
    waiting: Option<Vec<Source>>,
}

/// Counters of the process.
#[derive(Debug, Default)]
pub struct Counters {
    /// Flows in the tables at the last sweep.
    pub flows: AtomicU64,
    /// Records spooled.
    pub records: AtomicU64,
    /// Records that could not be spooled.
    pub spool_errors: AtomicU64,
    /// Malformed events.
    pub malformed: AtomicU64,
    /// The stream to the controller is up.
    pub connected: AtomicBool,
    /// Boot seconds at which the collector last finished a sweep; the watchdog looks at it.
    pub swept_at: AtomicU64,
}

/// What all parts of the daemon share.
pub struct Host {
    /// As loaded.
    pub config: Config,
    /// The kernel side.
    pub kernel: Arc<Kernel>,
    /// Who owns sockets.
    pub attribution: Arc<Attribution>,
    engine: Mutex<HostEngine>,
    /// Batches that wait for the controller.
    pub spool: Mutex<Spool>,
    /// Told when a batch was spooled.
    pub spooled: Notify,
    /// Every record as it is made.
    pub records: broadcast::Sender<Arc<Record>>,
    recent: Mutex<VecDeque<Arc<Record>>>,
    /// Changes whenever the content or its state does.
    pub changed: watch::Sender<u64>,
    /// Changes whenever own addresses do.
    pub readdressed: watch::Sender<u64>,
    sources: Mutex<Sources>,
    names: Mutex<Arc<Names>>,
    attached: Mutex<Vec<Attached>>,
    seeded: Mutex<adopt::Seeded>,
    last_error: Mutex<String>,
    breaker: Mutex<breaker::State>,
    /// Counters of the process.
    pub counters: Counters,
    /// This boot.
    pub boot_id: String,
    hz: u32,
    // One agent for each state directory, for as long as the process lives.
    _lock: nix::fcntl::Flock<std::fs::File>,
}

const RECENT: usize = 4096;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    /// Loads, fills, attaches and arms. On return policy is enforced on every chosen device.
    ///
    /// # Errors
    /// When the host cannot be armed; what was armed before stays as it was.
    pub fn prepare(config: Config) -> Result<Arc<Self>, HostError> {
        let store = Store::open(&config.state_dir)?;
        let only = store.lock()?;
        let boot_id = clock::boot_id().map_err(system("reading the boot id"))?;
        let sizes = TableSizes {
            flows4: config.tables.flows4,
            flows6: config.tables.flows6,
            denies: config.tables.denies,
            ring: config.tables.ring_bytes,
            share: config.tables.share(),
        };
        let kernel = Arc::new(Kernel::open(&config.pin_dir, sizes, store.pins().as_ref())?);
        store.set_pins(kernel.pin_state())?;
        let attribution = Arc::new(kernel.with_programs(|programs| {
            Attribution::attach(kernel.dir(), programs, config.attribution)
        })?);
        let hz = clock::ticks_per_second();
        kernel.set_config(datapath_config(&config, hz))?;
        let spool = Spool::open(&config.state_dir.join("spool"), config.flows.spool_bytes)
            .map_err(system("opening the spool"))?;
        let engine = Engine::new(
            Arc::clone(&kernel),
            SystemClock,
            store,
            config.limits,
            boot_id.clone(),
        )?;
        let host = Arc::new(Self {
            kernel,
            attribution,
            engine: Mutex::new(engine),
            spool: Mutex::new(spool),
            spooled: Notify::new(),
            records: broadcast::channel(8192).0,
            recent: Mutex::new(VecDeque::new()),
            changed: watch::channel(0).0,
            readdressed: watch::channel(0).0,
            sources: Mutex::default(),
            names: Mutex::default(),
            attached: Mutex::default(),
            seeded: Mutex::default(),
            last_error: Mutex::default(),
            breaker: Mutex::new(breaker::State::new(config.breaker, &config.state_dir)),
            counters: Counters::default(),
            boot_id,
            hz,
            _lock: only,
            config,
        });
        host.arm()?;
        Ok(host)
    }

    fn arm(&self) -> Result<(), HostError> {
        let addresses = self.own_addresses()?;
        let found = self
            .engine()
            .start(&standalone::endpoints(&self.config, &addresses))?;
        self.refresh_failsafes()?;
        if self.config.policy_dir.is_some() {
            match self.read_policy() {
                Ok(policy) if self.was_rejected(&policy) => self.report_error(
                    &"the policy files hold a change that nobody confirmed; `cofferdam-agent apply` tries it again",
                ),
                // It goes on waiting, also if this host has other addresses by now.
                Ok(policy) if self.is_waiting(&policy) => {
                    lock(&self.sources).waiting = Some(policy.sources);
                }
                Ok(policy) => {
                    self.apply_local(policy, None)?;
                }
                // With a policy before, that one goes on; without, arming would enforce nothing.
                Err(error) if found == Found::Fresh && self.engine().store().good()?.is_none() => {
                    return Err(error);
                }
                Err(error) => self.report_error(&error),
            }
        }
        // Before the first packet too: of a connection that it does not know, a hook takes whoever happens to speak
        // first for the initiator.
        let before = if self.kernel.word().is_learning() {
            self.seed()?
        } else {
            adopt::Seeded::default()
        };
        self.attach_devices()?;
        if self.kernel.word().is_learning() {
            let seeded = before.then(self.seed()?);
            info!(
                adopted = seeded.adopted,
                known = seeded.known,
                "live connections taken over"
            );
            for flow in &seeded.tolerated {
                warn!(local = %flow.local, remote = %flow.remote, direction = flow.direction, reason = flow.reason,
                    "adopted a connection that the policy denies; the next change of policy cuts it");
            }
            *lock(&self.seeded) = seeded;
            self.engine().arm()?;
        }
        self.refresh_names();
        let word = self.kernel.word();
        info!(
            ?found,
            generation = word.generation(),
            slot = word.slot(),
            "armed"
        );
        Ok(())
    }

    fn is_waiting(&self, policy: &LocalPolicy) -> bool {
        let engine = self.engine();
        self.kernel.word().is_pending()
            && engine.store().tried().is_some_and(|(content, sources)| {
                engine
                    .active()
                    .is_some_and(|active| active.digest == content)
                    && sources == standalone::digest(&self.config, &policy.sources)
            })
    }

    fn was_rejected(&self, policy: &LocalPolicy) -> bool {
        let engine = self.engine();
        let Some(rejected) = engine.store().rejected() else {
            return false;
        };
        rejected == hex::encode(policy.snapshot.digest())
            || engine.store().tried().is_some_and(|(content, sources)| {
                content == rejected && sources == standalone::digest(&self.config, &policy.sources)
            })
    }

    fn seed(&self) -> Result<adopt::Seeded, HostError> {
        let connections = sockdiag::connections().map_err(system("listing connections"))?;
        let jiffies = self.kernel.clock()?.jiffies as u32;
        let lookup = self.lookup();
        Ok(adopt::seed(&self.kernel, &connections, jiffies, &lookup)?)
    }

    /// The active content, to be asked in user space.
    #[must_use]
    pub fn lookup(&self) -> Lookup {
        let engine = self.engine();
        let content = engine
            .active()
            .and_then(|active| active.snapshot.as_ref())
            .map(|snapshot| plan::content(snapshot, &engine.timebase()))
            .unwrap_or_default();
        Lookup::new(&content, engine.failsafes())
    }

    /// The engine. Held for as long as a change takes.
    pub fn engine(&self) -> MutexGuard<'_, HostEngine> {
        lock(&self.engine)
    }

    /// The records of the last while, oldest first.
    #[must_use]
    pub fn recent(&self) -> Vec<Arc<Record>> {
        lock(&self.recent).iter().cloned().collect()
    }

    /// Shows records to whoever follows.
    pub fn publish(&self, records: &[Record]) {
        let mut recent = lock(&self.recent);
        for record in records {
            let record = Arc::new(record.clone());
            if recent.len() >= RECENT {
                recent.pop_front();
            }
            recent.push_back(Arc::clone(&record));
            // Nobody follows: fine.
            let _ = self.records.send(record);
        }
    }

    /// Devices that are armed.
    #[must_use]
    pub fn attached(&self) -> Vec<Attached> {
        lock(&self.attached).clone()
    }

    /// What was taken over at arming.
    #[must_use]
    pub fn seeded(&self) -> adopt::Seeded {
        lock(&self.seeded).clone()
    }

    /// The last thing that went wrong without stopping the agent; empty when nothing did.
    #[must_use]
    pub fn last_error(&self) -> String {
        lock(&self.last_error).clone()
    }

    /// Remembers and logs what went wrong.
    pub fn report_error(&self, problem: &dyn std::fmt::Display) {
        error!(error = %problem, "the old content goes on");
        *lock(&self.last_error) = problem.to_string();
    }

    /// Names of rules, as of the last change. Waits for a change that is being made: the kernel may already judge
    /// by it, and its events must find their names.
    #[must_use]
    pub fn names(&self) -> Arc<Names> {
        let mut engine = self.engine();
        engine.refresh_names();
        let newest = engine
            .generations()
            .last_key_value()
            .map(|(generation, _)| *generation);
        let mut names = lock(&self.names);
        if names.newest() != newest {
            *names = Arc::new(Names::new(engine.generations(), engine.failsafes()));
        }
        Arc::clone(&names)
    }

    /// Ticks to UTC, by a fresh common reading.
    ///
    /// # Errors
    /// When the clock program cannot be run.
    pub fn converter(&self) -> Result<Converter, KernelError> {
        let reading = self.kernel.clock()?;
        let lead =
            clock::utc_ns().saturating_sub(i64::try_from(clock::boot_ns()).unwrap_or(i64::MAX));
        Ok(Converter::new(reading, lead, self.hz))
    }

    /// Ticks per second.
    #[must_use]
    pub const fn hz(&self) -> u32 {
        self.hz
    }

    fn refresh_names(&self) {
        let names = {
            let engine = self.engine();
            Names::new(engine.generations(), engine.failsafes())
        };
        *lock(&self.names) = Arc::new(names);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Makes a change of policy.
    ///
    /// # Errors
    /// When it is refused or fails; the old content stays.
    pub fn apply(&self, push: Push) -> Result<Applied, ApplyError> {
        let result = self.apply_watched(push);
        match &result {
            Ok(_) => lock(&self.last_error).clear(),
            Err(error) => self.report_error(error),
        }
        self.refresh_names();
        result
    }

    /// Makes the waiting change final.
    ///
    /// # Errors
    /// When nothing waits.
    pub fn confirm(&self, revision: u64) -> Result<u64, ApplyError> {
        let result = self.engine().confirm(revision);
        if result.is_ok() {
            self.breaker_rests();
            let mut sources = lock(&self.sources);
            if let Some(confirmed) = sources.waiting.take() {
                sources.good = Some(confirmed);
            }
        }
        self.refresh_names();
        result
    }

    /// Compiles the policy directory, numbered after what is applied unless nothing changed.
    ///
    /// # Errors
    /// When there is a problem in the files, or the agent is not standalone.
    pub fn read_policy(&self) -> Result<LocalPolicy, HostError> {
        let dir = self
            .config
            .policy_dir
            .as_ref()
            .ok_or(HostError::NotStandalone)?;
        self.compile(standalone::read_dir(dir)?)
    }

    fn compile(&self, sources: Vec<Source>) -> Result<LocalPolicy, HostError> {
        let addresses = self.own_addresses()?;
        let mut snapshot =
            standalone::snapshot(&self.config, &sources, &addresses, clock::utc_ns())?;
        let engine = self.engine();
        if let Some(active) = engine.active() {
            let same = active.digest == hex::encode(snapshot.digest());
            snapshot.revision = if same {
                active.revision()
            } else {
                active.revision().max(engine.fell_back_from()) + 1
            };
        }
        Ok(LocalPolicy { sources, snapshot })
    }

    /// What an operator asked for with `apply`. Content that is enforced already gets no deadline, one that waits
    /// keeps its own, and asked for without a deadline it is confirmed.
    ///
    /// # Errors
    /// When it is refused or fails; the old content stays.
    pub fn apply_asked(
        &self,
        policy: LocalPolicy,
        confirm_within: Option<Duration>,
    ) -> Result<Applied, ApplyError> {
        let same = self.engine().active().is_some_and(|active| {
            active.digest == hex::encode(policy.snapshot.digest())
                && active.revision() == policy.snapshot.revision
        });
        if !same {
            return self.apply_local(policy, confirm_within);
        }
        let word = self.kernel.word();
        if !word.is_pending() {
            return self.apply_local(policy, None);
        }
        if confirm_within.is_none() {
            self.confirm(policy.snapshot.revision)?;
            return self.apply_local(policy, None);
        }
        // About to fall back: then it is a change like any other.
        let now = clock::boot_ns() / 1_000_000_000;
        let waits = word.deadline() > now + 1;
        self.apply_local(policy, confirm_within.filter(|_| !waits))
    }

    /// Makes a compiled policy directory what is enforced.
    ///
    /// # Errors
    /// When it is refused or fails; the old content stays.
    pub fn apply_local(
        &self,
        policy: LocalPolicy,
        confirm_within: Option<Duration>,
    ) -> Result<Applied, ApplyError> {
        let digest = standalone::digest(&self.config, &policy.sources);
        if confirm_within.is_some() {
            let content = hex::encode(policy.snapshot.digest());
            self.engine().store().set_tried(&content, &digest)?;
        }
        let applied = self.apply(Push {
            confirm_within,
            ..Push::now(policy.snapshot)
        })?;
        if applied.deadline.is_none() {
            let engine = self.engine();
            if engine
                .store()
                .tried()
                .is_some_and(|(_, tried)| tried == digest)
            {
                engine.store().set_rejected(None)?;
            }
        }
        let mut sources = lock(&self.sources);
        if applied.deadline.is_some() {
            sources.waiting = Some(policy.sources);
        } else {
            *sources = Sources {
                good: Some(policy.sources),
                waiting: None,
            };
        }
        Ok(applied)
    }

    fn forget_waiting(&self) {
        lock(&self.sources).waiting = None;
    }

    /// Own addresses changed: what was applied last is compiled again for the new ones (the files may have
    /// been edited since, and that is not for us to apply), and the controller is told.
    fn readdress(&self) -> Result<(), HostError> {
        self.readdressed.send_modify(|count| *count += 1);
        let sources = lock(&self.sources).good.clone();
        if let Some(sources) = sources
            && !self.kernel.word().is_pending()
        {
            let policy = self.compile(sources)?;
            self.apply_local(policy, None)?;
        }
        Ok(())
    }

    /// Writes the failsafes from the configuration; the controller's address is looked up anew.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn refresh_failsafes(&self) -> Result<(), ApplyError> {
        let needs = Needs {
            controllers: self.controller_addresses(),
            resolvers: self.config.resolvers(),
            management: self
                .config
                .failsafes
                .management
                .iter()
                .map(|entry| (entry.cidr, entry.ports.clone()))
                .collect(),
            forensic: self
                .config
                .failsafes
                .forensic
                .iter()
                .map(|entry| (entry.cidr, entry.port))
                .collect(),
        };
        let wanted = failsafes::list(&needs);
        let mut engine = self.engine();
        if engine.failsafes() == wanted.as_slice() {
            return Ok(());
        }
        engine.set_failsafes(wanted)
    }

    /// Where the controller is: what its names resolve to now, and what they resolved to before.
    #[must_use]
    pub fn controller_addresses(&self) -> Vec<SocketAddr> {
        let file = self.config.state_dir.join("controller.json");
        let mut known: Vec<SocketAddr> = std::fs::read(&file)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        let mut now: Vec<SocketAddr> = Vec::new();
        for endpoint in &self.config.controller.endpoints {
            match endpoint.to_socket_addrs() {
                Ok(addresses) => now.extend(addresses),
                Err(error) => {
                    warn!(%endpoint, %error, "cannot resolve the controller; its last addresses stay allowed")
                }
            }
        }
        if !now.is_empty() {
            known = now;
        }
        if self.config.controller.endpoints.is_empty() {
            return Vec::new();
        }
        known.sort();
        known.dedup();
        if let Ok(bytes) = serde_json::to_vec(&known)
            && let Err(error) = crate::reconcile::store::write_atomically(&file, &bytes, 0o600)
        {
            warn!(%error, "cannot remember the controller's addresses");
        }
        known
    }
}

/// Enters the configured network namespace. Call it before any thread is started.
///
/// # Errors
/// When it cannot be entered.
pub fn enter_netns(config: &Config) -> Result<(), HostError> {
    match &config.netns {
        Some(name) => Ok(netns::enter(name)?),
        None => Ok(()),
    }
}

/// The datapath's settings as the configuration says them; `hz`: kernel ticks per second.
#[must_use]
pub fn datapath_config(config: &Config, hz: u32) -> datapath::abi::Config {
    let mut flags = 0;
    if config.full_table == FullTable::Allow {
        flags |= config_flags::FULL_ALLOW;
    }
    if config.l2 == L2::Drop {
        flags |= config_flags::L2_DROP;
    }
    let interval = config
        .flows
        .deny_interval
        .as_secs()
        .saturating_mul(u64::from(hz));
    datapath::abi::Config {
        panic: 0,
        endpoint: EndpointId::HOST.0,
        flags,
        deny_every: config.flows.deny_every,
        deny_interval: u32::try_from(interval).unwrap_or(u32::MAX / 4),
        timeouts: config.timeouts(hz),
        hz,
        // The kernel's side knows which are configured.
        failsafe_absent: [0; 2],
        epoch: 0,
        pad: 0,
    }
}

impl Host {
    /// Flow timeouts in ticks.
    #[must_use]
    pub fn timeouts(&self) -> [u32; 16] {
        self.config.timeouts(self.hz)
    }

    /// One more flow of the sweep.
    pub(crate) fn note_sweep(&self, flows: u64) {
        self.counters.flows.store(flows, Ordering::Relaxed);
        self.counters
            .swept_at
            .store(clock::boot_ns() / 1_000_000_000, Ordering::Relaxed);
    }
}
