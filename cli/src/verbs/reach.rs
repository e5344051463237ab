//! What the two `reach` verbs share: the question and how its answer is printed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use clap::Args;
use policy::reach::{Group, Lens, Piece, Report, Request, RuleAt};
use serde::Serialize;

use crate::Outcome;
use crate::output::{self, Document, Screen, Table, Tone};

/// Rows of a table; `-o json` has them all.
const SHOWN: usize = 50;

/// The question.
#[derive(Debug, Args)]
pub(super) struct Asked {
    /// Who opens the flow: a selector (`env=dev,tier in (web, db),!legacy`), a workload, an address, a CIDR, `group:NAME`, world, unmanaged,
    /// managed or any; may be repeated
    #[arg(long, value_name = "WHO", required_unless_present = "to")]
    from: Vec<String>,
    /// Who answers
    #[arg(long, value_name = "WHO")]
    to: Vec<String>,
    /// Only this port: `tcp/443`, `udp/8000-8080`, `icmp/8`, `udp`; may be repeated
    #[arg(long, value_name = "PORT")]
    port: Vec<String>,
    /// What counts: `enforced` passes now; `evaluated` the enforced policies, as if no workload only observed; `draft` as if everything staged were enforced too
    #[arg(long, value_enum, default_value_t)]
    lens: LensName,
    /// Over any number of workloads: how far somebody comes who takes over one after the other
    #[arg(long)]
    transitive: bool,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum LensName {
    #[default]
    Enforced,
    Evaluated,
    Draft,
}

impl Asked {
    /// For the engine.
    pub(super) fn request(&self) -> Request {
        Request {
            from: self.from.clone(),
            to: self.to.clone(),
            ports: self.port.clone(),
            lens: match self.lens {
                LensName::Enforced => Lens::Enforced,
                LensName::Evaluated => Lens::Evaluated,
                LensName::Draft => Lens::Draft,
            },
            transitive: self.transitive,
        }
    }

    /// The answer as an exit code: a list is no answer of yes or no.
    pub(super) fn outcome(&self, reachable: bool) -> Outcome {
        let list = self.from.is_empty() || self.to.is_empty();
        if reachable && !list {
            Outcome::Changes
        } else {
            Outcome::Done
        }
    }
}

/// The answer.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct Answer(pub(super) Report);

impl Document for Answer {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        let report = &self.0;
        self.head(screen)?;
        for step in &report.way {
            screen.line(&format!("  {step}"))?;
        }
        if !report.reached.is_empty() {
            let mut table = Table::new(&[("WORKLOAD", 0), ("HOPS", 0), ("PATH", 0)]);
            for reached in report.reached.iter().take(SHOWN) {
                let path: Vec<String> = reached
                    .path
                    .iter()
                    .map(|step| {
                        format!(
                            "{} → {} {}",
                            step.from,
                            step.to,
                            output::port(step.protocol.into(), step.port.into())
                        )
                    })
                    .collect();
                table.row([
                    reached.name.clone(),
                    reached.hops.to_string(),
                    path.join(", "),
                ]);
            }
            table.print(screen)?;
            return left_out(screen, report.reached.len());
        }
        let rows = rows(&report.pieces);
        if rows.is_empty() {
            return Ok(());
        }
        let mut table = Table::new(&[
            ("FROM", 0),
            ("TO", 0),
            ("PORTS", 0),
            ("EGRESS", 0),
            ("INGRESS", 0),
        ]);
        for row in rows.iter().take(SHOWN) {
            table.row(row.clone());
        }
        table.print(screen)?;
        left_out(screen, rows.len() + report.left_out)
    }
}

impl Answer {
    /// Yes or no, and the counter-example.
    fn head(&self, screen: &mut Screen) -> io::Result<()> {
        let report = &self.0;
        let (word, tone) = if report.reachable {
            ("reachable", Tone::Bad)
        } else {
            ("not reachable", Tone::Good)
        };
        screen.toned(word, tone)?;
        let over = if report.transitive {
            ", over any number of workloads"
        } else {
            ""
        };
        screen.line(&format!(
            ": {} ({}) → {} ({}) on {}, {}{over}",
            report.from,
            output::counted(report.sources, "workload"),
            report.to,
            output::counted(report.destinations, "workload"),
            report.ports,
            report.lens.name(),
        ))?;
        match &report.example {
            Some(example) => screen.line(&format!("  for example {example}")),
            None => Ok(()),
        }
    }
}

/// A piece, with the names of its workloads on both sides.
type Named<'a> = (&'a Piece, BTreeSet<&'a str>, BTreeSet<&'a str>);

/// Rows for people. An address of each family makes a piece of its own, which says nothing new where
/// another piece has its ends, ports and rules.
fn rows(pieces: &[Piece]) -> BTreeSet<[String; 5]> {
    let mut ends: BTreeMap<[String; 3], Vec<Named<'_>>> = BTreeMap::new();
    for piece in pieces {
        let key = [
            piece.ports.to_string(),
            said(piece.egress.as_ref()),
            said(piece.ingress.as_ref()),
        ];
        let pieces = ends.entry(key).or_default();
        pieces.push((piece, names(&piece.from), names(&piece.to)));
    }
    let mut rows = BTreeSet::new();
    for ([ports, egress, ingress], pieces) in ends {
        for (at, (piece, from, to)) in pieces.iter().enumerate() {
            let has_networks = !(piece.from.networks.is_empty() && piece.to.networks.is_empty());
            let covered = |(other_at, (_, other_from, other_to)): (usize, &Named<'_>)| {
                let within = from.is_subset(other_from) && to.is_subset(other_to);
                let same = from.len() == other_from.len() && to.len() == other_to.len();
                other_at != at && within && (!same || other_at < at)
            };
            if has_networks || !pieces.iter().enumerate().any(covered) {
                rows.insert([
                    piece.from.to_string(),
                    piece.to.to_string(),
                    ports.clone(),
                    egress.clone(),
                    ingress.clone(),
                ]);
            }
        }
    }
    rows
}

fn names(group: &Group) -> BTreeSet<&str> {
    let names = group.workloads.iter().map(|member| member.name.as_str());
    names.collect()
}

fn said(rule: Option<&RuleAt>) -> String {
    match rule {
        None => "not managed".to_owned(),
        Some(rule) if rule.observed => format!("observed: {}", rule.rule),
        Some(rule) => rule.rule.clone(),
    }
}

fn left_out(screen: &mut Screen, rows: usize) -> io::Result<()> {
    match rows.saturating_sub(SHOWN) {
        0 => Ok(()),
        more => screen.line(&format!("and {more} more; -o json has them")),
    }
}
