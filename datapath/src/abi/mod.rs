//! Keys, values and events that cross the kernel boundary, defined once for both sides.
//!
//! Rules of this file: `repr(C)`, no `usize`/`bool`/`enum`, no implicit padding (padding is a named
//! field that is zero, because hash keys are compared byte by byte), network byte order only in byte
//! arrays, and a size assertion next to every type. A change of any layout needs a new
//! [`ABI_VERSION`], which is part of the pin path.

mod fragment;
mod lines;
mod policy;
mod record;

use core::mem::{offset_of, size_of};

pub use fragment::{FragmentKey, FragmentValue};
pub use lines::*;
pub use policy::*;
pub use record::*;

/// Version of every layout in this crate; part of the pin path and of the record header.
pub const ABI_VERSION: u32 = 4;

/// Number of policy content slots; a flip of [`ActiveWord`] selects one.
pub const SLOTS: u32 = 2;

/// Name and capacity of the maps, as both sides know them.
pub mod maps {
    /// One [`super::Config`].
    pub const CONFIG: &str = "CONFIG";
    /// One mmap-able [`super::ActiveWord`].
    pub const ACTIVE: &str = "ACTIVE";
    /// Slot → array of [`super::Addr4Line`]: IPv4 addresses.
    pub const ADDR4: &str = "ADDR4";
    /// Slot → array of [`super::Addr6Line`]: IPv6 addresses.
    pub const ADDR6: &str = "ADDR6";
    /// Slot → trie of IPv4 prefix → [`super::AddrValue`].
    pub const CIDR4: &str = "CIDR4";
    /// Slot → trie of IPv6 prefix → [`super::AddrValue`].
    pub const CIDR6: &str = "CIDR6";
    /// Slot → hash of endpoint → [`super::EndpointValue`].
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// Slot → array of [`super::ClassLine`].
    pub const CLASSES: &str = "CLASSES";
    /// Slot → array of [`super::CellLine`]: rules for single ports, whole protocols, and the rest.
    pub const CELLS: &str = "CELLS";
    /// Slot → one [`super::Geometry`].
    pub const GEOMETRY: &str = "GEOMETRY";
    /// Slot → trie of [`super::RuleKey`] → [`super::RuleValue`]: port ranges.
    pub const RULES: &str = "RULES";
    /// Slot → trie of [`super::RuleKey`] → [`super::FilterValue`].
    pub const FILTERS: &str = "FILTERS";
    /// Trie of [`super::FailsafeKey`] → [`super::FailsafeValue`].
    pub const FAILSAFES: &str = "FAILSAFES";
    /// Array of programs: see [`super::tails`].
    pub const TAILS: &str = "TAILS";
    /// One [`super::Tables`].
    pub const TABLES: &str = "TABLES";
    /// mmap-able array of [`super::Set4`].
    pub const FLOWS4: &str = "FLOWS4";
    /// mmap-able array of [`super::Set6`].
    pub const FLOWS6: &str = "FLOWS6";
    /// mmap-able array of lock words, one a set of FLOWS4: see [`crate::table::lock_word`].
    pub const LOCKS4: &str = "LOCKS4";
    /// The same for FLOWS6.
    pub const LOCKS6: &str = "LOCKS6";
    /// Hash of [`super::Key4`] → [`super::Flow4`]: proven flows whose set is full.
    pub const SPILL4: &str = "SPILL4";
    /// Hash of [`super::Key6`] → [`super::Flow6`].
    pub const SPILL6: &str = "SPILL6";
    /// mmap-able array of counters by peer address, both families: see [`crate::table::bucket_word`].
    pub const BUCKETS: &str = "BUCKETS";
    /// Array of [`super::Negative`], mmap-able.
    pub const NEGATIVES: &str = "NEGATIVES";
    /// Hash of [`super::DenyKey`] → [`super::DenyValue`].
    pub const DENIES: &str = "DENIES";
    /// LRU hash of [`super::FragmentKey`] → [`super::FragmentValue`].
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// Ring buffer of [`super::Event`].
    pub const EVENTS: &str = "EVENTS";
    /// Per-CPU array of [`super::Counter`] by drop reason.
    pub const REASONS: &str = "REASONS";
    /// Per-CPU array of u64 by [`super::Loss`].
    pub const LOSSES: &str = "LOSSES";
    /// Per-CPU scratch memory; not shared with user space.
    pub const SCRATCH: &str = "SCRATCH";
    /// Written by the `clock` program: jiffies and boot time read together.
    pub const CLOCK: &str = "CLOCK";
}

/// Everything about the active content in one 8-byte word, so that one write activates it:
/// generation 32 | deadline 28 (seconds since boot) | unused 1 | learn 1 | pending 1 | slot 1.
///
/// While `pending`, the kernel itself falls back to the other slot, under generation + 1, once
/// the deadline has passed. While `learn`, flows are recorded and judged but nothing is dropped by
/// policy: the state between attaching and arming.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct ActiveWord(pub u64);

impl ActiveWord {
    /// Deadlines are whole seconds since boot below this.
    pub const MAX_DEADLINE: u64 = (1 << 28) - 1;

    /// A final content: no deadline.
    #[must_use]
    pub const fn committed(generation: u32, slot: u32) -> Self {
        Self(((generation as u64) << 32) | (slot as u64 & 1))
    }

    /// A content that falls back to the other slot at `deadline` (seconds since boot).
    #[must_use]
    pub const fn pending(generation: u32, slot: u32, deadline: u64) -> Self {
        let deadline = if deadline > Self::MAX_DEADLINE {
            Self::MAX_DEADLINE
        } else {
            deadline
        };
        Self(((generation as u64) << 32) | (deadline << 4) | 2 | (slot as u64 & 1))
    }

    /// The same content, recorded and judged but not enforced.
    #[must_use]
    pub const fn learning(self) -> Self {
        Self(self.0 | 4)
    }

    /// Generation as written; see [`Self::effective`] for what counts now.
    #[must_use]
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Slot as written.
    #[must_use]
    pub const fn slot(self) -> u32 {
        (self.0 & 1) as u32
    }

    /// Whether the content waits for a confirmation.
    #[must_use]
    pub const fn is_pending(self) -> bool {
        self.0 & 2 != 0
    }

    /// Whether nothing is enforced yet.
    #[must_use]
    pub const fn is_learning(self) -> bool {
        self.0 & 4 != 0
    }

    /// Seconds since boot at which an unconfirmed content falls back.
    #[must_use]
    pub const fn deadline(self) -> u64 {
        (self.0 >> 4) & Self::MAX_DEADLINE
    }

    /// Whether no content was ever activated.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.generation() == 0
    }

    /// Generation and slot that count at `boot_seconds`, and whether this is the fall-back.
    #[must_use]
    pub const fn effective(self, boot_seconds: u64) -> (u32, u32, bool) {
        if self.is_pending() && boot_seconds >= self.deadline() {
            (self.generation().wrapping_add(1), self.slot() ^ 1, true)
        } else {
            (self.generation(), self.slot(), false)
        }
    }
}

/// Slots of the TAILS array.
pub mod tails {
    /// Reads an IPv4 packet, and goes on to judge it.
    pub const READ4: u32 = 0;
    /// Reads an IPv6 packet, and goes on to judge it.
    pub const READ6: u32 = 1;
    /// Judges an IPv4 packet that was read.
    pub const JUDGE4: u32 = 2;
    /// Judges an IPv6 packet that was read.
    pub const JUDGE6: u32 = 3;
    /// How many there are.
    pub const COUNT: u32 = 4;
}

/// What the programs that the agent runs to change a table take and answer.
pub mod tool {
    /// Where the entry begins in the frame.
    pub const OFFSET: u32 = 16;
    /// Done.
    pub const DONE: u32 = 1;
    /// The table says otherwise: the flow is there already, or is not as it was.
    pub const DECLINED: u32 = 2;
    /// No room.
    pub const FULL: u32 = 3;
    /// The set's lock could not be had, or a map is missing.
    pub const FAILED: u32 = 4;
}

/// Geometry and secret of the flow tables; written once, before the first packet, and never again while the tables live.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Tables {
    /// Key of the hash: random, one a table, never told.
    pub secret: [u32; crate::hash::SECRET_WORDS],
    /// Sets of FLOWS4, a power of two, minus 1.
    pub mask4: u32,
    /// Sets of FLOWS6, a power of two, minus 1.
    pub mask6: u32,
    /// Entries that one bucket of peer addresses may hold; 0 = as many as fit.
    pub share: u32,
    /// Zero.
    pub pad: u32,
}

/// Settings of the datapath; written by the agent before it attaches, read on every slow path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Config {
    /// 0 none, 1 open (everything passes), 2 close (only failsafes pass): see [`panic`].
    pub panic: u32,
    /// Endpoint behind every hooked device of this host.
    pub endpoint: u32,
    /// Bits of [`config_flags`].
    pub flags: u32,
    /// Every how many packets of an aggregated deny an event is sent (0 = only the first).
    pub deny_every: u32,
    /// After how many jiffies an aggregated deny is announced again.
    pub deny_interval: u32,
    /// Idle timeouts in jiffies by [`crate::conntrack::State`] number.
    pub timeouts: [u32; 16],
    /// Kernel ticks per second.
    pub hz: u32,
    /// Moves with every change of the failsafes: what was denied before is asked again.
    pub epoch: u32,
    /// Zero.
    pub pad: u32,
    /// By [`crate::ids::Direction`]: bits of [`cells::bit`] of protocols and ports (0 as in the key) for which no
    /// failsafe is configured, so that none is looked for. 0 looks for all.
    pub failsafe_absent: [u64; 2],
}

/// Values of [`Config::panic`].
pub mod panic {
    /// Policy decides.
    pub const NONE: u32 = 0;
    /// Everything passes and is recorded.
    pub const OPEN: u32 = 1;
    /// Only failsafes pass, established flows included.
    pub const CLOSE: u32 = 2;
}

/// Bits of [`Config::flags`].
pub mod config_flags {
    /// When the flow table is full, let the flow pass untracked instead of denying it.
    pub const FULL_ALLOW: u32 = 1;
    /// Drop frames that are neither IP nor ARP.
    pub const L2_DROP: u32 = 2;
}

/// Canonical key of an IPv4 flow: the numerically lower (address, port) first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(C, align(8))]
pub struct Key4 {
    /// Lower end.
    pub lo: [u8; 4],
    /// Higher end.
    pub hi: [u8; 4],
    /// Port of the lower end, network byte order; ICMP: the echo identifier.
    pub lo_port: [u8; 2],
    /// Port of the higher end.
    pub hi_port: [u8; 2],
    /// IANA protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
    /// Endpoint that the flow belongs to (its low 16 bits).
    pub scope: u16,
}

/// Canonical key of an IPv6 flow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(C, align(8))]
pub struct Key6 {
    /// Lower end.
    pub lo: [u8; 16],
    /// Higher end.
    pub hi: [u8; 16],
    /// Port of the lower end.
    pub lo_port: [u8; 2],
    /// Port of the higher end.
    pub hi_port: [u8; 2],
    /// IANA protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
    /// Endpoint that the flow belongs to (its low 16 bits).
    pub scope: u16,
}

/// What both families keep for one direction of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Body {
    /// Wire segments.
    pub packets: u64,
    /// L3 bytes summed over wire segments.
    pub bytes: u64,
    /// Jiffies (low 32 bits) of the last packet of this direction.
    pub last: u32,
    /// Seconds since boot at which the verdict must be asked again; 0 = never. Line 1 of a TCP flow that is not
    /// proven: the responder's initial sequence number.
    pub expiry: u32,
    /// TCP flags seen 8 | state 8 | verdict 8 | reason 8, low byte first: see [`crate::flow`].
    pub flags: u32,
    /// Line 0: rule. Line 1: first seen (jiffies).
    pub a: u32,
    /// Line 0: draft rule. Line 1: socket cookie, low half.
    pub b: u32,
    /// Line 0: peer's identity. Line 1: socket cookie, high half.
    pub c: u32,
}

/// One direction of an IPv4 flow: one cache line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Line4 {
    /// generation 32 | sequence 24 | slot state 8.
    pub meta: u64,
    /// The same on both lines.
    pub key: Key4,
    /// Counters and verdicts.
    pub body: Body,
}

/// An IPv4 flow: line 0 is lower → higher end, line 1 the way back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Flow4 {
    /// See the type.
    pub lines: [Line4; 2],
}

/// One direction of an IPv6 flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Line6 {
    /// generation 32 | sequence 24 | slot state 8.
    pub meta: u64,
    /// The same on both lines.
    pub key: Key6,
    /// Counters and verdicts.
    pub body: Body,
    /// Zero.
    pub pad: u64,
}

/// An IPv6 flow: line 0 is lower → higher end, line 1 the way back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Flow6 {
    /// See the type.
    pub lines: [Line6; 2],
}

/// Flows whose keys have one hash, IPv4: what a packet looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Set4 {
    /// Entries.
    pub ways: [Flow4; crate::table::WAYS as usize],
}

/// Flows whose keys have one hash, IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Set6 {
    /// Entries.
    pub ways: [Flow6; crate::table::WAYS as usize],
}

const _: () = {
    assert!(size_of::<ActiveWord>() == 8);
    assert!(size_of::<Config>() == 20 + 64 + 12 + 16);
    assert!(size_of::<AddrValue>() == 8);
    assert!(size_of::<Cidr4Key>() == 8);
    assert!(size_of::<Cidr6Key>() == 20);
    assert!(size_of::<EndpointValue>() == 8);
    assert!(size_of::<ClassKey>() == 12);
    assert!(size_of::<ClassValue>() == 8);
    assert!(size_of::<ClassCells>() == 56);
    assert!(size_of::<RuleKey>() == 12);
    assert!(size_of::<RuleValue>() == 32);
    assert!(offset_of!(RuleValue, pad2) == 28);
    assert!(size_of::<FilterValue>() == 8);
    assert!(size_of::<FailsafeKey>() == 24);
    assert!(size_of::<FailsafeValue>() == 8);
    assert!(size_of::<Key4>() == 16);
    assert!(size_of::<Key6>() == 40);
    assert!(size_of::<Body>() == 40);
    assert!(size_of::<Line4>() == 64);
    assert!(size_of::<Flow4>() == 128);
    assert!(size_of::<Line6>() == 96);
    assert!(size_of::<Flow6>() == 192);
    assert!(size_of::<Set4>() == 512 && size_of::<Set6>() == 768);
    assert!(size_of::<Tables>() == 64);
    assert!(offset_of!(Line4, key) == 8 && offset_of!(Line4, body) == 24);
    assert!(offset_of!(Line6, key) == 8 && offset_of!(Line6, body) == 48);
    assert!(size_of::<DenyKey>() == 44);
    assert!(size_of::<DenyValue>() == 48);
    assert!(size_of::<Negative>() == 128);
    assert!(offset_of!(Negative, key) == 32);
    assert!(size_of::<Counter>() == 16);
    assert!(size_of::<Event>() == 128);
    assert!(size_of::<Clock>() == 16);
};

/// Types without padding that the agent may copy to and from maps as bytes.
#[cfg(feature = "aya")]
mod pod {
    macro_rules! pod {
        ($($name:ident),+ $(,)?) => { $(
            // SAFETY: `repr(C)` integers and byte arrays only; the assertions above rule out implicit padding.
            unsafe impl aya::Pod for super::$name {}
        )+ };
    }
    pod!(
        Config,
        AddrValue,
        Cidr4Key,
        Cidr6Key,
        EndpointValue,
        ClassKey,
        ClassValue,
        ClassCells,
        Geometry,
        Addr4Line,
        Addr6Line,
        ClassLine,
        CellLine,
        RuleKey,
        RuleValue,
        FilterValue,
        FailsafeKey,
        FailsafeValue,
        Key4,
        Key6,
        Flow4,
        Flow6,
        Set4,
        Set6,
        Tables,
        DenyKey,
        DenyValue,
        Negative,
        Counter,
        Event,
        Clock
    );
}
