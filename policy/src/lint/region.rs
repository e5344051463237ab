//! Sets of flows at one end, without any inventory: which subjects, peers and ports a rule means.
//!
//! A selector is a box: each label key has a set of values that it may have, or be missing. So a rule is a
//! union of boxes over label keys, kinds of peers, addresses and ports, and what one rule leaves of another
//! is computed exactly. Two things are unknown without an inventory and are treated so that nothing
//! false is said: labels and addresses are taken to be independent, and a named port may be any one port.

use std::collections::{BTreeMap, BTreeSet};

use super::spans::Spans;
use crate::model::{Entity, Peer};
use crate::ports::{PortSpec, Ports, Protocol};
use crate::selectors::{Operator, Selector};
use crate::set::PolicySet;

/// Kinds of peers, as bits.
pub(super) mod class {
    pub(in crate::lint) const MANAGED: u8 = 1;
    pub(in crate::lint) const UNMANAGED: u8 = 2;
    pub(in crate::lint) const WORLD: u8 = 4;
    pub(in crate::lint) const UNKNOWN: u8 = 8;
    /// Everything but the unknown.
    pub(in crate::lint) const KNOWN: u8 = MANAGED | UNMANAGED | WORLD;
}

/// Values that a label may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Values {
    /// The label may be missing.
    missing: bool,
    /// `listed` is what is excluded.
    inverted: bool,
    listed: BTreeSet<String>,
}

impl Values {
    fn all() -> Self {
        Self {
            missing: true,
            inverted: true,
            listed: BTreeSet::new(),
        }
    }

    fn is_empty(&self) -> bool {
        !self.missing && !self.inverted && self.listed.is_empty()
    }

    fn not(&self) -> Self {
        Self {
            missing: !self.missing,
            inverted: !self.inverted,
            listed: self.listed.clone(),
        }
    }

    fn and(&self, other: &Self) -> Self {
        let listed = match (self.inverted, other.inverted) {
            (false, false) => &self.listed & &other.listed,
            (false, true) => &self.listed - &other.listed,
            (true, false) => &other.listed - &self.listed,
            (true, true) => &self.listed | &other.listed,
        };
        Self {
            missing: self.missing && other.missing,
            inverted: self.inverted && other.inverted,
            listed,
        }
    }

    fn meets(&self, other: &Self) -> bool {
        (self.missing && other.missing)
            || match (self.inverted, other.inverted) {
                (true, true) => true,
                (false, false) => !self.listed.is_disjoint(&other.listed),
                (false, true) => !self.listed.is_subset(&other.listed),
                (true, false) => !other.listed.is_subset(&self.listed),
            }
    }
}

/// What the labels may be; keys that are not there may be anything. No entry is empty.
pub(super) type LabelBox = BTreeMap<String, Values>;

/// The labels that a selector selects; `None` when it contradicts itself.
pub(super) fn label_box(selector: &Selector) -> Option<LabelBox> {
    let mut labels = LabelBox::new();
    let mut narrow = |key: &str, values: Values| {
        let own = labels.entry(key.to_owned()).or_insert_with(Values::all);
        *own = own.and(&values);
    };
    for (key, value) in &selector.match_labels {
        narrow(
            key,
            Values {
                missing: false,
                inverted: false,
                listed: [value.clone()].into(),
            },
        );
    }
    for expression in &selector.match_expressions {
        let present = Values {
            missing: false,
            inverted: true,
            listed: BTreeSet::new(),
        };
        let listed = Values {
            missing: false,
            inverted: false,
            listed: expression.values.iter().cloned().collect(),
        };
        let values = match expression.operator {
            Operator::In => listed,
            Operator::NotIn => listed.not(),
            Operator::Exists => present,
            Operator::DoesNotExist => present.not(),
        };
        narrow(&expression.key, values);
    }
    (!labels.values().any(Values::is_empty)).then_some(labels)
}

fn boxes_meet(left: &LabelBox, right: &LabelBox) -> bool {
    (left.iter()).all(|(key, values)| right.get(key).is_none_or(|other| values.meets(other)))
}

fn boxes_and(left: &LabelBox, right: &LabelBox) -> LabelBox {
    let mut both = left.clone();
    for (key, values) in right {
        let own = both.entry(key.clone()).or_insert_with(Values::all);
        *own = own.and(values);
    }
    both
}

/// A box of flows at one end. Where `peer` says something, `classes` is managed only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) subject: LabelBox,
    pub(super) classes: u8,
    pub(super) peer: LabelBox,
    pub(super) addresses: Spans,
    /// As `protocol × 65536 + port`.
    pub(super) ports: Spans,
    /// Only the one port that the receiver calls so, if it lies in `ports`.
    pub(super) named: Option<String>,
}

impl Region {
    /// Every flow of some subjects with peers that are known, or with all.
    pub(super) fn of_subject(subject: LabelBox, classes: u8) -> Self {
        Self {
            subject,
            classes,
            peer: LabelBox::new(),
            addresses: Spans::all_addresses(),
            ports: Spans::all_ports(),
            named: None,
        }
    }

    /// Whether some flow may be in both.
    pub(super) fn meets(&self, other: &Self) -> bool {
        self.classes & other.classes != 0
            && boxes_meet(&self.subject, &other.subject)
            && self.ports.meets(&other.ports)
            && boxes_meet(&self.peer, &other.peer)
            && self.addresses.meets(&other.addresses)
    }

    /// What may be in both.
    pub(super) fn and(&self, other: &Self) -> Option<Self> {
        self.meets(other).then(|| Self {
            subject: boxes_and(&self.subject, &other.subject),
            classes: self.classes & other.classes,
            peer: boxes_and(&self.peer, &other.peer),
            addresses: self.addresses.and(&other.addresses),
            ports: self.ports.and(&other.ports),
            named: self.named.clone().or_else(|| other.named.clone()),
        })
    }

    /// What is certainly not all taken away by the other, added to `left`.
    pub(super) fn minus(self, other: &Self, left: &mut Vec<Self>) {
        // Which port a name means is not known, so that it takes away only what has the same name.
        let takes = other.named.is_none() || other.named == self.named;
        if !takes || !self.meets(other) {
            left.push(self);
            return;
        }
        let mut rest = self;
        if rest.classes & !other.classes != 0 {
            let mut piece = rest.clone();
            piece.classes &= !other.classes;
            left.push(piece);
            rest.classes &= other.classes;
        }
        for part in [Side::Subject, Side::Peer] {
            for (key, values) in part.of(other) {
                let own = part.of(&rest).get(key).cloned().unwrap_or_else(Values::all);
                let outside = own.and(&values.not());
                if !outside.is_empty() {
                    let mut piece = rest.clone();
                    part.of_mut(&mut piece).insert(key.clone(), outside);
                    left.push(piece);
                }
                part.of_mut(&mut rest).insert(key.clone(), own.and(values));
            }
        }
        let outside = rest.addresses.minus(&other.addresses);
        if !outside.is_empty() {
            left.push(Self {
                addresses: outside,
                ..rest.clone()
            });
            rest.addresses = rest.addresses.and(&other.addresses);
        }
        let outside = rest.ports.minus(&other.ports);
        if !outside.is_empty() {
            left.push(Self {
                ports: outside,
                ..rest
            });
        }
    }
}

#[derive(Clone, Copy)]
enum Side {
    Subject,
    Peer,
}

impl Side {
    fn of(self, region: &Region) -> &LabelBox {
        match self {
            Self::Subject => &region.subject,
            Self::Peer => &region.peer,
        }
    }

    fn of_mut(self, region: &mut Region) -> &mut LabelBox {
        match self {
            Self::Subject => &mut region.subject,
            Self::Peer => &mut region.peer,
        }
    }
}

/// More pieces than this are not followed: nothing is said then.
const MAX_PIECES: usize = 2_000;

/// What some regions leave of others; `None` when that takes too many pieces.
pub(super) fn minus(mut regions: Vec<Region>, taken: &[Region]) -> Option<Vec<Region>> {
    for other in taken {
        if !regions.iter().any(|region| region.meets(other)) {
            continue;
        }
        let mut left = Vec::with_capacity(regions.len());
        for region in regions {
            region.minus(other, &mut left);
        }
        if left.len() > MAX_PIECES {
            return None;
        }
        regions = left;
    }
    Some(regions)
}

/// Whether some regions may have a flow in common.
pub(super) fn meet(left: &[Region], right: &[Region]) -> bool {
    left.iter()
        .any(|region| right.iter().any(|other| region.meets(other)))
}

/// What may be in both.
pub(super) fn and(left: &[Region], right: &[Region]) -> Vec<Region> {
    (left.iter())
        .flat_map(|region| right.iter().filter_map(|other| region.and(other)))
        .collect()
}

/// Who is meant: kinds, labels, addresses.
type PeerBox = (u8, LabelBox, Spans);

/// Who some peers mean. Only denials of everybody mean the unknown.
pub(super) fn peer_boxes(set: &PolicySet, peers: &[Peer], denies: bool) -> Vec<PeerBox> {
    let any = || {
        let classes = if denies {
            class::KNOWN | class::UNKNOWN
        } else {
            class::KNOWN
        };
        (classes, LabelBox::new(), Spans::all_addresses())
    };
    if peers.is_empty() {
        return vec![any()];
    }
    let of_class = |classes| (classes, LabelBox::new(), Spans::all_addresses());
    let addresses = |spans: Spans| (class::KNOWN, LabelBox::new(), spans);
    (peers.iter())
        .filter_map(|peer| match peer {
            Peer::Selector { selector } => {
                label_box(selector).map(|labels| (class::MANAGED, labels, Spans::all_addresses()))
            }
            Peer::Cidr { cidr, except } => {
                let holes = except
                    .iter()
                    .fold(Spans::default(), |all, hole| all.or(&Spans::network(hole)));
                Some(addresses(Spans::network(cidr).minus(&holes)))
            }
            Peer::Group { group } => {
                let cidrs = set.group(group).into_iter().flat_map(|group| &group.cidrs);
                Some(addresses(cidrs.fold(Spans::default(), |all, cidr| {
                    all.or(&Spans::network(cidr))
                })))
            }
            Peer::Entity { entity } => Some(match entity {
                Entity::Any => any(),
                Entity::Managed => of_class(class::MANAGED),
                Entity::Unmanaged => of_class(class::UNMANAGED),
                Entity::World => of_class(class::WORLD),
            }),
        })
        .filter(|(_, _, addresses)| !addresses.is_empty())
        .collect()
}

/// What some ports mean: numbers, and names with what they can be.
pub(super) fn port_boxes(set: &PolicySet, ports: &[PortSpec]) -> Vec<(Spans, Option<String>)> {
    if ports.is_empty() {
        return vec![(Spans::all_ports(), None)];
    }
    let mut numbers = Spans::default();
    let mut named = BTreeMap::<String, Spans>::new();
    let mut add = |spec: &PortSpec| {
        let PortSpec::Direct { protocol, ports } = spec else {
            return;
        };
        let each = |low: u16, high: u16| {
            protocol
                .ported()
                .into_iter()
                .fold(Spans::default(), |all, number| {
                    all.or(&Spans::ports(number, low, high))
                })
        };
        match ports {
            Ports::All if *protocol == Protocol::Any => numbers = Spans::all_ports(),
            Ports::All => numbers = numbers.or(&each(0, u16::MAX)),
            Ports::Range(low, high) => numbers = numbers.or(&each(*low, *high)),
            Ports::Icmp { kind, code } => {
                let low = u16::from_be_bytes([*kind, code.unwrap_or(0)]);
                let high = u16::from_be_bytes([*kind, code.unwrap_or(u8::MAX)]);
                numbers = numbers.or(&each(low, high));
            }
            Ports::Named(name) => {
                // One name may be another port in each protocol.
                for number in protocol.ported() {
                    let own = named.entry(format!("{number}/{name}")).or_default();
                    *own = own.or(&Spans::ports(number, 0, u16::MAX));
                }
            }
        }
    };
    for spec in ports {
        match spec {
            PortSpec::Service(name) => {
                set.service(name)
                    .into_iter()
                    .flat_map(|service| &service.ports)
                    .for_each(&mut add);
            }
            PortSpec::Direct { .. } => add(spec),
        }
    }
    let mut boxes: Vec<_> = named
        .into_iter()
        .map(|(name, spans)| (spans, Some(name)))
        .collect();
    if !numbers.is_empty() {
        boxes.push((numbers, None));
    }
    boxes
}

/// What a rule of a subject means.
pub(super) fn rule_regions(
    set: &PolicySet,
    subject: &Selector,
    peers: &[Peer],
    ports: &[PortSpec],
    denies: bool,
) -> Vec<Region> {
    let Some(subject) = label_box(subject) else {
        return Vec::new();
    };
    let ports = port_boxes(set, ports);
    let mut regions = Vec::new();
    for (classes, peer, addresses) in peer_boxes(set, peers, denies) {
        for (ports, named) in &ports {
            regions.push(Region {
                subject: subject.clone(),
                classes,
                peer: peer.clone(),
                addresses: addresses.clone(),
                ports: ports.clone(),
                named: named.clone(),
            });
        }
    }
    regions
}
