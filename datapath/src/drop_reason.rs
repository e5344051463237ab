//! Why a packet was dropped, or would have been: numbered, append-only, one line of help each.
//!
//! A number is never reused. The table below is the only place: the record, the metric label, the
//! documentation page and `explain` are made from it.

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $class:ident, $help:literal;)+) => {
        /// Why a packet was dropped, or, in observe mode, would have been.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum DropReason { $(#[doc = $help] $variant = $number,)+ }

        impl Default for DropReason {
            fn default() -> Self {
                Self::None
            }
        }

        impl DropReason {
            /// Every reason, by number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The stable name used in records, metrics and messages.
            #[must_use]
            pub const fn name(self) -> &'static str { match self { $(Self::$variant => $name,)+ } }

            /// One line for the person who reads a drop.
            #[must_use]
            pub const fn help(self) -> &'static str { match self { $(Self::$variant => $help,)+ } }

            /// What kind of cause it is.
            #[must_use]
            pub const fn class(self) -> ReasonClass { match self { $(Self::$variant => ReasonClass::$class,)+ } }

            /// The reason of a number; `None` for a number that this build does not know.
            #[must_use]
            pub const fn from_u8(number: u8) -> Option<Self> { match number { $($number => Some(Self::$variant),)+ _ => None } }
        }
    };
}

/// What kind of cause a reason is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReasonClass {
    /// Not a drop.
    None,
    /// A rule, a closed direction, an isolation: somebody said so.
    Policy,
    /// The packet itself is broken or not understood.
    Packet,
    /// The packet belongs to no flow that was allowed.
    State,
    /// A limit or a missing map entry.
    Resource,
    /// An operator's panic switch.
    Operator,
}

reasons! {
    None = 0, "none", None, "The packet was allowed.";
    PolicyDeny = 1, "policy-deny", Policy, "A deny rule matched; the record names it.";
    DefaultDeny = 2, "default-deny", Policy, "No rule allows this flow; the record names the policies that closed the direction.";
    PolicyChanged = 3, "policy-changed", Policy, "The flow was allowed once, but the policy that is active now denies it: it was cut.";
    Isolated = 4, "isolated", Policy, "This workload is isolated; only its controller connection and the forensic exceptions pass.";
    PeerIsolated = 5, "peer-isolated", Policy, "The other end is isolated; only the forensic exceptions pass.";
    Filter = 6, "filter", Policy, "A stateless filter entry matched this packet.";
    Expired = 7, "expired", Policy, "The grant or policy that allowed this flow has expired.";
    ModeObserve = 8, "mode-observe", Policy, "Would be denied, but the workload (or this port) is only observed: the packet passed.";
    UnknownIdentity = 9, "unknown-identity", Policy, "The peer's identity could not be determined; unknown matches no allow rule.";
    MidStream = 10, "mid-stream", State, "A packet in the middle of a connection that is not tracked: neither its start was seen nor was it adopted.";
    TcpInvalid = 11, "tcp-invalid", Packet, "An impossible combination of TCP flags.";
    RstWithoutFlow = 12, "rst-without-flow", State, "A TCP reset for a connection that is not tracked.";
    IcmpUnrelated = 13, "icmp-unrelated", State, "An ICMP error that quotes no packet of a tracked flow.";
    IcmpRedirect = 14, "icmp-redirect", Packet, "An ICMP redirect; a neighbour may not change routes.";
    NdpInvalid = 15, "ndp-invalid", Packet, "Neighbour, multicast listener or router discovery that did not come from this link.";
    Truncated = 16, "truncated", Packet, "The packet ends before its headers do.";
    MalformedIp = 17, "malformed-ip", Packet, "An IP header with an impossible version, header length or total length.";
    UnknownExtension = 18, "unknown-extension", Packet, "An IPv6 extension header chain that is unknown or too long.";
    Fragment = 19, "fragment", State, "A later fragment whose first fragment was not seen or not allowed.";
    TableFull = 20, "table-full", Resource, "The flow table has no room and the configured choice is to deny.";
    NoEndpoint = 21, "no-endpoint", Resource, "No workload is known behind this device.";
    NoPolicyEntry = 22, "no-policy-entry", Resource, "The active policy has no entry for this peer; unknown denies.";
    NoPolicy = 23, "no-policy", Resource, "No policy content is active on this host.";
    PanicClose = 24, "panic-close", Operator, "An operator closed this host with `panic close`; only failsafes pass.";
    SpoofedSource = 25, "spoofed-source", Packet, "A packet from outside that carries this host's own address as its source.";
    Contended = 26, "contended", Resource, "The flow table's set was busy for too long.";
    StaleFlow = 27, "stale-flow", State, "A reply that came after its flow's idle timeout.";
    NonIp = 28, "non-ip", Packet, "A frame that is neither IP nor ARP, with `l2: drop` configured.";
    FragmentInvalid = 29, "fragment-invalid", Packet, "A fragment that hides or rewrites headers, or any fragment after one that did.";
    FragmentTableFull = 30, "fragment-table-full", Resource, "No room to remember the ports of a packet that comes in fragments.";
}

impl DropReason {
    /// How many numbers a per-reason counter array needs; reasons are below it for ever.
    pub const SLOTS: usize = 64;
}

const _: () = assert!(DropReason::ALL.len() <= DropReason::SLOTS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_unique_and_round_trip() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index, "numbers are dense and in order");
            assert_eq!(DropReason::from_u8(*reason as u8), Some(*reason));
            assert_eq!(
                DropReason::ALL
                    .iter()
                    .filter(|other| other.name() == reason.name())
                    .count(),
                1
            );
            assert!(reason.help().ends_with('.'));
        }
        assert_eq!(DropReason::from_u8(63), None);
    }
}
