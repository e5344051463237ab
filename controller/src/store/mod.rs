//! State: policies, inventory, tokens, isolations, history, behind one revisioned trait.
//!
//! Keys are paths, values are bytes. A transaction changes several keys or none, under
//! preconditions, and gives everything it changed one new revision; revisions only grow. Audit
//! entries are written with the change that they tell of, in one hash chain.

mod sqlite;

use std::future::Future;

use serde::Serialize;

pub use sqlite::{SqliteStore, SqliteWatch};

use crate::sql::SqlError;

/// Number of a committed transaction; grows by one with each.
pub type Revision = u64;

/// A key, its value, and the revision that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// Of its last change.
    pub revision: Revision,
}

/// What must hold for a transaction to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// The key was last written by exactly this revision; 0 = it does not exist.
    At(String, Revision),
    /// No key with this prefix was changed or deleted after this revision.
    UnchangedSince(String, Revision),
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sets a key.
    Put(String, Vec<u8>),
    /// Removes a key; harmless when it does not exist.
    Delete(String),
}

/// What happened, for the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditEntry {
    /// UTC nanoseconds.
    pub at: i64,
    /// Who did it: a SPIFFE id, or `controller`.
    pub actor: String,
    /// What: `policy.apply`, `agent.enroll`, ...
    pub action: String,
    /// To what.
    pub subject: String,
    /// The rest, for people.
    pub detail: String,
}

/// A transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold.
    pub preconditions: Vec<Precondition>,
    /// In order.
    pub ops: Vec<Op>,
    /// Written with the change, and not without it.
    pub audit: Vec<AuditEntry>,
}

/// A change as a watcher sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Of the transaction.
    pub revision: Revision,
    /// The key.
    pub key: String,
    /// Its new value; `None` = deleted.
    pub value: Option<Vec<u8>>,
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody was faster.
    #[error("{key} has changed since (it is at revision {found})")]
    Stale {
        /// Key or prefix.
        key: String,
        /// Its revision; 0 = it does not exist.
        found: Revision,
    },
    /// The watcher asked for what is no longer kept: list again.
    #[error("changes before revision {oldest} are no longer kept")]
    Compacted {
        /// The first that is kept.
        oldest: Revision,
    },
    /// The database failed.
    #[error(transparent)]
    Sql(#[from] SqlError),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error.into())
    }
}

/// The revisioned store.
pub trait Store: Send + Sync + 'static {
    /// Follows changes.
    type Watch: Watch;

    /// Commits durably, or changes nothing. A transaction without changes writes its audit entries
    /// and keeps the revision.
    fn txn(&self, txn: Txn) -> impl Future<Output = Result<Revision, StoreError>> + Send;

    /// One item.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<Item>, StoreError>> + Send;

    /// Every item with a prefix, by key, and the revision at which this was so.
    fn list(
        &self,
        prefix: &str,
    ) -> impl Future<Output = Result<(Revision, Vec<Item>), StoreError>> + Send;

    /// Every change of keys with a prefix after a revision, in order and without gaps.
    fn watch(&self, prefix: &str, after: Revision) -> Self::Watch;
}

/// A stream of changes.
pub trait Watch: Send {
    /// Waits for the next change.
    fn next(&mut self) -> impl Future<Output = Result<Event, StoreError>> + Send;
}
