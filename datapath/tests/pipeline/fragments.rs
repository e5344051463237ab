//! Packets in fragments: who teaches, who follows, and what poisons an identification.

use datapath::drop_reason::DropReason;
use datapath::fragment::{LIFETIME, POISONED};
use datapath::ids::Direction::{Egress, Ingress};
use datapath::packet::tcp::{ACK, SYN};
use datapath::pipeline::Action::{self, Drop, Pass};
use datapath::record::FlowView;
use datapath::sim::Sim;
use datapath::sim::packets::{End, end, fragments, icmp, piece, tcp, udp};

use crate::support::{LOCAL, PEER, armed};

const LOCAL6: &str = "fd00::1";
const PEER6: &str = "fd00::2";

/// A datagram that policy allows, of both families.
fn datagrams(payload: usize) -> [Vec<u8>; 2] {
    [(PEER, LOCAL), (PEER6, LOCAL6)].map(|(from, to)| udp(end(from, 9), end(to, 53), payload))
}

fn send_all(sim: &Sim, frames: &[Vec<u8>]) -> Vec<Action> {
    frames
        .iter()
        .map(|frame| sim.send(frame, Ingress))
        .collect()
}

/// (packets, bytes) of the initiator in the only entry of either family.
fn counted(sim: &Sim) -> (u64, u64) {
    let flows4 = sim.flows4();
    let flows6 = sim.flows6();
    let mut views = flows4
        .iter()
        .map(|(_, flow)| FlowView::of4(flow))
        .chain(flows6.iter().map(|(_, flow)| FlowView::of6(flow)));
    let view = views.next().unwrap();
    assert!(views.next().is_none(), "one entry");
    (view.packets_out, view.bytes_out)
}

#[test]
fn later_fragments_follow_their_first_and_are_counted_as_on_the_wire() {
    for (frame, header) in datagrams(2_992).into_iter().zip([20, 48]) {
        let sim = armed();
        let pieces = fragments(&frame, 77, 1_000);
        assert_eq!(pieces.len(), 3);
        assert_eq!(send_all(&sim, &pieces), [Pass, Pass, Pass]);
        assert_eq!(counted(&sim), (3, 3_000 + 3 * header));
        assert!(sim.fragments.borrow().is_empty(), "complete, so forgotten");
        // The identification is used again at once by another flow.
        let other = if header == 20 {
            (PEER, LOCAL)
        } else {
            (PEER6, LOCAL6)
        };
        let other = udp(end(other.0, 10), end(other.1, 53), 1_200);
        assert_eq!(send_all(&sim, &fragments(&other, 77, 800)), [Pass, Pass]);
    }
}

#[test]
fn fragments_that_overtake_their_first_one_are_lost() {
    for frame in datagrams(2_992) {
        let sim = armed();
        let pieces = fragments(&frame, 5, 1_000);
        assert_eq!(sim.send(&pieces[2], Ingress), Drop);
        assert_eq!(sim.send(&pieces[0], Ingress), Pass);
        assert_eq!(sim.send(&pieces[2], Ingress), Pass, "sent again");
        assert_eq!(sim.send(&pieces[1], Ingress), Pass);
        assert_eq!(sim.dropped(DropReason::Fragment), 1);
        assert_eq!(counted(&sim).0, 3);
        // Out of order: nobody knows that it is complete, so it stays for its lifetime.
        assert_eq!(sim.fragments.borrow().len(), 1);
    }
}

#[test]
fn the_first_fragments_verdict_is_not_inherited() {
    for (from, to) in [(PEER, LOCAL), (PEER6, LOCAL6)] {
        let mut sim = armed();
        let denied = fragments(&udp(end(from, 9), end(to, 54), 1_200), 5, 800);
        assert_eq!(send_all(&sim, &denied), [Drop, Drop]);
        assert_eq!(sim.dropped(DropReason::DefaultDeny), 1);
        assert_eq!(sim.dropped(DropReason::Fragment), 1);
        assert!(sim.fragments.borrow().is_empty());
        // A policy that denies meanwhile cuts the rest of the packet.
        let pieces = fragments(&udp(end(from, 9), end(to, 53), 2_992), 6, 1_000);
        assert_eq!(sim.send(&pieces[0], Ingress), Pass);
        assert_eq!(sim.send(&pieces[1], Ingress), Pass);
        let word = sim.word.get();
        sim.slots[1] = sim.slots[0].clone();
        sim.slots[1]
            .rules
            .retain(|(key, _)| key.port != 53_u16.to_be_bytes());
        sim.word.set(datapath::abi::ActiveWord::committed(
            word.generation() + 1,
            1,
        ));
        assert_eq!(sim.send(&pieces[2], Ingress), Drop);
        assert_eq!(sim.dropped(DropReason::PolicyChanged), 1);
    }
}

/// RFC 1858 §3, RFC 3128: no fragment may bring a piece of the header that was judged.
#[test]
fn a_later_fragment_inside_the_header_poisons() {
    for (from, to) in [(PEER, LOCAL), (PEER6, LOCAL6)] {
        for inside in [8, 16] {
            let sim = armed();
            let frame = tcp(end(from, 9), end(to, 443), SYN, 600);
            assert_eq!(sim.send(&piece(&frame, 3, 0, 400), Ingress), Pass);
            assert_eq!(sim.send(&piece(&frame, 3, 400, 408), Ingress), Pass);
            assert_eq!(sim.send(&piece(&frame, 3, inside, 408), Ingress), Drop);
            assert_eq!(sim.send(&piece(&frame, 3, 408, 620), Ingress), Drop);
            assert_eq!(sim.send(&piece(&frame, 3, 0, 400), Ingress), Drop);
            assert_eq!(sim.dropped(DropReason::FragmentInvalid), 3);
            // Another identification is another packet, and so is the other direction.
            assert_eq!(sim.send(&piece(&frame, 4, 0, 400), Ingress), Pass);
        }
        let sim = armed();
        let frame = tcp(end(from, 9), end(to, 443), SYN, 600);
        assert_eq!(sim.send(&piece(&frame, 3, 0, 400), Ingress), Pass);
        assert_eq!(
            sim.send(&piece(&frame, 3, 24, 400), Ingress),
            Pass,
            "behind it"
        );
    }
}

#[test]
fn a_first_fragment_without_its_header_poisons() {
    for (from, to) in [(PEER, LOCAL), (PEER6, LOCAL6)] {
        let sim = armed();
        let frame = tcp(end(from, 9), end(to, 443), SYN, 600);
        for short in [8, 16] {
            assert_eq!(
                sim.send(&piece(&frame, short, 0, short as usize), Ingress),
                Drop
            );
            assert_eq!(sim.send(&piece(&frame, short, 24, 400), Ingress), Drop);
            assert_eq!(sim.send(&piece(&frame, short, 0, 400), Ingress), Drop);
        }
        assert_eq!(sim.dropped(DropReason::Truncated), 2);
        assert_eq!(sim.dropped(DropReason::FragmentInvalid), 4);
        assert_eq!(
            sim.send(&piece(&frame, 1, 0, 24), Ingress),
            Pass,
            "all of it"
        );
    }
}

#[test]
fn a_second_first_fragment_with_other_ports_poisons() {
    for (from, to) in [(PEER, LOCAL), (PEER6, LOCAL6)] {
        let sim = armed();
        let [one, two] = [9, 10].map(|port| udp(end(from, port), end(to, 53), 1_200));
        assert_eq!(sim.send(&piece(&one, 3, 0, 800), Ingress), Pass);
        assert_eq!(sim.send(&piece(&one, 3, 0, 800), Ingress), Pass, "repeated");
        assert_eq!(sim.send(&piece(&two, 3, 0, 800), Ingress), Drop);
        assert_eq!(sim.send(&piece(&one, 3, 800, 1_208), Ingress), Drop);
        assert_eq!(sim.send(&piece(&one, 3, 0, 800), Ingress), Drop);
        assert_eq!(sim.dropped(DropReason::FragmentInvalid), 3);
    }
}

#[test]
fn what_is_remembered_ends() {
    for frame in datagrams(2_992) {
        let sim = armed();
        let pieces = fragments(&frame, 5, 1_000);
        assert_eq!(sim.send(&pieces[0], Ingress), Pass);
        sim.advance_seconds(LIFETIME);
        assert_eq!(sim.send(&pieces[1], Ingress), Pass);
        sim.advance_seconds(1);
        assert_eq!(sim.send(&pieces[2], Ingress), Drop);
        assert_eq!(sim.dropped(DropReason::Fragment), 1);
        // Poison lasts longer, and every attempt to rewrite renews it.
        assert_eq!(sim.send(&pieces[0], Ingress), Pass);
        assert_eq!(
            sim.send(&piece(&frame, 5, 0, 16), Ingress),
            Pass,
            "the same header"
        );
        let mut other = pieces[0].clone();
        let at = other.len() - 1_000;
        other[at] ^= 1;
        assert_eq!(sim.send(&other, Ingress), Drop);
        sim.advance_seconds(POISONED);
        assert_eq!(sim.send(&pieces[0], Ingress), Drop);
        sim.advance_seconds(POISONED);
        assert_eq!(sim.send(&pieces[1], Ingress), Drop);
        assert_eq!(sim.dropped(DropReason::FragmentInvalid), 3);
        sim.advance_seconds(1);
        assert_eq!(sim.send(&pieces[0], Ingress), Pass);
        assert_eq!(sim.send(&pieces[1], Ingress), Pass);
    }
}

#[test]
fn a_full_table_denies_and_counts() {
    for (from, to) in [(PEER, LOCAL), (PEER6, LOCAL6)] {
        let mut sim = armed();
        sim.fragment_capacity = 1;
        let frame = udp(end(from, 9), end(to, 53), 1_200);
        assert_eq!(sim.send(&piece(&frame, 1, 0, 800), Ingress), Pass);
        assert_eq!(sim.send(&piece(&frame, 2, 0, 800), Ingress), Drop);
        assert_eq!(sim.send(&piece(&frame, 2, 800, 1_208), Ingress), Drop);
        assert_eq!(sim.dropped(DropReason::FragmentTableFull), 1);
        assert_eq!(sim.dropped(DropReason::Fragment), 1);
        let lost = datapath::abi::Loss::FragmentTableFull as u32;
        assert_eq!(sim.losses.borrow().get(&lost), Some(&1));
        assert_eq!(sim.send(&piece(&frame, 1, 800, 1_208), Ingress), Pass);
    }
}

/// RFC 8200 §4.5: lengths that no fragment can have.
#[test]
fn fragments_of_impossible_lengths_are_refused() {
    for frame in datagrams(2_000) {
        let sim = armed();
        assert_eq!(
            sim.send(&piece(&frame, 1, 0, 804), Ingress),
            Drop,
            "no multiple of 8"
        );
        assert_eq!(sim.send(&piece(&frame, 2, 0, 800), Ingress), Pass);
        assert_eq!(
            sim.send(&piece(&frame, 2, 800, 800), Ingress),
            Drop,
            "empty"
        );
        let mut beyond = piece(&frame, 2, 800, 2_008);
        let at = if beyond[12] == 8 { 20 } else { 56 };
        let word: u16 = if at == 20 { 0x1fff } else { 0xfff8 };
        beyond[at..at + 2].copy_from_slice(&word.to_be_bytes());
        assert_eq!(sim.send(&beyond, Ingress), Drop, "beyond 65,535 bytes");
        assert_eq!(sim.dropped(DropReason::FragmentInvalid), 3);
        assert_eq!(sim.send(&piece(&frame, 2, 800, 2_008), Ingress), Pass);
    }
}

/// The ports that an echo request has in conntrack are taught like any others, in both directions.
#[test]
fn pings_in_pieces_and_their_answers() {
    for (local, peer, request, reply) in [(LOCAL, PEER, 8, 0), (LOCAL6, PEER6, 128, 129)] {
        let sim = armed();
        let (a, b): (End, End) = (end(peer, 7), end(local, 7));
        let ask = fragments(&icmp(a, b, request, 0, &[1; 2_000]), 1, 1_000);
        let answer = fragments(&icmp(b, a, reply, 0, &[1; 2_000]), 1, 1_000);
        for frame in &ask {
            assert_eq!(sim.send(frame, Ingress), Pass);
        }
        for frame in &answer {
            assert_eq!(sim.send(frame, Egress), Pass);
        }
        let flows = sim.flows4().len() + sim.flows6().len();
        assert_eq!(flows, 1);
    }
}

/// A handshake is not finished by a fragment that has no flags.
#[test]
fn later_fragments_move_no_connection() {
    let sim = armed();
    let (c, v) = (end(PEER, 9), end(LOCAL, 443));
    let pieces = fragments(&tcp(c, v, SYN, 600), 1, 400);
    assert_eq!(send_all(&sim, &pieces), [Pass, Pass]);
    assert_eq!(sim.send(&tcp(v, c, SYN | ACK, 0), Egress), Pass);
    let again = fragments(&tcp(c, v, SYN, 600), 2, 400);
    assert_eq!(send_all(&sim, &again), [Pass, Pass]);
    let flows = sim.flows4();
    let view = FlowView::of4(flows.iter().map(|(_, flow)| flow).next().unwrap());
    assert_eq!(view.state, datapath::conntrack::State::SYN_RECEIVED);
}

/// Errors fit the smallest MTU (RFC 4443 §2.4) and discovery is never fragmented (RFC 6980): in pieces they are
/// attempts to get past their rules.
#[test]
fn errors_and_discovery_in_pieces_are_refused() {
    let sim = armed();
    let (c, v) = (end(PEER6, 9), end(LOCAL6, 443));
    assert_eq!(sim.send(&tcp(c, v, SYN, 0), Ingress), Pass);
    assert_eq!(sim.send(&tcp(v, c, SYN | ACK, 0), Egress), Pass);
    let mut quote = tcp(v, c, ACK, 600)[14..].to_vec();
    quote.truncate(400);
    let error = icmp(c, v, 2, 0, &quote);
    assert_eq!(sim.send(&error, Ingress), Pass);
    let pieces = fragments(&error, 1, 200);
    assert!(send_all(&sim, &pieces).iter().all(|action| *action == Drop));
    let solicitation = icmp(
        end("fe80::2", 0),
        end("ff02::1:ff00:1", 0),
        135,
        0,
        &[0; 16],
    );
    assert_eq!(sim.send(&solicitation, Ingress), Pass);
    assert_eq!(sim.send(&piece(&solicitation, 2, 0, 16), Ingress), Drop);
    assert_eq!(
        sim.send(&piece(&solicitation, 3, 0, 24), Ingress),
        Drop,
        "atomic"
    );
    assert_eq!(sim.dropped(DropReason::NdpInvalid), 1);
}
