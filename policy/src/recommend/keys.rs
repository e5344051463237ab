//! Which label keys explain the traffic: minimum description length.
//!
//! A set of keys sorts the workloads into groups, and every (client group, server group, service) that
//! was seen becomes a rule. The cost of the set is the number of bits that it takes to write the rules
//! down, plus the bits that it takes to say which of the pairs that they allow were really seen. Too few
//! keys make rules that allow much more than was seen, too many make too many rules; both cost.
//!
//! The search starts with no key and takes the one change (a key more, a key less, one for another) that
//! saves most, until none saves anything: the result is a local minimum, and the cost of every change
//! from it is reported as its proof.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use super::bits;
use super::groups::MAX_KEYS;
use crate::selectors::{Labelled as _, NAMESPACE_NAME_LABEL, NAMESPACE_PREFIX};
use crate::world::World;

/// Keys by which people sort workloads, also where every value occurs once.
const SORTING: &[&str] = &[
    "app",
    "role",
    "tier",
    "env",
    "environment",
    "stage",
    "service",
    "component",
    "team",
    "zone",
    "loc",
    "location",
    "site",
    "datacenter",
    "dc",
    "cluster",
    "namespace",
    "project",
    "product",
    "function",
    "data-class",
    "layer",
    "system",
    "owner",
    "os",
    "app.kubernetes.io/name",
    "app.kubernetes.io/component",
    "app.kubernetes.io/part-of",
    "k8s-app",
];

/// Keys that name one workload, or one version of it.
const NAMING: &[&str] = &[
    "hostname",
    "host",
    "name",
    "fqdn",
    "instance",
    "instance-id",
    "id",
    "uuid",
    "ip",
    "pod",
    "machine-id",
    "serial",
    "build",
    "version",
    "revision",
    "commit",
    "pod-template-hash",
    "controller-revision-hash",
    "controller-uid",
    "job-name",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "kubernetes.io/hostname",
    "app.kubernetes.io/version",
    "app.kubernetes.io/instance",
    "helm.sh/chart",
    "batch.kubernetes.io/job-name",
];

/// Keys that take part in the search, at most.
const MAX_CANDIDATES: usize = 16;

/// One edge for the search: two nodes and a service by number. External ends are negative kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Link {
    /// Workload, or one of the numbers past the last.
    pub(crate) source: u32,
    pub(crate) destination: u32,
    pub(crate) service: u32,
}

/// What one change of the chosen keys would cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyChange {
    /// `add KEY`, `drop KEY` or `KEY for KEY`.
    pub change: String,
    /// Bits more than now; never negative at a minimum.
    pub bits: i64,
}

/// The chosen keys and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KeyChoice {
    /// In alphabetic order; `namespace:KEY` is a label of the namespace.
    pub keys: Vec<String>,
    /// Cost of the rules and of what they allow beyond what was seen, in bits.
    pub bits: i64,
    /// The same without any key.
    pub bits_without_keys: i64,
    /// Keys that were looked at.
    pub candidates: Vec<String>,
    /// Keys that name single workloads and were left out.
    pub left_out: Vec<String>,
    /// The cost of every single change: the proof that the choice is a local minimum.
    pub changes: Vec<KeyChange>,
}

/// Chooses. `forced` are keys that must be among them.
pub(crate) fn choose(world: &World, links: &[Link], forced: &[String]) -> KeyChoice {
    let (mut sorting, naming) = candidates(world);
    sorting.retain(|key| !forced.contains(key));
    let mut tried = search(world, links, forced, &sorting);
    let separates = !tried.keys.is_empty();
    tried.left_out.clone_from(&naming);
    if separates || naming.is_empty() {
        return tried;
    }
    // Nothing else separates anything.
    let all: Vec<String> = sorting
        .iter()
        .chain(&naming)
        .take(MAX_CANDIDATES)
        .cloned()
        .collect();
    search(world, links, forced, &all)
}

/// Keys that sort, and keys that name; both with the most common first.
fn candidates(world: &World) -> (Vec<String>, Vec<String>) {
    let mut values: BTreeMap<String, (usize, BTreeSet<&str>)> = BTreeMap::new();
    for workload in world.workloads() {
        let namespace = workload
            .namespace_labels
            .keys()
            .map(|key| format!("{NAMESPACE_PREFIX}{key}"));
        let implied = workload
            .namespace
            .iter()
            .map(|_| format!("{NAMESPACE_PREFIX}{NAMESPACE_NAME_LABEL}"));
        let keys: BTreeSet<String> = workload
            .labels
            .keys()
            .cloned()
            .chain(namespace)
            .chain(implied)
            .collect();
        for key in keys {
            if let Some(value) = workload.label(&key) {
                let entry = values.entry(key).or_default();
                entry.0 += 1;
                entry.1.insert(value);
            }
        }
    }
    let mut keys: Vec<(usize, String, bool)> = values
        .into_iter()
        .filter(|(_, (count, values))| values.len() > 1 || *count < world.workloads().len())
        .map(|(key, (count, values))| {
            let plain = key
                .strip_prefix(NAMESPACE_PREFIX)
                .unwrap_or(&key)
                .to_ascii_lowercase();
            let naming = NAMING.contains(&plain.as_str())
                || (values.len() * 2 > count && !SORTING.contains(&plain.as_str()));
            (count, key, naming)
        })
        .collect();
    keys.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let (naming, sorting): (Vec<_>, Vec<_>) = keys.into_iter().partition(|(_, _, naming)| *naming);
    let names = |list: Vec<(usize, String, bool)>| -> Vec<String> {
        list.into_iter()
            .map(|(_, key, _)| key)
            .take(MAX_CANDIDATES)
            .collect()
    };
    (names(sorting), names(naming))
}

fn search(world: &World, links: &[Link], forced: &[String], free: &[String]) -> KeyChoice {
    let keys: Vec<String> = forced.iter().chain(free).cloned().collect();
    let table = Table::new(world, links, &keys);
    let must: u32 = (1 << forced.len().min(16)) - 1;
    let mut chosen = must;
    let mut cost = table.cost(chosen);
    let bits_without_keys = table.cost(0);
    loop {
        let steps = table.steps(chosen, must);
        let best = steps
            .iter()
            .map(|(mask, _)| (table.cost(*mask), *mask))
            .min();
        match best {
            Some((less, mask)) if less < cost => (cost, chosen) = (less, mask),
            _ => break,
        }
    }
    let mut changes: Vec<KeyChange> = table
        .steps(chosen, must)
        .into_iter()
        .map(|(mask, change)| KeyChange {
            change,
            bits: whole(table.cost(mask) - cost),
        })
        .collect();
    changes.sort_by(|a, b| a.bits.cmp(&b.bits).then_with(|| a.change.cmp(&b.change)));
    let mut names: Vec<String> = keys
        .iter()
        .enumerate()
        .filter(|(index, _)| chosen & (1 << index) != 0)
        .map(|(_, key)| key.clone())
        .collect();
    names.sort();
    KeyChoice {
        keys: names,
        bits: whole(cost),
        bits_without_keys: whole(bits_without_keys),
        candidates: keys,
        left_out: Vec::new(),
        changes,
    }
}

fn whole(thousandths: i64) -> i64 {
    // Rounded away from zero, so that a change that costs something never shows as free.
    let sign = thousandths.signum();
    sign * ((thousandths.abs() + 999) / 1000)
}

/// Traffic between classes: workloads with equal values of every key.
struct Table<'a> {
    keys: &'a [String],
    /// Values of each class, as numbers.
    classes: Vec<Vec<u32>>,
    sizes: Vec<u128>,
    /// Client class, server class, service; pairs seen. Classes past the last are external.
    traffic: Vec<(u32, u32, u32, u128)>,
    services: usize,
    memo: std::cell::RefCell<HashMap<u32, i64>>,
}

impl<'a> Table<'a> {
    fn new(world: &World, links: &[Link], keys: &'a [String]) -> Self {
        let groups = super::groups::Groups::new_plain(world, keys);
        let count = world.workloads().len();
        let class = |node: u32| -> u32 {
            let past = node as usize >= count;
            let external = || node - u32::try_from(count).unwrap_or(0);
            match groups.of.get(node as usize) {
                Some(class) if !past => *class,
                _ => u32::try_from(groups.patterns.len()).unwrap_or(0) + external(),
            }
        };
        let mut traffic: HashMap<(u32, u32, u32), u128> = HashMap::new();
        let mut services = BTreeSet::new();
        for link in links {
            let key = (class(link.source), class(link.destination), link.service);
            *traffic.entry(key).or_default() += 1;
            services.insert(link.service);
        }
        let mut traffic: Vec<_> = traffic
            .into_iter()
            .map(|((s, d, p), n)| (s, d, p, n))
            .collect();
        traffic.sort_unstable();
        Self {
            keys,
            sizes: groups
                .members
                .iter()
                .map(|members| members.len() as u128)
                .collect(),
            classes: groups.patterns,
            traffic,
            services: services.len(),
            memo: std::cell::RefCell::default(),
        }
    }

    /// Every single change of a choice, with its name.
    fn steps(&self, chosen: u32, must: u32) -> Vec<(u32, String)> {
        let name = |index: usize| self.keys.get(index).cloned().unwrap_or_default();
        let mut steps = Vec::new();
        for index in 0..self.keys.len() {
            let bit = 1u32 << index;
            if must & bit != 0 {
                continue;
            }
            if chosen & bit != 0 {
                steps.push((chosen & !bit, format!("drop {}", name(index))));
                continue;
            }
            if (chosen.count_ones() as usize) < MAX_KEYS.max(must.count_ones() as usize + 1) {
                steps.push((chosen | bit, format!("add {}", name(index))));
            }
            for other in 0..self.keys.len() {
                let old = 1u32 << other;
                if chosen & old != 0 && must & old == 0 {
                    let mask = (chosen | bit) & !old;
                    steps.push((mask, format!("{} for {}", name(index), name(other))));
                }
            }
        }
        steps
    }

    /// Thousandths of bits of the rules that a set of keys makes, and of what they allow.
    fn cost(&self, mask: u32) -> i64 {
        if let Some(known) = self.memo.borrow().get(&mask) {
            return *known;
        }
        let cost = self.compute(mask);
        self.memo.borrow_mut().insert(mask, cost);
        cost
    }

    fn compute(&self, mask: u32) -> i64 {
        let mut ids: HashMap<Vec<u32>, u32> = HashMap::new();
        let mut sizes: Vec<u128> = Vec::new();
        let mut group_of: Vec<u32> = Vec::with_capacity(self.classes.len() + 2);
        for (class, size) in self.classes.iter().zip(&self.sizes) {
            let values: Vec<u32> = class
                .iter()
                .enumerate()
                .filter(|(index, _)| mask & (1 << index) != 0)
                .map(|(_, value)| *value)
                .collect();
            let next = u32::try_from(ids.len()).unwrap_or(u32::MAX);
            let id = *ids.entry(values).or_insert(next);
            if id as usize == sizes.len() {
                sizes.push(0);
            }
            if let Some(slot) = sizes.get_mut(id as usize) {
                *slot += size;
            }
            group_of.push(id);
        }
        let groups = sizes.len();
        let group = |class: u32| -> u32 {
            let past = || class - u32::try_from(self.classes.len()).unwrap_or(0);
            group_of
                .get(class as usize)
                .copied()
                .unwrap_or_else(|| u32::try_from(groups).unwrap_or(0) + past())
        };
        let size = |group: u32| sizes.get(group as usize).copied().unwrap_or(1);
        let mut rules: HashMap<(u32, u32, u32), u128> = HashMap::new();
        for (source, destination, service, pairs) in &self.traffic {
            *rules
                .entry((group(*source), group(*destination), *service))
                .or_default() += pairs;
        }
        let rule_bits = 2 * bits::choice(groups + 2) + bits::choice(self.services);
        let sum: i64 = rules
            .iter()
            .map(|((source, destination, _), seen)| {
                let own = if source == destination {
                    size(*source)
                } else {
                    0
                };
                rule_bits + bits::cells(size(*source) * size(*destination) - own, *seen)
            })
            .sum();
        // Naming the groups is not free either.
        let values = mask.count_ones() as i64;
        sum + groups as i64 * values * bits::choice(groups + 1)
    }
}
