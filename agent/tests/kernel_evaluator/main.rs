//! The loaded object against the reference evaluator: random worlds and policies, compiled and activated as the agent
//! does it, and for each of many packets the verdict that the kernel gives is the one that the objects mean.
//!
//! Nothing of the datapath's own code is on the evaluator's side. `COFFERDAM_SEED` gives other worlds (the seed is
//! printed), `COFFERDAM_PAIRS` another number of packets.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "../support_kernel/mod.rs"]
mod support;

mod ask;
mod coverage;
mod host;
mod wanted;

use std::collections::HashSet;

use coverage::Coverage;
use host::Host;
use policy::set::PolicySet;
use policy::testing::{self, Random};
use wanted::{Scene, Wanted};

/// A packet under a policy, each judged by both.
const PAIRS: usize = 110_000;
/// From so many on, everything must have been reached.
const ENOUGH: usize = 100_000;
/// Packets under one policy.
const BATCH: usize = 400;

/// A number from the environment, or a fixed one.
fn setting(name: &str, fixed: usize) -> usize {
    support::rng::setting(name, fixed)
}

#[test]
fn the_kernel_says_what_the_evaluator_says() {
    let Some(mut host) = Host::open() else {
        return;
    };
    let seed = setting("COFFERDAM_SEED", 20_261_123) as u64;
    let pairs = setting("COFFERDAM_PAIRS", PAIRS);
    println!("COFFERDAM_SEED={seed} COFFERDAM_PAIRS={pairs}");
    let mut coverage = Coverage::default();
    let mut round = 0;
    while coverage.pairs() < pairs {
        one_policy(&mut host, &mut coverage, seed, round);
        round += 1;
    }
    println!("{round} policies\n{coverage}");
    if pairs >= ENOUGH {
        coverage.assert_everything_was_reached();
    } else {
        println!("coverage is not asserted below {ENOUGH} pairs");
    }
}

/// A world with policies, and packets to and from one of its workloads.
fn one_policy(host: &mut Host, coverage: &mut Coverage, seed: u64, round: u64) {
    let random = &mut Random::new(seed.wrapping_mul(1_000_003).wrapping_add(round));
    let world = testing::world(random);
    let objects = testing::objects(random);
    let set = PolicySet::build(objects).expect("the generator makes sets that fit");
    let subject = &world.workloads()[random.below(world.workloads().len())];
    let scene = Scene::new(random, &world, &set, subject);
    let snapshot = scene.compile(host.next_revision());
    host.activate(&snapshot, scene.failsafes.clone());
    coverage.policy();
    // Flows that no port tells apart: each once.
    let mut taken = HashSet::new();
    for _ in 0..BATCH {
        let Some(ask) = ask::random(random, &scene, &mut taken) else {
            continue;
        };
        let seen = host.send(&ask, &snapshot, &scene);
        let wanted = Wanted::of(&scene, &ask);
        if let Some(difference) = wanted.difference(&seen) {
            panic!(
                "seed {seed}, round {round}: kernel and evaluator differ: {difference}\n{ask:?}\nwanted {wanted:#?}\n\
                 the kernel said {seen:#?}\nsubject {:?}\nobjects {:?}",
                scene.subject, set,
            );
        }
        coverage.add(&scene, &ask, &wanted);
    }
}
