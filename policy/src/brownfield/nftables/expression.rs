//! Left sides of comparisons: what is looked at in a packet.

use serde_json::Value;

use super::values;
use crate::brownfield::firewall::condition::FLAGS;
use crate::brownfield::firewall::{AddressKind, Match, States, names};
use crate::brownfield::intervals::{Addresses, Intervals};
use crate::brownfield::json;
use crate::brownfield::region::{port_services, protocol_services, service};
use crate::ports::PORTED;
use datapath::ids::protocol;

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// An address: of the source or not, IPv6 or not.
    Address { source: bool, v6: bool },
    /// A port of a protocol (`None`: of TCP, UDP or SCTP, whichever it is).
    Port { source: bool, protocol: Option<u8> },
    /// The transport protocol; of packets of one family, if it says one.
    Protocol(Option<bool>),
    /// IPv4 or IPv6.
    Family,
    /// Type of ICMP or ICMPv6.
    IcmpType { v6: bool },
    /// Code of ICMP or ICMPv6.
    IcmpCode { v6: bool },
    /// State of connection tracking.
    State,
    /// Direction within the connection.
    Direction,
    /// Device that the packet came in by, or will leave by.
    Device { incoming: bool },
    /// Kind of an address as the routing table sees it.
    Kind { source: bool },
    /// How the packet is addressed on the link.
    PacketKind,
    /// TCP flags, masked.
    Flags(Option<u8>),
}

impl Field {
    /// Reads a left side; `None` when policy has no word for it.
    pub(super) fn of(left: &Value) -> Option<Self> {
        if let Some(payload) = left.get("payload") {
            return Self::payload(
                json::text(payload, "protocol")?,
                json::text(payload, "field")?,
            );
        }
        if let Some(meta) = left.get("meta") {
            let key = meta.as_str().or_else(|| json::text(meta, "key"))?;
            return Some(match key {
                "l4proto" => Self::Protocol(None),
                "nfproto" | "protocol" => Self::Family,
                "iif" | "iifname" => Self::Device { incoming: true },
                "pkttype" => Self::PacketKind,
                "oif" | "oifname" => Self::Device { incoming: false },
                _ => return None,
            });
        }
        if let Some(ct) = left.get("ct") {
            return match (json::text(ct, "key")?, ct.get("dir")) {
                ("state", None) => Some(Self::State),
                ("direction", None) => Some(Self::Direction),
                _ => None,
            };
        }
        if let Some(fib) = left.get("fib") {
            let flags = match fib.get("flags") {
                Some(Value::Array(flags)) => flags.iter().filter_map(Value::as_str).collect(),
                Some(Value::String(flag)) => vec![flag.as_str()],
                _ => Vec::new(),
            };
            return match (json::text(fib, "result")?, flags.as_slice()) {
                ("type", ["daddr"]) => Some(Self::Kind { source: false }),
                ("type", ["saddr"]) => Some(Self::Kind { source: true }),
                _ => None,
            };
        }
        let masked = left.get("&")?.as_array()?;
        match (masked.as_slice(), Self::of(masked.first()?)?) {
            ([_, mask], Self::Flags(None)) => Some(Self::Flags(Some(flags(mask)?))),
            _ => None,
        }
    }

    fn payload(header: &str, field: &str) -> Option<Self> {
        Some(match (header, field) {
            ("ip", "saddr") => Self::Address {
                source: true,
                v6: false,
            },
            ("ip", "daddr") => Self::Address {
                source: false,
                v6: false,
            },
            ("ip6", "saddr") => Self::Address {
                source: true,
                v6: true,
            },
            ("ip6", "daddr") => Self::Address {
                source: false,
                v6: true,
            },
            ("ip", "protocol") => Self::Protocol(Some(false)),
            ("ip6", "nexthdr") => Self::Protocol(Some(true)),
            ("icmp", "type") => Self::IcmpType { v6: false },
            ("icmpv6", "type") => Self::IcmpType { v6: true },
            ("icmp", "code") => Self::IcmpCode { v6: false },
            ("icmpv6", "code") => Self::IcmpCode { v6: true },
            ("tcp", "flags") => Self::Flags(None),
            (_, "sport" | "dport") => Self::Port {
                source: field == "sport",
                protocol: match header {
                    "tcp" => Some(protocol::TCP),
                    "udp" => Some(protocol::UDP),
                    "sctp" => Some(protocol::SCTP),
                    "th" => None,
                    _ => return None,
                },
            },
            _ => return None,
        })
    }

    /// Conditions that the comparison of some values with the field is. `None`: policy has no word for it.
    pub(super) fn compare(self, operator: &str, values: &[&Value]) -> Option<Vec<Match>> {
        let negated = match operator {
            "==" | "in" => false,
            "!=" => true,
            "<" | ">" | "<=" | ">=" => return self.order(operator, values),
            _ => return None,
        };
        match self {
            Self::Address { source, v6 } => {
                let mut set = Addresses::default();
                for value in values {
                    set = set.union(&values::address(value)?);
                }
                let family = family(v6);
                let set = if negated {
                    family.difference(&set)
                } else {
                    family.intersection(&set)
                };
                Some(vec![if source {
                    Match::Source(set)
                } else {
                    Match::Destination(set)
                }])
            }
            Self::Port { .. }
            | Self::Protocol(_)
            | Self::IcmpType { .. }
            | Self::IcmpCode { .. } => {
                let mut set = Intervals::EMPTY;
                for value in values {
                    set = set.union(&values::number(value, &|name| self.word(name))?);
                }
                let whole = Intervals::range(0, self.last().into());
                self.numbers(&if negated { whole.difference(&set) } else { set })
            }
            Self::Family => Self::families(values, negated),
            Self::State => {
                let mut states = States::default();
                for value in values {
                    if !states.add(value.as_str()?) {
                        return None;
                    }
                }
                Some(vec![Match::State(if negated {
                    states.negated()
                } else {
                    states
                })])
            }
            Self::Direction => match values {
                [value] => Some(vec![Match::Original(
                    (value.as_str()? == "original") != negated,
                )]),
                _ => None,
            },
            Self::Device { incoming } => match values {
                [value] => {
                    let name = value.as_str()?.to_owned();
                    Some(vec![if incoming {
                        Match::InDevice(name, negated)
                    } else {
                        Match::OutDevice(name, negated)
                    }])
                }
                _ => None,
            },
            Self::PacketKind => match values {
                [value] => {
                    let kind = match value.as_str()? {
                        "host" | "unicast" => AddressKind::Local,
                        "multicast" => AddressKind::Multicast,
                        _ => AddressKind::Other,
                    };
                    Some(vec![Match::PacketKind(kind, negated)])
                }
                _ => None,
            },
            Self::Kind { source } => match values {
                [value] => {
                    let kind = match value.as_str()? {
                        "local" => AddressKind::Local,
                        "multicast" => AddressKind::Multicast,
                        _ => AddressKind::Other,
                    };
                    Some(vec![if source {
                        Match::SourceKind(kind, negated)
                    } else {
                        Match::DestinationKind(kind, negated)
                    }])
                }
                _ => None,
            },
            Self::Flags(mask) => {
                // `in` asks whether any of some flags is set: not (all of them are clear).
                let any = operator == "in";
                let mut given = 0;
                for value in values {
                    given |= flags(value)?;
                }
                if values.len() != 1 && !any {
                    return None;
                }
                let (mask, value, negated) = match (any, mask) {
                    (true, None) => (given, 0, true),
                    (true, Some(_)) => return None,
                    (false, mask) => (mask.unwrap_or(0xff), given, negated),
                };
                Some(vec![
                    Match::Protocols(protocol_services(protocol::TCP)),
                    Match::TcpFlags {
                        mask,
                        value,
                        negated,
                    },
                ])
            }
        }
    }

    /// Several names of devices at once: whether one of them fits is asked in turn.
    pub(super) const fn is_one_by_one(self) -> bool {
        matches!(
            self,
            Self::Device { .. } | Self::Kind { .. } | Self::PacketKind
        )
    }

    fn order(self, operator: &str, values: &[&Value]) -> Option<Vec<Match>> {
        let [value] = values else {
            return None;
        };
        let bound = values::number(value, &|name| self.word(name))?;
        let (bound, _) = *bound.ranges().first()?;
        let last = u128::from(self.last());
        let set = match operator {
            "<" if bound == 0 => Intervals::EMPTY,
            "<" => Intervals::range(0, bound - 1),
            "<=" => Intervals::range(0, bound),
            ">" => Intervals::range(bound + 1, last),
            _ => Intervals::range(bound, last),
        };
        self.numbers(&set)
    }

    const fn last(self) -> u16 {
        match self {
            Self::Port { .. } => u16::MAX,
            _ => 255,
        }
    }

    fn word(self, name: &str) -> Option<u16> {
        match self {
            Self::Protocol(_) => names::protocol(name),
            Self::IcmpType { v6 } => names::icmp_type(v6, name),
            Self::IcmpCode { v6 } => names::icmp_code(v6, name),
            _ => None,
        }
        .map(u16::from)
    }

    /// Conditions that a number of the field in a set is.
    fn numbers(self, set: &Intervals) -> Option<Vec<Match>> {
        let ranges = || {
            set.ranges().iter().map(|(low, high)| {
                let narrow = |end: u128| u16::try_from(end).unwrap_or(u16::MAX);
                (narrow(*low), narrow(*high))
            })
        };
        Some(match self {
            Self::Port { source, protocol } => {
                let protocols = protocol.map_or_else(|| PORTED.to_vec(), |one| vec![one]);
                let services = protocols.iter().fold(Intervals::EMPTY, |all, protocol| {
                    ranges().fold(all, |all, (low, high)| {
                        all.union(&port_services(*protocol, low, high))
                    })
                });
                let port = if source {
                    Match::SourcePort(services)
                } else {
                    Match::DestinationPort(services)
                };
                vec![port]
            }
            Self::Protocol(of) => {
                let services = Intervals::from_ranges(
                    set.ranges()
                        .iter()
                        .map(|(low, high)| (low << 16, (high << 16) | 0xffff)),
                );
                let mut all = vec![Match::Protocols(services)];
                all.extend(of.map(|v6| Match::Source(family(v6))));
                all
            }
            Self::IcmpType { v6 } => {
                let protocol = icmp(v6);
                let services = Intervals::from_ranges(ranges().map(|(low, high)| {
                    (
                        service(protocol, low << 8),
                        service(protocol, high << 8 | 255),
                    )
                }));
                vec![Match::Source(family(v6)), Match::Icmp(services)]
            }
            Self::IcmpCode { v6 } => {
                let protocol = icmp(v6);
                let services = Intervals::from_ranges((0..=255_u16).flat_map(|kind| {
                    ranges().map(move |(low, high)| {
                        (
                            service(protocol, kind << 8 | low),
                            service(protocol, kind << 8 | high),
                        )
                    })
                }));
                vec![Match::Source(family(v6)), Match::Icmp(services)]
            }
            _ => return None,
        })
    }

    fn families(values: &[&Value], negated: bool) -> Option<Vec<Match>> {
        let mut set = Addresses::default();
        for value in values {
            set = set.union(&match value.as_str()? {
                "ipv4" | "ip" => family(false),
                "ipv6" | "ip6" => family(true),
                // ARP and the like: no IP.
                _ => Addresses::default(),
            });
        }
        Some(vec![Match::Source(if negated {
            Addresses::all().difference(&set)
        } else {
            set
        })])
    }
}

const fn icmp(v6: bool) -> u8 {
    if v6 { protocol::ICMPV6 } else { protocol::ICMP }
}

fn family(v6: bool) -> Addresses {
    if v6 {
        Addresses::all_v6()
    } else {
        Addresses::all_v4()
    }
}

/// TCP flags: a name, a list of names, or names joined with `|`.
fn flags(value: &Value) -> Option<u8> {
    match value {
        Value::String(name) => FLAGS
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, bit)| *bit),
        Value::Number(number) => number.as_u64().and_then(|bits| u8::try_from(bits).ok()),
        Value::Array(parts) => parts
            .iter()
            .try_fold(0, |all, part| Some(all | flags(part)?)),
        Value::Object(map) => map.get("|").and_then(flags),
        _ => None,
    }
}
