//! Fuzz targets: plain functions of bytes that panic when something is wrong.
//!
//! A fuzzer may drive each by itself; here they run over frames of every kind and over random bytes.

use std::fmt::Debug;
use std::sync::LazyLock;

use datapath::abi::{
    ActiveWord, ClassValue, Config, EndpointValue, RuleKey, RuleValue, mode, rule_flags,
};
use datapath::conntrack::{State, datagram_step, tcp_step, tcp_unproven};
use datapath::drop_reason::DropReason;
use datapath::ids::Direction;
use datapath::ids::protocol;
use datapath::packet::{Fragment, Inner, Kind, Packet, Piece, parse4, parse6};
use datapath::pipeline::Action;
use datapath::sim::{Content, Sim};

use super::memory::Memory;

/// Where the network layer begins.
pub(crate) const L3: usize = 14;

fn word(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

/// What the memory of a packet may hold of the one before: a segment, an error with what it quotes.
fn used<A: Copy + Default>(parse: impl Fn(&[u8], &mut Packet<A>)) -> Packet<A> {
    let mut packet = Packet::default();
    for frame in crate::corpus() {
        parse(frame, &mut packet);
    }
    packet
}

/// The fields that mean something, to compare: a later fragment has no ports of its own, only errors quote, and what the
/// parser's parts hand each other comes last.
fn meant<A: Copy + Default + Debug>(mut packet: Packet<A>) -> String {
    if packet.piece == Piece::Later {
        (packet.src_port, packet.dst_port, packet.policy_port) = (0, 0, 0);
        (packet.protocol, packet.tcp_flags, packet.seq, packet.ack) = (0, 0, 0, 0);
        (packet.kind, packet.reply_only) = (Kind::Flow, false);
    }
    if packet.piece == Piece::Whole {
        packet.fragment = Fragment::default();
    }
    if packet.kind != Kind::IcmpError {
        packet.inner = Inner::default();
    }
    let text = format!("{packet:?}");
    let (public, _) = text.split_once(", l4: ").unwrap();
    public.to_owned()
}

/// The parser over a frame: same answer whatever its memory held before, and every field is where the headers have it.
pub(crate) fn parser(frame: &[u8]) {
    static USED4: LazyLock<Packet<[u8; 4]>> = LazyLock::new(|| {
        used(|frame, packet| {
            let _ = parse4(&Memory::of(frame), L3 as u32, packet);
        })
    });
    static USED6: LazyLock<Packet<[u8; 16]>> = LazyLock::new(|| {
        used(|frame, packet| {
            let _ = parse6(&Memory::of(frame), L3 as u32, packet);
        })
    });
    let memory = Memory::of(frame);
    let (mut fresh, mut used) = (Packet::default(), *USED4);
    let first = parse4(&memory, L3 as u32, &mut fresh);
    assert_eq!(first, parse4(&memory, L3 as u32, &mut used));
    if first.is_ok() {
        assert_eq!(meant(fresh), meant(used));
        parsed4(frame, &fresh);
    }
    let (mut fresh, mut used) = (Packet::default(), *USED6);
    let first = parse6(&memory, L3 as u32, &mut fresh);
    assert_eq!(first, parse6(&memory, L3 as u32, &mut used));
    if first.is_ok() {
        assert_eq!(meant(fresh), meant(used));
        parsed6(frame, &fresh);
    }
}

fn parsed4(frame: &[u8], packet: &Packet<[u8; 4]>) {
    let (ihl, total) = (usize::from(frame[L3] & 15) * 4, word(frame, L3 + 2));
    assert_eq!(frame[L3] >> 4, 4);
    assert!(ihl >= 20 && ihl <= total && L3 + total <= frame.len());
    assert_eq!(packet.src, frame[26..30]);
    assert_eq!(packet.dst, frame[30..34]);
    assert_eq!((packet.packets, packet.bytes as usize), (1, total));
    if packet.piece != Piece::Later {
        assert_eq!(packet.protocol, frame[23]);
        ports(frame, L3 + ihl, packet);
    }
}

fn parsed6(frame: &[u8], packet: &Packet<[u8; 16]>) {
    let total = 40 + word(frame, L3 + 4);
    assert_eq!(frame[L3] >> 4, 6);
    assert!(L3 + total <= frame.len());
    assert_eq!(packet.src, frame[22..38]);
    assert_eq!(packet.dst, frame[38..54]);
    assert_eq!((packet.packets, packet.bytes as usize), (1, total));
    if frame[L3 + 6] == packet.protocol {
        ports(frame, L3 + 40, packet);
    }
}

fn ports<A: Copy>(frame: &[u8], l4: usize, packet: &Packet<A>) {
    if packet.kind != Kind::Flow {
        return;
    }
    if [protocol::TCP, protocol::UDP, protocol::SCTP].contains(&packet.protocol) {
        assert_eq!(usize::from(packet.src_port), word(frame, l4));
        assert_eq!(usize::from(packet.dst_port), word(frame, l4 + 2));
        assert_eq!(packet.policy_port, packet.dst_port);
    }
    if packet.protocol == protocol::TCP {
        assert_eq!(packet.tcp_flags, frame[l4 + 13]);
        assert!(frame[l4 + 12] >> 4 >= 5);
    }
}

/// Connection states over a sequence of segments, one byte each: its low six bits are flags, its highest is who sent it.
pub(crate) fn steps(data: &[u8]) {
    let (mut tcp, mut half, mut proven, mut isn) = (State::SYN_SENT, State::SYN_SENT, false, None);
    let mut datagrams = State::NEW;
    for byte in data {
        let (initiator, flags) = (byte & 0x80 != 0, byte & 0x3f);
        let before = tcp;
        tcp = tcp_step(tcp, initiator, flags);
        assert!((1..=7).contains(&tcp.0), "{before:?} {byte:02x} {tcp:?}");
        if before.is_proven() && flags & 0x06 == 0x02 {
            assert_eq!(tcp, before, "a SYN moves no proven flow");
        }
        if tcp == State::ESTABLISHED {
            assert!(
                flags & 0x10 != 0 || before == tcp,
                "only an ACK establishes"
            );
        }
        assert_eq!(tcp_step(State::CUT, initiator, flags), State::CUT);
        if !proven {
            // Somebody who guesses: far from any number that was told.
            let guess = isn.unwrap_or(0x5555_5555_u32).wrapping_add(0x4000_0000);
            let blind = tcp_unproven(half, initiator, flags, (guess, guess), isn);
            assert!(!blind.proven, "a guess proves nothing");
            let acknowledges = isn.map_or(77, |isn: u32| isn.wrapping_add(1));
            let after = tcp_unproven(half, initiator, flags, (900, acknowledges), isn);
            assert!(!after.proven || (isn.is_some() && initiator && flags & 0x16 == 0x10));
            assert!(after.isn.is_none() || (isn.is_none() && !initiator && flags & 0x02 != 0));
            (half, proven) = (after.state, after.proven);
            isn = isn.or(after.isn);
        }
        datagrams = datagram_step(datagrams, initiator);
        assert_eq!(datagram_step(State::CUT, initiator), State::CUT);
        assert!(datagrams == State::NEW || datagrams == State::REPLIED);
    }
    let answered = data.iter().any(|byte| byte & 0x80 == 0);
    assert_eq!(datagrams == State::REPLIED, answered);
}

/// A host in enforce whose policy allows nothing.
pub(crate) fn closed() -> Sim {
    let mut content = Content::default();
    let value = EndpointValue {
        mode: mode::ENFORCE,
        reserved: 0,
    };
    content.endpoints.insert(1, value);
    for direction in [0, 1] {
        let class = ClassValue {
            class: 1,
            filter: 0,
        };
        content.classes.insert((1, 0, direction), class);
    }
    let any = RuleKey {
        prefix_len: RuleKey::ANY_PROTOCOL,
        class: 1,
        ..RuleKey::default()
    };
    let deny = RuleValue {
        rule: 9,
        draft_rule: 9,
        reason: DropReason::DefaultDeny as u8,
        draft_reason: DropReason::DefaultDeny as u8,
        flags: rule_flags::ENFORCED,
        ..RuleValue::default()
    };
    content.rules.push((any, deny));
    let mut sim = Sim::new();
    sim.resize(64, 64);
    sim.slots = [content.clone(), content];
    sim.config = Config {
        endpoint: 1,
        ..sim.config
    };
    sim.word.set(ActiveWord::committed(1, 0));
    sim
}

/// A whole host that allows nothing: frames one after the other, each with a byte before it that says how long it is (in
/// eights) and which way it goes. What passes carries no IP, or is discovery.
pub(crate) fn pipeline(mut data: &[u8]) {
    let sim = closed();
    while let [head, rest @ ..] = data {
        let (frame, after) = rest.split_at(rest.len().min(L3 + usize::from(head & 0x7f) * 8));
        data = after;
        let direction = if head & 0x80 == 0 {
            Direction::Ingress
        } else {
            Direction::Egress
        };
        if frame.len() < L3 || sim.send(frame, direction) == Action::Drop {
            continue;
        }
        let kind = match [frame[12], frame[13]] {
            [0x08, 0x00] => panic!("IPv4 passes: {frame:02x?}"),
            [0x86, 0xdd] => {
                let mut packet = Packet::default();
                let parsed = parse6(&Memory::of(frame), L3 as u32, &mut packet);
                parsed.map(|()| packet.kind)
            }
            _ => Ok(Kind::LinkLocalControl),
        };
        assert_eq!(kind, Ok(Kind::LinkLocalControl), "{frame:02x?}");
    }
    assert!(sim.flows4().is_empty() && sim.flows6().is_empty());
}
