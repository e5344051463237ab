//! The pipeline on the host: every rule of the datapath that a few packets can show.

use datapath::abi::{
    ActiveWord, AddrValue, ClassValue, EndpointValue, FailsafeKey, FailsafeValue, FilterValue,
    RuleKey, RuleValue, addr_flags, failsafe_flags, filter_action, mode, panic, rule_flags,
    verdict,
};
use datapath::conntrack::State;
use datapath::drop_reason::DropReason;
use datapath::ids::Direction::{self, Egress, Ingress};
use datapath::packet::tcp::{ACK, FIN, RST, SYN};
use datapath::pipeline::Action::{self, Drop, Pass};
use datapath::record::FlowView;
use datapath::sim::packets::{End, end, icmp, quoted, sctp, tcp, udp};
use datapath::sim::{Content, Sim};

const LOCAL: &str = "10.0.0.1";
const PEER: &str = "10.0.0.2";
const OTHER: &str = "10.0.0.3";
const PEER_ID: u32 = 300;
const OTHER_ID: u32 = 301;
const LOCAL_ID: u32 = 302;

fn mapped(addr: &str) -> ([u8; 16], u32) {
    match addr.parse::<std::net::IpAddr>().unwrap() {
        std::net::IpAddr::V4(addr) => (addr.to_ipv6_mapped().octets(), 128),
        std::net::IpAddr::V6(addr) => (addr.octets(), 128),
    }
}

fn bind(content: &mut Content, addr: &str, identity: u32, flags: u32) {
    let (net, bits) = mapped(addr);
    content
        .addresses
        .push((net, bits, AddrValue { identity, flags }));
}

fn cell(allow: bool, rule: u32) -> RuleValue {
    RuleValue {
        enforced: u8::from(allow),
        draft: u8::from(allow),
        rule,
        draft_rule: rule,
        reason: if allow {
            0
        } else {
            DropReason::DefaultDeny as u8
        },
        draft_reason: if allow {
            0
        } else {
            DropReason::DefaultDeny as u8
        },
        flags: rule_flags::ENFORCED,
        ..RuleValue::default()
    }
}

fn any(class: u32) -> RuleKey {
    RuleKey {
        prefix_len: RuleKey::ANY_PROTOCOL,
        class,
        ..RuleKey::default()
    }
}

fn port(class: u32, protocol: u8, port: u16) -> RuleKey {
    RuleKey {
        prefix_len: RuleKey::FULL,
        class,
        protocol,
        port: port.to_be_bytes(),
        pad: 0,
    }
}

/// PEER may reach tcp/443 and be reached on tcp/5432; everything else is denied.
fn content() -> Content {
    let mut content = Content::default();
    bind(&mut content, LOCAL, LOCAL_ID, addr_flags::LOCAL);
    bind(&mut content, PEER, PEER_ID, 0);
    bind(&mut content, OTHER, OTHER_ID, 0);
    bind(&mut content, "fd00::1", LOCAL_ID, addr_flags::LOCAL);
    bind(&mut content, "fd00::2", PEER_ID, 0);
    content.endpoints.insert(
        1,
        EndpointValue {
            mode: mode::ENFORCE,
            reserved: 0,
        },
    );
    for identity in [0, 2, PEER_ID, OTHER_ID, LOCAL_ID] {
        for direction in [0, 1] {
            let class = if identity == PEER_ID {
                10 + direction
            } else {
                1
            };
            content
                .classes
                .insert((1, identity, direction), ClassValue { class, filter: 0 });
        }
    }
    content.rules.push((any(1), cell(false, 90)));
    content.rules.push((any(10), cell(false, 91)));
    content.rules.push((port(10, 6, 443), cell(true, 11)));
    content.rules.push((port(10, 17, 53), cell(true, 12)));
    content.rules.push((port(10, 132, 99), cell(true, 13)));
    content.rules.push((port(10, 1, 8 << 8), cell(true, 14)));
    content.rules.push((port(10, 58, 128 << 8), cell(true, 15)));
    content.rules.push((any(11), cell(false, 92)));
    content.rules.push((port(11, 6, 5432), cell(true, 21)));
    content
}

fn armed() -> Sim {
    let mut sim = Sim::new();
    sim.slots = [content(), Content::default()];
    sim.word.set(ActiveWord::committed(1, 0));
    sim
}

fn view4(sim: &Sim) -> FlowView {
    let flows = sim.flows4.borrow();
    assert_eq!(flows.len(), 1, "exactly one flow");
    FlowView::of4(flows.values().next().unwrap())
}

fn open(sim: &Sim, client: End, server: End, inbound: bool) {
    let (there, back) = if inbound {
        (Ingress, Egress)
    } else {
        (Egress, Ingress)
    };
    assert_eq!(sim.send(&tcp(client, server, SYN, 0), there), Pass);
    assert_eq!(sim.send(&tcp(server, client, SYN | ACK, 0), back), Pass);
    assert_eq!(sim.send(&tcp(client, server, ACK, 0), there), Pass);
}

#[test]
fn a_session_is_one_entry_with_exact_counters() {
    let sim = armed();
    let (client, server) = (end(PEER, 40000), end(LOCAL, 443));
    open(&sim, client, server, true);
    assert_eq!(sim.send(&tcp(client, server, ACK, 100), Ingress), Pass);
    assert_eq!(
        sim.send_merged(&tcp(server, client, ACK, 3000), Egress, 3),
        Pass
    );
    assert_eq!(sim.send(&tcp(client, server, FIN | ACK, 0), Ingress), Pass);
    assert_eq!(sim.send(&tcp(server, client, FIN | ACK, 0), Egress), Pass);
    assert_eq!(sim.send(&tcp(client, server, ACK, 0), Ingress), Pass);
    let flow = view4(&sim);
    assert_eq!((flow.initiator_port, flow.responder_port), (40000, 443));
    assert_eq!((flow.packets_out, flow.bytes_out), (5, 5 * 40 + 100));
    assert_eq!(
        (flow.packets_in, flow.bytes_in),
        (5, 2 * 40 + 3 * 40 + 3000)
    );
    assert_eq!(
        (flow.state, flow.direction, flow.rule, flow.identity),
        (State::TIME_WAIT, Ingress, 11, PEER_ID)
    );
    assert!(flow.allowed && flow.evaluated_allow && flow.draft_allow && !flow.adopted);
    let kinds: Vec<u8> = sim.events.borrow().iter().map(|event| event.kind).collect();
    assert_eq!(
        kinds,
        [1, 2],
        "one notice when it opens, one when it closes"
    );
}

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
        sim.flows4.borrow().is_empty() && sim.flows6.borrow().is_empty(),
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
fn every_protocol_is_tracked_and_stays_distinct() {
    let sim = armed();
    assert_eq!(
        sim.send(&udp(end(PEER, 5), end(LOCAL, 53), 10), Ingress),
        Pass
    );
    assert_eq!(
        sim.send(&udp(end(LOCAL, 53), end(PEER, 5), 20), Egress),
        Pass
    );
    assert_eq!(
        sim.send(&tcp(end(PEER, 5), end(LOCAL, 53), SYN, 0), Ingress),
        Drop
    );
    assert_eq!(
        sim.send(&sctp(end(PEER, 5), end(LOCAL, 99), 4), Ingress),
        Pass
    );
    assert_eq!(
        sim.send(&sctp(end(PEER, 5), end(LOCAL, 53), 4), Ingress),
        Drop
    );
    assert_eq!(
        sim.send(&icmp(end(PEER, 7), end(LOCAL, 0), 8, 0, &[1, 2]), Ingress),
        Pass
    );
    assert_eq!(
        sim.send(&icmp(end(LOCAL, 7), end(PEER, 0), 0, 0, &[1, 2]), Egress),
        Pass
    );
    assert_eq!(
        sim.send(&icmp(end(PEER, 9), end(LOCAL, 0), 0, 0, &[1, 2]), Ingress),
        Drop,
        "an echo reply opens nothing"
    );
    assert_eq!(
        sim.send(
            &icmp(end("fd00::2", 7), end("fd00::1", 0), 128, 0, &[]),
            Ingress
        ),
        Pass
    );
    assert_eq!(sim.flows4.borrow().len(), 3);
    assert!(
        sim.flows4
            .borrow()
            .values()
            .any(|flow| FlowView::of4(flow).state == State::REPLIED)
    );
}

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
    let cut = FlowView::of4(
        sim.flows4
            .borrow()
            .values()
            .find(|flow| FlowView::of4(flow).responder_port == 443)
            .unwrap(),
    );
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
    for (hard, isolate, expected) in [
        (false, false, Pass),
        (true, false, Drop),
        (false, true, Drop),
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
        sim.slots[1] = next;
        sim.word.set(ActiveWord::committed(2, 1));
        assert_eq!(
            sim.send(&tcp(client, server, ACK, 9), Ingress),
            expected,
            "hard {hard} isolate {isolate}"
        );
    }
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
    let adopted = sim
        .flows4
        .borrow()
        .values()
        .map(|flow| FlowView::of4(flow))
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

fn failsafe(
    direction: Direction,
    protocol: u8,
    port: u16,
    addr: &str,
    flags: u32,
) -> (FailsafeKey, FailsafeValue) {
    let key = FailsafeKey {
        prefix_len: 160,
        direction: direction as u8,
        protocol,
        port: port.to_be_bytes(),
        addr: mapped(addr).0,
    };
    (key, FailsafeValue { flags, rule: 7 })
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
fn icmp_errors_pass_only_for_tracked_flows_of_their_receiver() {
    let sim = armed();
    let (client, server) = (end(LOCAL, 40001), end(PEER, 5432));
    open(&sim, client, server, false);
    let sent = tcp(client, server, ACK, 1000);
    let router = end("192.0.2.254", 0);
    let error = |quote: &[u8]| icmp(router, end(LOCAL, 0), 3, 4, quote);
    assert_eq!(
        sim.send(&error(&quoted(&sent)), Ingress),
        Pass,
        "path-MTU discovery works"
    );
    let never = tcp(end(LOCAL, 40009), server, ACK, 1000);
    assert_eq!(sim.send(&error(&quoted(&never)), Ingress), Drop);
    let foreign = tcp(server, client, ACK, 1000);
    assert_eq!(
        sim.send(&error(&quoted(&foreign)), Ingress),
        Drop,
        "the quoted packet must be one that the receiver sent"
    );
    assert_eq!(sim.dropped(DropReason::IcmpUnrelated), 2);
    assert_eq!(
        sim.send(&icmp(router, end(LOCAL, 0), 5, 0, &quoted(&sent)), Ingress),
        Drop
    );
    assert_eq!(sim.dropped(DropReason::IcmpRedirect), 1);
}

#[test]
fn a_reset_frees_nothing_and_a_syn_on_a_live_flow_changes_nothing() {
    let sim = armed();
    let (client, server) = (end(PEER, 40000), end(LOCAL, 443));
    open(&sim, client, server, true);
    assert_eq!(sim.send(&tcp(client, server, RST, 0), Ingress), Pass);
    assert_eq!(view4(&sim).state, State::RESET);
    assert_eq!(sim.send(&tcp(server, client, ACK, 1), Egress), Pass);
    assert_eq!(view4(&sim).state, State::ESTABLISHED);
    let sequence = view4(&sim).sequence;
    assert_eq!(sim.send(&tcp(client, server, SYN, 0), Ingress), Pass);
    assert_eq!(
        (view4(&sim).state, view4(&sim).sequence),
        (State::ESTABLISHED, sequence)
    );
}

#[test]
fn a_port_used_again_is_a_new_instance_and_the_old_one_is_told() {
    let sim = armed();
    let (client, server) = (end(PEER, 40000), end(LOCAL, 443));
    open(&sim, client, server, true);
    let first = view4(&sim).sequence;
    sim.send(&tcp(client, server, FIN | ACK, 0), Ingress);
    sim.send(&tcp(server, client, FIN | ACK, 0), Egress);
    open(&sim, client, server, true);
    let flow = view4(&sim);
    assert_eq!(flow.sequence, (first + 1) & 0xff_ffff);
    assert_eq!(
        (flow.packets_out, flow.packets_in),
        (2, 1),
        "counters begin anew"
    );
    let closes: Vec<_> = sim
        .events
        .borrow()
        .iter()
        .filter(|event| event.kind == 2)
        .copied()
        .collect();
    assert_eq!(
        closes.last().unwrap().packets,
        [3, 2],
        "the replaced instance was announced with its final counters"
    );
}

#[test]
fn idle_flows_end_by_their_timeout() {
    let sim = armed();
    sim.send(&udp(end(PEER, 5), end(LOCAL, 53), 10), Ingress);
    sim.advance_seconds(State::NEW.default_timeout() + 1);
    assert_eq!(
        sim.send(&udp(end(LOCAL, 53), end(PEER, 5), 10), Egress),
        Drop,
        "a late answer finds no flow and may not open one"
    );
    assert_eq!(
        sim.send(&udp(end(PEER, 5), end(LOCAL, 53), 10), Ingress),
        Pass
    );
    assert_eq!(view4(&sim).packets_out, 1);
}

#[test]
fn a_full_table_denies_unless_configured() {
    let mut sim = armed();
    sim.capacity = 1;
    assert_eq!(
        sim.send(&tcp(end(PEER, 1), end(LOCAL, 443), SYN, 0), Ingress),
        Pass
    );
    assert_eq!(
        sim.send(&tcp(end(PEER, 2), end(LOCAL, 443), SYN, 0), Ingress),
        Drop
    );
    assert_eq!(sim.dropped(DropReason::TableFull), 1);
    sim.config.flags = datapath::abi::config_flags::FULL_ALLOW;
    assert_eq!(
        sim.send(&tcp(end(PEER, 3), end(LOCAL, 443), SYN, 0), Ingress),
        Pass
    );
    assert_eq!(sim.losses.borrow().len(), 2, "both causes are counted");
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
    for flow in sim.flows4.borrow().values() {
        assert!((11..=21).contains(&FlowView::of4(flow).rule));
    }
    for flow in sim.flows6.borrow().values() {
        assert!((11..=21).contains(&FlowView::of6(flow).rule));
    }
    assert!(
        passed < 2_000,
        "{passed} of 200,000 hit an allowed tuple or neighbour discovery"
    );
}
