//! SYNs that are denied again: what the entry that remembers them may and may not do.

use datapath::abi::{ActiveWord, event_kind, failsafe_flags};
use datapath::drop_reason::DropReason;
use datapath::ids::Direction::Ingress;
use datapath::packet::tcp::SYN;
use datapath::pipeline::Action::{Drop, Pass};
use datapath::sim::Sim;
use datapath::sim::packets::{end, tcp};

use crate::support::*;

fn closed(port: u16) -> Vec<u8> {
    tcp(end(PEER, 1000), end(LOCAL, port), SYN, 0)
}

/// Packets in all aggregates, whether moved there already or not.
fn aggregated(sim: &Sim) -> u64 {
    sim.fold();
    sim.denies
        .borrow()
        .values()
        .map(|value| value.packets)
        .sum()
}

fn announcements(sim: &Sim) -> usize {
    let events = sim.events.borrow();
    events
        .iter()
        .filter(|event| event.kind == event_kind::DENY)
        .count()
}

#[test]
fn whatever_its_source_port_a_denied_syn_counts_for_one_aggregate() {
    let sim = armed();
    for port in 0..2_500 {
        let syn = tcp(end(PEER, 1000 + port), end(LOCAL, 444), SYN, 0);
        assert_eq!(sim.send(&syn, Ingress), Drop);
    }
    let in_aggregate: u64 = sim
        .denies
        .borrow()
        .values()
        .map(|value| value.packets)
        .sum();
    assert!(in_aggregate < 2_500, "the entry counts some of them");
    assert_eq!(aggregated(&sim), 2_500);
    assert_eq!(aggregated(&sim), 2_500, "nothing is moved twice");
    assert_eq!(sim.dropped(DropReason::DefaultDeny), 2_500);
    assert_eq!(sim.denies.borrow().len(), 1);
}

#[test]
fn a_new_content_and_a_new_failsafe_are_asked() {
    let mut sim = armed();
    for _ in 0..5 {
        assert_eq!(sim.send(&closed(444), Ingress), Drop);
        assert_eq!(sim.send(&closed(445), Ingress), Drop);
    }
    sim.slots[1] = content();
    sim.slots[1].rules.push((port(10, 6, 444), cell(true, 77)));
    sim.word.set(ActiveWord::committed(2, 1));
    assert_eq!(
        sim.send(&closed(444), Ingress),
        Pass,
        "the new content allows it"
    );
    assert_eq!(sim.send(&closed(445), Ingress), Drop);
    assert_eq!(sim.send(&closed(445), Ingress), Drop);
    sim.failsafes
        .push(failsafe(Ingress, 6, 445, PEER, failsafe_flags::ORDINARY));
    sim.config.epoch += 1;
    assert_eq!(
        sim.send(&closed(445), Ingress),
        Pass,
        "a failsafe allows it"
    );
    assert_eq!(aggregated(&sim), 5 + 7);
}

#[test]
fn announcements_come_as_if_every_packet_went_the_whole_way() {
    for (every, interval) in [(0, 0), (1, 0), (7, 0), (0, 50), (7, 50), (4_000, 0)] {
        let mut short = armed();
        short.config.deny_every = every;
        short.config.deny_interval = interval;
        let mut whole = armed();
        (whole.config, whole.fast) = (short.config, false);
        for step in 0..6_000u32 {
            if step % 10 == 0 {
                for sim in [&short, &whole] {
                    sim.jiffies.set(sim.jiffies.get() + 3);
                }
            }
            for sim in [&short, &whole] {
                assert_eq!(sim.send(&closed(444), Ingress), Drop);
            }
            assert_eq!(
                announcements(&short),
                announcements(&whole),
                "packet {step}, every {every}, interval {interval}"
            );
        }
        assert_eq!(aggregated(&short), aggregated(&whole));
    }
}

#[test]
fn what_is_allowed_or_only_observed_has_no_entry() {
    let mut sim = armed();
    for _ in 0..5 {
        assert_eq!(sim.send(&closed(444), Ingress), Drop);
    }
    // Learning and panic decide before.
    sim.word.set(ActiveWord::committed(1, 0).learning());
    assert_eq!(sim.send(&closed(444), Ingress), Pass);
    sim.word.set(ActiveWord::committed(1, 0));
    assert_eq!(sim.send(&closed(444), Ingress), Drop);
    sim.config.panic = datapath::abi::panic::OPEN;
    assert_eq!(
        sim.send(&tcp(end(PEER, 2000), end(LOCAL, 444), SYN, 0), Ingress),
        Pass
    );
}
