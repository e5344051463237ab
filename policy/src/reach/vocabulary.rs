//! What live policies speak about: selectors, networks and port names, each once.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use ipnet::IpNet;
use time::OffsetDateTime;

use super::bits::Bits;
use crate::matching::port_names;
use crate::model::Peer;
use crate::ports::PortSpec;
use crate::selectors::{Labelled, Operator, Selector};
use crate::set::{PolicySet, is_live};
use crate::world::Workload;

/// Gives small numbers to things that are equal.
pub(super) struct Interner<T> {
    ids: HashMap<T, u32>,
    items: Vec<T>,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self {
            ids: HashMap::new(),
            items: Vec::new(),
        }
    }
}

impl<T: Clone + Eq + Hash> Interner<T> {
    /// The number of an item, new if it was never seen.
    pub(super) fn number(&mut self, item: T) -> u32 {
        if let Some(id) = self.ids.get(&item) {
            return *id;
        }
        // Four billion items do not fit into any memory.
        let id = u32::try_from(self.items.len()).unwrap_or(u32::MAX);
        self.items.push(item.clone());
        self.ids.insert(item, id);
        id
    }

    /// The number of an item that was seen.
    pub(super) fn find(&self, item: &T) -> Option<u32> {
        self.ids.get(item).copied()
    }

    /// The items in the order of their numbers.
    pub(super) fn items(&self) -> &[T] {
        &self.items
    }
}

/// Selectors, networks and port names of everything that is live, staged or not.
#[derive(Default)]
pub(super) struct Vocabulary<'a> {
    pub(super) selectors: Interner<&'a Selector>,
    pub(super) nets: BTreeSet<IpNet>,
    pub(super) port_names: BTreeSet<&'a str>,
}

impl<'a> Vocabulary<'a> {
    pub(super) fn of(set: &'a PolicySet, at: OffsetDateTime) -> Self {
        let mut words = Self::default();
        for policy in set.policies() {
            if !is_live(policy.expires, at) {
                continue;
            }
            words.selectors.number(&policy.subject);
            for rule in [&policy.ingress, &policy.egress]
                .into_iter()
                .flatten()
                .flatten()
            {
                words.peers(set, &rule.peers);
                words.ports(set, &rule.ports);
            }
        }
        for grant in set.grants() {
            if is_live(Some(grant.expires), at) {
                words.selectors.number(&grant.subject);
                words.peers(set, &grant.peers);
                words.ports(set, &grant.ports);
            }
        }
        for filter in set.filters() {
            words.selectors.number(&filter.subject);
            words
                .nets
                .extend(filter.entries.iter().filter_map(|entry| entry.cidr));
        }
        for mode in set.modes() {
            words.selectors.number(&mode.subject);
        }
        words
    }

    fn peers(&mut self, set: &'a PolicySet, peers: &'a [Peer]) {
        for peer in peers {
            match peer {
                Peer::Selector { selector } => {
                    self.selectors.number(selector);
                }
                Peer::Cidr { cidr, except } => {
                    self.nets.insert(*cidr);
                    self.nets.extend(except);
                }
                Peer::Group { group } => {
                    if let Some(group) = set.group(group) {
                        self.nets.extend(&group.cidrs);
                    }
                }
                Peer::Entity { .. } => {}
            }
        }
    }

    fn ports(&mut self, set: &'a PolicySet, ports: &'a [PortSpec]) {
        self.port_names.extend(port_names(set, ports));
    }
}

/// Workloads by what selectors can tell of them: one group for each combination of selectors that
/// match.
pub(super) struct LabelGroups {
    /// By workload.
    pub(super) of: Vec<u32>,
    pub(super) count: usize,
    /// By selector: the groups that it matches.
    pub(super) selected: Vec<Bits>,
}

impl LabelGroups {
    pub(super) fn new(workloads: &[Workload], selectors: &[&Selector]) -> Self {
        let keys: BTreeSet<&str> = selectors
            .iter()
            .flat_map(|selector| selector.keys())
            .collect();
        let keys: Vec<&str> = keys.into_iter().collect();
        // First by the values of every label that any selector looks at.
        let mut vectors: Interner<Vec<Option<&str>>> = Interner::default();
        let vector = |workload| {
            keys.iter()
                .map(|key| Workload::label(workload, key))
                .collect()
        };
        let by_labels: Vec<u32> = workloads
            .iter()
            .map(|workload| vectors.number(vector(workload)))
            .collect();
        let index = Index::new(&keys, vectors.items());
        let matched: Vec<Bits> = selectors
            .iter()
            .map(|selector| index.matches(selector))
            .collect();
        // Then by what matches, as several labels may mean the same.
        let mut columns: Vec<Vec<u32>> = vec![Vec::new(); vectors.items().len()];
        for (bits, selector) in matched.iter().zip(0..) {
            for vector in bits.iter() {
                if let Some(column) = columns.get_mut(vector) {
                    column.push(selector);
                }
            }
        }
        let mut groups: Interner<Vec<u32>> = Interner::default();
        let by_column: Vec<u32> = columns
            .into_iter()
            .map(|column| groups.number(column))
            .collect();
        let count = groups.items().len();
        let mut selected = vec![Bits::none(count); selectors.len()];
        for (group, column) in groups.items().iter().enumerate() {
            for selector in column {
                if let Some(bits) = selected.get_mut(*selector as usize) {
                    bits.set(group);
                }
            }
        }
        let of = by_labels
            .iter()
            .filter_map(|vector| by_column.get(*vector as usize).copied())
            .collect();
        Self {
            of,
            count,
            selected,
        }
    }
}

/// For every label key and value, who has it.
struct Index<'a> {
    size: usize,
    keys: HashMap<&'a str, KeyIndex<'a>>,
}

struct KeyIndex<'a> {
    exists: Bits,
    values: HashMap<&'a str, Bits>,
}

impl<'a> Index<'a> {
    fn new(keys: &[&'a str], vectors: &[Vec<Option<&'a str>>]) -> Self {
        let size = vectors.len();
        let mut index = HashMap::new();
        for (position, key) in keys.iter().enumerate() {
            let mut entry = KeyIndex {
                exists: Bits::none(size),
                values: HashMap::new(),
            };
            for (number, vector) in vectors.iter().enumerate() {
                let Some(value) = vector.get(position).copied().flatten() else {
                    continue;
                };
                entry.exists.set(number);
                let having = entry.values.entry(value);
                having.or_insert_with(|| Bits::none(size)).set(number);
            }
            index.insert(*key, entry);
        }
        Self { size, keys: index }
    }

    /// What [`Selector::matches`] says, for all at once.
    fn matches(&self, selector: &Selector) -> Bits {
        let mut matched = Bits::all(self.size);
        for (key, value) in &selector.match_labels {
            matched = matched.and(&self.having(key, std::slice::from_ref(value)));
        }
        for expression in &selector.match_expressions {
            let (key, values) = (&expression.key, &expression.values);
            matched = match expression.operator {
                Operator::In => matched.and(&self.having(key, values)),
                Operator::NotIn => matched.minus(&self.having(key, values)),
                Operator::Exists => matched.and(&self.exists(key)),
                Operator::DoesNotExist => matched.minus(&self.exists(key)),
            };
        }
        matched
    }

    fn having(&self, key: &str, values: &[String]) -> Bits {
        let mut having = Bits::none(self.size);
        let known = self.keys.get(key);
        for bits in values
            .iter()
            .filter_map(|value| known?.values.get(value.as_str()))
        {
            having.add(bits);
        }
        having
    }

    fn exists(&self, key: &str) -> Bits {
        let known = self.keys.get(key);
        known.map_or_else(|| Bits::none(self.size), |known| known.exists.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Random};

    #[test]
    fn groups_are_matched_as_their_workloads_are() {
        for seed in 0..200 {
            let random = &mut Random::new(seed);
            let world = testing::world(random);
            let selectors: Vec<Selector> =
                (0..6).map(|_| testing::selector(random, true)).collect();
            let references: Vec<&Selector> = selectors.iter().collect();
            let groups = LabelGroups::new(world.workloads(), &references);
            for (workload, group) in world.workloads().iter().zip(&groups.of) {
                for (selector, bits) in selectors.iter().zip(&groups.selected) {
                    let matched = bits.get(*group as usize);
                    assert_eq!(
                        matched,
                        selector.matches(workload),
                        "seed {seed}: {selector}"
                    );
                }
            }
            assert!(groups.count <= world.workloads().len());
        }
    }
}
