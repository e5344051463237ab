//! Rule numbers are stable only within a snapshot: the generation tells which.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use policy::snapshot::Snapshot;

use crate::reconcile::failsafes::{Failsafe, name_of};

/// Names of the rules of the last few generations.
#[derive(Clone, Debug, Default)]
pub struct Names {
    generations: BTreeMap<u32, (u64, Arc<HashMap<u32, String>>)>,
    failsafes: Vec<Failsafe>,
}

impl Names {
    /// From the snapshots by generation, and the failsafes.
    #[must_use]
    pub fn new(generations: &BTreeMap<u32, Arc<Snapshot>>, failsafes: &[Failsafe]) -> Self {
        Self {
            generations: generations
                .iter()
                .map(|(generation, snapshot)| {
                    let rules = snapshot
                        .rule_names
                        .iter()
                        .map(|rule| (rule.id, rule.name.clone()))
                        .collect();
                    (*generation, (snapshot.revision, Arc::new(rules)))
                })
                .collect(),
            failsafes: failsafes.to_vec(),
        }
    }

    /// The newest generation that is known.
    #[must_use]
    pub fn newest(&self) -> Option<u32> {
        self.generations
            .last_key_value()
            .map(|(generation, _)| *generation)
    }

    /// Name of a rule, its number where no name is known, empty for none.
    #[must_use]
    pub fn rule(&self, generation: u32, rule: u32) -> String {
        if rule == 0 {
            return String::new();
        }
        if let Some(name) = name_of(&self.failsafes, rule) {
            return name;
        }
        self.of(generation)
            .and_then(|(_, rules)| rules.get(&rule).cloned())
            .unwrap_or_else(|| format!("#{rule}"))
    }

    /// Revision behind a generation; 0 when unknown.
    #[must_use]
    pub fn revision(&self, generation: u32) -> u64 {
        self.of(generation).map_or(0, |(revision, _)| *revision)
    }

    fn of(&self, generation: u32) -> Option<&(u64, Arc<HashMap<u32, String>>)> {
        self.generations.get(&generation)
    }
}
