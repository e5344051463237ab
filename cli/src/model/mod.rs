//! The documents that `-o json` prints. Their field names are stable; what they mean is in
//! `docs/cli.md`. Times are RFC 3339, bytes exact, a missing value is `null`.

mod activity;
mod change;
mod findings;
mod fleet;
mod objects;
mod past;
mod plan;
mod plan_markdown;
mod recommended;
mod response;

pub(crate) use activity::{Edge, EdgeList, Flow, FlowList, Missed};
pub(crate) use change::{Apply, Explanation, Problems};
pub(crate) use findings::{Finding, FindingList};
pub(crate) use fleet::{FleetStatus, Token, WorkloadList};
pub(crate) use objects::{History, ObjectList};
pub(crate) use past::Past;
pub(crate) use plan::{PlanInput, PlanReport};
pub(crate) use recommended::Recommended;
pub(crate) use response::{Confirmed, Isolation, Revoked};

use std::io;
use std::net::IpAddr;

use proto::v1;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::output::Screen;

/// RFC 3339, UTC; `None` when the timestamp is missing or out of range.
pub(crate) fn moment(at: Option<prost_types::Timestamp>) -> Option<String> {
    let at = at?;
    OffsetDateTime::from_unix_timestamp(at.seconds)
        .ok()?
        .checked_add(time::Duration::nanoseconds(at.nanos.into()))?
        .format(&Rfc3339)
        .ok()
}

/// `10.0.0.5`; `None` when it is no address.
pub(crate) fn address(address: &v1::Address) -> Option<String> {
    IpAddr::try_from(address)
        .ok()
        .map(|address| address.to_string())
}

/// The word of a mode.
pub(crate) const fn mode(mode: v1::Mode) -> &'static str {
    match mode {
        v1::Mode::Unspecified => "unknown",
        v1::Mode::Observe => "observe",
        v1::Mode::Selective => "selective",
        v1::Mode::Enforce => "enforce",
        v1::Mode::Isolate => "isolate",
    }
}

/// `allow` or `deny`.
pub(crate) const fn verdict(allow: bool) -> &'static str {
    if allow { "allow" } else { "deny" }
}

/// Empty text stands for "none" on the wire.
pub(crate) fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn more(truncated: bool, screen: &mut Screen) -> io::Result<()> {
    if truncated {
        screen.remark("there are more; see them with a higher --limit")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_a_wrong_length_are_none() {
        let of = |value: &[u8]| {
            address(&v1::Address {
                value: value.to_vec(),
            })
        };
        assert_eq!(of(&[10, 0, 0, 5]).as_deref(), Some("10.0.0.5"));
        assert_eq!(of(&[1, 2]), None);
    }

    #[test]
    fn moments_out_of_range_are_none() {
        let at = |seconds, nanos| moment(Some(prost_types::Timestamp { seconds, nanos }));
        assert_eq!(
            at(0, 5_000_000).as_deref(),
            Some("1970-01-01T00:00:00.005Z")
        );
        assert_eq!(at(i64::MAX, 0), None);
        assert_eq!(moment(None), None);
    }
}
