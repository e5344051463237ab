//! Broken and random frames through the loaded programs: nothing that they do lets a packet in, disagrees with the
//! simulated host or makes the kernel complain.
//!
//! `COFFERDAM_TEST_PACKETS` is the number of frames of each test, `COFFERDAM_TEST_SEED` repeats a run.

#![allow(clippy::panic, clippy::expect_used, reason = "tests")]

#[path = "../support_kernel/mod.rs"]
mod support;

mod complaints;
mod frames;

use std::collections::BTreeMap;
use std::time::Instant;

use complaints::Complaints;
use datapath::abi::ActiveWord;
use datapath::ids::Direction::{self, Egress, Ingress};
use datapath::pipeline::Action;
use frames::{Expected, Source, by_design};
use support::convert;
use support::rig::Rig;
use support::rng::{Rng, seed, setting};
use support::scene::{any, cell, policy};
use support::twin::{ROOMY, Twin, default_config};
use support::world;

/// Frames of each test.
fn frames_wanted() -> usize {
    setting("COFFERDAM_TEST_PACKETS", 300_000)
}

fn direction(rng: &mut Rng) -> Direction {
    if rng.chance(60) { Ingress } else { Egress }
}

/// A policy that allows nothing, in enforce: what passes is what the contract names, by a parser of the test's own.
#[test]
fn nothing_passes_where_nothing_is_allowed() {
    let Some(mut rig) = Rig::open(ROOMY) else {
        return;
    };
    let mut content = policy();
    content.rules = [1, 10, 11]
        .map(|class| (any(class), cell(false, 90)))
        .into();
    rig.fill(0, &convert::content(&content));
    rig.set_config(&default_config());
    rig.set_word(ActiveWord::committed(1, 0));
    let complaints = Complaints::now();
    let (wanted, began) = (frames_wanted(), Instant::now());
    let mut rng = Rng::new(seed(5));
    let mut source = Source::new();
    let (mut dropped, mut refused) = (0u64, 0u64);
    let mut passed = BTreeMap::<Expected, u64>::new();
    for number in 0..wanted {
        let frame = source.next(&mut rng);
        let merged = frames::merged(&mut rng);
        let way = direction(&mut rng);
        match rig.send(&frame, way, merged) {
            None => refused += 1,
            Some(Action::Drop) => dropped += 1,
            Some(Action::Pass) => {
                let why = by_design(&frame);
                let why = why.unwrap_or_else(|| panic!("frame {number}, {way:?}: {frame:02x?}"));
                *passed.entry(why).or_default() += 1;
            }
        }
        if number % 65_536 == 0 {
            rig.clear();
        }
    }
    println!(
        "{wanted} frames in {:.0?}: {dropped} dropped, {refused} that the kernel runs no program over, passed {passed:?}",
        began.elapsed()
    );
    complaints.check();
    assert!(dropped > wanted as u64 / 2, "most are IP");
    assert_eq!(passed.len(), 2, "each exception was met");
    assert_eq!(rig.kernel.entries4().expect("entries").len(), 0);
}

/// Random policies: verdicts and every trace are those of the simulated host.
#[test]
fn kernel_and_host_agree_on_broken_frames() {
    const ROUND: usize = 2_500;
    let Some(mut twin) = Twin::open(ROOMY) else {
        return;
    };
    let complaints = Complaints::now();
    let (wanted, began) = (frames_wanted(), Instant::now());
    let seed = seed(6);
    let mut rng = Rng::new(seed);
    let mut source = Source::new();
    let (mut sent, mut dropped, mut refused) = (0usize, 0u64, 0u64);
    while sent < wanted {
        // Loading contents waits for grace periods: not each time.
        if sent % (20 * ROUND) == 0 {
            let how = world::leaning(&mut rng, agent::kernel::clock::boot_ns());
            let contents = [world::content(&mut rng, how), world::content(&mut rng, how)];
            twin.fill(contents);
            twin.set_failsafes(world::failsafes(&mut rng));
        }
        twin.reset();
        twin.set_config(world::config(&mut rng));
        twin.set_word(ActiveWord::committed(1, rng.below(2) as u32));
        for number in sent..sent + ROUND {
            let frame = source.next(&mut rng);
            let merged = frames::merged(&mut rng);
            let way = direction(&mut rng);
            match twin.send(&frame, way, merged) {
                None => refused += 1,
                Some((kernel, host)) => {
                    assert_eq!(
                        kernel, host,
                        "seed {seed}, frame {number}, {way:?}, {merged:?}: {frame:02x?}"
                    );
                    dropped += u64::from(kernel == Action::Drop);
                }
            }
        }
        sent += ROUND;
        let (kernel, host) = twin.states();
        let differences = kernel.differences(&host);
        assert!(
            differences.is_empty(),
            "seed {seed}, frames up to {sent}:\n{}",
            differences.join("\n")
        );
    }
    println!(
        "{sent} frames in {:.0?}: {dropped} dropped, {refused} that the kernel runs no program over",
        began.elapsed()
    );
    complaints.check();
    assert!(dropped > sent as u64 / 4);
    assert!(sent as u64 - dropped - refused > sent as u64 / 20);
}
