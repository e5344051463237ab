//! The deny-rate breaker: while a change waits for its confirmation, it counts the distinct edges that were in use
//! before and are denied now.
//!
//! An edge is direction, peer, protocol and port. What was never in use does not count, so that a scan, whatever its
//! rate, cannot trip it; nor does an isolation, which is meant to cut. Pure: times are arguments.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;

use datapath::drop_reason::DropReason;
use datapath::ids::protocol;
use datapath::packet::tcp;
use serde::{Deserialize, Serialize};

use crate::flows::Record;

/// Most edges that are remembered.
const REMEMBERED: usize = 65_536;
/// Edges that a report names.
const NAMED: usize = 20;

/// Who this host exchanged packets with, on which port of the responder.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Edge {
    /// The peer began.
    pub ingress: bool,
    /// The other end.
    pub peer: IpAddr,
    /// IANA number.
    pub protocol: u8,
    /// Port of the responder; ICMP: type × 256 + code.
    pub port: u16,
}

impl fmt::Display for Edge {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arrow = if self.ingress { "from" } else { "to" };
        let protocol = policy::ports::protocol_name(self.protocol);
        write!(out, "{arrow} {} {protocol}/{}", self.peer, self.port)
    }
}

/// What the breaker needs to know of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sight {
    /// Of which edge.
    pub edge: Edge,
    /// Its packets passed.
    pub allowed: bool,
    /// The peer took part: somebody uses this edge. A refused connection does not count.
    pub answered: bool,
    /// The denial comes from an isolation.
    pub isolated: bool,
    /// Generation of the content that judged.
    pub generation: u32,
}

impl Sight {
    /// Of a record.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        let ingress = record.direction == "ingress";
        // A refused connection is one packet each way; a connection takes three.
        let answered = record.packets_in > 0
            && (record.protocol != protocol::TCP
                || (record.packets_out > 1 && record.tcp_flags & tcp::ACK != 0));
        Self {
            edge: Edge {
                ingress,
                peer: if ingress {
                    record.initiator
                } else {
                    record.responder
                },
                protocol: record.protocol,
                port: record.responder_port,
            },
            allowed: record.allowed,
            answered,
            isolated: [DropReason::Isolated, DropReason::PeerIsolated]
                .iter()
                .any(|reason| reason.name() == record.reason),
            generation: record.generation,
        }
    }
}

/// When it trips.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// It trips when more edges than this are cut; `None` = never.
    pub edges: Option<u32>,
    /// For how long an edge counts as in use after it was seen, nanoseconds.
    pub memory_ns: i64,
}

/// A change that cut too much.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Trip {
    /// The revision that did it.
    pub revision: u64,
    /// UTC nanoseconds.
    pub at_ns: i64,
    /// Edges that were in use and were denied by then; the first few.
    pub edges: Vec<Edge>,
    /// How many there were.
    pub count: usize,
    /// What went before is enforced again.
    pub fell_back: bool,
}

impl fmt::Display for Trip {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            revision, count, ..
        } = self;
        write!(
            out,
            "revision {revision} cuts {count} edges that were in use:"
        )?;
        for edge in self.edges.iter().take(3) {
            write!(out, " {edge},")?;
        }
        out.write_str(if self.fell_back {
            " what went before is enforced again"
        } else {
            " it goes on until its deadline"
        })
    }
}

#[derive(Clone, Debug)]
struct Watch {
    revision: u64,
    /// Generations later than this are those of the change.
    after: u32,
    /// UTC nanoseconds.
    until: i64,
    since: i64,
    cut: BTreeSet<Edge>,
    tripped: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Breaker {
    settings: Settings,
    /// Edge → UTC nanoseconds at which it was last seen in use.
    used: HashMap<Edge, i64>,
    watch: Option<Watch>,
}

impl Breaker {
    /// One that has seen nothing.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            used: HashMap::new(),
            watch: None,
        }
    }

    /// Whether it can trip at all.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.settings.edges.is_some()
    }

    /// An edge is in use now.
    pub fn in_use(&mut self, edge: Edge, now_ns: i64) {
        if self.used.len() >= REMEMBERED && !self.used.contains_key(&edge) {
            let since = now_ns.saturating_sub(self.settings.memory_ns);
            self.used.retain(|_, at| *at >= since);
            if self.used.len() >= REMEMBERED {
                return;
            }
        }
        self.used.insert(edge, now_ns);
    }

    /// A change of a generation later than `after` is about to be made; it waits for its confirmation until
    /// `until_ns`.
    pub fn watch(&mut self, revision: u64, after: u32, now_ns: i64, until_ns: i64) {
        self.watch = Some(Watch {
            revision,
            after,
            until: until_ns,
            since: now_ns,
            cut: BTreeSet::new(),
            tripped: false,
        });
    }

    /// The change was confirmed, taken back or not made.
    pub fn rest(&mut self) {
        self.watch = None;
    }

    /// A record. `Some` once, when it is the one that trips.
    pub fn see(&mut self, sight: &Sight, now_ns: i64) -> Option<Trip> {
        let limit = self.settings.edges?;
        if sight.allowed {
            if sight.answered {
                self.in_use(sight.edge, now_ns);
            }
            return None;
        }
        let watch = self.watch.as_mut()?;
        let of_the_change = sight.generation.wrapping_sub(watch.after).cast_signed() > 0;
        if watch.tripped || sight.isolated || now_ns > watch.until || !of_the_change {
            return None;
        }
        let oldest = watch.since.saturating_sub(self.settings.memory_ns);
        if self.used.get(&sight.edge).is_none_or(|at| *at < oldest) {
            return None;
        }
        watch.cut.insert(sight.edge);
        if watch.cut.len() <= limit as usize {
            return None;
        }
        watch.tripped = true;
        Some(Trip {
            revision: watch.revision,
            at_ns: now_ns,
            edges: watch.cut.iter().take(NAMED).copied().collect(),
            count: watch.cut.len(),
            fell_back: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000_000_000;
    const NOW: i64 = 100 * MINUTE;

    fn breaker(edges: u32) -> Breaker {
        Breaker::new(Settings {
            edges: Some(edges),
            memory_ns: 10 * MINUTE,
        })
    }

    fn edge(port: u16) -> Edge {
        Edge {
            ingress: true,
            peer: "10.0.0.9".parse().expect("address"),
            protocol: 6,
            port,
        }
    }

    fn used(port: u16) -> Sight {
        Sight {
            edge: edge(port),
            allowed: true,
            answered: true,
            isolated: false,
            generation: 4,
        }
    }

    fn denied(port: u16) -> Sight {
        Sight {
            allowed: false,
            answered: false,
            generation: 6,
            ..used(port)
        }
    }

    #[test]
    fn it_trips_at_one_edge_more_than_allowed_and_once() {
        let mut breaker = breaker(4);
        for port in 0..10 {
            assert_eq!(breaker.see(&used(port), NOW), None);
        }
        breaker.watch(7, 4, NOW, NOW + MINUTE);
        for port in 0..4 {
            for _ in 0..100 {
                assert_eq!(breaker.see(&denied(port), NOW + 1), None, "the same edges");
            }
        }
        let trip = breaker.see(&denied(4), NOW + 2).expect("the fifth");
        assert_eq!((trip.revision, trip.count, trip.at_ns), (7, 5, NOW + 2));
        assert_eq!(trip.edges, (0..5).map(edge).collect::<Vec<_>>());
        assert_eq!(breaker.see(&denied(5), NOW + 3), None, "once");
        assert!(
            trip.to_string()
                .starts_with("revision 7 cuts 5 edges that were in use: from 10.0.0.9 tcp/0,"),
            "{trip}"
        );
    }

    #[test]
    fn what_nobody_used_does_not_count() {
        let mut breaker = breaker(4);
        let passed = Sight {
            answered: false,
            ..used(0)
        };
        for port in 0..1000 {
            // Let in by observe mode, and refused by the host.
            let edge = edge(port);
            assert_eq!(breaker.see(&Sight { edge, ..passed }, NOW), None);
        }
        breaker.watch(7, 4, NOW, NOW + MINUTE);
        for port in 0..2000 {
            assert_eq!(breaker.see(&denied(port), NOW + 1), None, "a scan");
        }
    }

    #[test]
    fn only_of_the_change_in_its_window_and_not_by_isolation() {
        let five = |breaker: &mut Breaker, sight: &dyn Fn(u16) -> Sight, at| {
            (0..5).any(|port| breaker.see(&sight(port), at).is_some())
        };
        let mut fresh = breaker(4);
        for port in 0..5 {
            fresh.in_use(edge(port), NOW);
        }
        let mut idle = fresh.clone();
        assert!(!five(&mut idle, &denied, NOW), "nothing waits");
        fresh.watch(7, 4, NOW, NOW + MINUTE);
        let before = |port| Sight {
            generation: 4,
            ..denied(port)
        };
        assert!(!five(&mut fresh.clone(), &before, NOW), "denied before");
        let isolated = |port| Sight {
            isolated: true,
            ..denied(port)
        };
        assert!(!five(&mut fresh.clone(), &isolated, NOW), "meant to cut");
        assert!(!five(&mut fresh.clone(), &denied, NOW + MINUTE + 1), "late");
        let mut over = fresh.clone();
        over.rest();
        assert!(!five(&mut over, &denied, NOW), "confirmed");
        assert!(five(&mut fresh, &denied, NOW + MINUTE), "in time");
        let mut old = breaker(4);
        for port in 0..5 {
            old.in_use(edge(port), NOW - 10 * MINUTE - 1);
        }
        old.watch(7, 4, NOW, NOW + MINUTE);
        assert!(!five(&mut old, &denied, NOW), "used long ago");
        let mut off = Breaker::new(Settings {
            edges: None,
            memory_ns: MINUTE,
        });
        off.watch(7, 4, NOW, NOW + MINUTE);
        assert!(!five(&mut off, &denied, NOW) && !off.is_on());
    }

    #[test]
    fn the_memory_has_an_end_and_forgets_the_old_first() {
        let mut breaker = breaker(0);
        let peer = |number: u32| Edge {
            peer: std::net::Ipv4Addr::from(number).into(),
            ..edge(1)
        };
        for number in 0..70_000 {
            breaker.in_use(peer(number), NOW);
        }
        assert_eq!(breaker.used.len(), REMEMBERED);
        breaker.in_use(peer(99_999), NOW + 11 * MINUTE);
        assert_eq!(breaker.used.len(), 1);
    }
}
