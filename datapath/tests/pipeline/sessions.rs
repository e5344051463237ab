//! What a connection looks like in the table, and how the protocols differ.

use datapath::conntrack::State;
use datapath::drop_reason::DropReason;
use datapath::ids::Direction::{Egress, Ingress};
use datapath::packet::tcp::{ACK, FIN, RST, SYN};
use datapath::pipeline::Action::{Drop, Pass};

use datapath::record::FlowView;
use datapath::sim::packets::{end, icmp, quoted, sctp, tcp, udp};

use crate::support::{LOCAL, PEER, PEER_ID, armed, open, view4, views4};

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
    assert_eq!(sim.flows4().len(), 3);
    assert!(views4(&sim).iter().any(|flow| flow.state == State::REPLIED));
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
    let closed = sim.closed4();
    let [old] = closed.as_slice() else {
        panic!("one closed entry");
    };
    let old = FlowView::of4(old);
    assert_eq!(
        (old.sequence, old.packets_out, old.packets_in),
        (first, 3, 2),
        "the instance before is kept with its final counters until it is told"
    );
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
    // Silence of one end is no silence of the flow.
    assert_eq!(
        sim.send(&udp(end(LOCAL, 53), end(PEER, 5), 10), Egress),
        Pass
    );
    let replied = State::REPLIED.default_timeout();
    sim.advance_seconds(replied - 1);
    assert_eq!(
        sim.send(&udp(end(LOCAL, 53), end(PEER, 5), 10), Egress),
        Pass
    );
    sim.advance_seconds(2);
    assert_eq!(
        sim.send(&udp(end(PEER, 5), end(LOCAL, 53), 10), Ingress),
        Pass
    );
    assert_eq!(view4(&sim).packets_out, 2, "the same instance");
}
