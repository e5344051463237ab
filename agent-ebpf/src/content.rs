//! One slot's content, where the maps hold it.

use core::borrow::Borrow;
use core::ptr::{self, NonNull};

use datapath::abi::{
    ClassCells, ClassKey, EndpointValue, FailsafeKey, FailsafeValue, FilterValue, RuleKey,
    RuleValue, cells,
};
use datapath::ids::Direction;
use datapath::verdict::{Class, PolicyLookup};

use crate::env::{copied, found, inner, lookup};
use crate::{clock, maps};

/// One slot's content.
#[derive(Clone, Copy)]
pub struct Content {
    /// Of the arrays of maps.
    pub slot: u32,
}

/// A class where it lies in a slot's content, which nobody changes while packets look at it.
#[derive(Clone, Copy)]
pub struct Cells(NonNull<ClassCells>);

impl Cells {
    #[inline(always)]
    fn present(&self) -> u64 {
        // SAFETY: a whole map value that stays readable under RCU while the program runs.
        unsafe { (*self.0.as_ptr()).present }
    }
}

impl Class for Cells {
    #[inline(always)]
    fn filter(&self) -> u32 {
        // SAFETY: as in `present`.
        unsafe { (*self.0.as_ptr()).filter }
    }

    #[inline(always)]
    fn back_filter(&self) -> u32 {
        // SAFETY: as in `present`.
        unsafe { (*self.0.as_ptr()).back_filter }
    }
}

/// A cell where it lies.
pub struct Cell(NonNull<RuleValue>);

impl Borrow<RuleValue> for Cell {
    #[inline(always)]
    fn borrow(&self) -> &RuleValue {
        // SAFETY: a whole map value that stays readable under RCU while the program runs, and nobody changes it.
        unsafe { self.0.as_ref() }
    }
}

impl PolicyLookup for Content {
    type Class = Cells;
    type Cell = Cell;

    #[inline(always)]
    fn endpoint(&self, endpoint: u32) -> Option<EndpointValue> {
        inner!(ENDPOINTS, self.slot, &endpoint)
    }

    #[inline(always)]
    fn class(&self, key: &ClassKey) -> Option<Cells> {
        found!(CLASSES, self.slot, key).map(Cells)
    }

    #[inline(always)]
    fn rule(&self, class: &Cells, protocol: u8, port: u16) -> Option<Cell> {
        let present = class.present();
        // SAFETY: as in `present`.
        let number = unsafe { (*class.0.as_ptr()).class };
        let mut key = RuleKey::lookup(number, protocol, port);
        if present.wrapping_shr(cells::bit(protocol, key.port)) & 1 != 0
            && let Some(cell) = found!(CELLS, self.slot, &key)
        {
            return Some(Cell(cell));
        }
        if present & cells::RANGES != 0
            && let Some(cell) = found!(RULES, self.slot, &key)
        {
            return Some(Cell(cell));
        }
        if present & cells::PROTOCOLS != 0 {
            key.prefix_len = RuleKey::ANY_PORT;
            key.port = [0, 0];
            if let Some(cell) = found!(CELLS, self.slot, &key) {
                return Some(Cell(cell));
            }
        }
        if present & cells::DEFAULT != 0 {
            // SAFETY: a field of a whole map value.
            return Some(Cell(unsafe {
                NonNull::new_unchecked(&raw mut (*class.0.as_ptr()).default)
            }));
        }
        None
    }

    #[inline(always)]
    fn filter(&self, key: &RuleKey) -> Option<FilterValue> {
        inner!(FILTERS, self.slot, key)
    }

    #[inline(always)]
    fn failsafe(&self, key: &FailsafeKey) -> Option<FailsafeValue> {
        copied(lookup((&raw const maps::FAILSAFES).cast_mut().cast(), key))
    }

    #[inline(always)]
    fn with_failsafe_key(
        &self,
        look: impl FnOnce(&mut FailsafeKey) -> FailsafeValue,
    ) -> FailsafeValue {
        match maps::SCRATCH.get_ptr_mut(0) {
            // SAFETY: this CPU's own slot, and this part of it is used here only.
            Some(scratch) => look(unsafe { &mut (*scratch).failsafe_key }),
            None => FailsafeValue::default(),
        }
    }

    #[inline(always)]
    fn failsafe_absent(&self, direction: Direction) -> u64 {
        match maps::CONFIG.get(0) {
            Some(config) => {
                let [ingress, egress] = config.failsafe_absent;
                match direction {
                    Direction::Ingress => ingress,
                    Direction::Egress => egress,
                }
            }
            None => 0,
        }
    }

    #[inline(always)]
    fn boot_ns(&self) -> u64 {
        clock::boot_ns()
    }
}
