//! Connections at a rate, for the agent's sake: what its processor time and memory are, and whether every connection is
//! recorded or counted as lost.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddrV4, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, bind, connect, sendto,
    socket,
};
use proto::convert::to_address;
use proto::v1::FlowRecord;
use serde::Serialize;

use super::daemon::Daemon;
use super::generator::{self, FIRST_PORT, Generator, Order, Traffic, Way};
use super::netns::Netns;
use super::policy::PEER_COUNT;
use super::wire::{self, End, HOST_MAC};
use crate::frames::{LOCAL4, PEERS, SERVICE};

/// Between two groups of connections.
const TICK: Duration = Duration::from_millis(1);
/// Most packets of one flood without a look at anything.
const FLOOD_STEP: u32 = 65_536;

/// What connects.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Shape {
    /// TCP between real sockets, closed at once: announced, attributed to a process, and ended.
    Connection,
    /// One datagram that is never answered.
    Datagram,
}

/// Connections of one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) shape: Shape,
    /// A second; `None`: as fast as one CPU makes them.
    pub(crate) rate: Option<u32>,
    pub(crate) count: u32,
}

/// What came of a step.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) shape: Shape,
    pub(crate) asked_rate: Option<u32>,
    /// Connections a second, as it turned out.
    pub(crate) rate: f64,
    pub(crate) sent: u64,
    /// Connections of which there is a record.
    pub(crate) recorded: u64,
    /// Losses that the agent counted meanwhile, by cause. One connection may lose a notice, which is counted, and still be
    /// recorded by the next sweep.
    pub(crate) lost: BTreeMap<String, u64>,
    /// The agent's processor time, percent of one CPU.
    pub(crate) cpu_percent: f64,
    /// How long its threads were ready and waited for a CPU, percent of the time: where this is much, it is the machine
    /// that does not keep up.
    pub(crate) waited_percent: f64,
}

impl Outcome {
    /// Connections without a record.
    pub(crate) const fn missing(&self) -> u64 {
        self.sent.saturating_sub(self.recorded)
    }

    /// Those that no counter accounts for.
    pub(crate) fn unreported(&self) -> u64 {
        self.missing().saturating_sub(self.lost.values().sum())
    }
}

/// The agent under load.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Load {
    /// From its start until the host was armed, seconds.
    pub(crate) start_seconds: f64,
    /// Processor time without traffic, percent of one CPU.
    pub(crate) idle_percent: f64,
    /// Resident bytes besides kernel maps: armed, and the most after any step.
    pub(crate) resident_idle: u64,
    pub(crate) resident_most: u64,
    pub(crate) steps: Vec<Outcome>,
}

/// Starts the agent, runs the steps one after the other and stops it.
pub(crate) fn run(binary: &Path, steps: &[Step], idle: Duration) -> Result<Load> {
    let begin = Instant::now();
    let mut daemon = Daemon::start(binary)?;
    let start_seconds = begin.elapsed().as_secs_f64();
    daemon.settle()?;
    let used = daemon.used()?;
    std::thread::sleep(idle);
    let mut load = Load {
        start_seconds,
        idle_percent: used.percent_until(daemon.used()?),
        resident_idle: daemon.resident()?,
        resident_most: 0,
        steps: Vec::new(),
    };
    let mut first = 0;
    for step in steps {
        load.steps.push(one(&daemon, step, first)?);
        first += step.count;
        load.resident_most = load.resident_most.max(daemon.resident()?);
    }
    let mut seen = vec![false; first as usize];
    daemon.batches(&mut |batch| {
        for record in batch.records.iter().filter(|record| !record.denial) {
            if let Some(known) = number_of(record).and_then(|number| seen.get_mut(number)) {
                *known = true;
            }
        }
    })?;
    daemon.stop()?;
    let mut rest = seen.as_slice();
    for (outcome, step) in load.steps.iter_mut().zip(steps) {
        let (own, others) = rest.split_at(step.count as usize);
        outcome.recorded = own.iter().filter(|known| **known).count() as u64;
        rest = others;
    }
    Ok(load)
}

fn one(daemon: &Daemon, step: &Step, first: u32) -> Result<Outcome> {
    let before = daemon.losses()?;
    let used = daemon.used()?;
    let took = match step.rate {
        Some(rate) => paced(daemon, step, rate, first)?,
        None => flood(daemon, step, first)?,
    };
    let now = daemon.used()?;
    daemon.settle()?;
    let lost = daemon
        .losses()?
        .into_iter()
        .map(|(cause, count)| {
            let old = before.get(&cause).copied().unwrap_or(0);
            (cause, count.saturating_sub(old))
        })
        .filter(|(_, count)| *count > 0)
        .collect();
    Ok(Outcome {
        shape: step.shape,
        asked_rate: step.rate,
        rate: f64::from(step.count) / took.as_secs_f64(),
        sent: u64::from(step.count),
        recorded: 0,
        lost,
        cpu_percent: used.percent_until(now),
        waited_percent: used.waited_until(now),
    })
}

/// Which connection a record is of: the inverse of [`generator::source`].
fn number_of(record: &FlowRecord) -> Option<usize> {
    let IpAddr::V4(peer) = to_address("initiator", record.initiator.as_ref()).ok()? else {
        return None;
    };
    let peer = u32::from(peer).checked_sub(PEERS)?;
    let turn = record.initiator_port.checked_sub(u32::from(FIRST_PORT))?;
    if peer >= PEER_COUNT || record.responder_port != u32::from(SERVICE) {
        return None;
    }
    usize::try_from(turn * PEER_COUNT + peer).ok()
}

/// Both ends of what is sent at a rate.
struct Ends<'a> {
    peer: &'a Netns,
    listener: TcpListener,
    /// Sends whole IPv4 packets (raw(7), `IPPROTO_RAW`).
    raw: OwnedFd,
}

impl<'a> Ends<'a> {
    fn open(daemon: &'a Daemon) -> Result<Self> {
        let listener = daemon
            .host
            .run(|| TcpListener::bind((LOCAL4, SERVICE)).context("listening"))?;
        let raw = daemon.peer.run(|| {
            socket(
                AddressFamily::Inet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::Raw,
            )
            .context("a raw socket")
        })?;
        Ok(Self {
            peer: &daemon.peer,
            listener,
            raw,
        })
    }

    fn one(&self, shape: Shape, from: End) -> Result<()> {
        match shape {
            Shape::Connection => self.connection(from),
            Shape::Datagram => self.datagram(from),
        }
    }

    /// Opens a connection and closes it, the peer first. One thread has both ends: over veth the whole handshake is done
    /// when `connect` returns.
    fn connection(&self, from: End) -> Result<()> {
        let client = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        bind(client.as_raw_fd(), &address(from))
            .with_context(|| format!("binding to {}:{}", from.0, from.1))?;
        connect(client.as_raw_fd(), &address((LOCAL4, SERVICE))).context("connecting")?;
        let (server, _) = self.listener.accept()?;
        drop(client);
        drop(server);
        Ok(())
    }

    fn datagram(&self, from: End) -> Result<()> {
        let host = (LOCAL4, SERVICE);
        let packet = wire::udp(from, host, &[0; 18]);
        let flags = MsgFlags::empty();
        sendto(self.raw.as_raw_fd(), &packet, &address(host), flags).context("sending")?;
        Ok(())
    }
}

fn address(end: End) -> SockaddrIn {
    SockaddrIn::from(SocketAddrV4::new(end.0, end.1))
}

/// Sends at a rate, a group every millisecond.
fn paced(daemon: &Daemon, step: &Step, rate: u32, first: u32) -> Result<Duration> {
    let ends = Ends::open(daemon)?;
    ends.peer.run(|| {
        super::alone(0)?;
        let begin = Instant::now();
        let mut sent = 0;
        while sent < step.count {
            let due = (begin.elapsed().as_secs_f64() * f64::from(rate)) as u32;
            while sent < due.min(step.count) {
                let from = generator::source(PEERS, PEER_COUNT, first + sent);
                ends.one(step.shape, from)?;
                sent += 1;
            }
            std::thread::sleep(TICK);
        }
        Ok(begin.elapsed())
    })
}

/// Datagrams as fast as they can be made.
fn flood(daemon: &Daemon, step: &Step, first: u32) -> Result<Duration> {
    if step.shape != Shape::Datagram {
        bail!("only datagrams can be made at any rate");
    }
    let traffic = Traffic {
        base: PEERS,
        peers: PEER_COUNT,
        order: Order::Sequence,
        first,
    };
    let nobody = (std::net::Ipv4Addr::UNSPECIFIED, 0);
    let packet = wire::udp(nobody, (LOCAL4, SERVICE), &[0; 18]);
    let frame = wire::ethernet(HOST_MAC, &packet);
    let generator = Generator::new(frame, &traffic, Way::Device(daemon.peer_device))?;
    let mut took = Duration::ZERO;
    let mut left = step.count;
    while left > 0 {
        let now = left.min(FLOOD_STEP);
        let ns = daemon.peer.run(|| {
            super::alone(0)?;
            generator.burst(now).context("sending")
        })?;
        took += Duration::from_nanos(u64::from(ns) * u64::from(now));
        left -= now;
    }
    Ok(took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_tells_its_connection() {
        for number in [0, 1, PEER_COUNT, 3 * PEER_COUNT + 7] {
            let (address, port) = generator::source(PEERS, PEER_COUNT, number);
            let record = FlowRecord {
                initiator: Some(IpAddr::V4(address).into()),
                initiator_port: u32::from(port),
                responder_port: u32::from(SERVICE),
                ..FlowRecord::default()
            };
            assert_eq!(number_of(&record), Some(number as usize));
        }
        assert_eq!(number_of(&FlowRecord::default()), None);
    }

    #[test]
    fn what_no_counter_accounts_for_is_unreported() {
        let mut outcome = Outcome {
            shape: Shape::Datagram,
            asked_rate: None,
            rate: 1.0,
            sent: 10,
            recorded: 8,
            lost: BTreeMap::from([("ring-full".into(), 1)]),
            cpu_percent: 0.0,
            waited_percent: 0.0,
        };
        assert_eq!((outcome.missing(), outcome.unreported()), (2, 1));
        outcome.lost.insert("displaced".into(), 1);
        assert_eq!(outcome.unreported(), 0);
    }
}
