//! A run over a real trace: hosts of a data centre with roles known for 59 of them, 96 hours.
//!
//! The trace is not part of this repository. Where it is not at hand, the test says so and passes. The figures
//! that it prints (`cargo test -p policy --test recommend trace -- --nocapture`) are those of `docs/policy.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use policy::probe::ProbeEnd;
use policy::recommend::{Observation, Observations, Options, recommend};
use policy::selectors::Labels;
use policy::set::PolicySet;
use policy::testing::Random;
use policy::world::{Workload, World};
use time::OffsetDateTime;

use crate::brute::AT;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared/data")
        .join(name)
}

/// Lines of a gzipped CSV file without the first; `None` when it cannot be had.
fn lines(name: &str) -> Option<Vec<String>> {
    let output = Command::new("gzip")
        .arg("-dc")
        .arg(file(name))
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output
        .status
        .success()
        .then(|| text.lines().skip(1).map(str::to_owned).collect())
}

struct Trace {
    roles: BTreeMap<String, String>,
    rows: Vec<Observation>,
}

fn trace() -> Option<Trace> {
    let roles = lines("cisco_g21_roles.csv.gz")?;
    let roles: BTreeMap<String, String> = roles
        .iter()
        .map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            (fields[0].to_owned(), fields[2].to_owned())
        })
        .collect();
    let rows = lines("background_cisco_g21.csv.gz")?;
    let rows = rows.iter().map(|line| {
        let fields: Vec<&str> = line.split(',').collect();
        let moment = |index: usize| {
            OffsetDateTime::from_unix_timestamp(fields[index].parse().unwrap()).unwrap()
        };
        Observation {
            source: ProbeEnd::parse(fields[2]),
            destination: ProbeEnd::parse(fields[4]),
            protocol: if fields[6] == "udp" { 17 } else { 6 },
            port: fields[5].parse().unwrap(),
            // A row sums up an hour; the trace does not say of how many flows.
            flows: 1,
            failed: 0,
            first_seen: moment(0),
            // An hour's end is the start of the next.
            last_seen: moment(1) - time::Duration::seconds(1),
            process: None,
            source_port: None,
        }
    });
    Some(Trace {
        roles,
        rows: rows.collect(),
    })
}

fn world(roles: &BTreeMap<String, String>) -> World {
    let workloads = roles.iter().map(|(address, role)| {
        let labels = Labels::from([("role".to_owned(), role.clone())]);
        Workload::new(address.clone(), labels, vec![address.parse().unwrap()])
    });
    World::new(vec!["10.0.0.0/8".parse().unwrap()], workloads.collect())
}

fn run(world: &World, rows: &[Observation]) -> policy::recommend::Recommendation {
    let mut observations = Observations::new(world);
    for row in rows {
        observations.add(row).unwrap();
    }
    // The ports of the trace are replaced by small numbers, so any of them may be a changing one.
    let options = Options {
        dynamic_from: 1,
        ..Options::default()
    };
    recommend(world, observations, &PolicySet::default(), &options, AT)
}

/// Swaps the roles of three pairs of hosts.
fn swapped(
    roles: &BTreeMap<String, String>,
    seed: u64,
) -> (BTreeMap<String, String>, BTreeSet<String>) {
    let mut random = Random::new(seed);
    let mut roles = roles.clone();
    let hosts: Vec<String> = roles.keys().cloned().collect();
    let mut wrong = BTreeSet::new();
    while wrong.len() < 6 {
        let (one, two) = (random.pick(&hosts), random.pick(&hosts));
        if roles[&one] != roles[&two] && !wrong.contains(&one) && !wrong.contains(&two) {
            let (a, b) = (roles[&one].clone(), roles[&two].clone());
            roles.insert(one.clone(), b);
            roles.insert(two.clone(), a);
            wrong.extend([one, two]);
        }
    }
    (roles, wrong)
}

#[test]
fn a_real_trace() {
    let Some(trace) = trace() else {
        eprintln!(
            "SKIPPED: 1 test: no trace at {} (or no gzip)",
            file("background_cisco_g21.csv.gz").display()
        );
        return;
    };
    let got = run(&world(&trace.roles), &trace.rows);
    println!("{}", got.report.to_text());
    let report = &got.report;
    assert!(
        report.coverage.edges.percent() >= 90.0,
        "{:?}",
        report.coverage
    );
    assert!(
        report.coverage.flows.percent() >= 99.0,
        "{:?}",
        report.coverage
    );
    assert!(report.scanners.is_empty(), "{:?}", report.scanners);
    assert_eq!(report.keys.keys, ["role"]);
    assert!(report.mislabels.is_empty(), "{:?}", report.mislabels);
    println!(
        "clean labels: {} alarms among {} hosts",
        report.mislabels.len(),
        trace.roles.len()
    );
    mislabels(&trace);
}

fn mislabels(trace: &Trace) {
    // Rows once, as edges, so that ten runs need not read half a million rows ten times.
    let mut edges: BTreeMap<_, Observation> = BTreeMap::new();
    for row in &trace.rows {
        let edge = edges
            .entry(crate::brute::id(row))
            .or_insert_with(|| Observation {
                flows: 0,
                ..row.clone()
            });
        edge.flows += 1;
        edge.last_seen = edge.last_seen.max(row.last_seen);
        edge.first_seen = edge.first_seen.min(row.first_seen);
    }
    let rows: Vec<Observation> = edges.into_values().collect();
    let (mut found, mut planted, mut alarms, mut right) = (0, 0, 0, 0);
    for seed in 0..10 {
        let (roles, wrong) = swapped(&trace.roles, seed);
        let got = run(&world(&roles), &rows);
        planted += wrong.len();
        alarms += got.report.mislabels.len();
        for case in &got.report.mislabels {
            if wrong.contains(&case.workload) {
                found += 1;
                let suggested = case.changes[0].suggested.as_ref();
                right += usize::from(suggested == Some(&trace.roles[&case.workload]));
            }
        }
    }
    println!(
        "six hosts of 59 with swapped roles, 10 times: {planted} planted, {found} found ({right} with the right role), \
         {alarms} alarms: precision {:.2}, recall {:.2}",
        found as f64 / alarms.max(1) as f64,
        found as f64 / planted as f64
    );
    // Hosts that are alone in their role, and roles that do nothing of their own, cannot be told.
    assert!(found * 5 >= planted * 2, "{found} of {planted}");
    assert!(found * 4 >= alarms * 3, "{found} of {alarms}");
}
