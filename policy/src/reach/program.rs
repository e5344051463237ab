//! Every rule that is live, laid out in the order of evaluation and matched once against all classes.
//!
//! Rules repeat each other's peers and ports, so each distinct list is matched once and kept as bits.

use std::collections::HashMap;

use ipnet::IpNet;
use time::OffsetDateTime;

use super::arena::{Arena, SetId};
use super::bits::Bits;
use super::classes::Classes;
use super::portset::PortSet;
use super::vocabulary::{Interner, Vocabulary};
use crate::matching::{PeerClass, blocks, port_names};
use crate::model::{Action, Entity, Filter, Grant, NamedPort, Peer, Policy, State, Tier};
use crate::ports::PortSpec;
use crate::set::{PolicySet, is_live};
use crate::snapshot::FlowDirection;
use crate::walk::{direction_name, policy_name};

/// Where a unit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Filter,
    Guardrail,
    Grants,
    Standard,
    Baseline,
}

impl Stage {
    pub(super) const ALL: [Self; 5] = [
        Self::Filter,
        Self::Guardrail,
        Self::Grants,
        Self::Standard,
        Self::Baseline,
    ];
}

/// A rule, a grant or an entry of a filter.
pub(super) struct Line {
    /// A filter's `allow` is a pass: it leaves the stage.
    pub(super) action: Action,
    /// Number of the list of peers.
    peers: u32,
    /// Number of the list of ports.
    ports: u32,
    /// Position among the rules of its direction; a filter's among all entries.
    pub(super) index: usize,
}

/// A filter, a policy or a grant.
pub(super) struct Unit<'a> {
    pub(super) stage: Stage,
    source: Source<'a>,
    pub(super) enforced: bool,
    pub(super) draft: bool,
    egress: Option<Vec<Line>>,
    ingress: Option<Vec<Line>>,
}

#[derive(Clone, Copy)]
enum Source<'a> {
    Filter(&'a Filter),
    Policy(&'a Policy),
    Grant(&'a Grant),
}

impl Unit<'_> {
    /// Its lines for a direction that it speaks for.
    pub(super) fn lines(&self, direction: FlowDirection) -> Option<&[Line]> {
        match direction {
            FlowDirection::Egress => self.egress.as_deref(),
            FlowDirection::Ingress => self.ingress.as_deref(),
        }
    }

    /// `tier/name/direction`, as rule names begin.
    pub(super) fn name(&self, direction: FlowDirection) -> String {
        let name = match self.source {
            Source::Filter(filter) => format!("filter/{}", filter.metadata.name),
            Source::Policy(policy) => policy_name(policy),
            Source::Grant(grant) => format!("grants/{}", grant.metadata.name),
        };
        format!("{name}/{}", direction_name(direction))
    }
}

/// A distinct list of peers; whether the rule denies counts for unknown peers only.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum PeersKey<'a> {
    Rule(&'a [Peer], bool),
    Filter(Option<IpNet>, bool),
}

/// A distinct list of ports.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct PortsKey<'a> {
    specs: &'a [PortSpec],
    /// Filters know no names.
    names: bool,
}

/// All units, and what their lists match.
pub(super) struct Program<'a> {
    set: &'a PolicySet,
    pub(super) units: Vec<Unit<'a>>,
    /// By group of labels: units whose subject it is, in the order of evaluation.
    pub(super) by_labels: Vec<Vec<u32>>,
    /// By list of peers: peer sides that it matches.
    peers: Vec<Bits>,
    ports: Vec<PortsKey<'a>>,
    /// By list of ports: what it covers, if it uses no names.
    plain: Vec<Option<SetId>>,
    /// By list of ports with names: peer sides, and what it covers with their names.
    variants: Vec<Vec<(Bits, SetId)>>,
    named: HashMap<(u32, u32), SetId>,
}

impl<'a> Program<'a> {
    pub(super) fn new(
        set: &'a PolicySet,
        at: OffsetDateTime,
        classes: &Classes,
        words: &Vocabulary<'a>,
        arena: &mut Arena,
    ) -> Self {
        let mut layout = Layout::default();
        layout.filters(set);
        layout.policies(set, at);
        layout.grants(set, at);
        // Stable: within a stage the order of the set stays.
        layout.units.sort_by_key(|unit| unit.stage);
        let matcher = Matcher {
            set,
            classes,
            words,
        };
        let peers = layout
            .peers
            .items()
            .iter()
            .map(|key| matcher.peers(key))
            .collect();
        let mut program = Self {
            set,
            by_labels: by_labels(&layout.units, classes, words),
            units: layout.units,
            peers,
            ports: layout.ports.items().to_vec(),
            plain: Vec::new(),
            variants: Vec::new(),
            named: HashMap::new(),
        };
        program.resolve_ports(classes, arena);
        program
    }

    fn resolve_ports(&mut self, classes: &Classes, arena: &mut Arena) {
        for (key, number) in self.ports.clone().into_iter().zip(0..) {
            let uses_names = key.names && port_names(self.set, key.specs).next().is_some();
            if !uses_names {
                let covered = arena.number(PortSet::of(&blocks(self.set, key.specs, &[])));
                self.plain.push(Some(covered));
                self.variants.push(Vec::new());
                continue;
            }
            self.plain.push(None);
            let mut variants: Vec<(Bits, SetId)> = Vec::new();
            let mut sides: Vec<Bits> =
                vec![Bits::none(classes.peers.len()); classes.port_lists.len()];
            for (side, peer) in classes.peers.iter().enumerate() {
                if let Some(bits) = sides.get_mut(peer.ports as usize) {
                    bits.set(side);
                }
            }
            for ((list, bits), id) in classes.port_lists.iter().zip(&sides).zip(0..) {
                let covered = self.named(number, id, list, arena);
                match variants.iter_mut().find(|(_, known)| *known == covered) {
                    Some((known, _)) => known.add(bits),
                    None => variants.push((bits.clone(), covered)),
                }
            }
            self.variants.push(variants);
        }
    }

    /// What a list of ports with names covers for somebody who has these.
    fn named(&mut self, ports: u32, list_id: u32, list: &[NamedPort], arena: &mut Arena) -> SetId {
        if let Some(known) = self.named.get(&(ports, list_id)) {
            return *known;
        }
        let specs = self
            .ports
            .get(ports as usize)
            .map_or(&[][..], |key| key.specs);
        let covered = arena.number(PortSet::of(&blocks(self.set, specs, list)));
        self.named.insert((ports, list_id), covered);
        covered
    }

    /// What a line matches: peer sides, and what it covers for them.
    pub(super) fn matches<'b>(
        &'b self,
        line: &Line,
        direction: FlowDirection,
        subject_ports: u32,
    ) -> (&'b Bits, Covered<'b>) {
        let (peers, ports) = (line.peers as usize, line.ports as usize);
        let covered = match (self.plain.get(ports).copied().flatten(), direction) {
            (Some(plain), _) => Covered::Same(plain),
            // The names are those of who receives the connection.
            (None, FlowDirection::Ingress) => {
                let known = self.named.get(&(line.ports, subject_ports));
                Covered::Same(known.copied().unwrap_or(super::arena::NONE))
            }
            (None, FlowDirection::Egress) => {
                Covered::ByPeer(self.variants.get(ports).map_or(&[], Vec::as_slice))
            }
        };
        // Every number was given by the layout.
        (&self.peers[peers], covered)
    }
}

/// What a line covers.
#[derive(Clone, Copy)]
pub(super) enum Covered<'a> {
    /// For every peer that it matches.
    Same(SetId),
    /// For those peers.
    ByPeer(&'a [(Bits, SetId)]),
}

/// Units whose subject each group of labels is.
fn by_labels(units: &[Unit<'_>], classes: &Classes, words: &Vocabulary<'_>) -> Vec<Vec<u32>> {
    let mut by_labels = vec![Vec::new(); classes.labels.count];
    for (unit, number) in units.iter().zip(0..) {
        let subject = match unit.source {
            Source::Filter(filter) => &filter.subject,
            Source::Policy(policy) => &policy.subject,
            Source::Grant(grant) => &grant.subject,
        };
        let selected = words
            .selectors
            .find(&subject)
            .and_then(|selector| classes.labels.selected.get(selector as usize));
        for group in selected.into_iter().flat_map(Bits::iter) {
            if let Some(list) = by_labels.get_mut(group) {
                list.push(number);
            }
        }
    }
    by_labels
}

/// Lays units out and numbers their lists.
#[derive(Default)]
struct Layout<'a> {
    units: Vec<Unit<'a>>,
    peers: Interner<PeersKey<'a>>,
    ports: Interner<PortsKey<'a>>,
}

impl<'a> Layout<'a> {
    fn filters(&mut self, set: &'a PolicySet) {
        for filter in set.filters() {
            let mut sides = [FlowDirection::Egress, FlowDirection::Ingress].map(|direction| {
                let entries = filter.entries.iter().enumerate();
                let lines: Vec<Line> = entries
                    .filter(|(_, entry)| entry.direction == direction)
                    .map(|(index, entry)| Line {
                        action: if entry.allow {
                            Action::Pass
                        } else {
                            Action::Deny
                        },
                        peers: self
                            .peers
                            .number(PeersKey::Filter(entry.cidr, !entry.allow)),
                        ports: self.ports.number(PortsKey {
                            specs: entry.ports.as_slice(),
                            names: false,
                        }),
                        index,
                    })
                    .collect();
                Some(lines)
            });
            self.units.push(Unit {
                stage: Stage::Filter,
                source: Source::Filter(filter),
                enforced: true,
                draft: true,
                egress: sides[0].take(),
                ingress: sides[1].take(),
            });
        }
    }

    fn policies(&mut self, set: &'a PolicySet, at: OffsetDateTime) {
        let replaced = set.replaced(at);
        for policy in set.policies() {
            if !is_live(policy.expires, at) {
                continue;
            }
            let mut side = |direction| {
                let rules = policy.rules(direction)?;
                let lines = rules.iter().enumerate().map(|(index, rule)| {
                    let denies = rule.action == Action::Deny;
                    self.line(rule.action, &rule.peers, denies, &rule.ports, index)
                });
                Some(lines.collect())
            };
            let (egress, ingress) = (side(FlowDirection::Egress), side(FlowDirection::Ingress));
            self.units.push(Unit {
                stage: match policy.tier {
                    Tier::Guardrail => Stage::Guardrail,
                    Tier::Standard => Stage::Standard,
                    Tier::Baseline => Stage::Baseline,
                },
                source: Source::Policy(policy),
                enforced: policy.state == State::Enforced,
                draft: !replaced.contains(policy.metadata.name.as_str()),
                egress,
                ingress,
            });
        }
    }

    fn grants(&mut self, set: &'a PolicySet, at: OffsetDateTime) {
        for grant in set.grants() {
            if !is_live(Some(grant.expires), at) {
                continue;
            }
            let mut side = |direction| {
                let line = |layout: &mut Self| {
                    layout.line(Action::Allow, &grant.peers, false, &grant.ports, 0)
                };
                grant.speaks(direction).then(|| vec![line(self)])
            };
            let (egress, ingress) = (side(FlowDirection::Egress), side(FlowDirection::Ingress));
            self.units.push(Unit {
                stage: Stage::Grants,
                source: Source::Grant(grant),
                enforced: true,
                draft: true,
                egress,
                ingress,
            });
        }
    }

    fn line(
        &mut self,
        action: Action,
        peers: &'a [Peer],
        denies: bool,
        specs: &'a [PortSpec],
        index: usize,
    ) -> Line {
        Line {
            action,
            peers: self.peers.number(PeersKey::Rule(peers, denies)),
            ports: self.ports.number(PortsKey { specs, names: true }),
            index,
        }
    }
}

/// Matches lists of peers against all peer sides at once, as [`crate::matching::peers_match`] does
/// against one.
struct Matcher<'a, 'b> {
    set: &'a PolicySet,
    classes: &'b Classes,
    words: &'b Vocabulary<'a>,
}

impl Matcher<'_, '_> {
    fn peers(&self, key: &PeersKey<'_>) -> Bits {
        let mut matched = Bits::none(self.classes.peers.len());
        let denies = match key {
            PeersKey::Rule(peers, denies) => {
                if peers.is_empty() {
                    matched = Bits::all(self.classes.peers.len());
                }
                for peer in *peers {
                    self.peer(peer, &mut matched);
                }
                *denies && (peers.is_empty() || peers.iter().any(is_any))
            }
            PeersKey::Filter(None, denies) => {
                matched = Bits::all(self.classes.peers.len());
                *denies
            }
            PeersKey::Filter(Some(net), _) => {
                matched.add(&self.within(std::slice::from_ref(net), &[]));
                false
            }
        };
        // Of an unknown peer, only denials of everybody can be told to match.
        let unknown = self.class(PeerClass::Unknown);
        if denies {
            matched.add(&unknown);
            return matched;
        }
        matched.minus(&unknown)
    }

    fn peer(&self, peer: &Peer, matched: &mut Bits) {
        match peer {
            Peer::Selector { selector } => {
                let groups = self
                    .words
                    .selectors
                    .find(&selector)
                    .and_then(|selector| self.classes.labels.selected.get(selector as usize));
                let Some(groups) = groups else {
                    return;
                };
                for (side, peer) in self.classes.peers.iter().enumerate() {
                    if peer
                        .labels
                        .is_some_and(|labels| groups.get(labels as usize))
                    {
                        matched.set(side);
                    }
                }
            }
            Peer::Cidr { cidr, except } => {
                matched.add(&self.within(std::slice::from_ref(cidr), except));
            }
            Peer::Group { group } => {
                if let Some(group) = self.set.group(group) {
                    matched.add(&self.within(&group.cidrs, &[]));
                }
            }
            Peer::Entity { entity } => match entity {
                Entity::Any => *matched = Bits::all(self.classes.peers.len()),
                Entity::Managed => matched.add(&self.class(PeerClass::Managed)),
                Entity::Unmanaged => matched.add(&self.class(PeerClass::Unmanaged)),
                Entity::World => matched.add(&self.class(PeerClass::World)),
            },
        }
    }

    /// Peer sides in some of the networks and none of the holes. All of them cut the address space,
    /// so that a peer's longest network stands for the peer.
    fn within(&self, nets: &[IpNet], holes: &[IpNet]) -> Bits {
        let mut within = Bits::none(self.classes.peers.len());
        let all = self.classes.space.nets();
        for (side, peer) in self.classes.peers.iter().enumerate() {
            let Some(own) = all.get(peer.net as usize) else {
                continue;
            };
            let inside = |net: &IpNet| net.contains(own);
            if nets.iter().any(inside) && !holes.iter().any(inside) {
                within.set(side);
            }
        }
        within
    }

    fn class(&self, class: PeerClass) -> Bits {
        let mut bits = Bits::none(self.classes.peers.len());
        for (side, peer) in self.classes.peers.iter().enumerate() {
            if peer.class == class {
                bits.set(side);
            }
        }
        bits
    }
}

const fn is_any(peer: &Peer) -> bool {
    matches!(
        peer,
        Peer::Entity {
            entity: Entity::Any
        }
    )
}
