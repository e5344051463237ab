//! Numbers for rule names within one snapshot.

use std::collections::HashMap;

use crate::snapshot::RuleName;

/// Gives numbers to rule names, from 1.
#[derive(Default)]
pub(super) struct Names {
    numbers: HashMap<String, u32>,
}

impl Names {
    /// The number of a name. Numbers run out only after the tables did, which are checked.
    pub(super) fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = u32::try_from(self.numbers.len() + 1).unwrap_or(u32::MAX);
        self.numbers.insert(name.to_owned(), number);
        number
    }

    /// The names whose numbers are used.
    pub(super) fn list(self, used: &std::collections::HashSet<u32>) -> Vec<RuleName> {
        self.numbers
            .into_iter()
            .filter(|(_, id)| used.contains(id))
            .map(|(name, id)| RuleName { id, name })
            .collect()
    }
}
