//! A capture sent through the real loaded programs, frame by frame, on the capture's own clock.
//!
//! [`capture`] reads the file, [`link`] and [`view`] make frames that a test run takes, [`time`] is the clock. Every
//! local workload is a host of its own: programs, tables and policy as its agent would have them. Nothing is
//! attached, and nothing outlives the process.

pub mod capture;
mod host;
pub mod link;
pub mod output;
pub mod time;
pub mod view;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr};

use datapath::ids::Direction;
use ipnet::IpNet;
use policy::api::Scenario;
use serde::Serialize;

use crate::config::Config;
use crate::kernel::KernelError;
use crate::kernel::replay::PrivatePins;
use crate::standalone::{self, StandaloneError};
use capture::{CaptureError, Frame};
use host::Host;
use link::Link;
use output::{FrameLine, Line, Summary};
use time::Timeline;
use view::View;

/// Local hosts of one replay; each has tables of the configured sizes.
pub const MAX_HOSTS: usize = 16;

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The program let it pass.
    Pass,
    /// The program dropped it.
    Drop,
    /// No program was asked; the note says why.
    None,
}

/// Why a replay ended early.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The kernel side.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The policy cannot be compiled.
    #[error(transparent)]
    Policy(#[from] StandaloneError),
    /// The capture; what was before the fault was replayed.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// Frames of link types that are not understood.
    #[error(
        "{frames} frames have link type {number}, which is not supported (supported: Ethernet 1, Linux cooked 113 and 276, raw IP 101, 228 and 229, BSD loopback 0 and 108)"
    )]
    LinkType {
        /// The first such type.
        number: u32,
        /// How many.
        frames: u64,
    },
    /// Too many local hosts.
    #[error("more than {MAX_HOSTS} local hosts: narrow --local")]
    TooManyHosts,
    /// The tables.
    #[error("{what}: {source}")]
    Collect {
        /// What was tried.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A line could not be written.
    #[error("writing: {0}")]
    Output(io::Error),
}

/// What is replayed against what.
#[derive(Clone, Debug)]
pub struct Options {
    /// The agent's configuration: mode, timeouts, table sizes, failsafes, and perhaps the workload.
    pub config: Config,
    /// Policy and inventory.
    pub scenario: Scenario,
    /// Whose frames are judged.
    pub local: Vec<IpNet>,
}

/// Replays a capture and gives every line to `emit`. Moves the calling thread into a mount namespace of its own.
///
/// # Errors
/// When something could not be replayed to its end; the lines of all that could were given before.
pub fn run(
    options: Options,
    input: impl Read + Send,
    emit: &mut dyn FnMut(&Line<'_>) -> io::Result<()>,
) -> Result<(), ReplayError> {
    let mut replay = Replay {
        pins: PrivatePins::enter()?,
        options,
        hosts: Vec::new(),
        by_address: HashMap::new(),
        by_owner: BTreeMap::new(),
        timeline: None,
        summary: Summary::default(),
        unsupported: None,
        emit,
    };
    let read = capture::frames(input, |frame| replay.frame(&frame));
    let outcome = match read {
        Ok(Ok(())) => Ok(()),
        // A line that nobody reads: no more of them.
        Ok(Err(error @ ReplayError::Output(_))) => return Err(error),
        Ok(Err(error)) => Err(error),
        Err(error) => Err(error.into()),
    };
    replay.finish()?;
    outcome?;
    match replay.unsupported {
        Some(number) => Err(ReplayError::LinkType {
            number,
            frames: replay.summary.unsupported,
        }),
        None => Ok(()),
    }
}

/// Who answers for a local address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Owner {
    /// A workload of the inventory, by full name.
    Workload(String),
    /// The workload of the agent's configuration.
    Configured,
    /// Nobody says: a host without labels.
    Unknown(IpAddr),
}

struct Replay<'a> {
    pins: PrivatePins,
    options: Options,
    hosts: Vec<Host>,
    by_address: HashMap<IpAddr, Option<usize>>,
    by_owner: BTreeMap<Owner, usize>,
    timeline: Option<Timeline>,
    summary: Summary,
    unsupported: Option<u32>,
    emit: &'a mut dyn FnMut(&Line<'_>) -> io::Result<()>,
}

/// What is the same in all lines of a frame.
struct Subject<'a> {
    frame: Frame<'a>,
    at_ns: i64,
    view: View,
}

impl Replay<'_> {
    fn frame(&mut self, frame: &Frame<'_>) -> Result<(), ReplayError> {
        self.summary.frames += 1;
        let timeline = self
            .timeline
            .get_or_insert_with(|| Timeline::new(frame.at_ns));
        for moment in timeline.advance(frame.at_ns) {
            for host in &mut self.hosts {
                host.sweep(&moment)?;
            }
        }
        let at_ns = timeline.now().utc_ns;
        let mut subject = Subject {
            frame: *frame,
            at_ns,
            view: View::default(),
        };
        if let Link::Unsupported(number) = frame.link {
            self.unsupported.get_or_insert(number);
            self.summary.unsupported += 1;
            return self.unjudged(&subject, "its link type is not supported");
        }
        let Some((bytes, original)) = frame.link.ethernet(frame.bytes, frame.original) else {
            return self.unjudged(&subject, "it is too short for its link layer");
        };
        subject.view = View::of(&bytes, original);
        if bytes.len() < link::ETHERNET {
            return self.unjudged(
                &subject,
                "it is shorter than an Ethernet header, and the kernel takes no such frame",
            );
        }
        if subject.view.cut {
            return self.unjudged(&subject, "it was captured without all of its headers");
        }
        let sides = self.sides(&subject.view)?;
        if let [Some(a), Some(b)] = sides
            && a == b
        {
            return self.unjudged(
                &subject,
                "both ends are the same host: such a packet passes no device",
            );
        }
        if sides == [None, None] {
            let why = if subject.view.ends.is_some() {
                "neither end is local"
            } else {
                "it has no IP addresses, and there is more than one local host or none"
            };
            return self.unjudged(&subject, why);
        }
        let (whole, missing) = view::fit(&bytes, original);
        if missing > 0 {
            self.summary.shortened += 1;
        }
        // Who sends comes first.
        for (side, direction) in [
            (sides[0], Direction::Egress),
            (sides[1], Direction::Ingress),
        ] {
            if let Some(index) = side {
                self.judge(&subject, &whole, missing, index, direction)?;
            }
        }
        Ok(())
    }

    fn judge(
        &mut self,
        subject: &Subject<'_>,
        whole: &[u8],
        missing: usize,
        index: usize,
        direction: Direction,
    ) -> Result<(), ReplayError> {
        let (Some(timeline), Some(host)) = (&self.timeline, self.hosts.get_mut(index)) else {
            return Ok(());
        };
        let judged = host.judge(whole, missing, &subject.view, direction, &timeline.now())?;
        let Some(judged) = judged else {
            return self.unjudged(
                subject,
                "it ends inside its IP header, and this kernel runs no program over such a frame",
            );
        };
        let mut line = FrameLine::new(self.summary.frames, subject.at_ns, &subject.frame);
        line.tuple = subject.view.tuple;
        line.ends = subject.view.ends;
        line.host = &host.name;
        line.direction = direction.name();
        line.verdict = judged.verdict;
        line.reason = &judged.reason;
        line.rule = &judged.rule;
        if missing > 0 {
            line.note =
                "judged without its end, which is longer than the kernel takes; counted whole";
        } else if subject.frame.bytes.len() < subject.frame.original {
            line.note = "captured in part";
        }
        self.summary.count(judged.verdict);
        (self.emit)(&Line::Frame(line)).map_err(ReplayError::Output)
    }

    fn unjudged(&mut self, subject: &Subject<'_>, why: &'static str) -> Result<(), ReplayError> {
        let mut line = FrameLine::new(self.summary.frames, subject.at_ns, &subject.frame);
        line.tuple = subject.view.tuple;
        line.ends = subject.view.ends;
        line.note = why;
        self.summary.count(Verdict::None);
        (self.emit)(&Line::Frame(line)).map_err(ReplayError::Output)
    }

    /// The hosts that send and receive.
    fn sides(&mut self, view: &View) -> Result<[Option<usize>; 2], ReplayError> {
        let Some((source, destination)) = view.ends else {
            return Ok([None, self.only()?]);
        };
        let sender = self.host_of(source)?;
        let mut receiver = self.host_of(destination)?;
        let to_many = destination.is_multicast() || destination == IpAddr::V4(Ipv4Addr::BROADCAST);
        if sender.is_none() && receiver.is_none() && to_many {
            receiver = self.only()?;
        }
        Ok([sender, receiver])
    }

    /// The local host, where `--local` can mean one only.
    fn only(&mut self) -> Result<Option<usize>, ReplayError> {
        let mut owners = BTreeMap::new();
        let workloads = self.options.scenario.world.workloads();
        let named = workloads.iter().flat_map(|workload| &workload.addresses);
        let single = self
            .options
            .local
            .iter()
            .filter(|net| net.prefix_len() == net.max_prefix_len())
            .map(IpNet::addr);
        for address in named.copied().chain(single) {
            if self.is_local(address) {
                owners.insert(self.owner(address), address);
            }
        }
        match owners.into_values().collect::<Vec<_>>().as_slice() {
            [address] => self.host_of(*address),
            _ => Ok(None),
        }
    }

    fn is_local(&self, address: IpAddr) -> bool {
        self.options.local.iter().any(|net| net.contains(&address))
    }

    fn owner(&self, address: IpAddr) -> Owner {
        let workload = &self.options.config.workload;
        if let Some(owner) = self.options.scenario.world.claimants(address).next() {
            Owner::Workload(owner.full_name())
        } else if workload.name.is_some() || !workload.labels.is_empty() {
            Owner::Configured
        } else {
            Owner::Unknown(address)
        }
    }

    /// The host of an address; it is made when it is first met.
    fn host_of(&mut self, address: IpAddr) -> Result<Option<usize>, ReplayError> {
        if let Some(known) = self.by_address.get(&address) {
            return Ok(*known);
        }
        if !self.is_local(address) {
            // Not remembered: the rest of the world is large.
            return Ok(None);
        }
        let owner = self.owner(address);
        let index = match self.by_owner.get(&owner) {
            Some(index) => *index,
            None => self.open(&owner)?,
        };
        self.by_owner.insert(owner, index);
        self.by_address.insert(address, Some(index));
        Ok(Some(index))
    }

    fn open(&mut self, owner: &Owner) -> Result<usize, ReplayError> {
        let number = self.hosts.len();
        if number >= MAX_HOSTS {
            return Err(ReplayError::TooManyHosts);
        }
        let Some(timeline) = &self.timeline else {
            return Err(ReplayError::TooManyHosts);
        };
        let mut config = self.options.config.clone();
        let mut addresses = BTreeSet::new();
        match owner {
            Owner::Workload(name) => {
                if let Some(workload) = self.options.scenario.world.workload(name) {
                    config.workload.name = Some(workload.name.clone());
                    config.workload.namespace.clone_from(&workload.namespace);
                    addresses.extend(workload.addresses.iter().copied());
                }
            }
            Owner::Configured => addresses.extend(
                self.options
                    .local
                    .iter()
                    .filter(|net| net.prefix_len() == net.max_prefix_len())
                    .map(IpNet::addr)
                    .filter(|address| self.owner(*address) == Owner::Configured),
            ),
            Owner::Unknown(address) => {
                config.workload.name = Some(address.to_string());
                addresses.insert(*address);
            }
        }
        let name = config.workload.full_name();
        let snapshot = standalone::snapshot_of(
            &config,
            self.options.scenario.clone(),
            &addresses,
            timeline.now().utc_ns,
        )?;
        let host = Host::open(&self.pins, number, &config, name, snapshot, timeline)?;
        self.hosts.push(host);
        Ok(number)
    }

    /// What is still in the tables, every record, and the totals.
    fn finish(&mut self) -> Result<(), ReplayError> {
        if let Some(timeline) = &self.timeline {
            for host in &mut self.hosts {
                host.sweep(&timeline.now())?;
            }
        }
        let mut reasons: BTreeMap<String, [u64; 2]> = BTreeMap::new();
        for host in &mut self.hosts {
            for record in host.take_records() {
                self.summary.records += 1;
                let line = Line::Flow {
                    host: Cow::Borrowed(&host.name),
                    record: &record,
                };
                (self.emit)(&line).map_err(ReplayError::Output)?;
            }
            let totals = host.totals()?;
            for (reason, (packets, bytes)) in totals.reasons {
                let sum = reasons.entry(reason).or_default();
                sum[0] += packets;
                sum[1] += bytes;
            }
            for (cause, count) in totals.losses {
                *self.summary.losses.entry(cause).or_default() += count;
            }
        }
        self.summary.reasons = reasons;
        self.summary.losses.retain(|_, count| *count > 0);
        (self.emit)(&Line::Totals(&self.summary)).map_err(ReplayError::Output)
    }
}
