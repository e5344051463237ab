//! A set of objects that fit together: what one evaluation or compilation works with.

use std::collections::{BTreeMap, HashMap, HashSet};

use time::OffsetDateTime;

use crate::matching::port_names;
use crate::model::{
    AddressGroup, Filter, Grant, Invariant, ModeObject, Object, Peer, Policy, Service, State,
    WorkloadObject,
};
use crate::ports::PortSpec;
use crate::problems::{Problem, Problems, did_you_mean};
use crate::source::{Place, Source};
use crate::world::Workload;

/// Objects that were checked against each other, in the order of evaluation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicySet {
    policies: Vec<Policy>,
    filters: Vec<Filter>,
    modes: Vec<ModeObject>,
    grants: Vec<Grant>,
    workloads: Vec<WorkloadObject>,
    groups: BTreeMap<String, AddressGroup>,
    services: BTreeMap<String, Service>,
    invariants: Vec<Invariant>,
}

impl PolicySet {
    /// Reads and checks some sources. All or nothing.
    pub fn parse(sources: &[Source]) -> Result<Self, Problems> {
        Self::build(crate::parse::parse(sources)?)
    }

    /// Checks objects against each other: unique names, references that exist.
    pub fn build(objects: Vec<Object>) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        unique(&objects, &mut problems);
        let mut set = Self::default();
        for object in objects {
            match object {
                Object::Policy(policy) => set.policies.push(policy),
                Object::Filter(filter) => set.filters.push(filter),
                Object::Mode(mode) => set.modes.push(mode),
                Object::Grant(grant) => set.grants.push(grant),
                Object::Workload(workload) => set.workloads.push(workload),
                Object::AddressGroup(group) => {
                    set.groups.insert(group.metadata.name.clone(), group);
                }
                Object::Service(service) => {
                    set.services.insert(service.metadata.name.clone(), service);
                }
                Object::Invariant(invariant) => set.invariants.push(invariant),
            }
        }
        set.sort();
        set.check_references(&mut problems);
        problems.into_result(set)
    }

    /// The order of evaluation: tier, priority, name (bytewise).
    fn sort(&mut self) {
        self.policies.sort_by(|a, b| {
            (a.tier, a.priority, &a.metadata.name).cmp(&(b.tier, b.priority, &b.metadata.name))
        });
        self.filters
            .sort_by(|a, b| (a.priority, &a.metadata.name).cmp(&(b.priority, &b.metadata.name)));
        self.grants
            .sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        self.modes
            .sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        self.invariants
            .sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        self.workloads.sort_by_key(|workload| {
            (
                workload.metadata.namespace.clone(),
                workload.metadata.name.clone(),
            )
        });
    }

    fn check_references(&self, problems: &mut Problems) {
        for policy in &self.policies {
            if policy.replaces.as_ref() == Some(&policy.metadata.name) {
                problems.push(
                    Problem::at(
                        &policy.place,
                        format!("policy \"{}\" replaces itself", policy.metadata.name),
                    )
                    .suggest("give the new policy a name of its own"),
                );
            }
            for rule in [&policy.ingress, &policy.egress]
                .into_iter()
                .flatten()
                .flatten()
            {
                self.check_peers(&rule.peers, &rule.place, problems);
                self.check_ports(&rule.ports, &rule.place, problems);
            }
            for test in &policy.tests {
                self.check_ports(std::slice::from_ref(&test.ports), &test.place, problems);
            }
        }
        for grant in &self.grants {
            self.check_peers(&grant.peers, &grant.place, problems);
            self.check_ports(&grant.ports, &grant.place, problems);
        }
        for invariant in &self.invariants {
            self.check_peers(&invariant.from, &invariant.place, problems);
            self.check_peers(&invariant.to, &invariant.place, problems);
            self.check_ports(&invariant.ports, &invariant.place, problems);
            // In the invariant itself no name is accepted; a service may bring one along.
            if let Some(name) = port_names(self, &invariant.ports).next() {
                problems.push(
                    Problem::at(
                        &invariant.place,
                        format!("the port \"{name}\" of a service is not a number, and so means nothing here"),
                    )
                    .suggest("list the ports of the invariant by number"),
                );
            }
        }
    }

    fn check_peers(&self, peers: &[Peer], place: &Place, problems: &mut Problems) {
        for peer in peers {
            if let Peer::Group { group } = peer
                && !self.groups.contains_key(group)
            {
                problems.push(
                    Problem::at(place, format!("there is no AddressGroup \"{group}\""))
                        .maybe_suggest(did_you_mean(group, self.groups.keys().map(String::as_str))),
                );
            }
        }
    }

    fn check_ports(&self, ports: &[PortSpec], place: &Place, problems: &mut Problems) {
        for port in ports {
            if let PortSpec::Service(name) = port
                && !self.services.contains_key(name)
            {
                problems.push(
                    Problem::at(place, format!("there is no Service \"{name}\"")).maybe_suggest(
                        did_you_mean(name, self.services.keys().map(String::as_str)),
                    ),
                );
            }
        }
    }

    /// Policies and guardrails by tier, priority and name.
    #[must_use]
    pub fn policies(&self) -> &[Policy] {
        &self.policies
    }

    /// Filters by priority and name.
    #[must_use]
    pub fn filters(&self) -> &[Filter] {
        &self.filters
    }

    /// Modes by name.
    #[must_use]
    pub fn modes(&self) -> &[ModeObject] {
        &self.modes
    }

    /// Grants by name.
    #[must_use]
    pub fn grants(&self) -> &[Grant] {
        &self.grants
    }

    /// Workload objects by namespace and name.
    #[must_use]
    pub fn workloads(&self) -> &[WorkloadObject] {
        &self.workloads
    }

    /// An address group by name.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<&AddressGroup> {
        self.groups.get(name)
    }

    /// A service by name.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.get(name)
    }

    /// A smaller set that decides as this one does at the ends of one workload: only what selects it.
    /// Staged policies that replace others stay, as these leave the draft everywhere; so do Modes, as it
    /// is asked whether a peer is isolated.
    #[must_use]
    pub(crate) fn at(&self, workload: &Workload) -> Self {
        let replaces = |policy: &Policy| policy.state == State::Staged && policy.replaces.is_some();
        Self {
            policies: (self.policies.iter())
                .filter(|policy| policy.subject.matches(workload) || replaces(policy))
                .cloned()
                .collect(),
            filters: (self.filters.iter())
                .filter(|filter| filter.subject.matches(workload))
                .cloned()
                .collect(),
            modes: self.modes.clone(),
            grants: (self.grants.iter())
                .filter(|grant| grant.subject.matches(workload))
                .cloned()
                .collect(),
            workloads: Vec::new(),
            groups: self.groups.clone(),
            services: self.services.clone(),
            invariants: Vec::new(),
        }
    }

    /// Address groups by name.
    pub fn groups(&self) -> impl Iterator<Item = &AddressGroup> {
        self.groups.values()
    }

    /// Services by name.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// Invariants by name.
    #[must_use]
    pub fn invariants(&self) -> &[Invariant] {
        &self.invariants
    }

    /// Every object again.
    #[must_use]
    pub fn objects(&self) -> Vec<Object> {
        let policies = self.policies.iter().cloned().map(Object::Policy);
        let filters = self.filters.iter().cloned().map(Object::Filter);
        let modes = self.modes.iter().cloned().map(Object::Mode);
        let grants = self.grants.iter().cloned().map(Object::Grant);
        let workloads = self.workloads.iter().cloned().map(Object::Workload);
        let groups = self.groups.values().cloned().map(Object::AddressGroup);
        let services = self.services.values().cloned().map(Object::Service);
        let invariants = self.invariants.iter().cloned().map(Object::Invariant);
        policies
            .chain(filters)
            .chain(modes)
            .chain(grants)
            .chain(workloads)
            .chain(groups)
            .chain(services)
            .chain(invariants)
            .collect()
    }

    /// Names of the policies that the draft omits.
    #[must_use]
    pub fn replaced(&self, at: OffsetDateTime) -> HashSet<&str> {
        self.policies
            .iter()
            .filter(|policy| policy.state == State::Staged && is_live(policy.expires, at))
            .filter_map(|policy| policy.replaces.as_deref())
            .collect()
    }
}

/// Whether something with this deadline still counts; at the deadline it does not.
#[must_use]
pub fn is_live(expires: Option<OffsetDateTime>, at: OffsetDateTime) -> bool {
    expires.is_none_or(|expires| at < expires)
}

/// Names are unique within a kind; policies and guardrails share one space, as `replaces` and rule
/// names do not say the kind.
fn unique(objects: &[Object], problems: &mut Problems) {
    let mut seen: HashMap<String, &Place> = HashMap::new();
    for object in objects {
        let id = match object {
            Object::Policy(policy) => format!("Policy/{}", policy.metadata.name),
            _ => object.id(),
        };
        // A missing name was reported when it was read.
        if object.metadata().name.is_empty() {
            continue;
        }
        match seen.get(&id) {
            Some(first) => problems.push(
                Problem::at(
                    object.place(),
                    format!(
                        "there are two objects {}/{}; the other one is at {first}",
                        object.kind(),
                        object.metadata().name
                    ),
                )
                .suggest("rename or remove one"),
            ),
            None => {
                seen.insert(id, object.place());
            }
        }
    }
}
