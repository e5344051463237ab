//! What the store holds, and how it came to hold it.

use std::io;

use proto::v1;
use serde::Serialize;

use super::{moment, some};
use crate::output::{self, Document, Screen, Table, Tone};

/// One stored object.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Object {
    pub(crate) kind: String,
    pub(crate) name: String,
    /// At which it was last changed.
    pub(crate) revision: u64,
    /// Who changed it last.
    pub(crate) actor: Option<String>,
    /// YAML as applied.
    pub(crate) text: String,
}

/// What the store holds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ObjectList {
    /// Of the store.
    pub(crate) revision: u64,
    pub(crate) objects: Vec<Object>,
}

impl From<v1::StoredObject> for Object {
    fn from(object: v1::StoredObject) -> Self {
        Self {
            kind: object.kind,
            name: object.name,
            revision: object.revision,
            actor: some(object.actor),
            text: object.text,
        }
    }
}

impl Document for ObjectList {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        let mut table = Table::new(&[("KIND", 0), ("NAME", 0), ("REVISION", 0), ("ACTOR", 0)]);
        for object in &self.objects {
            table.row([
                object.kind.clone(),
                object.name.clone(),
                object.revision.to_string(),
                object.actor.clone().unwrap_or_default(),
            ]);
        }
        table.print(screen)
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(
            self.objects
                .iter()
                .map(|object| format!("{}/{}", object.kind, object.name))
                .collect(),
        )
    }
}

/// One change in the history.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct HistoryEntry {
    pub(crate) revision: u64,
    pub(crate) at: Option<String>,
    pub(crate) actor: Option<String>,
    pub(crate) action: String,
    pub(crate) summary: String,
    /// `confirmed`, `pending`, `rolled-back` or `final`.
    pub(crate) state: String,
}

/// Changes, newest first.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct History {
    pub(crate) entries: Vec<HistoryEntry>,
    /// There are more; ask with a higher `--limit`.
    pub(crate) truncated: bool,
}

impl From<v1::HistoryEntry> for HistoryEntry {
    fn from(entry: v1::HistoryEntry) -> Self {
        Self {
            revision: entry.revision,
            at: moment(entry.at),
            actor: some(entry.actor),
            action: entry.action,
            summary: entry.summary,
            state: entry.state,
        }
    }
}

impl Document for History {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        let mut table = Table::new(&[
            ("REVISION", 0),
            ("AT", 0),
            ("ACTOR", 0),
            ("ACTION", 0),
            ("STATE", 0),
            ("SUMMARY", 0),
        ]);
        for entry in &self.entries {
            let tone = match entry.state.as_str() {
                "pending" => Tone::Warn,
                "rolled-back" => Tone::Bad,
                _ => Tone::Plain,
            };
            let plain = |text: &str| (text.to_owned(), Tone::Plain);
            table.row([
                (entry.revision.to_string(), Tone::Plain),
                (output::moment_or_empty(entry.at.as_ref()), Tone::Plain),
                plain(entry.actor.as_deref().unwrap_or_default()),
                plain(&entry.action),
                (entry.state.clone(), tone),
                plain(&entry.summary),
            ]);
        }
        table.print(screen)?;
        super::more(self.truncated, screen)
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(
            self.entries
                .iter()
                .map(|entry| entry.revision.to_string())
                .collect(),
        )
    }
}
