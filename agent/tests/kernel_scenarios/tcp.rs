//! Connections: opening, closing, resets, ports used again, segments that belong to nothing.

use datapath::packet::tcp::{ACK, FIN, RST, SYN};
use datapath::sim::Content;
use datapath::sim::packets::{end, tcp};

use crate::support::scene::{LOCAL, LOCAL6, OTHER, PEER, PEER6, Scene, client, server};

const PSH: u8 = 0x08;
const URG: u8 = 0x20;

#[test]
fn a_whole_session_towards_this_host() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let (c, v) = (client(), server());
    s.pass_in(&tcp(c, v, SYN, 0), "flow:syn-sent out+1/40 event:new");
    s.pass_out(
        &tcp(v, c, SYN | ACK, 0),
        "state:syn-sent>syn-received in+1/40",
    );
    s.pass_in(
        &tcp(c, v, ACK, 0),
        "state:syn-received>established out+1/40",
    );
    s.pass_in(&tcp(c, v, PSH | ACK, 100), "out+1/140");
    s.pass_out(&tcp(v, c, ACK, 0), "in+1/40");
    s.pass_out(&tcp(v, c, PSH | ACK, 1000), "in+1/1040");
    s.pass_in(
        &tcp(c, v, FIN | ACK, 0),
        "state:established>fin-initiator out+1/40",
    );
    s.pass_out(&tcp(v, c, ACK, 10), "in+1/50");
    s.pass_out(
        &tcp(v, c, FIN | ACK, 0),
        "state:fin-initiator>time-wait in+1/40 event:close",
    );
    s.pass_in(&tcp(c, v, ACK, 0), "out+1/40");
    assert!(
        s.event()
            .starts_with("kind 2 4 ::ffff:10.0.0.2:40000 -> ::ffff:10.0.0.1:443 proto 6")
    );
}

#[test]
fn a_whole_session_of_this_host_over_ipv6() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let (c, v) = (end(LOCAL6, 40_000), end(PEER6, 5432));
    s.pass_out(&tcp(c, v, SYN, 0), "flow:syn-sent out+1/60 event:new");
    s.pass_in(
        &tcp(v, c, SYN | ACK, 0),
        "state:syn-sent>syn-received in+1/60",
    );
    s.pass_out(
        &tcp(c, v, ACK, 0),
        "state:syn-received>established out+1/60",
    );
    s.pass_in(
        &tcp(v, c, FIN | ACK, 5),
        "state:established>fin-responder in+1/65",
    );
    s.pass_out(&tcp(c, v, ACK, 5), "out+1/65");
    s.pass_out(
        &tcp(c, v, FIN | ACK, 0),
        "state:fin-responder>time-wait out+1/60 event:close",
    );
    s.pass_in(&tcp(v, c, ACK, 0), "in+1/60");
}

#[test]
fn what_policy_denies_leaves_no_entry() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let denied = "reason:default-deny+1/40 denied+1/40";
    s.drop_in(
        &tcp(client(), end(LOCAL, 22), SYN, 0),
        &format!("{denied} deny:new event:deny"),
    );
    s.drop_in(&tcp(client(), end(LOCAL, 22), SYN, 0), denied);
    // Another source port is the same denial.
    s.drop_in(&tcp(end(PEER, 40_001), end(LOCAL, 22), SYN, 0), denied);
    s.drop_in(
        &tcp(end(OTHER, 40_000), server(), SYN, 0),
        &format!("{denied} deny:new event:deny"),
    );
    s.drop_out(
        &tcp(end(LOCAL, 40_000), end(PEER, 443), SYN, 0),
        &format!("{denied} deny:new event:deny"),
    );
    s.drop_in(
        &tcp(end(PEER6, 5), end(LOCAL6, 22), SYN, 0),
        "reason:default-deny+1/60 denied+1/60 deny:new event:deny",
    );
}

#[test]
fn segments_of_no_connection_are_denied_and_named() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let (c, v) = (client(), server());
    let first = |reason: &str| format!("reason:{reason}+1/40 denied+1/40 deny:new event:deny");
    s.drop_in(&tcp(c, v, ACK, 0), &first("mid-stream"));
    s.drop_in(
        &tcp(c, v, FIN | ACK, 0),
        "reason:mid-stream+1/40 denied+1/40",
    );
    s.drop_in(&tcp(c, v, SYN | ACK, 0), &first("mid-stream"));
    s.drop_in(&tcp(c, v, RST, 0), &first("rst-without-flow"));
    s.drop_in(
        &tcp(c, v, RST | ACK, 0),
        "reason:rst-without-flow+1/40 denied+1/40",
    );
    s.drop_out(&tcp(v, c, ACK, 0), &first("mid-stream"));
    s.drop_in(&tcp(c, v, FIN, 0), "reason:mid-stream+1/40 denied+1/40");
}

#[test]
fn impossible_flags_never_pass_not_even_on_a_connection() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    s.establish(client(), server(), true);
    for flags in [
        0,
        PSH,
        URG,
        PSH | URG,
        SYN | FIN,
        SYN | RST,
        FIN | RST,
        SYN | FIN | ACK,
        0xff,
    ] {
        s.drop_in(
            &tcp(client(), server(), flags, 0),
            "reason:tcp-invalid+1/40",
        );
    }
    s.pass_in(&tcp(client(), server(), ACK | URG, 0), "out+1/40");
}

#[test]
fn a_reset_frees_nothing_and_traffic_restores() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let (c, v) = (client(), server());
    s.establish(c, v, true);
    s.pass_in(
        &tcp(c, v, RST, 0),
        "state:established>reset out+1/40 event:close",
    );
    s.pass_in(&tcp(c, v, RST, 0), "out+1/40");
    s.pass_out(&tcp(v, c, ACK, 7), "state:reset>established in+1/47");
    s.pass_out(
        &tcp(v, c, RST | ACK, 0),
        "state:established>reset in+1/40 event:close",
    );
    // The same ports, after the reset: another instance, and the counters begin anew.
    s.pass_in(
        &tcp(c, v, SYN, 0),
        "state:reset>syn-sent out-3/-120 in-3/-127 event:new",
    );
    s.pass_out(
        &tcp(v, c, SYN | ACK, 0),
        "state:syn-sent>syn-received in+1/40",
    );
}

#[test]
fn a_syn_changes_no_live_connection_and_replaces_a_finished_one() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let (c, v) = (client(), server());
    s.pass_in(&tcp(c, v, SYN, 0), "flow:syn-sent out+1/40 event:new");
    s.pass_in(&tcp(c, v, SYN, 0), "out+1/40");
    s.pass_out(
        &tcp(v, c, SYN | ACK, 0),
        "state:syn-sent>syn-received in+1/40",
    );
    s.pass_out(&tcp(v, c, SYN | ACK, 0), "in+1/40");
    s.pass_in(
        &tcp(c, v, ACK, 0),
        "state:syn-received>established out+1/40",
    );
    s.pass_in(&tcp(c, v, SYN, 0), "out+1/40");
    // A bare SYN is judged by itself: nothing allows one the other way.
    s.drop_out(
        &tcp(v, c, SYN, 0),
        "reason:default-deny+1/40 denied+1/40 deny:new event:deny",
    );
    s.pass_in(
        &tcp(c, v, FIN | ACK, 0),
        "state:established>fin-initiator out+1/40",
    );
    s.pass_in(&tcp(c, v, SYN, 0), "out+1/40");
    s.pass_out(
        &tcp(v, c, FIN | ACK, 0),
        "state:fin-initiator>time-wait in+1/40 event:close",
    );
    s.pass_in(
        &tcp(c, v, SYN, 0),
        "state:time-wait>syn-sent out-5/-200 in-3/-120 event:new",
    );
}

#[test]
fn both_ends_may_open_at_once() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let (c, v) = (client(), server());
    s.pass_in(&tcp(c, v, SYN, 0), "flow:syn-sent out+1/40 event:new");
    // Policy opens one direction only. The crossing SYN is denied, and the connection comes about all the same:
    // its sender answers the SYN that it received (RFC 9293 §3.5, figure 8).
    s.drop_out(
        &tcp(v, c, SYN, 0),
        "reason:default-deny+1/40 denied+1/40 deny:new event:deny",
    );
    s.pass_out(
        &tcp(v, c, SYN | ACK, 0),
        "state:syn-sent>syn-received in+1/40",
    );
    s.pass_in(&tcp(c, v, SYN | ACK, 0), "out+1/40");
    s.pass_in(
        &tcp(c, v, ACK, 0),
        "state:syn-received>established out+1/40",
    );
}

#[test]
fn a_handshake_that_the_initiator_gives_up_is_reset() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let (c, v) = (client(), server());
    s.pass_in(&tcp(c, v, SYN, 0), "flow:syn-sent out+1/40 event:new");
    s.pass_out(
        &tcp(v, c, RST | ACK, 0),
        "state:syn-sent>reset in+1/40 event:close",
    );
}
