//! The same packets to every firewall, and what became of them. Nothing is timed before both say the same.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::generator::{Generator, Order, Traffic, Way};
use super::netns;
use super::wire::{self, ACK, HOST_MAC, SYN};
use super::world::{Firewall, REAL_PEER, World};
use crate::frames::{CLOSED, LOCAL4, PEERS, SERVICE, UNKNOWN, peer4};

/// For what must come, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(5);
/// For what a firewall may drop: a real connection that is refused tries its SYN once within this time.
const BRIEF: Duration = Duration::from_millis(500);
const MARK: &[u8] = b"mark";
const PROBE: &[u8] = b"probe";

/// A packet or an exchange, whether it passed, and whether the policy wants that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Verdict {
    pub(crate) probe: &'static str,
    pub(crate) passed: bool,
    pub(crate) wanted: bool,
}

/// What differs between the verdicts of some firewalls and the policy, or between them; the host without a firewall must
/// let everything pass, or the probes prove nothing.
pub(crate) fn differences(verdicts: &[(Firewall, Vec<Verdict>)]) -> Vec<String> {
    let mut found = Vec::new();
    for (firewall, verdicts) in verdicts {
        for verdict in verdicts {
            let wanted = !firewall.judges() || verdict.wanted;
            if verdict.passed != wanted {
                let did = if verdict.passed { "passed" } else { "dropped" };
                found.push(format!("{}: {} was {did}", firewall.name(), verdict.probe));
            }
        }
    }
    let names = |verdicts: &[Verdict]| -> Vec<&str> {
        verdicts.iter().map(|verdict| verdict.probe).collect()
    };
    if let Some((_, first)) = verdicts.first() {
        for (firewall, others) in verdicts {
            if names(first).is_empty() || names(first) != names(others) {
                found.push(format!("{}: other probes", firewall.name()));
            }
        }
    }
    found
}

/// Sockets at both ends of a world. Everything listens: what does not arrive was dropped on the way.
struct Ends<'a> {
    world: &'a World,
    services: [UdpSocket; 2],
    listeners: [TcpListener; 2],
    marker: UdpSocket,
    uninvited: UdpSocket,
    /// First port of this round's probes: flows of a round before are none of this one.
    ports: u16,
}

/// Asks a world every question. `round`, at most 100, makes them new ones.
pub(crate) fn ask(world: &World, round: u16) -> Result<Vec<Verdict>> {
    let ends = Ends::open(world, 20_000 + 100 * round)?;
    let mut verdicts = Vec::new();
    let mut note = |probe, passed, wanted| {
        verdicts.push(Verdict {
            probe,
            passed,
            wanted,
        });
    };
    for (probe, source, port, wanted) in [
        ("datagram to the allowed port", PEERS, SERVICE, true),
        ("next datagram of that flow", PEERS, SERVICE, true),
        ("datagram to a closed port", PEERS, CLOSED, false),
        ("datagram of an unknown source", UNKNOWN, SERVICE, false),
    ] {
        note(probe, ends.datagram(source, port)?, wanted);
    }
    for (probe, source, port, flags, offset, wanted) in [
        ("SYN to the allowed port", PEERS, SERVICE, SYN, 0, true),
        ("SYN to a closed port", PEERS, CLOSED, SYN, 1, false),
        ("SYN of an unknown source", UNKNOWN, SERVICE, SYN, 2, false),
        ("ACK out of nowhere", PEERS, SERVICE, ACK, 3, false),
        (
            "SYN-ACK out of nowhere",
            PEERS,
            SERVICE,
            SYN | ACK,
            4,
            false,
        ),
    ] {
        note(probe, ends.segment(source, port, flags, offset)?, wanted);
    }
    let (reply, uninvited) = ends.outward()?;
    note("reply", reply, true);
    note("datagram of the host's own accord", uninvited, false);
    note("connection with data both ways", ends.session(0)?, true);
    note("connection to a closed port", ends.session(1)?, false);
    Ok(verdicts)
}

impl<'a> Ends<'a> {
    fn open(world: &'a World, ports: u16) -> Result<Self> {
        let (services, listeners) = world.host.run(|| {
            let udp = |port| UdpSocket::bind((LOCAL4, port)).context("binding a service");
            let tcp = |port| TcpListener::bind((LOCAL4, port)).context("listening");
            Ok(([udp(SERVICE)?, udp(CLOSED)?], [tcp(SERVICE)?, tcp(CLOSED)?]))
        })?;
        let (marker, uninvited) = world.peer.run(|| {
            let udp =
                |port| UdpSocket::bind((peer4(REAL_PEER), port)).context("binding at the peer");
            Ok((udp(ports)?, udp(ports + 1)?))
        })?;
        for socket in [&services[0], &marker] {
            socket.set_read_timeout(Some(PATIENCE))?;
        }
        for socket in [&services[1], &uninvited] {
            socket.set_nonblocking(true)?;
        }
        Ok(Self {
            world,
            services,
            listeners,
            marker,
            uninvited,
            ports,
        })
    }

    /// A datagram that every firewall must let through, behind the probes on the same wire: when it is there, they are
    /// there or never will be. Returns how many probes the service got.
    fn mark(&self) -> Result<(usize, SocketAddr)> {
        self.marker.send_to(MARK, (LOCAL4, SERVICE))?;
        let mut probes = 0;
        loop {
            let mut buffer = [0; 64];
            let (length, from) = self.services[0].recv_from(&mut buffer).with_context(|| {
                format!(
                    "{}: an allowed datagram did not arrive",
                    self.world.firewall.name()
                )
            })?;
            match buffer.get(..length) {
                Some(MARK) => return Ok((probes, from)),
                Some(PROBE) => probes += 1,
                other => bail!("an unknown datagram arrived: {other:?}"),
            }
        }
    }

    fn inject(&self, packet: &[u8]) -> Result<()> {
        let traffic = Traffic {
            base: 0,
            peers: 1,
            order: Order::Same,
            first: 0,
        };
        let frame = wire::ethernet(HOST_MAC, packet);
        let way = Way::Device(self.world.peer_device);
        let generator = Generator::new(frame, &traffic, way)?;
        self.world.peer.run(|| {
            generator.burst(1).context("sending a probe")?;
            Ok(())
        })
    }

    fn datagram(&self, source: u32, port: u16) -> Result<bool> {
        let from = (peer4(source), self.ports);
        self.inject(&wire::udp(from, (LOCAL4, port), PROBE))?;
        let (probes, _) = self.mark()?;
        let closed = match self.services[1].recv(&mut [0; 64]) {
            Ok(_) => 1,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error.into()),
        };
        Ok(probes + closed > 0)
    }

    fn segment(&self, source: u32, port: u16, flags: u8, offset: u16) -> Result<bool> {
        let seen = || self.world.host.run(|| netns::counter("Tcp", "InSegs"));
        let before = seen()?;
        let from = (peer4(source), self.ports + 10 + offset);
        self.inject(&wire::tcp(from, (LOCAL4, port), (1_000, 0), flags))?;
        self.mark()?;
        Ok(seen()? > before)
    }

    /// Whether a reply, and whether a datagram that nobody asked for, leaves the host.
    fn outward(&self) -> Result<(bool, bool)> {
        let (_, asker) = self.mark()?;
        let service = &self.services[0];
        // Dropped on the way out is an error to the sender in nftables, and silence with us.
        for port in [self.ports + 1, self.ports] {
            let _ = service.send_to(PROBE, (peer4(REAL_PEER), port));
        }
        let reply = self.marker.recv_from(&mut [0; 64]).is_ok() && asker.port() == self.ports;
        Ok((reply, self.uninvited.recv(&mut [0; 64]).is_ok()))
    }

    /// A connection of the real peer, one byte each way.
    fn session(&self, which: usize) -> Result<bool> {
        let listener = self.listeners.get(which).context("no such listener")?;
        let address = listener.local_addr()?;
        let connected = self
            .world
            .peer
            .run(|| Ok(TcpStream::connect_timeout(&address, BRIEF).ok()))?;
        let Some(mut client) = connected else {
            return Ok(false);
        };
        // The raw SYN above has no other end: the queue may hold it before this one, but never hands it out.
        let (mut server, _) = listener.accept()?;
        let mut echo = || -> std::io::Result<bool> {
            for stream in [&client, &server] {
                stream.set_read_timeout(Some(PATIENCE))?;
            }
            let mut byte = [0];
            client.write_all(b"?")?;
            server.read_exact(&mut byte)?;
            server.write_all(b"!")?;
            client.read_exact(&mut byte)?;
            Ok(byte == *b"!")
        };
        Ok(echo().unwrap_or(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::policy;

    fn verdict(passed: bool, wanted: bool) -> Vec<Verdict> {
        vec![Verdict {
            probe: "a packet",
            passed,
            wanted,
        }]
    }

    #[test]
    fn a_firewall_that_differs_is_named() {
        let agree = [
            (Firewall::None, verdict(true, false)),
            (Firewall::Nftables, verdict(false, false)),
            (Firewall::Cofferdam, verdict(false, false)),
        ];
        assert!(differences(&agree).is_empty());
        let mut differ = agree.clone();
        differ[1].1 = verdict(true, false);
        assert_eq!(differences(&differ), ["nftables: a packet was passed"]);
        let mut lost = agree.clone();
        lost[0].1 = verdict(false, false);
        assert_eq!(differences(&lost), ["no firewall: a packet was dropped"]);
        let mut fewer = agree;
        fewer[2].1.clear();
        assert_eq!(differences(&fewer), ["Cofferdam: other probes"]);
    }

    /// Says loudly, and to the log of `cargo xtask test`, that the test below did not run.
    fn skip(missing: &str) {
        let line = format!("SKIP: real_firewalls_agree_and_a_wrong_rule_is_caught: {missing}\n");
        eprint!("{line}");
        if let Some(path) = std::env::var_os("COFFERDAM_SKIP_LOG").filter(|path| !path.is_empty()) {
            let log = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path);
            log.unwrap().write_all(line.as_bytes()).unwrap();
        }
    }

    /// Real hosts: the firewalls agree, and one that lets a closed port or the middle of a connection through is caught.
    #[test]
    fn real_firewalls_agree_and_a_wrong_rule_is_caught() {
        if let Some(missing) = crate::stack::missing() {
            skip(&missing);
            return;
        }
        crate::host::private_bpffs().unwrap();
        let ask = |world: World| (world.firewall, super::ask(&world, 0).unwrap());
        let right: Vec<_> = Firewall::ALL
            .into_iter()
            .filter(|firewall| firewall.is_open())
            .map(|firewall| ask(World::new(firewall).unwrap()))
            .collect();
        assert_eq!(differences(&right), Vec::<String>::new());
        let rules = policy::nftables();
        for (of, to, caught) in [
            ("ct state new ip saddr", "ip saddr", "ACK out of nowhere"),
            (
                "@allowed accept",
                "@allowed accept\n        udp dport 8443 accept",
                "datagram to a closed port",
            ),
            (
                "hook output priority filter; policy drop",
                "hook output priority filter; policy accept",
                "datagram of the host's own accord",
            ),
        ] {
            let wrong = rules.replace(of, to);
            assert_ne!(wrong, rules);
            let world = World::with_rules(Firewall::Nftables, &wrong).unwrap();
            let found = differences(&[ask(world)]);
            let named = format!("nftables: {caught} was passed");
            assert!(found.contains(&named), "{of}: {found:?}");
        }
    }
}
