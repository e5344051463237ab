//! The operator's switches and the way from learning to enforcing.

use datapath::abi::{ActiveWord, failsafe_flags, panic};
use datapath::ids::Direction::Ingress;
use datapath::packet::tcp::{ACK, RST, SYN};
use datapath::sim::Content;
use datapath::sim::packets::{end, icmp, tcp, udp};

use crate::support::frames::icmp_error;
use crate::support::scene::{LOCAL, OTHER, PEER, Scene, client, failsafe, policy, server};
use crate::support::twin::default_config;

fn switch(s: &mut Scene, to: u32) {
    let mut config = default_config();
    config.panic = to;
    s.twin.set_config(config);
}

#[test]
fn closed_means_failsafes_and_nothing_else() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    s.twin.set_failsafes(vec![failsafe(
        Ingress,
        6,
        22,
        OTHER,
        failsafe_flags::ORDINARY,
    )]);
    let (c, v) = (client(), server());
    s.establish(c, v, true);
    switch(&mut s, panic::CLOSE);
    let closed = "reason:panic-close+1/40";
    s.drop_in(&tcp(c, v, ACK, 0), closed);
    s.drop_out(&tcp(v, c, ACK, 0), closed);
    s.drop_in(&tcp(end(PEER, 5), v, SYN, 0), closed);
    s.drop_in(
        &icmp(end(PEER, 5), end(LOCAL, 0), 8, 0, &[]),
        "reason:panic-close+1/28",
    );
    let error = icmp_error(end(PEER, 0), end(LOCAL, 0), &tcp(v, c, ACK, 9), (3, 4), 28);
    s.drop_in(
        &error,
        "reason:panic-close+1/56 denied+1/56 deny:new event:deny",
    );
    s.pass_in(
        &tcp(end(OTHER, 5), end(LOCAL, 22), SYN, 0),
        "reason:none+1/40",
    );
    s.pass_out(
        &tcp(end(LOCAL, 22), end(OTHER, 5), SYN | ACK, 0),
        "reason:none+1/40",
    );
    s.drop_out(&tcp(end(LOCAL, 23), end(OTHER, 5), ACK, 0), closed);
    s.pass_out(
        &udp(end("0.0.0.0", 68), end("255.255.255.255", 67), 0),
        "reason:none+1/28",
    );
    // Broken packets are not let in either.
    let mut bad = tcp(c, v, ACK, 0);
    bad[14] = 0;
    s.drop_in(&bad, "reason:malformed-ip+1/40");
    switch(&mut s, panic::NONE);
    s.pass_in(&tcp(c, v, ACK, 0), "out+1/40");
}

#[test]
fn open_means_everything_and_is_recorded() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    switch(&mut s, panic::OPEN);
    let stranger = end("192.0.2.9", 5);
    s.pass_in(
        &tcp(stranger, end(LOCAL, 9), SYN, 0),
        "flow:syn-sent out+1/40 event:new",
    );
    s.pass_in(
        &tcp(end(PEER, 9), end(LOCAL, 9), ACK, 0),
        "flow:established out+1/40 event:new",
    );
    s.pass_in(
        &tcp(end(PEER, 8), end(LOCAL, 9), RST, 0),
        "reason:none+1/40",
    );
    let mut bad = tcp(stranger, server(), SYN, 0);
    bad[14] = 0;
    s.pass_in(&bad, "reason:mode-observe+1/40");
    let error = icmp_error(
        stranger,
        end(LOCAL, 0),
        &tcp(server(), client(), ACK, 9),
        (3, 4),
        28,
    );
    s.pass_in(&error, "reason:none+1/56");
}

#[test]
fn arming_cuts_no_live_connection_and_admits_no_new_one() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let shell = end(LOCAL, 22);
    let (live, late) = (end(OTHER, 40_000), end(OTHER, 40_001));
    s.twin.set_word(ActiveWord::committed(1, 0).learning());
    s.pass_in(
        &tcp(live, shell, ACK, 5),
        "flow:established out+1/45 event:new",
    );
    // allow | evaluated deny | draft deny | adopted | the initiator is the higher address
    assert!(
        s.event().contains("verdict 0x57 default-deny"),
        "{}",
        s.event()
    );
    s.pass_out(&tcp(shell, live, ACK, 0), "in+1/40");
    s.pass_in(
        &tcp(late, shell, SYN, 0),
        "flow:syn-sent out+1/40 event:new",
    );
    s.pass_out(
        &tcp(shell, late, SYN | ACK, 0),
        "state:syn-sent>syn-received in+1/40",
    );
    s.pass_in(
        &tcp(live, shell, RST, 0),
        "state:established>reset out+1/40 event:close",
    );
    s.pass_in(
        &tcp(live, shell, ACK, 0),
        "state:reset>established out+1/40",
    );
    s.commit(2, 0);
    s.pass_in(&tcp(live, shell, ACK, 0), "gen:1>2 out+1/40");
    s.drop_in(
        &tcp(late, shell, ACK, 0),
        "gen:1>2 state:syn-received>cut why:default-deny>policy-changed event:close reason:policy-changed+1/40 denied+1/40 deny:new event:deny",
    );
    s.commit(3, 0);
    s.drop_out(
        &tcp(shell, live, ACK, 0),
        "gen:2>3 state:established>cut why:default-deny>policy-changed event:close reason:policy-changed+1/40 denied+1/40 deny:new event:deny",
    );
}

#[test]
fn who_began_is_guessed_while_learning() {
    let Some(mut s) = Scene::open(policy()) else {
        return;
    };
    s.twin.set_word(ActiveWord::committed(1, 0).learning());
    // An answer to a SYN that was not seen, a listener on the lower port, an echo reply.
    s.pass_out(
        &tcp(server(), client(), SYN | ACK, 0),
        "flow:syn-received in+1/40 event:new",
    );
    s.pass_out(
        &tcp(server(), end(PEER, 40_005), ACK, 0),
        "flow:established in+1/40 event:new",
    );
    s.pass_in(
        &tcp(end(PEER, 5432), end(LOCAL, 40_000), ACK, 0),
        "flow:established in+1/40 event:new",
    );
    assert!(
        s.event()
            .contains("10.0.0.1:40000 -> ::ffff:10.0.0.2:5432 proto 6 dir 1")
    );
    s.pass_in(
        &icmp(end(PEER, 7), end(LOCAL, 0), 0, 0, &[]),
        "flow:replied in+1/28 event:new",
    );
}
