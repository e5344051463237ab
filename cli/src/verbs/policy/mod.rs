//! `policy`: what needs no controller.

mod expectations;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use policy::api::Scenario;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::Outcome;
use crate::model::Problems;
use crate::output::{self, Format, Screen};
use crate::sources;

/// Evaluate, test and check policy files without a controller
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

/// Run the `tests` in policy files, as if every policy in them were enforced
#[derive(Debug, Args)]
struct Test {
    /// Files or directories; - for stdin
    #[arg(value_name = "FILE|DIR", required = true)]
    files: Vec<PathBuf>,
    /// Managed networks and workloads that the tests speak of, besides Workload objects in the files
    #[arg(long, value_name = "FILE")]
    inventory: Option<PathBuf>,
    #[command(flatten)]
    moment: Moment,
}

/// Check that policy files are right, and fit together
#[derive(Debug, Args)]
struct Check {
    /// Files or directories; - for stdin
    #[arg(value_name = "FILE|DIR", required = true)]
    files: Vec<PathBuf>,
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
        let policies = sources::read(&self.files)?;
        let scenario = match Scenario::parse(inventory.as_ref(), &policies) {
            Ok(scenario) => scenario,
            Err(problems) => return refuse(problems, screen),
        };
        let report = expectations::run(&scenario, self.moment.get());
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

fn refuse(problems: policy::problems::Problems, screen: &mut Screen) -> anyhow::Result<Outcome> {
    screen.show(&Problems::from(problems))?;
    Ok(Outcome::Refused)
}

fn moment(text: &str) -> Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|error| format!("{error}; write it like 2026-11-23T10:00:00Z"))
}
