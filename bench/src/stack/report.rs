//! What comes out: JSON for machines, tables for people, and the gate.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::load::{Load, Outcome, Shape};
use super::packets::{Cost, Kind};
use super::throughput::Rate;
use super::world::Firewall;
use crate::report::Machine;

const MIB: f64 = (1 << 20) as f64;

/// Everything of one run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) rounds: usize,
    /// Packets and exchanges that had the same verdict before and after, each time.
    pub(crate) probes: usize,
    pub(crate) costs: Vec<Cost>,
    pub(crate) rates: Vec<Rate>,
    pub(crate) load: Load,
}

impl Report {
    /// Nanoseconds a packet; infinite when it was not measured.
    fn ns(&self, kind: Kind, firewall: Option<Firewall>) -> f64 {
        self.costs
            .iter()
            .find(|cost| cost.kind == kind && cost.firewall == firewall)
            .map_or(f64::INFINITY, |cost| cost.ns)
    }

    /// What a firewall adds to a packet that passes.
    fn added(&self, kind: Kind, firewall: Firewall) -> f64 {
        self.ns(kind, Some(firewall)) - self.ns(kind, Some(Firewall::None))
    }

    /// Added by Cofferdam, as a share of what nftables adds; not a number when either was not measured.
    fn ratio(&self, kind: Kind) -> f64 {
        self.added(kind, Firewall::Cofferdam) / self.added(kind, Firewall::Nftables)
    }

    /// TCP rate as a share of that without a firewall.
    fn share(&self, firewall: Firewall) -> f64 {
        let gbps = |which| {
            self.rates
                .iter()
                .find(|rate| rate.firewall == which)
                .map_or(f64::NAN, |rate| rate.gbps)
        };
        gbps(firewall) / gbps(Firewall::None)
    }

    /// The tables, in Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut out = String::new();
        let mut all = || -> std::fmt::Result {
            self.write_head(&mut out)?;
            self.write_passing(&mut out)?;
            self.write_dropping(&mut out)?;
            self.write_rates(&mut out)?;
            self.write_load(&mut out)
        };
        // Writing into a string cannot fail.
        let _ = all();
        out
    }

    fn write_head(&self, out: &mut String) -> std::fmt::Result {
        let Machine {
            kernel,
            cpu,
            cpus,
            object,
        } = &self.machine;
        writeln!(
            out,
            "{cpu}, {cpus} CPUs, Linux {kernel}; kernel object {}; {} rounds; {} probes judged alike before and after.\n",
            object.get(..12).unwrap_or("none"),
            self.rounds,
            self.probes
        )
    }

    fn write_passing(&self, out: &mut String) -> std::fmt::Result {
        let shown = [
            Firewall::None,
            Firewall::Empty,
            Firewall::Nftables,
            Firewall::Cofferdam,
        ];
        writeln!(
            out,
            "| ns a packet, whole way | {} | {} | {} | {} | nftables adds | Cofferdam adds | ratio |",
            shown[0].name(),
            shown[1].name(),
            shown[2].name(),
            shown[3].name()
        )?;
        writeln!(out, "| --- |{}", " --: |".repeat(shown.len() + 3))?;
        for kind in [Kind::Hot, Kind::ManyFlows] {
            write!(out, "| {} |", kind.name())?;
            for firewall in shown {
                write!(out, " {:.0} |", self.ns(kind, Some(firewall)))?;
            }
            writeln!(
                out,
                " {:.0} | {:.0} | **{:.2}** |",
                self.added(kind, Firewall::Nftables),
                self.added(kind, Firewall::Cofferdam),
                self.ratio(kind)
            )?;
        }
        writeln!(out)
    }

    fn write_dropping(&self, out: &mut String) -> std::fmt::Result {
        let kind = Kind::UnknownSource;
        writeln!(out, "| {} | ns a packet | Mpps a core |", kind.name())?;
        writeln!(out, "| --- | --: | --: |")?;
        let made = (None, "made and freed: the generator alone");
        let firewalls = [Firewall::Wall, Firewall::Nftables, Firewall::Cofferdam];
        let rows = firewalls.map(|firewall| (Some(firewall), firewall.name()));
        for (firewall, name) in [made].into_iter().chain(rows) {
            let ns = self.ns(kind, firewall);
            writeln!(out, "| {name} | {ns:.0} | {:.2} |", 1e3 / ns)?;
        }
        writeln!(out)
    }

    fn write_rates(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "| TCP, one stream, MTU-sized, offloads off | Gbit/s | of no firewall |"
        )?;
        writeln!(out, "| --- | --: | --: |")?;
        for rate in &self.rates {
            writeln!(
                out,
                "| {} | {:.2} | {:.2} |",
                rate.firewall.name(),
                rate.gbps,
                self.share(rate.firewall)
            )?;
        }
        writeln!(out)
    }

    fn write_load(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "| agent under load | asked a second | reached | sent | recorded | counted losses | unreported | agent's CPU, % of one | waited for one, % |"
        )?;
        writeln!(out, "| --- |{} --: |", " --: |".repeat(7))?;
        for outcome in &self.load.steps {
            let Outcome {
                shape,
                asked_rate,
                rate,
                sent,
                recorded,
                lost,
                cpu_percent,
                waited_percent,
            } = outcome;
            let what = match shape {
                Shape::Connection => "TCP connections, opened and closed",
                Shape::Datagram => "flows of one datagram",
            };
            let asked = asked_rate.map_or("as many as can be".into(), |rate| rate.to_string());
            let mut causes: Vec<String> = lost
                .iter()
                .map(|(cause, count)| format!("{cause} {count}"))
                .collect();
            if causes.is_empty() {
                causes.push("none".into());
            }
            writeln!(
                out,
                "| {what} | {asked} | {rate:.0} | {sent} | {recorded} | {} | {} | {cpu_percent:.1} | {waited_percent:.0} |",
                causes.join(", "),
                outcome.unreported()
            )?;
        }
        let load = &self.load;
        writeln!(
            out,
            "\nAgent: armed {:.1} s after its start; {:.2} % of a CPU without traffic; resident besides maps {:.0} MiB when armed, {:.0} MiB at most.",
            load.start_seconds,
            load.idle_percent,
            load.resident_idle as f64 / MIB,
            load.resident_most as f64 / MIB
        )
    }
}

/// The checked-in limits: ratios within one run, and what must hold anywhere.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limits {
    /// Most that Cofferdam may add to a packet of one flow, as a share of what nftables adds.
    hot_ratio: f64,
    /// The same at 65,536 flows.
    many_flows_ratio: f64,
    /// Most that dropping an unknown source may cost, as a share of what it costs nftables, whole way.
    drop_ratio: f64,
    /// Least TCP rate, as a share of no firewall.
    tcp_share: f64,
    /// Most resident memory of the agent besides maps after it was armed, MiB.
    resident_mib: f64,
}

impl Limits {
    /// Reads the file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("in {}", path.display()))
    }

    /// Every limit that a report breaks; what was not measured breaks its limit.
    pub(crate) fn broken(&self, report: &Report) -> Vec<String> {
        let drop = |firewall| report.ns(Kind::UnknownSource, Some(firewall));
        let most = [
            ("hot, of nftables", report.ratio(Kind::Hot), self.hot_ratio),
            (
                "65,536 flows, of nftables",
                report.ratio(Kind::ManyFlows),
                self.many_flows_ratio,
            ),
            (
                "a drop, of nftables",
                drop(Firewall::Cofferdam) / drop(Firewall::Nftables),
                self.drop_ratio,
            ),
            (
                "resident MiB",
                report.load.resident_idle as f64 / MIB,
                self.resident_mib,
            ),
        ];
        let mut found: Vec<String> = most
            .into_iter()
            .filter(|(_, is, most)| is.is_nan() || is > most)
            .map(|(what, is, most)| format!("{what}: {is:.2}, the limit is {most:.2}"))
            .collect();
        let share = report.share(Firewall::Cofferdam);
        if share.is_nan() || share < self.tcp_share {
            found.push(format!(
                "TCP, of no firewall: {share:.2}, the limit is {:.2}",
                self.tcp_share
            ));
        }
        if report.load.steps.is_empty() {
            found.push("no connection was counted".into());
        }
        found.extend(unreported(report));
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

/// Connections that are neither recorded nor counted: an error with any limits and without.
pub(crate) fn unreported(report: &Report) -> Vec<String> {
    let steps = report.load.steps.iter();
    steps
        .filter(|step| step.unreported() > 0)
        .map(|step| {
            format!(
                "{} of {} connections at {:?} a second left neither a record nor a count",
                step.unreported(),
                step.sent,
                step.asked_rate
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// No firewall costs 700 ns, nftables 200 more, a drop by nftables 1,000.
    fn report(added: f64, dropped: f64, share: f64, recorded: u64) -> Report {
        let cost = |kind, firewall, ns| Cost {
            kind,
            firewall: Some(firewall),
            ns,
            rounds: vec![ns],
        };
        let mut costs = Vec::new();
        for kind in [Kind::Hot, Kind::ManyFlows] {
            costs.push(cost(kind, Firewall::None, 700.0));
            costs.push(cost(kind, Firewall::Nftables, 900.0));
            costs.push(cost(kind, Firewall::Cofferdam, 700.0 + added));
        }
        costs.push(cost(Kind::UnknownSource, Firewall::Nftables, 1_000.0));
        costs.push(cost(Kind::UnknownSource, Firewall::Cofferdam, dropped));
        let rate = |firewall, gbps| Rate {
            firewall,
            gbps,
            rounds: vec![gbps],
        };
        Report {
            machine: Machine::here(2),
            rounds: 1,
            probes: 1,
            costs,
            rates: vec![
                rate(Firewall::None, 10.0),
                rate(Firewall::Cofferdam, 10.0 * share),
            ],
            load: Load {
                start_seconds: 1.0,
                idle_percent: 0.1,
                resident_idle: 50 << 20,
                resident_most: 60 << 20,
                steps: vec![Outcome {
                    shape: Shape::Datagram,
                    asked_rate: Some(10_000),
                    rate: 10_000.0,
                    sent: 100,
                    recorded,
                    lost: BTreeMap::from([("ring-full".into(), 10)]),
                    cpu_percent: 1.0,
                    waited_percent: 0.0,
                }],
            },
        }
    }

    #[test]
    fn every_kind_of_limit_can_break() {
        let limits = Limits {
            hot_ratio: 0.25,
            many_flows_ratio: 0.5,
            drop_ratio: 0.8,
            tcp_share: 0.95,
            resident_mib: 64.0,
        };
        let broken = |report: &Report| limits.broken(report).len();
        let good = report(40.0, 700.0, 0.97, 90);
        assert_eq!(broken(&good), 0);
        assert_eq!(broken(&report(60.0, 700.0, 0.97, 90)), 1, "hot only");
        assert_eq!(broken(&report(120.0, 700.0, 0.97, 90)), 2, "both");
        assert_eq!(broken(&report(40.0, 900.0, 0.97, 90)), 1, "a drop");
        assert_eq!(broken(&report(40.0, 700.0, 0.90, 90)), 1, "TCP");
        assert_eq!(broken(&report(40.0, 700.0, 0.97, 89)), 1, "unreported");
        let mut large = good.clone();
        large.load.resident_idle = 70 << 20;
        assert_eq!(broken(&large), 1, "memory");
        let mut empty = good;
        empty.costs.clear();
        empty.rates.clear();
        empty.load.steps.clear();
        assert_eq!(broken(&empty), 5, "what was not measured is broken");
    }

    #[test]
    fn the_tables_say_what_was_measured() {
        let text = report(50.0, 800.0, 0.96, 90).markdown();
        assert!(text.contains("| 200 | 50 | **0.25** |"), "{text}");
        assert!(text.contains("| Cofferdam | 800 | 1.25 |"), "{text}");
        assert!(text.contains("| Cofferdam | 9.60 | 0.96 |"), "{text}");
        assert!(text.contains("| 100 | 90 | ring-full 10 | 0 |"), "{text}");
    }

    #[test]
    fn the_checked_in_limits_are_readable() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("stack-limits.json");
        assert!(Limits::read(&path).unwrap().hot_ratio > 0.0);
    }
}
