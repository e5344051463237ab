//! What a packet costs on its way through the veth pair, the receiver's NAPI, the firewall and the stack to a socket; and
//! what it costs to drop one.

use std::net::{Ipv4Addr, UdpSocket};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{setsockopt, sockopt};
use serde::Serialize;

use super::generator::{self, Generator, Order, Traffic, Way};
use super::netns;
use super::policy::PEER_COUNT;
use super::wire::{self, HOST_MAC, SYN};
use super::world::{Firewall, World};
use crate::frames::{LOCAL4, PEERS, SERVICE, UNKNOWN, UNKNOWN_COUNT};

/// Flows of the large working set.
pub(crate) const FLOWS: u32 = 65_536;
/// Packets that come untimed before the bursts of a round and bring the working set into the caches.
const WARM_UP: u32 = 65_536;
/// Packets of one burst: short enough to fall between two disturbances.
const BURST: u32 = 8_192;
/// Bursts in a round, of which the least counts.
const BURSTS: u32 = 4;
/// Packets between two looks at something: their notices fit into the ring.
const STEP: u32 = 16_384;

/// What kind of packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Datagrams of one established flow.
    Hot,
    /// Datagrams of a pseudo-random one of 65,536 established flows.
    ManyFlows,
    /// A SYN of a pseudo-random address that nobody knows.
    UnknownSource,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Hot, Self::ManyFlows, Self::UnknownSource];

    /// As tables show it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Hot => "established, one flow",
            Self::ManyFlows => "established, 65536 flows at random",
            Self::UnknownSource => "SYN of an unknown source, dropped",
        }
    }

    fn frame(self) -> Vec<u8> {
        let to = (LOCAL4, SERVICE);
        let packet = match self {
            // With an Ethernet header 60 bytes, the least that a wire carries.
            Self::Hot | Self::ManyFlows => wire::udp((Ipv4Addr::UNSPECIFIED, 0), to, &[0; 18]),
            Self::UnknownSource => wire::tcp((Ipv4Addr::UNSPECIFIED, 0), to, (1_000, 0), SYN),
        };
        wire::ethernet(HOST_MAC, &packet)
    }

    const fn traffic(self) -> Traffic {
        let (base, peers, order) = match self {
            Self::Hot => (PEERS, PEER_COUNT, Order::Random(1)),
            Self::ManyFlows => (PEERS, PEER_COUNT, Order::Random(FLOWS)),
            Self::UnknownSource => (UNKNOWN, UNKNOWN_COUNT, Order::Random(1 << 31)),
        };
        Traffic {
            base,
            peers,
            order,
            first: 0,
        }
    }

    const fn arrives(self) -> bool {
        !matches!(self, Self::UnknownSource)
    }

    /// Whether the figure says anything: a SYN that passes is answered by the stack, and a wall lets nothing pass.
    const fn is_told_of(self, firewall: Firewall) -> bool {
        if self.arrives() {
            firewall.is_open()
        } else {
            firewall.judges() || !firewall.is_open()
        }
    }
}

/// Nanoseconds a packet with one firewall.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cost {
    pub(crate) kind: Kind,
    /// `None`: the generator alone.
    pub(crate) firewall: Option<Firewall>,
    /// Least of all rounds.
    pub(crate) ns: f64,
    /// Every round, in its order.
    pub(crate) rounds: Vec<f64>,
}

/// A world ready to be measured: every flow established, a socket that takes and drops what arrives.
struct Subject<'a> {
    world: &'a World,
    sink: UdpSocket,
    generators: [Generator; 3],
}

impl<'a> Subject<'a> {
    fn new(world: &'a World) -> Result<Self> {
        let sink = world
            .host
            .run(|| UdpSocket::bind((LOCAL4, SERVICE)).context("binding the sink"))?;
        // Full after a few datagrams, and then each is counted and freed at once.
        setsockopt(&sink, sockopt::RcvBuf, &0)?;
        sink.set_nonblocking(true)?;
        let way = Way::Device(world.peer_device);
        let make = |kind: Kind| Generator::new(kind.frame(), &kind.traffic(), way);
        let [hot, many, unknown] = Kind::ALL;
        let subject = Self {
            world,
            sink,
            generators: [make(hot)?, make(many)?, make(unknown)?],
        };
        if !world.firewall.is_open() {
            return Ok(subject);
        }
        // Where more than four new flows share a set of the agent's table, they make room for each other: the second time
        // they find the others proven, and get a place beside the set.
        subject.open_flows()?;
        subject.open_flows()?;
        if let Some(kernel) = &world.kernel {
            let flows = kernel.flow_count()?;
            if flows < u64::from(FLOWS) {
                bail!("{FLOWS} flows were opened, {flows} are in the table");
            }
        }
        Ok(subject)
    }

    /// Every flow, by a datagram of the peer and the host's answer to it.
    fn open_flows(&self) -> Result<()> {
        let traffic = Traffic {
            order: Order::Sequence,
            ..Kind::ManyFlows.traffic()
        };
        let way = Way::Device(self.world.peer_device);
        let generator = Generator::new(Kind::ManyFlows.frame(), &traffic, way)?;
        for first in (0..FLOWS).step_by(STEP as usize) {
            let arrived = self.send(&generator, STEP)?.1;
            if arrived != u64::from(STEP) {
                bail!(
                    "{}: {arrived} of {STEP} first packets arrived",
                    self.world.firewall.name()
                );
            }
            for number in first..first + STEP {
                let to = generator::source(PEERS, PEER_COUNT, number);
                self.sink
                    .send_to(&[0; 18], to)
                    .with_context(|| format!("answering flow {number}"))?;
            }
        }
        Ok(())
    }

    /// Sends from the peer; nanoseconds a packet and how many arrived at the host's sockets.
    fn send(&self, generator: &Generator, count: u32) -> Result<(f64, u64)> {
        let before = self.arrived()?;
        let ns = self.world.peer.run(|| {
            super::alone(0)?;
            generator.burst(count).context("sending")
        })?;
        Ok((f64::from(ns), self.arrived()? - before))
    }

    /// Packets that have come to the host's sockets; a datagram counts when it is taken or finds no room.
    fn arrived(&self) -> Result<u64> {
        while self.sink.recv(&mut [0; 64]).is_ok() {}
        self.world.host.run(|| {
            let mut sum = netns::counter("Tcp", "InSegs")?;
            for name in ["InDatagrams", "NoPorts", "InErrors"] {
                sum += netns::counter("Udp", name)?;
            }
            Ok(sum)
        })
    }

    /// The least of a round's bursts, after an untimed one.
    fn round(&self, kind: Kind) -> Result<f64> {
        let generator = self
            .generators
            .get(kind as usize)
            .context("no such generator")?;
        self.send(generator, WARM_UP)?;
        let mut least = f64::INFINITY;
        for _ in 0..BURSTS {
            least = least.min(self.burst(kind, generator)?);
        }
        Ok(least)
    }

    /// Nanoseconds a packet, if each of them arrived or was dropped as it must be.
    fn burst(&self, kind: Kind, generator: &Generator) -> Result<f64> {
        let before = self.dropped()?;
        let (ns, arrived) = self.send(generator, BURST)?;
        let drops = self.dropped()?.zip(before).map(|(now, then)| now - then);
        let wanted = if kind.arrives() { u64::from(BURST) } else { 0 };
        let counted = drops.is_none_or(|drops| drops == u64::from(BURST) - wanted);
        if arrived != wanted || !counted {
            bail!(
                "{}, {}: {arrived} of {BURST} packets arrived, {wanted} should have; counted as dropped: {drops:?}",
                self.world.firewall.name(),
                kind.name()
            );
        }
        Ok(ns)
    }

    /// What the agent's counters say.
    fn dropped(&self) -> Result<Option<u64>> {
        let Some(kernel) = &self.world.kernel else {
            return Ok(None);
        };
        Ok(Some(kernel.totals()?.drops()))
    }
}

/// Measures every kind in every world, once in each round.
pub(crate) fn run(worlds: &[World], rounds: usize) -> Result<Vec<Cost>> {
    let subjects: Vec<Subject<'_>> = worlds.iter().map(Subject::new).collect::<Result<_>>()?;
    let mut costs: Vec<Cost> = Vec::new();
    for kind in Kind::ALL {
        let firewalls = worlds
            .iter()
            .map(|world| world.firewall)
            .filter(|firewall| kind.is_told_of(*firewall));
        costs.extend(firewalls.map(Some).chain([None]).map(|firewall| Cost {
            kind,
            firewall,
            ns: f64::INFINITY,
            rounds: Vec::new(),
        }));
    }
    for _ in 0..rounds {
        for cost in &mut costs {
            let subject = subjects
                .iter()
                .find(|subject| Some(subject.world.firewall) == cost.firewall);
            let ns = match subject {
                Some(subject) => subject.round(cost.kind)?,
                None => generator_alone(cost.kind)?,
            };
            cost.rounds.push(ns);
            cost.ns = cost.ns.min(ns);
        }
    }
    Ok(costs)
}

fn generator_alone(kind: Kind) -> Result<f64> {
    let generator = Generator::new(kind.frame(), &kind.traffic(), Way::Nowhere)?;
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                super::alone(0)?;
                let mut least = f64::INFINITY;
                for _ in 0..BURSTS {
                    least = least.min(f64::from(generator.burst(BURST)?));
                }
                Ok(least)
            })
            .join()
            .map_err(|_| anyhow::anyhow!("a measuring thread panicked"))?
    })
}
