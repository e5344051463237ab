//! Sets of ports by number, with what was computed of them before.

use std::collections::HashMap;

use super::portset::PortSet;

/// Number of a set in an [`Arena`].
pub(super) type SetId = u32;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Operation {
    Union,
    Intersection,
    Difference,
}

/// Sets with numbers. Few are different, so that most operations have been done before.
pub(super) struct Arena {
    sets: Vec<PortSet>,
    ids: HashMap<PortSet, SetId>,
    done: HashMap<(Operation, SetId, SetId), SetId>,
}

/// The empty set in every [`Arena`].
pub(super) const NONE: SetId = 0;
/// The full set in every [`Arena`].
pub(super) const ALL: SetId = 1;

impl Arena {
    pub(super) fn new() -> Self {
        let mut arena = Self {
            sets: Vec::new(),
            ids: HashMap::new(),
            done: HashMap::new(),
        };
        arena.number(PortSet::NONE);
        arena.number(PortSet::ALL);
        arena
    }

    /// The number of a set.
    pub(super) fn number(&mut self, set: PortSet) -> SetId {
        if let Some(id) = self.ids.get(&set) {
            return *id;
        }
        // Four billion different sets do not fit into any memory.
        let id = SetId::try_from(self.sets.len()).unwrap_or(SetId::MAX);
        self.sets.push(set.clone());
        self.ids.insert(set, id);
        id
    }

    /// The set of a number that this arena gave.
    pub(super) fn get(&self, id: SetId) -> &PortSet {
        const EMPTY: &PortSet = &PortSet::NONE;
        self.sets.get(id as usize).unwrap_or(EMPTY)
    }

    pub(super) fn union(&mut self, a: SetId, b: SetId) -> SetId {
        match (a, b) {
            (NONE, other) | (other, NONE) => other,
            (ALL, _) | (_, ALL) => ALL,
            _ if a == b => a,
            _ => self.memo(Operation::Union, a.min(b), a.max(b), PortSet::union),
        }
    }

    pub(super) fn intersection(&mut self, a: SetId, b: SetId) -> SetId {
        match (a, b) {
            (ALL, other) | (other, ALL) => other,
            (NONE, _) | (_, NONE) => NONE,
            _ if a == b => a,
            _ => self.memo(
                Operation::Intersection,
                a.min(b),
                a.max(b),
                PortSet::intersection,
            ),
        }
    }

    pub(super) fn difference(&mut self, a: SetId, b: SetId) -> SetId {
        match (a, b) {
            (_, NONE) => a,
            (NONE, _) | (_, ALL) => NONE,
            _ if a == b => NONE,
            _ => self.memo(Operation::Difference, a, b, PortSet::difference),
        }
    }

    fn memo(
        &mut self,
        operation: Operation,
        a: SetId,
        b: SetId,
        work: fn(&PortSet, &PortSet) -> PortSet,
    ) -> SetId {
        if let Some(id) = self.done.get(&(operation, a, b)) {
            return *id;
        }
        let id = self.number(work(self.get(a), self.get(b)));
        self.done.insert((operation, a, b), id);
        id
    }
}
