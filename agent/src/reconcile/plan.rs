//! What the kernel must hold for a snapshot: a pure function of the snapshot and the clocks.

use std::net::IpAddr;

use datapath::abi::{
    AddrValue, Cidr4Key, Cidr6Key, ClassKey, ClassValue, EndpointValue, FilterValue, RuleValue,
    addr_flags, filter_action, rule_flags, verdict,
};
use datapath::ids::Direction;
use ipnet::IpNet;
use policy::snapshot::{CellVerdict, FilterCell, Mode, RuleCell, Snapshot, SnapshotSize};
use serde::{Deserialize, Serialize};

use crate::kernel::content::{Content, Part};

/// The clocks, read together, and the greatest lead of UTC over boot time seen since boot.
///
/// A deadline in UTC becomes one in boot time by that greatest lead: whatever the wall clock does, a
/// grant ends at the earlier of its UTC deadline and the time that was left when it was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timebase {
    /// Nanoseconds since boot.
    pub boot_ns: u64,
    /// Nanoseconds since the epoch.
    pub utc_ns: i64,
    /// Greatest `utc - boot` seen since boot.
    pub lead_ns: i64,
    /// UTC has gone back behind what was seen before (another boot included): grants are off.
    pub behind: bool,
}

impl Timebase {
    /// Nanoseconds since boot of a deadline; never 0, which means "never".
    #[must_use]
    pub fn boot_deadline(&self, utc_deadline: i64) -> u64 {
        if self.behind {
            return 1;
        }
        u64::try_from(utc_deadline.saturating_sub(self.lead_ns))
            .unwrap_or(0)
            .max(1)
    }
}

/// What this host takes; the size is compared before anything is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Host addresses.
    pub addresses: usize,
    /// Prefixes.
    pub cidrs: usize,
    /// Class bindings.
    pub classes: usize,
    /// Rule cells.
    pub rules: usize,
    /// Filter cells.
    pub filters: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            addresses: 262_144,
            cidrs: 65_536,
            classes: 524_288,
            rules: 1_048_576,
            filters: 65_536,
        }
    }
}

/// A snapshot that does not fit, with the numbers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("revision {revision} does not fit this host: {}", .over.join(", "))]
pub struct Oversize {
    /// Of the snapshot.
    pub revision: u64,
    /// `rules 2000000 > 1048576`, one for each table.
    pub over: Vec<String>,
}

/// Compares a snapshot with what this host takes.
///
/// # Errors
/// With every table that is too large.
pub fn check_size(snapshot: &Snapshot, limits: &Limits) -> Result<(), Oversize> {
    let SnapshotSize {
        addresses,
        cidrs,
        classes,
        rules,
        filters,
    } = snapshot.size();
    let over: Vec<String> = [
        ("addresses", addresses, limits.addresses),
        ("cidrs", cidrs, limits.cidrs),
        ("classes", classes, limits.classes),
        ("rules", rules, limits.rules),
        ("filters", filters, limits.filters),
    ]
    .into_iter()
    .filter(|(_, is, limit)| is > limit)
    .map(|(name, is, limit)| format!("{name} {is} > {limit}"))
    .collect();
    if over.is_empty() {
        Ok(())
    } else {
        Err(Oversize {
            revision: snapshot.revision,
            over,
        })
    }
}

/// The tables of a snapshot.
#[must_use]
pub fn content(snapshot: &Snapshot, time: &Timebase) -> Content {
    let mut content = Content::default();
    for binding in &snapshot.addresses {
        let value = AddrValue {
            identity: binding.identity,
            flags: flag(binding.isolated, addr_flags::ISOLATED)
                | flag(binding.local, addr_flags::LOCAL),
        };
        push_address(&mut content, binding.net, &value);
    }
    for endpoint in &snapshot.endpoints {
        content.part_mut(Part::Endpoints).push(
            &endpoint.id,
            &EndpointValue {
                mode: endpoint.mode.number(),
                reserved: 0,
            },
        );
    }
    for binding in &snapshot.classes {
        content.part_mut(Part::Classes).push(
            &ClassKey {
                endpoint: binding.endpoint,
                identity: binding.identity,
                direction: Direction::from(binding.direction) as u32,
            },
            &ClassValue {
                class: binding.class,
                filter: binding.filter,
            },
        );
    }
    for cell in &snapshot.rules {
        content
            .part_mut(Part::Rules)
            .push(&cell.ports.key(cell.class), &rule_value(cell, time));
    }
    for cell in &snapshot.filters {
        content
            .part_mut(Part::Filters)
            .push(&cell.ports.key(cell.class), &filter_value(cell));
    }
    content.sort();
    content
}

/// A content in which everything is denied but the failsafes: what takes the place of a policy that
/// was there and cannot be read.
#[must_use]
pub fn closed(revision: u64, endpoints: &[policy::snapshot::Endpoint]) -> Snapshot {
    Snapshot {
        revision,
        endpoints: endpoints
            .iter()
            .map(|endpoint| policy::snapshot::Endpoint {
                mode: Mode::Enforce,
                ..endpoint.clone()
            })
            .collect(),
        ..Snapshot::default()
    }
}

const fn flag(set: bool, bit: u32) -> u32 {
    if set { bit } else { 0 }
}

fn push_address(content: &mut Content, net: IpNet, value: &AddrValue) {
    let prefix_len = u32::from(net.prefix_len());
    match net.network() {
        IpAddr::V4(addr) if prefix_len == 32 => {
            content.part_mut(Part::Addr4).push(&addr.octets(), value);
        }
        IpAddr::V6(addr) if prefix_len == 128 => {
            content.part_mut(Part::Addr6).push(&addr.octets(), value);
        }
        IpAddr::V4(addr) => content.part_mut(Part::Cidr4).push(
            &Cidr4Key {
                prefix_len,
                addr: addr.octets(),
            },
            value,
        ),
        IpAddr::V6(addr) => content.part_mut(Part::Cidr6).push(
            &Cidr6Key {
                prefix_len,
                addr: addr.octets(),
            },
            value,
        ),
    }
}

const fn verdict_of(cell: &CellVerdict) -> u8 {
    if cell.allow {
        verdict::ALLOW
    } else {
        verdict::DENY
    }
}

fn rule_value(cell: &RuleCell, time: &Timebase) -> RuleValue {
    let RuleCell {
        class: _,
        ports: _,
        enforced,
        draft,
        expires,
        after,
        mode_enforced,
        keep,
        audit,
        hard,
    } = cell;
    let mut flags = 0;
    for (set, bit) in [
        (*mode_enforced, rule_flags::ENFORCED),
        (*keep, rule_flags::KEEP),
        (*audit, rule_flags::AUDIT),
        (*hard, rule_flags::HARD),
    ] {
        if set {
            flags |= bit;
        }
    }
    // An expiry without a verdict after it would leave the cell without an answer: deny.
    let after = after.unwrap_or(CellVerdict {
        allow: false,
        rule: enforced.rule,
        reason: datapath::drop_reason::DropReason::Expired as u8,
    });
    let expiry = expires.map_or(0, |deadline| time.boot_deadline(deadline));
    RuleValue {
        expiry,
        rule: enforced.rule,
        draft_rule: draft.rule,
        after_rule: if expiry == 0 { 0 } else { after.rule },
        enforced: verdict_of(enforced),
        draft: verdict_of(draft),
        after: if expiry == 0 { 0 } else { verdict_of(&after) },
        flags,
        reason: enforced.reason,
        draft_reason: draft.reason,
        after_reason: if expiry == 0 { 0 } else { after.reason },
        pad: 0,
        pad2: 0,
    }
}

const fn filter_value(cell: &FilterCell) -> FilterValue {
    let action = match cell.allow {
        None => filter_action::CONTINUE,
        Some(true) => filter_action::ALLOW,
        Some(false) => filter_action::DENY,
    };
    FilterValue {
        rule: cell.rule,
        action: action
            | flag(
                cell.mode_enforced && matches!(cell.allow, Some(false)),
                filter_action::ENFORCED,
            ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datapath::abi::RuleKey;
    use policy::snapshot::{AddressBinding, ClassBinding, FlowDirection, PortPrefix};

    pub(super) const NOW: Timebase = Timebase {
        boot_ns: 100,
        utc_ns: 1_000_100,
        lead_ns: 1_000_000,
        behind: false,
    };

    fn cell(expires: Option<i64>) -> RuleCell {
        let allow = CellVerdict {
            allow: true,
            rule: 3,
            reason: 0,
        };
        RuleCell {
            class: 1,
            ports: PortPrefix {
                protocol: Some(6),
                port: 443,
                port_bits: 16,
            },
            enforced: allow,
            draft: allow,
            expires,
            after: None,
            mode_enforced: true,
            keep: true,
            audit: false,
            hard: false,
        }
    }

    #[test]
    fn a_snapshot_becomes_tables() {
        let net = |text: &str| text.parse().expect("net");
        let binding = |text, isolated| AddressBinding {
            net: net(text),
            identity: 300,
            isolated,
            local: false,
        };
        let snapshot = Snapshot {
            revision: 9,
            addresses: vec![
                binding("10.0.0.1/32", true),
                binding("10.0.0.0/8", false),
                binding("fd00::1/128", false),
                binding("::/0", false),
            ],
            classes: vec![ClassBinding {
                endpoint: 1,
                direction: FlowDirection::Egress,
                identity: 300,
                class: 1,
                filter: 2,
            }],
            rules: vec![cell(None)],
            filters: vec![FilterCell {
                class: 2,
                ports: PortPrefix::ANY,
                allow: Some(false),
                rule: 8,
                mode_enforced: true,
            }],
            ..Snapshot::default()
        };
        let content = content(&snapshot, &NOW);
        assert_eq!(
            content
                .part(Part::Addr4)
                .entries()
                .collect::<Vec<([u8; 4], AddrValue)>>(),
            vec![(
                [10, 0, 0, 1],
                AddrValue {
                    identity: 300,
                    flags: addr_flags::ISOLATED
                }
            )]
        );
        assert_eq!(content.part(Part::Cidr6).len(), 1);
        let (key, value): (RuleKey, RuleValue) =
            content.part(Part::Rules).entries().next().expect("rule");
        assert_eq!(
            key,
            RuleKey {
                prefix_len: 56,
                class: 1,
                protocol: 6,
                port: [1, 187],
                pad: 0
            }
        );
        assert_eq!(value.flags, rule_flags::ENFORCED | rule_flags::KEEP);
        assert_eq!(
            (value.enforced, value.after, value.expiry),
            (verdict::ALLOW, 0, 0)
        );
        let (_, filter): (RuleKey, FilterValue) = content
            .part(Part::Filters)
            .entries()
            .next()
            .expect("filter");
        assert_eq!(filter.action, filter_action::DENY | filter_action::ENFORCED);
        assert_eq!(content.len(), 7);
    }

    #[test]
    fn an_expiry_is_never_extended() {
        assert_eq!(rule_value(&cell(Some(1_000_500)), &NOW).expiry, 500);
        // The wall clock was set back by 400: the lead that was seen stays.
        let back = Timebase {
            utc_ns: 999_700,
            ..NOW
        };
        assert_eq!(rule_value(&cell(Some(1_000_500)), &back).expiry, 500);
        // It was set forward: less time is left.
        let forward = Timebase {
            lead_ns: 1_000_300,
            ..NOW
        };
        assert_eq!(rule_value(&cell(Some(1_000_500)), &forward).expiry, 200);
        // Long past: in the past, not "never".
        assert_eq!(rule_value(&cell(Some(5)), &NOW).expiry, 1);
        let behind = Timebase {
            behind: true,
            ..NOW
        };
        assert_eq!(rule_value(&cell(Some(i64::MAX)), &behind).expiry, 1);
        assert_eq!(
            rule_value(&cell(Some(1_000_500)), &NOW).after_reason,
            datapath::drop_reason::DropReason::Expired as u8
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers() {
        let snapshot = Snapshot {
            revision: 4,
            rules: vec![cell(None); 3],
            ..Snapshot::default()
        };
        let limits = Limits {
            rules: 2,
            ..Limits::default()
        };
        let error = check_size(&snapshot, &limits).expect_err("too large");
        assert_eq!(
            error.to_string(),
            "revision 4 does not fit this host: rules 3 > 2"
        );
        assert_eq!(check_size(&snapshot, &Limits::default()), Ok(()));
    }
}
