//! Keys, values and events that cross the kernel boundary, defined once for both sides.
//!
//! Rules of this file: `repr(C)`, no `usize`/`bool`/`enum`, no implicit padding (padding is a named
//! field that is zero, because hash keys are compared byte by byte), network byte order only in byte
//! arrays, and a size assertion next to every type. A change of any layout needs a new
//! [`ABI_VERSION`], which is part of the pin path.

mod fragment;

pub use fragment::{FragmentKey, FragmentValue};

use core::mem::{offset_of, size_of};

/// Version of every layout in this crate; part of the pin path and of the record header.
pub const ABI_VERSION: u32 = 1;

/// Number of policy content slots; a flip of [`ActiveWord`] selects one.
pub const SLOTS: u32 = 2;

/// Name and capacity of the maps, as both sides know them.
pub mod maps {
    /// One [`super::Config`].
    pub const CONFIG: &str = "CONFIG";
    /// One mmap-able [`super::ActiveWord`].
    pub const ACTIVE: &str = "ACTIVE";
    /// Slot → hash of IPv4 address → [`super::AddrValue`].
    pub const ADDR4: &str = "ADDR4";
    /// Slot → hash of IPv6 address → [`super::AddrValue`].
    pub const ADDR6: &str = "ADDR6";
    /// Slot → trie of IPv4 prefix → [`super::AddrValue`].
    pub const CIDR4: &str = "CIDR4";
    /// Slot → trie of IPv6 prefix → [`super::AddrValue`].
    pub const CIDR6: &str = "CIDR6";
    /// Slot → hash of endpoint → [`super::EndpointValue`].
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// Slot → hash of [`super::ClassKey`] → [`super::ClassValue`].
    pub const CLASSES: &str = "CLASSES";
    /// Slot → trie of [`super::RuleKey`] → [`super::RuleValue`].
    pub const RULES: &str = "RULES";
    /// Slot → trie of [`super::RuleKey`] → [`super::FilterValue`].
    pub const FILTERS: &str = "FILTERS";
    /// Trie of [`super::FailsafeKey`] → [`super::FailsafeValue`].
    pub const FAILSAFES: &str = "FAILSAFES";
    /// Hash of [`super::Key4`] → [`super::Flow4`].
    pub const FLOWS4: &str = "FLOWS4";
    /// Hash of [`super::Key6`] → [`super::Flow6`].
    pub const FLOWS6: &str = "FLOWS6";
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

/// What an address is bound to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct AddrValue {
    /// [`crate::ids::Identity`].
    pub identity: u32,
    /// Bits of [`addr_flags`].
    pub flags: u32,
}

/// Bits of [`AddrValue::flags`].
pub mod addr_flags {
    /// The owner of the address is isolated: denied at every other end.
    pub const ISOLATED: u32 = 1;
    /// The address belongs to the endpoint itself.
    pub const LOCAL: u32 = 2;
}

/// LPM key of an IPv4 prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Cidr4Key {
    /// 0–32.
    pub prefix_len: u32,
    /// Network byte order.
    pub addr: [u8; 4],
}

/// LPM key of an IPv6 prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Cidr6Key {
    /// 0–128.
    pub prefix_len: u32,
    /// Network byte order.
    pub addr: [u8; 16],
}

/// What the datapath knows of an endpoint apart from its classes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct EndpointValue {
    /// One of [`mode`]. Port-wise modes are in the rule values; this one decides where a rule value is missing.
    pub mode: u32,
    /// Zero.
    pub reserved: u32,
}

/// Values of [`EndpointValue::mode`].
pub mod mode {
    /// Nothing is dropped by policy.
    pub const OBSERVE: u32 = 0;
    /// Listed ports are enforced.
    pub const SELECTIVE: u32 = 1;
    /// Policy is enforced.
    pub const ENFORCE: u32 = 2;
    /// Only controller and forensic failsafes pass.
    pub const ISOLATE: u32 = 3;
}

/// Which class a peer's identity has for an endpoint and direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct ClassKey {
    /// [`crate::ids::EndpointId`].
    pub endpoint: u32,
    /// [`crate::ids::Identity`] of the peer.
    pub identity: u32,
    /// [`crate::ids::Direction`] of the flow, as a number.
    pub direction: u32,
}

/// The tables that a class selects.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct ClassValue {
    /// Class in the rule trie.
    pub class: u32,
    /// Class in the filter trie; 0 when no filter speaks.
    pub filter: u32,
}

/// LPM key of a rule: class, then protocol, then port, so that protocol and port can be left open by
/// prefix length. For ICMP the port is type × 256 + code.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct RuleKey {
    /// [`RuleKey::ANY_PROTOCOL`] to [`RuleKey::FULL`].
    pub prefix_len: u32,
    /// Class number, always fully matched.
    pub class: u32,
    /// IANA protocol number.
    pub protocol: u8,
    /// Destination port of the flow's first packet, network byte order.
    pub port: [u8; 2],
    /// Zero.
    pub pad: u8,
}

impl RuleKey {
    /// Prefix length that leaves protocol and port open.
    pub const ANY_PROTOCOL: u32 = 32;
    /// Prefix length that leaves the port open.
    pub const ANY_PORT: u32 = 40;
    /// Prefix length of one port.
    pub const FULL: u32 = 56;

    /// The key that a packet looks up.
    #[must_use]
    pub const fn lookup(class: u32, protocol: u8, port: u16) -> Self {
        Self {
            prefix_len: Self::FULL,
            class,
            protocol,
            port: port.to_be_bytes(),
            pad: 0,
        }
    }
}

/// Both verdicts of one cell of policy, and what follows when it expires.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct RuleValue {
    /// Nanoseconds since boot at which `after*` takes the place of `enforced*`; 0 = never.
    pub expiry: u64,
    /// Rule that decided `enforced`.
    pub rule: u32,
    /// Rule that decided `draft`.
    pub draft_rule: u32,
    /// Rule that decides after the expiry.
    pub after_rule: u32,
    /// [`verdict`] of the enforced policies, the mode left out.
    pub enforced: u8,
    /// [`verdict`] if every staged policy and every mode were enforced.
    pub draft: u8,
    /// [`verdict`] after the expiry.
    pub after: u8,
    /// Bits of [`rule_flags`].
    pub flags: u8,
    /// [`crate::drop_reason::DropReason`] of `enforced`, 0 when it allows.
    pub reason: u8,
    /// Reason of `draft`.
    pub draft_reason: u8,
    /// Reason of `after`.
    pub after_reason: u8,
    /// Zero.
    pub pad: u8,
    /// Zero.
    pub pad2: u32,
}

/// Values of the verdict fields.
pub mod verdict {
    /// The flow is denied.
    pub const DENY: u8 = 0;
    /// The flow is allowed.
    pub const ALLOW: u8 = 1;
}

/// Bits of [`RuleValue::flags`].
pub mod rule_flags {
    /// The endpoint's mode enforces this protocol and port; without it the verdict is only recorded.
    pub const ENFORCED: u8 = 1;
    /// `existing: keep`: flows that this rule admitted survive a later deny of the standard tiers.
    pub const KEEP: u8 = 2;
    /// Every new flow is announced.
    pub const AUDIT: u8 = 4;
    /// The denial comes from a guardrail: `keep` does not survive it.
    pub const HARD: u8 = 8;
}

/// Outcome of the stateless filter tier for a protocol and port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct FilterValue {
    /// The entry that matched.
    pub rule: u32,
    /// [`filter_action`] | flags.
    pub action: u32,
}

/// Values of [`FilterValue::action`].
pub mod filter_action {
    /// No entry matches: the next tier decides.
    pub const CONTINUE: u32 = 0;
    /// The packet is dropped.
    pub const DENY: u32 = 1;
    /// The filter lets the packet through to the next tier.
    pub const ALLOW: u32 = 2;
    /// Set beside DENY: the endpoint's mode enforces it here.
    pub const ENFORCED: u32 = 0x100;
}

/// LPM key of a failsafe: direction, protocol and port exactly, the peer's address by prefix.
/// IPv4 addresses are v4-mapped (RFC 4291 §2.5.5.2). Protocol 0 / port 0 are wildcards that are looked up in their own right.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct FailsafeKey {
    /// 32 + length of the address prefix (96 more for IPv4).
    pub prefix_len: u32,
    /// [`crate::ids::Direction`] of the flow.
    pub direction: u8,
    /// IANA protocol number or 0.
    pub protocol: u8,
    /// Port of the responder, network byte order, or 0.
    pub port: [u8; 2],
    /// The peer.
    pub addr: [u8; 16],
}

/// What a failsafe is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct FailsafeValue {
    /// Bits of [`failsafe_flags`].
    pub flags: u32,
    /// Rule id under which it is listed.
    pub rule: u32,
}

/// Bits of [`FailsafeValue::flags`].
pub mod failsafe_flags {
    /// The agent's own controller connection: holds in isolation.
    pub const CONTROLLER: u32 = 1;
    /// A forensic exception: holds in isolation, also against isolated peers.
    pub const FORENSIC: u32 = 2;
    /// An ordinary failsafe (resolver, management port, DHCP).
    pub const ORDINARY: u32 = 4;
}

/// Canonical key of an IPv4 flow: the numerically lower (address, port) first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(C)]
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
#[repr(C)]
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
    /// Seconds since boot at which the verdict must be asked again; 0 = never.
    pub expiry: u32,
    /// TCP flags seen 8 | state 8 | verdict 8 | reason 8, low byte first: see [`crate::flow`].
    pub flags: u32,
    /// Line 0: rule. Line 1: first seen (jiffies).
    pub a: u32,
    /// Line 0: draft rule. Line 1: socket cookie, low half; before the proof the responder's initial sequence number.
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

/// Key of an aggregated denial.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(C)]
pub struct DenyKey {
    /// Sender of the denied packet, v4-mapped for IPv4.
    pub initiator: [u8; 16],
    /// Its destination.
    pub responder: [u8; 16],
    /// Rule that denied.
    pub rule: u32,
    /// Destination port (ICMP: type × 256 + code), network byte order.
    pub port: [u8; 2],
    /// IANA protocol number.
    pub protocol: u8,
    /// [`crate::drop_reason::DropReason`].
    pub reason: u8,
    /// [`crate::ids::Direction`] of the packet.
    pub direction: u8,
    /// 4 or 6.
    pub family: u8,
    /// 1 when the packet asked for a new flow (a bare SYN, or a first packet of another protocol).
    pub opening: u8,
    /// Zero.
    pub pad: u8,
}

/// Counts of an aggregated denial.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct DenyValue {
    /// Wire segments.
    pub packets: u64,
    /// L3 bytes.
    pub bytes: u64,
    /// Jiffies of the first packet.
    pub first: u32,
    /// Jiffies of the last packet.
    pub last: u32,
    /// Jiffies of the last event sent for it.
    pub announced: u32,
    /// Peer's identity.
    pub identity: u32,
    /// Generation that denied last.
    pub generation: u32,
    /// Draft rule.
    pub draft_rule: u32,
    /// Draft verdict ([`verdict`]).
    pub draft: u32,
    /// Source port of the first packet.
    pub source_port: u32,
}

/// Packets and bytes by drop reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Counter {
    /// Wire segments.
    pub packets: u64,
    /// L3 bytes.
    pub bytes: u64,
}

/// Causes of lost records; indices of the LOSSES array.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Loss {
    /// The ring was full; the entry keeps the counters, so only the immediate notice is lost.
    RingFull = 0,
    /// No room in the table of denials; the totals by reason still count the packet.
    DenyTableFull = 1,
    /// No room in the flow table.
    FlowTableFull = 2,
    /// A closed entry was replaced before the agent had read it, and its close event did not fit the ring.
    ReplacedUnread = 3,
    /// A packet passed untracked (configured for a full table).
    Untracked = 4,
    /// No room to remember a packet that comes in fragments.
    FragmentTableFull = 5,
}

impl Loss {
    /// Length of the LOSSES array.
    pub const SLOTS: usize = 16;
    /// Every cause.
    pub const ALL: [Self; 6] = [
        Self::RingFull,
        Self::DenyTableFull,
        Self::FlowTableFull,
        Self::ReplacedUnread,
        Self::Untracked,
        Self::FragmentTableFull,
    ];

    /// The name in metrics and records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RingFull => "ring-full",
            Self::DenyTableFull => "deny-table-full",
            Self::FlowTableFull => "flow-table-full",
            Self::ReplacedUnread => "replaced-unread",
            Self::Untracked => "untracked",
            Self::FragmentTableFull => "fragment-table-full",
        }
    }
}

/// Values of [`Event::kind`].
pub mod event_kind {
    /// A flow was opened.
    pub const NEW: u8 = 1;
    /// A flow ended (closed, reset, cut, or replaced).
    pub const CLOSE: u8 = 2;
    /// A packet was denied: the first of its key, or a repetition after an interval.
    pub const DENY: u8 = 3;
}

/// A notice on the ring buffer. Counters are totals at that moment, in the flow's own direction
/// (0 = initiator → responder).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Event {
    /// One of [`event_kind`].
    pub kind: u8,
    /// IANA protocol number.
    pub protocol: u8,
    /// [`crate::ids::Direction`] of the flow's first packet.
    pub direction: u8,
    /// Verdict bits of [`crate::flow`].
    pub verdict: u8,
    /// [`crate::drop_reason::DropReason`].
    pub reason: u8,
    /// [`crate::conntrack::State`].
    pub state: u8,
    /// 4 or 6.
    pub family: u8,
    /// TCP flags seen, both ways together.
    pub tcp_flags: u8,
    /// Generation of the content that judged.
    pub generation: u32,
    /// Rule that decided.
    pub rule: u32,
    /// Rule that decided the draft.
    pub draft_rule: u32,
    /// Peer's identity.
    pub identity: u32,
    /// Initiator, v4-mapped for IPv4.
    pub initiator: [u8; 16],
    /// Responder.
    pub responder: [u8; 16],
    /// Port of the initiator, host byte order.
    pub initiator_port: u16,
    /// Port of the responder (ICMP: type × 256 + code), host byte order.
    pub responder_port: u16,
    /// Instance of the flow's table entry.
    pub sequence: u32,
    /// Wire segments, initiator → responder and back.
    pub packets: [u64; 2],
    /// L3 bytes, initiator → responder and back.
    pub bytes: [u64; 2],
    /// Jiffies of the first packet.
    pub first: u32,
    /// Jiffies of the last packet.
    pub last: u32,
    /// Socket cookie, 0 when unknown.
    pub cookie: u64,
    /// Device of the packet.
    pub ifindex: u32,
    /// 1 when the packet asked for a new flow.
    pub opening: u32,
    /// Zero.
    pub pad: u64,
}

/// Jiffies and boot time read in one go, from which user space converts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Clock {
    /// Full 64-bit jiffies.
    pub jiffies: u64,
    /// CLOCK_BOOTTIME in nanoseconds.
    pub boot_ns: u64,
}

const _: () = {
    assert!(size_of::<ActiveWord>() == 8);
    assert!(size_of::<Config>() == 20 + 64 + 4);
    assert!(size_of::<AddrValue>() == 8);
    assert!(size_of::<Cidr4Key>() == 8);
    assert!(size_of::<Cidr6Key>() == 20);
    assert!(size_of::<EndpointValue>() == 8);
    assert!(size_of::<ClassKey>() == 12);
    assert!(size_of::<ClassValue>() == 8);
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
    assert!(offset_of!(Line4, key) == 8 && offset_of!(Line4, body) == 24);
    assert!(offset_of!(Line6, key) == 8 && offset_of!(Line6, body) == 48);
    assert!(size_of::<DenyKey>() == 44);
    assert!(size_of::<DenyValue>() == 48);
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
        RuleKey,
        RuleValue,
        FilterValue,
        FailsafeKey,
        FailsafeValue,
        Key4,
        Key6,
        Flow4,
        Flow6,
        DenyKey,
        DenyValue,
        Counter,
        Event,
        Clock
    );
}
