//! Verdicts from a snapshot, by the datapath's own code: what the kernel would say.

use std::net::IpAddr;

use datapath::abi::{
    AddrValue, ClassKey, ClassValue, EndpointValue, FailsafeKey, FailsafeValue, FilterValue,
    RuleKey, RuleValue, addr_flags, filter_action, rule_flags, verdict,
};
use datapath::drop_reason::DropReason;
use datapath::ids::{ClassId, Direction, EndpointId, Identity};
use datapath::verdict::{PolicyLookup, Query, decide};
use time::OffsetDateTime;

use crate::evaluate::{EndVerdict, Verdict};
use crate::snapshot::{Endpoint, FlowDirection, Snapshot, SnapshotIndex};
use crate::walk::{Decision, names};

/// Judges one end of a new flow; failsafes, which are no policy, are left out.
#[must_use]
pub fn judge_snapshot(
    index: &SnapshotIndex<'_>,
    endpoint: EndpointId,
    direction: FlowDirection,
    peer: IpAddr,
    protocol: u8,
    port: u16,
    at: OffsetDateTime,
) -> EndVerdict {
    let snapshot = index.snapshot();
    let peer = peer.to_canonical();
    if let Some(own) = snapshot.endpoints.iter().find(|own| own.id == endpoint.0)
        && own.addresses.contains(&peer)
    {
        let loopback = Decision::allow(names::LOOPBACK);
        return EndVerdict::new(loopback.clone(), loopback, true);
    }
    let tables = Tables {
        index,
        snapshot,
        boot_ns: u64::try_from(at.unix_timestamp_nanos()).unwrap_or_default(),
    };
    let query = Query {
        endpoint: endpoint.0,
        direction: direction.into(),
        peer: snapshot
            .binding(peer)
            .map_or_else(AddrValue::default, |binding| AddrValue {
                identity: binding.identity,
                flags: if binding.isolated {
                    addr_flags::ISOLATED
                } else {
                    0
                },
            }),
        peer_addr: match peer {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        },
        protocol,
        src_port: 0,
        port,
    };
    verdict_of(snapshot, &decide(&tables, &query, false))
}

fn verdict_of(snapshot: &Snapshot, decision: &datapath::verdict::Decision) -> EndVerdict {
    let name = |rule: u32| {
        snapshot.rule_name(datapath::ids::RuleId(rule)).map_or_else(
            || unnamed(decision.evaluated_reason).to_owned(),
            str::to_owned,
        )
    };
    EndVerdict {
        enforced: Verdict::from_allow(decision.allow),
        draft: Verdict::from_allow(decision.draft),
        rule: name(decision.rule),
        reason: decision.reason,
        evaluated: Verdict::from_allow(decision.evaluated),
        draft_rule: name(decision.draft_rule),
        draft_reason: DropReason::None,
        keep: decision.keep,
        audit: decision.audit,
        hard: decision.hard,
    }
}

/// What stands for a rule where the kernel gives none.
const fn unnamed(reason: DropReason) -> &'static str {
    match reason {
        DropReason::Isolated | DropReason::PeerIsolated => names::ISOLATION,
        reason => reason.name(),
    }
}

/// A snapshot as the kernel's maps.
struct Tables<'a> {
    index: &'a SnapshotIndex<'a>,
    snapshot: &'a Snapshot,
    boot_ns: u64,
}

impl PolicyLookup for Tables<'_> {
    type Class = ClassValue;
    type Cell = RuleValue;

    fn endpoint(&self, endpoint: u32) -> Option<EndpointValue> {
        let own = |own: &&Endpoint| own.id == endpoint;
        self.snapshot
            .endpoints
            .iter()
            .find(own)
            .map(|own| EndpointValue {
                mode: own.mode.number(),
                reserved: 0,
            })
    }

    fn class(&self, key: &ClassKey) -> Option<ClassValue> {
        let direction = Direction::from_u8(u8::try_from(key.direction).unwrap_or(u8::MAX));
        self.index
            .class(EndpointId(key.endpoint), direction, Identity(key.identity))
            .map(|(class, filter)| ClassValue {
                class: class.0,
                filter,
            })
    }

    fn rule(&self, class: &ClassValue, protocol: u8, port: u16) -> Option<RuleValue> {
        let cell = self.index.rule(ClassId(class.class), protocol, port)?;
        let number = |allow: bool| if allow { verdict::ALLOW } else { verdict::DENY };
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let after = cell.after.unwrap_or(cell.enforced);
        Some(RuleValue {
            expiry: cell
                .expires
                .map_or(0, |expires| u64::try_from(expires).unwrap_or(1).max(1)),
            rule: cell.enforced.rule,
            draft_rule: cell.draft.rule,
            after_rule: after.rule,
            enforced: number(cell.enforced.allow),
            draft: number(cell.draft.allow),
            after: number(after.allow),
            flags: flag(cell.mode_enforced, rule_flags::ENFORCED)
                | flag(cell.keep, rule_flags::KEEP)
                | flag(cell.audit, rule_flags::AUDIT)
                | flag(cell.hard, rule_flags::HARD),
            reason: cell.enforced.reason,
            draft_reason: cell.draft.reason,
            after_reason: after.reason,
            ..RuleValue::default()
        })
    }

    fn filter(&self, key: &RuleKey) -> Option<FilterValue> {
        let cell = self
            .index
            .filter(key.class, key.protocol, u16::from_be_bytes(key.port))?;
        let enforced = if cell.mode_enforced {
            filter_action::ENFORCED
        } else {
            0
        };
        Some(FilterValue {
            rule: cell.rule,
            action: match cell.allow {
                None => filter_action::CONTINUE,
                Some(true) => filter_action::ALLOW,
                Some(false) => filter_action::DENY | enforced,
            },
        })
    }

    fn failsafe(&self, _: &FailsafeKey) -> Option<FailsafeValue> {
        None
    }

    fn boot_ns(&self) -> u64 {
        self.boot_ns
    }
}
