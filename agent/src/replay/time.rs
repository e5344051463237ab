//! The capture's own clock, as the datapath and the collector want it. Pure: nothing here asks what time it is.

use datapath::abi::Clock;

use crate::kernel::clock::Converter;

/// Ticks per second while replaying, whatever this kernel's are.
pub const HZ: u32 = 1000;
const TICK_NS: u64 = 1_000_000_000 / HZ as u64;
/// The first frame comes one hour after "boot": nothing is at time 0, which means "never" in places.
const UPTIME_NS: u64 = 3_600_000_000_000;
/// How often the tables are swept, as on a live host.
const SWEEP_NS: u64 = 1_000_000_000;
/// Longest stretch without a sweep. Stamps are compared as signed 32-bit differences of ticks, and no timeout is
/// longer than a quarter of that range: two such stretches outlast every timeout.
const STRETCH_NS: u64 = (1 << 30) * TICK_NS;

/// One moment in all clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// For the kernel.
    pub clock: Clock,
    /// Ticks to UTC.
    pub converter: Converter,
    /// Nanoseconds since the epoch.
    pub utc_ns: i64,
}

/// The clock of a replay. It never goes back: a frame that is stamped earlier than the one before comes at that
/// one's time, as it would on a host whose queues were read out of order.
#[derive(Clone, Copy, Debug)]
pub struct Timeline {
    boot_ns: u64,
    swept_ns: u64,
    utc_minus_boot: i64,
}

impl Timeline {
    /// Begins at the first frame.
    #[must_use]
    pub const fn new(first_ns: i64) -> Self {
        Self {
            boot_ns: UPTIME_NS,
            swept_ns: UPTIME_NS,
            utc_minus_boot: first_ns.saturating_sub(UPTIME_NS.cast_signed()),
        }
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Moment {
        let clock = Clock {
            jiffies: self.boot_ns / TICK_NS,
            boot_ns: self.boot_ns,
        };
        Moment {
            clock,
            converter: Converter::new(clock, self.utc_minus_boot, HZ),
            utc_ns: self.utc_minus_boot.saturating_add_unsigned(self.boot_ns),
        }
    }

    /// Nanoseconds since boot now, and the lead of UTC over them.
    #[must_use]
    pub const fn base(&self) -> (u64, i64) {
        (self.boot_ns, self.utc_minus_boot)
    }

    /// Moves on to a frame's time. At every moment that is given the tables are to be swept; then it is the
    /// frame's time.
    #[must_use]
    pub fn advance(&mut self, at_ns: i64) -> Vec<Moment> {
        let until = u64::try_from(at_ns.saturating_sub(self.utc_minus_boot))
            .unwrap_or(0)
            .max(self.boot_ns);
        let mut sweeps = Vec::new();
        // After two stretches nothing is left in the tables: the rest of a long gap is one step.
        for _ in 0..2 {
            if until.saturating_sub(self.boot_ns) > STRETCH_NS {
                self.boot_ns += STRETCH_NS;
                sweeps.push(self.now());
                self.swept_ns = self.boot_ns;
            }
        }
        self.boot_ns = until;
        if self.boot_ns.saturating_sub(self.swept_ns) >= SWEEP_NS {
            self.swept_ns = self.boot_ns;
            sweeps.push(self.now());
        }
        sweeps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: i64 = 1_700_000_000_000_000_000;

    #[test]
    fn the_clock_is_the_captures_and_never_goes_back() {
        let mut line = Timeline::new(START);
        assert_eq!(line.now().utc_ns, START);
        assert!(line.advance(START + 5_000_000).is_empty());
        assert_eq!(line.now().utc_ns, START + 5_000_000);
        assert_eq!(line.now().clock.jiffies, 3_600_005);
        assert!(line.advance(START).is_empty());
        assert_eq!(line.now().utc_ns, START + 5_000_000, "not back");
        let stamp = line.now().clock.jiffies as u32;
        assert_eq!(line.now().converter.utc_of(stamp), START + 5_000_000);
    }

    #[test]
    fn tables_are_swept_once_a_second_and_often_enough_in_a_gap() {
        let mut line = Timeline::new(START);
        assert_eq!(line.advance(START + 999_999_999).len(), 0);
        assert_eq!(line.advance(START + 1_000_000_000).len(), 1);
        assert_eq!(line.advance(START + 1_500_000_000).len(), 0);
        let sweeps = line.advance(i64::MAX);
        assert_eq!(sweeps.len(), 3);
        assert!(
            sweeps
                .windows(2)
                .all(|pair| pair[0].utc_ns < pair[1].utc_ns)
        );
        assert_eq!(line.advance(i64::MIN).len(), 0);
    }
}
