//! Workloads that no policy of a set can tell apart.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::IpNet;

use crate::model::{NamedPort, Peer, PolicyTest, TestEnd};
use crate::posture::{Posture, is_isolated};
use crate::selectors::{Labelled as _, Selector};
use crate::set::PolicySet;
use crate::world::{Who, Workload, World};

/// Everything about a workload that a verdict can depend on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Traits {
    labels: Vec<Option<String>>,
    addresses: Vec<Address>,
    ports: Vec<NamedPort>,
    posture: Posture,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Address {
    v4: bool,
    /// Claimed by nobody else.
    own: bool,
    /// Somebody who claims it is isolated.
    isolated: bool,
    /// Networks of policies that it lies in, by index.
    networks: Vec<usize>,
}

/// The workloads of a world, grouped, with the policies of each group.
#[derive(Debug)]
pub(super) struct Alike<'a> {
    world: &'a World,
    set: &'a PolicySet,
    /// Groups of indices in the world.
    groups: Vec<Vec<usize>>,
    /// Group by full name.
    group_of: HashMap<String, usize>,
    /// The policies that matter at a group's workloads.
    policies: HashMap<usize, PolicySet>,
}

impl<'a> Alike<'a> {
    pub(super) fn new<'t>(
        world: &'a World,
        set: &'a PolicySet,
        tests: impl Iterator<Item = &'t PolicyTest>,
    ) -> Self {
        let keys = keys(set, tests);
        let networks = networks(set);
        let mut groups: BTreeMap<Traits, Vec<usize>> = BTreeMap::new();
        for (index, workload) in world.workloads().iter().enumerate() {
            let traits = traits(world, set, workload, &keys, &networks);
            groups.entry(traits).or_default().push(index);
        }
        let groups: Vec<Vec<usize>> = groups.into_values().collect();
        let mut group_of = HashMap::new();
        for (group, members) in groups.iter().enumerate() {
            for index in members {
                if let Some(workload) = world.workloads().get(*index) {
                    group_of.insert(workload.full_name(), group);
                }
            }
        }
        Self {
            world,
            set,
            groups,
            group_of,
            policies: HashMap::new(),
        }
    }

    /// The groups whose workloads a selector of the tests selects.
    pub(super) fn selected<'s>(
        &'s self,
        selector: &'s Selector,
    ) -> impl Iterator<Item = Vec<usize>> + 's {
        self.groups
            .iter()
            .filter(move |members| {
                let first = members
                    .first()
                    .and_then(|index| self.world.workloads().get(*index));
                first.is_some_and(|workload| selector.matches(workload))
            })
            .cloned()
    }

    /// A set that decides as the whole one does at the ends of a workload.
    pub(super) fn policies_of(&mut self, workload: &Workload) -> &PolicySet {
        let Some(group) = self.group_of.get(&workload.full_name()) else {
            return self.set;
        };
        self.policies
            .entry(*group)
            .or_insert_with(|| self.set.at(workload))
    }
}

fn traits(
    world: &World,
    set: &PolicySet,
    workload: &Workload,
    keys: &BTreeSet<String>,
    networks: &[IpNet],
) -> Traits {
    let address = |address: &std::net::IpAddr| Address {
        v4: address.is_ipv4(),
        own: matches!(world.who(*address), Who::Workload(_)),
        isolated: world
            .claimants(*address)
            .any(|other| is_isolated(world, set, other)),
        networks: networks
            .iter()
            .enumerate()
            .filter(|(_, network)| network.contains(address))
            .map(|(index, _)| index)
            .collect(),
    };
    let mut ports = workload.named_ports.clone();
    ports.sort();
    Traits {
        labels: keys
            .iter()
            .map(|key| workload.label(key).map(str::to_owned))
            .collect(),
        addresses: workload.addresses.iter().map(address).collect(),
        ports,
        posture: Posture::of(world, set, workload),
    }
}

/// Label keys that something asks for.
fn keys<'t>(set: &PolicySet, tests: impl Iterator<Item = &'t PolicyTest>) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let mut add = |selector: &Selector| keys.extend(selector.keys().map(str::to_owned));
    for policy in set.policies() {
        add(&policy.subject);
    }
    set.filters().iter().for_each(|filter| add(&filter.subject));
    set.modes().iter().for_each(|mode| add(&mode.subject));
    set.grants().iter().for_each(|grant| add(&grant.subject));
    for peer in peers(set) {
        if let Peer::Selector { selector } = peer {
            add(selector);
        }
    }
    for test in tests {
        for end in [&test.from, &test.to] {
            if let TestEnd::Selected(selector) = end {
                add(selector);
            }
        }
    }
    keys
}

fn peers(set: &PolicySet) -> impl Iterator<Item = &Peer> {
    let rules = (set.policies().iter())
        .flat_map(|policy| policy.ingress.iter().chain(&policy.egress).flatten())
        .flat_map(|rule| &rule.peers);
    rules.chain(set.grants().iter().flat_map(|grant| &grant.peers))
}

/// Networks that something asks for.
fn networks(set: &PolicySet) -> Vec<IpNet> {
    let mut networks = BTreeSet::new();
    for peer in peers(set) {
        match peer {
            Peer::Cidr { cidr, except } => {
                networks.insert(*cidr);
                networks.extend(except);
            }
            Peer::Group { group } => {
                networks.extend(set.group(group).into_iter().flat_map(|group| &group.cidrs));
            }
            _ => {}
        }
    }
    let entries = set.filters().iter().flat_map(|filter| &filter.entries);
    networks.extend(entries.filter_map(|entry| entry.cidr));
    networks.into_iter().collect()
}
