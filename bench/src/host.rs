//! A host under measurement: the agent's own object and maps, filled with a policy, nothing attached.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;

use agent::config::Config;
use agent::daemon::datapath_config;
use agent::kernel::loader::{EGRESS, INGRESS, TableSizes};
use agent::kernel::ring::Events;
use agent::kernel::{Kernel, clock};
use anyhow::{Context, Result, bail};
use datapath::abi::{ActiveWord, Event, event_kind, maps};
use datapath::drop_reason::DropReason;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::content::content;
use crate::frames::{Family, PEERS, SERVICE, Segment, frame};
use crate::programs::{self, End, Order, PASSED, Rewrite};
use crate::sys;

pub(crate) const BPFFS: &str = "/sys/fs/bpf";
/// Packets between two emptyings of the ring: their notices fit into it.
pub(crate) const RING_ROOM: u32 = 16_384;

/// Gives this process a bpffs that nobody else sees: the kernel forgets the pins with the process. Call it before any
/// thread is started.
pub(crate) fn private_bpffs() -> Result<()> {
    let none: Option<&Path> = None;
    unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace of its own needs root")?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none).context("mounting bpffs")
}

/// The capacities that the agent has unless it is told otherwise; for IPv6 as many as for IPv4, so that 65,536 flows lie as
/// they would in a table that is not full.
pub(crate) fn default_sizes() -> TableSizes {
    let tables = Config::default().tables;
    TableSizes {
        flows4: tables.flows4,
        flows6: tables.flows4,
        denies: tables.denies,
        ring: tables.ring_bytes,
        share: 0,
    }
}

/// Kernel side, ring and programs.
pub(crate) struct Host {
    pub(crate) kernel: Kernel,
    pub(crate) rules: u32,
    pub(crate) sizes: TableSizes,
    pub(crate) ingress: OwnedFd,
    pub(crate) egress: OwnedFd,
    events: Mutex<Events>,
}

/// What happened on a host, to be compared with what should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    reasons: BTreeMap<String, (u64, u64)>,
    losses: BTreeMap<String, u64>,
}

impl Host {
    /// Loads the agent's object over tables of its own and activates a policy of so many rules.
    pub(crate) fn open(name: &str, rules: u32, sizes: TableSizes) -> Result<Self> {
        let root = Path::new(BPFFS).join(format!("cofferdam-bench-{name}"));
        let kernel = Kernel::open(&root, sizes, None)?;
        kernel.set_config(datapath_config(
            &Config::default(),
            clock::ticks_per_second(),
        ))?;
        let meant = content(rules);
        if kernel.fill(0, &meant)? != meant.digest() {
            bail!("the policy was not read back as it was written");
        }
        kernel.exchange(kernel.word(), ActiveWord::committed(1, 0))?;
        Ok(Self {
            ingress: kernel.program_fd(INGRESS)?,
            egress: kernel.program_fd(EGRESS)?,
            events: Mutex::new(Events::open(&kernel.dir().map(maps::EVENTS))?),
            kernel,
            rules,
            sizes,
        })
    }

    /// Opens flows 0 to `count` by their handshakes: SYN and ACK through the ingress program, the answer through the
    /// egress program.
    pub(crate) fn establish(&self, family: Family, count: u32) -> Result<()> {
        let before = self.kernel.flow_count()?;
        // All SYNs come first, and where more than four flows share a set, half-open ones make room for each other: a
        // second round of handshakes finds the others proven, and gets its place beside the set.
        self.handshakes(family, count)?;
        self.handshakes(family, count)?;
        let flows = self.kernel.flow_count()? - before;
        if flows != u64::from(count) {
            bail!("{count} handshakes made {flows} flows");
        }
        Ok(())
    }

    fn handshakes(&self, family: Family, count: u32) -> Result<()> {
        for (segment, end, program) in [
            (Segment::Syn, End::Source, &self.ingress),
            (Segment::SynAck, End::Destination, &self.egress),
            (Segment::Ack, End::Source, &self.ingress),
        ] {
            let what = Rewrite {
                family,
                end,
                base: PEERS,
                peers: self.rules,
                order: Order::Sequence,
                first: 0,
            };
            let rewriter = programs::rewriter(&what, program.as_fd())?;
            let frame = frame(family, PEERS, 0, SERVICE, segment);
            let mut left = count;
            while left > 0 {
                let runs = left.min(RING_ROOM);
                let burst = sys::test_run(rewriter.as_fd(), &frame, runs)?;
                if burst.retval != PASSED {
                    bail!("{segment:?} of a flow that policy allows was not let through");
                }
                self.take_new();
                left -= runs;
            }
        }
        Ok(())
    }

    /// Empties the ring; says how many new flows were announced in it.
    pub(crate) fn take_new(&self) -> u64 {
        let mut found: Vec<Event> = Vec::new();
        self.events
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .drain(usize::MAX, &mut found);
        let new = |event: &&Event| event.kind == event_kind::NEW;
        found.iter().filter(new).count() as u64
    }

    /// Counters as they stand.
    pub(crate) fn seen(&self) -> Result<Seen> {
        let totals = self.kernel.totals()?;
        Ok(Seen {
            reasons: totals.reasons,
            losses: totals.losses,
        })
    }

    /// What every pinned map occupies: name, bytes, capacity.
    pub(crate) fn memory(&self) -> Result<Vec<(String, u64, u64)>> {
        let mut found = Vec::new();
        let entries = std::fs::read_dir(self.kernel.dir().path()).context("listing the pins")?;
        for entry in entries {
            let path = entry.context("listing the pins")?.path();
            if let (Some(name), Ok((bytes, entries))) = (path.file_name(), sys::map_memory(&path)) {
                found.push((name.to_string_lossy().into_owned(), bytes, entries));
            }
        }
        found.sort();
        Ok(found)
    }
}

impl Seen {
    /// Packets dropped since `before`, by reason.
    pub(crate) fn drops_since(&self, before: &Self) -> BTreeMap<String, u64> {
        let passed = [DropReason::None.name(), DropReason::ModeObserve.name()];
        self.reasons
            .iter()
            .filter(|(name, _)| !passed.contains(&name.as_str()))
            .map(|(name, (packets, _))| {
                let old = before.reasons.get(name).map_or(0, |(packets, _)| *packets);
                (name.clone(), packets - old)
            })
            .filter(|(_, packets)| *packets > 0)
            .collect()
    }

    /// Records lost since `before`, by cause.
    pub(crate) fn losses_since(&self, before: &Self) -> BTreeMap<String, u64> {
        self.losses
            .iter()
            .map(|(name, lost)| {
                let old = before.losses.get(name).copied().unwrap_or(0);
                (name.clone(), lost - old)
            })
            .filter(|(_, lost)| *lost > 0)
            .collect()
    }
}
