//! The store in one SQLite file.

use std::collections::VecDeque;
use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::{AuditEntry, Event, Item, Op, Precondition, Revision, Store, StoreError, Txn, Watch};
use crate::sql::{Database, SqlError};

const MIGRATIONS: &[&str] = &["
    CREATE TABLE meta (id INTEGER PRIMARY KEY CHECK (id = 1), revision INTEGER NOT NULL, oldest INTEGER NOT NULL);
    INSERT INTO meta VALUES (1, 0, 1);
    CREATE TABLE items (key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE log (revision INTEGER NOT NULL, part INTEGER NOT NULL, key TEXT NOT NULL, value BLOB,
        PRIMARY KEY (revision, part)) WITHOUT ROWID;
    CREATE TABLE audit (seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL,
        subject TEXT NOT NULL, detail TEXT NOT NULL, hash BLOB NOT NULL);
    CREATE TRIGGER audit_keeps BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'append-only'); END;
    CREATE TRIGGER audit_stays BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'append-only'); END;
"];

/// Revisions whose changes are kept for watchers.
const LOG_REVISIONS: u64 = 50_000;
/// Compaction happens once in so many revisions.
const COMPACT_EVERY: u64 = 1_000;
/// Changes that a watcher reads at once.
const PAGE: u32 = 512;

/// The store in one SQLite file.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    database: Database,
    committed: watch::Sender<Revision>,
}

impl SqliteStore {
    /// Opens or creates the file.
    ///
    /// # Errors
    /// When it cannot be opened or read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = Database::open(path, MIGRATIONS)?;
        let revision = {
            let connection = Connection::open(path)?;
            current(&connection)?
        };
        Ok(Self {
            database,
            committed: watch::Sender::new(revision),
        })
    }

    /// Checks the hash chain of the audit log; the answer is the number of entries, or the first
    /// that does not fit.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn verify_audit(&self) -> Result<Result<u64, u64>, StoreError> {
        self.database.call(|connection| verify(connection)).await
    }

    /// The newest audit entries, newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn audit(&self, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
        self.database
            .call(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT at, actor, action, subject, detail FROM audit ORDER BY seq DESC LIMIT ?1",
                )?;
                let rows = statement.query_map([limit], entry)?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
            .await
    }
}

impl Store for SqliteStore {
    type Watch = SqliteWatch;

    async fn txn(&self, txn: Txn) -> Result<Revision, StoreError> {
        let committed = self.committed.clone();
        self.database
            .call(move |connection| {
                let revision = commit(connection, &txn)?;
                committed.send_if_modified(|last| {
                    let newer = revision > *last;
                    *last = revision;
                    newer
                });
                Ok(revision)
            })
            .await
    }

    async fn get(&self, key: &str) -> Result<Option<Item>, StoreError> {
        let key = key.to_owned();
        self.database
            .call(move |connection| {
                Ok(connection
                    .prepare_cached("SELECT key, value, revision FROM items WHERE key = ?1")?
                    .query_row([key], item)
                    .optional()?)
            })
            .await
    }

    async fn list(&self, prefix: &str) -> Result<(Revision, Vec<Item>), StoreError> {
        let prefix = prefix.to_owned();
        self.database
            .call(move |connection| {
                let transaction = connection.transaction()?;
                let revision = current(&transaction)?;
                let items = {
                    let mut statement = transaction.prepare_cached(
                        "SELECT key, value, revision FROM items
                         WHERE key >= ?1 AND substr(key, 1, length(?1)) = ?1 ORDER BY key",
                    )?;
                    let rows = statement.query_map([&prefix], item)?;
                    rows.collect::<Result<_, _>>()?
                };
                Ok((revision, items))
            })
            .await
    }

    fn watch(&self, prefix: &str, after: Revision) -> SqliteWatch {
        SqliteWatch {
            database: self.database.clone(),
            committed: self.committed.subscribe(),
            prefix: prefix.to_owned(),
            seen: after,
            ready: VecDeque::new(),
        }
    }
}

/// Follows the log of changes.
#[derive(Debug)]
pub struct SqliteWatch {
    database: Database,
    committed: watch::Receiver<Revision>,
    prefix: String,
    seen: Revision,
    ready: VecDeque<Event>,
}

impl Watch for SqliteWatch {
    async fn next(&mut self) -> Result<Event, StoreError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            let newest = *self
                .committed
                .wait_for(|revision| *revision > self.seen)
                .await
                .map_err(|_| SqlError::Closed)?;
            let (prefix, seen) = (self.prefix.clone(), self.seen);
            let (events, seen) = self
                .database
                .call(move |connection| changes(connection, &prefix, seen, newest))
                .await?;
            self.ready.extend(events);
            self.seen = seen;
        }
    }
}

/// A page of changes of whole revisions, and the revision up to which they are complete.
fn changes(
    connection: &mut Connection,
    prefix: &str,
    after: Revision,
    newest: Revision,
) -> Result<(Vec<Event>, Revision), StoreError> {
    let oldest: i64 = connection.query_row("SELECT oldest FROM meta", [], |row| row.get(0))?;
    let oldest = unsigned(oldest);
    if after.saturating_add(1) < oldest {
        return Err(StoreError::Compacted { oldest });
    }
    // A page ends at the end of a revision, so that nothing of it is skipped by the next.
    let end: Option<i64> = connection
        .prepare_cached(
            "SELECT revision FROM log WHERE revision > ?1 ORDER BY revision, part LIMIT 1 OFFSET ?2",
        )?
        .query_row(params![signed(after), PAGE], |row| row.get(0))
        .optional()?;
    let end = end.map_or(newest, unsigned).min(newest.max(after + 1));
    let mut statement = connection.prepare_cached(
        "SELECT revision, key, value FROM log
         WHERE revision > ?1 AND revision <= ?2 AND substr(key, 1, length(?3)) = ?3
         ORDER BY revision, part",
    )?;
    let rows = statement.query_map(params![signed(after), signed(end), prefix], |row| {
        Ok(Event {
            revision: unsigned(row.get(0)?),
            key: row.get(1)?,
            value: row.get(2)?,
        })
    })?;
    Ok((rows.collect::<Result<_, _>>()?, end))
}

fn commit(connection: &mut Connection, txn: &Txn) -> Result<Revision, StoreError> {
    let transaction = connection.transaction()?;
    for precondition in &txn.preconditions {
        check(&transaction, precondition)?;
    }
    let mut revision = current(&transaction)?;
    if !txn.ops.is_empty() {
        revision += 1;
        transaction.execute("UPDATE meta SET revision = ?1", [signed(revision)])?;
        for (part, op) in txn.ops.iter().enumerate() {
            write(&transaction, revision, part, op)?;
        }
        if revision.is_multiple_of(COMPACT_EVERY) && revision > LOG_REVISIONS {
            let oldest = signed(revision - LOG_REVISIONS);
            transaction.execute("DELETE FROM log WHERE revision < ?1", [oldest])?;
            transaction.execute("UPDATE meta SET oldest = ?1", [oldest])?;
        }
    }
    for entry in &txn.audit {
        append(&transaction, entry)?;
    }
    transaction.commit()?;
    Ok(revision)
}

fn check(transaction: &Transaction<'_>, precondition: &Precondition) -> Result<(), StoreError> {
    let (key, found, holds) = match precondition {
        Precondition::At(key, expected) => {
            let found: Option<i64> = transaction
                .prepare_cached("SELECT revision FROM items WHERE key = ?1")?
                .query_row([key], |row| row.get(0))
                .optional()?;
            let found = found.map_or(0, unsigned);
            (key, found, found == *expected)
        }
        Precondition::UnchangedSince(prefix, since) => {
            let found: Option<i64> = transaction
                .prepare_cached(
                    "SELECT max(revision) FROM log
                     WHERE revision > ?2 AND substr(key, 1, length(?1)) = ?1",
                )?
                .query_row(params![prefix, signed(*since)], |row| row.get(0))?;
            let oldest: i64 =
                transaction.query_row("SELECT oldest FROM meta", [], |row| row.get(0))?;
            // What is no longer kept may have been a change: who looked so long ago looks again.
            let found = found.map_or(0, unsigned).max(unsigned(oldest) - 1);
            (prefix, found, found <= *since)
        }
    };
    if holds {
        Ok(())
    } else {
        Err(StoreError::Stale {
            key: key.clone(),
            found,
        })
    }
}

fn write(
    transaction: &Transaction<'_>,
    revision: Revision,
    part: usize,
    op: &Op,
) -> Result<(), StoreError> {
    let (key, value) = match op {
        Op::Put(key, value) => {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO items VALUES (?1, ?2, ?3)")?
                .execute(params![key, value, signed(revision)])?;
            (key, Some(value))
        }
        Op::Delete(key) => {
            transaction
                .prepare_cached("DELETE FROM items WHERE key = ?1")?
                .execute([key])?;
            (key, None)
        }
    };
    transaction
        .prepare_cached("INSERT INTO log VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![
            signed(revision),
            i64::try_from(part).unwrap_or(i64::MAX),
            key,
            value
        ])?;
    Ok(())
}

/// Every entry's hash covers the entry and the hash before it.
fn append(transaction: &Transaction<'_>, entry: &AuditEntry) -> Result<(), StoreError> {
    let last: Option<Vec<u8>> = transaction
        .prepare_cached("SELECT hash FROM audit ORDER BY seq DESC LIMIT 1")?
        .query_row([], |row| row.get(0))
        .optional()?;
    transaction
        .prepare_cached(
            "INSERT INTO audit (at, actor, action, subject, detail, hash) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            entry.at,
            entry.actor,
            entry.action,
            entry.subject,
            entry.detail,
            link(&last.unwrap_or_default(), entry).as_slice()
        ])?;
    Ok(())
}

fn link(last: &[u8], entry: &AuditEntry) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(last);
    // Strings and integers only: this cannot fail.
    hasher.update(serde_json::to_vec(entry).unwrap_or_default());
    hasher.finalize().into()
}

fn verify(connection: &Connection) -> Result<Result<u64, u64>, StoreError> {
    let mut statement = connection
        .prepare("SELECT at, actor, action, subject, detail, hash FROM audit ORDER BY seq")?;
    let mut rows = statement.query([])?;
    let (mut count, mut last) = (0, Vec::new());
    while let Some(row) = rows.next()? {
        let hash: Vec<u8> = row.get(5)?;
        count += 1;
        if link(&last, &entry(row)?).as_slice() != hash {
            return Ok(Err(count));
        }
        last = hash;
    }
    Ok(Ok(count))
}

fn entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<AuditEntry> {
    Ok(AuditEntry {
        at: row.get(0)?,
        actor: row.get(1)?,
        action: row.get(2)?,
        subject: row.get(3)?,
        detail: row.get(4)?,
    })
}

fn item(row: &rusqlite::Row<'_>) -> rusqlite::Result<Item> {
    Ok(Item {
        key: row.get(0)?,
        value: row.get(1)?,
        revision: unsigned(row.get(2)?),
    })
}

fn current(connection: &Connection) -> Result<Revision, StoreError> {
    Ok(unsigned(connection.query_row(
        "SELECT revision FROM meta",
        [],
        |row| row.get(0),
    )?))
}

fn signed(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn unsigned(revision: i64) -> Revision {
    u64::try_from(revision).unwrap_or(0)
}
