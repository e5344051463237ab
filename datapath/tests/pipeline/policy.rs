//! What policy, modes, filters, failsafes and isolation decide.

use datapath::abi::{
    ActiveWord, ClassValue, EndpointValue, FilterValue, RuleKey, addr_flags, failsafe_flags,
    filter_action, mode, panic, rule_flags,
};
use datapath::drop_reason::DropReason;
use datapath::ids::Direction::{Egress, Ingress};
use datapath::packet::tcp::{ACK, SYN};
use datapath::pipeline::Action::{Drop, Pass};
use datapath::sim::packets::{end, tcp, udp};

use crate::support::{
    LOCAL, LOCAL_ID, OTHER, PEER, PEER_ID, armed, cell, content, failsafe, mapped, open, port,
    view4,
};

#[test]
fn default_deny_holds_for_both_families_and_names_its_rule() {
    let sim = armed();
    for (from, to) in [
        (end(PEER, 1), end(LOCAL, 22)),
        (end("fd00::2", 1), end("fd00::1", 22)),
        (end(OTHER, 1), end(LOCAL, 443)),
    ] {
        assert_eq!(sim.send(&tcp(from, to, SYN, 0), Ingress), Drop);
        assert_eq!(sim.send(&tcp(from, to, SYN, 0), Ingress), Drop);
    }
    assert!(
        sim.flows4().is_empty() && sim.flows6().is_empty(),
        "a denied packet makes no entry"
    );
    assert_eq!(sim.dropped(DropReason::DefaultDeny), 6);
    let denies = sim.denies.borrow();
    assert_eq!(denies.len(), 3);
    assert!(
        denies
            .iter()
            .all(|(key, value)| key.rule >= 90 && value.packets == 2 && key.opening == 1)
    );
    assert_eq!(
        sim.events.borrow().len(),
        3,
        "only the first of a key is announced"
    );
}

#[test]
fn what_is_not_bound_is_unknown_and_matches_no_allow() {
    let mut sim = armed();
    // Even a table that allows identity 0 does not.
    sim.slots[0].rules.push((port(1, 6, 443), cell(true, 5)));
    assert_eq!(
        sim.send(&tcp(end("192.0.2.9", 5), end(LOCAL, 443), SYN, 0), Ingress),
        Drop
    );
    assert_eq!(sim.dropped(DropReason::UnknownIdentity), 1);
}

#[test]
fn what_the_content_lacks_is_denied() {
    let mut sim = armed();
    sim.slots[0].classes.remove(&(1, PEER_ID, 0));
    sim.slots[1] = content();
    sim.slots[1].rules.clear();
    let syn = tcp(end(PEER, 1), end(LOCAL, 443), SYN, 0);
    assert_eq!(sim.send(&syn, Ingress), Drop, "no class");
    sim.word.set(ActiveWord::committed(2, 1));
    assert_eq!(sim.send(&syn, Ingress), Drop, "no cell");
    assert_eq!(sim.dropped(DropReason::NoPolicyEntry), 2);
    sim.slots[1].endpoints.clear();
    sim.clear_negatives();
    assert_eq!(sim.send(&syn, Ingress), Drop, "no endpoint");
    assert_eq!(sim.dropped(DropReason::NoEndpoint), 1);
}

#[test]
fn observe_drops_nothing_and_keeps_the_verdict() {
    let mut sim = armed();
    sim.slots[0].endpoints.insert(
        1,
        EndpointValue {
            mode: mode::OBSERVE,
            reserved: 0,
        },
    );
    for (_, value) in &mut sim.slots[0].rules {
        value.flags &= !rule_flags::ENFORCED;
    }
    assert_eq!(
        sim.send(&tcp(end(OTHER, 1), end(LOCAL, 22), SYN, 0), Ingress),
        Pass
    );
    let flow = view4(&sim);
    assert!(flow.allowed && !flow.evaluated_allow && !flow.draft_allow && !flow.adopted);
    assert_eq!((flow.reason, flow.rule), (DropReason::ModeObserve, 90));
}

#[test]
fn failsafes_hold_and_shrink_in_isolation() {
    let mut sim = armed();
    sim.failsafes
        .push(failsafe(Ingress, 6, 22, OTHER, failsafe_flags::ORDINARY));
    sim.failsafes
        .push(failsafe(Egress, 6, 7443, PEER, failsafe_flags::CONTROLLER));
    let (admin, shell) = (end(OTHER, 50000), end(LOCAL, 22));
    open(&sim, admin, shell, true);
    assert!(view4(&sim).failsafe);
    open(&sim, end(LOCAL, 50001), end(PEER, 7443), false);
    assert_eq!(
        sim.send(
            &udp(end("0.0.0.0", 68), end("255.255.255.255", 67), 300),
            Egress
        ),
        Pass,
        "DHCP"
    );

    let mut isolated = content();
    isolated.endpoints.insert(
        1,
        EndpointValue {
            mode: mode::ISOLATE,
            reserved: 0,
        },
    );
    sim.slots[1] = isolated;
    sim.word.set(ActiveWord::committed(2, 1));
    assert_eq!(
        sim.send(&tcp(admin, shell, ACK, 1), Ingress),
        Drop,
        "management is no exception for an isolated host"
    );
    assert_eq!(
        sim.send(&tcp(end(LOCAL, 50001), end(PEER, 7443), ACK, 1), Egress),
        Pass
    );
    assert_eq!(
        sim.send(&tcp(end(PEER, 1), end(LOCAL, 443), SYN, 0), Ingress),
        Drop
    );
    assert!(sim.dropped(DropReason::Isolated) >= 2);
}

#[test]
fn an_isolated_peer_is_denied_but_for_forensics() {
    let mut sim = armed();
    for (net, _, value) in &mut sim.slots[0].addresses {
        if *net == mapped(PEER).0 {
            value.flags |= addr_flags::ISOLATED;
        }
    }
    sim.failsafes
        .push(failsafe(Ingress, 6, 22, PEER, failsafe_flags::ORDINARY));
    assert_eq!(
        sim.send(&tcp(end(PEER, 1), end(LOCAL, 443), SYN, 0), Ingress),
        Drop
    );
    assert_eq!(
        sim.send(&tcp(end(PEER, 1), end(LOCAL, 22), SYN, 0), Ingress),
        Drop
    );
    assert_eq!(sim.dropped(DropReason::PeerIsolated), 2);
    sim.failsafes[0].1.flags |= failsafe_flags::FORENSIC;
    assert_eq!(
        sim.send(&tcp(end(PEER, 1), end(LOCAL, 22), SYN, 0), Ingress),
        Pass
    );
}

#[test]
fn panic_opens_and_closes_without_policy() {
    let mut sim = armed();
    sim.failsafes
        .push(failsafe(Ingress, 6, 22, OTHER, failsafe_flags::ORDINARY));
    let (client, server) = (end(PEER, 40000), end(LOCAL, 443));
    open(&sim, client, server, true);
    sim.config.panic = panic::CLOSE;
    assert_eq!(
        sim.send(&tcp(client, server, ACK, 1), Ingress),
        Drop,
        "established flows too"
    );
    assert_eq!(
        sim.send(&tcp(end(OTHER, 1), end(LOCAL, 22), SYN, 0), Ingress),
        Pass
    );
    assert_eq!(
        sim.send(&tcp(end(LOCAL, 22), end(OTHER, 1), SYN | ACK, 0), Egress),
        Pass,
        "a failsafe's answers too"
    );
    sim.config.panic = panic::OPEN;
    assert_eq!(
        sim.send(&tcp(end("192.0.2.1", 1), end(LOCAL, 9), SYN, 0), Ingress),
        Pass
    );
    assert_eq!(sim.send(&tcp(client, server, ACK, 1), Ingress), Pass);
}

#[test]
fn filters_speak_about_every_packet_of_every_flow() {
    let mut sim = armed();
    // Drops what comes in from tcp/5432 as answers: ingress, to the ephemeral port.
    sim.slots[0].classes.insert(
        (1, PEER_ID, 0),
        ClassValue {
            class: 10,
            filter: 5,
        },
    );
    let block = |key: RuleKey| {
        (
            key,
            FilterValue {
                rule: 70,
                action: filter_action::DENY | filter_action::ENFORCED,
            },
        )
    };
    sim.slots[0].filters.push(block(port(5, 6, 40001)));
    sim.slots[0].filters.push(block(port(5, 6, 443)));
    assert_eq!(
        sim.send(&tcp(end(PEER, 1), end(LOCAL, 443), SYN, 0), Ingress),
        Drop
    );
    assert_eq!(sim.dropped(DropReason::Filter), 1);
    let (client, server) = (end(LOCAL, 40001), end(PEER, 5432));
    assert_eq!(sim.send(&tcp(client, server, SYN, 0), Egress), Pass);
    assert_eq!(
        sim.send(&tcp(server, client, SYN | ACK, 0), Ingress),
        Drop,
        "the answer is filtered by its own ports"
    );
    assert_eq!(sim.dropped(DropReason::Filter), 2);
}

#[test]
fn nobody_speaks_for_the_hosts_own_address() {
    let mut sim = armed();
    sim.slots[0].classes.insert(
        (1, LOCAL_ID, 0),
        ClassValue {
            class: 10,
            filter: 0,
        },
    );
    assert_eq!(
        sim.send(&tcp(end(LOCAL, 5), end(LOCAL, 443), SYN, 0), Ingress),
        Drop
    );
    assert_eq!(sim.dropped(DropReason::SpoofedSource), 1);
}
