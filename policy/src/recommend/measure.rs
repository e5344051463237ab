//! What a draft covers of what was seen, and what it allows beyond: counted, not estimated.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use serde::Serialize;

use super::atoms::{Atom, AtomPeer, Index, Side};
use super::cover;
use super::groups::Groups;
use super::observe::{Key, Recording, Seen};
use super::sift::Fate;

/// A part of a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Share {
    /// How many.
    pub part: u64,
    /// Of how many.
    pub whole: u64,
}

impl Share {
    /// In percent; 100 of nothing.
    #[must_use]
    pub fn percent(&self) -> f64 {
        if self.whole == 0 {
            100.0
        } else {
            self.part as f64 * 100.0 / self.whole as f64
        }
    }
}

/// How much of the recording the draft allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// Of all edges with a workload at one end.
    pub edges: Share,
    /// Of their flows.
    pub flows: Share,
    /// Of the edges that were not kept out (scans, failures, …; rare ones count as kept out).
    pub wanted_edges: Share,
}

/// What is allowed between workloads, and what of it was seen. One cell is two workloads, a protocol and a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OverPermission {
    /// Cells that the rules allow.
    pub allowed: u64,
    /// Cells of these that were seen.
    pub seen: u64,
}

impl OverPermission {
    /// Allowed but never seen, in percent of allowed.
    #[must_use]
    pub fn percent(&self) -> f64 {
        if self.allowed == 0 {
            0.0
        } else {
            (self.allowed - self.seen.min(self.allowed)) as f64 * 100.0 / self.allowed as f64
        }
    }
}

/// What was seen of one atom.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Evidence {
    /// Edges; each is one cell.
    pub(crate) edges: u64,
    pub(crate) flows: u64,
    pub(crate) first: i64,
    pub(crate) last: i64,
}

impl Evidence {
    pub(crate) fn add(&mut self, edges: u64, flows: u64, first: i64, last: i64) {
        if self.edges == 0 {
            (self.first, self.last) = (first, last);
        }
        self.edges += edges;
        self.flows = self.flows.saturating_add(flows);
        self.first = self.first.min(first);
        self.last = self.last.max(last);
    }
}

/// Everything that was counted.
pub(crate) struct Measured {
    /// By edge: the draft allows it.
    pub(crate) covered: Vec<bool>,
    pub(crate) coverage: Coverage,
    pub(crate) evidence: Vec<Evidence>,
    /// At both ends together; only where no other policies play a part.
    pub(crate) connections: OverPermission,
    /// At each end for itself.
    pub(crate) ends: OverPermission,
    /// Addresses outside that rules name one by one or by network, and how many of them were seen.
    pub(crate) addresses: OverPermission,
}

/// One end of many edges: direction, subject's group, the peer, protocol and port.
type EndKey = (bool, u32, Side, u8, u16);

/// A draft in its world.
pub(crate) struct Draft<'a> {
    pub(crate) recording: &'a Recording,
    pub(crate) groups: &'a Groups,
    pub(crate) atoms: &'a [Atom],
    pub(crate) index: Index,
}

impl Draft<'_> {
    /// The group or address of a node.
    pub(crate) fn side(&self, node: u32) -> Side {
        side(self.recording, self.groups, node)
    }

    /// Counts. `fates` are those of the edges; `concerned` says whether a workload's end is asked about.
    pub(crate) fn measure(&self, fates: &[Fate], concerned: &[bool]) -> Measured {
        let mut memo: HashMap<EndKey, Rc<[u32]>> = HashMap::new();
        let mut covered = Vec::with_capacity(fates.len());
        let mut coverage = Coverage::default();
        let mut evidence = vec![Evidence::default(); self.atoms.len()];
        let mut ends = OverPermission::default();
        let mut connections = OverPermission::default();
        let mut externals = vec![BTreeSet::new(); self.atoms.len()];
        for ((key, seen), fate) in self.recording.edges.iter().zip(fates) {
            let (allowed, both) = match fate {
                Fate::Ignored => {
                    covered.push(false);
                    continue;
                }
                Fate::Allowed => (true, false),
                _ => {
                    let mut tally = Tally {
                        memo: &mut memo,
                        evidence: &mut evidence,
                        externals: &mut externals,
                        ends: &mut ends,
                    };
                    self.ends(key, seen, *fate, concerned, &mut tally)
                }
            };
            covered.push(allowed);
            connections.seen += u64::from(both);
            for (share, weight) in [(&mut coverage.edges, 1), (&mut coverage.flows, seen.flows)] {
                share.whole = share.whole.saturating_add(weight);
                share.part = share.part.saturating_add(if allowed { weight } else { 0 });
            }
            if matches!(fate, Fate::Wanted { .. } | Fate::Allowed) {
                coverage.wanted_edges.whole += 1;
                coverage.wanted_edges.part += u64::from(allowed);
            }
        }
        self.allowed(&mut ends, &mut connections);
        let mut addresses = OverPermission::default();
        for (atom, seen) in self.atoms.iter().zip(&externals) {
            if let AtomPeer::Net(net) = &atom.peer {
                let size = u64::try_from(cover::addresses(net)).unwrap_or(u64::MAX);
                addresses.allowed = addresses.allowed.saturating_add(size);
                addresses.seen += seen.len() as u64;
            }
        }
        Measured {
            covered,
            coverage,
            evidence,
            connections,
            ends,
            addresses,
        }
    }

    /// Whether the draft allows an edge, and whether both its ends are workloads that its rules allow.
    fn ends(
        &self,
        key: &Key,
        seen: &Seen,
        fate: Fate,
        concerned: &[bool],
        tally: &mut Tally<'_>,
    ) -> (bool, bool) {
        let (source, destination) = (self.side(key.source), self.side(key.destination));
        let mut passes = true;
        let mut by_rules = 0;
        for (egress, node, subject, peer) in [
            (true, key.source, source, destination),
            (false, key.destination, destination, source),
        ] {
            let Side::Group(group) = subject else {
                continue;
            };
            let concerned = concerned.get(node as usize).copied().unwrap_or(true);
            // An end that existing policies allow, or that nobody asked about, does not decide.
            let open = !concerned
                || matches!(fate, Fate::Wanted { egress: e, ingress: i } if !(if egress { e } else { i }));
            let id = (egress, group, peer, key.protocol, key.port);
            let found = tally.memo.entry(id).or_insert_with(|| {
                self.index
                    .allowing(self.atoms, egress, group, peer, key.protocol, key.port)
                    .into()
            });
            let allowed = !found.is_empty();
            passes &= open || allowed;
            if !allowed {
                continue;
            }
            by_rules += 1;
            for atom in found.iter() {
                if let Some(evidence) = tally.evidence.get_mut(*atom as usize) {
                    evidence.add(1, seen.flows, seen.first, seen.last);
                }
                if let (Side::External(address, _), Some(seen)) =
                    (peer, tally.externals.get_mut(*atom as usize))
                {
                    seen.insert(address);
                }
            }
            tally.ends.seen += u64::from(matches!(peer, Side::Group(_)));
        }
        let unknown = matches!(
            fate,
            Fate::Out(super::sift::KeptOut::Denied | super::sift::KeptOut::Unknown)
        );
        (passes && !unknown, by_rules == 2)
    }

    /// Counts what the rules allow between workloads.
    fn allowed(&self, ends: &mut OverPermission, connections: &mut OverPermission) {
        let groups = u32::try_from(self.groups.len()).unwrap_or(u32::MAX);
        let mut egress_of: Vec<BTreeMap<u32, Blocks>> = Vec::new();
        for group in 0..groups {
            let blocks = self.blocks(true, group);
            for (peer, blocks) in &blocks {
                ends.allowed = ends
                    .allowed
                    .saturating_add(self.cells(group, *peer, blocks));
            }
            egress_of.push(blocks);
        }
        for group in 0..groups {
            for (peer, blocks) in self.blocks(false, group) {
                ends.allowed = ends
                    .allowed
                    .saturating_add(self.cells(peer, group, &blocks));
                let egress = egress_of.get(peer as usize).and_then(|of| of.get(&group));
                if let Some(egress) = egress {
                    let both = blocks.intersection(egress);
                    connections.allowed = connections
                        .allowed
                        .saturating_add(self.cells(peer, group, &both));
                }
            }
        }
    }

    /// What a group's atoms allow, by the peer's group.
    fn blocks(&self, egress: bool, group: u32) -> BTreeMap<u32, Blocks> {
        let mut of_peer: BTreeMap<u32, Vec<Block>> = BTreeMap::new();
        for id in self.index.of(egress, group) {
            let (Some(atom), Some(peers)) = (
                self.atoms.get(*id as usize),
                self.index.peers.get(*id as usize),
            ) else {
                continue;
            };
            for peer in peers {
                of_peer
                    .entry(*peer)
                    .or_default()
                    .push((atom.protocol, atom.low, atom.high));
            }
        }
        of_peer
            .into_iter()
            .map(|(peer, blocks)| (peer, Blocks::new(blocks)))
            .collect()
    }

    fn cells(&self, from: u32, to: u32, blocks: &Blocks) -> u64 {
        let own = if from == to {
            self.groups.size(from)
        } else {
            0
        };
        let pairs = self.groups.size(from) * self.groups.size(to) - own;
        u64::try_from(pairs * blocks.len()).unwrap_or(u64::MAX)
    }

    /// What one atom allows at its end, in cells between workloads, or addresses × workloads × ports.
    pub(crate) fn width(&self, atom: &Atom) -> u64 {
        let ports = u128::from(atom.high - atom.low) + 1;
        let subjects = self.groups.pattern_size(&atom.subject);
        let pairs = match &atom.peer {
            AtomPeer::Groups(pattern) => {
                let both: u128 = self
                    .groups
                    .matching(&atom.subject)
                    .iter()
                    .filter(|group| self.groups.matching(pattern).binary_search(group).is_ok())
                    .map(|group| self.groups.size(*group))
                    .sum();
                subjects * self.groups.pattern_size(pattern) - both
            }
            AtomPeer::Net(net) => subjects.saturating_mul(cover::addresses(net)),
            // Nobody counts the world.
            AtomPeer::World => return u64::MAX,
        };
        u64::try_from(pairs.saturating_mul(ports)).unwrap_or(u64::MAX)
    }
}

/// What is added up edge by edge.
struct Tally<'t> {
    memo: &'t mut HashMap<EndKey, Rc<[u32]>>,
    evidence: &'t mut [Evidence],
    externals: &'t mut [BTreeSet<std::net::IpAddr>],
    ends: &'t mut OverPermission,
}

/// The group or address of a node.
pub(crate) fn side(recording: &Recording, groups: &Groups, node: u32) -> Side {
    match recording.external(node) {
        Some((address, kind)) => Side::External(address, kind),
        None => Side::Group(groups.of.get(node as usize).copied().unwrap_or(0)),
    }
}

/// Protocol, first and last port.
type Block = (u8, u16, u16);

/// Blocks in order that do not touch each other.
struct Blocks(Vec<Block>);

impl Blocks {
    fn new(mut blocks: Vec<Block>) -> Self {
        blocks.sort_unstable();
        let mut merged: Vec<Block> = Vec::with_capacity(blocks.len());
        for (protocol, low, high) in blocks {
            match merged.last_mut() {
                Some(last) if last.0 == protocol && u32::from(low) <= u32::from(last.2) + 1 => {
                    last.2 = last.2.max(high);
                }
                _ => merged.push((protocol, low, high)),
            }
        }
        Self(merged)
    }

    /// How many ports.
    fn len(&self) -> u128 {
        self.0
            .iter()
            .map(|(_, low, high)| u128::from(high - low) + 1)
            .sum()
    }

    fn intersection(&self, other: &Self) -> Self {
        let mut common = Vec::new();
        let (mut mine, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let (Some(a), Some(b)) = (mine.peek(), theirs.peek()) {
            if a.0 == b.0 {
                let (low, high) = (a.1.max(b.1), a.2.min(b.2));
                if low <= high {
                    common.push((a.0, low, high));
                }
            }
            if (a.0, a.2) <= (b.0, b.2) {
                mine.next();
            } else {
                theirs.next();
            }
        }
        Self(common)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_merge_and_meet() {
        let a = Blocks::new(vec![(6, 5, 9), (6, 1, 4), (17, 1, 1), (6, 20, 30)]);
        assert_eq!(a.0, [(6, 1, 9), (6, 20, 30), (17, 1, 1)]);
        assert_eq!(a.len(), 21);
        let b = Blocks::new(vec![(6, 8, 25), (17, 0, 9)]);
        assert_eq!(a.intersection(&b).0, [(6, 8, 9), (6, 20, 25), (17, 1, 1)]);
    }
}
