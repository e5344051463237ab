//! What the datapath tells: aggregated denials, counters, notices, losses; and what user space needs to date them.

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

/// A denied SYN that came again: see [`crate::negative`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C, align(64))]
pub struct Negative {
    /// Generation 32 | epoch of the failsafes 32 for which it holds; 0 = for none.
    pub valid: u64,
    /// Packets and bytes that are not in the aggregate yet, and the instance of the slot.
    pub pending: u64,
    /// Jiffies of the last packet.
    pub last: u32,
    /// From this jiffy on a packet announces its key again.
    pub until: u32,
    /// So many packets until the one that announces its key again.
    pub room: u32,
    /// Generation that denied.
    pub generation: u32,
    /// The aggregate.
    pub key: DenyKey,
    /// Zero.
    pub pad: u32,
    /// Peer's identity.
    pub identity: u32,
    /// Draft rule.
    pub draft_rule: u32,
    /// Draft verdict ([`super::verdict`]).
    pub draft: u32,
    /// Source port of the packet that made the entry.
    pub source_port: u32,
    /// Zero.
    pub rest: [u64; 4],
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
    /// A flow that was not proven made room for another; its record was sent with the displacement.
    Displaced = 5,
    /// A new flow found its peer's share of the flow table used up.
    PeerShare = 6,
    /// No room to remember a packet that comes in fragments.
    FragmentTableFull = 7,
}

impl Loss {
    /// Length of the LOSSES array.
    pub const SLOTS: usize = 16;
    /// Every cause.
    pub const ALL: [Self; 8] = [
        Self::RingFull,
        Self::DenyTableFull,
        Self::FlowTableFull,
        Self::ReplacedUnread,
        Self::Untracked,
        Self::Displaced,
        Self::PeerShare,
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
            Self::Displaced => "displaced",
            Self::PeerShare => "peer-share",
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
