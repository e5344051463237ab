//! The shared maps of one agent, opened from their pins: with the programs (the daemon) or without (the
//! operator's commands when no daemon runs).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex};

use datapath::abi::{
    ActiveWord, Clock, Config, Counter, DenyKey, DenyValue, FailsafeKey, FailsafeValue, Flow4,
    Flow6, FragmentKey, FragmentValue, Loss, Negative, Tables, cells, maps, panic, tool,
};
use datapath::drop_reason::DropReason;
use datapath::negative;
use datapath::packet::{V4, V6};
use datapath::table::BUCKETS;
use datapath::word;
use serde::{Deserialize, Serialize};

use super::flowtable::FlowTable;
use super::loader::{self, CLOCK, FOLD, Pins, Programs, REAP, SEED, TableSizes, TimeSource};
use super::mapping::Mapping;
use super::pins::{PinDir, PinState};
use super::sys::{self, TestRun};
use super::table::{ActiveCell, PerCpu, Table, bytes_of};
use super::{KernelError, Result};

/// What an operator's panic switch says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PanicMode {
    /// Policy decides.
    Off,
    /// Everything passes.
    Open,
    /// Only failsafes pass.
    Close,
}

impl PanicMode {
    const fn number(self) -> u32 {
        match self {
            Self::Off => panic::NONE,
            Self::Open => panic::OPEN,
            Self::Close => panic::CLOSE,
        }
    }

    const fn from_number(number: u32) -> Self {
        match number {
            panic::OPEN => Self::Open,
            panic::CLOSE => Self::Close,
            _ => Self::Off,
        }
    }

    /// The word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Open => "open",
            Self::Close => "close",
        }
    }
}

/// Counters of the whole host since the maps were made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Packets and bytes by drop reason (`none` = passed outside tracked flows).
    pub reasons: BTreeMap<String, (u64, u64)>,
    /// Lost records by cause.
    pub losses: BTreeMap<String, u64>,
}

impl Totals {
    /// Packets dropped, whatever the reason.
    #[must_use]
    pub fn drops(&self) -> u64 {
        self.reasons
            .iter()
            .filter(|(name, _)| {
                *name != DropReason::None.name() && *name != DropReason::ModeObserve.name()
            })
            .map(|(_, (packets, _))| packets)
            .sum()
    }
}

/// The shared maps.
pub struct OfflineKernel {
    dir: PinDir,
    active: ActiveCell,
    config: Table<u32, Config>,
    pub(super) clock: Table<u32, Clock>,
    failsafes: Table<FailsafeKey, FailsafeValue>,
    pub(crate) flows4: FlowTable<V4>,
    pub(crate) flows6: FlowTable<V6>,
    pub(crate) denies: Table<DenyKey, DenyValue>,
    pub(super) negatives: Mapping,
    pub(crate) fragments: Table<FragmentKey, FragmentValue>,
    reasons: PerCpu<Counter>,
    losses: PerCpu<u64>,
}

impl OfflineKernel {
    /// Opens what an agent pinned below `root`.
    ///
    /// # Errors
    /// When nothing is pinned there, or a pin has another layout.
    pub fn open(root: &Path) -> Result<Self> {
        Self::open_dir(PinDir::at(root))
    }

    fn open_dir(dir: PinDir) -> Result<Self> {
        fn table<K: aya::Pod, V: aya::Pod>(dir: &PinDir, name: &str) -> Result<Table<K, V>> {
            Table::open(&dir.map(name)).map_err(|source| KernelError::pin(&dir.map(name), source))
        }
        let pin = |name: &str| {
            let path = dir.map(name);
            move |source: io::Error| KernelError::pin(&path, source)
        };
        let tables: Tables = table::<u32, Tables>(&dir, maps::TABLES)?
            .get(&0)
            .map_err(KernelError::map(maps::TABLES, "read"))?
            .unwrap_or_default();
        let path = dir.map(maps::BUCKETS);
        let buckets =
            Arc::new(Mapping::open(&path, 8).map_err(|source| KernelError::pin(&path, source))?);
        if buckets.len() != BUCKETS {
            return Err(KernelError::pin(&path, io::ErrorKind::InvalidData.into()));
        }
        Ok(Self {
            active: ActiveCell::open(&dir.map(maps::ACTIVE)).map_err(pin(maps::ACTIVE))?,
            config: table(&dir, maps::CONFIG)?,
            clock: table(&dir, maps::CLOCK)?,
            failsafes: table(&dir, maps::FAILSAFES)?,
            flows4: FlowTable::open(&dir, tables, Arc::clone(&buckets))?,
            flows6: FlowTable::open(&dir, tables, buckets)?,
            denies: table(&dir, maps::DENIES)?,
            negatives: Mapping::open(&dir.map(maps::NEGATIVES), size_of::<Negative>())
                .map_err(pin(maps::NEGATIVES))?,
            fragments: table(&dir, maps::FRAGMENTS)?,
            reasons: PerCpu::open(&dir.map(maps::REASONS)).map_err(pin(maps::REASONS))?,
            losses: PerCpu::open(&dir.map(maps::LOSSES)).map_err(pin(maps::LOSSES))?,
            dir,
        })
    }

    /// Where the pins are.
    #[must_use]
    pub const fn dir(&self) -> &PinDir {
        &self.dir
    }

    /// What is active.
    #[must_use]
    pub fn word(&self) -> ActiveWord {
        self.active.load()
    }

    /// Activates a word in place of the one that was looked at.
    ///
    /// # Errors
    /// When somebody else was faster.
    pub fn exchange(&self, old: ActiveWord, new: ActiveWord) -> Result<()> {
        self.active
            .exchange(old, new)
            .map_err(|found| KernelError::Raced {
                expected: old.generation(),
                found: found.generation(),
            })
    }

    /// The datapath's settings.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn config(&self) -> Result<Config> {
        self.config
            .get(&0)
            .map(Option::unwrap_or_default)
            .map_err(KernelError::map(maps::CONFIG, "read"))
    }

    /// Writes the datapath's settings; the panic switch stays as it is.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_config(&self, mut config: Config) -> Result<()> {
        let now = self.config()?;
        config.panic = now.panic;
        (config.failsafe_absent, config.epoch) = (now.failsafe_absent, now.epoch);
        self.config
            .set(&0, &config)
            .map_err(KernelError::map(maps::CONFIG, "write"))
    }

    /// The panic switch.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn panic(&self) -> Result<PanicMode> {
        Ok(PanicMode::from_number(self.config()?.panic))
    }

    /// Throws the panic switch. Flows that began while everything passed are judged again afterwards.
    ///
    /// # Errors
    /// When the map cannot be written or read back.
    pub fn set_panic(&self, mode: PanicMode) -> Result<()> {
        let mut config = self.config()?;
        config.panic = mode.number();
        self.config
            .set(&0, &config)
            .map_err(KernelError::map(maps::CONFIG, "write"))?;
        if self.panic()? != mode {
            return Err(KernelError::Map {
                map: maps::CONFIG.into(),
                what: "read back the panic switch",
                source: io::ErrorKind::InvalidData.into(),
            });
        }
        for _ in 0..8 {
            let word = self.word();
            if word.is_empty() {
                return Ok(());
            }
            // Past the generation that a fall-back would take.
            let next = ActiveWord(
                (word.0 & 0xffff_ffff) | (u64::from(word.generation().wrapping_add(2)) << 32),
            );
            if self.exchange(word, next).is_ok() {
                return Ok(());
            }
        }
        let word = self.word();
        Err(KernelError::Raced {
            expected: word.generation(),
            found: word.generation(),
        })
    }

    /// Makes the failsafe map hold exactly these entries; additions first.
    ///
    /// # Errors
    /// When the map cannot be written or differs when read back.
    pub fn set_failsafes(
        &self,
        wanted: &BTreeMap<Vec<u8>, (FailsafeKey, FailsafeValue)>,
    ) -> Result<()> {
        let write = || KernelError::map(maps::FAILSAFES, "write");
        // Whoever looks for one between here and the end looks at everything that is there.
        self.set_failsafe_absent([0, 0])?;
        for (key, value) in wanted.values() {
            self.failsafes.set(key, value).map_err(write())?;
        }
        let read = |table: &Table<FailsafeKey, FailsafeValue>| -> Result<BTreeMap<Vec<u8>, FailsafeValue>> {
            Ok(table
                .entries()
                .map_err(KernelError::map(maps::FAILSAFES, "read"))?
                .into_iter()
                .map(|(key, value)| (content_key(&key), value))
                .collect())
        };
        for key in read(&self.failsafes)?.into_keys() {
            if !wanted.contains_key(&key)
                && let Some(key) = super::table::from_bytes::<FailsafeKey>(&key)
            {
                self.failsafes.remove(&key).map_err(write())?;
            }
        }
        let is = read(&self.failsafes)?;
        let fits = is.len() == wanted.len()
            && is
                .iter()
                .all(|(key, value)| wanted.get(key).is_some_and(|(_, meant)| meant == value));
        if fits {
            self.set_failsafe_absent(absent_failsafes(wanted.values().map(|(key, _)| key)))
        } else {
            Err(KernelError::ReadBack {
                slot: 0,
                map: maps::FAILSAFES,
                read: is.len(),
                written: wanted.len(),
            })
        }
    }

    fn set_failsafe_absent(&self, absent: [u64; 2]) -> Result<()> {
        let mut config = self.config()?;
        config.failsafe_absent = absent;
        // What was denied before is asked again.
        config.epoch = config.epoch.wrapping_add(1);
        self.config
            .set(&0, &config)
            .map_err(KernelError::map(maps::CONFIG, "write"))
    }

    /// Counters of the whole host.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn totals(&self) -> Result<Totals> {
        let mut totals = Totals::default();
        for reason in DropReason::ALL {
            let values = self
                .reasons
                .get(u32::from(*reason as u8))
                .map_err(KernelError::map(maps::REASONS, "read"))?;
            let sum = values.iter().fold((0, 0), |(packets, bytes), value| {
                (packets + value.packets, bytes + value.bytes)
            });
            if sum.0 > 0 {
                totals.reasons.insert(reason.name().to_owned(), sum);
            }
        }
        for loss in Loss::ALL {
            let values = self
                .losses
                .get(loss as u32)
                .map_err(KernelError::map(maps::LOSSES, "read"))?;
            totals
                .losses
                .insert(loss.name().to_owned(), values.iter().sum());
        }
        Ok(totals)
    }

    /// The last reading that the clock program made.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn last_clock(&self) -> Result<Clock> {
        self.clock
            .get(&0)
            .map(Option::unwrap_or_default)
            .map_err(KernelError::map(maps::CLOCK, "read"))
    }

    /// Waits until every packet that is on its way through the programs now has left them.
    pub(crate) fn wait_for_packets(&self) {
        if let Err(error) = sys::grace_period() {
            tracing::debug!(%error, "no membarrier: waiting longer than any program runs");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }

    /// Takes an aggregated denial out if it is still what the caller recorded.
    pub(crate) fn take_denial(
        &self,
        key: &DenyKey,
        unchanged: impl Fn(&DenyValue) -> bool,
    ) -> Result<bool> {
        self.denies
            .take_if(key, unchanged)
            .map_err(KernelError::map(maps::DENIES, "delete from"))
    }

    /// Flows in both tables.
    ///
    /// # Errors
    /// When a table cannot be read.
    pub fn flow_count(&self) -> Result<u64> {
        let mut count = 0;
        self.flows4
            .for_each(|_, flow| count += u64::from(is_in_use::<V4>(&flow)))
            .map_err(KernelError::map(maps::FLOWS4, "read"))?;
        self.flows6
            .for_each(|_, flow| count += u64::from(is_in_use::<V6>(&flow)))
            .map_err(KernelError::map(maps::FLOWS6, "read"))?;
        Ok(count)
    }
}

/// Whether an entry counts as a flow: one that is closed only waits to be told.
fn is_in_use<F: super::flowtable::Mapped>(flow: &F::Flow) -> bool {
    F::meta_of(flow).slot() != datapath::flow::slot::CLOSED
}

/// The shared maps and the loaded programs.
pub struct Kernel {
    maps: OfflineKernel,
    programs: Mutex<Programs>,
    pins: Pins,
    state: PinState,
}

impl std::ops::Deref for Kernel {
    type Target = OfflineKernel;

    fn deref(&self) -> &OfflineKernel {
        &self.maps
    }
}

impl Kernel {
    /// Prepares the pin directory, loads the object over what is pinned, opens the maps. Nothing is attached.
    ///
    /// # Errors
    /// When the kernel lacks what the agent needs, or the kernel or the file system refuses.
    pub fn open(root: &Path, sizes: TableSizes, remembered: Option<&PinState>) -> Result<Self> {
        Self::open_object(root, sizes, remembered, loader::embedded()?)
    }

    /// As [`Self::open`], with another object than the embedded one: for tests of the tests.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_object(
        root: &Path,
        sizes: TableSizes,
        remembered: Option<&PinState>,
        object: &[u8],
    ) -> Result<Self> {
        Self::open_at(root, sizes, remembered, object, TimeSource::Kernel)
    }

    /// As [`Self::open_object`], with a choice of the time.
    pub(super) fn open_at(
        root: &Path,
        sizes: TableSizes,
        remembered: Option<&PinState>,
        object: &[u8],
        time: TimeSource,
    ) -> Result<Self> {
        super::features::refuse_unsupported()?;
        let dir = PinDir::prepare(root)?;
        let boot_id =
            super::clock::boot_id().map_err(KernelError::system("reading the boot id"))?;
        let remembered = remembered.filter(|state| state.boot_id == boot_id);
        let (programs, pins) = loader::load(&dir, sizes, remembered, object, time)?;
        prepare_tables(&dir, sizes)?;
        let state = dir.state(&boot_id)?;
        Ok(Self {
            maps: OfflineKernel::open_dir(dir)?,
            programs: Mutex::new(programs),
            pins,
            state,
        })
    }

    /// What was found at the pins.
    #[must_use]
    pub const fn pins(&self) -> &Pins {
        &self.pins
    }

    /// The ids of the pins, for the state file.
    #[must_use]
    pub const fn pin_state(&self) -> &PinState {
        &self.state
    }

    /// Calls `use_it` with the programs.
    pub fn with_programs<T>(&self, use_it: impl FnOnce(&mut Programs) -> T) -> T {
        let mut programs = self
            .programs
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        use_it(&mut programs)
    }

    /// Reads jiffies and boot time together, by a run of the clock program.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub fn clock(&self) -> Result<Clock> {
        self.test_run(CLOCK, &[0u8; 64], 1)?;
        self.last_clock()
    }

    /// Makes an IPv4 flow; `false` when it was there.
    ///
    /// # Errors
    /// When the table has no room, or the kernel refuses.
    pub fn insert_flow4(&self, flow: &Flow4) -> Result<bool> {
        self.tool(SEED[0], bytes_of(flow), maps::FLOWS4)
    }

    /// Makes an IPv6 flow; `false` when it was there.
    ///
    /// # Errors
    /// When the table has no room, or the kernel refuses.
    pub fn insert_flow6(&self, flow: &Flow6) -> Result<bool> {
        self.tool(SEED[1], bytes_of(flow), maps::FLOWS6)
    }

    /// Takes a spilled IPv4 flow out if it still is what `seen` says; `false` when it is not.
    pub(crate) fn reap4(&self, seen: &Flow4) -> Result<bool> {
        self.tool(REAP[0], bytes_of(seen), maps::SPILL4)
    }

    /// Takes a spilled IPv6 flow out if it still is what `seen` says; `false` when it is not.
    pub(crate) fn reap6(&self, seen: &Flow6) -> Result<bool> {
        self.tool(REAP[1], bytes_of(seen), maps::SPILL6)
    }

    /// Moves what negative entries have counted to the aggregates of denials.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn fold_negatives(&self) -> Result<()> {
        for slot in 0..self.negatives.len() {
            let Some(entry) = self.negatives.at(slot) else {
                continue;
            };
            // SAFETY: a whole entry of the mapping; the word is read in one go.
            let counted = unsafe {
                negative::has_counted(word::load(&raw const (*entry.cast::<Negative>()).pending))
            };
            if counted {
                self.tool(FOLD, &slot.to_ne_bytes(), maps::NEGATIVES)?;
            }
        }
        Ok(())
    }

    /// Runs a program that changes a table, over one entry.
    fn tool(&self, program: &'static str, entry: &[u8], map: &'static str) -> Result<bool> {
        let mut frame = vec![0u8; tool::OFFSET as usize];
        frame.extend_from_slice(entry);
        let failed = |what, kind: io::ErrorKind| KernelError::map(map, what)(kind.into());
        match self.test_run(program, &frame, 1)?.retval {
            tool::DONE => Ok(true),
            tool::DECLINED => Ok(false),
            tool::FULL => Err(failed(
                "find room for a connection in",
                io::ErrorKind::StorageFull,
            )),
            _ => Err(failed("change", io::ErrorKind::ResourceBusy)),
        }
    }

    /// Runs one of the programs over a frame.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn test_run(&self, program: &'static str, frame: &[u8], repeat: u32) -> Result<TestRun> {
        self.with_programs(|programs| {
            programs.with(program, |fd| sys::test_run(fd.as_fd(), frame, None, repeat))
        })?
        .map_err(KernelError::system("running a program once"))
    }
}

/// Tells the programs how large the flow tables are, and gives new tables a secret of their own.
fn prepare_tables(dir: &PinDir, sizes: TableSizes) -> Result<()> {
    let path = dir.map(maps::TABLES);
    let map: Table<u32, Tables> =
        Table::open(&path).map_err(|source| KernelError::pin(&path, source))?;
    let mut tables = map
        .get(&0)
        .map_err(KernelError::map(maps::TABLES, "read"))?
        .unwrap_or_default();
    // Where entries are depends on the secret: it lives as long as they do.
    if tables.secret == [0; datapath::hash::SECRET_WORDS] {
        for word in &mut tables.secret {
            let mut bytes = [0; 4];
            sys::random(&mut bytes).map_err(KernelError::system("asking for random bytes"))?;
            *word = u32::from_ne_bytes(bytes);
        }
    }
    tables.mask4 = datapath::table::sets(sizes.flows4) - 1;
    tables.mask6 = datapath::table::sets(sizes.flows6) - 1;
    tables.share = sizes.share;
    map.set(&0, &tables)
        .map_err(KernelError::map(maps::TABLES, "write"))
}

/// [`Config::failsafe_absent`] where these failsafes are configured and no others.
fn absent_failsafes<'a>(keys: impl Iterator<Item = &'a FailsafeKey>) -> [u64; 2] {
    let mut present = [0u64; 2];
    for key in keys {
        if let Some(bits) = present.get_mut(usize::from(key.direction)) {
            *bits |= 1 << cells::bit(key.protocol, key.port);
        }
    }
    present.map(|bits| !bits)
}

/// The bytes of a key, to be used as a key of an ordered map.
pub(crate) fn content_key<K: aya::Pod>(key: &K) -> Vec<u8> {
    bytes_of(key).to_vec()
}
