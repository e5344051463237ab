//! Three clocks: boot time (what the kernel's expiries are in), jiffies (what packets are stamped with) and UTC.

use std::io;

use datapath::abi::Clock;

/// Nanoseconds since boot, suspend included.
#[must_use]
pub fn boot_ns() -> u64 {
    read(libc::CLOCK_BOOTTIME)
}

/// Nanoseconds since the epoch.
#[must_use]
pub fn utc_ns() -> i64 {
    i64::try_from(read(libc::CLOCK_REALTIME)).unwrap_or(i64::MAX)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a live timespec; the clocks used here exist on every supported kernel.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    u64::try_from(time.tv_sec)
        .unwrap_or(0)
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// Kernel ticks per second: the coarse clock moves once a tick.
#[must_use]
pub fn ticks_per_second() -> u32 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a live timespec and a clock that always exists.
    let result = unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    let resolution = u64::try_from(time.tv_nsec).unwrap_or(0);
    if result != 0 || resolution == 0 {
        return 250;
    }
    // Rounded: 3333333 ns is 300 Hz.
    u32::try_from((1_000_000_000 + resolution / 2) / resolution).unwrap_or(250)
}

/// The kernel's name for this boot.
///
/// # Errors
/// When procfs does not tell.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// Whether something disciplines the system clock.
#[must_use]
pub fn synchronised() -> bool {
    // SAFETY: an all-zero timex asks and changes nothing.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: a live timex with modes = 0: read only.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    state >= 0 && state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0
}

/// Turns jiffies into UTC by one common reading of the clocks.
#[derive(Clone, Copy, Debug)]
pub struct Converter {
    jiffies: u64,
    boot_ns: u64,
    utc_minus_boot: i64,
    hz: u32,
}

impl Converter {
    /// From a reading of the kernel and the offset between UTC and boot time.
    #[must_use]
    pub const fn new(clock: Clock, utc_minus_boot: i64, hz: u32) -> Self {
        Self {
            jiffies: clock.jiffies,
            boot_ns: clock.boot_ns,
            utc_minus_boot,
            hz,
        }
    }

    /// Nanoseconds since boot of a 32-bit stamp: the moment nearest to the reading.
    #[must_use]
    pub fn boot_of(&self, stamp: u32) -> u64 {
        let low = self.jiffies as u32;
        // Stamps lie within 2^31 ticks of now: a signed difference survives the wrap.
        let ticks = i64::from(stamp.wrapping_sub(low).cast_signed());
        let nanos = ticks.saturating_mul(1_000_000_000 / i64::from(self.hz.max(1)));
        self.boot_ns.saturating_add_signed(nanos)
    }

    /// UTC nanoseconds of a 32-bit stamp.
    #[must_use]
    pub fn utc_of(&self, stamp: u32) -> i64 {
        i64::try_from(self.boot_of(stamp))
            .unwrap_or(i64::MAX)
            .saturating_add(self.utc_minus_boot)
    }

    /// Ticks between a stamp and the reading; 0 for stamps after it.
    #[must_use]
    pub const fn age(&self, stamp: u32) -> u32 {
        let age = (self.jiffies as u32).wrapping_sub(stamp);
        if age > u32::MAX / 2 { 0 } else { age }
    }

    /// Ticks per second.
    #[must_use]
    pub const fn hz(&self) -> u32 {
        self.hz
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_convert_across_the_wrap_of_32_bits() {
        let clock = Clock {
            jiffies: (1 << 32) + 5,
            boot_ns: 1_000_000_000_000,
        };
        let converter = Converter::new(clock, 7, 250);
        assert_eq!(converter.boot_of(5), 1_000_000_000_000);
        assert_eq!(converter.boot_of(0u32.wrapping_sub(245)), 999_000_000_000);
        assert_eq!(converter.utc_of(255), 1_001_000_000_007);
        assert_eq!(converter.age(0u32.wrapping_sub(245)), 250);
        assert_eq!(converter.age(100), 0, "a stamp after the reading is new");
    }

    #[test]
    fn this_kernel_has_a_known_tick_rate() {
        assert!([100, 250, 300, 1000].contains(&ticks_per_second()));
    }
}
