//! Denials, aggregated by key.

use core::ffi::c_void;
use core::ptr::{self, NonNull};

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::bpf_map_update_elem;
use datapath::abi::{DenyKey, DenyValue, Loss};
use datapath::ids::protocol;
use datapath::pipeline::{Aggregated, Denial};
use datapath::word;

use crate::env::{lookup, lose};
use crate::maps;

/// `-EEXIST`.
const EEXIST: i64 = -17;

/// Adds to the aggregate of a key. In a frame of its own, because the stack is short.
#[inline(never)]
pub fn aggregate(key: &DenyKey, denial: &Denial, told: &mut Aggregated) {
    let Some(scratch) = maps::SCRATCH.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's own slot.
    let scratch = unsafe { &mut *scratch };
    // Linux 6.1 takes no key from memory that a global function was given, only from a map or the stack.
    scratch.deny_key = *key;
    let map: *mut c_void = (&raw const maps::DENIES).cast_mut().cast();
    // A SYN that is denied again has a negative entry: most that come here are new, and inserting looks the key up anyway.
    let likely_new = key.opening != 0 && key.protocol == protocol::TCP;
    if !likely_new {
        let found: Option<NonNull<DenyValue>> = lookup(map, &scratch.deny_key);
        if let Some(value) = found {
            again(value.as_ptr(), denial, told);
            return;
        }
    }
    scratch.deny_value = DenyValue {
        packets: denial.packets,
        bytes: denial.bytes,
        first: denial.now,
        last: denial.now,
        announced: denial.now,
        identity: denial.identity,
        generation: denial.generation,
        draft_rule: denial.draft_rule,
        draft: denial.draft,
        source_port: u32::from(denial.source_port),
    };
    // SAFETY: key and value are the map's types and live through the call.
    let result = unsafe {
        bpf_map_update_elem(
            map,
            ptr::from_ref(&scratch.deny_key).cast(),
            ptr::from_ref(&scratch.deny_value).cast(),
            u64::from(BPF_NOEXIST),
        )
    };
    match result {
        0 => told.announce = true,
        EEXIST => {
            let found: Option<NonNull<DenyValue>> = lookup(map, &scratch.deny_key);
            match found {
                Some(value) => again(value.as_ptr(), denial, told),
                // The agent has just taken it out.
                None => {
                    lose(Loss::DenyTableFull);
                    told.announce = true;
                }
            }
        }
        _ => {
            lose(Loss::DenyTableFull);
            // Without an aggregate every packet would be announced: the ring's own limit holds then.
            told.announce = true;
        }
    }
}

/// Adds to an aggregate that exists.
#[inline(always)]
fn again(value: *mut DenyValue, denial: &Denial, told: &mut Aggregated) {
    // SAFETY: a whole map value; counters are added atomically, the rest are single words.
    unsafe {
        let before = ptr::read_volatile(&raw const (*value).packets);
        word::add(&raw mut (*value).packets, denial.packets);
        word::add(&raw mut (*value).bytes, denial.bytes);
        ptr::write_volatile(&raw mut (*value).last, denial.now);
        ptr::write_volatile(&raw mut (*value).generation, denial.generation);
        told.again = true;
        told.packets = before.wrapping_add(denial.packets);
        told.announced = ptr::read_volatile(&raw const (*value).announced);
        if let Some(config) = maps::CONFIG.get(0)
            && denial.is_announced(config, before, told.announced)
        {
            ptr::write_volatile(&raw mut (*value).announced, denial.now);
            told.announce = true;
            told.announced = denial.now;
        }
    }
}
