//! The loaded object against the simulated host: the same packets, the same answers, the same traces left.
//!
//! `COFFERDAM_TEST_SEED` repeats a run, `COFFERDAM_TEST_CONTENTS` makes a longer one.
#![allow(clippy::panic, reason = "tests")]

#[path = "support_kernel/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};

use agent::kernel::loader::TableSizes;
use datapath::abi::{ActiveWord, Loss, mode};
use datapath::drop_reason::DropReason;
use datapath::ids::Direction;
use datapath::pipeline::Action;
use support::rng::{Rng, seed, setting};
use support::state::reason_name;
use support::traffic::{self, Op, Shot, sequence};
use support::twin::{ROOMY, Twin};
use support::world;

/// What was reached.
#[derive(Default)]
struct Coverage {
    packets: u64,
    /// Frames that the kernel runs no program over.
    refused: u64,
    passed: u64,
    dropped: u64,
    sequences: u64,
    reasons: BTreeMap<String, u64>,
    losses: BTreeMap<String, u64>,
    /// (family, protocol byte) of the frames.
    protocols: BTreeMap<(u8, u8), u64>,
    events: u64,
    states: BTreeSet<u32>,
    flows: u64,
}

/// Plays a sequence; the first difference ends it. `each_step` compares everything after every packet.
fn play(twin: &mut Twin, ops: &[Op], each_step: bool, seen: &mut Coverage) -> Result<(), String> {
    twin.reset();
    for (index, op) in ops.iter().enumerate() {
        match op {
            Op::Packet(shot) => {
                let Some((kernel, host)) = twin.send(&shot.frame, shot.direction, shot.merged)
                else {
                    seen.refused += 1;
                    continue;
                };
                seen.packets += 1;
                match kernel {
                    Action::Pass => seen.passed += 1,
                    Action::Drop => seen.dropped += 1,
                }
                if shot.frame.len() > 23 {
                    let (family, at) = if support::frames::is_v6(&shot.frame) {
                        (6, 20)
                    } else {
                        (4, 23)
                    };
                    *seen.protocols.entry((family, shot.frame[at])).or_default() += 1;
                }
                if kernel != host {
                    return Err(format!(
                        "step {index}: kernel {kernel:?}, host {host:?}: {op:02x?}"
                    ));
                }
            }
            Op::Word(word) => twin.set_word(*word),
            Op::Config(config) => twin.set_config(*config),
            Op::Age(seconds) => {
                let ticks = twin.ticks(*seconds);
                twin.age(ticks);
            }
            Op::Expire => twin.expire(),
        }
        if each_step {
            compare(twin, &format!("step {index}, {op:02x?}"), None)?;
        }
    }
    compare(twin, "at the end", Some(seen))
}

fn compare(twin: &mut Twin, when: &str, seen: Option<&mut Coverage>) -> Result<(), String> {
    let (kernel, host) = twin.states();
    let differences = kernel.differences(&host);
    if !differences.is_empty() {
        return Err(format!("{when}:\n  {}", differences.join("\n  ")));
    }
    if let Some(seen) = seen {
        seen.sequences += 1;
        seen.events += kernel.events.len() as u64;
        seen.flows += kernel.flows.len() as u64;
        for flow in kernel.flows.values() {
            seen.states.insert((flow.lines[0].3 >> 8) & 0x7f);
        }
        for (name, (packets, _)) in kernel.reasons {
            *seen.reasons.entry(name).or_default() += packets;
        }
        // Denials of tracked flows and the reasons of entries are not all counters of their own.
        for (name, count) in kernel.losses {
            *seen.losses.entry(name).or_default() += count;
        }
    }
    Ok(())
}

/// Plays a sequence and, if it differs, again step by step, so that the step is named.
fn check(twin: &mut Twin, ops: &[Op], seen: &mut Coverage, which: &str) {
    let Err(first) = play(twin, ops, false, seen) else {
        return;
    };
    let exact = play(twin, ops, true, &mut Coverage::default());
    let exact = exact.err().unwrap_or_else(|| "(not seen again)".into());
    panic!(
        "{which}: kernel and host differ\n{first}\n\nstep by step: {exact}\n\nwith {:#?}",
        twin.sim.config
    );
}

#[test]
fn kernel_and_host_agree_on_random_traffic() {
    let Some(mut twin) = Twin::open(ROOMY) else {
        return;
    };
    let seed = seed(20_260_823);
    let contents = setting("COFFERDAM_TEST_CONTENTS", 90);
    let mut seen = Coverage::default();
    run(&mut twin, seed, contents, (36, 4), &mut seen);
    report(&seen);
    assert_reached(&seen);
}

/// Tables and a ring so small that everything overflows: what is lost is counted alike, and never allows.
#[test]
fn kernel_and_host_agree_on_full_tables() {
    let sizes = TableSizes {
        flows4: 4,
        flows6: 4,
        denies: 6,
        ring: 4_096,
        share: 2,
    };
    let Some(mut twin) = Twin::open(sizes) else {
        return;
    };
    let seed = seed(4_711);
    let contents = setting("COFFERDAM_TEST_CONTENTS", 90).div_ceil(5);
    let mut seen = Coverage::default();
    run(&mut twin, seed, contents, (150, 60), &mut seen);
    report(&seen);
    let full = reason_name(DropReason::TableFull as u8);
    assert!(seen.reasons.contains_key(&full), "the table was full");
    for (cause, count) in &seen.losses {
        // An LRU map displaces instead.
        if *cause == Loss::FragmentTableFull.name() {
            continue;
        }
        assert!(*count > 0, "{cause} was not reached");
    }
}

/// Random contents, each with several sequences of so many packets over so many conversations.
fn run(
    twin: &mut Twin,
    seed: u64,
    contents: usize,
    (packets, talks): (usize, usize),
    seen: &mut Coverage,
) {
    println!("seed {seed}, {contents} contents");
    let mut rng = Rng::new(seed);
    for round in 0..contents {
        let now = agent::kernel::clock::boot_ns();
        let how = world::leaning(&mut rng, now);
        let first = world::content(&mut rng, how);
        let second = match rng.below(3) {
            0 => world::expired(&first),
            1 => {
                let how = world::leaning(&mut rng, now);
                world::content(&mut rng, how)
            }
            _ => world::content(&mut rng, how),
        };
        twin.fill([first, second]);
        for turn in 0..8 {
            twin.set_failsafes(world::failsafes(&mut rng));
            let ops = sequence(&mut rng, packets, talks, now);
            let which = format!("seed {seed}, round {round}.{turn}");
            check(twin, &ops, seen, &which);
        }
    }
}

/// Every cut of every kind of packet, from the end of the link layer on, at both hooks.
#[test]
fn kernel_and_host_agree_on_every_truncation() {
    let Some(mut twin) = Twin::open(ROOMY) else {
        return;
    };
    let mut rng = Rng::new(1);
    let how = world::Leaning {
        allow: 100,
        enforced: 100,
        mode: mode::ENFORCE,
        holes: false,
        now: agent::kernel::clock::boot_ns(),
    };
    let content = world::content(&mut rng, how);
    twin.fill([content.clone(), content]);
    let mut seen = Coverage::default();
    for frame in traffic::every_kind() {
        for direction in [Direction::Ingress, Direction::Egress] {
            let mut ops = vec![Op::Word(ActiveWord::committed(1, 0))];
            ops.extend((14..=frame.len()).map(|length| {
                Op::Packet(Shot {
                    frame: frame[..length].to_vec(),
                    direction,
                    merged: None,
                })
            }));
            let which = format!("{direction:?} {frame:02x?}");
            check(&mut twin, &ops, &mut seen, &which);
        }
    }
    report(&seen);
    assert!(seen.packets > 1_000);
}

/// What cannot be reached by packets in this build, and why.
const UNREACHED: [(DropReason, &str); 4] = [
    (
        DropReason::FragmentTableFull,
        "the map displaces its oldest entry instead; only the simulated host's is full",
    ),
    (
        DropReason::TableFull,
        "needs small tables: see the test with small tables",
    ),
    (
        DropReason::Contended,
        "the hash map's own locks wait; nothing in the datapath gives up",
    ),
    (
        DropReason::StaleFlow,
        "an idle flow is replaced, and judged as what the packet asks for",
    ),
];

fn report(seen: &Coverage) {
    println!(
        "{} packets in {} sequences ({} more could not be run): {} passed, {} dropped, {} entries, {} notices",
        seen.packets,
        seen.sequences,
        seen.refused,
        seen.passed,
        seen.dropped,
        seen.flows,
        seen.events
    );
    println!("reasons {:?}", seen.reasons);
    println!("losses {:?}", seen.losses);
    println!("states {:?}", seen.states);
    let often = seen.protocols.iter().filter(|(_, count)| **count >= 20);
    println!(
        "protocols by family and number, rare ones left out: {:?}",
        often.collect::<Vec<_>>()
    );
}

fn assert_reached(seen: &Coverage) {
    assert!(seen.packets >= 20_000, "{} packets", seen.packets);
    for (what, count) in [("passed", seen.passed), ("dropped", seen.dropped)] {
        assert!(
            count * 4 >= seen.packets,
            "{what}: {count} of {} packets",
            seen.packets
        );
    }
    for reason in DropReason::ALL {
        let reached = seen.reasons.contains_key(&reason_name(*reason as u8));
        match UNREACHED.iter().find(|(unreached, _)| unreached == reason) {
            None => assert!(reached, "{} was not reached", reason.name()),
            Some((_, why)) => {
                assert!(
                    !reached,
                    "{} was reached: take it off the list",
                    reason.name()
                );
                println!("not reached: {} ({why})", reason.name());
            }
        }
    }
    assert_eq!(
        seen.states.len(),
        12,
        "every state of an entry, proven and not: {:?}",
        seen.states
    );
}
