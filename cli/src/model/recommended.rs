//! What `recommend` answers.

use std::io;

use policy::recommend::{Recommendation, RecordCount, Report};
use serde::Serialize;

use crate::output::{Document, Screen};
use crate::records::Skipped;

/// How much was read.
#[derive(Debug, Serialize)]
pub(crate) struct Read {
    /// Records that were taken.
    records: u64,
    /// Records before `--since` or after `--until`.
    outside: u64,
    /// Records without any time.
    timeless: u64,
    /// Flows that the recorder says it missed.
    missed: u64,
    /// Bad records that were left out.
    bad: u64,
    /// A list in the files was cut short by its `--limit`.
    truncated: bool,
}

/// Policies and the report on them.
#[derive(Debug, Serialize)]
pub(crate) struct Recommended {
    /// As `apply` takes them.
    documents: Vec<serde_json::Value>,
    report: Report,
    input: Read,
    /// The report for a terminal.
    #[serde(skip)]
    pub(crate) text: String,
    #[serde(skip)]
    markdown: String,
    #[serde(skip)]
    names: Vec<String>,
}

impl Recommended {
    /// For printing.
    pub(crate) fn new(found: &Recommendation, count: RecordCount, skipped: Skipped) -> Self {
        let input = Read {
            records: count.taken,
            outside: count.outside,
            timeless: count.timeless,
            missed: count.missed,
            bad: skipped.count,
            truncated: skipped.truncated,
        };
        let remarks = input.remarks();
        let text: String = remarks.iter().map(|remark| format!("{remark}\n")).collect();
        let list: String = remarks
            .iter()
            .map(|remark| format!("\n> {remark}\n"))
            .collect();
        Self {
            documents: found
                .objects
                .iter()
                .map(policy::model::Object::to_json)
                .collect(),
            text: text + &found.report.to_text(),
            markdown: found.report.to_markdown() + &list,
            names: found
                .objects
                .iter()
                .map(policy::model::Object::id)
                .collect(),
            report: found.report.clone(),
            input,
        }
    }
}

impl Read {
    /// What makes the answer less than whole.
    fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        if self.records == 0 {
            remarks.push("there is no traffic to recommend anything from".to_owned());
        }
        if self.truncated {
            remarks.push(
                "the recording was cut short by its --limit: rules will be missing".to_owned(),
            );
        }
        for (count, what) in [
            (self.missed, "flows were missed by the recorder"),
            (self.bad, "bad records were left out"),
            (self.timeless, "records without a time were left out"),
        ] {
            if count > 0 {
                remarks.push(format!("{count} {what}"));
            }
        }
        remarks
    }
}

impl Document for Recommended {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        screen.line(self.text.trim_end())
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(self.names.clone())
    }

    fn markdown(&self) -> Option<String> {
        Some(self.markdown.clone())
    }
}
