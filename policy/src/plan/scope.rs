//! Many verdicts on one set: each end is asked of the few objects that concern its workload.
//!
//! What is left out cannot matter: a policy, filter or grant whose subject does not select the workload
//! is skipped by the walk. What matters beyond its subject stays: every Mode (the peer may be isolated),
//! and every staged policy that replaces another.

use std::collections::{BTreeSet, HashMap};

use time::OffsetDateTime;

use crate::evaluate::{ConnectionVerdict, EndVerdict, evaluate_end};
use crate::model::{Object, Peer, State};
use crate::ports::PortSpec;
use crate::probe::Flow;
use crate::set::PolicySet;
use crate::snapshot::FlowDirection;
use crate::world::{Workload, World};

/// A world with a set, and what of the set concerns each workload.
#[derive(Debug)]
pub(crate) struct Scopes<'a> {
    pub(crate) world: &'a World,
    pub(crate) set: &'a PolicySet,
    pub(crate) at: OffsetDateTime,
    subsets: Vec<PolicySet>,
    by_signature: HashMap<Vec<u32>, usize>,
    by_workload: HashMap<(Option<&'a str>, &'a str), usize>,
}

impl<'a> Scopes<'a> {
    pub(crate) fn new(world: &'a World, set: &'a PolicySet, at: OffsetDateTime) -> Self {
        Self {
            world,
            set,
            at,
            subsets: Vec::new(),
            by_signature: HashMap::new(),
            by_workload: HashMap::new(),
        }
    }

    /// What of the set concerns a workload.
    pub(crate) fn of(&mut self, workload: &'a Workload) -> &PolicySet {
        let key = (workload.namespace.as_deref(), workload.name.as_str());
        let index = match self.by_workload.get(&key) {
            Some(index) => *index,
            None => {
                let index = self.index(workload);
                self.by_workload.insert(key, index);
                index
            }
        };
        self.subsets.get(index).unwrap_or(self.set)
    }

    fn index(&mut self, workload: &Workload) -> usize {
        let signature = signature(self.set, workload);
        if let Some(index) = self.by_signature.get(&signature) {
            return *index;
        }
        let index = self.subsets.len();
        // Parts of a set that fits together fit together; should they not, the whole set is right.
        if let Ok(subset) = PolicySet::build(parts(self.set, &signature)) {
            self.subsets.push(subset);
        } else {
            self.subsets.push(self.set.clone());
        }
        self.by_signature.insert(signature, index);
        index
    }

    /// As [`evaluate_end`] of the whole set.
    pub(crate) fn end(&mut self, flow: &Flow<'a>, direction: FlowDirection) -> Option<EndVerdict> {
        let subject = match direction {
            FlowDirection::Egress => flow.from?,
            FlowDirection::Ingress => flow.to?,
        };
        let (world, at) = (self.world, self.at);
        evaluate_end(world, self.of(subject), flow, direction, at)
    }

    /// As [`crate::evaluate::evaluate_flow`] of the whole set.
    pub(crate) fn verdict(&mut self, flow: &Flow<'a>) -> ConnectionVerdict {
        let egress = self.end(flow, FlowDirection::Egress);
        ConnectionVerdict::new(egress, self.end(flow, FlowDirection::Ingress))
    }
}

/// Numbers of the objects that concern a workload: policies, then filters, then grants.
fn signature(set: &PolicySet, workload: &Workload) -> Vec<u32> {
    let policies = set.policies().iter().map(|policy| {
        policy.subject.matches(workload)
            || policy.state == State::Staged && policy.replaces.is_some()
    });
    let filters = (set.filters().iter()).map(|filter| filter.subject.matches(workload));
    let grants = (set.grants().iter()).map(|grant| grant.subject.matches(workload));
    (0..)
        .zip(policies.chain(filters).chain(grants))
        .filter_map(|(number, concerns)| concerns.then_some(number))
        .collect()
}

fn parts(set: &PolicySet, signature: &[u32]) -> Vec<Object> {
    let all = set.policies().iter().cloned().map(Object::Policy);
    let filters = set.filters().iter().cloned().map(Object::Filter);
    let grants = set.grants().iter().cloned().map(Object::Grant);
    let mut wanted = signature.iter().copied().peekable();
    let mut objects: Vec<Object> = (0..)
        .zip(all.chain(filters).chain(grants))
        .filter_map(|(number, object)| (wanted.next_if_eq(&number).is_some()).then_some(object))
        .collect();
    objects.extend(set.modes().iter().cloned().map(Object::Mode));
    let (mut groups, mut services) = (BTreeSet::new(), BTreeSet::new());
    for object in &objects {
        names(object, &mut groups, &mut services);
    }
    let groups = groups.iter().filter_map(|name| set.group(name)).cloned();
    let services = (services.iter())
        .filter_map(|name| set.service(name))
        .cloned();
    let referred: Vec<Object> = groups
        .map(Object::AddressGroup)
        .chain(services.map(Object::Service))
        .collect();
    objects.extend(referred);
    objects
}

/// What an object refers to by name.
fn names(object: &Object, groups: &mut BTreeSet<String>, services: &mut BTreeSet<String>) {
    let mut of = |peers: &[Peer], ports: &[PortSpec]| {
        groups.extend(peers.iter().filter_map(|peer| match peer {
            Peer::Group { group } => Some(group.clone()),
            _ => None,
        }));
        services.extend(ports.iter().filter_map(|port| match port {
            PortSpec::Service(name) => Some(name.clone()),
            PortSpec::Direct { .. } => None,
        }));
    };
    match object {
        Object::Policy(policy) => {
            for rule in [&policy.ingress, &policy.egress]
                .into_iter()
                .flatten()
                .flatten()
            {
                of(&rule.peers, &rule.ports);
            }
        }
        Object::Grant(grant) => of(&grant.peers, &grant.ports),
        Object::Filter(filter) => {
            for entry in &filter.entries {
                of(&[], entry.ports.as_slice());
            }
        }
        Object::Mode(mode) => {
            for entry in &mode.enforce {
                of(&[], std::slice::from_ref(&entry.ports));
            }
        }
        Object::Invariant(invariant) => {
            of(&invariant.from, &invariant.ports);
            of(&invariant.to, &[]);
        }
        Object::Workload(_) | Object::AddressGroup(_) | Object::Service(_) => {}
    }
}
