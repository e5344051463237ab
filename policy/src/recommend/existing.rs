//! What the policies that are already there say about an edge.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;

use datapath::drop_reason::DropReason;
use time::OffsetDateTime;

use super::observe::{Key, Recording};
use crate::probe::Flow;
use crate::set::PolicySet;
use crate::snapshot::{FlowDirection, Mode};
use crate::walk::{Decision, End, Lens, NoTrace, decide, names};
use crate::world::World;

/// The draft's word on one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ruling {
    /// There is no policy at this end: it is no workload.
    Unmanaged,
    /// It passes already.
    Allowed,
    /// Nothing speaks about it: a rule would let it pass.
    Open,
    /// A rule denies it; another rule behind it would change nothing.
    Denied,
}

/// Classes of the ends, protocol, port; whether it is the ingress.
type Id = (u32, u32, u8, u16, bool);

/// Existing policies in their world.
pub(crate) struct Existing<'a> {
    world: &'a World,
    set: &'a PolicySet,
    at: OffsetDateTime,
    /// Workloads whose labels and ports are equal, and which are in the same mode, get equal answers as subjects
    /// and as peers, unless a rule names addresses.
    classes: Option<Vec<u32>>,
    memo: RefCell<HashMap<Id, Ruling>>,
}

impl<'a> Existing<'a> {
    pub(crate) fn new(world: &'a World, set: &'a PolicySet, at: OffsetDateTime) -> Self {
        Self {
            world,
            set,
            at,
            classes: (!names_addresses(set)).then(|| classes(world)),
            memo: RefCell::default(),
        }
    }

    /// Whether there is nothing that could decide.
    pub(crate) fn is_empty(&self) -> bool {
        self.set.policies().is_empty()
            && self.set.filters().is_empty()
            && self.set.modes().is_empty()
            && self.set.grants().is_empty()
            && !self
                .world
                .workloads()
                .iter()
                .any(|workload| workload.mode == Some(Mode::Isolate))
    }

    /// The draft's word on one end of an edge.
    pub(crate) fn ruling(
        &self,
        recording: &Recording,
        key: &Key,
        direction: FlowDirection,
    ) -> Ruling {
        let subject = match direction {
            FlowDirection::Egress => key.source,
            FlowDirection::Ingress => key.destination,
        };
        if !recording.is_workload(subject) {
            return Ruling::Unmanaged;
        }
        if self.is_empty() {
            return Ruling::Open;
        }
        let class = |node: u32| match &self.classes {
            Some(classes) => classes.get(node as usize).copied().unwrap_or(node),
            None => node,
        };
        let ingress = direction == FlowDirection::Ingress;
        let id = (
            class(key.source),
            class(key.destination),
            key.protocol,
            key.port,
            ingress,
        );
        if let Some(known) = self.memo.borrow().get(&id) {
            return *known;
        }
        let ruling = self.decide(recording, key, direction);
        self.memo.borrow_mut().insert(id, ruling);
        ruling
    }

    fn decide(&self, recording: &Recording, key: &Key, direction: FlowDirection) -> Ruling {
        let addresses = |node: u32| -> Vec<IpAddr> {
            match recording.external(node) {
                Some((address, _)) => vec![address],
                None => self
                    .world
                    .workloads()
                    .get(node as usize)
                    .map(|workload| workload.addresses.clone())
                    .unwrap_or_default(),
            }
        };
        let (sources, destinations) = (addresses(key.source), addresses(key.destination));
        let pair = sources
            .iter()
            .flat_map(|source| {
                destinations
                    .iter()
                    .map(move |destination| (*source, *destination))
            })
            .find(|(source, destination)| source.is_ipv4() == destination.is_ipv4());
        // Without a common family nothing can pass, so nothing is missing either.
        let Some((source, destination)) = pair else {
            return Ruling::Denied;
        };
        let flow = Flow::between(self.world, source, destination, key.protocol, key.port);
        match End::of(self.world, self.set, &flow, direction, self.at) {
            Some(end) => ruling(&decide(&end, Lens::Draft, &mut NoTrace)),
            None => Ruling::Unmanaged,
        }
    }
}

fn ruling(decision: &Decision) -> Ruling {
    match decision.reason {
        // What passes only because nothing is closed yet needs a rule for the day it is.
        _ if decision.allow && decision.rule == names::DEFAULT_ALLOW => Ruling::Open,
        _ if decision.allow => Ruling::Allowed,
        DropReason::DefaultDeny => Ruling::Open,
        _ => Ruling::Denied,
    }
}

fn names_addresses(set: &PolicySet) -> bool {
    use crate::model::Peer;
    let rules = set
        .policies()
        .iter()
        .flat_map(|policy| [&policy.ingress, &policy.egress])
        .flatten()
        .flatten();
    let peers = rules
        .flat_map(|rule| &rule.peers)
        .chain(set.grants().iter().flat_map(|grant| &grant.peers));
    !set.filters().is_empty()
        || peers
            .into_iter()
            .any(|peer| matches!(peer, Peer::Cidr { .. } | Peer::Group { .. }))
}

/// Numbers of the workloads' classes: the lowest node of each.
fn classes(world: &World) -> Vec<u32> {
    let mut first = HashMap::new();
    (0u32..)
        .zip(world.workloads())
        .map(|(node, workload)| {
            let id = (
                &workload.namespace,
                &workload.labels,
                &workload.namespace_labels,
                &workload.named_ports,
                workload.mode.map(|mode| mode.name()),
                workload.default_action,
            );
            *first.entry(id).or_insert(node)
        })
        .collect()
}
