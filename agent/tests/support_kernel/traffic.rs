//! Random packets: conversations with all their states, and everything that can be wrong with a frame.

use datapath::abi::{ActiveWord, Config};
use datapath::ids::Direction;
use datapath::packet::tcp::{ACK, FIN, RST, SYN};
use datapath::sim::packets::{End, end, fragments, icmp, other, piece, sctp, tcp, udp};

use super::frames::{
    as_fragment, ethernet, garble, icmp_error, with_extension, with_extensions, with_ip_options,
    with_tcp_options,
};
use super::rig::Merged;
use super::rng::Rng;
use super::world::{LOCAL, PEERS, PORTS, config, word};

/// A frame on its way through a hook.
#[derive(Clone, Debug)]
pub struct Shot {
    /// The frame.
    pub frame: Vec<u8>,
    /// The hook.
    pub direction: Direction,
    /// Segments, when it is a merged packet.
    pub merged: Option<Merged>,
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Op {
    /// A packet.
    Packet(Shot),
    /// Another active word.
    Word(ActiveWord),
    /// Other settings.
    Config(Config),
    /// Tens of seconds pass for every entry.
    Age(u32),
    /// Every expiry has come.
    Expire,
}

/// Two ends that talk.
#[derive(Clone, Debug)]
struct Talk {
    local: End,
    peer: End,
    /// The peer began.
    inbound: bool,
    protocol: u8,
    step: usize,
    script: Vec<(bool, u8)>,
}

/// A TCP conversation as (from the initiator, flags).
fn script(rng: &mut Rng) -> Vec<(bool, u8)> {
    const PSH: u8 = 0x08;
    let mut steps = vec![(true, SYN), (false, SYN | ACK), (true, ACK)];
    for _ in 0..rng.below(6) {
        steps.push((rng.chance(50), ACK | if rng.chance(50) { PSH } else { 0 }));
    }
    match rng.below(5) {
        0 => steps.extend([(true, FIN | ACK), (false, FIN | ACK), (true, ACK)]),
        1 => steps.extend([
            (false, FIN | ACK),
            (true, ACK),
            (true, FIN | ACK),
            (false, ACK),
        ]),
        2 => steps.extend([(true, RST), (false, ACK), (true, RST | ACK)]),
        3 => steps.extend([
            (false, RST | ACK),
            (true, SYN),
            (false, SYN | ACK),
            (true, ACK),
        ]),
        _ => steps.push((true, FIN | ACK)),
    }
    // The same ports used again.
    if rng.chance(40) {
        steps.extend([(true, SYN), (false, SYN | ACK), (true, ACK)]);
    }
    if rng.chance(35) {
        for _ in 0..3 {
            let at = rng.below(steps.len());
            match rng.below(3) {
                0 => drop(steps.remove(at)),
                1 => steps.insert(at, (rng.chance(50), rng.byte())),
                _ => steps[at] = (rng.chance(50), rng.byte() & 0x3f),
            }
        }
    }
    steps
}

impl Talk {
    fn new(rng: &mut Rng) -> Self {
        let peer = rng.pick(&PEERS);
        let local = LOCAL[usize::from(peer.contains(':'))];
        let inbound = rng.chance(50);
        let protocol = rng.pick(&[6, 6, 6, 6, 17, 17, 132, 1, 1, 47]);
        let client = rng.pick(&[40_000, 40_001, 50_000, 68, 546, 67, 443]);
        let server = rng.pick(&PORTS);
        let (mine, theirs) = match (protocol, inbound) {
            (1, _) => (77, 77),
            (_, true) => (server, client),
            (_, false) => (client, server),
        };
        let local = if rng.chance(3) { peer } else { local };
        let peer = if rng.chance(3) { local } else { peer };
        Self {
            local: end(local, mine),
            peer: end(peer, theirs),
            inbound,
            protocol,
            step: 0,
            script: script(rng),
        }
    }

    /// The next packet of the conversation.
    fn next(&mut self, rng: &mut Rng) -> (Vec<u8>, Direction) {
        let (from_initiator, flags) = match self.script.get(self.step) {
            Some(step) if self.protocol == 6 => *step,
            _ if self.step == 0 => (true, SYN),
            _ => (rng.chance(50), ACK),
        };
        self.step += 1;
        let outward = from_initiator != self.inbound;
        let (from, to, direction) = if outward {
            (self.local, self.peer, Direction::Egress)
        } else {
            (self.peer, self.local, Direction::Ingress)
        };
        (self.frame(from, to, from_initiator, flags, rng), direction)
    }

    fn frame(&self, from: End, to: End, request: bool, flags: u8, rng: &mut Rng) -> Vec<u8> {
        let payload = rng.pick(&[0, 0, 1, 40, 200]);
        match self.protocol {
            6 => tcp(from, to, flags, payload),
            17 => udp(from, to, payload),
            132 => sctp(from, to, payload),
            1 => {
                let kind = match (from.addr.is_ipv4(), request) {
                    (true, true) => 8,
                    (true, false) => 0,
                    (false, true) => 128,
                    (false, false) => 129,
                };
                icmp(from, to, kind, 0, &vec![7; payload])
            }
            number => other(from, to, number, payload.max(4)),
        }
    }
}

/// An ICMP message that is no echo: errors about a conversation, control of the link, odd types.
fn control(talk: &Talk, rng: &mut Rng) -> (Vec<u8>, Direction) {
    let direction = if rng.chance(70) {
        Direction::Ingress
    } else {
        Direction::Egress
    };
    let (me, they) = match direction {
        Direction::Ingress => (talk.local, talk.peer),
        Direction::Egress => (talk.peer, talk.local),
    };
    let router = match (rng.chance(50), me.addr.is_ipv4()) {
        (true, true) => end("192.0.2.254", 0),
        (true, false) => end("fe80::fe", 0),
        _ => they,
    };
    let mine = talk.frame(me, they, true, ACK, rng);
    let sent = if rng.chance(80) {
        mine
    } else {
        talk.frame(they, me, true, ACK, rng)
    };
    let (kinds4, kinds6): (&[u8], &[u8]) = (
        &[3, 3, 3, 4, 11, 12, 5, 13, 9],
        &[
            1, 2, 2, 3, 4, 137, 133, 134, 135, 136, 130, 143, 141, 150, 255,
        ],
    );
    let kind = rng.pick(if me.addr.is_ipv4() { kinds4 } else { kinds6 });
    let quoted = if rng.chance(80) { 60 } else { rng.below(64) };
    let code = rng.below(5) as u8;
    let mut frame = icmp_error(router, me, &sent, (kind, code), quoted);
    // Neighbour discovery that a router passed on.
    if me.addr.is_ipv6() && rng.chance(15) {
        frame[14 + 7] = 64;
    }
    (frame, direction)
}

/// What else may happen to a frame on its way.
fn disturb(frame: Vec<u8>, rng: &mut Rng) -> Vec<u8> {
    match rng.below(100) {
        0..=3 => {
            let length = 14 + rng.below(frame.len() - 13);
            frame[..length].to_vec()
        }
        4..=9 => garble(frame, rng),
        10..=12 => with_ip_options(frame, rng.below(11)),
        13..=14 => as_fragment(frame, 0, true),
        15..=16 => as_fragment(frame, 1 + rng.below(100) as u16, rng.chance(50)),
        17..=20 => with_extensions(frame, rng),
        21..=23 => with_tcp_options(frame, rng.below(11)),
        24 => ethernet(rng.pick(&[0x0806, 0x88cc, 0x8100, 0x0001, 0x0600]), 60),
        // Trailing bytes, as short Ethernet frames have them.
        25..=26 => [frame, vec![0; rng.below(20)]].concat(),
        _ => frame,
    }
}

/// Pieces of a frame that are still under way.
struct UnderWay {
    pieces: Vec<Vec<u8>>,
    direction: Direction,
}

/// Cuts a plain frame into fragments and disturbs their order, their number and what they say. Few identifications, so
/// that packets meet.
fn in_pieces(frame: &[u8], rng: &mut Rng) -> Vec<Vec<u8>> {
    let size = 8 * (1 + rng.below(12));
    let id = 1 + rng.below(4) as u32;
    let mut pieces = fragments(frame, id, size);
    pieces.truncate(8);
    match rng.below(6) {
        0 => {
            let (a, b) = (rng.below(pieces.len()), rng.below(pieces.len()));
            pieces.swap(a, b);
        }
        1 => drop(pieces.remove(rng.below(pieces.len()))),
        2 => {
            // A piece that overlaps others, often the header.
            let from = 8 * rng.below(4);
            let again = piece(frame, id, from, from + size);
            pieces.insert(rng.below(pieces.len() + 1), again);
        }
        3 => {
            let at = rng.below(pieces.len());
            pieces[at] = garble(pieces[at].clone(), rng);
        }
        _ => {}
    }
    pieces
}

fn merge(frame: &[u8], rng: &mut Rng) -> Option<Merged> {
    match rng.below(20) {
        0 => Some(Merged {
            segments: rng.below(6) as u32,
            size: 1 + rng.below(1400) as u32,
        }),
        1 if frame.len() > 100 => Some(Merged {
            segments: 2 + rng.below(60) as u32,
            size: 40,
        }),
        _ => None,
    }
}

/// A random course of events over a handful of conversations.
pub fn sequence(rng: &mut Rng, packets: usize, talks: usize, now: u64) -> Vec<Op> {
    let mut generation = 1 + rng.below(5) as u32;
    let mut talks: Vec<Talk> = (0..1 + rng.below(talks)).map(|_| Talk::new(rng)).collect();
    let mut first = word(rng, generation, now);
    if first.is_empty() && rng.chance(50) {
        first = ActiveWord::committed(generation, 0);
    }
    let mut ops = vec![Op::Config(config(rng)), Op::Word(first)];
    let mut sent = 0;
    let mut under_way: Vec<UnderWay> = Vec::new();
    while sent < packets {
        if !under_way.is_empty() && rng.chance(60) {
            let at = rng.below(under_way.len());
            let packet = &mut under_way[at];
            if packet.pieces.is_empty() {
                under_way.remove(at);
                continue;
            }
            ops.push(Op::Packet(Shot {
                frame: packet.pieces.remove(0),
                direction: packet.direction,
                merged: None,
            }));
            sent += 1;
            continue;
        }
        match rng.below(100) {
            0..=3 => {
                generation += rng.below(3) as u32;
                ops.push(Op::Word(word(rng, generation, now)));
            }
            4 => ops.push(Op::Config(config(rng))),
            5..=6 => ops.push(Op::Age(10 * (1 + rng.below(70)) as u32)),
            7 => ops.push(Op::Expire),
            roll => {
                let at = rng.below(talks.len());
                let talk = &mut talks[at];
                let (frame, mut direction) = if roll < 20 {
                    control(talk, rng)
                } else {
                    talk.next(rng)
                };
                if rng.chance(2) {
                    direction = direction.flipped();
                }
                if rng.chance(6) {
                    let pieces = in_pieces(&frame, rng);
                    under_way.push(UnderWay { pieces, direction });
                    continue;
                }
                let frame = disturb(frame, rng);
                let merged = merge(&frame, rng);
                ops.push(Op::Packet(Shot {
                    frame,
                    direction,
                    merged,
                }));
                sent += 1;
            }
        }
    }
    ops
}

/// One frame of every kind that the parser tells apart.
pub fn every_kind() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for (local, peer) in [(LOCAL[0], PEERS[0]), (LOCAL[1], PEERS[7])] {
        let (from, to) = (end(peer, 40_000), end(local, 443));
        let segment = tcp(from, to, SYN, 3);
        let (echo, error, odd) = match from.addr.is_ipv4() {
            true => (8, 3, 13),
            false => (128, 2, 150),
        };
        let back = tcp(to, from, ACK, 3);
        let long = tcp(from, to, SYN, 43);
        frames.extend([
            segment.clone(),
            with_tcp_options(segment.clone(), 5),
            with_ip_options(segment.clone(), 4),
            piece(&segment, 1, 0, 16),
            piece(&long, 2, 0, 24),
            piece(&long, 2, 24, 63),
            udp(from, to, 3),
            sctp(from, to, 3),
            other(from, to, 47, 8),
            icmp(from, to, echo, 0, &[1, 2, 3]),
            icmp(from, to, odd, 0, &[1, 2, 3]),
            icmp_error(from, to, &back, (error, 0), 60),
        ]);
        if from.addr.is_ipv6() {
            frames.push(icmp(from, to, 135, 0, &[0; 16]));
            let chain = with_extension(segment, 60, &[1; 15]);
            frames.push(with_extension(chain, 0, &[0; 7]));
        }
    }
    frames
}
