//! Random packets that open a flow between the workload of a scene and somebody.

use std::collections::HashSet;
use std::net::IpAddr;

use datapath::packet::tcp::SYN;
use datapath::sim::packets::{End, ip, other, sctp, tcp, udp};
use policy::snapshot::FlowDirection;
use policy::testing::{self, Random};

use crate::support::frames;
use crate::wanted::Scene;

/// Numbers that no parser of ours knows: GRE, ESP, OSPF, private encryption, unassigned.
const UNKNOWN: [u8; 5] = [47, 50, 89, 99, 200];
/// Opens with these are echo requests; all others here are messages that policy decides on by type and code.
const ICMP4: [(u8, u8); 4] = [(8, 0), (8, 1), (13, 0), (17, 0)];
const ICMP6: [(u8, u8); 4] = [(128, 0), (128, 1), (139, 0), (150, 0)];
/// Source and destination ports of a DHCP client's packets, by family and direction.
const DHCP: [(bool, FlowDirection, u16, u16); 4] = [
    (false, FlowDirection::Egress, 68, 67),
    (false, FlowDirection::Ingress, 67, 68),
    (true, FlowDirection::Egress, 546, 547),
    (true, FlowDirection::Ingress, 547, 546),
];

/// The first packet of a flow at the scene's workload.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    /// Of the flow, seen from the workload.
    pub(crate) direction: FlowDirection,
    /// An address of the workload.
    pub(crate) own: IpAddr,
    /// The other end's address.
    pub(crate) peer: IpAddr,
    /// IANA protocol number.
    pub(crate) protocol: u8,
    /// Source port or echo identifier.
    pub(crate) source_port: u16,
    /// What policy calls the port.
    pub(crate) port: u16,
    /// The packet.
    pub(crate) frame: Vec<u8>,
}

/// A random packet; `None` where the dice gave none that belongs to a flow of its own.
pub(crate) fn random(
    random: &mut Random,
    scene: &Scene<'_>,
    taken: &mut HashSet<(u8, IpAddr, u16)>,
) -> Option<Ask> {
    let peer = peer(random, scene);
    let same_family: Vec<IpAddr> = (scene.subject.addresses.iter().copied())
        .filter(|own| own.is_ipv4() == peer.is_ipv4())
        .collect();
    // Traffic of a workload with itself never reaches a hook.
    if same_family.is_empty() || scene.subject.addresses.contains(&peer) {
        return None;
    }
    let own = random.pick(&same_family);
    let direction = random.pick(&[FlowDirection::Ingress, FlowDirection::Egress]);
    let protocol = match random.below(12) {
        0..=4 => 6,
        5 | 6 => 17,
        7 => 132,
        8 | 9 => 1,
        10 => 58,
        _ => random.pick(&UNKNOWN),
    };
    // Each family's own control protocol most of the time; the other one's is a number like any other.
    let protocol = match protocol {
        1 | 58 if random.chance(80) => {
            if peer.is_ipv4() {
                1
            } else {
                58
            }
        }
        other => other,
    };
    let source_port = 1024 + random.below(60_000) as u16;
    let mut ask = Ask {
        direction,
        own,
        peer,
        protocol,
        source_port,
        port: 0,
        frame: Vec::new(),
    };
    match protocol {
        6 | 17 | 132 => {
            ask.port = port(random);
            if protocol == 17 && random.chance(5) {
                let found = DHCP
                    .iter()
                    .find(|(six, towards, ..)| *six == peer.is_ipv6() && *towards == direction)?;
                (ask.source_port, ask.port) = (found.2, found.3);
            }
        }
        1 | 58 => {
            let (kind, code) = match (protocol, peer.is_ipv4()) {
                (1, _) => random.pick(&ICMP4),
                (_, false) => random.pick(&ICMP6),
                // What is control of the link in IPv6 is nothing in IPv4.
                (_, true) => {
                    random.pick(&[(128, 0), (135, 0), (133, 0), (143, 0), (1, 0), (137, 0)])
                }
            };
            ask.port = (u16::from(kind) << 8) | u16::from(code);
        }
        _ => {}
    }
    let apart = match (protocol, ask.port >> 8, peer.is_ipv4()) {
        (6 | 17 | 132, ..) => ask.source_port ^ ask.port,
        // An echo is told apart by its identifier alone.
        (1, 8, true) | (58, 128, false) => ask.source_port,
        (1 | 58, ..) => ask.port,
        _ => 0,
    };
    if !taken.insert((protocol, peer, apart)) {
        return None;
    }
    ask.frame = frame(random, &ask);
    Some(ask)
}

fn peer(random: &mut Random, scene: &Scene<'_>) -> IpAddr {
    if random.chance(60) {
        let other = random.below(scene.world.workloads().len());
        random.pick(&scene.world.workloads()[other].addresses)
    } else {
        testing::address(random.pick(&testing::STRANGERS))
    }
}

/// Ports that rules and failsafes speak about, and any.
fn port(random: &mut Random) -> u16 {
    match random.below(10) {
        0 | 1 => random.bits() as u16,
        2 => 53,
        _ => random.pick(&testing::PORTS),
    }
}

/// The packet, now and then with options or extension headers, which change nothing.
fn frame(random: &mut Random, ask: &Ask) -> Vec<u8> {
    let own = |port| End {
        addr: ask.own,
        port,
    };
    let peer = |port| End {
        addr: ask.peer,
        port,
    };
    let (from, to) = match ask.direction {
        FlowDirection::Ingress => (peer(ask.source_port), own(ask.port)),
        FlowDirection::Egress => (own(ask.source_port), peer(ask.port)),
    };
    let payload = random.pick(&[0, 1, 40]);
    let frame = match ask.protocol {
        6 => tcp(from, to, SYN, payload),
        17 => udp(from, to, payload),
        132 => sctp(from, to, payload),
        1 | 58 => {
            let [kind, code] = ask.port.to_be_bytes();
            let [high, low] = ask.source_port.to_be_bytes();
            let mut message = vec![kind, code, 0, 0, high, low, 0, 1];
            message.resize(8 + payload, 7);
            ip(from.addr, to.addr, ask.protocol, &message)
        }
        number => other(from, to, number, payload + 4),
    };
    match random.below(20) {
        0 => frames::with_ip_options(frame, 1 + random.below(10)),
        1 => frames::with_tcp_options(frame, 1 + random.below(10)),
        // A whole packet behind a fragment header (RFC 6946); packets in pieces have tests of their own.
        2 => frames::as_fragment(frame, 0, false),
        3 => frames::with_extension(frame, random.pick(&[0, 43, 60]), &[0; 7]),
        // RFC 4302 §2.2: 24 bytes are 6 units of 4, less 2.
        4 => frames::with_extension(frame, 51, &[&[4u8][..], &[0; 22]].concat()),
        _ => frame,
    }
}
