//! What time it is for a packet: the kernel's clocks, or a capture's.
//!
//! A replayed capture is judged at its own time. [`REPLAY`] is read-only data that user space sets before the
//! load; the kernel freezes it, and the verifier then knows its value and drops the branch that is not taken. A
//! program that judges live packets pays nothing.

use core::ptr;

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_boot_ns};
use datapath::abi::Clock;

use crate::maps;

/// Not 0: the time is what user space has written to [`maps::CLOCK`].
#[unsafe(no_mangle)]
static REPLAY: u32 = 0;

#[inline(always)]
fn is_replay() -> bool {
    // SAFETY: an initialised static; volatile, because its value is set after the compiler has seen it.
    unsafe { ptr::read_volatile(&raw const REPLAY) != 0 }
}

#[inline(always)]
fn written() -> Clock {
    match maps::CLOCK.get_ptr(0) {
        // SAFETY: a whole, aligned map value; nobody writes it while a replayed frame is judged.
        Some(clock) => unsafe { *clock },
        None => Clock::default(),
    }
}

/// Kernel ticks since boot.
#[inline(always)]
pub fn jiffies() -> u64 {
    if is_replay() {
        return written().jiffies;
    }
    // SAFETY: helper without arguments.
    unsafe { bpf_jiffies64() }
}

/// Nanoseconds since boot, suspend included.
#[inline(always)]
pub fn boot_ns() -> u64 {
    if is_replay() {
        return written().boot_ns;
    }
    // SAFETY: helper without arguments.
    unsafe { bpf_ktime_get_boot_ns() }
}
