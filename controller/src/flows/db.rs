//! Flows in one SQLite file of their own: a flood of records does not hold up policy.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use prost::Message as _;
use proto::v1;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::merge::{Delta, merge};
use super::{Batch, Flow};
use crate::detect::{Detectors, Finding};
use crate::sql::{Database, SqlError};

const MIGRATIONS: &[&str] = &["
    CREATE TABLE hosts (host TEXT PRIMARY KEY, sequence INTEGER NOT NULL, lost_batches INTEGER NOT NULL,
        refused_batches INTEGER NOT NULL, lost_records INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE flows (id INTEGER PRIMARY KEY, host TEXT NOT NULL, uid TEXT NOT NULL, updated INTEGER NOT NULL,
        source TEXT NOT NULL, destination TEXT NOT NULL, source_address TEXT NOT NULL, destination_address TEXT NOT NULL,
        protocol INTEGER NOT NULL, port INTEGER NOT NULL, denied INTEGER NOT NULL, closed INTEGER NOT NULL,
        record BLOB NOT NULL, UNIQUE (host, uid));
    CREATE INDEX flows_updated ON flows (updated);
    CREATE INDEX flows_closed ON flows (closed, updated);
    CREATE TABLE edges (source TEXT NOT NULL, destination TEXT NOT NULL, protocol INTEGER NOT NULL, port INTEGER NOT NULL,
        side INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, flows INTEGER NOT NULL,
        packets INTEGER NOT NULL, bytes INTEGER NOT NULL, allowed INTEGER NOT NULL, denied INTEGER NOT NULL,
        PRIMARY KEY (source, destination, protocol, port, side)) WITHOUT ROWID;
    CREATE TABLE findings (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, finding BLOB NOT NULL);
"];

/// What is counted beside the flows themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ingested {
    /// Batches that the numbering says are missing.
    pub gap: u64,
    /// Open flows forgotten because too many were open.
    pub forgotten_open: u64,
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Durable now.
    Stored(Ingested),
    /// Was durable before: it counts once.
    Repeated,
}

/// The database of flows, with the detectors that read along.
#[derive(Clone, Debug)]
pub struct FlowDb {
    pub(super) database: Database,
    detectors: Arc<Mutex<Detectors>>,
    max_records: u32,
}

impl FlowDb {
    /// Opens or creates the file; the detectors read again what is kept.
    ///
    /// # Errors
    /// When it cannot be opened or read.
    pub async fn open(
        path: &Path,
        max_records: u32,
        detectors: Detectors,
    ) -> Result<Self, SqlError> {
        let database = Database::open(path, MIGRATIONS)?;
        let detectors = Arc::new(Mutex::new(detectors));
        let readers = detectors.clone();
        database
            .call(move |connection| {
                let mut detectors = readers.lock().unwrap_or_else(PoisonError::into_inner);
                let mut statement =
                    connection.prepare("SELECT record FROM flows ORDER BY updated")?;
                let mut rows = statement.query([])?;
                while let Some(row) = rows.next()? {
                    if let Some(flow) = decode(row.get(0)?) {
                        // What was found then is stored.
                        detectors.observe(&flow);
                    }
                }
                detectors.forget_unsaved();
                Ok::<_, SqlError>(())
            })
            .await?;
        Ok(Self {
            database,
            detectors,
            max_records,
        })
    }

    /// The last durable batch of an agent; 0 = none.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn sequence(&self, host: &str) -> Result<u64, SqlError> {
        let host = host.to_owned();
        self.database
            .call(move |connection| Ok(sequence(connection, &host)?))
            .await
    }

    /// Stores some batches in one transaction. The answer is one outcome for each, and what the
    /// detectors found.
    ///
    /// # Errors
    /// When the database fails; then nothing of any batch is stored.
    pub async fn ingest(
        &self,
        batches: Arc<Vec<Batch>>,
    ) -> Result<(Vec<Outcome>, Vec<Finding>), SqlError> {
        let (detectors, max_records) = (self.detectors.clone(), self.max_records);
        self.database
            .call(move |connection| {
                let mut detectors = detectors.lock().unwrap_or_else(PoisonError::into_inner);
                let transaction = connection.transaction()?;
                let mut outcomes = Vec::with_capacity(batches.len());
                for batch in batches.iter() {
                    outcomes.push(store(&transaction, batch, &mut detectors)?);
                }
                let forgotten_open = evict(&transaction, max_records)?;
                if let Some(Outcome::Stored(ingested)) = outcomes.last_mut() {
                    ingested.forgotten_open = forgotten_open;
                }
                let mut found = Vec::new();
                for finding in detectors.unsaved() {
                    let bytes = v1::Finding::from(finding).encode_to_vec();
                    let new = transaction
                        .prepare_cached(
                            "INSERT OR IGNORE INTO findings (id, finding) VALUES (?1, ?2)",
                        )?
                        .execute(params![finding.id, bytes])?;
                    if new > 0 {
                        found.push(finding.clone());
                    }
                }
                transaction.commit()?;
                // Not before the commit: what was found must not be lost with a full disk.
                detectors.forget_unsaved();
                Ok((outcomes, found))
            })
            .await
    }
}

fn sequence(connection: &Connection, host: &str) -> rusqlite::Result<u64> {
    let found: Option<i64> = connection
        .prepare_cached("SELECT sequence FROM hosts WHERE host = ?1")?
        .query_row([host], |row| row.get(0))
        .optional()?;
    Ok(found.map_or(0, |sequence| u64::try_from(sequence).unwrap_or(0)))
}

fn store(
    transaction: &Transaction<'_>,
    batch: &Batch,
    detectors: &mut Detectors,
) -> Result<Outcome, SqlError> {
    let last = sequence(transaction, &batch.host)?;
    if batch.sequence <= last {
        return Ok(Outcome::Repeated);
    }
    let gap = batch.sequence - last - 1;
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    transaction
        .prepare_cached(
            "INSERT INTO hosts VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (host) DO UPDATE SET
             sequence = excluded.sequence, lost_batches = lost_batches + excluded.lost_batches,
             refused_batches = refused_batches + excluded.refused_batches,
             lost_records = lost_records + excluded.lost_records",
        )?
        .execute(params![
            batch.host,
            number(batch.sequence),
            number(gap),
            batch.refused,
            number(batch.lost.min(1 << 48))
        ])?;
    let newest: Option<i64> =
        transaction.query_row("SELECT max(updated) FROM flows", [], |row| row.get(0))?;
    let mut updated = newest.unwrap_or(0);
    for flow in &batch.flows {
        updated += 1;
        flow_row(transaction, flow, updated)?;
        detectors.observe(flow);
    }
    Ok(Outcome::Stored(Ingested {
        gap,
        forgotten_open: 0,
    }))
}

fn flow_row(transaction: &Transaction<'_>, flow: &Flow, updated: i64) -> Result<(), SqlError> {
    let old: Option<Vec<u8>> = transaction
        .prepare_cached("SELECT record FROM flows WHERE host = ?1 AND uid = ?2")?
        .query_row([&flow.record.host, &flow.record.uid], |row| row.get(0))
        .optional()?;
    let old = old.and_then(|bytes| v1::FlowRecord::decode(bytes.as_slice()).ok());
    let (merged, delta) = merge(old.as_ref(), flow.record.clone());
    let merged = Flow {
        record: merged,
        ..flow.clone()
    };
    let (from, to) = (merged.from(), merged.to());
    // A denial stands for itself: nothing more of it is under way that could be forgotten.
    let closed = merged.record.closed || merged.record.denial;
    transaction
        .prepare_cached(
            "INSERT INTO flows (host, uid, updated, source, destination, source_address, destination_address,
             protocol, port, denied, closed, record) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
             ON CONFLICT (host, uid) DO UPDATE SET updated = excluded.updated, denied = excluded.denied,
             closed = excluded.closed, record = excluded.record",
        )?
        .execute(params![
            merged.record.host,
            merged.record.uid,
            updated,
            from,
            to,
            merged.initiator.to_string(),
            merged.responder.to_string(),
            merged.protocol,
            merged.port,
            !merged.record.allowed,
            closed,
            merged.record.encode_to_vec()
        ])?;
    edge_row(transaction, &merged, &from, &to, delta)
}

fn edge_row(
    transaction: &Transaction<'_>,
    flow: &Flow,
    from: &str,
    to: &str,
    delta: Delta,
) -> Result<(), SqlError> {
    transaction
        .prepare_cached(
            "INSERT INTO edges VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
             ON CONFLICT DO UPDATE SET first = min(first, excluded.first), last = max(last, excluded.last),
             flows = flows + excluded.flows, packets = packets + excluded.packets, bytes = bytes + excluded.bytes,
             allowed = allowed + excluded.allowed, denied = denied + excluded.denied",
        )?
        .execute(params![
            from,
            to,
            flow.protocol,
            flow.port,
            flow.egress,
            flow.first_seen,
            flow.last_seen,
            delta.flows,
            delta.packets,
            delta.bytes,
            delta.allowed,
            delta.denied
        ])?;
    Ok(())
}

/// Keeps the number of records bounded. Closed flows go first: of an open one a further record may
/// come, and would then be counted as a whole again.
fn evict(transaction: &Transaction<'_>, max_records: u32) -> Result<u64, SqlError> {
    let count: i64 = transaction
        .prepare_cached("SELECT count(*) FROM flows")?
        .query_row([], |row| row.get(0))?;
    let surplus = count - i64::from(max_records);
    if surplus <= 0 {
        return Ok(0);
    }
    let delete = |condition: &str, limit: i64| {
        transaction
            .prepare_cached(&format!(
                "DELETE FROM flows WHERE id IN (SELECT id FROM flows {condition} ORDER BY updated LIMIT ?1)"
            ))?
            .execute([limit])
    };
    let closed = delete("WHERE closed = 1", surplus)?;
    let left = surplus - i64::try_from(closed).unwrap_or(0);
    // Open flows may be as many again before the oldest of them are forgotten.
    let over = left - i64::from(max_records);
    let forgotten = if over > 0 { delete("", over)? } else { 0 };
    Ok(u64::try_from(forgotten).unwrap_or(0))
}

fn decode(bytes: Vec<u8>) -> Option<Flow> {
    let record = v1::FlowRecord::decode(bytes.as_slice()).ok()?;
    let address = |value: &Option<v1::Address>| {
        proto::convert::to_address("", value.as_ref())
            .ok()
            .map(|address| address.to_canonical())
    };
    let time = |value: &Option<prost_types::Timestamp>| {
        proto::convert::to_unix_ns(&value.unwrap_or_default()).ok()
    };
    Some(Flow {
        initiator: address(&record.initiator)?,
        responder: address(&record.responder)?,
        egress: record.direction() == v1::Direction::Egress,
        protocol: u8::try_from(record.protocol).ok()?,
        port: u16::try_from(record.responder_port).ok()?,
        first_seen: time(&record.first_seen)?,
        last_seen: time(&record.last_seen)?,
        record,
    })
}
