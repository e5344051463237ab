//! Corners: what two directions, two CPUs or two contents do to one entry.

use datapath::abi::{ActiveWord, rule_flags, verdict};
use datapath::drop_reason::DropReason;
use datapath::ids::Direction::{Egress, Ingress};
use datapath::packet::tcp::ACK;
use datapath::pipeline::Action::{Drop, Pass};
use datapath::sim::packets::{end, icmp, tcp};

use crate::support::{LOCAL, PEER, armed, content, open};

#[test]
fn an_echo_request_is_judged_in_its_own_direction() {
    let sim = armed();
    // PEER may ping LOCAL (rule 14); LOCAL may not ping PEER.
    let (p, l) = (end(PEER, 0), end(LOCAL, 0));
    let id = [0x12, 0x34, 0, 1];
    assert_eq!(
        sim.send(&icmp(l, p, 8, 0, &id), Egress),
        Drop,
        "denied alone"
    );
    assert_eq!(sim.send(&icmp(p, l, 8, 0, &id), Ingress), Pass);
    assert_eq!(
        sim.send(&icmp(l, p, 8, 0, &id), Egress),
        Drop,
        "denied, also with the peer's ping tracked"
    );
}

#[test]
fn stamps_of_the_next_tick_are_not_idle() {
    let sim = armed();
    let (c, s) = (end(PEER, 40000), end(LOCAL, 443));
    open(&sim, c, s, true);
    let t = sim.jiffies.get();
    sim.jiffies.set(t + 1); // other CPUs, one tick on
    assert_eq!(sim.send(&tcp(c, s, ACK, 5), Ingress), Pass);
    assert_eq!(sim.send(&tcp(s, c, ACK, 5), Egress), Pass);
    sim.jiffies.set(t); // this CPU read jiffies just before
    assert_eq!(sim.send(&tcp(c, s, ACK, 5), Ingress), Pass);
}

#[test]
fn keep_does_not_survive_an_expiry_met_under_a_new_generation() {
    let mut sim = armed();
    let now = sim.boot_ns.get();
    let (c, s) = (end(PEER, 40000), end(LOCAL, 443));
    for (key, value) in &mut sim.slots[0].rules {
        if key.port == 443u16.to_be_bytes() {
            value.flags |= rule_flags::KEEP;
            value.expiry = now + 10_000_000_000;
            value.after = verdict::DENY;
            value.after_reason = DropReason::Expired as u8;
        }
    }
    open(&sim, c, s, true);
    sim.boot_ns.set(now + 60_000_000_000); // long past the expiry; the flow was silent
    let mut next = content(); // the controller planned again: what has expired is absent
    next.rules
        .retain(|(key, _)| key.port != 443u16.to_be_bytes());
    sim.slots[1] = next;
    sim.word.set(ActiveWord::committed(2, 1));
    assert_eq!(sim.send(&tcp(c, s, ACK, 9), Ingress), Drop);
}
