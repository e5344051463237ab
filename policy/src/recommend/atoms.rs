//! From edges to rules: the smallest pieces that a rule can have, as few and as general as pays.
//!
//! An atom lets one selector (or network) talk to the workloads of another selector on one service, at one end. For
//! every group and service, the peers that were seen start as one selector each; a more general selector (the same with
//! keys left out, up to "every workload") takes the place of several of them where that makes the description
//! shorter *and* most of the groups that it means were really seen. At last every atom goes without which every edge
//! is still allowed: what is left is needed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use super::bits;
use super::cover::{Terrain, is_wide};
use super::dynamic::{Svc, range};
use super::groups::{Groups, Pattern, generalisations};
use super::infra::Shape;
use super::observe::{NodeKind, Seen};

/// A peer in an atom.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum AtomPeer {
    Groups(Pattern),
    World,
    Net(IpNet),
}

/// One thing that is allowed at one end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Atom {
    /// Index + 1 of the infrastructure service; 0 = an application's.
    pub(crate) infra: usize,
    pub(crate) subject: Pattern,
    pub(crate) egress: bool,
    pub(crate) protocol: u8,
    pub(crate) low: u16,
    pub(crate) high: u16,
    /// Index + 1 of the program whose changing ports these are; 0 = not known.
    pub(crate) process: u32,
    pub(crate) dynamic: bool,
    pub(crate) peer: AtomPeer,
}

/// One side of an edge after the workloads were sorted: a group, or an address of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Side {
    Group(u32),
    External(IpAddr, NodeKind),
}

/// An edge between sides that wants a rule.
#[derive(Clone, Debug)]
pub(crate) struct Want {
    pub(crate) source: Side,
    pub(crate) destination: Side,
    pub(crate) svc: Svc,
    pub(crate) port: u16,
    pub(crate) infra: usize,
    pub(crate) egress: bool,
    pub(crate) ingress: bool,
    /// Different pairs of workloads.
    pub(crate) pairs: u128,
    pub(crate) seen: Seen,
}

/// Peers of one subject and service.
#[derive(Default)]
struct Half {
    groups: BTreeMap<u32, u128>,
    world: BTreeSet<IpAddr>,
    unmanaged: BTreeSet<IpAddr>,
}

impl Half {
    fn add(&mut self, peer: Side, pairs: u128) {
        match peer {
            Side::Group(group) => *self.groups.entry(group).or_default() += pairs,
            Side::External(address, NodeKind::World) => {
                self.world.insert(address);
            }
            Side::External(address, _) => {
                self.unmanaged.insert(address);
            }
        }
    }
}

/// The many of an infrastructure service, by group with their pairs, and the few.
type Crowd = (BTreeMap<u32, u128>, Half);

/// Ports of one service by group of servers, for ranges.
type Ranges = BTreeMap<(Svc, Option<u32>), (u16, u16)>;

/// Makes atoms.
pub(crate) struct Maker<'a> {
    pub(crate) groups: &'a Groups,
    pub(crate) terrain: &'a Terrain<'a>,
    /// Of the infrastructure services, in their order.
    pub(crate) shapes: Vec<Shape>,
}

impl Maker<'_> {
    /// Atoms that allow everything that is wanted, each of them needed.
    pub(crate) fn make(&self, wants: &[Want]) -> Vec<Atom> {
        let ranges = ranges(wants);
        let mut halves: BTreeMap<(usize, u32, bool, Svc), Half> = BTreeMap::new();
        let mut crowds: BTreeMap<(usize, bool, Svc), Crowd> = BTreeMap::new();
        for want in wants {
            for (egress, wanted) in [(true, want.egress), (false, want.ingress)] {
                let (subject, peer) = if egress {
                    (want.source, want.destination)
                } else {
                    (want.destination, want.source)
                };
                let (Side::Group(subject), true) = (subject, wanted) else {
                    continue;
                };
                if self.is_crowd(want.infra, egress) {
                    let crowd = crowds.entry((want.infra, egress, want.svc)).or_default();
                    *crowd.0.entry(subject).or_default() += want.pairs;
                    crowd.1.add(peer, want.pairs);
                } else {
                    let key = (want.infra, subject, egress, want.svc);
                    halves.entry(key).or_default().add(peer, want.pairs);
                }
            }
        }
        let mut atoms = BTreeSet::new();
        for ((infra, subject, egress, svc), half) in &halves {
            let own = self.groups.pattern(*subject);
            let patterns = self.compress(&half.groups, self.groups.size(*subject), *infra != 0);
            self.atoms(
                *infra, &own, *egress, *svc, &patterns, half, &ranges, &mut atoms,
            );
        }
        for ((infra, egress, svc), (subjects, half)) in &crowds {
            let few = half
                .groups
                .keys()
                .map(|group| self.groups.size(*group))
                .sum::<u128>();
            let externals = (half.world.len() + half.unmanaged.len()) as u128;
            let peers: Vec<Pattern> = half
                .groups
                .keys()
                .map(|g| self.groups.pattern(*g))
                .collect();
            for subject in self.compress(subjects, few + externals, true) {
                self.atoms(
                    *infra, &subject, *egress, *svc, &peers, half, &ranges, &mut atoms,
                );
            }
        }
        self.needed(atoms.into_iter().collect(), wants)
    }

    /// Whether the subject is on the many side of an infrastructure service.
    fn is_crowd(&self, infra: usize, egress: bool) -> bool {
        let shape = infra
            .checked_sub(1)
            .and_then(|index| self.shapes.get(index));
        shape.is_some_and(|shape| (*shape == Shape::FanIn) == egress)
    }

    #[allow(clippy::too_many_arguments, reason = "one atom's parts")]
    fn atoms(
        &self,
        infra: usize,
        subject: &Pattern,
        egress: bool,
        svc: Svc,
        patterns: &[Pattern],
        half: &Half,
        ranges: &Ranges,
        atoms: &mut BTreeSet<Atom>,
    ) {
        let world = if is_wide(&half.world) {
            vec![AtomPeer::World]
        } else {
            let nets = self.terrain.cover(&half.world, NodeKind::World);
            nets.into_iter().map(AtomPeer::Net).collect()
        };
        let unmanaged = self.terrain.cover(&half.unmanaged, NodeKind::Unmanaged);
        let peers = patterns
            .iter()
            .cloned()
            .map(AtomPeer::Groups)
            .chain(world)
            .chain(unmanaged.into_iter().map(AtomPeer::Net));
        for peer in peers {
            let servers = match &peer {
                _ if !egress => Some(subject),
                AtomPeer::Groups(pattern) => Some(pattern),
                _ => None,
            };
            let (low, high) = self.ports(svc, servers, ranges);
            let (process, dynamic) = match svc {
                Svc::Dynamic { process, .. } => (process, true),
                Svc::Fixed { .. } => (0, false),
            };
            atoms.insert(Atom {
                infra,
                subject: subject.clone(),
                egress,
                protocol: svc.protocol(),
                low,
                high,
                process,
                dynamic,
                peer,
            });
        }
    }

    /// The ports of a service at the servers that a pattern means.
    fn ports(&self, svc: Svc, servers: Option<&Pattern>, ranges: &Ranges) -> (u16, u16) {
        if let Svc::Fixed { port, .. } = svc {
            return (port, port);
        }
        let groups: Vec<Option<u32>> = match servers {
            Some(pattern) => self
                .groups
                .matching(pattern)
                .iter()
                .copied()
                .map(Some)
                .collect(),
            None => vec![None],
        };
        let found = groups
            .into_iter()
            .filter_map(|group| ranges.get(&(svc, group)));
        let (low, high) = found.fold((u16::MAX, 0), |(low, high), range| {
            (low.min(range.0), high.max(range.1))
        });
        range(low, high)
    }

    /// The patterns that say best who was seen. `other` is the number of workloads on the other side of each.
    fn compress(&self, seen: &BTreeMap<u32, u128>, other: u128, infra: bool) -> Vec<Pattern> {
        let single = |group: u32, pairs: u128| {
            self.groups.pattern_bits(&self.groups.pattern(group))
                + bits::cells(self.groups.size(group) * other, pairs)
        };
        let mut left: BTreeMap<u32, u128> = seen.clone();
        let mut chosen = Vec::new();
        let mut candidates: BTreeSet<Pattern> = BTreeSet::new();
        for group in seen.keys() {
            candidates.extend(generalisations(&self.groups.pattern(*group)));
        }
        loop {
            let mut best: Option<(i64, &Pattern)> = None;
            for pattern in &candidates {
                let groups = self.groups.matching(pattern);
                let inside = || groups.iter().filter_map(|g| Some((*g, *left.get(g)?)));
                let count = inside().count();
                // Most of what a selector means must have been seen: three quarters, or half for
                // infrastructure, whose clients tend to be everybody.
                let enough = if infra {
                    count * 2 >= groups.len()
                } else {
                    count * 4 >= groups.len() * 3
                };
                if count < 2 || !enough {
                    continue;
                }
                let before: i64 = inside().map(|(group, pairs)| single(group, pairs)).sum();
                let pairs = inside().map(|(_, pairs)| pairs).sum();
                let size: u128 = groups.iter().map(|group| self.groups.size(*group)).sum();
                let saved =
                    before - self.groups.pattern_bits(pattern) - bits::cells(size * other, pairs);
                if saved > 0 && best.is_none_or(|(most, _)| saved > most) {
                    best = Some((saved, pattern));
                }
            }
            let Some((_, pattern)) = best else { break };
            for group in self.groups.matching(pattern) {
                left.remove(group);
            }
            chosen.push(pattern.clone());
        }
        chosen.extend(left.keys().map(|group| self.groups.pattern(*group)));
        chosen
    }

    /// Leaves out, widest first, every atom without which nothing is lost.
    fn needed(&self, mut atoms: Vec<Atom>, wants: &[Want]) -> Vec<Atom> {
        atoms.sort_by_cached_key(|atom| (std::cmp::Reverse(self.width(atom)), atom.clone()));
        let index = Index::new(self.groups, &atoms);
        let mut of_atom: Vec<Vec<u32>> = vec![Vec::new(); atoms.len()];
        let mut allowing: Vec<u32> = Vec::new();
        for want in wants {
            for (egress, wanted) in [(true, want.egress), (false, want.ingress)] {
                if !wanted {
                    continue;
                }
                let found = index.matching(&atoms, egress, want);
                let id = u32::try_from(allowing.len()).unwrap_or(u32::MAX);
                allowing.push(u32::try_from(found.len()).unwrap_or(u32::MAX));
                for atom in found {
                    if let Some(list) = of_atom.get_mut(atom as usize) {
                        list.push(id);
                    }
                }
            }
        }
        let mut keep = Vec::with_capacity(atoms.len());
        for ends in &of_atom {
            let count = |end: &u32| allowing.get(*end as usize).copied().unwrap_or(0);
            let needed = ends.iter().any(|end| count(end) == 1);
            keep.push(needed);
            if !needed {
                for end in ends {
                    if let Some(count) = allowing.get_mut(*end as usize) {
                        *count -= 1;
                    }
                }
            }
        }
        let mut kept: Vec<Atom> = atoms
            .into_iter()
            .zip(keep)
            .filter_map(|(atom, keep)| keep.then_some(atom))
            .collect();
        kept.sort();
        kept
    }

    fn width(&self, atom: &Atom) -> u128 {
        let peers = match &atom.peer {
            AtomPeer::Groups(pattern) => self.groups.pattern_size(pattern),
            AtomPeer::Net(net) => super::cover::addresses(net),
            AtomPeer::World => u128::from(u64::MAX),
        };
        let ports = u128::from(atom.high - atom.low) + 1;
        peers
            .saturating_mul(ports)
            .saturating_mul(self.groups.pattern_size(&atom.subject))
    }
}

fn ranges(wants: &[Want]) -> Ranges {
    let mut ranges = Ranges::new();
    for want in wants {
        if let Svc::Dynamic { .. } = want.svc {
            let group = match want.destination {
                Side::Group(group) => Some(group),
                Side::External(..) => None,
            };
            let entry = ranges
                .entry((want.svc, group))
                .or_insert((want.port, want.port));
            *entry = (entry.0.min(want.port), entry.1.max(want.port));
        }
    }
    ranges
}

/// Atoms by the group of their subject.
pub(crate) struct Index {
    egress: HashMap<u32, Vec<u32>>,
    ingress: HashMap<u32, Vec<u32>>,
    /// Groups of each atom's peer, in order.
    pub(crate) peers: Vec<Vec<u32>>,
}

impl Index {
    pub(crate) fn new(groups: &Groups, atoms: &[Atom]) -> Self {
        let mut index = Self {
            egress: HashMap::new(),
            ingress: HashMap::new(),
            peers: Vec::with_capacity(atoms.len()),
        };
        for (id, atom) in (0u32..).zip(atoms) {
            let side = if atom.egress {
                &mut index.egress
            } else {
                &mut index.ingress
            };
            for group in groups.matching(&atom.subject) {
                side.entry(*group).or_default().push(id);
            }
            index.peers.push(match &atom.peer {
                AtomPeer::Groups(pattern) => groups.matching(pattern).to_vec(),
                _ => Vec::new(),
            });
        }
        index
    }

    /// Atoms of a group in a direction.
    pub(crate) fn of(&self, egress: bool, group: u32) -> &[u32] {
        let side = if egress { &self.egress } else { &self.ingress };
        side.get(&group).map_or(&[], Vec::as_slice)
    }

    /// Atoms that allow an end of an edge.
    fn matching(&self, atoms: &[Atom], egress: bool, want: &Want) -> Vec<u32> {
        let (subject, peer) = if egress {
            (want.source, want.destination)
        } else {
            (want.destination, want.source)
        };
        match subject {
            Side::Group(group) => {
                self.allowing(atoms, egress, group, peer, want.svc.protocol(), want.port)
            }
            Side::External(..) => Vec::new(),
        }
    }

    /// Atoms that allow one end.
    pub(crate) fn allowing(
        &self,
        atoms: &[Atom],
        egress: bool,
        subject: u32,
        peer: Side,
        protocol: u8,
        port: u16,
    ) -> Vec<u32> {
        let matches = |id: &u32| {
            let (Some(atom), Some(peers)) = (atoms.get(*id as usize), self.peers.get(*id as usize))
            else {
                return false;
            };
            atom.protocol == protocol
                && (atom.low..=atom.high).contains(&port)
                && match (&atom.peer, peer) {
                    (AtomPeer::Groups(_), Side::Group(group)) => {
                        peers.binary_search(&group).is_ok()
                    }
                    (AtomPeer::World, Side::External(_, kind)) => kind == NodeKind::World,
                    (AtomPeer::Net(net), Side::External(address, _)) => net.contains(&address),
                    _ => false,
                }
        };
        self.of(egress, subject)
            .iter()
            .copied()
            .filter(|id| matches(id))
            .collect()
    }
}
