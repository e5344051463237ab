//! One agent's programs give way to the next one's while packets are on their way through them: each packet is judged by
//! one load from its first byte to its verdict.

#![allow(clippy::panic, clippy::expect_used, reason = "tests")]

#[path = "support_kernel/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use agent::kernel::loader::{INGRESS, Pins};
use datapath::abi::ActiveWord;
use datapath::record::FlowView;
use datapath::sim::packets::{end, udp};
use support::convert;
use support::rig::{ROOT, Rig, open};
use support::run::passes;
use support::scene::{LOCAL, PEER, policy};
use support::twin::{ROOMY, default_config};

/// Loads that follow each other.
const LOADS: usize = 8;

#[test]
fn a_packet_is_judged_by_the_load_that_read_it() {
    let Some(rig) = Rig::open(ROOMY) else {
        return;
    };
    rig.fill(0, &convert::content(&policy()));
    rig.set_config(&default_config());
    rig.set_word(ActiveWord::committed(1, 0));
    let server = end(LOCAL, 53);
    let (mut sent, mut refused) = (BTreeMap::<u16, u64>::new(), 0u64);
    let mut kernel = None;
    for _ in 0..LOADS {
        // What hooks of the load before go on to run.
        let before = kernel.as_ref().unwrap_or(&*rig.kernel);
        let program = before.program_fd(INGRESS).expect("a program");
        let (stop, begun) = (AtomicBool::new(false), AtomicBool::new(false));
        let next = std::thread::scope(|scope| {
            let packets = scope.spawn(|| {
                let mut ports = (1000u16..1032).cycle();
                while !stop.load(Ordering::Acquire) {
                    let port = ports.next().expect("a cycle");
                    if passes(&program, &udp(end(PEER, port), server, 10)) {
                        *sent.entry(port).or_default() += 1;
                    } else {
                        refused += 1;
                    }
                    begun.store(true, Ordering::Release);
                }
            });
            while !begun.load(Ordering::Acquire) && !packets.is_finished() {
                std::thread::yield_now();
            }
            let next = open(Path::new(ROOT), ROOMY).expect("the next agent loads");
            stop.store(true, Ordering::Release);
            packets.join().expect("the packets");
            next
        });
        assert!(matches!(next.pins(), Pins::Reused), "{:?}", next.pins());
        kernel = Some(next);
    }
    let mut counted = BTreeMap::<u16, u64>::new();
    for (_, flow) in rig.kernel.entries4().expect("entries") {
        let view = FlowView::of4(&flow);
        *counted.entry(view.initiator_port).or_default() += view.packets_out;
        assert_eq!((view.responder_port, view.packets_in), (53, 0), "{view:?}");
    }
    let packets: u64 = sent.values().sum();
    println!("{packets} packets while {LOADS} loads took over");
    assert_eq!(refused, 0, "no packet is refused");
    assert_eq!(counted, sent, "each packet is counted in its flow");
    assert!(packets > 1000, "packets came meanwhile");
}
