//! The loaded object on the hooks of a real device: frames that end inside the IP header, frames whose headers
//! are not in the linear part of the socket buffer, merged packets whose segments nobody counted.

#![allow(clippy::panic, reason = "tests")]

#[path = "support_kernel/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use datapath::abi::{ActiveWord, mode};
use datapath::ids::Direction::{self, Egress, Ingress};
use datapath::packet::tcp::{ACK, SYN};
use datapath::pipeline::Action;
use datapath::sim::packets::{end, icmp, sctp, tcp, udp};
use support::frames::{icmp_error, with_extension, with_ip_options, with_tcp_options};
use support::rig::Merged;
use support::rng::{Rng, setting};
use support::scene::{LOCAL, LOCAL6, PEER, PEER6, policy};
use support::twin::{ROOMY, Twin};
use support::wire::Wire;
use support::{traffic, world};

/// As much of a frame in the head of the buffer as Ethernet needs.
const LINK_ONLY: u16 = 14;

struct Lab {
    twin: Twin,
    wire: Wire,
}

impl Lab {
    fn open(content: datapath::sim::Content) -> Option<Self> {
        let mut twin = Twin::open(ROOMY)?;
        twin.fill([content.clone(), content]);
        twin.set_word(ActiveWord::committed(1, 0));
        let wire = Wire::open(&twin.rig)?;
        twin.sim.ifindex = wire.ifindex;
        Some(Self { twin, wire })
    }

    fn send(&self, frame: &[u8], direction: Direction, merged: Option<Merged>) {
        let size = merged.map_or(0, |merged| merged.size);
        let host = self.twin.sim.send_sized(frame, direction, 0, size);
        match self.wire.send(frame, direction, LINK_ONLY, merged) {
            Ok(()) => assert!(direction == Ingress || host == Action::Pass, "{frame:02x?}"),
            // What an egress hook drops, its sender is told.
            Err(error) if direction == Egress && error.raw_os_error() == Some(libc::ENOBUFS) => {
                assert_eq!(host, Action::Drop, "{frame:02x?}");
            }
            Err(error) => panic!("{} bytes: {error}", frame.len()),
        }
    }

    /// Waits until the kernel has dealt with every frame, and demands the same traces.
    fn settle(&mut self, what: &str) {
        let scale = setting("COFFERDAM_TEST_SCALE", 1) as u32;
        let deadline = Instant::now() + Duration::from_secs(20) * scale;
        loop {
            let (kernel, host) = self.twin.states();
            let differences = kernel.differences(&host);
            if differences.is_empty() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{what}:\n{}",
                differences.join("\n")
            );
            std::thread::yield_now();
        }
    }
}

#[test]
fn every_truncation_on_a_real_hook() {
    let mut rng = Rng::new(1);
    let how = world::Leaning {
        allow: 100,
        enforced: 100,
        mode: mode::ENFORCE,
        holes: false,
        now: agent::kernel::clock::boot_ns(),
    };
    let Some(mut lab) = Lab::open(world::content(&mut rng, how)) else {
        return;
    };
    let mut sent = 0;
    for frame in traffic::every_kind() {
        for direction in [Ingress, Egress] {
            for length in 15..=frame.len() {
                lab.send(&frame[..length], direction, None);
                sent += 1;
            }
        }
        lab.settle(&format!("{frame:02x?}"));
    }
    println!("{sent} frames");
    assert!(sent > 2_000);
}

#[test]
fn headers_beyond_the_linear_part_are_read() {
    let Some(mut lab) = Lab::open(policy()) else {
        return;
    };
    const LONG: usize = 5_000;
    for (local, peer) in [(LOCAL, PEER), (LOCAL6, PEER6)] {
        let (c, v) = (end(peer, 40_000), end(local, 443));
        let echo = if c.addr.is_ipv4() { 8 } else { 128 };
        let options = with_tcp_options(with_ip_options(tcp(c, v, ACK, LONG), 3), 4);
        let chain = with_extension(with_extension(options, 60, &[0; 7]), 0, &[0; 7]);
        let sent = tcp(v, c, ACK, LONG);
        let error = if c.addr.is_ipv4() { (3, 4) } else { (2, 0) };
        for (frame, direction) in [
            (tcp(c, v, SYN, LONG), Ingress),
            (tcp(v, c, SYN | ACK, LONG), Egress),
            (chain, Ingress),
            (sent.clone(), Egress),
            (udp(c, end(local, 53), LONG), Ingress),
            (sctp(c, end(local, 99), LONG), Ingress),
            (
                icmp(end(peer, 7), end(local, 7), echo, 0, &[0; LONG]),
                Ingress,
            ),
            (icmp_error(c, end(local, 0), &sent, error, LONG), Ingress),
            (tcp(c, end(local, 22), SYN, LONG), Ingress),
        ] {
            lab.send(&frame, direction, None);
        }
        lab.settle(local);
    }
    let (kernel, _) = lab.twin.states();
    assert_eq!(kernel.flows.len(), 8, "{:#?}", kernel.flows);
    assert_eq!(kernel.reasons["none"].0, 2, "related errors");
}

#[test]
fn a_sender_that_counts_no_segments() {
    let Some(mut lab) = Lab::open(policy()) else {
        return;
    };
    let (c, v) = (end(LOCAL, 40_000), end(PEER, 5432));
    lab.send(&tcp(c, v, SYN, 0), Egress, None);
    let merged = Some(Merged {
        segments: 0,
        size: 1_000,
    });
    lab.send(&tcp(c, v, ACK, 5_500), Egress, merged);
    lab.settle("merged");
    let (kernel, _) = lab.twin.states();
    let [(_, flow)] = kernel.flows.iter().collect::<Vec<_>>()[..] else {
        panic!("one flow: {:#?}", kernel.flows)
    };
    // The SYN, and six segments with 40 bytes of headers each.
    assert_eq!((flow.lines[0].0, flow.lines[0].1), (7, 40 + 5_500 + 6 * 40));
}
