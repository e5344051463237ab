//! Numbers as people read them.

use std::collections::BTreeMap;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

/// `1536` → `1.5 KiB`.
#[expect(
    clippy::cast_precision_loss,
    reason = "one decimal is shown; JSON has the exact number"
)]
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    format!("{value:.1} {unit}")
}

/// `1 file`, `2 files`.
pub(crate) fn counted(count: usize, thing: &str) -> String {
    match count {
        1 => format!("1 {thing}"),
        _ => format!("{count} {thing}s"),
    }
}

/// Milliseconds with as many digits as are worth reading.
pub(crate) fn milliseconds(value: f64) -> String {
    format!("{value:.1} ms")
}

/// Milliseconds as seconds, for waits.
#[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
pub(crate) fn waited(milliseconds: u64) -> String {
    format!("{:.1} s", milliseconds as f64 / 1000.0)
}

/// `3725` → `1h 2m 5s`.
pub(crate) fn seconds(count: u64) -> String {
    humantime::format_duration(std::time::Duration::from_secs(count)).to_string()
}

/// RFC 3339 in UTC, to the millisecond, for tables. Takes the RFC 3339 text that the document holds.
pub(crate) fn moment(exact: &str) -> String {
    let format =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    OffsetDateTime::parse(exact, &Rfc3339)
        .ok()
        .and_then(|at| at.to_offset(time::UtcOffset::UTC).format(&format).ok())
        .unwrap_or_else(|| exact.to_owned())
}

/// [`moment`] of what may be missing.
pub(crate) fn moment_or_empty(exact: Option<&String>) -> String {
    exact.map(|exact| moment(exact)).unwrap_or_default()
}

/// The name of an IP protocol, or its number.
pub(crate) fn protocol(number: u32) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmpv6".into(),
        132 => "sctp".into(),
        other => other.to_string(),
    }
}

/// `5432/tcp`, `8:0/icmp` (type:code), or `gre`-like protocols by number alone.
pub(crate) fn port(number: u32, port: u32) -> String {
    let name = protocol(number);
    match number {
        1 | 58 => format!("{}:{}/{name}", port >> 8, port & 0xff),
        6 | 17 | 132 => format!("{port}/{name}"),
        _ => name,
    }
}

/// `app=shop,tier=db`.
pub(crate) fn labels(labels: &BTreeMap<String, String>) -> String {
    labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_readable_at_every_size() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn ports_name_their_protocol() {
        assert_eq!(port(6, 5432), "5432/tcp");
        assert_eq!(port(1, 0x0800), "8:0/icmp");
        assert_eq!(port(47, 0), "47");
    }

    #[test]
    fn moments_are_cut_to_the_millisecond() {
        assert_eq!(
            moment("2026-11-23T10:00:00.123456789Z"),
            "2026-11-23T10:00:00.123Z"
        );
        assert_eq!(moment(""), "");
    }
}
