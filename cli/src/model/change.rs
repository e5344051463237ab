//! What a change of policy does, and why a flow passes or not.

use std::io;

use proto::v1;
use serde::Serialize;
use serde_json::Value;

use super::{Past, moment, some, verdict};
use crate::output::{self, Document, Screen, Table, Tone};

/// A problem in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    pub(crate) file: String,
    /// From 1; 0 when the problem has no place.
    pub(crate) line: u64,
    pub(crate) column: u64,
    pub(crate) message: String,
    pub(crate) suggestion: Option<String>,
}

impl From<v1::Problem> for Problem {
    fn from(problem: v1::Problem) -> Self {
        Self {
            file: problem.file,
            line: problem.line.into(),
            column: problem.column.into(),
            message: problem.message,
            suggestion: some(problem.suggestion),
        }
    }
}

impl From<policy::problems::Problem> for Problem {
    fn from(problem: policy::problems::Problem) -> Self {
        Self {
            file: problem.file,
            line: problem.line,
            column: problem.column,
            message: problem.message,
            suggestion: problem.suggestion,
        }
    }
}

impl Problem {
    /// `file:line:column: error: message; suggestion`, as editors understand it.
    pub(crate) fn to_line(&self) -> String {
        let mut line = self.file.clone();
        if self.line > 0 {
            line = format!("{line}:{}:{}", self.line, self.column);
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line = format!("{line}error: {}", self.message);
        match &self.suggestion {
            Some(suggestion) => format!("{line}; {suggestion}"),
            None => line,
        }
    }
}

/// Why nothing was done.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Problems {
    pub(crate) problems: Vec<Problem>,
}

impl From<policy::problems::Problems> for Problems {
    fn from(problems: policy::problems::Problems) -> Self {
        Self {
            problems: problems.0.into_iter().map(Into::into).collect(),
        }
    }
}

impl Document for Problems {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        for problem in &self.problems {
            screen.remark(&problem.to_line())?;
        }
        Ok(())
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(self.problems.iter().map(Problem::to_line).collect())
    }
}

/// What a change does to one object.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Change {
    pub(crate) kind: String,
    pub(crate) name: String,
    /// `added`, `changed`, `removed` or `unchanged`.
    pub(crate) change: String,
    /// Paths of the fields that differ.
    pub(crate) fields: Vec<String>,
}

/// What `apply`, `diff` and `rollback` did or would do.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Apply {
    pub(crate) dry_run: bool,
    /// Of the store, after the change.
    pub(crate) revision: u64,
    pub(crate) changes: Vec<Change>,
    pub(crate) affected_agents: Vec<String>,
    /// Some flow that passes now would be denied.
    pub(crate) denies_more: bool,
    /// Without a confirmation by then, the kernels fall back.
    pub(crate) confirm_deadline: Option<String>,
    /// What to type to make it final.
    pub(crate) confirm_command: Option<String>,
    /// Not empty: nothing was applied.
    pub(crate) problems: Vec<Problem>,
    /// Invariants that were broken before, or that mean nobody.
    pub(crate) warnings: Vec<Problem>,
}

impl Apply {
    /// `confirm` is the command line up to the revision.
    pub(crate) fn new(response: v1::ApplyResponse, dry_run: bool, confirm: &str) -> Self {
        let deadline = moment(response.confirm_deadline).filter(|_| !dry_run);
        Self {
            dry_run,
            revision: response.revision,
            changes: response
                .changes
                .into_iter()
                .map(|change| Change {
                    kind: change.kind,
                    name: change.name,
                    change: change.change,
                    fields: change.fields,
                })
                .collect(),
            affected_agents: response.affected_agents,
            denies_more: response.denies_more,
            confirm_command: deadline
                .as_ref()
                .map(|_| format!("{confirm} --revision {}", response.revision)),
            confirm_deadline: deadline,
            problems: response.problems.into_iter().map(Into::into).collect(),
            warnings: response.warnings.into_iter().map(Into::into).collect(),
        }
    }

    /// Whether any object differs.
    pub(crate) fn has_changes(&self) -> bool {
        self.changes
            .iter()
            .any(|change| change.change != "unchanged")
    }

    fn changes_table(&self) -> Table {
        let mut table = Table::new(&[("", 0), ("KIND", 0), ("NAME", 0), ("FIELDS", 0)]);
        for change in &self.changes {
            let (sign, tone) = match change.change.as_str() {
                "added" => ("+", Tone::Good),
                "changed" => ("~", Tone::Warn),
                "removed" => ("-", Tone::Bad),
                "unchanged" => continue,
                other => (other, Tone::Plain),
            };
            table.row([
                (sign.to_owned(), tone),
                (change.kind.clone(), Tone::Plain),
                (change.name.clone(), Tone::Plain),
                (change.fields.join(", "), Tone::Plain),
            ]);
        }
        table
    }
}

impl Document for Apply {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        for warning in &self.warnings {
            screen.remark(&warning.to_line().replacen(": error: ", ": warning: ", 1))?;
        }
        if !self.has_changes() {
            return screen.line(&format!("no changes; revision {}", self.revision));
        }
        self.changes_table().print(screen)?;
        let unchanged = self
            .changes
            .iter()
            .filter(|change| change.change == "unchanged")
            .count();
        if unchanged > 0 {
            screen.line(&format!("{unchanged} unchanged"))?;
        }
        let agents = agents(&self.affected_agents);
        if self.dry_run {
            screen.line(&format!("nothing was applied; it would concern {agents}"))?;
        } else {
            screen.line(&format!("revision {} goes to {agents}", self.revision))?;
        }
        if self.denies_more {
            let what = if self.dry_run { "would deny" } else { "denies" };
            screen.line(&format!("it {what} flows that pass now"))?;
        }
        if let (Some(deadline), Some(command)) = (&self.confirm_deadline, &self.confirm_command) {
            screen.line(&format!(
                "falls back at {} unless confirmed:",
                output::moment(deadline)
            ))?;
            screen.line(&format!("  {command}"))?;
        }
        Ok(())
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(
            self.changes
                .iter()
                .filter(|change| change.change != "unchanged")
                .map(|change| format!("{}/{}", change.kind, change.name))
                .collect(),
        )
    }
}

fn agents(names: &[String]) -> String {
    const SHOWN: usize = 8;
    if names.is_empty() {
        return "no agent".into();
    }
    let mut text = format!("{}: ", output::counted(names.len(), "agent"));
    let shown: Vec<_> = names.iter().take(SHOWN).map(String::as_str).collect();
    text.push_str(&shown.join(", "));
    if names.len() > SHOWN {
        text.push_str(", …");
    }
    text
}

/// Why a flow passes or not.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Explanation {
    pub(crate) from: String,
    pub(crate) to: String,
    /// `5432/tcp`; ICMP: `type:code/icmp`.
    pub(crate) port: String,
    pub(crate) enforced: &'static str,
    /// With every staged policy enforced.
    pub(crate) draft: &'static str,
    /// That decided the enforced verdict.
    pub(crate) rule: Option<String>,
    /// Every tier at both ends; `null` when the controller gave none.
    pub(crate) walk: Value,
    /// The walk in words.
    pub(crate) text: String,
    /// The record that was asked about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) past: Option<Past>,
}

impl Explanation {
    /// `port` as tables write it.
    pub(crate) fn new(
        from: String,
        to: String,
        port: String,
        response: v1::ExplainResponse,
    ) -> Self {
        Self {
            from,
            to,
            port,
            enforced: verdict(response.enforced_allow),
            draft: verdict(response.draft_allow),
            rule: some(response.rule),
            walk: serde_json::from_str(&response.json).unwrap_or_default(),
            text: response.text,
            past: None,
        }
    }
}

impl Document for Explanation {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        for line in self.past.iter().flat_map(Past::lines) {
            screen.line(&line)?;
        }
        if self.text.is_empty() {
            return screen.line(&format!(
                "{} → {} {}: {} (draft: {}) by {}",
                self.from,
                self.to,
                self.port,
                self.enforced,
                self.draft,
                self.rule.as_deref().unwrap_or("no rule"),
            ));
        }
        screen.line(self.text.trim_end())
    }
}
