//! `policy lint`: what is allowed and still a mistake.

mod sarif;

use std::io;
use std::path::PathBuf;

use clap::Args;
use policy::api::Scenario;
use policy::lint::{Finding, Level, Settings, lint, lints, parse_flows};
use serde::Serialize;
use time::{Duration, OffsetDateTime};

use super::Moment;
use crate::Outcome;
use crate::error::Failure;
use crate::output::{self, Document, Format, Screen, Tone};
use crate::sources;

/// Find what is allowed in policy files and still is a mistake, or may be one
///
/// Shadowed, redundant and contradicting rules by exact reasoning about sets of flows; what is open to the world,
/// closed for all, or open at one end only; deadlines, owners, names. With an inventory, selectors that select
/// nobody; with recorded flows too, rules that are wider than the traffic. `# cofferdam-lint: ignore ID: reason` in
/// the file suppresses a finding.
#[derive(Debug, Args)]
pub(super) struct Lint {
    /// Files or directories; - for stdin
    #[arg(value_name = "FILE|DIR", required_unless_present = "list")]
    files: Vec<PathBuf>,
    /// Managed networks and workloads, besides Workload objects in the files
    #[arg(long, value_name = "FILE")]
    inventory: Option<PathBuf>,
    /// Recorded flows: what `cofferdam flows -o json` prints
    #[arg(long, value_name = "FILE", requires = "inventory")]
    flows: Option<PathBuf>,
    /// Exit code 1 when there is a finding of this level or worse
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "error")]
    deny: Deny,
    /// Announce deadlines that are nearer than this
    #[arg(long, value_name = "DAYS", default_value_t = 7)]
    expires_within: u16,
    /// Show findings that the files suppress, too
    #[arg(long)]
    suppressed: bool,
    /// Print every kind of finding and what it means
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    moment: Moment,
}

/// From which level on a finding is a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Deny {
    /// Every finding.
    Note,
    /// Warnings and errors.
    Warning,
    /// Errors.
    Error,
    /// None.
    Never,
}

impl Deny {
    fn refuses(self, level: Level) -> bool {
        match self {
            Self::Note => true,
            Self::Warning => level >= Level::Warning,
            Self::Error => level >= Level::Error,
            Self::Never => false,
        }
    }
}

/// The findings.
#[derive(Debug, Serialize)]
struct Report {
    findings: Vec<Item>,
    errors: usize,
    warnings: usize,
    notes: usize,
    suppressed: usize,
}

#[derive(Debug, Serialize)]
struct Item {
    id: &'static str,
    level: Level,
    object: String,
    rule: Option<String>,
    file: String,
    line: u64,
    column: u64,
    message: String,
    fix: String,
    related: Vec<Related>,
    /// The reason that the file gives; `null` when the finding counts.
    suppressed: Option<String>,
    fingerprint: String,
}

#[derive(Debug, Serialize)]
struct Related {
    text: String,
    file: String,
    line: u64,
    column: u64,
}

impl From<&Finding> for Item {
    fn from(finding: &Finding) -> Self {
        Self {
            id: finding.id,
            level: finding.level,
            object: finding.object.clone(),
            rule: finding.rule.clone(),
            file: finding.place.file.to_string(),
            line: finding.place.line,
            column: finding.place.column,
            message: finding.message.clone(),
            fix: finding.fix.clone(),
            related: (finding.related.iter())
                .map(|related| Related {
                    text: related.text.clone(),
                    file: related.place.file.to_string(),
                    line: related.place.line,
                    column: related.place.column,
                })
                .collect(),
            suppressed: finding.suppressed.as_ref().map(|own| own.reason.clone()),
            fingerprint: finding.fingerprint.clone(),
        }
    }
}

impl Document for Report {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        for item in &self.findings {
            screen.line(&format!("{}:{}:{}", item.file, item.line, item.column))?;
            let tone = match (item.level, &item.suppressed) {
                (_, Some(_)) | (Level::Note, None) => Tone::Plain,
                (Level::Warning, None) => Tone::Warn,
                (Level::Error, None) => Tone::Bad,
            };
            screen.raw("  ")?;
            screen.toned(item.level.name(), tone)?;
            let about = item.rule.as_deref().unwrap_or(&item.object);
            screen.line(&format!("  {} [{}]: {}", about, item.id, item.message))?;
            match &item.suppressed {
                Some(reason) => screen.line(&format!("    suppressed: {reason}"))?,
                None => screen.line(&format!("    fix: {}", item.fix))?,
            }
            for related in &item.related {
                screen.line(&format!(
                    "    see {}:{}:{}: {}",
                    related.file, related.line, related.column, related.text
                ))?;
            }
        }
        screen.line(&format!(
            "{}, {}, {}; {} suppressed",
            output::counted(self.errors, "error"),
            output::counted(self.warnings, "warning"),
            output::counted(self.notes, "note"),
            self.suppressed
        ))
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(
            self.findings
                .iter()
                .map(|item| item.id.to_owned())
                .collect(),
        )
    }
}

/// Every kind of finding.
#[derive(Debug, Serialize)]
struct Catalogue {
    lints: Vec<Kind>,
}

#[derive(Debug, Serialize)]
struct Kind {
    id: &'static str,
    level: Level,
    title: &'static str,
    help: &'static str,
}

impl Document for Catalogue {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        for kind in &self.lints {
            screen.line(&format!(
                "{} ({}): {}",
                kind.id,
                kind.level.name(),
                kind.title
            ))?;
            screen.line(&format!("    {}", kind.help))?;
        }
        Ok(())
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(self.lints.iter().map(|kind| kind.id.to_owned()).collect())
    }
}

impl Lint {
    /// Runs the verb.
    pub(super) fn run(self, screen: &mut Screen) -> anyhow::Result<Outcome> {
        if self.list {
            let kind = |lint: &policy::lint::Lint| Kind {
                id: lint.id,
                level: lint.level,
                title: lint.title,
                help: lint.help,
            };
            screen.show(&Catalogue {
                lints: lints().iter().map(kind).collect(),
            })?;
            return Ok(Outcome::Done);
        }
        let inventory = self
            .inventory
            .as_deref()
            .map(sources::read_file)
            .transpose()?;
        let files = sources::read(&self.files)?;
        let flows = self
            .flows
            .as_deref()
            .map(sources::read_probes)
            .transpose()?;
        let scenario = match Scenario::parse(inventory.as_ref(), &files) {
            Ok(scenario) => scenario,
            Err(problems) => return super::refuse(problems, screen),
        };
        let talks = match flows.as_ref().map(parse_flows).transpose() {
            Ok(talks) => talks.unwrap_or_default(),
            Err(problems) => return super::refuse(problems, screen),
        };
        if flows.is_some() && talks.is_empty() {
            return Err(Failure::new(
                "the file of flows holds no flow",
                "give what `cofferdam flows -o json` prints",
            )
            .into());
        }
        let at = self.moment.get();
        let findings = self.findings(&scenario, &files, &talks, at);
        let denied = (findings.iter())
            .any(|finding| finding.suppressed.is_none() && self.deny.refuses(finding.level));
        if screen.format() == Format::Sarif {
            screen.raw(&serde_json::to_string_pretty(&sarif::log(&findings))?)?;
            screen.raw("\n")?;
        } else {
            screen.show(&self.report(&findings))?;
        }
        Ok(if denied {
            Outcome::Refused
        } else {
            Outcome::Done
        })
    }

    fn findings(
        &self,
        scenario: &Scenario,
        files: &[policy::source::Source],
        talks: &[policy::lint::Talk],
        at: OffsetDateTime,
    ) -> Vec<Finding> {
        let settings = Settings {
            soon: Duration::days(self.expires_within.into()),
            ..Settings::at(at)
        };
        // Without an inventory nothing can be said of who is there.
        let world = self.inventory.is_some().then_some(&scenario.world);
        lint(&scenario.set, files, world, talks, &settings)
    }

    fn report(&self, findings: &[Finding]) -> Report {
        let of = |level| {
            let counts =
                |finding: &&Finding| finding.suppressed.is_none() && finding.level == level;
            findings.iter().filter(counts).count()
        };
        Report {
            findings: (findings.iter())
                .filter(|finding| self.suppressed || finding.suppressed.is_none())
                .map(Item::from)
                .collect(),
            errors: of(Level::Error),
            warnings: of(Level::Warning),
            notes: of(Level::Note),
            suppressed: findings
                .iter()
                .filter(|finding| finding.suppressed.is_some())
                .count(),
        }
    }
}
