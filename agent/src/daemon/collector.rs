//! The thread that moves records from the kernel to the spool.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use prost::Message;
use tracing::{error, warn};

use super::attribution::{self, Sockets};
use super::{Host, lock, memory};
use crate::control::wire;
use crate::flows::Record;
use crate::flows::attribute::Joiner;
use crate::flows::collect::{Collector, Pass, Settings};
use crate::flows::spool::Meta;
use crate::kernel::clock::{self, Converter};
use crate::kernel::ring::Events;
use datapath::abi::maps;

const DRAIN: Duration = Duration::from_millis(10);
const FLUSH: Duration = Duration::from_millis(100);
const SWEEP: Duration = Duration::from_secs(1);
/// How often freed memory is given back.
const GIVE_BACK: Duration = Duration::from_secs(5);
const DRAIN_LIMIT: usize = 65_536;
const BATCH_RECORDS: usize = 1024;
/// Batches that a restart reads to know what was already said.
const REMEMBERED_BATCHES: usize = 256;

/// Runs until `stop` says so; the last records are spooled before it returns.
pub fn run(host: &Arc<Host>, stop: &std::sync::atomic::AtomicBool) {
    let mut worker = match Worker::new(host) {
        Ok(worker) => worker,
        Err(error) => {
            host.report_error(&error);
            return;
        }
    };
    while !stop.load(Ordering::Relaxed) {
        std::thread::park_timeout(DRAIN);
        worker.turn();
    }
    worker.sweep();
}

struct Worker {
    host: Arc<Host>,
    events: Events,
    collector: Collector,
    joiner: Joiner<Sockets>,
    clock: Converter,
    pending: Vec<Record>,
    reported: BTreeMap<String, u64>,
    flushed: Instant,
    swept: Instant,
    gave_back: Instant,
}

impl Worker {
    fn new(host: &Arc<Host>) -> Result<Self, crate::kernel::KernelError> {
        let mut already = Vec::new();
        let mut reported = BTreeMap::new();
        match lock(&host.spool).newest(REMEMBERED_BATCHES) {
            Ok(batches) => {
                for batch in batches {
                    if batch.meta.boot_id == host.boot_id {
                        reported = batch.meta.losses;
                    }
                    already.extend(batch.meta.closed);
                }
            }
            Err(error) => {
                warn!(%error, "the spool's last batches cannot be read; records may be repeated")
            }
        }
        let ticks = |time: Duration| {
            u32::try_from(time.as_secs().saturating_mul(u64::from(host.hz())))
                .unwrap_or(u32::MAX / 4)
        };
        let settings = Settings {
            interval_ns: i64::try_from(host.config.flows.interval.as_nanos()).unwrap_or(i64::MAX),
            timeouts: host.timeouts(),
            deny_idle: ticks(Duration::from_secs(120)),
        };
        Ok(Self {
            events: Events::open(&host.kernel.dir().map(maps::EVENTS))?,
            collector: Collector::new(&host.boot_id, settings, already),
            joiner: attribution::joiner(&host.attribution),
            clock: host.converter()?,
            pending: Vec::new(),
            reported,
            flushed: Instant::now(),
            swept: Instant::now(),
            gave_back: Instant::now(),
            host: Arc::clone(host),
        })
    }

    fn turn(&mut self) {
        let mut events = Vec::new();
        self.events.drain(DRAIN_LIMIT, &mut events);
        if !events.is_empty() {
            self.collector.set_names(self.host.names());
            let mut records = self.collector.events(&events, &self.clock);
            self.joiner.fill(&mut records);
            self.host.breaker_sees(&records);
            self.host.publish(&records);
            self.pending.extend(records);
        }
        if self.swept.elapsed() >= SWEEP {
            self.sweep();
        } else if !self.pending.is_empty()
            && (self.flushed.elapsed() >= FLUSH || self.pending.len() >= BATCH_RECORDS)
        {
            self.flush(Vec::new(), false);
        }
    }

    fn sweep(&mut self) {
        self.swept = Instant::now();
        match self.host.converter() {
            Ok(clock) => self.clock = clock,
            Err(error) => self.host.report_error(&error),
        }
        self.collector.set_names(self.host.names());
        if let Err(error) = self.host.kernel.fold_negatives() {
            self.host
                .report_error(&format!("counting repeated denials: {error}"));
        }
        let mut pass = match self
            .collector
            .sweep(&self.host.kernel, &self.clock, clock::utc_ns())
        {
            Ok(pass) => pass,
            Err(error) => {
                self.host
                    .report_error(&format!("reading the flow tables: {error}"));
                Pass::default()
            }
        };
        self.joiner.fill(&mut pass.records);
        self.host.breaker_sees(&pass.records);
        self.host.publish(&pass.records);
        self.pending.extend(pass.records.iter().cloned());
        self.flush(pass.closed.clone(), true);
        if let Err(error) = self.collector.delete_finished(&self.host.kernel, &pass) {
            self.host
                .report_error(&format!("deleting finished flows: {error}"));
        }
        self.host
            .counters
            .malformed
            .store(self.events.malformed(), Ordering::Relaxed);
        self.host.note_sweep(pass.flows);
        drop(pass);
        if self.gave_back.elapsed() >= GIVE_BACK {
            memory::give_back();
            self.gave_back = Instant::now();
        }
    }

    /// Makes what is pending durable. If the disk refuses, the records are lost and counted: enforcement
    /// must not depend on the disk, and a full flow table would deny.
    fn flush(&mut self, closed: Vec<String>, durable: bool) {
        self.flushed = Instant::now();
        let totals = self.losses();
        let lost: BTreeMap<String, u64> = totals
            .iter()
            .map(|(cause, total)| {
                (
                    cause.clone(),
                    total.saturating_sub(self.reported.get(cause).copied().unwrap_or(0)),
                )
            })
            .filter(|(_, count)| *count > 0)
            .collect();
        if self.pending.is_empty() && lost.is_empty() {
            return;
        }
        // A batch beyond what the controller takes would be refused whole. The last words are claimed by the last
        // part: a crash before it makes the next process say them again, which harms nobody.
        let pending = std::mem::take(&mut self.pending);
        let parts = pending.len().div_ceil(BATCH_RECORDS).max(1);
        let mut closed = Some(closed);
        let mut lost = Some(lost);
        for part in 0..parts {
            let from = part * BATCH_RECORDS;
            let to = pending.len().min(from + BATCH_RECORDS);
            let is_last = part + 1 == parts;
            let meta = Meta {
                losses: totals.clone(),
                boot_id: self.host.boot_id.clone(),
                closed: if is_last {
                    closed.take().unwrap_or_default()
                } else {
                    Vec::new()
                },
            };
            let records = pending.get(from..to).unwrap_or_default();
            self.spool(
                &meta,
                records,
                &lost.take().unwrap_or_default(),
                durable && is_last,
            );
        }
        self.reported = totals;
    }

    /// Writes one batch.
    fn spool(&self, meta: &Meta, records: &[Record], lost: &BTreeMap<String, u64>, durable: bool) {
        let name = self.host.config.workload.full_name();
        let counters = &self.host.counters;
        let mut spool = lock(&self.host.spool);
        let batch = wire::batch(&name, spool.next_sequence(), records, lost, clock::utc_ns());
        let outcome = spool.append(meta, &batch.encode_to_vec(), durable);
        drop(spool);
        match outcome {
            Ok(_) => {
                counters
                    .records
                    .fetch_add(records.len() as u64, Ordering::Relaxed);
                self.host.spooled.notify_one();
            }
            Err(error) => {
                error!(%error, records = records.len(), "records could not be spooled");
                counters
                    .spool_errors
                    .fetch_add(records.len() as u64, Ordering::Relaxed);
            }
        }
    }

    fn losses(&self) -> BTreeMap<String, u64> {
        let mut losses = self
            .host
            .kernel
            .totals()
            .map(|totals| totals.losses)
            .unwrap_or_default();
        let counters = &self.host.counters;
        // Counters of the process begin anew with it; those of the kernel do not.
        for (cause, count) in [
            ("spool-error", counters.spool_errors.load(Ordering::Relaxed)),
            ("malformed-event", self.events.malformed()),
        ] {
            if count > 0 {
                losses.insert(cause.to_owned(), count);
            }
        }
        losses
    }
}
