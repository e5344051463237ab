//! What a new content does to flows that are there: restamped, cut, kept, expired, opened anew.

use datapath::abi::{ActiveWord, addr_flags, rule_flags, verdict};
use datapath::packet::tcp::{ACK, RST, SYN};
use datapath::sim::Content;
use datapath::sim::packets::{end, tcp, udp};

use crate::support::scene::{LOCAL, PEER, Scene, client, edit, mapped, policy, server, without};

const CUT: &str = "gen:1>2 state:established>cut why:none>policy-changed event:close reason:policy-changed+1/40 denied+1/40 deny:new event:deny";

#[test]
fn a_flow_that_is_still_allowed_is_restamped_once() {
    let mut next = policy();
    edit(&mut next, 443, |cell| cell.rule = 111);
    let Some(mut s) = Scene::open(next) else {
        return;
    };
    s.establish(client(), server(), true);
    s.commit(2, 1);
    s.pass_out(&tcp(server(), client(), ACK, 0), "gen:1>2 in+1/40");
    s.pass_in(&tcp(client(), server(), ACK, 0), "out+1/40");
    // The entry names the rule of the new content.
    assert_eq!(s.entry().lines[0].4[0], 111);
    s.commit(3, 0);
    s.pass_in(&tcp(client(), server(), ACK, 0), "gen:2>3 out+1/40");
}

#[test]
fn a_flow_that_is_denied_now_is_cut_in_both_directions() {
    let Some(mut s) = Scene::open(without(policy(), 443)) else {
        return;
    };
    s.establish(client(), server(), true);
    let (c, v) = (client(), server());
    s.commit(2, 1);
    // A reply asks in the flow's own direction.
    s.drop_out(&tcp(v, c, ACK, 0), CUT);
    s.drop_out(&tcp(v, c, ACK, 0), "reason:policy-changed+1/40 denied+1/40");
    let other = "reason:policy-changed+1/40 denied+1/40 deny:new event:deny";
    s.drop_in(&tcp(c, v, ACK, 0), other);
    s.drop_in(&tcp(c, v, RST, 0), "reason:policy-changed+1/40 denied+1/40");
    // A new attempt is judged for itself.
    s.drop_in(
        &tcp(c, v, SYN, 0),
        "reason:default-deny+1/40 denied+1/40 deny:new event:deny",
    );
    // The old content again: what was cut stays cut, a new connection may begin.
    s.commit(3, 0);
    s.drop_in(&tcp(c, v, ACK, 0), "reason:policy-changed+1/40 denied+1/40");
    s.pass_in(
        &tcp(c, v, SYN, 0),
        "gen:2>3 state:cut>syn-sent why:policy-changed>none out-1/-40 in-1/-40 event:new",
    );
}

#[test]
fn a_cut_datagram_flow_may_begin_again_under_another_generation() {
    let Some(mut s) = Scene::open(without(policy(), 53)) else {
        return;
    };
    let (c, v) = (end(PEER, 5), end(LOCAL, 53));
    s.pass_in(&udp(c, v, 0), "flow:new out+1/28 event:new");
    s.pass_out(&udp(v, c, 0), "state:new>replied in+1/28");
    s.commit(2, 1);
    s.drop_in(
        &udp(c, v, 0),
        "gen:1>2 state:replied>cut why:none>policy-changed event:close reason:policy-changed+1/28 denied+1/28 deny:new event:deny",
    );
    s.drop_in(&udp(c, v, 0), "reason:policy-changed+1/28 denied+1/28");
    s.commit(3, 0);
    s.pass_in(
        &udp(c, v, 0),
        "gen:2>3 state:cut>new why:policy-changed>none in-1/-28 event:new",
    );
}

#[test]
fn keep_survives_an_ordinary_deny_only() {
    let keeping = || {
        let mut content = policy();
        edit(&mut content, 443, |cell| cell.flags |= rule_flags::KEEP);
        content
    };
    let denying = || without(policy(), 443);
    let mut hard = denying();
    for (_, cell) in &mut hard.rules {
        cell.flags |= rule_flags::HARD;
    }
    let rebind = |identity: u32, flags: u32| {
        let mut content = denying();
        for (net, _, value) in &mut content.addresses {
            if *net == mapped(PEER) {
                (value.identity, value.flags) = (identity, flags);
            }
        }
        content
    };
    let Some(mut s) = Scene::of(keeping(), denying()) else {
        return;
    };
    let frame = tcp(client(), server(), ACK, 0);
    s.establish(client(), server(), true);
    s.commit(2, 1);
    s.pass_in(&frame, "gen:1>2 why:none>default-deny out+1/40");
    // Kept again and again.
    s.commit(3, 1);
    s.pass_in(&frame, "gen:2>3 out+1/40");
    s.drop_in(
        &tcp(end(PEER, 5), server(), SYN, 0),
        "reason:default-deny+1/40 denied+1/40 deny:new event:deny",
    );
    for (next, changes) in [
        (hard, CUT.to_owned()),
        (rebind(301, 0), CUT.to_owned()),
        (
            rebind(300, addr_flags::ISOLATED),
            CUT.replace("policy-changed", "peer-isolated"),
        ),
    ] {
        s.twin.reset();
        s.twin.fill([keeping(), next]);
        s.commit(1, 0);
        s.establish(client(), server(), true);
        s.commit(2, 1);
        s.drop_in(&frame, &changes);
    }
}

#[test]
fn an_expiry_needs_nobody() {
    let mut granted = policy();
    let future = agent::kernel::clock::boot_ns() + 3_600_000_000_000;
    edit(&mut granted, 443, |cell| {
        cell.expiry = future;
        (cell.after, cell.after_rule, cell.after_reason) = (verdict::DENY, 91, 2);
        cell.flags |= rule_flags::KEEP;
    });
    let mut over = granted.clone();
    edit(&mut over, 443, |cell| cell.expiry = 1);
    let Some(mut s) = Scene::of(granted, over) else {
        return;
    };
    s.establish(client(), server(), true);
    assert_eq!(u64::from(s.entry().lines[0].2), future / 1_000_000_000);
    s.pass_in(&tcp(client(), server(), ACK, 0), "out+1/40");
    // The entry's time comes: the same content is asked again, and says how much later.
    s.twin.expire();
    s.look_away();
    s.pass_in(&tcp(client(), server(), ACK, 0), "out+1/40");
    assert_eq!(u64::from(s.entry().lines[0].2), future / 1_000_000_000);
    // The grant's time comes; generation and everything else stay.
    s.twin.expire();
    s.look_away();
    s.commit(1, 1);
    s.drop_in(
        &tcp(client(), server(), ACK, 0),
        "state:established>cut why:none>expired event:close reason:expired+1/40 denied+1/40 deny:new event:deny",
    );
    s.drop_in(
        &tcp(end(PEER, 5), server(), SYN, 0),
        "reason:default-deny+1/40 denied+1/40 deny:new event:deny",
    );
}

#[test]
fn an_unconfirmed_content_falls_back_by_itself() {
    let Some(mut s) = Scene::open(without(policy(), 443)) else {
        return;
    };
    let syn = tcp(client(), server(), SYN, 0);
    let later = agent::kernel::clock::boot_ns() / 1_000_000_000 + 3_600;
    s.twin.set_word(ActiveWord::pending(2, 1, later));
    s.drop_in(
        &syn,
        "reason:default-deny+1/40 denied+1/40 deny:new event:deny",
    );
    assert!(s.event().contains("gen 2 "));
    s.twin.set_word(ActiveWord::pending(2, 1, 1));
    s.pass_in(&syn, "flow:syn-sent out+1/40 event:new");
    assert!(s.event().contains("gen 3 "));
    // Confirmed after all: the flow of the fall-back is judged by what counts then.
    s.commit(4, 1);
    s.drop_in(
        &tcp(client(), server(), ACK, 0),
        "gen:3>4 state:syn-sent>cut why:none>policy-changed event:close reason:policy-changed+1/40 denied+1/40 deny:new event:deny",
    );
}

#[test]
fn nothing_activated_passes_nothing() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    s.twin.set_word(ActiveWord(0));
    s.drop_in(&tcp(client(), server(), SYN, 0), "reason:no-policy+1/40");
    s.drop_out(
        &udp(end(LOCAL, 68), end(PEER, 67), 0),
        "reason:no-policy+1/28",
    );
}
