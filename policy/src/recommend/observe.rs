//! What was seen: flows and edges from any recording, gathered into one row an edge.
//!
//! Bounded: an edge takes about 100 bytes whatever the number of its flows, and more edges than the
//! limit are refused. The order of the input does not matter for the result.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use time::OffsetDateTime;

use crate::probe::ProbeEnd;
use crate::world::{Who, World};

/// Most edges that are held unless the caller says otherwise.
pub const MAX_EDGES: usize = 4_000_000;

/// Seconds of the period in which sightings count as one.
pub(crate) const PERIOD: i64 = 3600;

/// One row of a recording: a flow, or an edge that sums up flows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Who opened.
    pub source: ProbeEnd,
    /// Who was to answer.
    pub destination: ProbeEnd,
    /// IANA protocol number.
    pub protocol: u8,
    /// Destination port; ICMP: type × 256 + code; 0 where there is none.
    pub port: u16,
    /// How many flows the row stands for.
    pub flows: u64,
    /// How many of them were denied or never answered.
    pub failed: u64,
    /// When the first of them began.
    pub first_seen: OffsetDateTime,
    /// When the last of them was seen.
    pub last_seen: OffsetDateTime,
    /// Name of the program that answered, where it is known.
    pub process: Option<String>,
    /// Port of the opener, where all flows had the same.
    pub source_port: Option<u16>,
}

/// Why a row was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the recording has more than {0} edges; narrow it with --since, --until or --subject")]
pub struct TooManyEdges(pub usize);

/// Gathers observations.
#[derive(Debug)]
pub struct Observations<'a> {
    world: &'a World,
    by_name: HashMap<String, u32>,
    externals: Vec<IpAddr>,
    by_address: HashMap<IpAddr, u32>,
    edges: HashMap<Key, Sides>,
    processes: Vec<String>,
    unresolved: BTreeMap<String, u64>,
    limit: usize,
}

/// Ends and service of an edge. Nodes below the number of workloads are workloads, the rest addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) source: u32,
    pub(crate) destination: u32,
    pub(crate) protocol: u8,
    pub(crate) port: u16,
}

/// What the source's host and the destination's host tell of an edge. They tell of the same flows.
#[derive(Clone, Copy, Debug)]
struct Sides {
    seen: Seen,
    /// Flows and failures that the destination's host told of.
    there: (u64, u64),
}

impl Sides {
    /// Both together: the side that knows of more flows knows better.
    fn sum(self) -> Seen {
        let here = (self.seen.flows, self.seen.failed);
        let (flows, failed) = if self.there.0 > here.0 {
            self.there
        } else {
            here
        };
        Seen {
            flows,
            failed: failed.min(flows),
            ..self.seen
        }
    }
}

/// What is known of an edge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) flows: u64,
    pub(crate) failed: u64,
    /// Unix time.
    pub(crate) first: i64,
    /// Unix time.
    pub(crate) last: i64,
    /// The hours it was seen in, modulo 64.
    pub(crate) hours: u64,
    /// Index + 1 of the answering program; 0 = unknown.
    pub(crate) process: u32,
    /// 0 = unknown or several.
    pub(crate) source_port: u16,
}

impl Seen {
    /// In how many different hours it was seen, at least.
    pub(crate) fn periods(&self) -> u32 {
        let spread = self.first.div_euclid(PERIOD) != self.last.div_euclid(PERIOD);
        self.hours.count_ones().max(1 + u32::from(spread))
    }

    /// Adds what is known of other flows.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.flows = self.flows.saturating_add(other.flows);
        self.failed = self.failed.saturating_add(other.failed);
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        self.hours |= other.hours;
        // Any rule that does not depend on the order will do.
        self.process = match (self.process, other.process) {
            (0, known) | (known, 0) => known,
            (one, two) => one.min(two),
        };
        if self.source_port != other.source_port {
            self.source_port = 0;
        }
    }
}

/// Whom a node stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum NodeKind {
    Workload,
    World,
    Unmanaged,
    /// Two workloads claim the address.
    Unknown,
}

/// A recording, gathered: edges in order.
#[derive(Debug)]
pub(crate) struct Recording {
    pub(crate) workloads: usize,
    /// Addresses that belong to no workload, in order.
    pub(crate) externals: Vec<(IpAddr, NodeKind)>,
    pub(crate) edges: Vec<(Key, Seen)>,
    pub(crate) processes: Vec<String>,
    /// Workloads that are named but not there, with flows.
    pub(crate) unresolved: BTreeMap<String, u64>,
}

impl<'a> Observations<'a> {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(world: &'a World) -> Self {
        Self::with_limit(world, MAX_EDGES)
    }

    /// Nothing seen yet; more than `limit` different edges are refused.
    #[must_use]
    pub fn with_limit(world: &'a World, limit: usize) -> Self {
        let by_name = world
            .workloads()
            .iter()
            .zip(0..)
            .map(|(workload, index)| (workload.full_name(), index))
            .collect();
        Self {
            world,
            by_name,
            externals: Vec::new(),
            by_address: HashMap::new(),
            edges: HashMap::new(),
            processes: Vec::new(),
            unresolved: BTreeMap::new(),
            limit,
        }
    }

    /// How many different edges were seen.
    #[must_use]
    pub fn len(&self) -> usize {
        self.edges.len()
    }

    /// Whether nothing was seen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.edges.is_empty()
    }

    /// Adds a row.
    ///
    /// # Errors
    /// When it would be one edge more than may be kept.
    pub fn add(&mut self, row: &Observation) -> Result<(), TooManyEdges> {
        self.put(row, false, 0)
    }

    /// Adds a row that one of the two hosts tells of. So many flows that had failed have not, after all.
    pub(crate) fn put(
        &mut self,
        row: &Observation,
        at_destination: bool,
        recovered: u64,
    ) -> Result<(), TooManyEdges> {
        let (source, destination) = (self.node(&row.source), self.node(&row.destination));
        let (Some(source), Some(destination)) = (source, destination) else {
            for (end, node) in [(&row.source, source), (&row.destination, destination)] {
                if let (ProbeEnd::Name(name), None) = (end, node) {
                    *self.unresolved.entry(name.clone()).or_default() += row.flows;
                }
            }
            return Ok(());
        };
        let key = Key {
            source,
            destination,
            protocol: row.protocol,
            port: row.port,
        };
        let first = row.first_seen.unix_timestamp();
        let last = row.last_seen.unix_timestamp().max(first);
        let failed = row.failed.min(row.flows);
        let (here, there) = if at_destination {
            ((0, 0), (row.flows, failed))
        } else {
            ((row.flows, failed), (0, 0))
        };
        let seen = Seen {
            flows: here.0,
            failed: here.1,
            first,
            last,
            hours: hour(first) | hour(last),
            process: row.process.as_deref().map_or(0, |name| self.process(name)),
            source_port: row.source_port.unwrap_or(0),
        };
        let full = self.edges.len() >= self.limit;
        let sides = match self.edges.entry(key) {
            Entry::Occupied(known) => {
                let known = known.into_mut();
                known.seen.merge(&seen);
                known.there.0 = known.there.0.saturating_add(there.0);
                known.there.1 = known.there.1.saturating_add(there.1);
                known
            }
            Entry::Vacant(_) if full => return Err(TooManyEdges(self.limit)),
            Entry::Vacant(free) => free.insert(Sides { seen, there }),
        };
        let failures = if at_destination {
            &mut sides.there.1
        } else {
            &mut sides.seen.failed
        };
        *failures = failures.saturating_sub(recovered);
        Ok(())
    }

    fn process(&mut self, name: &str) -> u32 {
        // There are few programs; a recording with many is cut off rather than slow.
        let found = self.processes.iter().position(|known| known == name);
        let index = found.or_else(|| {
            (self.processes.len() < 4096).then(|| {
                self.processes.push(name.to_owned());
                self.processes.len() - 1
            })
        });
        index.map_or(0, |index| u32::try_from(index + 1).unwrap_or(0))
    }

    fn node(&mut self, end: &ProbeEnd) -> Option<u32> {
        let address = match end {
            ProbeEnd::Name(name) => {
                let full = || Some(self.world.workload(name)?.full_name());
                return self
                    .by_name
                    .get(name)
                    .or_else(|| self.by_name.get(&full()?))
                    .copied();
            }
            ProbeEnd::Address(address) => address.to_canonical(),
        };
        if let Some(node) = self.by_address.get(&address) {
            return Some(*node);
        }
        let node = match self.world.who(address) {
            Who::Workload(workload) => self.by_name.get(&workload.full_name()).copied()?,
            _ => {
                self.externals.push(address);
                u32::try_from(self.world.workloads().len() + self.externals.len() - 1).ok()?
            }
        };
        self.by_address.insert(address, node);
        Some(node)
    }

    /// Everything in an order that does not depend on the order of the rows.
    pub(crate) fn finish(self) -> Recording {
        let count = self.world.workloads().len();
        let mut order: Vec<usize> = (0..self.externals.len()).collect();
        order.sort_by_key(|index| self.externals.get(*index));
        let mut renumbered = vec![0u32; order.len()];
        for (new, old) in order.iter().enumerate() {
            if let Some(slot) = renumbered.get_mut(*old) {
                *slot = u32::try_from(count + new).unwrap_or(u32::MAX);
            }
        }
        let renumber = |node: u32| {
            (node as usize)
                .checked_sub(count)
                .and_then(|index| renumbered.get(index).copied())
                .unwrap_or(node)
        };
        let mut names = self.processes.clone();
        names.sort();
        let process = |index: u32| {
            let name = self.processes.get((index as usize).wrapping_sub(1));
            name.and_then(|name| names.binary_search(name).ok())
                .map_or(0, |index| u32::try_from(index + 1).unwrap_or(0))
        };
        let mut edges: Vec<(Key, Seen)> = self
            .edges
            .into_iter()
            .map(|(key, sides)| {
                let seen = sides.sum();
                let key = Key {
                    source: renumber(key.source),
                    destination: renumber(key.destination),
                    ..key
                };
                let process = process(seen.process);
                (key, Seen { process, ..seen })
            })
            .collect();
        edges.sort_unstable_by_key(|(key, _)| *key);
        let externals = order
            .iter()
            .filter_map(|index| self.externals.get(*index))
            .map(|address| (*address, kind(self.world, *address)))
            .collect();
        Recording {
            workloads: count,
            externals,
            edges,
            processes: names,
            unresolved: self.unresolved,
        }
    }
}

impl Recording {
    /// What a node stands for.
    pub(crate) fn kind(&self, node: u32) -> NodeKind {
        self.external(node)
            .map_or(NodeKind::Workload, |(_, kind)| kind)
    }

    /// Address and kind of a node that is no workload.
    pub(crate) fn external(&self, node: u32) -> Option<(IpAddr, NodeKind)> {
        let index = (node as usize).checked_sub(self.workloads)?;
        self.externals.get(index).copied()
    }

    /// Whether a node is a workload.
    pub(crate) fn is_workload(&self, node: u32) -> bool {
        (node as usize) < self.workloads
    }
}

fn kind(world: &World, address: IpAddr) -> NodeKind {
    match world.who(address) {
        Who::Workload(_) => NodeKind::Workload,
        Who::Unmanaged => NodeKind::Unmanaged,
        Who::World => NodeKind::World,
        Who::Unknown => NodeKind::Unknown,
    }
}

fn hour(seconds: i64) -> u64 {
    1 << seconds.div_euclid(PERIOD).rem_euclid(64)
}
