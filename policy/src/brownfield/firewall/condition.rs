//! What a condition on a packet says about the connection that the packet belongs to.

use std::net::IpAddr;

use super::{AddressKind, Clause, HostOptions, Match, Phase, States, Way};
use crate::brownfield::intervals::{Addresses, Intervals};
use crate::brownfield::region::{Cell, protocol_services, service};
use datapath::ids::protocol;

/// Ports that a client is given; those below are only taken on purpose.
const CLIENT_PORTS: (u16, u16) = (1024, u16::MAX);

/// Bits of TCP flags.
pub(crate) const FLAGS: [(&str, u8); 8] = [
    ("fin", 0x01),
    ("syn", 0x02),
    ("rst", 0x04),
    ("psh", 0x08),
    ("ack", 0x10),
    ("urg", 0x20),
    ("ecn", 0x40),
    ("cwr", 0x80),
];

/// ICMP questions and their answers: protocol, type of each.
const QUESTIONS: [(u8, u8, u8); 5] = [
    (protocol::ICMP, 8, 0),
    (protocol::ICMP, 13, 14),
    (protocol::ICMP, 15, 16),
    (protocol::ICMP, 17, 18),
    (protocol::ICMPV6, 128, 129),
];

/// What a packet is looked at for.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) options: &'a HostOptions,
    pub(crate) way: Way,
    pub(crate) phase: Phase,
    pub(crate) untracked: bool,
}

/// Flows that may meet a conjunction, and what keeps it from being certain.
#[derive(Debug)]
pub(crate) struct Meaning {
    pub(crate) cell: Cell,
    pub(crate) unknown: Vec<String>,
}

impl Context<'_> {
    /// The meaning of a clause's conditions.
    pub(crate) fn clause(&self, clause: &Clause) -> Meaning {
        let mut meaning = Meaning {
            cell: Cell::all(),
            unknown: Vec::new(),
        };
        for condition in &clause.matches {
            let (cell, unknown) = self.condition(condition);
            meaning.cell = meaning.cell.intersection(&cell);
            meaning.unknown.extend(unknown);
        }
        meaning
    }

    fn condition(&self, condition: &Match) -> (Cell, Option<String>) {
        let is_in = self.way == Way::In;
        match condition {
            Match::Source(set) if is_in => peers(set.clone()),
            Match::Destination(set) if !is_in => peers(set.clone()),
            Match::Source(set) | Match::Destination(set) => self.own_address(set),
            Match::Protocols(set) => services(set.clone()),
            Match::DestinationPort(set) if self.phase == Phase::Reply => {
                client_port(set, CLIENT_PORTS)
            }
            Match::DestinationPort(set) => services(set.clone()),
            Match::SourcePort(set) if self.phase == Phase::Reply => services(set.clone()),
            // A client may take any port, also one below 1024.
            Match::SourcePort(set) => client_port(set, (1, u16::MAX)),
            Match::Icmp(set) if self.phase == Phase::Reply => services(answered_by(set)),
            Match::Icmp(set) => services(set.clone()),
            Match::State(states) => self.state(*states),
            Match::Original(original) => certain(*original == (self.phase != Phase::Reply)),
            Match::TcpFlags {
                mask,
                value,
                negated,
            } => self.flags(*mask, *value, *negated),
            Match::InDevice(name, negated) if is_in => self.device(name, *negated),
            Match::OutDevice(name, negated) if !is_in => self.device(name, *negated),
            // A packet that comes in has no outgoing device yet, and the other way round.
            Match::InDevice(_, negated) | Match::OutDevice(_, negated) => certain(*negated),
            Match::SourceKind(kind, negated) => address_kind(*kind, *negated, is_in),
            Match::DestinationKind(kind, negated) => address_kind(*kind, *negated, !is_in),
            Match::PacketKind(kind, negated) if is_in => address_kind(*kind, *negated, false),
            Match::PacketKind(..) => (
                Cell::all(),
                Some("it depends on how the packet is addressed on the link".into()),
            ),
            Match::Never(_) => certain(false),
            Match::Unknown(text) => (Cell::all(), Some(text.clone())),
        }
    }

    /// A condition on the host's own address, which a policy's subject stands for.
    fn own_address(&self, set: &Addresses) -> (Cell, Option<String>) {
        let mut possible = Addresses::default();
        let mut unknown = false;
        let families = [
            (&set.v4, Addresses::all_v4(), true),
            (&set.v6, Addresses::all_v6(), false),
        ];
        for (part, family, is_v4) in families {
            let whole = if is_v4 { &family.v4 } else { &family.v6 };
            let mut own = self
                .options
                .addresses
                .iter()
                .map(IpAddr::to_canonical)
                .filter(|address| address.is_ipv4() == is_v4)
                .peekable();
            let (some, all) = if part == whole {
                (true, true)
            } else if own.peek().is_none() {
                (!part.is_empty(), part.is_empty())
            } else {
                own.fold((false, true), |(some, all), address| {
                    let inside = set.contains(address);
                    (some || inside, all && inside)
                })
            };
            if some {
                possible = possible.union(&family);
                unknown |= !all;
            }
        }
        let text = "it depends on which of its own addresses the host is reached at; say --address";
        (peer_cell(possible), unknown.then(|| text.to_owned()))
    }

    fn state(&self, states: States) -> (Cell, Option<String>) {
        let met = match self.phase {
            Phase::Opening => states.new,
            Phase::Later | Phase::Reply => states.established,
        };
        // Where some packets are not tracked, they are in that state instead.
        if self.untracked && met != states.untracked {
            let text =
                "some packets are exempt from connection tracking, so their state is not known";
            return (Cell::all(), Some(text.into()));
        }
        certain(met)
    }

    /// Ordinary packets: SYN opens, SYN+ACK and ACK answer, ACK goes on.
    fn flags(&self, mask: u8, value: u8, negated: bool) -> (Cell, Option<String>) {
        let packets: &[u8] = match self.phase {
            Phase::Opening => &[0x02],
            Phase::Later => &[0x10],
            Phase::Reply => &[0x12, 0x10],
        };
        let met = |packet: &u8| (packet & mask == value) != negated;
        let whether = packets.iter().all(met);
        if whether != packets.iter().any(met) {
            return (Cell::all(), Some("it matches some TCP flags only".into()));
        }
        if mask & 0xc0 != 0 {
            return (Cell::all(), Some("it looks at the ECN flags of TCP".into()));
        }
        certain(whether)
    }

    fn device(&self, pattern: &str, negated: bool) -> (Cell, Option<String>) {
        let fits = |name: &str| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == pattern,
        };
        let mut known = self.options.interfaces.iter().map(|name| fits(name));
        let met = match (pattern, known.next()) {
            ("*", _) => Some(true),
            // Over lo nothing is ever filtered, and nothing else comes over it.
            ("lo", _) => Some(false),
            (_, None) => None,
            (_, Some(first)) => known.all(|other| other == first).then_some(first),
        };
        match met {
            Some(met) => certain(met != negated),
            None => (
                Cell::all(),
                Some(format!(
                    "policy has no interfaces ({pattern}); say --interface if all traffic uses the same"
                )),
            ),
        }
    }
}

/// Flows whose packets need no answer to be of use: ICMP that asks nothing.
pub(crate) fn without_answers() -> Intervals {
    QUESTIONS.iter().fold(
        protocol_services(protocol::ICMP).union(&protocol_services(protocol::ICMPV6)),
        |left, (protocol, question, _)| left.difference(&kind(*protocol, *question)),
    )
}

fn kind(protocol: u8, kind: u8) -> Intervals {
    let low = service(protocol, u16::from_be_bytes([kind, 0]));
    Intervals::range(low, low + 255)
}

/// Questions whose answers are in the set.
fn answered_by(set: &Intervals) -> Intervals {
    QUESTIONS
        .iter()
        .filter(|(protocol, _, answer)| {
            set.covers(&Intervals::range(
                service(*protocol, u16::from_be_bytes([*answer, 0])),
                service(*protocol, u16::from_be_bytes([*answer, 0])),
            ))
        })
        .fold(Intervals::EMPTY, |found, (protocol, question, _)| {
            found.union(&kind(*protocol, *question))
        })
}

/// A condition on the port of the client, of which only the usual range is known.
fn client_port(set: &Intervals, usual: (u16, u16)) -> (Cell, Option<String>) {
    let mut possible = Intervals::EMPTY;
    let mut unknown = false;
    for protocol in 0..=u8::MAX {
        let whole = protocol_services(protocol);
        let part = set.intersection(&whole);
        let ports = Intervals::range(service(protocol, usual.0), service(protocol, usual.1));
        if part.intersection(&ports).is_empty() {
            continue;
        }
        possible = possible.union(&whole);
        unknown |= !part.covers(&ports);
    }
    let text = "it depends on the client's port, which policy does not look at";
    (service_cell(possible), unknown.then(|| text.to_owned()))
}

fn address_kind(kind: AddressKind, negated: bool, is_peer: bool) -> (Cell, Option<String>) {
    if !is_peer {
        return certain((kind == AddressKind::Local) != negated);
    }
    match kind {
        // The peer is never the host itself.
        AddressKind::Local => certain(negated),
        AddressKind::Multicast => {
            let nets = ["224.0.0.0/4", "ff00::/8"];
            let set = Addresses::nets(nets.iter().filter_map(|net| net.parse().ok()));
            if negated {
                peers(Addresses::all().difference(&set))
            } else {
                peers(set)
            }
        }
        AddressKind::Other => (
            Cell::all(),
            Some("it depends on the host's routing table".into()),
        ),
    }
}

fn certain(met: bool) -> (Cell, Option<String>) {
    let cell = if met {
        Cell::all()
    } else {
        peer_cell(Addresses::default())
    };
    (cell, None)
}

fn peers(set: Addresses) -> (Cell, Option<String>) {
    (peer_cell(set), None)
}

fn services(set: Intervals) -> (Cell, Option<String>) {
    (service_cell(set), None)
}

fn peer_cell(peers: Addresses) -> Cell {
    Cell {
        peers,
        ..Cell::all()
    }
}

fn service_cell(services: Intervals) -> Cell {
    Cell {
        services,
        ..Cell::all()
    }
}

/// The questions of an ICMP, and what answers each.
pub(crate) fn answers(protocol: u8) -> Vec<(Intervals, Intervals)> {
    QUESTIONS
        .iter()
        .filter(|(own, ..)| *own == protocol)
        .map(|(_, question, answer)| {
            let low = service(protocol, u16::from_be_bytes([*answer, 0]));
            (kind(protocol, *question), Intervals::range(low, low))
        })
        .collect()
}
