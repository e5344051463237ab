//! Memory that the process no longer uses goes back to the kernel: compiling a policy and a burst of flows take many times
//! what stays, and glibc keeps what was freed.

/// Gives back what is free (malloc_trim(3)). With another C library there is nothing to do.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer, and may be called at any time from any thread.
    let _ = unsafe { libc::malloc_trim(0) };
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn what_was_freed_is_no_longer_resident() {
        // Resident pages (proc_pid_statm(5)).
        let resident = || -> usize {
            let text = std::fs::read_to_string("/proc/self/statm").unwrap();
            text.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        // Small blocks, and one behind them that stays: glibc gives back only the end of its heap by itself.
        let blocks: Vec<Box<[u8; 512]>> = (0..200_000).map(|_| Box::new([1; 512])).collect();
        let last = Box::new([1u8; 512]);
        drop(blocks);
        let before = resident();
        give_back();
        let after = resident();
        assert!(last.iter().all(|byte| *byte == 1));
        assert!(after + 10_000 < before, "{before} pages, then {after}");
    }
}
