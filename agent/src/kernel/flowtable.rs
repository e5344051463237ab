//! The flow table as user space sees it: mapped sets, and the spill map beside them.
//!
//! User space takes no lock (see `datapath::table`): it reads entries where they lie and moves meta words by
//! compare-and-exchange only. What has to happen under a lock (seeding, taking a spilled entry out) is done by programs
//! that the agent runs in the kernel.

use std::io;
use std::marker::PhantomData;
use std::sync::Arc;

use aya::Pod;
use datapath::abi::{Flow4, Flow6, Tables, maps};
use datapath::flow::{FlowRef, Meta, slot};
use datapath::packet::{V4, V6};
use datapath::table::{self, Tabled, WAYS, bucket_word};
use datapath::word;

use super::mapping::Mapping;
use super::pins::PinDir;
use super::table::Table;
use super::{KernelError, Result};

/// What differs between the families for user space.
pub(crate) trait Mapped: Tabled<Key: Pod + Eq, Flow: Pod> {
    /// Map of the sets.
    const FLOWS: &'static str;
    /// Map of the locks.
    const LOCKS: &'static str;
    /// Map of the spilled entries.
    const SPILL: &'static str;
    /// The key of an entry.
    fn key_of(flow: &Self::Flow) -> Self::Key;
    /// The meta word of an entry's line 0.
    fn meta_of(flow: &Self::Flow) -> Meta;
}

impl Mapped for V4 {
    const FLOWS: &'static str = maps::FLOWS4;
    const LOCKS: &'static str = maps::LOCKS4;
    const SPILL: &'static str = maps::SPILL4;

    fn key_of(flow: &Flow4) -> Self::Key {
        let [line, _] = &flow.lines;
        line.key
    }

    fn meta_of(flow: &Flow4) -> Meta {
        let [line, _] = &flow.lines;
        Meta(line.meta)
    }
}

impl Mapped for V6 {
    const FLOWS: &'static str = maps::FLOWS6;
    const LOCKS: &'static str = maps::LOCKS6;
    const SPILL: &'static str = maps::SPILL6;

    fn key_of(flow: &Flow6) -> Self::Key {
        let [line, _] = &flow.lines;
        line.key
    }

    fn meta_of(flow: &Flow6) -> Meta {
        let [line, _] = &flow.lines;
        Meta(line.meta)
    }
}

/// Where an entry lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// In a way of a set, counted through the whole array.
    Slot(u32),
    /// In the spill map.
    Spilled,
}

/// One family's table.
#[derive(Debug)]
pub(crate) struct FlowTable<F: Mapped> {
    sets: Mapping,
    locks: Mapping,
    buckets: Arc<Mapping>,
    spill: Table<F::Key, F::Flow>,
    tables: Tables,
    family: PhantomData<fn() -> F>,
}

impl<F: Mapped> FlowTable<F> {
    /// Maps what is pinned.
    pub(crate) fn open(dir: &PinDir, tables: Tables, buckets: Arc<Mapping>) -> Result<Self> {
        let map = |name: &'static str, value: usize| {
            let path = dir.map(name);
            Mapping::open(&path, value).map_err(|source| KernelError::pin(&path, source))
        };
        let path = dir.map(F::SPILL);
        Ok(Self {
            sets: map(F::FLOWS, WAYS as usize * size_of::<F::Flow>())?,
            locks: map(F::LOCKS, 8)?,
            buckets,
            spill: Table::open(&path).map_err(|source| KernelError::pin(&path, source))?,
            tables,
            family: PhantomData,
        })
    }

    /// The entry in a slot.
    fn entry(&self, index: u32) -> Option<FlowRef<F>> {
        let set = self.sets.at(index / WAYS)?;
        // SAFETY: a whole set, mapped for as long as `self` lives.
        Some(unsafe { table::way(set, index % WAYS) })
    }

    /// Calls `each` with a copy of every entry: in use, about to be closed, or closed and not yet told.
    ///
    /// # Errors
    /// When the spill map cannot be read.
    pub(crate) fn for_each(&self, mut each: impl FnMut(Place, F::Flow)) -> io::Result<()> {
        for index in 0..self.sets.len() * WAYS {
            if let Some(flow) = self.read(index) {
                each(Place::Slot(index), flow);
            }
        }
        self.spill.for_each(|_, flow| each(Place::Spilled, flow))
    }

    /// A copy of the entry in a slot; `None` when it is free, or changed hands while it was read.
    fn read(&self, index: u32) -> Option<F::Flow> {
        let entry = self.entry(index)?;
        let meta = entry.meta();
        if !matches!(meta.slot(), slot::LIVE | slot::CLOSING | slot::CLOSED) {
            return None;
        }
        // SAFETY: a whole entry of the mapping; `Flow` accepts any bytes, and the words are checked below.
        let flow: F::Flow = unsafe { std::ptr::read_volatile(entry.as_ptr().cast()) };
        let after = entry.meta();
        let same = after.sequence() == meta.sequence()
            && matches!(after.slot(), slot::LIVE | slot::CLOSING | slot::CLOSED);
        same.then_some(flow)
    }

    /// Says that slots are to be closed unless a packet comes: the first of two steps, with a grace period between them.
    pub(crate) fn begin_close(&self, index: u32) {
        let Some(entry) = self.entry(index) else {
            return;
        };
        for line in [0, 1] {
            let meta = entry.meta_of(line);
            if meta.slot() == slot::LIVE {
                let closing = Meta::new(meta.generation(), meta.sequence(), slot::CLOSING);
                let _ = entry.exchange_meta_of(line, meta, closing);
            }
        }
    }

    /// Frees a slot if nobody has touched it since [`Self::begin_close`] (or since the kernel closed it) and
    /// `unchanged` says that its counters were told; otherwise the flow goes on. A grace period must lie between.
    pub(crate) fn finish_close(&self, index: u32, unchanged: impl Fn(&F::Flow) -> bool) -> bool {
        let Some(entry) = self.entry(index) else {
            return false;
        };
        let meta = entry.meta();
        if !matches!(meta.slot(), slot::CLOSING | slot::CLOSED) {
            return false;
        }
        let closed = Meta::new(meta.generation(), meta.sequence(), slot::CLOSED);
        let told = self.read(index).is_some_and(|flow| unchanged(&flow));
        if meta.slot() == slot::CLOSING {
            let quiet = entry.meta_of(1).slot() == slot::CLOSING;
            if !(told && quiet && entry.exchange_meta(meta, closed)) {
                self.revive(entry, meta);
                return false;
            }
        } else if !told {
            return false;
        }
        let flags = entry.line(true).flags();
        let bucket = table::bucket_of(&self.tables, entry);
        let free = Meta::new(0, meta.sequence(), slot::FREE);
        // Whoever looks at line 1 only must not find it; the kernel may take a closed slot for itself meanwhile.
        if !entry.exchange_meta(closed, free) {
            return false;
        }
        let mut change = bucket_word::ENTRY;
        if !flags.is_proven() {
            change += bucket_word::UNPROVEN;
        }
        if let Some(word) = self.buckets.word(bucket) {
            // SAFETY: a live word of the mapping.
            unsafe { word::add(word, change.wrapping_neg()) };
        }
        true
    }

    /// Takes back what [`Self::begin_close`] said, where no packet has done so.
    fn revive(&self, entry: FlowRef<F>, meta: Meta) {
        let live = Meta::new(meta.generation(), meta.sequence(), slot::LIVE);
        if entry.exchange_meta(meta, live) {
            let line = entry.meta_of(1);
            if line.slot() == slot::CLOSING {
                let _ = entry.exchange_meta_of(1, line, live);
            }
        }
    }

    /// Every entry in use.
    pub(crate) fn entries(&self) -> io::Result<Vec<(F::Key, F::Flow)>> {
        let mut found = Vec::new();
        self.for_each(|_, flow| {
            if F::meta_of(&flow).slot() != slot::CLOSED {
                found.push((F::key_of(&flow), flow));
            }
        })?;
        Ok(found)
    }

    /// Writes an entry over the one of the same key: for tests, while no packet is on its way.
    pub(crate) fn put(&self, key: &F::Key, flow: &F::Flow) -> io::Result<()> {
        for index in 0..self.sets.len() * WAYS {
            let is_it =
                |old: F::Flow| F::key_of(&old) == *key && F::meta_of(&old).slot() != slot::CLOSED;
            if self.read(index).is_some_and(is_it)
                && let Some(entry) = self.entry(index)
            {
                // SAFETY: a whole entry of the mapping, and nobody else writes it (see above).
                unsafe { std::ptr::write_volatile(entry.as_ptr().cast(), *flow) };
                return Ok(());
            }
        }
        self.spill.set(key, flow)
    }

    /// Empties the table: for tests, while no packet is on its way.
    pub(crate) fn clear(&self) -> io::Result<()> {
        for index in 0..self.sets.len() * WAYS {
            if let Some(entry) = self.entry(index) {
                // SAFETY: a whole entry of the mapping, and nobody else uses it (see above).
                unsafe { std::ptr::write_bytes(entry.as_ptr(), 0, size_of::<F::Flow>()) };
            }
        }
        let words = (0..self.locks.len()).filter_map(|index| self.locks.word(index));
        let buckets = (0..self.buckets.len()).filter_map(|index| self.buckets.word(index));
        for word in words.chain(buckets) {
            // SAFETY: a live word of the mapping.
            unsafe { word.write_volatile(0) };
        }
        for (key, _) in self.spill.entries()? {
            self.spill.remove(&key)?;
        }
        Ok(())
    }
}
