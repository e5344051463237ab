//! Single machine words that several CPUs and user space read and write at once.
//!
//! On the BPF target `core::sync::atomic` has loads and stores only; the few instructions that are
//! needed beyond them are written out here, with the same meaning on the host. Instructions that give
//! a result need kernel 5.12.

/// Reads a word in one go.
///
/// # Safety
/// `word` points to an aligned, live u64.
#[inline(always)]
#[must_use]
pub unsafe fn load(word: *const u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { core::ptr::read_volatile(word) }
}

/// Writes a word in one go; what was written before it is visible to whoever sees the new value (x86 keeps stores in
/// order; the host compiler is told).
///
/// # Safety
/// `word` points to an aligned, live u64.
#[inline(always)]
pub unsafe fn publish(word: *mut u64, value: u64) {
    #[cfg(not(target_arch = "bpf"))]
    core::sync::atomic::fence(core::sync::atomic::Ordering::Release);
    // SAFETY: the caller's promise.
    unsafe { core::ptr::write_volatile(word, value) }
}

/// Adds to a word that others add to as well.
///
/// # Safety
/// `word` points to an aligned, live u64.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub unsafe fn add(word: *mut u64, value: u64) {
    // SAFETY: the caller's promise; the instruction touches that word only.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) word, in(reg) value);
    }
}

/// Adds to a word that others add to as well.
///
/// # Safety
/// `word` points to an aligned, live u64.
#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
pub unsafe fn add(word: *mut u64, value: u64) {
    use core::sync::atomic::{AtomicU64, Ordering};
    // SAFETY: the caller's promise.
    unsafe { AtomicU64::from_ptr(word) }.fetch_add(value, Ordering::AcqRel);
}

/// Puts `new` in the place of `old`; gives what was there, which is `old` when it succeeded.
///
/// # Safety
/// `word` points to an aligned, live u64.
#[cfg(target_arch = "bpf")]
#[inline(always)]
#[must_use]
pub unsafe fn exchange(word: *mut u64, old: u64, new: u64) -> u64 {
    let seen;
    // SAFETY: the caller's promise; the instruction touches that word and r0 only (a full barrier,
    // Documentation/bpf/standardization/instruction-set.rst, "Atomic operations").
    unsafe {
        core::arch::asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) word,
            new = in(reg) new,
            inout("r0") old => seen,
        );
    }
    seen
}

/// Puts `new` in the place of `old`; gives what was there, which is `old` when it succeeded.
///
/// # Safety
/// `word` points to an aligned, live u64.
#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
#[must_use]
pub unsafe fn exchange(word: *mut u64, old: u64, new: u64) -> u64 {
    use core::sync::atomic::{AtomicU64, Ordering};
    // SAFETY: the caller's promise.
    match unsafe { AtomicU64::from_ptr(word) }.compare_exchange(
        old,
        new,
        Ordering::AcqRel,
        Ordering::Acquire,
    ) {
        Ok(seen) | Err(seen) => seen,
    }
}
