//! What may become a rule at all: scans, failures, answers taken for openings and what existing policies
//! already decide are sorted out here, with the reason.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use super::Options;
use super::existing::{Existing, Ruling};
use super::observe::{Key, NodeKind, Recording, Seen};
use crate::snapshot::FlowDirection;

/// Why an edge does not become a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeptOut {
    /// Seen in too few hours or flows, together with all that a rule would put beside it.
    Rare,
    /// Last seen long before the end of the recording.
    Stale,
    /// Every flow was denied or unanswered.
    Failed,
    /// Part of what a scanner tried.
    Scan,
    /// Looks like the answer of a service, recorded with its ends exchanged.
    Reversed,
    /// A rule of the existing policies denies it.
    Denied,
    /// Two workloads claim the address of an end: no rule can allow it.
    Unknown,
    /// It is about workloads that the recommendation was not asked for.
    Elsewhere,
}

impl KeptOut {
    /// The word in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rare => "rare",
            Self::Stale => "stale",
            Self::Failed => "failed",
            Self::Scan => "scan",
            Self::Reversed => "reversed",
            Self::Denied => "denied",
            Self::Unknown => "unknown",
            Self::Elsewhere => "elsewhere",
        }
    }
}

/// What becomes of an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// A rule is wanted at the ends that are named here.
    Wanted { egress: bool, ingress: bool },
    /// The existing policies allow it.
    Allowed,
    /// No rule.
    Out(KeptOut),
    /// Not part of any count: within one workload, or between strangers.
    Ignored,
}

/// A source that tries what is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Scanner {
    /// Workload or address.
    pub source: String,
    /// Different destinations and ports that it tried.
    pub targets: usize,
    /// Different destinations.
    pub hosts: usize,
    /// Different ports.
    pub ports: usize,
    /// Targets that denied or did not answer.
    pub failed: usize,
    /// Targets that were tried once and that nobody else ever talks to.
    pub lonely: usize,
}

/// Fates of all edges, and the scanners.
pub(crate) fn sift(
    recording: &Recording,
    existing: &Existing<'_>,
    options: &Options,
    name: impl Fn(u32) -> String,
) -> (Vec<Fate>, Vec<Scanner>) {
    let servers = Servers::new(recording);
    let mut fates: Vec<Fate> = recording
        .edges
        .iter()
        .map(|(key, seen)| first_look(recording, &servers, key, seen))
        .collect();
    let scanners = scanners(recording, &servers, &mut fates, options, name);
    for ((key, seen), fate) in recording.edges.iter().zip(&mut fates) {
        if !matches!(fate, Fate::Wanted { .. }) {
            continue;
        }
        *fate = match judged(recording, existing, key) {
            // What nobody answered needs no rule, whoever did not answer.
            Fate::Wanted { .. } if seen.failed == seen.flows => Fate::Out(KeptOut::Failed),
            fate => fate,
        };
    }
    (fates, scanners)
}

fn first_look(recording: &Recording, servers: &Servers, key: &Key, seen: &Seen) -> Fate {
    let kinds = [recording.kind(key.source), recording.kind(key.destination)];
    if key.source == key.destination || !kinds.contains(&NodeKind::Workload) {
        return Fate::Ignored;
    }
    if kinds.contains(&NodeKind::Unknown) {
        return Fate::Out(KeptOut::Unknown);
    }
    if servers.is_answer(key, seen) {
        return Fate::Out(KeptOut::Reversed);
    }
    Fate::Wanted {
        egress: kinds[0] == NodeKind::Workload,
        ingress: kinds[1] == NodeKind::Workload,
    }
}

fn judged(recording: &Recording, existing: &Existing<'_>, key: &Key) -> Fate {
    let rulings = [FlowDirection::Egress, FlowDirection::Ingress]
        .map(|direction| existing.ruling(recording, key, direction));
    if rulings.contains(&Ruling::Denied) {
        return Fate::Out(KeptOut::Denied);
    }
    let [egress, ingress] = rulings.map(|ruling| ruling == Ruling::Open);
    if egress || ingress {
        Fate::Wanted { egress, ingress }
    } else {
        Fate::Allowed
    }
}

/// Who offers what, and to how many.
struct Servers {
    clients: HashMap<(u32, u8, u16), u32>,
}

impl Servers {
    fn new(recording: &Recording) -> Self {
        let mut clients: HashMap<(u32, u8, u16), u32> = HashMap::new();
        // An edge is a different client every time, as keys are unique.
        for (key, seen) in &recording.edges {
            if seen.failed < seen.flows {
                *clients
                    .entry((key.destination, key.protocol, key.port))
                    .or_default() += 1;
            }
        }
        Self { clients }
    }

    fn clients(&self, node: u32, protocol: u8, port: u16) -> u32 {
        self.clients
            .get(&(node, protocol, port))
            .copied()
            .unwrap_or(0)
    }

    /// Whether the "opener" used a port on which it serves others, towards a port of the dynamic range that
    /// serves nobody else: the record has the ends the wrong way round.
    fn is_answer(&self, key: &Key, seen: &Seen) -> bool {
        seen.source_port != 0
            && seen.source_port < 32_768
            && key.port >= 32_768
            && datapath::ids::protocol::has_ports(key.protocol)
            && self.clients(key.source, key.protocol, seen.source_port) > 0
            && self.clients(key.destination, key.protocol, key.port) <= 1
    }
}

/// What one source tried.
#[derive(Default)]
struct Tried {
    targets: usize,
    failed: usize,
    failed_hosts: BTreeSet<u32>,
    failed_ports: BTreeSet<(u8, u16)>,
    hosts: BTreeSet<u32>,
    ports: BTreeSet<(u8, u16)>,
    lonely: usize,
    lonely_hosts: BTreeSet<u32>,
    /// Lonely ports below the dynamic range, of the host that has most.
    lonely_ports: BTreeMap<u32, usize>,
}

impl Tried {
    /// Half of many targets failed, on many hosts or ports; or four in five of many hosts, or of very many
    /// fixed ports of one host, were touched once and are nobody else's.
    fn is_scan(&self, options: &Options) -> bool {
        let many = options.scan_targets;
        let wide = self.failed_hosts.len() * 4 >= many || self.failed_ports.len() * 2 >= many;
        let failing = self.targets >= many && self.failed * 2 >= self.targets && wide;
        let vertical = self.lonely_ports.values().any(|count| *count >= 3 * many);
        let lonely =
            self.lonely * 5 >= self.targets * 4 && (self.lonely_hosts.len() >= many || vertical);
        failing || lonely
    }
}

fn scanners(
    recording: &Recording,
    servers: &Servers,
    fates: &mut [Fate],
    options: &Options,
    name: impl Fn(u32) -> String,
) -> Vec<Scanner> {
    let is_failed = |seen: &Seen| seen.failed * 2 >= seen.flows.max(1);
    let is_lonely = |key: &Key, seen: &Seen| {
        seen.periods() == 1
            && seen.flows <= 2
            && servers.clients(key.destination, key.protocol, key.port) <= 1
    };
    let mut tried: BTreeMap<u32, Tried> = BTreeMap::new();
    for ((key, seen), fate) in recording.edges.iter().zip(fates.iter()) {
        if !matches!(fate, Fate::Wanted { .. }) {
            continue;
        }
        let entry = tried.entry(key.source).or_default();
        let service = (key.protocol, key.port);
        entry.targets += 1;
        entry.hosts.insert(key.destination);
        entry.ports.insert(service);
        if is_failed(seen) {
            entry.failed += 1;
            entry.failed_hosts.insert(key.destination);
            entry.failed_ports.insert(service);
        }
        if is_lonely(key, seen) {
            entry.lonely += 1;
            entry.lonely_hosts.insert(key.destination);
            if key.port < options.dynamic_from {
                *entry.lonely_ports.entry(key.destination).or_default() += 1;
            }
        }
    }
    tried.retain(|_, tried| tried.is_scan(options));
    for ((key, seen), fate) in recording.edges.iter().zip(fates) {
        let scan = tried.contains_key(&key.source) && (is_failed(seen) || is_lonely(key, seen));
        if scan && matches!(fate, Fate::Wanted { .. }) {
            *fate = Fate::Out(KeptOut::Scan);
        }
    }
    tried
        .into_iter()
        .map(|(source, tried)| Scanner {
            source: name(source),
            targets: tried.targets,
            hosts: tried.hosts.len(),
            ports: tried.ports.len(),
            failed: tried.failed,
            lonely: tried.lonely,
        })
        .collect()
}
