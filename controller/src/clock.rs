//! The time of day, in the one form that is stored.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// UTC nanoseconds since 1970.
#[must_use]
pub fn now_ns() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Nanoseconds of a number of seconds.
#[must_use]
pub fn seconds_ns(seconds: u64) -> i64 {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| seconds.checked_mul(1_000_000_000))
        .unwrap_or(i64::MAX)
}

/// How long until a moment; zero when it has passed.
#[must_use]
pub fn until(moment: i64) -> Duration {
    Duration::from_nanos(u64::try_from(moment.saturating_sub(now_ns())).unwrap_or(0))
}
