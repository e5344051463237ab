//! What decides: rules, modes, identities, filters, failsafes, isolation.

use datapath::abi::{
    ClassValue, FilterValue, addr_flags, failsafe_flags, filter_action, mode, rule_flags,
};
use datapath::ids::Direction::{Egress, Ingress};
use datapath::packet::tcp::{ACK, SYN};
use datapath::sim::Content;
use datapath::sim::packets::{end, tcp, udp};

use crate::support::scene::{
    LOCAL, LOCAL_ID, OTHER, PEER, PEER_ID, Scene, any, cell, client, edit, failsafe, mapped,
    policy, port, server, set_mode,
};

fn denied(reason: &str) -> String {
    format!("reason:{reason}+1/40 denied+1/40 deny:new event:deny")
}

fn isolate(content: &mut Content, addr: &str) {
    for (net, _, value) in &mut content.addresses {
        if *net == mapped(addr) {
            value.flags |= addr_flags::ISOLATED;
        }
    }
}

#[test]
fn a_rule_names_itself_and_its_reason() {
    let mut content = policy();
    edit(&mut content, 443, |cell| {
        (cell.enforced, cell.reason, cell.rule) = (0, 1, 33);
    });
    let Some(mut s) = Scene::of(content, Content::default()) else {
        return;
    };
    s.drop_in(&tcp(client(), server(), SYN, 0), &denied("policy-deny"));
    assert!(s.event().contains("policy-deny") && s.event().contains("rules 33/11"));
    s.drop_in(
        &tcp(client(), end(LOCAL, 22), SYN, 0),
        &denied("default-deny"),
    );
    assert!(s.event().contains("rules 91/91 id 300"));
}

#[test]
fn unknown_matches_no_allow() {
    let mut content = policy();
    content.rules.push((port(1, 6, 443), cell(true, 5)));
    let Some(mut s) = Scene::of(content, Content::default()) else {
        return;
    };
    s.drop_in(
        &tcp(end("192.0.2.9", 5), server(), SYN, 0),
        &denied("unknown-identity"),
    );
    s.pass_in(
        &tcp(end(OTHER, 5), server(), SYN, 0),
        "flow:syn-sent out+1/40 event:new",
    );
}

#[test]
fn a_missing_entry_denies_and_says_so() {
    let mut content = policy();
    content.classes.remove(&(1, PEER_ID, 0));
    let mut empty = policy();
    empty.rules.clear();
    let Some(mut s) = Scene::of(content, empty) else {
        return;
    };
    s.drop_in(&tcp(client(), server(), SYN, 0), &denied("no-policy-entry"));
    s.pass_out(
        &tcp(end(LOCAL, 5), end(PEER, 5432), SYN, 0),
        "flow:syn-sent out+1/40 event:new",
    );
    s.commit(2, 1);
    s.drop_in(
        &tcp(client(), server(), SYN, 0),
        "reason:no-policy-entry+1/40 denied+1/40",
    );
    s.twin.fill([Content::default(), Content::default()]);
    s.commit(3, 0);
    s.drop_in(&tcp(client(), server(), SYN, 0), &denied("no-endpoint"));
}

#[test]
fn observed_traffic_passes_with_its_verdict() {
    let mut content = policy();
    set_mode(&mut content, mode::OBSERVE);
    let Some(mut s) = Scene::of(content, Content::default()) else {
        return;
    };
    s.pass_in(
        &tcp(end(OTHER, 5), end(LOCAL, 22), SYN, 0),
        "flow:syn-sent out+1/40 event:new",
    );
    // allow | evaluated deny | draft deny | the initiator is the higher address
    assert!(
        s.event().contains("verdict 0x47 mode-observe"),
        "{}",
        s.event()
    );
    s.pass_in(
        &tcp(end(OTHER, 4_000), end(LOCAL, 22), ACK, 0),
        "flow:established out+1/40 event:new",
    );
    s.pass_in(
        &udp(end("192.0.2.9", 6), end(LOCAL, 22), 0),
        "flow:new out+1/28 event:new",
    );
}

#[test]
fn selective_enforces_what_is_listed() {
    let mut content = policy();
    set_mode(&mut content, mode::SELECTIVE);
    for (key, value) in &mut content.rules {
        if *key == any(1) {
            value.flags &= !rule_flags::ENFORCED;
        }
    }
    content.rules.push((port(1, 6, 22), cell(false, 93)));
    let Some(mut s) = Scene::of(content, Content::default()) else {
        return;
    };
    s.drop_in(
        &tcp(end(OTHER, 5), end(LOCAL, 22), SYN, 0),
        &denied("default-deny"),
    );
    s.pass_in(
        &tcp(end(OTHER, 5), end(LOCAL, 23), SYN, 0),
        "flow:syn-sent out+1/40 event:new",
    );
}

#[test]
fn two_verdicts_from_one_look_up() {
    let mut content = policy();
    edit(&mut content, 443, |cell| {
        (cell.draft, cell.draft_reason, cell.draft_rule) = (0, 2, 77);
    });
    edit(&mut content, 53, |cell| {
        (cell.enforced, cell.reason, cell.draft_rule) = (0, 2, 78);
    });
    let Some(mut s) = Scene::of(content, Content::default()) else {
        return;
    };
    s.pass_in(
        &tcp(client(), server(), SYN, 0),
        "flow:syn-sent out+1/40 event:new",
    );
    assert!(s.event().contains("verdict 0x45") && s.event().contains("rules 11/77"));
    s.drop_in(
        &udp(client(), end(LOCAL, 53), 0),
        "reason:default-deny+1/28 denied+1/28 deny:new event:deny",
    );
    assert!(s.event().contains("verdict 0x02") && s.event().contains("rules 12/78"));
}

#[test]
fn nobody_speaks_for_this_hosts_address() {
    let mut content = policy();
    let class = ClassValue {
        class: 10,
        filter: 0,
    };
    content.classes.insert((1, LOCAL_ID, 0), class);
    let Some(mut s) = Scene::of(content, Content::default()) else {
        return;
    };
    s.drop_in(
        &tcp(end(LOCAL, 5), server(), SYN, 0),
        &denied("spoofed-source"),
    );
    s.drop_in(
        &tcp(end(LOCAL, 5), server(), SYN, 0),
        "reason:spoofed-source+1/40 denied+1/40",
    );
}

#[test]
fn filters_are_stateless() {
    let mut content = policy();
    let class = ClassValue {
        class: 10,
        filter: 5,
    };
    content.classes.insert((1, PEER_ID, 0), class);
    let deny = FilterValue {
        rule: 70,
        action: filter_action::DENY | filter_action::ENFORCED,
    };
    let observed = FilterValue {
        rule: 71,
        action: filter_action::DENY,
    };
    content.filters.push((port(5, 6, 40_001), deny));
    content.filters.push((port(5, 17, 53), observed));
    content.filters.push((port(5, 6, 443), deny));
    let Some(mut s) = Scene::of(content, policy()) else {
        return;
    };
    s.drop_in(&tcp(client(), server(), SYN, 0), &denied("filter"));
    s.pass_in(
        &udp(client(), end(LOCAL, 53), 0),
        "flow:new out+1/28 event:new",
    );
    // The answers of an allowed flow are filtered by what they are.
    let (c, v) = (end(LOCAL, 40_001), end(PEER, 5432));
    s.pass_out(&tcp(c, v, SYN, 0), "flow:syn-sent out+1/40 event:new");
    s.drop_in(&tcp(v, c, SYN | ACK, 0), &denied("filter"));
    s.pass_out(&tcp(c, v, SYN, 0), "out+1/40");
    // Without the filter the same flow goes on.
    s.commit(2, 1);
    s.pass_in(
        &tcp(v, c, SYN | ACK, 0),
        "gen:1>2 state:syn-sent>syn-received in+1/40",
    );
    s.commit(3, 0);
    s.pass_out(
        &tcp(c, v, ACK, 0),
        "gen:2>3 state:syn-received>established out+1/40",
    );
    s.drop_in(&tcp(v, c, ACK, 0), "reason:filter+1/40 denied+1/40");
}

#[test]
fn failsafes_hold_whatever_policy_says() {
    let mut isolated = policy();
    set_mode(&mut isolated, mode::ISOLATE);
    let Some(mut s) = Scene::open(isolated) else {
        return;
    };
    s.twin.set_failsafes(vec![
        failsafe(Ingress, 6, 22, OTHER, failsafe_flags::ORDINARY),
        failsafe(Egress, 6, 7443, PEER, failsafe_flags::CONTROLLER),
        failsafe(Egress, 17, 0, OTHER, failsafe_flags::ORDINARY),
        failsafe(Ingress, 0, 0, "192.0.2.7", failsafe_flags::FORENSIC),
    ]);
    let new = "flow:syn-sent out+1/40 event:new";
    let (admin, shell) = (end(OTHER, 5), end(LOCAL, 22));
    let (agent, controller) = (end(LOCAL, 6), end(PEER, 7443));
    s.pass_in(&tcp(admin, shell, SYN, 0), new);
    assert!(s.event().contains("verdict 0x61") && s.event().contains("rules 7/7"));
    s.drop_in(&tcp(admin, end(LOCAL, 23), SYN, 0), &denied("default-deny"));
    s.pass_out(&tcp(agent, controller, SYN, 0), new);
    s.pass_out(
        &udp(end(LOCAL, 9), end(OTHER, 1234), 0),
        "flow:new out+1/28 event:new",
    );
    s.pass_in(&tcp(end("192.0.2.7", 5), end(LOCAL, 1), SYN, 0), new);
    let dhcp = udp(end("0.0.0.0", 68), end("255.255.255.255", 67), 0);
    s.pass_out(&dhcp, "flow:new out+1/28 event:new");
    // An isolated host keeps its controller and forensics.
    s.commit(2, 1);
    s.drop_in(
        &tcp(admin, shell, ACK, 0),
        "gen:1>2 state:syn-sent>cut why:none>isolated event:close reason:isolated+1/40 denied+1/40 deny:new event:deny",
    );
    s.pass_out(&tcp(agent, controller, SYN, 0), "gen:1>2 out+1/40");
    s.pass_in(
        &tcp(end("192.0.2.7", 5), end(LOCAL, 1), SYN, 0),
        "gen:1>2 out+1/40",
    );
    s.drop_in(&tcp(client(), server(), SYN, 0), &denied("isolated"));
    s.drop_in(&tcp(client(), end(LOCAL, 444), ACK, 0), &denied("isolated"));
}

#[test]
fn an_isolated_peer_is_denied_at_this_end_too() {
    let mut next = policy();
    isolate(&mut next, PEER);
    let Some(mut s) = Scene::open(next) else {
        return;
    };
    s.twin.set_failsafes(vec![failsafe(
        Ingress,
        6,
        22,
        PEER,
        failsafe_flags::ORDINARY,
    )]);
    s.establish(client(), server(), true);
    s.commit(2, 1);
    s.drop_out(
        &tcp(server(), client(), ACK, 0),
        "gen:1>2 state:established>cut why:none>peer-isolated event:close reason:peer-isolated+1/40 denied+1/40 deny:new event:deny",
    );
    s.drop_in(&tcp(client(), server(), ACK, 0), &denied("peer-isolated"));
    s.drop_in(
        &tcp(end(PEER, 1), end(LOCAL, 22), SYN, 0),
        &denied("peer-isolated"),
    );
    s.drop_out(
        &tcp(end(LOCAL, 1), end(PEER, 5432), SYN, 0),
        &denied("peer-isolated"),
    );
    s.twin.set_failsafes(vec![failsafe(
        Ingress,
        6,
        22,
        PEER,
        failsafe_flags::FORENSIC,
    )]);
    s.pass_in(
        &tcp(end(PEER, 1), end(LOCAL, 22), SYN, 0),
        "flow:syn-sent out+1/40 event:new",
    );
}
