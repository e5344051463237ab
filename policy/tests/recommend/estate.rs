//! Random estates with a hidden policy, and the traffic that it lets through.

use std::net::IpAddr;

use policy::probe::ProbeEnd;
use policy::recommend::Observation;
use policy::selectors::Labels;
use policy::testing::Random;
use policy::world::{Workload, World};
use time::{Duration, OffsetDateTime};

use crate::brute::AT;

/// A hidden rule: client role, server role, protocol, port, in which environments; `None` crosses them.
pub(crate) type HiddenRule = (usize, usize, u8, u16);

pub(crate) struct Estate {
    pub(crate) world: World,
    pub(crate) hidden: Vec<HiddenRule>,
    pub(crate) rows: Vec<Observation>,
}

pub(crate) const ROLES: [&str; 6] = ["web", "app", "db", "cache", "queue", "batch"];
pub(crate) const ENVS: [&str; 2] = ["prod", "dev"];

pub(crate) fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

pub(crate) fn address(index: usize) -> IpAddr {
    IpAddr::from([
        10,
        0,
        u8::try_from(index / 250).unwrap(),
        u8::try_from(index % 250 + 1).unwrap(),
    ])
}

/// A row that nobody calls rare: many flows over days.
pub(crate) fn row(from: &str, to: &str, protocol: u8, port: u16, flows: u64) -> Observation {
    seen(
        from,
        to,
        protocol,
        port,
        flows,
        AT - Duration::days(10),
        AT - Duration::hours(1),
    )
}

pub(crate) fn seen(
    from: &str,
    to: &str,
    protocol: u8,
    port: u16,
    flows: u64,
    first_seen: OffsetDateTime,
    last_seen: OffsetDateTime,
) -> Observation {
    Observation {
        source: ProbeEnd::parse(from),
        destination: ProbeEnd::parse(to),
        protocol,
        port,
        flows,
        failed: 0,
        first_seen,
        last_seen,
        process: None,
        source_port: None,
    }
}

/// `per` workloads of each role and environment. Labels: role, env, a team that means nothing, and names.
pub(crate) fn world(random: &mut Random, per: usize) -> World {
    let mut workloads = Vec::new();
    for env in ENVS {
        for role in ROLES {
            for index in 0..per {
                let number = workloads.len();
                let name = format!("{role}-{env}-{index}");
                let team = random.pick(&["red", "blue", "green"]);
                let mut of = labels(&[
                    ("role", role),
                    ("env", env),
                    ("team", team),
                    ("hostname", &name),
                ]);
                of.insert("build".into(), random.bits().to_string());
                workloads.push(Workload::new(name, of, vec![address(number)]));
            }
        }
    }
    World::new(vec!["10.0.0.0/16".parse().unwrap()], workloads)
}

/// Traffic of a random hidden policy by role within each environment; `percent` of the pairs really talk.
pub(crate) fn estate(seed: u64, per: usize, percent: usize) -> Estate {
    let mut random = Random::new(seed);
    let world = world(&mut random, per);
    let mut hidden = Vec::new();
    for _ in 0..6 + random.below(6) {
        let rule = (
            random.below(ROLES.len()),
            random.below(ROLES.len()),
            random.pick(&[6, 6, 6, 17]),
            random.pick(&[80, 443, 5432, 6379, 8080, 9000]),
        );
        if !hidden.contains(&rule) {
            hidden.push(rule);
        }
    }
    let mut rows = Vec::new();
    for (client, server, protocol, port) in &hidden {
        for env in ENVS {
            for from in 0..per {
                for to in 0..per {
                    let (from, to) = (
                        format!("{}-{env}-{from}", ROLES[*client]),
                        format!("{}-{env}-{to}", ROLES[*server]),
                    );
                    if from != to && random.chance(percent) {
                        rows.push(row(&from, &to, *protocol, *port, 4 + random.bits() % 1000));
                    }
                }
            }
        }
    }
    Estate {
        world,
        hidden,
        rows,
    }
}

impl Estate {
    /// Whether the hidden policy allows a connection.
    pub(crate) fn allows(&self, from: &Workload, to: &Workload, protocol: u8, port: u16) -> bool {
        self.hidden.iter().any(|(client, server, own, at)| {
            from.labels["role"] == ROLES[*client]
                && to.labels["role"] == ROLES[*server]
                && from.labels["env"] == to.labels["env"]
                && (protocol, port) == (*own, *at)
        })
    }
}

/// Adds what a real recording has besides: strangers, once-only edges, failures, changing ports.
pub(crate) fn disturb(estate: &mut Estate, seed: u64) {
    let mut random = Random::new(seed ^ 0xd157);
    let names: Vec<String> = estate
        .world
        .workloads()
        .iter()
        .map(Workload::full_name)
        .collect();
    for _ in 0..random.below(8) {
        let (from, to) = (random.pick(&names), random.pick(&names));
        let port = random.pick(&[22, 25, 3389, 8443]);
        if from != to {
            estate.rows.push(seen(
                &from,
                &to,
                6,
                port,
                1,
                AT - Duration::days(3),
                AT - Duration::days(3),
            ));
        }
    }
    for _ in 0..random.below(6) {
        let stranger = random.pick(&[
            "203.0.113.7",
            "203.0.113.9",
            "198.51.100.200",
            "10.0.9.9",
            "10.0.9.10",
        ]);
        let name = random.pick(&names);
        let flows = 1 + random.bits() % 50;
        estate.rows.push(if random.chance(50) {
            row(stranger, &name, 6, 443, flows)
        } else {
            row(&name, stranger, 17, 514, flows)
        });
    }
    let server = random.pick(&names);
    for port in 0..random.below(14) {
        let client = random.pick(&names);
        if client != server {
            let when = AT - Duration::hours(i64::try_from(port).unwrap() + 2);
            let port = 20_000 + u16::try_from(port).unwrap();
            estate
                .rows
                .push(seen(&client, &server, 6, port, 2, when, when));
        }
    }
    for _ in 0..random.below(5) {
        let (from, to) = (random.pick(&names), random.pick(&names));
        if from != to {
            let mut failed = row(&from, &to, 6, 23, 5);
            failed.failed = failed.flows;
            estate.rows.push(failed);
        }
    }
}
