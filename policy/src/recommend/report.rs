//! What a recommendation tells about itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::infra::Shape;
use super::keys::KeyChoice;
use super::measure::{Coverage, OverPermission};
use super::mislabel::Mislabel;
use super::sift::{KeptOut, Scanner};

/// Sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Workloads in the inventory.
    pub workloads: usize,
    /// Groups that the chosen keys make of them.
    pub groups: usize,
    /// Edges with a workload at one end.
    pub edges: u64,
    /// Policies that are recommended.
    pub policies: usize,
    /// Rules in them.
    pub rules: usize,
}

/// An edge that no rule covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CalledOut {
    /// Workload or address.
    pub from: String,
    /// Workload or address.
    pub to: String,
    /// `tcp/5432`.
    pub service: String,
    /// Why.
    pub reason: KeptOut,
    /// How many flows.
    pub flows: u64,
    /// Of those, how many failed.
    pub failed: u64,
    /// In how many different hours it was seen, at least.
    pub hours: u32,
    /// First day.
    pub first_seen: String,
    /// Last day.
    pub last_seen: String,
}

/// An infrastructure service that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InfraFound {
    /// `dns`, or protocol and port.
    pub name: String,
    /// Who is many.
    pub shape: Shape,
    /// `udp/53`.
    pub service: String,
    /// The few: its servers, or its sources.
    pub few: Vec<String>,
    /// How many workloads are on the other side.
    pub many: usize,
}

/// A rule that allows more than was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WideRule {
    /// `standard/NAME/ingress[0]`.
    pub rule: String,
    /// What it says.
    pub text: String,
    /// Pairs of ends × ports that it allows at its end; `null` = the world.
    pub allowed: Option<u64>,
    /// Those that were seen.
    pub seen: u64,
}

/// What a recommendation tells about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Sizes.
    pub totals: Totals,
    /// How the label keys were chosen.
    pub keys: KeyChoice,
    /// How much of what was seen the draft allows.
    pub coverage: Coverage,
    /// Connections between workloads that the rules allow at both ends; `null` where existing policies play a part.
    pub over_permission: Option<OverPermission>,
    /// The same for each end by itself.
    pub over_permission_ends: OverPermission,
    /// Addresses that rules name, and how many of them were seen.
    pub over_permission_addresses: OverPermission,
    /// The rules that allow most beyond what was seen.
    pub widest: Vec<WideRule>,
    /// Infrastructure services.
    pub infrastructure: Vec<InfraFound>,
    /// Edges that no rule was made for, by reason.
    pub kept_out: BTreeMap<&'static str, u64>,
    /// The first of them, rare and stale ones before the rest.
    pub called_out: Vec<CalledOut>,
    /// Sources that scan.
    pub scanners: Vec<Scanner>,
    /// Workloads whose traffic is another group's, clearest first.
    pub mislabels: Vec<Mislabel>,
    /// Names in the recording that the inventory does not have, with their flows.
    pub unresolved: BTreeMap<String, u64>,
}

impl Report {
    /// Paragraphs and tables in Markdown, for a merge request.
    #[must_use]
    pub fn to_markdown(&self) -> String {
        let mut text = String::from("## Recommended policy\n\n");
        self.summary(&mut text, "- ");
        self.markdown_tables(&mut text);
        text
    }

    /// For a terminal.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        self.summary(&mut text, "");
        self.lists(&mut text);
        text
    }

    fn summary(&self, text: &mut String, bullet: &str) {
        let totals = &self.totals;
        let mut line = |content: String| {
            // Writing to a string cannot fail.
            let _ok = writeln!(text, "{bullet}{content}");
        };
        line(format!(
            "{} in {} for {} workloads in {} groups by {}",
            counted(totals.rules, "rule", "rules"),
            counted(totals.policies, "policy", "policies"),
            totals.workloads,
            totals.groups,
            if self.keys.keys.is_empty() {
                "no label".to_owned()
            } else {
                self.keys.keys.join(", ")
            },
        ));
        let coverage = &self.coverage;
        line(format!(
            "coverage: {:.1} % of {} edges, {:.1} % of flows; {:.1} % of the edges that were not kept out",
            floor(coverage.edges.percent()),
            coverage.edges.whole,
            floor(coverage.flows.percent()),
            floor(coverage.wanted_edges.percent()),
        ));
        let (over, what) = match &self.over_permission {
            Some(over) => (over, "connections between workloads"),
            None => (&self.over_permission_ends, "ends of connections"),
        };
        line(format!(
            "over-permission: {:.1} % ({} {what} allowed, {} seen)",
            over.percent(),
            over.allowed,
            over.seen
        ));
        if self.over_permission_addresses.allowed > 0 {
            let addresses = &self.over_permission_addresses;
            line(format!(
                "networks named: {} addresses, {} seen",
                addresses.allowed, addresses.seen
            ));
        }
        if !self.kept_out.is_empty() {
            let parts: Vec<String> = self
                .kept_out
                .iter()
                .map(|(why, count)| format!("{count} {why}"))
                .collect();
            line(format!("no rule for: {}", parts.join(", ")));
        }
        if !self.unresolved.is_empty() {
            line(format!(
                "{} that the inventory does not have: {}",
                counted(self.unresolved.len(), "workload", "workloads"),
                some(self.unresolved.keys()),
            ));
        }
        if self.keys.keys.is_empty() && totals.workloads > 1 {
            line(
                "no label separates the traffic: label the workloads first (role, app, env)"
                    .to_owned(),
            );
        }
    }

    fn sections(&self) -> Vec<Section> {
        let infrastructure = self.infrastructure.iter().map(|found| {
            let few = some(&found.few);
            let (from, to) = match found.shape {
                Shape::FanIn => (format!("{} workloads", found.many), few),
                Shape::FanOut => (few, format!("{} workloads", found.many)),
            };
            vec![found.name.clone(), found.service.clone(), from, to]
        });
        let widest = self.widest.iter().map(|rule| {
            let allowed = rule
                .allowed
                .map_or("the world".to_owned(), |allowed| allowed.to_string());
            vec![
                rule.rule.clone(),
                allowed,
                rule.seen.to_string(),
                rule.text.clone(),
            ]
        });
        let called_out = self.called_out.iter().map(|edge| {
            vec![
                edge.reason.name().to_owned(),
                edge.from.clone(),
                edge.to.clone(),
                edge.service.clone(),
                edge.flows.to_string(),
                edge.hours.to_string(),
                edge.last_seen.clone(),
            ]
        });
        let scanners = self.scanners.iter().map(|scanner| {
            vec![
                scanner.source.clone(),
                scanner.targets.to_string(),
                scanner.hosts.to_string(),
                scanner.ports.to_string(),
                scanner.failed.to_string(),
                scanner.lonely.to_string(),
            ]
        });
        let mislabels = self.mislabels.iter().map(|found| {
            let evidence = found.evidence.iter().map(|habit| {
                format!(
                    "{} (there {} %, here {} %)",
                    habit.habit, habit.suggested_percent, habit.own_percent
                )
            });
            vec![
                found.workload.clone(),
                found.labelled.clone(),
                found.suggested.clone(),
                format!("{:.2}", found.own_likeness as f64 / 1000.0),
                format!("{:.2}", found.suggested_likeness as f64 / 1000.0),
                evidence.take(3).collect::<Vec<_>>().join("; "),
            ]
        });
        vec![
            (
                "Infrastructure",
                vec!["SERVICE", "PORT", "FROM", "TO"],
                infrastructure.collect(),
            ),
            (
                "Widest rules",
                vec!["RULE", "ALLOWS", "SEEN", "TEXT"],
                widest.collect(),
            ),
            (
                "No rule for",
                vec![
                    "REASON",
                    "FROM",
                    "TO",
                    "PORT",
                    "FLOWS",
                    "HOURS",
                    "LAST-SEEN",
                ],
                called_out.collect(),
            ),
            (
                "Scanners",
                vec!["SOURCE", "TARGETS", "HOSTS", "PORTS", "FAILED", "LONELY"],
                scanners.collect(),
            ),
            (
                "Labels that disagree with traffic",
                vec!["WORKLOAD", "LABELLED", "LIKE", "OWN", "OTHER", "EVIDENCE"],
                mislabels.collect(),
            ),
        ]
    }

    fn lists(&self, text: &mut String) {
        for (title, heads, rows) in self.sections() {
            if rows.is_empty() {
                continue;
            }
            let heads: Vec<String> = heads.into_iter().map(str::to_owned).collect();
            let mut widths: Vec<usize> = heads.iter().map(String::len).collect();
            for row in &rows {
                for (width, cell) in widths.iter_mut().zip(row) {
                    *width = (*width).max(cell.chars().count());
                }
            }
            let _ok = writeln!(text, "\n{title}:");
            for row in std::iter::once(&heads).chain(&rows) {
                let cells: Vec<String> = row
                    .iter()
                    .zip(&widths)
                    .map(|(cell, width)| format!("{cell:width$}", width = *width))
                    .collect();
                let _ok = writeln!(text, "  {}", cells.join("  ").trim_end());
            }
        }
    }

    fn markdown_tables(&self, text: &mut String) {
        for (title, heads, rows) in self.sections() {
            if rows.is_empty() {
                continue;
            }
            let heads: Vec<String> = heads.iter().map(|head| head.to_lowercase()).collect();
            let _ok = writeln!(text, "\n### {title}\n\n| {} |", heads.join(" | "));
            let _ok = writeln!(text, "|{}", " --- |".repeat(heads.len()));
            for row in rows {
                let cells: Vec<String> = row.iter().map(|cell| escaped(cell)).collect();
                let _ok = writeln!(text, "| {} |", cells.join(" | "));
            }
        }
    }
}

/// Title, heads and rows of a table.
type Section = (&'static str, Vec<&'static str>, Vec<Vec<String>>);

/// Cells come from hosts: nothing in them may end the cell or start markup.
fn escaped(cell: &str) -> String {
    let mut clean = String::with_capacity(cell.len());
    for character in cell.chars() {
        match character {
            '|' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '\\' => clean.extend(['\\', character]),
            c if c.is_control() => clean.push(' '),
            c => clean.push(c),
        }
    }
    clean
}

/// Rounded down to a tenth: 99.96 % are not 100 %.
fn floor(percent: f64) -> f64 {
    (percent * 10.0).floor() / 10.0
}

fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

fn some<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.into_iter().map(String::as_str).collect();
    let shown: Vec<&str> = names.iter().take(5).copied().collect();
    match names.len().saturating_sub(shown.len()) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
