//! Workloads by the values of the chosen label keys, and the selectors between "one group" and "all".

use std::collections::{BTreeMap, HashMap};

use crate::selectors::{Expression, Labelled as _, Labels, Operator, Selector};
use crate::world::World;

/// Most keys that are chosen: every group has 2^keys generalisations.
pub(crate) const MAX_KEYS: usize = 5;

/// What a pattern says of one key: [`ANY`], [`MISSING`] or the index of a value.
pub(crate) type Slot = u32;

/// Every value, and none.
pub(crate) const ANY: Slot = u32::MAX;

/// The key is not there.
pub(crate) const MISSING: Slot = u32::MAX - 1;

/// One slot a key, in the order of the keys.
pub(crate) type Pattern = Vec<Slot>;

/// Groups of workloads with equal values.
#[derive(Debug)]
pub(crate) struct Groups {
    pub(crate) keys: Vec<String>,
    values: Vec<Vec<String>>,
    /// By workload.
    pub(crate) of: Vec<u32>,
    /// By group; no slot is [`ANY`].
    pub(crate) patterns: Vec<Pattern>,
    /// Workloads by group.
    pub(crate) members: Vec<Vec<u32>>,
    /// Groups of every pattern that generalises one.
    wider: HashMap<Pattern, Vec<u32>>,
}

impl Groups {
    /// Sorts the workloads by some keys, and knows every wider pattern.
    pub(crate) fn new(world: &World, keys: &[String]) -> Self {
        let mut groups = Self::new_plain(world, keys);
        for (group, pattern) in (0u32..).zip(&groups.patterns) {
            for general in generalisations(pattern) {
                groups.wider.entry(general).or_default().push(group);
            }
        }
        groups
    }

    /// Sorts the workloads by any number of keys.
    pub(crate) fn new_plain(world: &World, keys: &[String]) -> Self {
        let mut values: Vec<Vec<String>> = Vec::new();
        for key in keys {
            let mut of_key: Vec<String> = world
                .workloads()
                .iter()
                .filter_map(|workload| workload.label(key).map(str::to_owned))
                .collect();
            of_key.sort();
            of_key.dedup();
            values.push(of_key);
        }
        let pattern = |index: usize| -> Pattern {
            let workload = world.workloads().get(index);
            keys.iter()
                .zip(&values)
                .map(|(key, values)| {
                    let value = workload.and_then(|workload| workload.label(key));
                    value
                        .and_then(|value| values.binary_search_by(|v| v.as_str().cmp(value)).ok())
                        .and_then(|index| u32::try_from(index).ok())
                        .unwrap_or(MISSING)
                })
                .collect()
        };
        let mut sorted: BTreeMap<Pattern, Vec<u32>> = BTreeMap::new();
        for index in 0..world.workloads().len() {
            let member = u32::try_from(index).unwrap_or(u32::MAX);
            sorted.entry(pattern(index)).or_default().push(member);
        }
        let mut of = vec![0; world.workloads().len()];
        for (group, members) in (0u32..).zip(sorted.values()) {
            for member in members {
                if let Some(slot) = of.get_mut(*member as usize) {
                    *slot = group;
                }
            }
        }
        let (patterns, members) = sorted.into_iter().unzip();
        Self {
            keys: keys.to_vec(),
            values,
            of,
            patterns,
            members,
            wider: HashMap::new(),
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.patterns.len()
    }

    /// How many workloads a group has.
    pub(crate) fn size(&self, group: u32) -> u128 {
        self.members.get(group as usize).map_or(0, Vec::len) as u128
    }

    /// The pattern of one group.
    pub(crate) fn pattern(&self, group: u32) -> Pattern {
        self.patterns
            .get(group as usize)
            .cloned()
            .unwrap_or_default()
    }

    /// Groups that a pattern means, in order.
    pub(crate) fn matching(&self, pattern: &Pattern) -> &[u32] {
        self.wider.get(pattern).map_or(&[], Vec::as_slice)
    }

    /// Workloads that a pattern means.
    pub(crate) fn pattern_size(&self, pattern: &Pattern) -> u128 {
        self.matching(pattern)
            .iter()
            .map(|group| self.size(*group))
            .sum()
    }

    /// What it costs to write a pattern down.
    pub(crate) fn pattern_bits(&self, pattern: &Pattern) -> i64 {
        let slots = pattern.iter().zip(&self.values);
        let written: i64 = slots
            .filter(|(slot, _)| **slot != ANY)
            .map(|(_, values)| super::bits::choice(values.len() + 1))
            .sum();
        2000 + written
    }

    /// The value of a key in a pattern.
    pub(crate) fn value(&self, key: usize, slot: Slot) -> Option<&str> {
        Some(self.values.get(key)?.get(slot as usize)?.as_str())
    }

    /// A selector for some patterns that differ in one key at most; see [`Groups::joined`].
    pub(crate) fn selector(&self, joined: &Joined) -> Selector {
        let mut labels = Labels::new();
        let mut expressions = Vec::new();
        for (index, (key, slots)) in self.keys.iter().zip(joined).enumerate() {
            let values: Vec<String> = slots
                .iter()
                .filter_map(|slot| self.value(index, *slot).map(str::to_owned))
                .collect();
            match (slots.as_slice(), values.as_slice()) {
                ([ANY], _) => {}
                ([MISSING], _) => expressions.push(expression(key, Operator::DoesNotExist, vec![])),
                (_, [value]) => {
                    labels.insert(key.clone(), value.clone());
                }
                _ => expressions.push(expression(key, Operator::In, values)),
            }
        }
        Selector {
            match_labels: labels,
            match_expressions: expressions,
        }
    }

    /// Joins patterns that differ in one key only into lists of values. Nothing is gained or lost.
    pub(crate) fn joined(&self, patterns: &[Pattern]) -> Vec<Joined> {
        let mut list: Vec<Joined> = patterns
            .iter()
            .map(|pattern| pattern.iter().map(|slot| vec![*slot]).collect())
            .collect();
        list.sort();
        list.dedup();
        for key in 0..self.keys.len() {
            let mut merged: BTreeMap<Joined, Vec<Slot>> = BTreeMap::new();
            let mut rest = Vec::new();
            for mut item in list {
                let slots = item.get_mut(key).map(std::mem::take).unwrap_or_default();
                // "Any" and "missing" have no place in a list of values.
                if slots.iter().any(|slot| *slot >= MISSING) {
                    if let Some(slot) = item.get_mut(key) {
                        *slot = slots;
                    }
                    rest.push(item);
                } else {
                    merged.entry(item).or_default().extend(slots);
                }
            }
            list = merged
                .into_iter()
                .map(|(mut item, mut slots)| {
                    slots.sort_unstable();
                    slots.dedup();
                    if let Some(slot) = item.get_mut(key) {
                        *slot = slots;
                    }
                    item
                })
                .chain(rest)
                .collect();
            list.sort();
        }
        list
    }

    /// `role=db,env=prod`: for people.
    pub(crate) fn name(&self, group: u32) -> String {
        let joined: Joined = self.pattern(group).iter().map(|slot| vec![*slot]).collect();
        self.selector(&joined).to_string()
    }
}

/// Patterns joined: per key a list of values, or one of [`ANY`] and [`MISSING`].
pub(crate) type Joined = Vec<Vec<Slot>>;

fn expression(key: &str, operator: Operator, values: Vec<String>) -> Expression {
    Expression {
        key: key.to_owned(),
        operator,
        values,
    }
}

/// The pattern with every set of its keys left out, itself first.
pub(crate) fn generalisations(pattern: &Pattern) -> impl Iterator<Item = Pattern> + '_ {
    let keys = pattern.len().min(8);
    (0u32..1 << keys).map(move |mask| {
        pattern
            .iter()
            .enumerate()
            .map(|(key, slot)| if mask & (1 << key) != 0 { ANY } else { *slot })
            .collect()
    })
}
