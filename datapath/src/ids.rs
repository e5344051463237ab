//! Small numbers that name things, one type each, so that they cannot be mixed up.

/// The number of one distinct set of policy-relevant labels, named ports and policy CIDRs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Identity(pub u32);

impl Identity {
    /// What cannot be determined. Matches no allow rule, not even `any`.
    pub const UNKNOWN: Self = Self(0);
    /// The host's own addresses.
    pub const HOST_LOCAL: Self = Self(1);
    /// Outside every managed network and every policy CIDR.
    pub const WORLD: Self = Self(2);
    /// Inside a managed network, but bound to no workload.
    pub const UNMANAGED: Self = Self(3);
    /// The controller.
    pub const CONTROLLER: Self = Self(4);
    /// The first number that compilation hands out.
    pub const FIRST_DYNAMIC: Self = Self(256);

    /// Whether the number is one of the reserved ones (below 256).
    #[must_use]
    pub const fn is_reserved(self) -> bool {
        self.0 < Self::FIRST_DYNAMIC.0
    }

    /// The fixed name of a reserved identity.
    #[must_use]
    pub const fn reserved_name(self) -> Option<&'static str> {
        match self.0 {
            0 => Some("unknown"),
            1 => Some("host-local"),
            2 => Some("world"),
            3 => Some("unmanaged"),
            4 => Some("controller"),
            _ => None,
        }
    }
}

/// The workload behind a hook: on a VM the host itself, in a container host one container.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct EndpointId(pub u32);

impl EndpointId {
    /// The endpoint of a machine's own network devices.
    pub const HOST: Self = Self(1);
}

/// Identities that an endpoint treats alike in one direction share a class.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct ClassId(pub u32);

/// A rule, or the set of policies that closed a direction, within one snapshot. 0 is "no rule".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct RuleId(pub u32);

/// Local, ever-growing number of the active policy content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Generation(pub u32);

/// Direction of a packet, and of a flow's first packet, seen from the endpoint.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(u8)]
pub enum Direction {
    /// Towards the endpoint.
    #[default]
    Ingress = 0,
    /// Away from the endpoint.
    Egress = 1,
}

impl Direction {
    /// The other direction.
    #[must_use]
    pub const fn flipped(self) -> Self {
        match self {
            Self::Ingress => Self::Egress,
            Self::Egress => Self::Ingress,
        }
    }

    /// 0 is ingress, everything else egress.
    #[must_use]
    pub const fn from_u8(value: u8) -> Self {
        if value == 0 {
            Self::Ingress
        } else {
            Self::Egress
        }
    }

    /// The word used in policies and records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// IANA protocol numbers that the datapath treats specially.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;

    /// Whether the protocol carries ports in its first four bytes.
    #[must_use]
    pub const fn has_ports(protocol: u8) -> bool {
        matches!(protocol, TCP | UDP | SCTP)
    }
}
