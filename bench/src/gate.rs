//! The gate: ratios, not nanoseconds, because machines differ and ratios hardly do.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::frames::Family;
use crate::report::Report;

/// The checked-in limits.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limits {
    /// In hot look-ups, net, by case; for both families.
    lookups: Vec<Limit>,
    /// Gross, two CPUs to one, by case.
    two_cpus: BTreeMap<String, f64>,
    /// Most that IPv6 may cost, as a multiple of IPv4, for the cases of `lookups`.
    ipv6: f64,
    /// Most that ten thousand rules may cost an established flow, as a multiple of ten.
    rules: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limit {
    case: String,
    #[serde(default)]
    flows: Option<u32>,
    most: f64,
}

/// Less than this is noise, whatever it is a multiple of.
const NOISE_NS: f64 = 4.0;
/// Rules of the measured policies: the least, and the one that limits are for.
const FEW: u32 = 10;
const MANY: u32 = 10_000;

impl Limits {
    /// Reads the file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("in {}", path.display()))
    }

    /// Every limit that a report breaks; a limit whose case was not measured is broken.
    pub(crate) fn broken(&self, report: &Report) -> Vec<String> {
        let mut found = Vec::new();
        for limit in &self.lookups {
            let net = |family, rules| {
                report
                    .row(&limit.case, family, rules, limit.flows)
                    .map(|row| (row.net_ns, row.lookups))
            };
            let name = format!("{} ({:?} flows)", limit.case, limit.flows);
            let (Some((v4, lookups)), Some((v6, _))) =
                (net(Family::V4, MANY), net(Family::V6, MANY))
            else {
                found.push(format!("{name} was not measured"));
                continue;
            };
            if lookups > limit.most {
                found.push(format!(
                    "{name}: {lookups:.2} look-ups, the limit is {:.2}",
                    limit.most
                ));
            }
            if v6 > v4 * self.ipv6 + NOISE_NS {
                found.push(format!(
                    "{name}: IPv6 {v6:.1} ns, more than {} × {v4:.1} ns",
                    self.ipv6
                ));
            }
            if let (true, Some((few, _))) = (limit.case == "established", net(Family::V4, FEW))
                && v4 > few * self.rules + NOISE_NS
            {
                found.push(format!(
                    "{name}: {v4:.1} ns with {MANY} rules, {few:.1} ns with {FEW}"
                ));
            }
        }
        for (case, most) in &self.two_cpus {
            let rows = report.two_cpus.iter().filter(|row| row.case == *case);
            let worst = rows.map(|row| row.ratio).fold(f64::NAN, f64::max);
            // A machine with one CPU has nothing to compare.
            if report.machine.cpus > 1 && (worst.is_nan() || worst > *most) {
                found.push(format!(
                    "{case}: two CPUs cost {worst:.2} of one, the limit is {most:.2}"
                ));
            }
        }
        found
    }

    /// Fails with every limit that is broken.
    pub(crate) fn check(&self, report: &Report) -> Result<()> {
        let broken = self.broken(report);
        if broken.is_empty() {
            return Ok(());
        }
        bail!("beyond the limits:\n  {}", broken.join("\n  "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::Label;
    use crate::measure::{Anchors, Effort, Row};
    use crate::report::Machine;
    use crate::smp::Shared;
    use crate::tables::{Export, Memory};

    fn row(family: Family, rules: u32, net_ns: f64) -> Row {
        Row {
            label: Label {
                case: "established".into(),
                family,
                rules,
                flows: Some(1),
            },
            gross_ns: net_ns + 30.0,
            net_ns,
            net_median_ns: net_ns,
            lookups: net_ns / 30.0,
            packets: 1,
            lost: BTreeMap::new(),
        }
    }

    fn report(v4: f64, v6: f64, few: f64, ratio: f64) -> Report {
        Report {
            machine: Machine::here(2),
            effort: Effort {
                rounds: 1,
                burst_ms: 1,
            },
            probes: 1,
            anchors: Anchors {
                empty_ns: 30.0,
                hash_hot_ns: 30.0,
                hash_random_ns: 100.0,
                real_time: true,
            },
            cases: vec![
                row(Family::V4, FEW, few),
                row(Family::V4, MANY, v4),
                row(Family::V6, MANY, v6),
            ],
            two_cpus: vec![Shared {
                case: "same flow".into(),
                family: Family::V4,
                one_ns: 40.0,
                two_ns: 40.0 * ratio,
                ratio,
                rounds: 1,
                lost: BTreeMap::new(),
            }],
            export: Export {
                flows: 1,
                capacity: 1,
                read_ns: 1.0,
                first_sweep_ns: 1.0,
                sweep_ns: 1.0,
            },
            memory: Memory {
                bytes_per_flow4: 1.0,
                bytes_per_flow6: 1.0,
                maps: Vec::new(),
            },
        }
    }

    #[test]
    fn every_kind_of_limit_can_break() {
        let limits: Limits = serde_json::from_str(
            r#"{"lookups": [{"case": "established", "flows": 1, "most": 1.0}],
                "two_cpus": {"same flow": 1.3}, "ipv6": 1.5, "rules": 1.1}"#,
        )
        .unwrap();
        let broken = |report| limits.broken(&report).len();
        assert_eq!(broken(report(20.0, 30.0, 20.0, 1.2)), 0);
        assert_eq!(broken(report(31.0, 31.0, 31.0, 1.2)), 1, "too dear");
        assert_eq!(broken(report(20.0, 35.0, 20.0, 1.2)), 1, "IPv6");
        assert_eq!(broken(report(28.0, 30.0, 20.0, 1.2)), 1, "many rules");
        assert_eq!(broken(report(20.0, 30.0, 20.0, 1.4)), 1, "two CPUs");
        let mut unmeasured = report(20.0, 30.0, 20.0, 1.2);
        unmeasured.cases.clear();
        unmeasured.two_cpus.clear();
        assert_eq!(broken(unmeasured), 2, "what was not measured is broken");
    }

    #[test]
    fn the_checked_in_limits_are_readable() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("limits.json");
        assert!(!Limits::read(&path).unwrap().lookups.is_empty());
    }
}
