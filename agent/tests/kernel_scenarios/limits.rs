//! Full tables and rings: the configured choice, every loss counted by its cause, and nothing let in by it.

use agent::kernel::loader::TableSizes;
use datapath::abi::config_flags;
use datapath::packet::tcp::{ACK, SYN};
use datapath::sim::Content;
use datapath::sim::packets::{end, tcp};

use crate::support::scene::{LOCAL, Lease, PEER, Scene, client, policy, server};
use crate::support::twin::{ROOMY, Twin, default_config};

fn scene(sizes: TableSizes) -> Option<Scene> {
    Scene::with(Lease::own(Twin::open(sizes)?), policy(), Content::default())
}

#[test]
fn a_full_table_denies_unless_configured() {
    let Some(mut s) = scene(TableSizes {
        flows4: 2,
        flows6: 2,
        ..ROOMY
    }) else {
        return;
    };
    // One set of four, and the least spill room beside it: four more.
    for port in 1..=8 {
        let peer = end(PEER, port);
        s.pass_in(
            &tcp(peer, server(), SYN, 0),
            "flow:syn-sent out+1/40 event:new",
        );
        s.pass_out(
            &tcp(server(), peer, SYN | ACK, 0),
            "state:syn-sent>syn-received in+1/40",
        );
        s.pass_in(
            &tcp(peer, server(), ACK, 0),
            "state:syn-received>established out+1/40",
        );
    }
    let full = "reason:table-full+1/40 denied+1/40 loss:flow-table-full+1";
    s.drop_in(
        &tcp(end(PEER, 9), server(), SYN, 0),
        &format!("{full} deny:new event:deny"),
    );
    s.drop_in(&tcp(end(PEER, 10), server(), SYN, 0), full);
    // Those that are in go on, in the array and beside it.
    for port in 1..=8 {
        s.pass_in(&tcp(end(PEER, port), server(), ACK, 0), "out+1/40");
        s.pass_out(&tcp(server(), end(PEER, port), ACK, 0), "in+1/40");
    }
    let mut config = default_config();
    config.flags = config_flags::FULL_ALLOW;
    s.twin.set_config(config);
    s.pass_in(
        &tcp(end(PEER, 11), server(), SYN, 0),
        "reason:none+1/40 loss:flow-table-full+1 loss:untracked+1",
    );
    // A full table lets in nothing that policy denies.
    s.drop_in(
        &tcp(end(PEER, 3), end(LOCAL, 22), SYN, 0),
        "reason:default-deny+1/40 denied+1/40 deny:new event:deny",
    );
}

#[test]
fn a_full_table_of_denials_still_counts_by_reason() {
    let Some(mut s) = scene(TableSizes { denies: 1, ..ROOMY }) else {
        return;
    };
    let first = tcp(client(), end(LOCAL, 22), SYN, 0);
    let second = tcp(client(), end(LOCAL, 23), SYN, 0);
    s.drop_in(
        &first,
        "reason:default-deny+1/40 denied+1/40 deny:new event:deny",
    );
    s.drop_in(&first, "reason:default-deny+1/40 denied+1/40");
    let lost = "reason:default-deny+1/40 loss:deny-table-full+1 event:deny";
    s.drop_in(&second, lost);
    s.drop_in(&second, lost);
}

#[test]
fn a_full_ring_loses_notices_and_nothing_else() {
    let Some(mut s) = scene(TableSizes {
        ring: 4_096,
        share: 0,
        ..ROOMY
    }) else {
        return;
    };
    // 30 notices of 136 bytes fit; each step empties the ring, so they are sent without looking.
    for port in 1..=30 {
        let syn = tcp(end(PEER, port), server(), SYN, 0);
        s.twin.send(&syn, datapath::ids::Direction::Ingress, None);
    }
    let (c, v) = (end(PEER, 31), server());
    let syn = tcp(c, v, SYN, 0);
    s.twin.send(&syn, datapath::ids::Direction::Ingress, None);
    let (kernel, host) = s.twin.states();
    assert_eq!(kernel.differences(&host), Vec::<String>::new());
    assert_eq!(kernel.losses["ring-full"], 1);
    assert_eq!((kernel.events.len(), kernel.flows.len()), (30, 31));
    s.look_away();
    s.pass_out(
        &tcp(v, c, SYN | ACK, 0),
        "state:syn-sent>syn-received in+1/40",
    );
    s.pass_in(
        &tcp(c, v, ACK, 0),
        "state:syn-received>established out+1/40",
    );
}

#[test]
fn a_denial_is_announced_again_after_its_interval() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let mut config = default_config();
    config.deny_interval = s.twin.ticks(25);
    s.twin.set_config(config);
    let frame = tcp(client(), end(LOCAL, 22), SYN, 0);
    let ticks = s.twin.ticks(20);
    let denied = "reason:default-deny+1/40 denied+1/40";
    s.drop_in(&frame, &format!("{denied} deny:new event:deny"));
    s.drop_in(&frame, denied);
    s.twin.age(ticks);
    s.drop_in(&frame, denied);
    s.twin.age(ticks);
    s.drop_in(&frame, &format!("{denied} event:deny"));
    s.drop_in(&frame, denied);
}
