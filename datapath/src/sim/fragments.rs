//! The table of packets that come in fragments.

extern crate std;

use core::ptr::NonNull;
use std::boxed::Box;

use crate::abi::{FragmentKey, FragmentValue};
use crate::fragment::{FragmentRef, Fragments};

use super::Sim;

impl Fragments for &Sim {
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentRef> {
        let mut fragments = self.fragments.borrow_mut();
        let value = NonNull::from(&mut **fragments.get_mut(key)?);
        // SAFETY: entries are boxed; one that is forgotten or replaced is not asked for again by the same packet.
        Some(unsafe { FragmentRef::new(value) })
    }

    fn remember(&self, key: &FragmentKey, value: &FragmentValue) -> bool {
        let mut fragments = self.fragments.borrow_mut();
        if fragments.len() >= self.fragment_capacity && !fragments.contains_key(key) {
            return false;
        }
        fragments.insert(*key, Box::new(*value));
        true
    }

    fn forget(&self, key: &FragmentKey) {
        self.fragments.borrow_mut().remove(key);
    }
}
