//! What was found, taken apart: disjoint pieces, each with the rules of both ends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::arena::{NONE, SetId};
use super::ask::{Found, Hit, RuleAt};
use super::ends::Chosen;
use super::portset::PortSet;
use super::{Reach, Wanted};
use crate::matching::PeerClass;
use crate::snapshot::FlowDirection;

/// Everything from one group of ends to another on some ports, by the same rules. A workload that is
/// in both groups is not meant to reach itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Piece {
    /// Who opens.
    pub from: Group,
    /// Who answers.
    pub to: Group,
    /// On which protocols and ports.
    pub ports: PortSet,
    /// What the sources' egress says; `None` = they are not managed.
    pub egress: Option<RuleAt>,
    /// What the destinations' ingress says.
    pub ingress: Option<RuleAt>,
}

/// Some ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Group {
    /// By name.
    pub workloads: Vec<Member>,
    /// Addresses that belong to no workload.
    pub networks: Vec<Network>,
}

/// A workload, with those of its addresses that are meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Member {
    /// Full name.
    pub name: String,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
}

/// Addresses that belong to no workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Network {
    /// `world` or `unmanaged`.
    pub entity: &'static str,
    /// Where they lie.
    pub cidr: IpNet,
    /// Parts that are not meant.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<IpNet>,
}

/// Pieces that together are what was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pieces {
    /// Disjoint, in the order of their first ends.
    pub pieces: Vec<Piece>,
    /// Pairs of classes that were left out, beyond the limit.
    pub left_out: usize,
}

/// What pieces have in common: ports, and what the two ends say.
type Common = (SetId, Option<RuleAt>, Option<RuleAt>);

impl Reach<'_> {
    /// Takes apart what was found, `limit` pairs of classes of it at most.
    #[must_use]
    pub fn pieces(&mut self, found: &Found, limit: usize) -> Pieces {
        let mut by_to: BTreeMap<(u32, Common), BTreeSet<u32>> = BTreeMap::new();
        for hit in found.hits.iter().take(limit) {
            for common in self.split(found, hit) {
                by_to.entry((hit.to, common)).or_default().insert(hit.from);
            }
        }
        // What has the same sources, ports and rules is one piece.
        let mut by_from: BTreeMap<(BTreeSet<u32>, Common), BTreeSet<u32>> = BTreeMap::new();
        for ((to, common), from) in by_to {
            by_from.entry((from, common)).or_default().insert(to);
        }
        let pieces = by_from
            .into_iter()
            .map(|((from, (ports, egress, ingress)), to)| Piece {
                from: self.group(&found.from.chosen, &from),
                to: self.group(&found.to.chosen, &to),
                ports: self.rows.arena.get(ports).clone(),
                egress,
                ingress,
            })
            .collect();
        Pieces {
            pieces,
            left_out: found.hits.len().saturating_sub(limit),
        }
    }

    /// The parts of a hit that are decided by the same two rules.
    fn split(&mut self, found: &Found, hit: &Hit) -> Vec<Common> {
        let chosen = |side: &[Chosen], at: u32| side.get(at as usize).map(|chosen| chosen.class);
        let (Some(from), Some(to)) = (
            chosen(&found.from.chosen, hit.from),
            chosen(&found.to.chosen, hit.to),
        ) else {
            return Vec::new();
        };
        let egress = self.sayings(from, FlowDirection::Egress, to, found);
        let ingress = self.sayings(to, FlowDirection::Ingress, from, found);
        let mut joined: BTreeMap<(Option<RuleAt>, Option<RuleAt>), SetId> = BTreeMap::new();
        for (out_ports, out) in &egress {
            for (in_ports, into) in &ingress {
                let denied = [out, into].into_iter().flatten().any(|rule| !rule.allow);
                if denied != (found.wanted == Wanted::Denied) {
                    continue;
                }
                let arena = &mut self.rows.arena;
                let both = arena.intersection(*out_ports, *in_ports);
                let meant = arena.intersection(both, hit.ports);
                if meant != NONE {
                    let known = joined.entry((out.clone(), into.clone())).or_insert(NONE);
                    *known = arena.union(*known, meant);
                }
            }
        }
        joined
            .into_iter()
            .map(|((egress, ingress), ports)| (ports, egress, ingress))
            .collect()
    }

    /// What one end says about which ports; an end that is not managed says nothing about all.
    fn sayings(
        &mut self,
        own: u32,
        direction: FlowDirection,
        other: u32,
        found: &Found,
    ) -> Vec<(SetId, Option<RuleAt>)> {
        let list = &self.rows.classes.list;
        let subject = list.get(own as usize).and_then(|class| class.subject);
        let side = list.get(other as usize).map(|class| class.peer);
        let (Some(subject), Some(side)) = (subject, side) else {
            return vec![(super::arena::ALL, None)];
        };
        let parts = self.rows.parts(subject, direction, side, found.lens);
        parts
            .iter()
            .map(|part| (part.ports, Some(RuleAt::of(part))))
            .collect()
    }

    fn group(&self, side: &[Chosen], at: &BTreeSet<u32>) -> Group {
        let mut workloads: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
        let mut networks = BTreeSet::new();
        for chosen in at.iter().filter_map(|at| side.get(*at as usize)) {
            for member in &chosen.members {
                if let Some(workload) = self.world.workloads().get(member.workload as usize) {
                    let addresses = workloads.entry(workload.full_name()).or_default();
                    addresses.insert(member.address);
                }
            }
            let class = self.rows.classes.list.get(chosen.class as usize);
            let peer = class.and_then(|class| self.rows.classes.peers.get(class.peer as usize));
            let unmanaged = peer.is_some_and(|peer| peer.class == PeerClass::Unmanaged);
            networks.extend(chosen.regions.iter().map(|region| Network {
                entity: if unmanaged { "unmanaged" } else { "world" },
                cidr: region.net,
                except: region.except.clone(),
            }));
        }
        Group {
            workloads: workloads
                .into_iter()
                .map(|(name, addresses)| Member {
                    name,
                    addresses: addresses.into_iter().collect(),
                })
                .collect(),
            networks: networks.into_iter().collect(),
        }
    }
}
