//! Broken packets, truncations and garbage.

use datapath::abi::failsafe_flags;
use datapath::drop_reason::DropReason;
use datapath::ids::Direction::{self, Egress, Ingress};
use datapath::packet::tcp::SYN;
use datapath::pipeline::Action::{self, Drop, Pass};
use datapath::record::FlowView;
use datapath::sim::Sim;
use datapath::sim::packets::{end, icmp, sctp, tcp, udp};

use crate::support::{LOCAL, OTHER, PEER, armed, failsafe};

#[test]
fn nothing_activated_means_nothing_passes() {
    let sim = Sim::new();
    assert_eq!(
        sim.send(&tcp(end(PEER, 1), end(LOCAL, 443), SYN, 0), Ingress),
        Drop
    );
    assert_eq!(sim.dropped(DropReason::NoPolicy), 1);
    // Neighbour discovery needs no policy, but a hop limit that no router can fake.
    let solicitation = icmp(
        end("fe80::2", 0),
        end("ff02::1:ff00:1", 0),
        135,
        0,
        &[0; 16],
    );
    assert_eq!(sim.send(&solicitation, Ingress), Pass);
    let mut forwarded = solicitation;
    forwarded[14 + 7] = 64;
    assert_eq!(sim.send(&forwarded, Ingress), Drop);
    assert_eq!(sim.dropped(DropReason::NdpInvalid), 1);
}

/// Failsafes are keyed by v4-mapped addresses: an IPv6 packet that carries one must not speak for IPv4.
#[test]
fn a_mapped_address_on_the_wire_is_refused() {
    let mut sim = armed();
    sim.failsafes
        .push(failsafe(Ingress, 17, 53, OTHER, failsafe_flags::ORDINARY));
    let local = end("fd00::1", 53);
    assert_eq!(
        sim.send(&udp(end(OTHER, 5), end(LOCAL, 53), 1), Ingress),
        Pass,
        "the failsafe"
    );
    for (from, to) in [
        (end("::ffff:10.0.0.3", 5), local),
        (end("fd00::2", 5), end("::ffff:10.0.0.1", 53)),
    ] {
        assert_eq!(sim.send(&udp(from, to, 1), Ingress), Drop);
    }
    assert_eq!(sim.dropped(DropReason::MalformedIp), 2);
}

/// A first fragment carries the ports; a later one carries what its sender likes.
#[test]
fn later_fragments_are_dropped() {
    let sim = armed();
    let syn = tcp(end(PEER, 9), end(LOCAL, 443), SYN, 12);
    for (word, expected) in [
        (0x2000_u16, Pass),
        (0x2001, Drop),
        (1, Drop),
        (0x1fff, Drop),
    ] {
        let mut frame = syn.clone();
        frame[14 + 6..14 + 8].copy_from_slice(&word.to_be_bytes());
        assert_eq!(sim.send(&frame, Ingress), expected, "{word:#06x}");
    }
    let syn = tcp(end("fd00::2", 9), end("fd00::1", 22), SYN, 12);
    for (word, reason) in [
        (1_u16, DropReason::DefaultDeny),
        (9, DropReason::Fragment),
        (0xff00, DropReason::Fragment),
        (0xfff8, DropReason::FragmentInvalid),
    ] {
        let mut frame = syn.clone();
        let [hi, lo] = word.to_be_bytes();
        frame[14 + 6] = 44;
        frame[14 + 5] += 8;
        frame.splice(54..54, [6, 0, hi, lo, 0, 0, 0, 1]);
        let before = sim.dropped(reason);
        assert_eq!(sim.send(&frame, Ingress), Drop);
        assert_eq!(sim.dropped(reason), before + 1, "{word:#06x}");
    }
}

/// RFC 8200 §4.2 and RFC 4302 §2.2: two units of length, and both are used to find the ports.
#[test]
fn extension_headers_are_walked_by_their_own_lengths() {
    let plain = tcp(end("fd00::2", 9), end("fd00::1", 443), SYN, 0);
    for (number, header) in [
        (0, vec![6, 0, 0, 0, 0, 0, 0, 0]),
        (60, [vec![6, 1], vec![0; 14]].concat()),
        (43, [vec![6, 2], vec![0; 22]].concat()),
        (51, [vec![6, 1], vec![0; 10]].concat()),
        (51, [vec![6, 4], vec![0; 22]].concat()),
    ] {
        let sim = armed();
        let mut frame = plain.clone();
        frame[14 + 6] = number;
        frame[14 + 5] += header.len() as u8;
        frame.splice(54..54, header);
        assert_eq!(sim.send(&frame, Ingress), Pass, "header {number}");
        let flows = sim.flows6();
        let flow = FlowView::of6(&flows.first().unwrap().1);
        assert_eq!((flow.initiator_port, flow.responder_port), (9, 443));
    }
}

/// No truncation of an allowed packet ever passes, and none is a crash.
#[test]
fn no_truncation_allows() {
    let frames: Vec<(Vec<u8>, Direction)> = vec![
        (tcp(end(PEER, 9), end(LOCAL, 443), SYN, 0), Ingress),
        (udp(end(PEER, 9), end(LOCAL, 53), 0), Ingress),
        (sctp(end(PEER, 9), end(LOCAL, 99), 0), Ingress),
        (icmp(end(PEER, 9), end(LOCAL, 0), 8, 0, &[]), Ingress),
        (
            icmp(end("fd00::2", 9), end("fd00::1", 0), 128, 0, &[]),
            Ingress,
        ),
        (tcp(end(LOCAL, 9), end(PEER, 5432), SYN, 0), Egress),
    ];
    let mut runs = 0;
    for (frame, direction) in frames {
        for length in 14..frame.len() {
            let sim = armed();
            assert_eq!(
                sim.send(&frame[..length], direction),
                Drop,
                "{length} of {} bytes",
                frame.len()
            );
            runs += 1;
        }
        let sim = armed();
        assert_eq!(sim.send(&frame, direction), Pass);
    }
    assert!(runs > 150);
}

/// Every 14-byte-and-longer garbage is judged without a panic, and never opens a flow that policy does not allow.
#[test]
fn garbage_never_opens_anything() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let sim = armed();
    let mut passed = 0_u32;
    for round in 0..200_000_u32 {
        let mut frame = match round % 4 {
            0 => tcp(end(PEER, 9), end(LOCAL, 22), SYN, 8),
            1 => udp(end("fd00::2", 9), end("fd00::1", 54), 8),
            2 => icmp(end(OTHER, 9), end(LOCAL, 0), 8, 0, &[0; 40]),
            _ => sctp(end("fd00::2", 9), end("fd00::1", 98), 8),
        };
        for _ in 0..1 + next() % 4 {
            let at = 14 + (next() as usize) % (frame.len() - 14);
            frame[at] = next() as u8;
        }
        let direction = if next() & 1 == 0 { Ingress } else { Egress };
        if sim.send(&frame, direction) == Action::Pass {
            passed += 1;
        }
    }
    // A mutation may hit an allowed tuple: then the entry names the rule that allowed it.
    for (_, flow) in sim.flows4() {
        assert!((11..=21).contains(&FlowView::of4(&flow).rule));
    }
    for (_, flow) in sim.flows6() {
        assert!((11..=21).contains(&FlowView::of6(&flow).rule));
    }
    assert!(
        passed < 2_000,
        "{passed} of 200,000 hit an allowed tuple or neighbour discovery"
    );
}
