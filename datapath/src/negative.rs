//! Negative entries: a SYN that was denied and comes again is denied at the hook, without asking policy again.
//!
//! A table of its own, one entry a slot, found by a keyed hash of the denied tuple without its source port. Whoever is
//! denied for the first time is not in it; only what is denied again takes a slot. An entry holds for one content and one
//! state of the failsafes ([`valid`]), so a new policy makes all of them worthless at once.
//!
//! Packets that an entry denies are counted in its `pending` word, from where they are moved ([`fold_now`]) to the
//! aggregate of their key: by the next packet that goes the whole way, by whoever takes the slot, or by the agent before
//! it reads the aggregates. The word also says which instance of the slot it counts for, so that a packet can never
//! count for the tuple that has just taken the slot: its exchange fails, and it goes the whole way.

use crate::abi::{Config, DenyKey, Negative, panic};
use crate::drop_reason::DropReason;
use crate::hash::hash5;
use crate::ids::{Direction, protocol};
use crate::pipeline::{Aggregated, Denial, Direct, Env, Plain};
use crate::table::Tabled;
use crate::word;

/// Slots; a power of two.
pub const SLOTS: u32 = 4096;

/// The pending word: somebody writes 1 | instance 15 | packets 12 | bytes 36.
mod pending {
    pub(super) const BUSY: u64 = 1 << 63;
    pub(super) const INSTANCE: u64 = 1 << 48;
    pub(super) const INSTANCES: u64 = 0x7fff << 48;
    pub(super) const PACKET: u64 = 1 << 36;
    pub(super) const PACKETS: u64 = 0xfff;
    pub(super) const BYTES: u64 = PACKET - 1;
    /// Packets that are counted here at most; the largest packet has 2^16 bytes.
    pub(super) const ROOM: u64 = 1024;
}

/// What a packet is compared by: both ends, then port, protocol, direction, family and that it asks for a new flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuple(pub [u64; 5]);

impl Tuple {
    /// Of a TCP packet that asks for a new flow; addresses as in [`DenyKey`], the port as it stands in the header.
    #[inline(always)]
    #[must_use]
    pub const fn syn(
        from: [u64; 2],
        to: [u64; 2],
        port: u16,
        direction: Direction,
        family: u8,
    ) -> Self {
        let kind = (direction as u64) | ((family as u64) << 8) | 1 << 16;
        let tail = (port as u64) | ((protocol::TCP as u64) << 16) | (kind << 32);
        Self([from[0], from[1], to[0], to[1], tail])
    }

    /// Of the key of an aggregate.
    #[inline(always)]
    fn of(key: &DenyKey) -> Self {
        let at: *const u32 = core::ptr::from_ref(key).cast();
        // SAFETY: inside the key, which is aligned to 4.
        let half = |index: usize| unsafe { u64::from(core::ptr::read_volatile(at.add(index))) };
        let whole = |index: usize| half(index) | (half(index + 1) << 32);
        let tail = (half(9) & 0x00ff_ffff) | (half(10) << 32);
        Self([whole(0), whole(2), whole(4), whole(6), tail])
    }

    #[inline(always)]
    fn slot(&self, secret: &[u32; crate::hash::SECRET_WORDS]) -> u32 {
        (hash5(&self.0, secret) >> 32) as u32 & (SLOTS - 1)
    }

    /// Whether the entry at `entry` denies this tuple.
    ///
    /// # Safety
    /// `entry` points to a whole entry.
    #[inline(always)]
    unsafe fn is_of(&self, entry: *const Negative) -> bool {
        let [a, b, c, d, tail] = self.0;
        // SAFETY: the key lies behind four words, aligned to 8, and has 44 bytes.
        unsafe {
            let key = (&raw const (*entry).key).cast::<u64>();
            let middle = word::load(key.add(4));
            let last = core::ptr::read_volatile(key.add(5).cast::<u32>());
            let found = ((middle >> 32) & 0x00ff_ffff) | (u64::from(last) << 32);
            (word::load(key) ^ a)
                | (word::load(key.add(1)) ^ b)
                | (word::load(key.add(2)) ^ c)
                | (word::load(key.add(3)) ^ d)
                | (found ^ tail)
                == 0
        }
    }
}

/// What an entry has to say to hold: the content by which it was denied, and the failsafes.
#[inline(always)]
#[must_use]
pub const fn valid(generation: u32, config: &Config) -> u64 {
    ((generation as u64) << 32) | config.epoch as u64
}

/// Whether the packet is a SYN that was denied before and has been denied and counted now.
#[inline(always)]
pub fn denied_again<F: Plain, E: Env<F>, D: Direct>(
    env: E,
    frame: &D,
    direction: Direction,
) -> bool {
    let Some(config) = env.config() else {
        return false;
    };
    let active = env.active();
    if active.is_learning()
        || active.is_pending()
        || active.is_empty()
        || config.panic != panic::NONE
    {
        return false;
    }
    let Some((tuple, packets, bytes)) = F::read_syn(frame, direction) else {
        return false;
    };
    let Some(tables) = env.tables() else {
        return false;
    };
    let Some(entry) = env.negative(tuple.slot(&tables.secret)) else {
        return false;
    };
    let now = env.jiffies();
    // SAFETY: a whole entry, read and written by single words.
    unsafe {
        // This word first: whoever takes the slot changes it before the key.
        let before = word::load(&raw const (*entry).pending);
        if word::load(&raw const (*entry).valid) != valid(active.generation(), config)
            || !tuple.is_of(entry)
        {
            return false;
        }
        let room = u64::from(core::ptr::read_volatile(&raw const (*entry).room));
        let until = core::ptr::read_volatile(&raw const (*entry).until);
        if before & pending::BUSY != 0
            || ((before >> 36) & pending::PACKETS) + packets >= room
            || (config.deny_interval != 0 && now.wrapping_sub(until) <= u32::MAX / 2)
        {
            return false;
        }
        let after = before + packets * pending::PACKET + bytes;
        if word::exchange(&raw mut (*entry).pending, before, after) != before {
            return false;
        }
        core::ptr::write_volatile(&raw mut (*entry).last, now);
        let reason = core::ptr::read_volatile(&raw const (*entry).key.reason);
        env.count(
            DropReason::from_u8(reason).unwrap_or(DropReason::DefaultDeny),
            packets,
            bytes,
        );
    }
    true
}

/// The slot of a denied SYN; what it has counted, for whomever, is moved to the aggregate.
#[inline(always)]
pub fn settle<F: Tabled, E: Env<F>>(env: E, key: &DenyKey) -> Option<u32> {
    let slot = Tuple::of(key).slot(&env.tables()?.secret);
    env.fold(slot);
    Some(slot)
}

/// Gives a slot to a denied SYN, or keeps it there. `aggregated` is what its aggregate holds now.
#[inline(always)]
pub fn remember<F: Tabled, E: Env<F>>(
    env: E,
    slot: u32,
    key: &DenyKey,
    denial: &Denial,
    aggregated: &Aggregated,
) {
    let (Some(config), Some(entry)) = (env.config(), env.negative(slot)) else {
        return;
    };
    let room = match aggregated.packets.checked_rem(u64::from(config.deny_every)) {
        Some(rest) => u64::from(config.deny_every) - rest,
        None => pending::ROOM,
    };
    let room = if room < pending::ROOM {
        room
    } else {
        pending::ROOM
    };
    // SAFETY: a whole entry; what is behind the pending word is written only by whoever has set BUSY in it.
    unsafe {
        word::publish(&raw mut (*entry).valid, 0);
        let before = word::load(&raw const (*entry).pending);
        let next = before.wrapping_add(pending::INSTANCE) & pending::INSTANCES;
        // Somebody else is at it, or has counted since: then the slot stays without an entry for now.
        if before & !pending::INSTANCES != 0
            || word::exchange(&raw mut (*entry).pending, before, next | pending::BUSY) != before
        {
            return;
        }
        copy(key, &raw mut (*entry).key);
        (*entry).pad = 0;
        (*entry).identity = denial.identity;
        (*entry).draft_rule = denial.draft_rule;
        (*entry).draft = denial.draft;
        (*entry).source_port = u32::from(denial.source_port);
        (*entry).last = denial.now;
        (*entry).generation = denial.generation;
        (*entry).room = room as u32;
        (*entry).until = aggregated.announced.wrapping_add(config.deny_interval);
        word::publish(&raw mut (*entry).pending, next);
        word::publish(&raw mut (*entry).valid, valid(denial.generation, config));
    }
}

/// Whether a pending word has packets that are not in the aggregate yet.
#[must_use]
pub const fn has_counted(pending: u64) -> bool {
    (pending >> 36) & pending::PACKETS != 0
}

/// Copies a key word by word: other CPUs may look at it.
///
/// # Safety
/// Both point to whole keys, or memory for one.
#[inline(always)]
unsafe fn copy(from: *const DenyKey, to: *mut DenyKey) {
    const WORDS: usize = size_of::<DenyKey>() / 4;
    let (from, to) = (from.cast::<u32>(), to.cast::<u32>());
    let mut index = 0;
    while index < WORDS {
        // SAFETY: inside both keys, which are aligned to 4.
        unsafe {
            core::ptr::write_volatile(to.add(index), core::ptr::read_volatile(from.add(index)))
        };
        index += 1;
    }
}

/// Moves what a slot has counted to its key's aggregate: what [`Env::fold`] does.
#[inline(always)]
pub fn fold_now<F: Tabled, E: Env<F>>(env: E, slot: u32) {
    let Some(entry) = env.negative(slot & (SLOTS - 1)) else {
        return;
    };
    // SAFETY: a whole entry. Its key does not change without the pending word, which is exchanged below.
    unsafe {
        let before = word::load(&raw const (*entry).pending);
        let packets = (before >> 36) & pending::PACKETS;
        if packets == 0 || before & pending::BUSY != 0 {
            return;
        }
        let denial = Denial {
            packets,
            bytes: before & pending::BYTES,
            now: core::ptr::read_volatile(&raw const (*entry).last),
            identity: (*entry).identity,
            generation: (*entry).generation,
            draft_rule: (*entry).draft_rule,
            draft: (*entry).draft,
            source_port: (*entry).source_port as u16,
        };
        let kept = before & pending::INSTANCES;
        // A packet that came since the word was read has them still; so has the next fold. Nobody takes the slot while
        // its key is used.
        if word::exchange(&raw mut (*entry).pending, before, kept | pending::BUSY) == before {
            env.deny(&(*entry).key, &denial, &mut Aggregated::default());
            word::publish(&raw mut (*entry).pending, kept);
        }
    }
}
