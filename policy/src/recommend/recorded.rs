//! Observations from what `cofferdam flows -o json` and `cofferdam edges -o json` print.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use datapath::ids::protocol;
use time::OffsetDateTime;

use super::observe::{Observation, Observations, TooManyEdges};
use crate::plan::record::{EdgeRecord, FlowRecord, Record, RecordedEnd};
use crate::probe::ProbeEnd;
use crate::snapshot::FlowDirection;

/// Flows that are remembered so that a further record of one is not counted again; past them counts are
/// upper bounds.
const MAX_FLOWS: usize = 4_000_000;

/// The stretch of time that is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// What ended before is left out.
    pub since: Option<OffsetDateTime>,
    /// What began later is left out.
    pub until: Option<OffsetDateTime>,
}

/// What was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordCount {
    /// Records that were taken.
    pub taken: u64,
    /// Records outside of the window.
    pub outside: u64,
    /// Records without any time, which tell nothing of rare or recent.
    pub timeless: u64,
    /// Flows that the recorder says it missed.
    pub missed: u64,
}

/// Takes records.
#[derive(Debug)]
pub struct Recorder<'a> {
    observations: Observations<'a>,
    window: Window,
    /// Flows by hash of host and uid: whether all records so far say that it failed.
    known: HashMap<u64, bool>,
    count: RecordCount,
}

impl<'a> Recorder<'a> {
    /// Nothing read yet.
    #[must_use]
    pub fn new(observations: Observations<'a>, window: Window) -> Self {
        Self {
            observations,
            window,
            known: HashMap::new(),
            count: RecordCount::default(),
        }
    }

    /// Takes one record.
    ///
    /// # Errors
    /// When it would be one edge more than may be kept.
    pub fn add(&mut self, record: Record) -> Result<(), TooManyEdges> {
        match record {
            Record::Missed(count) => {
                self.count.missed = self.count.missed.saturating_add(count);
                Ok(())
            }
            Record::Flow(flow) => self.flow(*flow),
            Record::Edge(edge) => self.edge(edge),
        }
    }

    /// The observations, and what was read.
    #[must_use]
    pub fn finish(self) -> (Observations<'a>, RecordCount) {
        (self.observations, self.count)
    }

    /// Both times of a record inside the window; counts it.
    fn times(
        &mut self,
        first: Option<OffsetDateTime>,
        last: Option<OffsetDateTime>,
    ) -> Option<(OffsetDateTime, OffsetDateTime)> {
        let (Some(first), Some(last)) = (first.or(last), last.or(first)) else {
            self.count.timeless += 1;
            return None;
        };
        let early = self.window.since.is_some_and(|since| last < since);
        let late = self.window.until.is_some_and(|until| first > until);
        if early || late {
            self.count.outside += 1;
            return None;
        }
        self.count.taken += 1;
        Some((first, last))
    }

    fn flow(&mut self, flow: FlowRecord) -> Result<(), TooManyEdges> {
        let Some((first_seen, last_seen)) = self.times(flow.first_seen, flow.last_seen) else {
            return Ok(());
        };
        // UDP may well be one-way (syslog is); a TCP connection that nobody answers is none.
        let connects = matches!(flow.protocol, protocol::TCP | protocol::SCTP);
        let failed = !flow.allowed || (connects && !flow.answered);
        let (new, recovered) = self.remember(&flow, failed);
        let at_destination = flow.side == Some(FlowDirection::Ingress);
        let row = Observation {
            source: end(flow.source),
            destination: end(flow.destination),
            protocol: flow.protocol,
            port: flow.port,
            flows: u64::from(new),
            failed: u64::from(new && failed),
            first_seen,
            last_seen,
            // Only the destination's host knows the program that answers.
            process: flow.process.filter(|_| at_destination),
            source_port: Some(flow.source_port).filter(|port| *port != 0),
        };
        self.observations
            .put(&row, at_destination, u64::from(recovered))
    }

    /// Whether the flow is new, and whether it had failed in all records before this one.
    fn remember(&mut self, flow: &FlowRecord, failed: bool) -> (bool, bool) {
        if flow.uid.is_empty() {
            return (true, false);
        }
        // Without a random key: the same input has the same result.
        let mut hasher = DefaultHasher::new();
        (&flow.host, &flow.uid).hash(&mut hasher);
        let id = hasher.finish();
        if let Some(before) = self.known.get_mut(&id) {
            let recovered = *before && !failed;
            *before &= failed;
            return (false, recovered);
        }
        if self.known.len() < MAX_FLOWS {
            self.known.insert(id, failed);
        }
        (true, false)
    }

    fn edge(&mut self, edge: EdgeRecord) -> Result<(), TooManyEdges> {
        let Some((first_seen, last_seen)) = self.times(edge.first_seen, edge.last_seen) else {
            return Ok(());
        };
        let row = Observation {
            source: end(edge.source),
            destination: end(edge.destination),
            protocol: edge.protocol,
            port: edge.port,
            flows: edge.flows,
            failed: edge.denied,
            first_seen,
            last_seen,
            process: None,
            source_port: None,
        };
        self.observations.add(&row)
    }
}

/// The workload, where the record names one: an address may have been another's then.
fn end(end: RecordedEnd) -> ProbeEnd {
    match (end.workload, end.address) {
        (None, Some(address)) => ProbeEnd::Address(address),
        (name, _) => ProbeEnd::Name(name.unwrap_or_default()),
    }
}
