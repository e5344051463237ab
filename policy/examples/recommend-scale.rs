//! How long a recommendation takes at 10,000 workloads and a million edges, and how much memory.
//!
//! `cargo run --release -p policy --features testing --example recommend-scale [WORKLOADS [EDGES]]` prints one line.

#![allow(clippy::unwrap_used, reason = "a measurement")]

use std::net::IpAddr;
use std::time::Instant;

use policy::probe::ProbeEnd;
use policy::recommend::{Observation, Observations, Options, recommend};
use policy::selectors::Labels;
use policy::set::PolicySet;
use policy::testing::{NOW, Random};
use policy::world::{Workload, World};
use time::Duration;

/// Applications of ten roles in three environments, and labels that mean nothing.
fn world(count: usize) -> World {
    let mut random = Random::new(1);
    let workloads = (0..count).map(|index| {
        let labels = [
            ("app", format!("app-{}", index % 100 / 3)),
            ("role", format!("role-{}", index / 100 % 10)),
            ("env", ["prod", "test", "dev"][index % 3].to_owned()),
            ("team", format!("team-{}", random.below(20))),
            ("hostname", format!("host-{index}")),
        ];
        let labels: Labels = labels.map(|(key, value)| (key.to_owned(), value)).into();
        let [_, _, high, low] = u32::try_from(index + 1).unwrap().to_be_bytes();
        let address = IpAddr::from([10, 0, high, low]);
        Workload::new(format!("host-{index}"), labels, vec![address])
    });
    World::new(vec!["10.0.0.0/8".parse().unwrap()], workloads.collect())
}

/// Within an application and environment, roles talk to the next role; everybody asks two name servers.
fn observe<'a>(world: &'a World, edges: usize) -> Observations<'a> {
    let mut random = Random::new(2);
    let mut observations = Observations::new(world);
    let count = world.workloads().len();
    let ports = [80, 443, 5432, 6379, 8080, 9000, 9092, 3306, 5672, 11211];
    while observations.len() < edges {
        let from = random.below(count);
        let (to, protocol, port) = if random.chance(2) {
            (random.below(2), 17, 53)
        } else {
            let role = from / 100 % 10;
            let to = (role + 1) % 10 * 100 + from % 100 + 1000 * random.below(count.div_ceil(1000));
            (
                to,
                6,
                ports[role] + u16::try_from(random.below(14)).unwrap(),
            )
        };
        if to >= count {
            continue;
        }
        let row = Observation {
            source: ProbeEnd::Address(world.workloads()[from].addresses[0]),
            destination: ProbeEnd::Address(world.workloads()[to].addresses[0]),
            protocol,
            port,
            flows: 5,
            failed: 0,
            first_seen: NOW - Duration::days(9),
            last_seen: NOW,
            process: None,
            source_port: None,
        };
        observations.add(&row).unwrap();
    }
    observations
}

fn peak_mebibytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) / 1024
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse().unwrap());
    let workloads = arguments.next().unwrap_or(10_000);
    let edges = arguments.next().unwrap_or(1_000_000);
    let world = world(workloads);
    let start = Instant::now();
    let observations = observe(&world, edges);
    let gathered = start.elapsed();
    let start = Instant::now();
    let got = recommend(
        &world,
        observations,
        &PolicySet::default(),
        &Options::default(),
        NOW,
    );
    println!(
        "{workloads} workloads, {edges} edges: gathered in {:.1} s, recommended in {:.1} s, peak {} MiB; {} rules by {}, \
         coverage {:.1} %, over-permission {:.1} %",
        gathered.as_secs_f64(),
        start.elapsed().as_secs_f64(),
        peak_mebibytes(),
        got.report.totals.rules,
        got.report.keys.keys.join(", "),
        got.report.coverage.edges.percent(),
        got.report.over_permission.unwrap_or_default().percent(),
    );
}
