//! Protocols and ports as rules write them.

use datapath::ids::protocol as number;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

/// Protocols that `any` means when a port stands beside it.
pub const PORTED: [u8; 3] = [number::TCP, number::UDP, number::SCTP];

/// Which protocol an item speaks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Every protocol; with a port: TCP, UDP and SCTP.
    Any,
    /// One IANA number.
    Number(u8),
}

/// Which ports of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// All, or the protocol has none.
    All,
    /// Both ends included.
    Range(u16, u16),
    /// A port that workloads give a name.
    Named(String),
    /// An ICMP type and perhaps its code.
    Icmp {
        /// The type.
        kind: u8,
        /// The code; `None` = every code of the type.
        code: Option<u8>,
    },
}

/// One item of a rule's `ports`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortSpec {
    /// Protocol and ports.
    Direct {
        /// The protocol.
        protocol: Protocol,
        /// Its ports.
        ports: Ports,
    },
    /// A [`crate::model::Service`] by name.
    Service(String),
}

/// A block of one protocol, or of all: the form in which ports are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortBlock {
    /// `None` = every protocol (then the range is everything).
    pub protocol: Option<u8>,
    /// First port.
    pub low: u16,
    /// Last port.
    pub high: u16,
}

impl PortBlock {
    /// Everything.
    pub const ANY: Self = Self {
        protocol: None,
        low: 0,
        high: u16::MAX,
    };

    /// Whether a protocol and port lie inside.
    #[must_use]
    pub fn contains(&self, protocol: u8, port: u16) -> bool {
        self.protocol.is_none_or(|own| own == protocol) && (self.low..=self.high).contains(&port)
    }
}

impl PortSpec {
    /// One protocol with all its ports.
    #[must_use]
    pub const fn protocol(protocol: u8) -> Self {
        Self::Direct {
            protocol: Protocol::Number(protocol),
            ports: Ports::All,
        }
    }

    /// One port of one protocol.
    #[must_use]
    pub const fn port(protocol: u8, port: u16) -> Self {
        Self::Direct {
            protocol: Protocol::Number(protocol),
            ports: Ports::Range(port, port),
        }
    }
}

impl Protocol {
    /// The protocols that are meant when ports stand beside it.
    #[must_use]
    pub fn ported(self) -> Vec<u8> {
        match self {
            Self::Any => PORTED.to_vec(),
            Self::Number(number) => vec![number],
        }
    }
}

/// The names of the language.
pub(crate) const PROTOCOL_NAMES: &[(&str, u8)] = &[
    ("tcp", number::TCP),
    ("udp", number::UDP),
    ("sctp", number::SCTP),
    ("icmp", number::ICMP),
    ("icmpv6", number::ICMPV6),
];

/// Name of a protocol, or its number.
#[must_use]
pub fn protocol_name(protocol: u8) -> String {
    PROTOCOL_NAMES
        .iter()
        .find(|(_, known)| *known == protocol)
        .map_or_else(|| protocol.to_string(), |(name, _)| (*name).to_owned())
}

/// Whether the protocol has types and codes.
#[must_use]
pub const fn is_icmp(protocol: u8) -> bool {
    matches!(protocol, number::ICMP | number::ICMPV6)
}

fn protocol_value(protocol: u8) -> Value {
    PROTOCOL_NAMES
        .iter()
        .find(|(_, known)| *known == protocol)
        .map_or_else(|| json!(protocol), |(name, _)| json!(name))
}

/// Serialises a protocol number by its name where it has one.
#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde prescribes the signature"
)]
pub(crate) fn serialize_protocol<S: Serializer>(
    protocol: &u8,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    protocol_value(*protocol).serialize(serializer)
}

impl Serialize for PortSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = Map::new();
        match self {
            Self::Service(name) => {
                map.insert("service".into(), json!(name));
            }
            Self::Direct { protocol, ports } => {
                let protocol = match protocol {
                    Protocol::Any => json!("any"),
                    Protocol::Number(number) => protocol_value(*number),
                };
                map.insert("protocol".into(), protocol);
                match ports {
                    Ports::All => {}
                    Ports::Range(low, high) => {
                        map.insert("port".into(), json!(low));
                        if low != high {
                            map.insert("endPort".into(), json!(high));
                        }
                    }
                    Ports::Named(name) => {
                        map.insert("port".into(), json!(name));
                    }
                    Ports::Icmp { kind, code } => {
                        map.insert("type".into(), json!(kind));
                        if let Some(code) = code {
                            map.insert("code".into(), json!(code));
                        }
                    }
                }
            }
        }
        map.serialize(serializer)
    }
}

/// `tcp/80-90`, `icmp type 8`: the short form for people.
impl std::fmt::Display for PortSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (protocol, ports) = match self {
            Self::Service(name) => return write!(f, "service {name}"),
            Self::Direct { protocol, ports } => (protocol, ports),
        };
        match protocol {
            Protocol::Any => f.write_str("any")?,
            Protocol::Number(number) => f.write_str(&protocol_name(*number))?,
        }
        match ports {
            Ports::All => Ok(()),
            Ports::Range(low, high) if low == high => write!(f, "/{low}"),
            Ports::Range(low, high) => write!(f, "/{low}-{high}"),
            Ports::Named(name) => write!(f, "/{name}"),
            Ports::Icmp { kind, code: None } => write!(f, " type {kind}"),
            Ports::Icmp {
                kind,
                code: Some(code),
            } => write!(f, " type {kind} code {code}"),
        }
    }
}
