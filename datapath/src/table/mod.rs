//! The flow table: sets of entries in an array that user space maps, one keyed hash, no helper to find an entry.
//!
//! Who may do what, so that no CPU and no process ever sees half an entry:
//! * **A packet of a proven flow** takes no lock: its line's meta word says LIVE under the active generation, the whole
//!   key is compared, the meta word is read again, then counters are added atomically ([`crate::pipeline`]'s fast path).
//! * **Everything else in the kernel** (openings, state changes, judging again, flows that are not proven) happens under
//!   the set's lock: one word beside the table, taken by compare-and-exchange with a bounded number of tries.
//! * **User space never locks.** It moves meta words by compare-and-exchange only: LIVE → CLOSING; after a grace period,
//!   if no packet came, CLOSING → CLOSED; then it reads the last counters, and CLOSED → FREE. A packet that meets CLOSING
//!   moves it back. Line 0's meta word decides; line 1's follows it.
//! * **A slot is used again** only when it is FREE, or CLOSED by the kernel at least [`RECLAIM_SECONDS`] ago (no program
//!   runs that long, so nobody still adds to it), or held by a flow that is not proven: those are only ever touched under
//!   the lock, so they can be displaced at once. A proven flow is never displaced; a set that is full of them spills into
//!   a hash map, and the lock word counts how many entries of its set are there.

mod key;
mod tool;

use crate::abi::Tables;
use crate::flow::{FlowRef, Meta, bits, slot};
use crate::hash::hash2;
use crate::packet::Family;
use crate::word;

pub use key::{Tabled, Tail};
pub use tool::{Tool, reap, seed};

/// Entries in a set.
pub const WAYS: u32 = 4;
/// Counters of entries by peer address; addresses share one by their hash.
pub const BUCKETS: u32 = 4096;
/// How long a slot that the kernel closed stays untouched.
pub const RECLAIM_SECONDS: u32 = 2;
/// How often a CPU tries for a lock. Holders need about a microsecond, more when they tell of an entry that makes room; a
/// virtual CPU that was taken away from its guest while it held one would need milliseconds, for which nobody waits.
#[cfg(target_arch = "bpf")]
const TRIES: u32 = 1024;
/// How often the word is read between two tries: each of those is a state of its own for the verifier, these are none.
#[cfg(target_arch = "bpf")]
const PAUSE: u32 = 8;
#[cfg(not(target_arch = "bpf"))]
const TRIES: u32 = 1_000_000;

/// Sets of a table with room for so many flows.
#[must_use]
pub const fn sets(flows: u32) -> u32 {
    let sets = flows.div_ceil(WAYS);
    if sets == 0 {
        1
    } else if sets > 1 << 28 {
        1 << 28
    } else {
        sets.next_power_of_two()
    }
}

/// Room in the spill map of a table with room for so many flows.
#[must_use]
pub const fn spill_room(flows: u32) -> u32 {
    let room = flows / 8;
    if room < 4 { 4 } else { room }
}

/// The lock word of a set: locked 1 | instances made, modulo 128 7 | spilled entries 24 | jiffies of the last closing by the kernel 32.
pub mod lock_word {
    /// Somebody holds it.
    pub const LOCKED: u64 = 1;
    /// One instance.
    pub const INSTANCE: u64 = 1 << 1;
    /// Instances, modulo 128.
    pub const INSTANCE_MASK: u64 = 0xfe;
    /// One spilled entry.
    pub const SPILLED: u64 = 1 << 8;
    /// All spilled entries.
    pub const SPILL_MASK: u64 = 0xffff_ff00;
    /// Where the stamp begins.
    pub const STAMP_SHIFT: u32 = 32;
}

/// The counter of a bucket: entries 32 | entries that are not proven 32.
pub mod bucket_word {
    /// One entry.
    pub const ENTRY: u64 = 1;
    /// One entry that is not proven.
    pub const UNPROVEN: u64 = 1 << 32;
}

/// The memory of one family's table.
pub trait Memory<F: Tabled>: Copy {
    /// Geometry and secret.
    fn tables(&self) -> Option<&Tables>;
    /// The first byte of a set.
    fn set(&self, index: u32) -> Option<*mut u8>;
    /// The lock word of a set.
    fn lock_word(&self, index: u32) -> Option<*mut u64>;
    /// The counter of a bucket.
    fn bucket(&self, index: u32) -> Option<*mut u64>;
    /// A spilled entry.
    fn spilled(&self, key: &F::Key) -> Option<FlowRef<F>>;
    /// Spills an entry that `fill` has written into empty memory with this key; false when there is no room.
    fn spill(&self, key: &F::Key, fill: impl FnOnce(FlowRef<F>)) -> bool;
    /// Takes a spilled entry out.
    fn unspill(&self, key: &F::Key) -> bool;
}

/// Where a flow's entry is looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spot {
    /// The set.
    pub set: u32,
    /// The way that is tried first; below [`WAYS`].
    pub start: u32,
}

/// Where the entry of a key is looked for.
#[inline(always)]
pub fn spot<F: Tabled>(tables: &Tables, words: &F::Words) -> Spot {
    let hash = F::hash(words, &tables.secret);
    Spot {
        set: (hash >> 32) as u32 & F::mask(tables),
        start: hash as u32 & (WAYS - 1),
    }
}

/// The entry in a way of the set at `set`.
///
/// # Safety
/// `set` points to a whole set that stays readable and writable for as long as the result is used.
#[inline(always)]
#[must_use]
pub unsafe fn way<F: Family>(set: *mut u8, index: u32) -> FlowRef<F> {
    let offset = (index & (WAYS - 1)) as usize * (2 * F::STRIDE);
    // SAFETY: the way lies inside the set.
    unsafe { FlowRef::new(set.add(offset).cast()) }
}

/// Asks the processor for everything that an opening will need of its set: it fetches all of it at once, and not one line
/// after the other behind a locked instruction.
#[inline(always)]
pub fn fetch<F: Tabled, M: Memory<F>>(memory: M, spot: Spot) {
    if let Some(word) = memory.lock_word(spot.set) {
        // SAFETY: a live lock word.
        let _ = unsafe { word::load(word) };
    }
    if let Some(set) = memory.set(spot.set) {
        let mut index = 0;
        while index < WAYS {
            // SAFETY: a whole set of the table.
            let entry: FlowRef<F> = unsafe { way(set, spot.start + index) };
            let _ = entry.meta_of(0);
            if index == 0 {
                // The way that is taken if it is free.
                let _ = entry.meta_of(1);
            }
            index += 1;
        }
    }
}

/// Takes a set's lock; false when it stayed taken (or there is no table).
#[inline(always)]
pub fn lock<F: Tabled, M: Memory<F>>(memory: M, set: u32) -> bool {
    let Some(word) = memory.lock_word(set) else {
        return false;
    };
    let mut tries = 0;
    while tries < TRIES {
        // SAFETY: a live lock word.
        let old = unsafe { word::load(word) };
        if old & lock_word::LOCKED == 0 {
            // SAFETY: as above.
            let seen = unsafe { word::exchange(word, old, old | lock_word::LOCKED) };
            if seen == old {
                return true;
            }
        }
        tries += 1;
        #[cfg(not(target_arch = "bpf"))]
        core::hint::spin_loop();
        #[cfg(target_arch = "bpf")]
        {
            let mut read = 0;
            while read < PAUSE {
                // SAFETY: as above.
                let _ = unsafe { word::load(word) };
                read += 1;
            }
        }
    }
    false
}

/// Gives the lock back. Only for whom [`lock`] answered true.
#[inline(always)]
pub fn unlock<F: Tabled, M: Memory<F>>(memory: M, set: u32) {
    if let Some(word) = memory.lock_word(set) {
        // SAFETY: a live lock word whose lowest bit is 1: taking 1 away clears it. An addition, because user space takes
        // spilled entries off the same word at any time.
        unsafe { word::add(word, u64::MAX) };
    }
}

/// The entry of a flow in the array. The caller holds the set's lock. An entry that user space was about to close goes on
/// living.
#[inline(always)]
pub fn find<F: Tabled, M: Memory<F>>(
    memory: M,
    spot: Spot,
    words: &F::Words,
) -> Option<FlowRef<F>> {
    let set = memory.set(spot.set)?;
    let mut index = 0;
    while index < WAYS {
        // SAFETY: a whole set of the table.
        let entry: FlowRef<F> = unsafe { way(set, spot.start + index) };
        if entry.has_key(words) && revive(entry) {
            return Some(entry);
        }
        index += 1;
    }
    None
}

/// Whether entries of the set are in the hash map.
#[inline(always)]
pub fn has_spilled<F: Tabled, M: Memory<F>>(memory: M, set: u32) -> bool {
    match memory.lock_word(set) {
        // SAFETY: a live lock word.
        Some(word) => (unsafe { word::load(word) }) & lock_word::SPILL_MASK != 0,
        None => false,
    }
}

/// Counts an entry that is about to be spilled: before, so that nobody misses it.
#[inline(always)]
pub fn spilled_one_more<F: Tabled, M: Memory<F>>(memory: M, set: u32) {
    if let Some(word) = memory.lock_word(set) {
        // SAFETY: a live lock word.
        unsafe { word::add(word, lock_word::SPILLED) };
    }
}

/// Takes a spilled entry off the count, after it is gone.
#[inline(always)]
pub fn spilled_one_less<F: Tabled, M: Memory<F>>(memory: M, set: u32) {
    if let Some(word) = memory.lock_word(set) {
        // SAFETY: a live lock word.
        unsafe { word::add(word, lock_word::SPILLED.wrapping_neg()) };
    }
}

/// Whether an entry is in use; one that was about to be closed is taken back.
#[inline(always)]
fn revive<F: Family>(entry: FlowRef<F>) -> bool {
    let meta = entry.meta();
    let live = Meta::new(meta.generation(), meta.sequence(), slot::LIVE);
    match meta.slot() {
        // Line 1 may still say CLOSING, from user space that went away between the two.
        slot::LIVE => {
            if entry.meta_of(1) != live {
                entry.set_meta(live);
            }
            true
        }
        slot::CLOSING if entry.exchange_meta(meta, live) => {
            entry.set_meta(live);
            true
        }
        _ => false,
    }
}

/// Ends an entry of the array without taking its counters: user space reads them when no packet can add to them any more.
/// The caller holds the lock.
#[inline(always)]
pub fn retire<F: Tabled, M: Memory<F>>(memory: M, set: u32, entry: FlowRef<F>, jiffies: u32) {
    let meta = entry.meta();
    entry.set_meta(Meta::new(meta.generation(), meta.sequence(), slot::CLOSED));
    if let Some(word) = memory.lock_word(set) {
        // SAFETY: a live lock word; the stamp is only written under the lock, and an addition leaves the counts alone.
        unsafe {
            let old = (word::load(word) >> lock_word::STAMP_SHIFT) as u32;
            let change = u64::from(jiffies.wrapping_sub(old)) << lock_word::STAMP_SHIFT;
            word::add(word, change);
        }
    }
}

/// Whether whatever the kernel closed in this set may be used again.
#[inline(always)]
pub fn is_settled<F: Tabled, M: Memory<F>>(memory: M, set: u32, jiffies: u32, hz: u32) -> bool {
    match memory.lock_word(set) {
        Some(word) => {
            // SAFETY: a live lock word.
            let stamp = (unsafe { word::load(word) } >> lock_word::STAMP_SHIFT) as u32;
            // One tick more: the stamp's tick may just have been ending.
            jiffies.wrapping_sub(stamp) > hz.wrapping_mul(RECLAIM_SECONDS)
        }
        None => false,
    }
}

/// The sequence of the next instance in a set. The caller holds the lock. Two instances of one tuple differ, even if one
/// displaced the other within the same tick.
#[inline(always)]
pub fn next_sequence<F: Tabled, M: Memory<F>>(memory: M, set: u32, jiffies: u32) -> u32 {
    let Some(word) = memory.lock_word(set) else {
        return jiffies << 7;
    };
    // SAFETY: a live lock word; the counter is only written under the lock, and an addition leaves the rest alone.
    unsafe {
        let before = word::load(word) & lock_word::INSTANCE_MASK;
        let wraps = before == lock_word::INSTANCE_MASK;
        let change = if wraps {
            lock_word::INSTANCE_MASK.wrapping_neg()
        } else {
            lock_word::INSTANCE
        };
        word::add(word, change);
        let count = if wraps {
            0
        } else {
            before + lock_word::INSTANCE
        };
        (jiffies << 7) | (count >> 1) as u32
    }
}

/// The bucket of an entry's peer.
#[inline(always)]
pub fn bucket_of<F: Tabled>(tables: &Tables, entry: FlowRef<F>) -> u32 {
    let verdict = entry.line(true).flags().verdict();
    hashed(tables, &entry.end(peer_is_lo(verdict)))
}

/// Whether the lower end of the key is the peer: who began a flow that came in, who was asked by one that went out.
#[inline(always)]
#[must_use]
pub const fn peer_is_lo(verdict: u8) -> bool {
    (verdict & bits::EGRESS != 0) == (verdict & bits::INITIATOR_HI != 0)
}

/// The bucket of an address.
#[inline(always)]
pub fn bucket<F: Tabled>(tables: &Tables, addr: &F::Addr) -> u32 {
    hashed(tables, &F::mapped_words(addr))
}

#[inline(always)]
fn hashed(tables: &Tables, addr: &[u64; 2]) -> u32 {
    (hash2(addr, &tables.secret) >> 32) as u32 & (BUCKETS - 1)
}

/// Entries of a bucket.
#[inline(always)]
pub fn entries<F: Tabled, M: Memory<F>>(memory: M, bucket: u32) -> u32 {
    match memory.bucket(bucket) {
        // SAFETY: a live counter.
        Some(word) => unsafe { word::load(word) as u32 },
        None => 0,
    }
}

/// Entries of a bucket that are not proven.
#[inline(always)]
pub fn unproven<F: Tabled, M: Memory<F>>(memory: M, bucket: u32) -> u32 {
    match memory.bucket(bucket) {
        // SAFETY: a live counter.
        Some(word) => (unsafe { word::load(word) } >> 32) as u32,
        None => 0,
    }
}

/// Adds to a bucket's counter ([`bucket_word`]; take away by adding the two's complement).
#[inline(always)]
pub fn count<F: Tabled, M: Memory<F>>(memory: M, bucket: u32, change: u64) {
    if let Some(word) = memory.bucket(bucket) {
        // SAFETY: a live counter.
        unsafe { word::add(word, change) };
    }
}
