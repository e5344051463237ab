//! What was reached, as tables in which no cell may stay empty.

use std::collections::BTreeMap;
use std::fmt;

use datapath::drop_reason::DropReason;
use policy::snapshot::{FlowDirection, Mode};
use policy::world::Who;

use crate::ask::Ask;
use crate::wanted::{Scene, Wanted};

const MODES: [&str; 5] = [
    "observe",
    "selective, listed",
    "selective, not",
    "enforce",
    "isolate",
];
const PROTOCOLS: [&str; 6] = ["tcp", "udp", "sctp", "icmp", "icmpv6", "unknown"];
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];
const DIRECTIONS: [&str; 2] = ["ingress", "egress"];
const PEERS: [&str; 4] = ["workload", "unmanaged", "world", "unknown"];
/// A tier, and whether it can allow and deny.
const TIERS: [(&str, bool, bool); 10] = [
    ("isolation", false, true),
    ("failsafe", true, false),
    ("filter", false, true),
    ("guardrail", true, true),
    ("grants", true, false),
    ("standard", true, true),
    ("standard, closed", false, true),
    ("baseline", true, true),
    ("default deny", false, true),
    ("default allow", true, false),
];
/// Reasons that the evaluator names. A deadline's is one of compiled policy.
const REASONS: [DropReason; 9] = [
    DropReason::None,
    DropReason::PolicyDeny,
    DropReason::DefaultDeny,
    DropReason::Isolated,
    DropReason::PeerIsolated,
    DropReason::Filter,
    DropReason::Expired,
    DropReason::ModeObserve,
    DropReason::UnknownIdentity,
];
/// Least part of all pairs that each verdict has.
const SHARE: f64 = 0.30;

type Table = BTreeMap<(String, String), usize>;

/// Counts by row and column.
pub(crate) struct Coverage {
    pairs: usize,
    policies: usize,
    verdicts: [usize; 4],
    tables: Vec<(&'static str, Table)>,
}

impl Default for Coverage {
    /// Every cell that can be reached, empty.
    fn default() -> Self {
        let product = |rows: &[&str], columns: &[String]| -> Table {
            rows.iter()
                .flat_map(|row| {
                    columns
                        .iter()
                        .map(|column| (((*row).into(), column.clone()), 0))
                })
                .collect()
        };
        let owned = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        let mut tiers = Table::new();
        for (tier, allows, denies) in TIERS {
            let mut columns = owned(&FAMILIES);
            columns.extend(owned(&DIRECTIONS));
            if allows {
                columns.push("allow".into());
            }
            if denies {
                columns.push("deny".into());
            }
            // No mode softens an isolation.
            if denies && tier != "isolation" {
                columns.push("observed".into());
            }
            tiers.extend(product(&[tier], &columns));
        }
        let protocols: Vec<String> = (PROTOCOLS.iter())
            .flat_map(|protocol| FAMILIES.map(|family| format!("{protocol} {family}")))
            .collect();
        let reasons: Vec<&str> = REASONS.iter().map(|reason| reason.name()).collect();
        Self {
            pairs: 0,
            policies: 0,
            verdicts: [0; 4],
            tables: vec![
                ("mode by protocol and family", product(&MODES, &protocols)),
                ("deciding tier", tiers),
                (
                    "peer",
                    product(&PEERS, &owned(&["ingress", "egress", "allow", "deny"])),
                ),
                ("reason", product(&reasons, &owned(&FAMILIES))),
                (
                    "enforced by draft",
                    product(&["allow", "deny"], &owned(&["draft allow", "draft deny"])),
                ),
                (
                    "a deadline passed",
                    product(
                        &["allow", "deny"],
                        &owned(&["verdict changed", "not changed"]),
                    ),
                ),
            ],
        }
    }
}

impl Coverage {
    pub(crate) const fn pairs(&self) -> usize {
        self.pairs
    }

    pub(crate) const fn policy(&mut self) {
        self.policies += 1;
    }

    pub(crate) fn add(&mut self, scene: &Scene<'_>, ask: &Ask, wanted: &Wanted) {
        self.pairs += 1;
        for (index, happened) in [wanted.pass, !wanted.pass, wanted.draft, !wanted.draft]
            .into_iter()
            .enumerate()
        {
            self.verdicts[index] += usize::from(happened);
        }
        let family = FAMILIES[usize::from(ask.peer.is_ipv6())];
        let direction = DIRECTIONS[usize::from(ask.direction == FlowDirection::Egress)];
        let word = |allow: bool| if allow { "allow" } else { "deny" };
        self.count(
            0,
            mode(scene, ask),
            &format!("{} {family}", protocol(ask.protocol)),
        );
        if let Some(tier) = wanted.tier() {
            for column in [family, direction] {
                self.count(1, tier, column);
            }
            let column = match (wanted.evaluated, wanted.pass) {
                (false, true) => "observed",
                (allow, _) => word(allow),
            };
            self.count(1, tier, column);
        }
        for column in [direction, word(wanted.pass)] {
            self.count(2, peer(scene, ask), column);
        }
        if let Some(reason) = wanted.reason {
            self.count(3, reason.name(), family);
        }
        let draft = if wanted.draft {
            "draft allow"
        } else {
            "draft deny"
        };
        self.count(4, word(wanted.pass), draft);
        if scene.late {
            let changed = wanted.keep.is_none();
            let column = if changed {
                "verdict changed"
            } else {
                "not changed"
            };
            self.count(5, word(wanted.pass), column);
        }
    }

    /// Adds to a cell; a cell that nobody thought of appears, and the test says so.
    fn count(&mut self, table: usize, row: &str, column: &str) {
        let cell = (row.to_owned(), column.to_owned());
        *self.tables[table].1.entry(cell).or_default() += 1;
    }

    pub(crate) fn assert_everything_was_reached(&self) {
        for (count, what) in self.verdicts.iter().zip(VERDICTS) {
            let share = *count as f64 / self.pairs as f64;
            assert!(share >= SHARE, "{what}: {share:.3} of all pairs");
        }
        let fresh = Self::default();
        for ((name, table), (_, known)) in self.tables.iter().zip(&fresh.tables) {
            for (cell, count) in table {
                assert!(
                    known.contains_key(cell),
                    "{name}: {cell:?} was thought impossible"
                );
                assert!(*count > 0, "{name}: {cell:?} was not reached");
            }
        }
    }
}

const VERDICTS: [&str; 4] = [
    "enforced allow",
    "enforced deny",
    "draft allow",
    "draft deny",
];

fn mode(scene: &Scene<'_>, ask: &Ask) -> &'static str {
    match (scene.posture.mode, scene.is_enforced(ask)) {
        (Mode::Observe, _) => MODES[0],
        (Mode::Selective, true) => MODES[1],
        (Mode::Selective, false) => MODES[2],
        (Mode::Enforce, _) => MODES[3],
        (Mode::Isolate, _) => MODES[4],
    }
}

const fn protocol(number: u8) -> &'static str {
    match number {
        6 => "tcp",
        17 => "udp",
        132 => "sctp",
        1 => "icmp",
        58 => "icmpv6",
        _ => "unknown",
    }
}

fn peer(scene: &Scene<'_>, ask: &Ask) -> &'static str {
    match scene.world.who(ask.peer) {
        Who::Workload(_) => PEERS[0],
        Who::Unmanaged => PEERS[1],
        Who::World => PEERS[2],
        Who::Unknown => PEERS[3],
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} packets under {} policies", self.pairs, self.policies)?;
        for (count, what) in self.verdicts.iter().zip(VERDICTS) {
            writeln!(
                f,
                "{what:>16} {:5.1} %",
                100.0 * *count as f64 / self.pairs as f64
            )?;
        }
        for (name, table) in &self.tables {
            let mut columns: Vec<&String> = table.keys().map(|(_, column)| column).collect();
            columns.sort();
            columns.dedup();
            write!(f, "\n{name:<30}")?;
            for column in &columns {
                write!(f, " {column:>15}")?;
            }
            let mut rows: Vec<&String> = table.keys().map(|(row, _)| row).collect();
            rows.dedup();
            for row in rows {
                write!(f, "\n{row:<30}")?;
                for column in &columns {
                    match table.get(&(row.clone(), (*column).clone())) {
                        Some(count) => write!(f, " {count:>15}")?,
                        None => write!(f, " {:>15}", "-")?,
                    }
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
