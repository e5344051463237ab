//! What a change of policy, an expiry or a full table does to flows.

use datapath::abi::{ActiveWord, Loss, RuleKey, addr_flags, rule_flags, verdict};
use datapath::conntrack::State;
use datapath::drop_reason::DropReason;
use datapath::ids::Direction::{Egress, Ingress};
use datapath::packet::tcp::{ACK, RST, SYN};
use datapath::pipeline::Action::{Drop, Pass};

use datapath::record::FlowView;
use datapath::sim::Sim;
use datapath::sim::packets::{end, tcp, udp};

use crate::support::{
    LOCAL, OTHER, OTHER_ID, PEER, armed, bind, content, mapped, open, view4, views4,
};

#[test]
fn a_policy_change_cuts_a_live_session_and_a_restamp_keeps_one() {
    let mut sim = armed();
    let (a, b, server) = (end(PEER, 40000), end(LOCAL, 40001), end(LOCAL, 443));
    open(&sim, a, server, true);
    open(&sim, b, end(PEER, 5432), false);
    let mut next = content();
    next.rules
        .retain(|(key, _)| key.port != 443u16.to_be_bytes());
    sim.slots[1] = next;
    sim.word.set(ActiveWord::committed(2, 1));
    assert_eq!(
        sim.send(&tcp(server, a, ACK, 9), Egress),
        Drop,
        "the reply asks again, in the original direction"
    );
    assert_eq!(sim.send(&tcp(a, server, ACK, 9), Ingress), Drop);
    assert_eq!(sim.dropped(DropReason::PolicyChanged), 2);
    assert_eq!(
        sim.send(&tcp(b, end(PEER, 5432), ACK, 9), Egress),
        Pass,
        "what is still allowed goes on"
    );
    let cut = views4(&sim)
        .into_iter()
        .find(|flow| flow.responder_port == 443)
        .unwrap();
    assert_eq!(
        (cut.state, cut.allowed, cut.reason, cut.generation),
        (State::CUT, false, DropReason::PolicyChanged, 2)
    );
    // Old content under a new generation: the cut connection may be opened anew, its old segments may not go on.
    sim.word.set(ActiveWord::committed(3, 0));
    assert_eq!(sim.send(&tcp(a, server, ACK, 9), Ingress), Drop);
    open(&sim, a, server, true);
}

#[test]
fn keep_survives_a_deny_but_no_guardrail_and_no_isolation() {
    for (hard, isolate, rebind, expected) in [
        (false, false, false, Pass),
        (true, false, false, Drop),
        (false, true, false, Drop),
        (false, false, true, Drop),
    ] {
        let mut sim = armed();
        let (client, server) = (end(PEER, 40000), end(LOCAL, 443));
        for (key, value) in &mut sim.slots[0].rules {
            if key.port == 443u16.to_be_bytes() {
                value.flags |= rule_flags::KEEP;
            }
        }
        open(&sim, client, server, true);
        let mut next = content();
        next.rules
            .retain(|(key, _)| key.port != 443u16.to_be_bytes());
        for (_, value) in &mut next.rules {
            if hard && value.enforced == verdict::DENY {
                value.flags |= rule_flags::HARD;
            }
        }
        if isolate {
            for (net, _, value) in &mut next.addresses {
                if *net == mapped(PEER).0 {
                    value.flags |= addr_flags::ISOLATED;
                }
            }
        }
        if rebind {
            bind(&mut next, PEER, OTHER_ID, 0);
        }
        sim.slots[1] = next;
        sim.word.set(ActiveWord::committed(2, 1));
        assert_eq!(
            sim.send(&tcp(client, server, ACK, 9), Ingress),
            expected,
            "hard {hard} isolate {isolate} rebind {rebind}"
        );
    }
}

#[test]
fn mid_stream_is_denied_in_enforce_and_adopted_while_learning() {
    let sim = armed();
    let (client, server) = (end(OTHER, 40000), end(LOCAL, 22));
    assert_eq!(
        sim.send(&tcp(end(PEER, 40000), end(LOCAL, 443), ACK, 5), Ingress),
        Drop,
        "allowed by policy, but never opened"
    );
    assert_eq!(
        sim.send(&tcp(end(PEER, 40000), end(LOCAL, 443), RST, 0), Ingress),
        Drop
    );
    assert_eq!(
        (
            sim.dropped(DropReason::MidStream),
            sim.dropped(DropReason::RstWithoutFlow)
        ),
        (1, 1)
    );

    // Learning: the live session of an unauthorised peer is adopted, a new one of the same peer is not.
    sim.word.set(ActiveWord::committed(2, 0).learning());
    assert_eq!(sim.send(&tcp(client, server, ACK, 5), Ingress), Pass);
    let late = end(OTHER, 40001);
    assert_eq!(sim.send(&tcp(late, server, SYN, 0), Ingress), Pass);
    sim.word.set(ActiveWord::committed(3, 0));
    assert_eq!(
        sim.send(&tcp(client, server, ACK, 5), Ingress),
        Pass,
        "arming does not cut"
    );
    assert_eq!(
        sim.send(&tcp(late, server, ACK, 0), Ingress),
        Drop,
        "a handshake that arming met halfway is denied"
    );
    assert_eq!(sim.send(&tcp(late, server, SYN, 0), Ingress), Drop);
    let adopted = views4(&sim)
        .into_iter()
        .find(|flow| flow.initiator_port == 40000)
        .unwrap();
    assert!(
        adopted.adopted && adopted.allowed && !adopted.evaluated_allow,
        "kept, and reported"
    );
    sim.word.set(ActiveWord::committed(4, 0));
    assert_eq!(
        sim.send(&tcp(client, server, ACK, 5), Ingress),
        Drop,
        "the content after the arming one cuts it"
    );
}

#[test]
fn an_unconfirmed_content_falls_back_by_itself() {
    let mut sim = armed();
    let mut lockout = content();
    lockout
        .rules
        .retain(|(key, _)| key.prefix_len == RuleKey::ANY_PROTOCOL);
    sim.slots[1] = lockout;
    let (client, server) = (end(PEER, 40000), end(LOCAL, 443));
    sim.word.set(ActiveWord::pending(
        2,
        1,
        sim.boot_ns.get() / 1_000_000_000 + 5,
    ));
    assert_eq!(sim.send(&tcp(client, server, SYN, 0), Ingress), Drop);
    sim.advance_seconds(4);
    assert_eq!(sim.send(&tcp(client, server, SYN, 0), Ingress), Drop);
    sim.advance_seconds(1);
    assert_eq!(sim.send(&tcp(client, server, SYN, 0), Ingress), Pass);
    assert_eq!(
        view4(&sim).generation,
        3,
        "old content under a new generation"
    );
}

#[test]
fn an_expiry_ends_a_session_without_anybody() {
    let mut sim = armed();
    let deadline = sim.boot_ns.get() + 10_000_000_000;
    for (key, value) in &mut sim.slots[0].rules {
        if key.port == 443u16.to_be_bytes() {
            value.expiry = deadline;
            value.after = verdict::DENY;
            value.after_rule = 91;
            value.after_reason = DropReason::DefaultDeny as u8;
            value.flags |= rule_flags::KEEP;
        }
    }
    let (client, server) = (end(PEER, 40000), end(LOCAL, 443));
    open(&sim, client, server, true);
    sim.advance_seconds(9);
    assert_eq!(sim.send(&tcp(client, server, ACK, 5), Ingress), Pass);
    sim.advance_seconds(1);
    assert_eq!(sim.send(&tcp(client, server, ACK, 5), Ingress), Drop);
    assert_eq!(sim.dropped(DropReason::Expired), 1);
    assert_eq!(
        sim.send(&tcp(end(PEER, 40001), server, SYN, 0), Ingress),
        Drop
    );
}

#[test]
fn a_full_table_denies_unless_configured() {
    let mut sim = armed();
    // One set, and the least room beside it.
    sim.resize(4, 4);
    let proven: u16 = 4 + 4;
    for port in 1..=proven {
        open(&sim, end(PEER, port), end(LOCAL, 443), true);
    }
    let more = |sim: &Sim, port| sim.send(&tcp(end(PEER, port), end(LOCAL, 443), SYN, 0), Ingress);
    assert_eq!(more(&sim, 100), Drop, "no proven flow makes room");
    assert_eq!(sim.dropped(DropReason::TableFull), 1);
    assert_eq!(sim.flows4().len(), 8);
    sim.config.flags = datapath::abi::config_flags::FULL_ALLOW;
    assert_eq!(more(&sim, 101), Pass);
    assert_eq!(sim.losses.borrow().len(), 2, "both causes are counted");
}

#[test]
fn flows_that_are_not_proven_make_room_and_are_told() {
    let mut sim = armed();
    sim.resize(4, 4);
    let syn = |sim: &Sim, port| sim.send(&tcp(end(PEER, port), end(LOCAL, 443), SYN, 0), Ingress);
    open(&sim, end(PEER, 1), end(LOCAL, 443), true);
    for port in 2..1_000 {
        assert_eq!(syn(&sim, port), Pass);
    }
    assert_eq!(sim.flows4().len(), 4, "one set, and nothing spilled");
    assert_eq!(
        sim.losses.borrow().get(&(Loss::Displaced as u32)),
        Some(&995)
    );
    let told = sim
        .events
        .borrow()
        .iter()
        .filter(|event| event.kind == 2)
        .count();
    assert_eq!(told, 995, "each leaves with its record");
    assert_eq!(
        sim.send(&tcp(end(PEER, 1), end(LOCAL, 443), ACK, 9), Ingress),
        Pass,
        "the proven flow is still there"
    );
    assert_eq!(sim.dropped(DropReason::MidStream), 0);
}

#[test]
fn a_flood_of_syns_does_not_displace_questions_of_another_protocol() {
    let mut sim = armed();
    sim.resize(4, 4);
    assert_eq!(
        sim.send(&udp(end(PEER, 7), end(LOCAL, 53), 10), Ingress),
        Pass
    );
    for port in 2..500 {
        sim.send(&tcp(end(PEER, port), end(LOCAL, 443), SYN, 0), Ingress);
    }
    assert_eq!(
        sim.send(&udp(end(LOCAL, 53), end(PEER, 7), 10), Egress),
        Pass
    );
}

#[test]
fn only_an_acknowledgment_of_the_responders_number_proves_a_flow() {
    let sim = armed();
    let (client, server) = (end(PEER, 1), end(LOCAL, 443));
    let with_ack = |number: u32| {
        let mut frame = tcp(client, server, ACK, 0);
        frame[42..46].copy_from_slice(&number.to_be_bytes());
        frame
    };
    sim.send(&tcp(client, server, SYN, 0), Ingress);
    sim.send(&with_ack(2), Ingress);
    assert_eq!(view4(&sim).state, State::SYN_SENT, "nobody has answered");
    sim.send(&tcp(server, client, SYN | ACK, 0), Egress);
    sim.send(&with_ack(1), Ingress);
    sim.send(&with_ack(0x8000_0000), Ingress);
    assert_eq!(view4(&sim).state, State::SYN_RECEIVED);
    sim.send(&with_ack(2), Ingress);
    assert_eq!(view4(&sim).state, State::ESTABLISHED);
}

#[test]
fn a_peer_cannot_use_more_than_its_share() {
    let mut sim = armed();
    sim.tables.share = 3;
    for port in 1..=3 {
        open(&sim, end(PEER, port), end(LOCAL, 443), true);
    }
    let late = tcp(end(PEER, 9), end(LOCAL, 443), SYN, 0);
    assert_eq!(sim.send(&late, Ingress), Drop);
    assert_eq!(sim.dropped(DropReason::TableFull), 1);
    assert_eq!(sim.losses.borrow().get(&(Loss::PeerShare as u32)), Some(&1));
}

#[test]
fn a_late_answer_that_is_denied_ends_nothing_twice() {
    let sim = armed();
    sim.send(&udp(end(PEER, 5), end(LOCAL, 53), 10), Ingress);
    sim.advance_seconds(State::NEW.default_timeout() + 1);
    for _ in 0..3 {
        assert_eq!(
            sim.send(&udp(end(LOCAL, 53), end(PEER, 5), 10), Egress),
            Drop
        );
    }
    assert!(
        sim.events.borrow().iter().all(|event| event.kind != 2),
        "the entry is still there for the sweep to tell of"
    );
    assert_eq!(
        sim.send(&udp(end(PEER, 5), end(LOCAL, 53), 10), Ingress),
        Pass
    );
    let closed = sim.closed4();
    assert_eq!(closed.len(), 1, "closed once, and kept until it is told");
    assert_eq!(FlowView::of4(&closed[0]).packets_out, 1);
}

#[test]
fn a_denial_is_announced_again_by_count_and_by_time() {
    let mut sim = armed();
    sim.config.deny_every = 4;
    let knock = tcp(end(PEER, 9), end(LOCAL, 22), SYN, 0);
    for _ in 0..9 {
        assert_eq!(sim.send(&knock, Ingress), Drop);
    }
    assert_eq!(
        sim.events.borrow().len(),
        3,
        "the first, the fourth, the eighth"
    );
    sim.config.deny_interval = 10 * sim.config.hz;
    sim.advance_seconds(11);
    assert_eq!(sim.send(&knock, Ingress), Drop);
    assert_eq!(sim.events.borrow().len(), 4, "and after the interval");
}
