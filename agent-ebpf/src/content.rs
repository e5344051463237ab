//! One slot's content, where the maps hold it.

use core::borrow::Borrow;
use core::ptr::{self, NonNull};

use datapath::abi::{
    Addr4Line, Addr6Line, CellLine, ClassCells, ClassKey, ClassLine, EndpointValue, FailsafeKey,
    FailsafeValue, FilterValue, Geometry, RuleKey, RuleValue, cells,
};
use datapath::ids::Direction;
use datapath::lines;
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

/// How long an array of a slot is; 0 when it was never filled. A plain number: of a whole [`Geometry`] the compiler would keep
/// fields on the stack that were never written, which the verifier refuses.
#[inline(always)]
fn length(slot: u32, of: impl FnOnce(*const Geometry) -> *const u32) -> u32 {
    // On the stack: a constant would lie in read-only data, where the linker makes it one with REPLAY, which user space sets.
    let first = 0u32;
    let geometry: Option<NonNull<Geometry>> = found!(GEOMETRY, slot, &first);
    match geometry {
        // SAFETY: a field of a whole map value.
        Some(geometry) => unsafe { ptr::read_volatile(of(geometry.as_ptr())) },
        None => 0,
    }
}

/// A field of the geometry.
macro_rules! length {
    ($slot:expr, $field:ident) => {
        // SAFETY: only an address inside the value.
        length($slot, |geometry| unsafe { &raw const (*geometry).$field })
    };
}

/// The class in a line, if it is this one.
#[inline(always)]
fn class_at(slot: u32, index: u32, identity: u32, scope: u32) -> Option<Cells> {
    let line: NonNull<ClassLine> = found!(CLASSES, slot, &index)?;
    let line = line.as_ptr();
    // SAFETY: a whole map value that stays readable under RCU while the program runs, and nobody changes it.
    unsafe {
        if (*line).identity != identity || (*line).scope != scope || (*line).cells.class == 0 {
            return None;
        }
        Some(Cells(NonNull::new_unchecked(&raw mut (*line).cells)))
    }
}

/// The cell with exactly this key.
#[inline(always)]
fn cell(slot: u32, key: &RuleKey) -> Option<Cell> {
    let port = lines::port_of_cell(key.prefix_len, key.protocol, key.port);
    let [one, two] = lines::spots(lines::cell(key.class, port), length!(slot, cells));
    match cell_at(slot, one, key.class, port) {
        Some(cell) => Some(cell),
        None => cell_at(slot, two, key.class, port),
    }
}

/// The cell in a line, if it is this one.
#[inline(always)]
fn cell_at(slot: u32, index: u32, class: u32, port: u32) -> Option<Cell> {
    let line: NonNull<CellLine> = found!(CELLS, slot, &index)?;
    let line = line.as_ptr();
    // SAFETY: as in `class_at`.
    unsafe {
        if (*line).class != class || (*line).port != port {
            return None;
        }
        Some(Cell(NonNull::new_unchecked(&raw mut (*line).value)))
    }
}

/// What an IPv4 address is bound to, as a word of [`lines::binding`]. Global: the verifier looks at it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn bound4(slot: u32, addr: u32) -> u64 {
    let [one, two] = lines::spots(lines::addr4(addr), length!(slot, addr4));
    match bound4_at(slot, one, addr) {
        0 => bound4_at(slot, two, addr),
        found => found,
    }
}

#[inline(always)]
fn bound4_at(slot: u32, index: u32, addr: u32) -> u64 {
    let line: Option<NonNull<Addr4Line>> = found!(ADDR4, slot, &index);
    match line {
        // SAFETY: as in `class_at`.
        Some(line) => lines::in_line4(unsafe { line.as_ref() }, addr),
        None => 0,
    }
}

/// The same for the IPv6 address in this CPU's scratch memory.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn bound6(slot: u32) -> u64 {
    let Some(scratch) = maps::SCRATCH.get_ptr(0) else {
        return 0;
    };
    // SAFETY: this CPU's own slot; the address lies at a multiple of 4.
    let addr = unsafe {
        let start: *const u32 = (&raw const (*scratch).cidr6.addr).cast();
        let half = |index: usize| u64::from(ptr::read_volatile(start.add(index)));
        [half(0) | half(1) << 32, half(2) | half(3) << 32]
    };
    let [one, two] = lines::spots(lines::addr6(addr), length!(slot, addr6));
    match bound6_at(slot, one, addr) {
        0 => bound6_at(slot, two, addr),
        found => found,
    }
}

#[inline(always)]
fn bound6_at(slot: u32, index: u32, addr: [u64; 2]) -> u64 {
    let line: Option<NonNull<Addr6Line>> = found!(ADDR6, slot, &index);
    match line {
        // SAFETY: as in `class_at`.
        Some(line) => lines::in_line6(unsafe { line.as_ref() }, addr),
        None => 0,
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
        let scope = key.endpoint << 1 | key.direction;
        let hash = lines::class(key.identity, scope);
        let [one, two] = lines::spots(hash, length!(self.slot, classes));
        match class_at(self.slot, one, key.identity, scope) {
            Some(class) => Some(class),
            None => class_at(self.slot, two, key.identity, scope),
        }
    }

    #[inline(always)]
    fn rule(&self, class: &Cells, protocol: u8, port: u16) -> Option<Cell> {
        let present = class.present();
        // SAFETY: as in `present`.
        let number = unsafe { (*class.0.as_ptr()).class };
        let mut key = RuleKey::lookup(number, protocol, port);
        if present.wrapping_shr(cells::bit(protocol, key.port)) & 1 != 0
            && let Some(cell) = cell(self.slot, &key)
        {
            return Some(cell);
        }
        if present & cells::RANGES != 0
            && let Some(cell) = found!(RULES, self.slot, &key)
        {
            return Some(Cell(cell));
        }
        if present & cells::PROTOCOLS != 0 {
            key.prefix_len = RuleKey::ANY_PORT;
            key.port = [0, 0];
            if let Some(cell) = cell(self.slot, &key) {
                return Some(cell);
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
