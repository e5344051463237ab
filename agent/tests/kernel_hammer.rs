//! The flow table under all CPUs at once: packets of the same few flows from several threads through the loaded programs,
//! while the collector closes what is silent for a moment. No packet may be counted twice or get lost, and no flow may
//! have two entries.

#![allow(clippy::panic, clippy::expect_used, reason = "tests")]

#[path = "support_kernel/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use agent::flows::collect::{Collector, Settings};
use agent::flows::record::Record;
use agent::kernel::clock::{self, Converter};
use agent::kernel::loader::{EGRESS, INGRESS, TableSizes};
use datapath::abi::ActiveWord;
use datapath::packet::tcp::SYN;
use datapath::sim::packets::{end, tcp, udp};
use support::convert;
use support::rig::Rig;
use support::rng::{Rng, setting};
use support::run::passes;
use support::scene::{LOCAL, PEER, policy};
use support::twin::{ROOMY, default_config};

/// Highest counters by instance: (from the client, from the server).
type Told = BTreeMap<String, (u64, u64)>;

fn tell(told: &mut Told, records: &[Record]) {
    for record in records.iter().filter(|record| !record.denial) {
        let (out, back) = told.entry(record.uid.clone()).or_default();
        *out = (*out).max(record.packets_out);
        *back = (*back).max(record.packets_in);
    }
}

struct Outcome {
    /// Packets that passed.
    sent: u64,
    told: Told,
    lost: BTreeMap<String, u64>,
    deleted: u64,
}

/// `tuples` flows over tables of `sizes`, `packets` packets a thread.
fn hammer(sizes: TableSizes, tuples: usize, packets: usize) -> Option<Outcome> {
    let mut rig = Rig::open(sizes)?;
    rig.fill(0, &convert::content(&policy()));
    let mut config = default_config();
    // Silent for two ticks is over.
    config.timeouts = [2; 16];
    rig.set_config(&config);
    rig.set_word(ActiveWord::committed(1, 0));
    let programs = [INGRESS, EGRESS].map(|name| rig.kernel.program_fd(name).expect("a program"));
    let threads = std::thread::available_parallelism()
        .map_or(2, std::num::NonZero::get)
        .max(2);
    let (mut told, mut deleted) = (Told::new(), 0);
    let settings = Settings {
        interval_ns: 0,
        timeouts: config.timeouts,
        deny_idle: 1_000_000,
    };
    let mut collector = Collector::new("hammer00", settings, []);
    let (running, start) = (AtomicUsize::new(threads), AtomicBool::new(false));
    let sent = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let (programs, running, start) = (&programs, &running, &start);
                scope.spawn(move || {
                    let mut rng = Rng::new(77 + thread as u64);
                    while !start.load(Ordering::Acquire) {
                        std::hint::spin_loop();
                    }
                    let mut passed = 0u64;
                    for number in 0..packets {
                        // A window of flows that moves on: what it leaves behind falls silent.
                        let flow = (number / 512 * 5 + rng.below(12)) % tuples;
                        let client = end(PEER, 1000 + u16::try_from(flow).expect("few flows"));
                        let server = end(LOCAL, 53);
                        let [ingress, egress] = programs;
                        passed += u64::from(if rng.below(3) == 0 {
                            passes(egress, &udp(server, client, 10))
                        } else {
                            passes(ingress, &udp(client, server, 10))
                        });
                    }
                    running.fetch_sub(1, Ordering::Release);
                    passed
                })
            })
            .collect();
        start.store(true, Ordering::Release);
        let mut last = false;
        while !last {
            last = running.load(Ordering::Acquire) == 0;
            let now = rig.kernel.clock().expect("the clock");
            let converter = Converter::new(now, 0, config.hz);
            tell(&mut told, &collector.events(&rig.drain(), &converter));
            let pass = collector
                .sweep(&rig.kernel, &converter, clock::utc_ns())
                .expect("a sweep");
            tell(&mut told, &pass.records);
            deleted += collector
                .delete_finished(&rig.kernel, &pass)
                .expect("deletes");
            let keys = rig.kernel.entries4().expect("entries");
            let distinct: BTreeSet<_> = keys.iter().map(|(key, _)| format!("{key:?}")).collect();
            // While packets are under way an entry may move on between two looks; afterwards nothing moves.
            assert!(
                !last || distinct.len() == keys.len(),
                "a flow with two entries"
            );
        }
        workers
            .into_iter()
            .map(|worker| worker.join().expect("a worker"))
            .sum()
    });
    let lost = rig.kernel.totals().expect("totals").losses;
    Some(Outcome {
        sent,
        told,
        lost,
        deleted,
    })
}

fn check(outcome: &Outcome) {
    let counted: u64 = outcome.told.values().map(|(out, back)| out + back).sum();
    println!(
        "{} packets, {} instances, {} entries deleted while packets came, losses {:?}",
        outcome.sent,
        outcome.told.len(),
        outcome.deleted,
        outcome.lost
    );
    assert_eq!(counted, outcome.sent, "every packet is in one record");
    for cause in ["replaced-unread", "ring-full"] {
        assert_eq!(outcome.lost.get(cause), Some(&0), "{cause}");
    }
}

#[test]
fn no_packet_is_lost_or_counted_twice() {
    let packets = setting("COFFERDAM_TEST_PACKETS", 120_000);
    let Some(outcome) = hammer(ROOMY, 400, packets) else {
        return;
    };
    check(&outcome);
    assert!(outcome.deleted > 100, "flows ended while others lived");
}

#[test]
fn nor_where_every_set_is_full() {
    let sizes = TableSizes {
        flows4: 16,
        ring: 1 << 23,
        ..ROOMY
    };
    let packets = setting("COFFERDAM_TEST_PACKETS", 120_000) / 2;
    let Some(outcome) = hammer(sizes, 400, packets) else {
        return;
    };
    check(&outcome);
    let displaced = outcome.lost.get("displaced").copied().unwrap_or(0);
    assert!(displaced > 0, "flows made room for each other");
}

/// Sends SYNs that policy denies from all CPUs while the negative entries are moved to the aggregates; `ports` closed
/// ports, so that some tuples share a slot. Gives (sent, counted by reason, counted by aggregate).
fn denials(ports: u16, packets: usize) -> Option<(u64, u64, u64)> {
    let rig = Rig::open(ROOMY)?;
    rig.fill(0, &convert::content(&policy()));
    rig.set_config(&default_config());
    rig.set_word(ActiveWord::committed(1, 0));
    let program = rig.kernel.program_fd(INGRESS).expect("a program");
    let threads = std::thread::available_parallelism()
        .map_or(2, std::num::NonZero::get)
        .max(2);
    let running = AtomicUsize::new(threads);
    let mut generation = 1;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (program, running) = (&program, &running);
            scope.spawn(move || {
                let mut rng = Rng::new(7 + thread as u64);
                for _ in 0..packets {
                    let port = 20_000 + u16::try_from(rng.below(usize::from(ports))).expect("few");
                    let frame = tcp(end(PEER, 1000), end(LOCAL, port), SYN, 0);
                    assert!(!passes(program, &frame), "policy denies it");
                }
                running.fetch_sub(1, Ordering::Release);
            });
        }
        while running.load(Ordering::Acquire) > 0 {
            rig.kernel.fold_negatives().expect("moved");
            // Now and then another content: what was denied is asked again.
            generation += 1;
            rig.set_word(ActiveWord::committed(generation, 0));
        }
    });
    rig.kernel.fold_negatives().expect("moved");
    let totals = rig.kernel.totals().expect("totals");
    let by_reason = totals.reasons.values().map(|(packets, _)| packets).sum();
    let aggregates = rig.kernel.denial_entries().expect("denials");
    let by_aggregate = aggregates.iter().map(|(_, value)| value.packets).sum();
    println!(
        "{} aggregates, generation {generation}, losses {:?}",
        aggregates.len(),
        totals.losses
    );
    Some(((threads * packets) as u64, by_reason, by_aggregate))
}

#[test]
fn every_denied_packet_is_in_one_aggregate() {
    let packets = setting("COFFERDAM_TEST_PACKETS", 120_000);
    // Few tuples, whose packets meet in one entry; many, which take slots from each other.
    for ports in [3, 3000] {
        let Some((sent, by_reason, by_aggregate)) = denials(ports, packets) else {
            return;
        };
        println!("{ports} ports: {sent} packets");
        assert_eq!(by_reason, sent, "each is counted by reason");
        assert_eq!(by_aggregate, sent, "each is counted by aggregate");
    }
}
