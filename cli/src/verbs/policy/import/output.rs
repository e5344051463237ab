//! What an import prints: the policy, and the report of every source rule.

use std::fs;
use std::io;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use policy::brownfield::Imported;
use policy::brownfield::report::{Counts, Item, Outcome as RuleOutcome};
use policy::set::PolicySet;
use serde::Serialize;
use serde_json::Value;

use crate::Outcome;
use crate::output::{self, Document, Format, Screen, to_yaml};

/// Where the report goes.
#[derive(Debug, Args)]
pub(super) struct Output {
    /// Write the report of every source rule to a file, as JSON if it ends in .json; - prints it in place
    /// of the policy
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// What became of every rule of the source.
#[derive(Debug, Serialize)]
struct Report {
    items: Vec<Item>,
    remarks: Vec<String>,
    counts: Counts,
}

/// Policy and report in one document.
#[derive(Debug, Serialize)]
struct Everything {
    objects: Vec<Value>,
    report: Report,
}

impl Output {
    /// Prints policy and report as asked.
    pub(super) fn write(self, imported: Imported, screen: &mut Screen) -> anyhow::Result<Outcome> {
        // What is printed has to be what `policy check` accepts.
        PolicySet::build(imported.objects.clone())?;
        let objects: Vec<Value> = imported
            .objects
            .iter()
            .map(policy::model::Object::to_json)
            .collect();
        let report = Report {
            counts: imported.report.counts(),
            items: imported.report.items,
            remarks: imported.report.remarks,
        };
        let apart = self
            .report
            .as_ref()
            .is_some_and(|path| path.as_os_str() == "-");
        if let Some(path) = self.report.filter(|_| !apart) {
            let text = if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                format!("{}\n", serde_json::to_string_pretty(&report)?)
            } else {
                report.lines(true).join("\n") + "\n"
            };
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        if apart {
            screen.show(&report)?;
            return Ok(Outcome::Done);
        }
        match screen.format() {
            Format::Json => screen.show(&Everything { objects, report })?,
            Format::Name => {
                for object in &imported.objects {
                    screen.line(&object.id())?;
                }
            }
            Format::Markdown => {
                return Err(screen.unsupported("-o markdown", "-o yaml").into());
            }
            Format::Sarif => return Err(screen.unsupported("-o sarif", "-o json").into()),
            Format::Table | Format::Yaml => {
                for object in &objects {
                    screen.raw("---\n")?;
                    screen.raw(&to_yaml(object))?;
                }
                for line in report.lines(false) {
                    screen.remark(&line)?;
                }
            }
        }
        Ok(Outcome::Done)
    }
}

impl Report {
    /// What is not exact (or everything), the remarks, and the counts.
    fn lines(&self, everything: bool) -> Vec<String> {
        let mut lines = Vec::new();
        for item in &self.items {
            if item.outcome == RuleOutcome::Exact && !everything {
                continue;
            }
            lines.push(format!(
                "{}: {}: {}: {}",
                item.file,
                item.place,
                item.outcome.name(),
                item.rule
            ));
            if let Some(reason) = &item.reason {
                lines.push(format!("    {reason}"));
            }
            if everything && !item.carried_as.is_empty() {
                lines.push(format!("    as {}", item.carried_as.join(", ")));
            }
        }
        lines.extend(self.remarks.iter().map(|remark| format!("note: {remark}")));
        let counts = &self.counts;
        lines.push(format!(
            "{}: {} exact, {} narrower, {} wider, {} not carried over",
            output::counted(counts.total, "rule"),
            counts.exact,
            counts.narrower,
            counts.wider,
            counts.not_carried_over
        ));
        lines
    }
}

impl Document for Report {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        for line in self.lines(true) {
            screen.line(&line)?;
        }
        Ok(())
    }
}

impl Document for Everything {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        self.report.table(screen)
    }
}
