//! The flow tables' memory on an ordinary heap: the same sets, locks and spill map as in the kernel's maps.

extern crate std;

use core::cell::{RefCell, UnsafeCell};
use core::hash::Hash;
use std::boxed::Box;
use std::collections::HashMap;
use std::vec::Vec;

use crate::abi::{Flow4, Flow6, Key4, Key6, Negative, Set4, Set6};
use crate::flow::{Meta, slot};
use crate::negative;
use crate::table::{self, WAYS};

/// Words that the pipeline reaches by pointer.
#[derive(Default)]
pub(super) struct Words(UnsafeCell<Vec<u64>>);

impl Words {
    pub(super) fn new(count: usize) -> Self {
        Self(UnsafeCell::new(std::vec![0; count]))
    }

    pub(super) fn at(&self, index: u32) -> Option<*mut u64> {
        // SAFETY: the vector itself is never changed while pointers into it are used; a simulated host is one thread.
        let words = unsafe { &mut *self.0.get() };
        words.get_mut(index as usize).map(core::ptr::from_mut)
    }
}

/// Negative entries.
#[derive(Default)]
pub(super) struct Negatives(UnsafeCell<Vec<Negative>>);

impl Negatives {
    pub(super) fn new() -> Self {
        Self(UnsafeCell::new(
            std::vec![Negative::default(); negative::SLOTS as usize],
        ))
    }

    pub(super) fn at(&self, slot: u32) -> Option<*mut Negative> {
        // SAFETY: as for `Words`.
        let entries = unsafe { &mut *self.0.get() };
        entries.get_mut(slot as usize).map(core::ptr::from_mut)
    }
}

/// An entry, for what a family's tables have in common.
pub(super) trait Entry: Copy + Default {
    type Key: Copy;
    fn meta(&self) -> Meta;
    fn key(&self) -> Self::Key;
}

impl Entry for Flow4 {
    type Key = Key4;

    fn meta(&self) -> Meta {
        Meta(self.lines[0].meta)
    }

    fn key(&self) -> Key4 {
        self.lines[0].key
    }
}

impl Entry for Flow6 {
    type Key = Key6;

    fn meta(&self) -> Meta {
        Meta(self.lines[0].meta)
    }

    fn key(&self) -> Key6 {
        self.lines[0].key
    }
}

/// A set as its ways.
pub(super) trait Ways: Copy + Default {
    type Entry: Entry;
    fn ways(&mut self) -> &mut [Self::Entry; WAYS as usize];
}

impl Ways for Set4 {
    type Entry = Flow4;

    fn ways(&mut self) -> &mut [Flow4; WAYS as usize] {
        &mut self.ways
    }
}

impl Ways for Set6 {
    type Entry = Flow6;

    fn ways(&mut self) -> &mut [Flow6; WAYS as usize] {
        &mut self.ways
    }
}

/// One family's table.
pub(super) struct FlowTable<S, K, E> {
    sets: UnsafeCell<Vec<S>>,
    pub(super) locks: Words,
    spill: RefCell<HashMap<K, Box<E>>>,
    spill_room: usize,
}

impl<S, K, E> Default for FlowTable<S, K, E> {
    fn default() -> Self {
        Self {
            sets: UnsafeCell::default(),
            locks: Words::default(),
            spill: RefCell::default(),
            spill_room: 0,
        }
    }
}

impl<K: Eq + Hash + Copy, E: Entry<Key = K>, S: Ways<Entry = E>> FlowTable<S, K, E> {
    /// Empty, with room for so many flows.
    pub(super) fn new(flows: u32) -> Self {
        let sets = table::sets(flows) as usize;
        Self {
            sets: UnsafeCell::new(std::vec![S::default(); sets]),
            locks: Words::new(sets),
            spill: RefCell::default(),
            spill_room: table::spill_room(flows) as usize,
        }
    }

    pub(super) fn set(&self, index: u32) -> Option<*mut u8> {
        // SAFETY: as for `Words`.
        let sets: &mut Vec<S> = unsafe { &mut *self.sets.get() };
        let set = sets.get_mut(index as usize)?;
        Some(core::ptr::from_mut(set).cast())
    }

    pub(super) fn spilled(&self, key: &K) -> Option<*mut E> {
        let mut spill = self.spill.borrow_mut();
        spill.get_mut(key).map(|flow| &raw mut **flow)
    }

    pub(super) fn spill(&self, key: &K, fill: impl FnOnce(*mut E)) -> bool {
        let mut flow = Box::new(E::default());
        fill(&raw mut *flow);
        let mut spill = self.spill.borrow_mut();
        if spill.len() >= self.spill_room || spill.contains_key(key) {
            return false;
        }
        spill.insert(*key, flow);
        true
    }

    pub(super) fn unspill(&self, key: &K) -> bool {
        self.spill.borrow_mut().remove(key).is_some()
    }

    /// Calls `each` with every entry in use, spilled ones included.
    pub(super) fn rewrite(&self, mut each: impl FnMut(&mut E)) {
        // SAFETY: no packet is on its way, so nobody else holds a pointer into the sets.
        let sets = unsafe { &mut *self.sets.get() };
        for entry in sets.iter_mut().flat_map(|set| set.ways()) {
            if matches!(entry.meta().slot(), slot::LIVE | slot::CLOSING) {
                each(entry);
            }
        }
        for entry in self.spill.borrow_mut().values_mut() {
            each(entry);
        }
    }

    /// Entries that are closed and not yet taken out.
    pub(super) fn closed(&self) -> Vec<E> {
        // SAFETY: as in `rewrite`.
        let sets: &mut Vec<S> = unsafe { &mut *self.sets.get() };
        sets.iter_mut()
            .flat_map(|set| set.ways().iter().copied())
            .filter(|entry| entry.meta().slot() == slot::CLOSED)
            .collect()
    }

    /// Every entry in use.
    pub(super) fn entries(&self) -> Vec<(K, E)> {
        let mut found = Vec::new();
        self.rewrite(|entry| found.push((entry.key(), *entry)));
        found
    }
}
