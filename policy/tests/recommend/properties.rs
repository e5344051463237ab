//! What must hold in every estate.

use policy::evaluate::evaluate_flow;
use policy::probe::Flow;
use policy::recommend::{Options, recommend};
use policy::set::PolicySet;
use policy::testing::Random;

use crate::brute::{self, AT};
use crate::estate::{self, ENVS, ROLES};

fn options() -> Options {
    Options {
        dynamic_from: 20_000,
        list: usize::MAX,
        ..Options::default()
    }
}

#[test]
fn figures_are_those_of_the_evaluator() {
    for seed in 0..24 {
        let mut estate = estate::estate(seed, 1 + (seed as usize) % 3, 90);
        estate::disturb(&mut estate, seed);
        let got = brute::run(&estate.world, &estate.rows, &options());
        brute::check(&estate.world, &estate.rows, &got);
    }
}

#[test]
fn nothing_in_a_draft_can_be_left_out() {
    for seed in 0..8 {
        let mut estate = estate::estate(seed, 2, 90);
        estate::disturb(&mut estate, seed);
        let got = brute::run(&estate.world, &estate.rows, &options());
        brute::check_minimal(&estate.world, &estate.rows, &got.objects);
    }
}

/// The hidden policy is by role within an environment. What was seen is allowed, what the hidden policy would deny
/// is denied but for 3 % at most, and the keys are found.
#[test]
fn a_hidden_policy_is_found_again() {
    let (mut beyond, mut allowed, mut exact) = (0, 0, 0);
    let seeds = 12;
    for seed in 0..seeds {
        let estate = estate::estate(seed, 4, 80);
        let got = brute::run(&estate.world, &estate.rows, &options());
        assert_eq!(
            got.report.coverage.edges.part, got.report.coverage.edges.whole,
            "seed {seed}"
        );
        exact += u32::from(got.report.keys.keys == ["env", "role"]);
        let set = brute::read_back(&got.objects);
        for row in &estate.rows {
            assert!(
                brute::allows(&estate.world, &set, row),
                "seed {seed}: {row:?}"
            );
        }
        for from in estate.world.workloads() {
            for to in estate.world.workloads() {
                for (protocol, port) in [
                    (6, 80),
                    (6, 443),
                    (6, 5432),
                    (6, 6379),
                    (6, 8080),
                    (6, 9000),
                    (17, 443),
                    (17, 80),
                ] {
                    let flow = Flow::between(
                        &estate.world,
                        from.addresses[0],
                        to.addresses[0],
                        protocol,
                        port,
                    );
                    if from.name != to.name
                        && evaluate_flow(&estate.world, &set, &flow, AT)
                            .draft
                            .is_allow()
                    {
                        allowed += 1;
                        beyond += u32::from(!estate.allows(from, to, protocol, port));
                    }
                }
            }
        }
    }
    println!(
        "hidden policy: {beyond} of {allowed} allowed cells are beyond it; exact keys in {exact} of {seeds}"
    );
    assert!(beyond * 100 <= allowed * 3, "{beyond} of {allowed}");
    assert!(
        exact * 10 >= seeds as u32 * 9,
        "the keys were found in {exact} of {seeds}"
    );
}

#[test]
fn the_order_of_the_recording_does_not_matter() {
    for seed in 0..6 {
        let mut estate = estate::estate(seed, 2, 90);
        estate::disturb(&mut estate, seed);
        let text = |got: &policy::recommend::Recommendation| {
            let objects: Vec<String> = got
                .objects
                .iter()
                .map(|object| object.to_json().to_string())
                .collect();
            format!("{}\n{}", objects.join("\n"), got.report.to_text())
        };
        let first = text(&brute::run(&estate.world, &estate.rows, &options()));
        let mut random = Random::new(seed);
        for index in (1..estate.rows.len()).rev() {
            estate.rows.swap(index, random.below(index + 1));
        }
        assert_eq!(
            text(&brute::run(&estate.world, &estate.rows, &options())),
            first,
            "seed {seed}"
        );
    }
}

/// With the recommended policies in force, there is nothing left to recommend.
#[test]
fn what_is_allowed_already_is_not_recommended_again() {
    for seed in 0..6 {
        let mut estate = estate::estate(seed, 2, 90);
        estate::disturb(&mut estate, seed);
        let got = brute::run(&estate.world, &estate.rows, &options());
        let set = PolicySet::build(got.objects.clone()).unwrap();
        let observations = brute::observe(&estate.world, &estate.rows);
        let again = recommend(&estate.world, observations, &set, &options(), AT);
        assert!(
            again.objects.is_empty(),
            "seed {seed}: {:#?}",
            again.objects
        );
        assert_eq!(
            again.report.coverage.edges, got.report.coverage.edges,
            "seed {seed}"
        );
        assert_eq!(again.report.over_permission, None);
        // Half of the policies: the rest is recommended, and both together allow what the whole allowed.
        let half = got.objects.iter().enumerate().filter(|(index, object)| {
            index % 2 == 0 || !matches!(object, policy::model::Object::Policy(_))
        });
        let half: Vec<_> = half.map(|(_, object)| object.clone()).collect();
        let set = PolicySet::build(half.clone()).unwrap();
        let observations = brute::observe(&estate.world, &estate.rows);
        let rest = recommend(&estate.world, observations, &set, &options(), AT);
        let both = PolicySet::build([half, rest.objects].concat()).unwrap();
        let allowed = estate
            .rows
            .iter()
            .filter(|row| brute::allows(&estate.world, &both, row))
            .count();
        let whole = PolicySet::build(got.objects).unwrap();
        let expected: usize = estate
            .rows
            .iter()
            .filter(|row| brute::allows(&estate.world, &whole, row))
            .count();
        assert!(allowed >= expected, "seed {seed}: {allowed} of {expected}");
    }
}

#[test]
fn a_subject_gets_its_own_policies_only() {
    let estate = estate::estate(3, 3, 90);
    let subject = policy::selectors::Selector::label("env", ENVS[0]);
    let asked = Options {
        subject: Some(subject),
        ..options()
    };
    let got = brute::run(&estate.world, &estate.rows, &asked);
    assert!(!got.objects.is_empty());
    let all = brute::run(&estate.world, &estate.rows, &options());
    let whole = brute::read_back(&all.objects);
    let set = brute::read_back(&got.objects);
    for policy in set.policies() {
        for workload in estate.world.workloads() {
            let meant = policy.subject.matches(workload);
            assert!(
                !meant || workload.labels["env"] == ENVS[0],
                "{}",
                policy.metadata.name
            );
        }
    }
    // At the ends that were asked about, the answer is as good as that for all.
    for row in &estate.rows {
        let (from, ..) = brute::id(row);
        if from.contains(ENVS[0]) && brute::allows(&estate.world, &whole, row) {
            assert!(brute::allows(&estate.world, &set, row), "{row:?}");
        }
    }
    assert_eq!(ROLES.len(), 6);
}
