//! Recorded traffic rolled up into edges while it is read, in bounded memory.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use time::OffsetDateTime;

use super::record::{EdgeRecord, FlowRecord, Record, RecordedEnd};
use crate::snapshot::FlowDirection;

/// Names of processes that an edge keeps.
const PROCESSES: usize = 8;

/// Who talked to whom on which port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EdgeKey {
    /// Who opens.
    pub source: RecordedEnd<Arc<str>>,
    /// Who answers.
    pub destination: RecordedEnd<Arc<str>>,
    /// IANA protocol number.
    pub protocol: u8,
    /// Destination port; ICMP: type × 256 + code; 0 where there is none.
    pub port: u16,
}

/// An edge and what was seen of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    /// Between whom.
    pub key: EdgeKey,
    /// First packet ever.
    pub first_seen: Option<OffsetDateTime>,
    /// Last packet so far.
    pub last_seen: Option<OffsetDateTime>,
    /// How many flows.
    pub flows: u64,
    /// Both directions.
    pub packets: u64,
    /// Both directions, layer 3.
    pub bytes: u64,
    /// Flows that passed at both ends, as far as both told.
    pub allowed: u64,
    /// Flows that did not.
    pub denied: u64,
    /// Flows whose opener is doubtful: they were there before the agent, or came from a well-known
    /// port to a dynamic one.
    pub doubtful: u64,
    /// Processes at either end, at most eight of them.
    pub processes: BTreeSet<Arc<str>>,
}

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgeLimits {
    /// Distinct edges; one more is an error.
    pub edges: usize,
    /// Flows that are remembered so that a further record of one is not counted twice; past them
    /// counts are upper bounds ([`Tally::inexact`]).
    pub flows: usize,
}

impl Default for EdgeLimits {
    /// Together some 600 MB at most.
    fn default() -> Self {
        Self {
            edges: 1_000_000,
            flows: 4_000_000,
        }
    }
}

/// There are more edges than may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {0} different edges")]
pub struct TooManyEdges(pub usize);

/// What was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records that were taken.
    pub records: u64,
    /// Records that end before the moment from which on traffic counts.
    pub older: u64,
    /// Flows that the recorder says it missed.
    pub missed: u64,
    /// More flows than could be remembered: a flow with several records may count several times.
    pub inexact: bool,
}

/// Rolls records up.
#[derive(Debug)]
pub struct Edges {
    limits: EdgeLimits,
    since: Option<OffsetDateTime>,
    index: HashMap<EdgeKey, u32>,
    edges: Vec<Gathered>,
    known: HashMap<u64, Known>,
    hasher: RandomState,
    names: HashSet<Arc<str>>,
    tally: Tally,
}

/// What was told of an edge, by each side for itself.
#[derive(Clone, Debug, Default)]
struct Gathered {
    first_seen: Option<OffsetDateTime>,
    last_seen: Option<OffsetDateTime>,
    sides: [Option<Counts>; 3],
    processes: BTreeSet<Arc<str>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    flows: u64,
    packets: u64,
    bytes: u64,
    allowed: u64,
    denied: u64,
    doubtful: u64,
}

/// What the records of one flow have added so far.
#[derive(Clone, Copy, Debug)]
struct Known {
    edge: u32,
    side: u8,
    packets: u64,
    bytes: u64,
    closed: bool,
    allowed: bool,
}

impl Edges {
    /// Nothing read yet. Records whose last packet is before `since` are only counted.
    #[must_use]
    pub fn new(limits: EdgeLimits, since: Option<OffsetDateTime>) -> Self {
        Self {
            limits,
            since,
            index: HashMap::new(),
            edges: Vec::new(),
            known: HashMap::new(),
            hasher: RandomState::new(),
            names: HashSet::new(),
            tally: Tally::default(),
        }
    }

    /// Takes one record.
    ///
    /// # Errors
    /// When it would be one edge more than may be kept.
    pub fn add(&mut self, record: Record) -> Result<(), TooManyEdges> {
        match record {
            Record::Missed(count) => {
                self.tally.missed = self.tally.missed.saturating_add(count);
                Ok(())
            }
            Record::Flow(flow) if self.is_old(flow.last_seen) => Ok(()),
            Record::Edge(edge) if self.is_old(edge.last_seen) => Ok(()),
            Record::Flow(flow) => self.add_flow(*flow),
            Record::Edge(edge) => self.add_edge(edge),
        }
    }

    fn is_old(&mut self, last: Option<OffsetDateTime>) -> bool {
        let old = matches!((self.since, last), (Some(since), Some(last)) if last < since);
        self.tally.older += u64::from(old);
        old
    }

    fn add_flow(&mut self, flow: FlowRecord) -> Result<(), TooManyEdges> {
        let id = (!flow.uid.is_empty()).then(|| self.hasher.hash_one((&flow.host, &flow.uid)));
        let known = id.and_then(|id| self.known.get(&id).copied());
        let edge = match known {
            Some(known) => known.edge,
            None => self.edge(flow.source, flow.destination, flow.protocol, flow.port)?,
        };
        self.tally.records += 1;
        let side = match flow.side {
            None => 0,
            Some(FlowDirection::Egress) => 1,
            Some(FlowDirection::Ingress) => 2,
        };
        let process = flow.process.map(|name| self.name(name));
        let Some(gathered) = self.edges.get_mut(edge as usize) else {
            return Ok(());
        };
        gathered.saw(flow.first_seen, flow.last_seen);
        if let Some(process) = process
            && gathered.processes.len() < PROCESSES
        {
            gathered.processes.insert(process);
        }
        // Only TCP, UDP and SCTP have ports; a flow from port 53 to port 51234 is an answer.
        let backwards = (1..1024).contains(&flow.source_port) && flow.port >= 32_768;
        let now = Known {
            edge,
            side,
            packets: sane(flow.packets),
            bytes: sane(flow.bytes),
            closed: flow.closed,
            allowed: flow.allowed,
        };
        gathered.count(known, now, flow.adopted || backwards);
        let Some(id) = id else { return Ok(()) };
        if known.is_some() || self.known.len() < self.limits.flows {
            self.known.insert(id, now.merged(known));
        } else {
            self.tally.inexact = true;
        }
        Ok(())
    }

    fn add_edge(&mut self, edge: EdgeRecord) -> Result<(), TooManyEdges> {
        let index = self.edge(edge.source, edge.destination, edge.protocol, edge.port)?;
        self.tally.records += 1;
        if let Some(gathered) = self.edges.get_mut(index as usize) {
            gathered.saw(edge.first_seen, edge.last_seen);
            let counts = gathered.side(0);
            counts.flows = sane(counts.flows.saturating_add(edge.flows));
            counts.packets = sane(counts.packets.saturating_add(edge.packets));
            counts.bytes = sane(counts.bytes.saturating_add(edge.bytes));
            counts.allowed = sane(counts.allowed.saturating_add(edge.allowed));
            counts.denied = sane(counts.denied.saturating_add(edge.denied));
        }
        Ok(())
    }

    /// Number of the edge, a new one if need be.
    fn edge(
        &mut self,
        source: RecordedEnd,
        destination: RecordedEnd,
        protocol: u8,
        port: u16,
    ) -> Result<u32, TooManyEdges> {
        let key = EdgeKey {
            source: self.end(source),
            destination: self.end(destination),
            protocol,
            port,
        };
        if let Some(index) = self.index.get(&key) {
            return Ok(*index);
        }
        let index = self.edges.len();
        let number = u32::try_from(index).ok();
        match number.filter(|_| index < self.limits.edges) {
            Some(number) => {
                self.edges.push(Gathered::default());
                self.index.insert(key, number);
                Ok(number)
            }
            None => Err(TooManyEdges(self.limits.edges)),
        }
    }

    fn end(&mut self, end: RecordedEnd) -> RecordedEnd<Arc<str>> {
        RecordedEnd {
            workload: end.workload.map(|name| self.name(name)),
            address: end.address,
        }
    }

    /// Names repeat in every record: each is kept once.
    fn name(&mut self, name: String) -> Arc<str> {
        if let Some(known) = self.names.get(name.as_str()) {
            return Arc::clone(known);
        }
        let name: Arc<str> = name.into();
        self.names.insert(Arc::clone(&name));
        name
    }

    /// The edges in the order of their ends, and what was read.
    #[must_use]
    pub fn finish(self) -> (Vec<Edge>, Tally) {
        let gathered = self.edges;
        let mut edges: Vec<Edge> = self
            .index
            .into_iter()
            .filter_map(|(key, index)| Some(gathered.get(index as usize)?.edge(key)))
            .collect();
        edges.sort_by(|a, b| a.key.cmp(&b.key));
        (edges, self.tally)
    }
}

impl Known {
    fn progress(&self) -> (bool, u64) {
        (self.closed, self.packets)
    }

    /// Counters are totals, so the higher ones win; the later record tells the verdict.
    fn merged(self, old: Option<Self>) -> Self {
        let Some(old) = old else { return self };
        let later = self.progress() >= old.progress();
        Self {
            side: old.side,
            packets: self.packets.max(old.packets),
            bytes: self.bytes.max(old.bytes),
            closed: self.closed || old.closed,
            allowed: if later { self.allowed } else { old.allowed },
            ..self
        }
    }
}

impl Gathered {
    fn saw(&mut self, first: Option<OffsetDateTime>, last: Option<OffsetDateTime>) {
        let (first, last) = (first.or(last), last.or(first));
        self.first_seen = match (self.first_seen, first) {
            (Some(old), Some(new)) => Some(old.min(new)),
            (old, new) => old.or(new),
        };
        self.last_seen = self.last_seen.max(last);
    }

    fn side(&mut self, side: u8) -> &mut Counts {
        let [unknown, egress, ingress] = &mut self.sides;
        let counts = match side {
            0 => unknown,
            1 => egress,
            _ => ingress,
        };
        counts.get_or_insert_default()
    }

    fn count(&mut self, old: Option<Known>, now: Known, doubtful: bool) {
        let merged = now.merged(old);
        let counts = self.side(merged.side);
        if let Some(old) = old {
            counts.packets = counts.packets.saturating_sub(old.packets);
            counts.bytes = counts.bytes.saturating_sub(old.bytes);
            counts.allowed -= u64::from(old.allowed);
            counts.denied -= u64::from(!old.allowed);
        } else {
            counts.flows += 1;
            counts.doubtful += u64::from(doubtful);
        }
        counts.packets = counts.packets.saturating_add(merged.packets);
        counts.bytes = counts.bytes.saturating_add(merged.bytes);
        counts.allowed += u64::from(merged.allowed);
        counts.denied += u64::from(!merged.allowed);
    }

    /// Both ends may have told of one flow: the side that saw more counts, and what one side let out
    /// and the other denied is denied.
    fn edge(&self, key: EdgeKey) -> Edge {
        let told = || self.sides.iter().flatten();
        let most = |of: fn(&Counts) -> u64| told().map(of).max().unwrap_or(0);
        let flows = most(|counts| counts.flows);
        let denied = told().map(|counts| counts.denied).sum::<u64>().min(flows);
        Edge {
            key,
            first_seen: self.first_seen,
            last_seen: self.last_seen,
            flows,
            packets: most(|counts| counts.packets),
            bytes: most(|counts| counts.bytes),
            allowed: told()
                .map(|counts| counts.allowed)
                .min()
                .unwrap_or(0)
                .min(flows - denied),
            denied,
            doubtful: most(|counts| counts.doubtful),
            processes: self.processes.clone(),
        }
    }
}

/// A liar's counters must not overflow a sum: no real one comes near this.
fn sane(counter: u64) -> u64 {
    counter.min(1 << 56)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(uid: &str, side: &str, packets: u64, verdict: &str, closed: bool) -> Record {
        Record::parse(&format!(
            r#"{{"uid": "{uid}", "host": "h", "direction": "{side}", "protocol": "tcp",
            "first_seen": "2026-11-0{day}T00:00:00Z", "last_seen": "2026-11-0{day}T00:00:00Z",
            "initiator": {{"address": "10.0.0.5", "port": 40000, "workload": "web-1"}},
            "responder": {{"address": "10.0.1.9", "port": 5432, "workload": "db-1"}},
            "packets_out": {packets}, "bytes_out": {packets}, "closed": {closed}, "verdict": "{verdict}"}}"#,
            day = packets.clamp(1, 9)
        ))
        .unwrap()
    }

    fn rolled(records: Vec<Record>, limits: EdgeLimits) -> (Vec<Edge>, Tally) {
        let mut edges = Edges::new(limits, None);
        for record in records {
            edges.add(record).unwrap();
        }
        edges.finish()
    }

    #[test]
    fn a_flow_counts_once_however_often_it_is_told() {
        let records = [
            flow("a", "egress", 1, "allow", false),
            flow("a", "egress", 5, "allow", false),
            flow("a", "egress", 9, "deny", true),
        ];
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 2, 2]] {
            let records = order.map(|index: usize| records[index].clone()).to_vec();
            let (edges, tally) = rolled(records, EdgeLimits::default());
            assert_eq!(edges.len(), 1);
            let edge = &edges[0];
            assert_eq!(
                (edge.flows, edge.packets, edge.allowed, edge.denied),
                (1, 9, 0, 1),
                "{order:?}"
            );
            assert_eq!((tally.records, tally.inexact), (3, false));
        }
    }

    #[test]
    fn both_ends_tell_of_one_flow() {
        let (edges, _) = rolled(
            vec![
                flow("a", "egress", 3, "allow", true),
                flow("b", "ingress", 2, "deny", true),
            ],
            EdgeLimits::default(),
        );
        let edge = &edges[0];
        assert_eq!(
            (edge.flows, edge.packets, edge.allowed, edge.denied),
            (1, 3, 0, 1)
        );
        assert_eq!(edge.first_seen.unwrap().day(), 2);
        assert_eq!(edge.last_seen.unwrap().day(), 3);
    }

    #[test]
    fn limits_are_kept() {
        let limits = EdgeLimits { edges: 1, flows: 1 };
        let (edges, tally) = rolled(
            vec![
                flow("a", "egress", 1, "allow", true),
                flow("b", "egress", 2, "allow", true),
                flow("b", "egress", 2, "allow", true),
            ],
            limits,
        );
        assert!(tally.inexact, "the second flow was not remembered");
        assert_eq!(edges[0].flows, 3, "an upper bound");
        let mut edges = Edges::new(limits, None);
        let one = r#"{"from": "a", "to": "b", "protocol": "tcp", "port": 1, "flows": 2}"#;
        edges.add(Record::parse(one).unwrap()).unwrap();
        edges.add(Record::parse(one).unwrap()).unwrap();
        let other = Record::parse(&one.replace("\"b\"", "\"c\"")).unwrap();
        assert_eq!(edges.add(other), Err(TooManyEdges(1)));
        assert_eq!(edges.finish().0[0].flows, 4);
    }

    #[test]
    fn what_is_older_is_counted_only() {
        let since = time::macros::datetime!(2026-11-03 00:00 UTC);
        let mut edges = Edges::new(EdgeLimits::default(), Some(since));
        edges.add(flow("a", "egress", 2, "allow", true)).unwrap();
        edges.add(flow("b", "egress", 4, "allow", true)).unwrap();
        edges.add(Record::Missed(7)).unwrap();
        let (edges, tally) = edges.finish();
        assert_eq!(edges[0].flows, 1);
        assert_eq!((tally.records, tally.older, tally.missed), (1, 1, 7));
    }
}
