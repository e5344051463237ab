//! What comes out: JSON for machines, a table for people, ratios for the gate.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::frames::Family;
use crate::measure::{Anchors, Effort, Row};
use crate::smp::Shared;
use crate::tables::{Export, Memory};

/// The machine and the object.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    /// SHA-256 of the kernel object.
    pub(crate) object: String,
}

impl Machine {
    /// Reads procfs.
    pub(crate) fn here(cpus: usize) -> Self {
        let kernel = nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            info.lines()
                .find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))
                .and_then(|line| line.split(':').nth(1))
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        Self {
            kernel,
            cpu: format!(
                "{} (family {} model {})",
                field("model name"),
                field("cpu family"),
                field("model")
            ),
            cpus,
            object: agent::kernel::loader::object_digest(),
        }
    }
}

/// Everything of one run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) effort: Effort,
    /// Packets whose verdict was checked before and after, each time.
    pub(crate) probes: u64,
    pub(crate) anchors: Anchors,
    pub(crate) cases: Vec<Row>,
    pub(crate) two_cpus: Vec<Shared>,
    pub(crate) export: Export,
    pub(crate) memory: Memory,
}

impl Report {
    /// A row by its label.
    pub(crate) fn row(
        &self,
        case: &str,
        family: Family,
        rules: u32,
        flows: Option<u32>,
    ) -> Option<&Row> {
        self.cases.iter().find(|row| {
            let label = &row.label;
            label.case == case
                && label.family == family
                && label.rules == rules
                && label.flows == flows
        })
    }

    /// The tables, in Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut out = String::new();
        self.write(&mut out)
            .map_or_else(|_| String::new(), |()| out)
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let Machine {
            kernel,
            cpu,
            cpus,
            object,
        } = &self.machine;
        writeln!(
            out,
            "{cpu}, {cpus} CPUs, Linux {kernel}; kernel object {}; {} rounds of {} ms{}.\n",
            object.get(..12).unwrap_or("none"),
            self.effort.rounds,
            self.effort.burst_ms,
            if self.anchors.real_time {
                ""
            } else {
                "; **no real-time priority: do not believe these**"
            }
        )?;
        writeln!(
            out,
            "Empty program {:.1} ns gross; one look-up in a kernel hash (16-byte key, 65,536 entries) {:.1} ns hot, {:.1} ns pseudo-random, net.\n",
            self.anchors.empty_ns, self.anchors.hash_hot_ns, self.anchors.hash_random_ns
        )?;
        self.write_cases(out)?;
        writeln!(
            out,
            "\n| two CPUs at once, gross ns a packet and CPU | family | one | two | ratio |\n| --- | --- | --: | --: | --: |"
        )?;
        for row in &self.two_cpus {
            writeln!(
                out,
                "| {} | {} | {:.1} | {:.1} | {:.2} |",
                row.case,
                row.family.name(),
                row.one_ns,
                row.two_ns,
                row.ratio
            )?;
        }
        let export = &self.export;
        writeln!(
            out,
            "\nUser space, {} live flows of {} places, one CPU: reading {:.1} ns a live flow; a sweep of the agent {:.0} ns when each is reported, {:.0} ns when nothing changed.\n",
            export.flows, export.capacity, export.read_ns, export.first_sweep_ns, export.sweep_ns
        )?;
        let all: u64 = self.memory.maps.iter().map(|map| map.bytes).sum();
        writeln!(
            out,
            "Map memory a flow: {:.0} B (IPv4), {:.0} B (IPv6); all pinned maps at default sizes {:.1} MiB.",
            self.memory.bytes_per_flow4,
            self.memory.bytes_per_flow6,
            all as f64 / f64::from(1 << 20)
        )
    }

    /// A line a case, family and working set; a column a number of rules: net ns, and in look-ups for the last column.
    fn write_cases(&self, out: &mut String) -> std::fmt::Result {
        let mut rules: Vec<u32> = self.cases.iter().map(|row| row.label.rules).collect();
        rules.sort_unstable();
        rules.dedup();
        let mut lines: Vec<(&str, Option<u32>, Family)> = Vec::new();
        for row in &self.cases {
            let line = (row.label.case.as_str(), row.label.flows, row.label.family);
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        write!(out, "| net ns a packet | family |")?;
        for rules in &rules {
            write!(out, " {rules} rules |")?;
        }
        writeln!(out, " in look-ups |")?;
        writeln!(out, "| --- | --- |{} --: |", " --: |".repeat(rules.len()))?;
        for (case, flows, family) in lines {
            let flows_text = match flows {
                Some(1) => ", one flow".to_owned(),
                Some(flows) => format!(", {flows} flows at random"),
                None => String::new(),
            };
            write!(out, "| {case}{flows_text} | {} |", family.name())?;
            let mut lookups = None;
            for rules in &rules {
                match self.row(case, family, *rules, flows) {
                    Some(row) => {
                        lookups = Some(row.lookups);
                        let lost: u64 = row.lost.values().sum();
                        let mark = if lost > 0 { " *" } else { "" };
                        write!(out, " {:.1}{mark} |", row.net_ns)?;
                    }
                    None => write!(out, " |")?,
                }
            }
            writeln!(out, " {:.2} |", lookups.unwrap_or(f64::NAN))?;
        }
        writeln!(
            out,
            "\nLook-ups: the last column in hot look-ups. \\*: records were lost meanwhile (a full table of denials, counted)."
        )?;
        Ok(())
    }
}

/// Replaces what lies between the marks of `label` in a document.
pub(crate) fn record(document: &Path, label: &str, text: &str) -> Result<()> {
    let (begin, end) = (
        format!("<!-- measured: {label} -->"),
        format!("<!-- end: {label} -->"),
    );
    let old = std::fs::read_to_string(document)
        .with_context(|| format!("reading {}", document.display()))?;
    let Some((before, rest)) = old.split_once(&begin) else {
        bail!("{} has no line {begin}", document.display());
    };
    let Some((_, after)) = rest.split_once(&end) else {
        bail!("{} has no line {end}", document.display());
    };
    let new = format!("{before}{begin}\n{}\n{end}{after}", text.trim_end());
    std::fs::write(document, new).with_context(|| format!("writing {}", document.display()))
}
