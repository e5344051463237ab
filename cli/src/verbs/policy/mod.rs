//! `policy`: what needs no controller.

mod conformance;
mod expectations;
mod fmt;
mod import;
mod lint;
mod reach;
mod schema;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use policy::api::Scenario;
use policy::evaluate::evaluate;
use policy::explain::explain;
use policy::filetests::run_tests;
use policy::invariants::check_invariants;
use policy::locate::locate;
use policy::probe::{Probe, ProbeEnd};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::Outcome;
use crate::model::{Explanation, Past, Problems};
use crate::output::{self, Format, Screen};
use crate::sources;
use crate::verbs::explain::Asked;

/// Work with policy files, without a controller: check, test, lint, format, evaluate, import
#[derive(Debug, Args)]
pub(crate) struct Policy {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Eval(Eval),
    Test(Test),
    Check(Check),
    Explain(Explain),
    Fmt(fmt::Fmt),
    Lint(lint::Lint),
    Schema(schema::Schema),
    Import(import::Import),
    Reach(reach::Reach),
    Conformance(conformance::Conformance),
}

/// Answer probes: one JSON line each, in order
#[derive(Debug, Args)]
struct Eval {
    /// Managed networks and workloads
    #[arg(long, value_name = "FILE")]
    inventory: PathBuf,
    /// File or directory; may be repeated
    #[arg(long, value_name = "FILE|DIR", required = true, num_args = 1..)]
    policy: Vec<PathBuf>,
    /// One JSON object a line: id, from, to, protocol, port (ICMP: type, code); - for stdin
    #[arg(long, value_name = "FILE")]
    probes: PathBuf,
    #[command(flatten)]
    moment: Moment,
}

/// Run the `tests` in policy files, as if every policy in them were enforced, and check their invariants
#[derive(Debug, Args)]
struct Test {
    /// Files or directories; - for stdin
    #[arg(value_name = "FILE|DIR", required_unless_present = "policy")]
    files: Vec<PathBuf>,
    /// The same, as `eval` takes them
    #[arg(long, value_name = "FILE|DIR", num_args = 1..)]
    policy: Vec<PathBuf>,
    /// Managed networks and workloads that the tests speak of, besides Workload objects in the files
    #[arg(long, value_name = "FILE")]
    inventory: Option<PathBuf>,
    #[command(flatten)]
    moment: Moment,
}

/// Check that policy files are right, and fit together; invariants among the Workload objects in them
#[derive(Debug, Args)]
struct Check {
    /// Files or directories; - for stdin
    #[arg(value_name = "FILE|DIR", required = true)]
    files: Vec<PathBuf>,
}

/// Explain why a flow passes or not: both ends, every tier, which rule
#[derive(Debug, Args)]
struct Explain {
    /// Managed networks and workloads
    #[arg(long, value_name = "FILE")]
    inventory: PathBuf,
    /// File or directory; may be repeated
    #[arg(long, value_name = "FILE|DIR", required = true)]
    policy: Vec<PathBuf>,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    moment: Moment,
}

#[derive(Debug, Args)]
struct Moment {
    /// As if it were then, RFC 3339 [default: now]
    #[arg(long, value_name = "TIME", value_parser = moment)]
    at: Option<OffsetDateTime>,
}

impl Moment {
    fn get(&self) -> OffsetDateTime {
        self.at.unwrap_or_else(OffsetDateTime::now_utc)
    }
}

impl Policy {
    /// Runs the verb.
    pub(crate) fn run(self, screen: &mut Screen) -> anyhow::Result<Outcome> {
        match self.verb {
            Verb::Eval(verb) => verb.run(screen),
            Verb::Test(verb) => verb.run(screen),
            Verb::Check(verb) => verb.run(screen),
            Verb::Explain(verb) => verb.run(screen),
            Verb::Fmt(verb) => verb.run(screen),
            Verb::Lint(verb) => verb.run(screen),
            Verb::Schema(verb) => verb.run(screen),
            Verb::Import(verb) => verb.run(screen),
            Verb::Reach(verb) => verb.run(screen),
            Verb::Conformance(verb) => verb.run(screen),
        }
    }
}

impl Eval {
    fn run(self, screen: &mut Screen) -> anyhow::Result<Outcome> {
        if !matches!(screen.format(), Format::Table | Format::Json) {
            return Err(screen
                .unsupported("such", "-o json, which is the default")
                .into());
        }
        let inventory = sources::read_file(&self.inventory)?;
        let policies = sources::read(&self.policy)?;
        let probes = sources::read_probes(&self.probes)?;
        match policy::api::eval_probes(&inventory, &policies, &probes, self.moment.get()) {
            Ok(lines) => {
                for line in lines {
                    screen.raw(&line)?;
                    screen.raw("\n")?;
                }
                Ok(Outcome::Done)
            }
            Err(problems) => refuse(problems, screen),
        }
    }
}

impl Test {
    fn run(self, screen: &mut Screen) -> anyhow::Result<Outcome> {
        let inventory = self
            .inventory
            .as_deref()
            .map(sources::read_file)
            .transpose()?;
        let policies = sources::read(&[self.files, self.policy].concat())?;
        let scenario = match Scenario::parse(inventory.as_ref(), &policies) {
            Ok(scenario) => scenario,
            Err(problems) => return refuse(problems, screen),
        };
        let at = self.moment.get();
        let results = run_tests(&scenario.world, &scenario.set, at);
        let invariants = check_invariants(&scenario.world, &scenario.set, at);
        let report = expectations::Report::new(results, invariants);
        screen.show(&report)?;
        Ok(if report.failed == 0 {
            Outcome::Done
        } else {
            Outcome::Refused
        })
    }
}

impl Check {
    fn run(self, screen: &mut Screen) -> anyhow::Result<Outcome> {
        let sources = sources::read(&self.files)?;
        match Scenario::parse(None, &sources) {
            Ok(scenario) => {
                // Without an inventory only Workload objects are there; nobody else is missed.
                let at = OffsetDateTime::now_utc();
                let broken: Vec<_> = check_invariants(&scenario.world, &scenario.set, at)
                    .iter()
                    .filter(|result| result.is_broken())
                    .filter_map(policy::invariants::InvariantResult::problem)
                    .collect();
                if !broken.is_empty() {
                    return refuse(policy::problems::Problems(broken), screen);
                }
                let count = scenario.set.objects().len();
                let files = sources.len();
                if screen.is_table() {
                    screen.line(&format!(
                        "{} in {}: no problem",
                        output::counted(count, "object"),
                        output::counted(files, "file")
                    ))?;
                } else {
                    screen.show(&Problems {
                        problems: Vec::new(),
                    })?;
                }
                Ok(Outcome::Done)
            }
            Err(problems) => refuse(problems, screen),
        }
    }
}

impl Explain {
    fn run(self, screen: &mut Screen) -> anyhow::Result<Outcome> {
        let question = self.asked.question()?;
        let spec = question.spec;
        let inventory = sources::read_file(&self.inventory)?;
        let policies = sources::read(&self.policy)?;
        let scenario = match Scenario::parse(Some(&inventory), &policies) {
            Ok(scenario) => scenario,
            Err(problems) => return refuse(problems, screen),
        };
        let probe = Probe {
            id: String::new(),
            from: ProbeEnd::parse(&question.from),
            to: ProbeEnd::parse(&question.to),
            protocol: u8::try_from(spec.protocol)?,
            port: u16::try_from(spec.port)?,
        };
        let at = self.moment.get();
        let verdict = evaluate(&scenario.world, &scenario.set, &probe, at)?;
        let walk = explain(&scenario.world, &scenario.set, &probe, at)?;
        let text = walk.to_string();
        let walk = serde_json::to_value(walk)?;
        let past = question.record.as_ref().map(|record| {
            Past::new(record, &walk, &[], |rule| {
                locate(&scenario.set, rule).is_some()
            })
        });
        screen.show(&Explanation {
            past,
            from: question.from,
            to: question.to,
            port: output::port(spec.protocol, spec.port),
            enforced: verdict.enforced.name(),
            draft: verdict.draft.name(),
            rule: verdict.rule,
            text,
            walk,
        })?;
        Ok(Outcome::Done)
    }
}

fn refuse(problems: policy::problems::Problems, screen: &mut Screen) -> anyhow::Result<Outcome> {
    screen.show(&Problems::from(problems))?;
    Ok(Outcome::Refused)
}

/// Parses RFC 3339.
pub(super) fn moment(text: &str) -> Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|error| format!("{error}; write it like 2026-11-23T10:00:00Z"))
}
