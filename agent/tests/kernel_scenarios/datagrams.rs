//! Protocols without a handshake: UDP, SCTP, echo, errors, neighbour discovery, and those nobody knows.

use datapath::packet::tcp::ACK;
use datapath::sim::Content;
use datapath::sim::packets::{end, icmp, other, sctp, tcp, udp};

use crate::support::frames::icmp_error;
use crate::support::scene::{LOCAL, LOCAL6, OTHER, PEER, PEER6, Scene, client, server};

#[test]
fn a_question_and_its_answer() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let (c, v) = (end(PEER, 5000), end(LOCAL, 53));
    s.pass_in(&udp(c, v, 10), "flow:new out+1/38 event:new");
    s.pass_in(&udp(c, v, 10), "out+1/38");
    s.pass_out(&udp(v, c, 20), "state:new>replied in+1/48");
    s.pass_out(&udp(v, c, 20), "in+1/48");
    s.pass_in(&udp(c, v, 0), "out+1/28");
    // Another port is another flow; from the other side it is a new one of the wrong direction.
    s.pass_in(&udp(end(PEER, 5001), v, 0), "flow:new out+1/28 event:new");
    s.drop_out(
        &udp(v, end(PEER, 5002), 0),
        "reason:default-deny+1/28 denied+1/28 deny:new event:deny",
    );
    let (c, v) = (end(LOCAL6, 5000), end(PEER6, 53));
    s.pass_out(&udp(c, v, 10), "flow:new out+1/58 event:new");
    s.pass_in(&udp(v, c, 20), "state:new>replied in+1/68");
}

#[test]
fn a_flow_ends_by_its_timeout_and_its_late_answer_opens_nothing() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let (c, v) = (end(PEER, 5000), end(LOCAL, 53));
    let ticks = s.twin.ticks(10);
    s.pass_in(&udp(c, v, 0), "flow:new out+1/28 event:new");
    s.twin.age(3 * ticks);
    s.pass_in(&udp(c, v, 0), "out+1/28");
    s.twin.age(4 * ticks);
    // The entry is closed, and waits to be told.
    s.drop_out(
        &udp(v, c, 0),
        "reason:default-deny+1/28 denied+1/28 deny:new event:deny out-2/-56",
    );
    s.pass_in(&udp(c, v, 0), "flow:new out+1/28 event:new");
    s.pass_out(&udp(v, c, 0), "state:new>replied in+1/28");
    s.twin.age(12 * ticks);
    s.pass_out(&udp(v, c, 0), "in+1/28");
    s.twin.age(12 * ticks);
    // Silent in this direction for longer, but not in the other.
    s.pass_in(&udp(c, v, 0), "out+1/28");
    s.twin.age(13 * ticks);
    s.pass_in(
        &udp(c, v, 0),
        "state:replied>new out-1/-28 in-2/-56 event:new",
    );
}

#[test]
fn sctp_is_neither_tcp_nor_udp() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let (c, v) = (end(PEER, 5000), end(LOCAL, 99));
    s.pass_in(&sctp(c, v, 4), "flow:new out+1/36 event:new");
    s.pass_out(&sctp(v, c, 4), "state:new>replied in+1/36");
    s.drop_in(
        &udp(c, v, 4),
        "reason:default-deny+1/32 denied+1/32 deny:new event:deny",
    );
    s.drop_in(
        &sctp(c, end(LOCAL, 443), 4),
        "reason:default-deny+1/36 denied+1/36 deny:new event:deny",
    );
    // A packet without its 12-byte header is none.
    s.drop_in(&other(c, v, 132, 11), "reason:truncated+1/31");
}

#[test]
fn echo_is_a_flow_by_its_identifier() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let (peer, local) = (end(PEER, 7), end(LOCAL, 7));
    s.pass_in(
        &icmp(peer, local, 8, 0, &[1, 2]),
        "flow:new out+1/30 event:new",
    );
    s.pass_out(
        &icmp(local, peer, 0, 0, &[1, 2]),
        "state:new>replied in+1/30",
    );
    s.pass_in(&icmp(peer, local, 8, 0, &[1, 2]), "out+1/30");
    s.drop_in(
        &icmp(end(PEER, 9), local, 0, 0, &[]),
        "reason:mid-stream+1/28 denied+1/28 deny:new event:deny",
    );
    s.drop_in(
        &icmp(peer, local, 13, 0, &[0; 12]),
        "reason:default-deny+1/40 denied+1/40 deny:new event:deny",
    );
    let (peer, local) = (end(PEER6, 7), end(LOCAL6, 7));
    s.pass_out(
        &icmp(local, peer, 128, 0, &[]),
        "flow:new out+1/48 event:new",
    );
    s.pass_in(&icmp(peer, local, 129, 0, &[]), "state:new>replied in+1/48");
    s.drop_in(
        &icmp(end(PEER6, 9), local, 129, 0, &[]),
        "reason:mid-stream+1/48 denied+1/48 deny:new event:deny",
    );
    s.drop_in(
        &icmp(end("fd00::9", 9), local, 128, 0, &[]),
        "reason:default-deny+1/48 denied+1/48 deny:new event:deny",
    );
}

#[test]
fn an_unknown_protocol_is_matched_by_number_and_tracked_by_address() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let (c, v) = (end(PEER, 0), end(LOCAL, 0));
    s.pass_in(&other(c, v, 47, 30), "flow:new out+1/50 event:new");
    s.pass_out(&other(v, c, 47, 10), "state:new>replied in+1/30");
    s.drop_in(
        &other(c, v, 50, 30),
        "reason:default-deny+1/50 denied+1/50 deny:new event:deny",
    );
    s.drop_in(
        &other(end(OTHER, 0), v, 47, 30),
        "reason:default-deny+1/50 denied+1/50 deny:new event:deny",
    );
}

#[test]
fn an_error_passes_for_a_packet_that_its_receiver_sent() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let (c, v) = (client(), server());
    s.establish(c, v, true);
    let router = end("192.0.2.254", 0);
    let local = end(LOCAL, 0);
    let sent = tcp(v, c, ACK, 900);
    // 20 + 8 + 60 quoted.
    let error =
        |quote: &[u8], kind: u8, length: usize| icmp_error(router, local, quote, (kind, 4), length);
    for kind in [3, 4, 11, 12] {
        s.pass_in(&error(&sent, kind, 60), "reason:none+1/88");
    }
    s.pass_in(&error(&sent, 3, 28), "reason:none+1/56");
    s.drop_in(&error(&sent, 3, 23), "reason:icmp-unrelated+1/51");
    s.drop_in(&error(&sent, 5, 60), "reason:icmp-redirect+1/88");
    let unrelated = "reason:icmp-unrelated+1/88 denied+1/88";
    s.drop_in(
        &error(&tcp(v, end(PEER, 1), ACK, 900), 3, 60),
        &format!("{unrelated} deny:new event:deny"),
    );
    // What the peer sent is nothing to tell this host about.
    s.drop_in(&error(&tcp(c, v, ACK, 900), 3, 60), unrelated);
    // A quoted later fragment has no ports.
    let mut fragment = sent.clone();
    fragment[14 + 7] = 1;
    s.drop_in(&error(&fragment, 3, 60), "reason:icmp-unrelated+1/88");
    // A policy changes, and the flow has not been judged again.
    s.commit(2, 0);
    s.drop_in(&error(&sent, 3, 60), unrelated);
    s.pass_in(&tcp(c, v, ACK, 0), "gen:1>2 out+1/40");
    s.pass_in(&error(&sent, 3, 60), "reason:none+1/88");
}

#[test]
fn errors_of_ipv6_and_of_this_host() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let (c, v) = (end(PEER6, 40_000), end(LOCAL6, 443));
    s.establish(c, v, true);
    let sent = tcp(v, c, ACK, 900);
    let router = end("fd00::fe", 0);
    for kind in [1, 2, 3, 4] {
        let error = icmp_error(router, end(LOCAL6, 0), &sent, (kind, 0), 60);
        s.pass_in(&error, "reason:none+1/108");
    }
    // This host may complain about what the peer sent it.
    let got = tcp(c, v, ACK, 900);
    s.pass_out(
        &icmp_error(v, end(PEER6, 0), &got, (1, 4), 60),
        "reason:none+1/108",
    );
    s.drop_in(
        &icmp_error(router, end(LOCAL6, 0), &sent, (137, 0), 60),
        "reason:icmp-redirect+1/108",
    );
}

#[test]
fn neighbours_are_heard_on_the_link_only() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let (from, to) = (end("fe80::2", 0), end("ff02::1:ff00:1", 0));
    for kind in [133, 134, 135, 136] {
        let frame = icmp(from, to, kind, 0, &[0; 16]);
        s.pass_in(&frame, "reason:none+1/64");
        let mut forwarded = frame;
        forwarded[14 + 7] = 254;
        s.drop_in(&forwarded, "reason:ndp-invalid+1/64");
    }
    // Multicast listeners use a hop limit of 1.
    let mut report = icmp(from, to, 143, 0, &[0; 16]);
    report[14 + 7] = 1;
    s.pass_in(&report, "reason:none+1/64");
    s.pass_out(&report, "reason:none+1/64");
}
