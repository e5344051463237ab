//! Contents of a policy slot, and failsafes: keys and values of the maps that a verdict is looked up in.

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

/// What the kernel keeps of a class: a [`ClassValue`], and enough of its cells to leave out look-ups that would find nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct ClassCells {
    /// Class of the cells.
    pub class: u32,
    /// Class in the filter trie; 0 when no filter speaks.
    pub filter: u32,
    /// The filter class of the same peer in the other direction.
    pub back_filter: u32,
    /// Zero.
    pub pad: u32,
    /// Bits of [`cells`].
    pub present: u64,
    /// The cell that leaves protocol and port open; counts if [`cells::DEFAULT`] is set.
    pub default: RuleValue,
}

/// Bits of [`ClassCells::present`].
pub mod cells {
    /// How many of the low bits say which single ports have a cell ([`bit`]).
    pub const PORTS: u32 = 60;
    /// The class has cells of port ranges: they are in the trie.
    pub const RANGES: u64 = 1 << 60;
    /// The class has cells of whole protocols.
    pub const PROTOCOLS: u64 = 1 << 61;
    /// [`super::ClassCells::default`] is a cell.
    pub const DEFAULT: u64 = 1 << 62;

    /// The bit that stands for a protocol and port; others share it. Below [`PORTS`].
    #[must_use]
    #[inline(always)]
    pub const fn bit(protocol: u8, port: [u8; 2]) -> u32 {
        let [high, low] = port;
        let word = u32::from_be_bytes([0, protocol, high, low]).wrapping_mul(0x9e37_79b1);
        ((word >> 16) * PORTS) >> 16
    }
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
