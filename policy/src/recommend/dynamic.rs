//! Services on ports that change: RPC endpoints, passive FTP, anything that binds to "any free port".
//!
//! A rule a port would be wrong tomorrow. Such ports are collapsed to one range, per group of servers and
//! program. What a program always listens on stays a port of its own.

use std::collections::{BTreeMap, BTreeSet};

use super::observe::{Key, Recording, Seen};

/// So many changing ports make a service on changing ports.
const LEAST: usize = 8;

/// Ranges that systems take free ports from: IANA's (and Windows'), Linux's, both.
const RANGES: [(u16, u16); 3] = [(49_152, 65_535), (32_768, 60_999), (32_768, 65_535)];

/// What an edge is about, as far as rules are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Svc {
    /// One port.
    Fixed { protocol: u8, port: u16 },
    /// The changing ports of a program (index + 1; 0 = not known which).
    Dynamic { protocol: u8, process: u32 },
}

impl Svc {
    pub(crate) fn protocol(self) -> u8 {
        match self {
            Self::Fixed { protocol, .. } | Self::Dynamic { protocol, .. } => protocol,
        }
    }
}

/// What is known of one port of one server.
#[derive(Default)]
struct PortUse {
    clients: usize,
    hours: u64,
}

impl PortUse {
    /// Used for a short while by one or two: what a port of the moment looks like.
    fn is_passing(&self) -> bool {
        self.hours.count_ones() <= 2 && self.clients <= 2
    }
}

/// The service of every edge, in their order.
pub(crate) fn services(recording: &Recording, wanted: &[bool], from: u16) -> Vec<Svc> {
    let edges = || {
        recording
            .edges
            .iter()
            .zip(wanted)
            .filter(|(_, wanted)| **wanted)
    };
    let mut uses: BTreeMap<(u32, u8, u32), BTreeMap<u16, PortUse>> = BTreeMap::new();
    let mut programs: BTreeMap<(u32, u8), BTreeMap<u16, BTreeSet<u32>>> = BTreeMap::new();
    for ((key, seen), _) in edges() {
        if key.port < from || !datapath::ids::protocol::has_ports(key.protocol) {
            continue;
        }
        let ports = uses
            .entry((key.destination, key.protocol, seen.process))
            .or_default();
        let port = ports.entry(key.port).or_default();
        port.clients += 1;
        port.hours |= seen.hours;
        if seen.process != 0 {
            let ports = programs.entry((seen.process, key.protocol)).or_default();
            ports.entry(key.port).or_default().insert(key.destination);
        }
    }
    // On one server, ports come and go.
    for ports in uses.values_mut() {
        ports.retain(|_, port| port.is_passing());
    }
    uses.retain(|_, ports| ports.len() >= LEAST);
    // One program has another port on nearly every server, for good.
    programs.retain(|_, ports| {
        ports.retain(|_, servers| servers.len() <= 2);
        ports.len() >= LEAST
    });
    let is_dynamic = |key: &Key, seen: &Seen| {
        let here = uses.get(&(key.destination, key.protocol, seen.process));
        let everywhere = programs.get(&(seen.process, key.protocol));
        here.is_some_and(|ports| ports.contains_key(&key.port))
            || everywhere.is_some_and(|ports| ports.contains_key(&key.port))
    };
    recording
        .edges
        .iter()
        .map(|(key, seen)| {
            if is_dynamic(key, seen) {
                Svc::Dynamic {
                    protocol: key.protocol,
                    process: seen.process,
                }
            } else {
                Svc::Fixed {
                    protocol: key.protocol,
                    port: key.port,
                }
            }
        })
        .collect()
}

/// The range to write for some ports: the one that the system takes free ports from, where they all lie in
/// one, because tomorrow's port will lie there too; otherwise from the first to the last.
pub(crate) fn range(low: u16, high: u16) -> (u16, u16) {
    RANGES
        .into_iter()
        .find(|(first, last)| *first <= low && high <= *last)
        .unwrap_or((low, high))
}
