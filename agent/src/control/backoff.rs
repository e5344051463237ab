//! Waiting longer after each failure, never in step with other agents.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(30);

/// Exponential backoff with full jitter.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// It worked: the next failure waits the shortest time.
    pub(super) const fn reset(&mut self) {
        self.failures = 0;
    }

    /// How long to wait after one more failure; `random` is uniform over u64.
    pub(super) fn next(&mut self, random: u64) -> Duration {
        let ceiling = FIRST
            .saturating_mul(1 << self.failures.min(10))
            .min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let nanos = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX).max(1);
        // Never nothing at all: a controller that refuses at once must not be hammered.
        Duration::from_nanos(nanos / 4 + random % (nanos - nanos / 4))
    }
}

/// A random number for jitter.
pub(super) fn random() -> u64 {
    use ring::rand::SecureRandom;
    let mut bytes = [0u8; 8];
    match ring::rand::SystemRandom::new().fill(&mut bytes) {
        Ok(()) => u64::from_ne_bytes(bytes),
        // Only jitter depends on it.
        Err(_) => crate::kernel::clock::boot_ns(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_begin_anew() {
        let mut backoff = Backoff::default();
        let longest: Vec<_> = (0..12).map(|_| backoff.next(u64::MAX)).collect();
        assert!(longest.iter().all(|wait| *wait <= LONGEST));
        assert!(backoff.next(0) >= LONGEST / 4);
        backoff.reset();
        assert!(backoff.next(u64::MAX) <= FIRST);
    }
}
