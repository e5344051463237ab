//! Workloads with a wrong label are found, others are left alone.

use std::collections::BTreeSet;

use policy::recommend::Options;
use policy::testing::Random;
use policy::world::World;

use crate::brute;
use crate::estate::{self, Estate, ROLES};

/// The same estate with some workloads labelled as another role; their names tell the truth.
fn relabelled(estate: &Estate, random: &mut Random, count: usize) -> (World, BTreeSet<String>) {
    let mut workloads = estate.world.workloads().to_vec();
    let mut wrong = BTreeSet::new();
    while wrong.len() < count {
        let index = random.below(workloads.len());
        let role = random.pick(&ROLES);
        let workload = &mut workloads[index];
        if workload.labels["role"] != role && wrong.insert(workload.full_name()) {
            workload.labels.insert("role".into(), role.into());
        }
    }
    (
        World::new(estate.world.managed_networks.clone(), workloads),
        wrong,
    )
}

/// Roles that nothing tells apart have no right label: only roles with traffic of their own count.
fn roles_with_traffic(estate: &Estate) -> BTreeSet<&'static str> {
    let of = |role: usize| {
        let habits = estate
            .hidden
            .iter()
            .flat_map(move |(client, server, protocol, port)| {
                let client = (*client == role).then_some((true, *server, *protocol, *port));
                let server = (*server == role).then_some((false, 0, *protocol, *port));
                [client, server].into_iter().flatten()
            });
        habits.collect::<BTreeSet<_>>()
    };
    (0..ROLES.len())
        .filter(|role| of(*role).len() >= 2)
        .map(|role| ROLES[role])
        .collect()
}

#[test]
fn planted_mislabels_are_found() {
    let (mut found, mut planted, mut false_alarms, mut right, mut others) = (0, 0, 0, 0, 0);
    for seed in 0..20 {
        let estate = estate::estate(seed, 5, 85);
        let mut random = Random::new(seed);
        let (world, wrong) = relabelled(&estate, &mut random, 3);
        let busy = roles_with_traffic(&estate);
        let got = brute::run(&world, &estate.rows, &Options::default());
        for name in &wrong {
            let truth = name.split('-').next().unwrap();
            if !busy.contains(truth) {
                continue;
            }
            planted += 1;
            if let Some(case) = got
                .report
                .mislabels
                .iter()
                .find(|case| &case.workload == name)
            {
                found += 1;
                let role = case.changes.iter().find(|change| change.key == "role");
                right += u32::from(
                    role.is_some_and(|change| change.suggested.as_deref() == Some(truth)),
                );
                assert!(!case.evidence.is_empty());
            }
        }
        others += world.workloads().len() - wrong.len();
        false_alarms += got
            .report
            .mislabels
            .iter()
            .filter(|case| !wrong.contains(&case.workload))
            .count();
    }
    println!(
        "planted mislabels: {found} of {planted} found, {right} with the right role; {false_alarms} false alarms \
         among {others} rightly labelled workloads"
    );
    assert!(found * 10 >= planted * 8, "{found} of {planted}");
    assert!(right * 10 >= found * 8, "{right} of {found}");
    assert!(
        false_alarms * 100 <= others * 2,
        "{false_alarms} of {others}"
    );
}

#[test]
fn rightly_labelled_estates_give_no_alarm() {
    for seed in 0..20 {
        let estate = estate::estate(seed, 4, 90);
        let got = brute::run(&estate.world, &estate.rows, &Options::default());
        assert!(
            got.report.mislabels.is_empty(),
            "seed {seed}: {:#?}",
            got.report.mislabels
        );
    }
}

#[test]
fn a_missing_label_is_suggested_and_nothing_is_changed() {
    let mut estates = (0..20).map(|seed| estate::estate(seed, 5, 100));
    let estate = estates
        .find(|estate| roles_with_traffic(estate).contains("web"))
        .unwrap();
    let mut workloads = estate.world.workloads().to_vec();
    let index = workloads
        .iter()
        .position(|w| w.name == "web-prod-2")
        .unwrap();
    workloads[index].labels.remove("role");
    let world = World::new(estate.world.managed_networks.clone(), workloads);
    let got = brute::run(&world, &estate.rows, &Options::default());
    let case = got
        .report
        .mislabels
        .iter()
        .find(|case| case.workload == "web-prod-2")
        .unwrap();
    assert!(case.missing);
    let [change] = case.changes.as_slice() else {
        panic!("{case:#?}")
    };
    assert_eq!(
        (
            change.key.as_str(),
            change.now.as_deref(),
            change.suggested.as_deref()
        ),
        ("role", None, Some("web"))
    );
    assert!(got.objects.iter().all(|object| object.kind() != "Workload"));
}
