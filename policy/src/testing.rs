//! Random worlds and policies from small pools, so that rules meet flows often.
//!
//! Behind the feature `testing`, for this crate's property tests and for the tests that ask the same questions of a
//! kernel. The same seed gives the same world everywhere.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a generator for tests: its literals parse, its pools are not empty"
)]

use std::net::IpAddr;

use crate::model::{
    Action, AddressGroup, DefaultAction, Entity, Filter, FilterEntry, Grant, Metadata, ModeObject,
    NamedPort, Object, Peer, Policy, Rule, SelectiveEntry, Service, State, Tier,
};
use crate::ports::{PortSpec, Ports, Protocol};
use crate::selectors::{Expression, Labels, Operator, Selector};
use crate::snapshot::{FlowDirection, Mode};
use crate::source::Place;
use crate::world::{Workload, World};
use ipnet::IpNet;
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

/// The moment that scenarios are compiled for.
pub const NOW: OffsetDateTime = datetime!(2030-01-01 00:00 UTC);

const CIDRS: [&str; 14] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/16",
    "10.0.0.0/28",
    "10.0.0.0/29",
    "10.0.0.8/30",
    "10.0.0.3/32",
    "10.1.0.0/16",
    "192.0.2.0/24",
    "198.51.100.0/24",
    "::/0",
    "fd00::/16",
    "fd00::/125",
    "fd00::3/128",
];

/// Addresses that belong to no workload, inside and outside.
pub const STRANGERS: [&str; 7] = [
    "10.0.0.200",
    "10.0.0.11",
    "10.1.0.1",
    "192.0.2.9",
    "198.51.100.7",
    "fd00::99",
    "2001:db8::1",
];

pub const PORTS: [u16; 10] = [0, 22, 80, 81, 443, 5432, 8000, 8080, 9000, 65_535];

/// SplitMix64: small, seeded, good enough.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def0)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.bits() % limit as u64) as usize
    }

    /// True `percent` times in a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Clone>(&mut self, pool: &[T]) -> T {
        pool[self.below(pool.len())].clone()
    }

    fn some<T>(&mut self, max: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(max + 1)).map(|_| make(self)).collect()
    }
}

pub fn cidr(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn world(random: &mut Random) -> World {
    let mut world = World::new(vec![cidr("10.0.0.0/16"), cidr("fd00::/64")], Vec::new());
    for index in 1..=2 + random.below(5) {
        let mut labels = Labels::new();
        labels.insert("app".into(), random.pick(&["web", "db", "cache"]).into());
        if random.chance(60) {
            labels.insert("env".into(), random.pick(&["prod", "dev"]).into());
        }
        labels.insert("build".into(), index.to_string());
        let mut addresses = vec![address(&format!("10.0.0.{index}"))];
        if random.chance(65) {
            addresses.push(address(&format!("fd00::{index}")));
        }
        if random.chance(10) {
            addresses.push(address("192.0.2.77"));
        }
        if random.chance(10) {
            // Perhaps somebody else's: two claimants.
            addresses.push(address("10.0.0.1"));
            addresses.push(address("fd00::1"));
        }
        let mut workload = Workload::new(format!("w{index}"), labels, addresses);
        if random.chance(40) {
            workload.namespace = Some(random.pick(&["shop", "ops"]).into());
            if random.chance(70) {
                let team: &str = random.pick(&["red", "blue"]);
                workload.namespace_labels.insert("team".into(), team.into());
            }
        }
        workload.named_ports = random.some(3, |random| NamedPort {
            name: random.pick(&["http", "pg", "unused"]).into(),
            protocol: random.pick(&[6, 6, 17, 132]),
            port: random.pick(&[80, 8080, 5432]),
        });
        workload.mode = match random.below(20) {
            0 | 1 => Some(Mode::Observe),
            2..=5 => Some(Mode::Selective),
            6 => Some(Mode::Isolate),
            7..=13 => Some(Mode::Enforce),
            _ => None,
        };
        if workload.mode == Some(Mode::Selective) {
            workload.selective = random.some(3, selective);
        }
        world.add(workload).unwrap();
    }
    world
}

fn selective(random: &mut Random) -> SelectiveEntry {
    let everything = PortSpec::Direct {
        protocol: Protocol::Any,
        ports: Ports::All,
    };
    SelectiveEntry {
        direction: direction(random),
        ports: if random.chance(25) {
            everything
        } else {
            direct(random, false)
        },
    }
}

fn direction(random: &mut Random) -> FlowDirection {
    random.pick(&[FlowDirection::Ingress, FlowDirection::Egress])
}

fn metadata(name: impl Into<String>) -> Metadata {
    Metadata {
        name: name.into(),
        ..Metadata::default()
    }
}

pub fn selector(random: &mut Random, may_be_empty: bool) -> Selector {
    let mut selector = Selector::default();
    match random.below(if may_be_empty { 6 } else { 5 }) {
        0 | 1 => {
            selector = Selector::label("app", random.pick(&["web", "db", "cache", "none"]));
        }
        2 => selector = Selector::label("env", random.pick(&["prod", "dev"])),
        3 => {
            let key = random.pick(&[
                "namespace:team",
                "namespace:kubernetes.io/metadata.name",
                "env",
                "app",
            ]);
            let operator = random.pick(&[
                Operator::In,
                Operator::NotIn,
                Operator::Exists,
                Operator::DoesNotExist,
            ]);
            let values = match operator {
                Operator::In | Operator::NotIn => {
                    let pool = ["red", "blue", "shop", "prod", "web"];
                    vec![random.pick(&pool).to_owned(), random.pick(&pool).to_owned()]
                }
                _ => Vec::new(),
            };
            selector.match_expressions.push(Expression {
                key: key.into(),
                operator,
                values,
            });
        }
        4 => selector = Selector::label("namespace:team", random.pick(&["red", "blue"])),
        _ => {}
    }
    selector
}

fn peer(random: &mut Random) -> Peer {
    match random.below(8) {
        0..=2 => Peer::Selector {
            selector: selector(random, true),
        },
        3 | 4 => {
            let net = cidr(random.pick(&CIDRS));
            let holes: Vec<IpNet> = CIDRS
                .iter()
                .map(|text| cidr(text))
                .filter(|hole| net.contains(hole) && net != *hole)
                .collect();
            let except = if holes.is_empty() {
                Vec::new()
            } else {
                random.some(2, |random| random.pick(&holes))
            };
            Peer::Cidr { cidr: net, except }
        }
        5 => Peer::Group {
            group: random.pick(&["office", "partners"]).into(),
        },
        _ => Peer::Entity {
            entity: random.pick(&[
                Entity::World,
                Entity::Managed,
                Entity::Unmanaged,
                Entity::Any,
            ]),
        },
    }
}

fn direct(random: &mut Random, named: bool) -> PortSpec {
    let protocol = random.pick(&[
        Protocol::Number(6),
        Protocol::Number(6),
        Protocol::Number(17),
        Protocol::Number(132),
        Protocol::Any,
    ]);
    let ports = match random.below(if named { 8 } else { 6 }) {
        0 => Ports::All,
        1..=3 => {
            let port = random.pick(&PORTS);
            Ports::Range(port, port)
        }
        4 => {
            let (a, b) = (random.pick(&PORTS), random.pick(&PORTS));
            Ports::Range(a.min(b), a.max(b))
        }
        5 => {
            let protocol = random.pick(&[1, 58, 47]);
            let ports = match protocol {
                47 => Ports::All,
                _ => Ports::Icmp {
                    kind: random.pick(&[8, 128, 3, 13, 139]),
                    code: random.chance(50).then_some(0),
                },
            };
            return PortSpec::Direct {
                protocol: Protocol::Number(protocol),
                ports,
            };
        }
        _ => Ports::Named(random.pick(&["http", "pg", "missing"]).into()),
    };
    PortSpec::Direct { protocol, ports }
}

fn ports(random: &mut Random) -> Vec<PortSpec> {
    if random.chance(30) {
        return Vec::new();
    }
    random.some(3, |random| {
        if random.chance(15) {
            PortSpec::Service(random.pick(&["web", "mixed"]).into())
        } else {
            direct(random, true)
        }
    })
}

fn rule(random: &mut Random) -> Rule {
    Rule {
        name: None,
        action: random.pick(&[
            Action::Allow,
            Action::Allow,
            Action::Allow,
            Action::Deny,
            Action::Deny,
            Action::Pass,
        ]),
        peers: random.some(2, peer),
        ports: ports(random),
        keep: random.chance(20),
        audit: random.chance(20),
        place: Place::default(),
    }
}

fn expires(random: &mut Random) -> OffsetDateTime {
    // Five moments, so that deadlines coincide; one of them has passed.
    NOW + Duration::hours(random.below(5) as i64 - 1)
}

fn rules(random: &mut Random) -> Option<Vec<Rule>> {
    random.chance(65).then(|| random.some(3, rule))
}

fn policy(random: &mut Random, index: usize) -> Policy {
    Policy {
        metadata: metadata(format!("p{index}")),
        tier: random.pick(&[
            Tier::Guardrail,
            Tier::Standard,
            Tier::Standard,
            Tier::Standard,
            Tier::Baseline,
        ]),
        priority: random.pick(&[0, 1000, 1000, 2000]),
        subject: selector(random, true),
        state: random.pick(&[State::Enforced, State::Enforced, State::Staged]),
        replaces: random
            .chance(25)
            .then(|| format!("p{}", random.below(index + 1))),
        ingress: rules(random),
        egress: rules(random),
        expires: random.chance(35).then(|| expires(random)),
        ..Policy::default()
    }
}

/// A policy about everybody, in a random tier, with a deadline.
fn expiring(random: &mut Random, index: usize) -> Policy {
    let everything = |random: &mut Random| {
        Some(vec![Rule {
            action: random.pick(&[Action::Allow, Action::Deny]),
            peers: Vec::new(),
            ports: Vec::new(),
            ..rule(random)
        }])
    };
    Policy {
        metadata: metadata(format!("e{index}")),
        tier: random.pick(&[Tier::Guardrail, Tier::Standard, Tier::Baseline]),
        priority: 5,
        subject: Selector::default(),
        state: State::Enforced,
        ingress: everything(random),
        egress: everything(random),
        expires: Some(expires(random)),
        ..Policy::default()
    }
}

fn filter(random: &mut Random, index: usize) -> Filter {
    Filter {
        metadata: metadata(format!("f{index}")),
        subject: selector(random, true),
        priority: random.pick(&[10, 1000]),
        entries: random.some(4, |random| FilterEntry {
            direction: direction(random),
            cidr: random.chance(60).then(|| cidr(random.pick(&CIDRS))),
            ports: random.chance(80).then(|| direct(random, false)),
            allow: random.chance(50),
            place: Place::default(),
        }),
        place: Place::default(),
    }
}

fn mode(random: &mut Random, index: usize) -> ModeObject {
    let mode = random.pick(&[
        None,
        Some(Mode::Observe),
        Some(Mode::Selective),
        Some(Mode::Enforce),
    ]);
    ModeObject {
        metadata: metadata(format!("m{index}")),
        subject: selector(random, true),
        mode,
        enforce: if mode == Some(Mode::Selective) {
            random.some(2, selective)
        } else {
            Vec::new()
        },
        default_action: match mode {
            None => Some(DefaultAction::Allow),
            Some(_) => random.pick(&[
                None,
                None,
                Some(DefaultAction::Allow),
                Some(DefaultAction::Deny),
            ]),
        },
        place: Place::default(),
    }
}

/// Everybody may do what nothing forbids.
fn brownfield() -> ModeObject {
    ModeObject {
        metadata: metadata("brownfield"),
        subject: Selector::default(),
        mode: None,
        enforce: Vec::new(),
        default_action: Some(DefaultAction::Allow),
        place: Place::default(),
    }
}

fn grant(random: &mut Random, index: usize) -> Grant {
    let (ingress, egress) = random.pick(&[(true, false), (false, true), (true, true)]);
    let mut peers = vec![peer(random)];
    peers.extend(random.some(1, peer));
    Grant {
        metadata: metadata(format!("g{index}")),
        subject: selector(random, true),
        peers,
        ports: ports(random),
        ingress,
        egress,
        expires: expires(random),
        reason: None,
        place: Place::default(),
    }
}

/// Objects of every kind that speaks about flows.
pub fn objects(random: &mut Random) -> Vec<Object> {
    let mut objects = vec![
        Object::AddressGroup(AddressGroup {
            metadata: metadata("office"),
            cidrs: vec![cidr("192.0.2.0/24"), cidr("10.0.0.0/29")],
            place: Place::default(),
        }),
        Object::AddressGroup(AddressGroup {
            metadata: metadata("partners"),
            cidrs: vec![cidr("198.51.100.0/24"), cidr("fd00::/125")],
            place: Place::default(),
        }),
        Object::Service(Service {
            metadata: metadata("web"),
            ports: vec![PortSpec::port(6, 80), PortSpec::port(6, 443)],
            place: Place::default(),
        }),
        Object::Service(Service {
            metadata: metadata("mixed"),
            ports: vec![
                PortSpec::protocol(47),
                PortSpec::Direct {
                    protocol: Protocol::Any,
                    ports: Ports::Named("http".into()),
                },
            ],
            place: Place::default(),
        }),
    ];
    for index in 0..1 + random.below(6) {
        objects.push(Object::Policy(policy(random, index)));
    }
    if random.chance(40) {
        objects.push(Object::Mode(brownfield()));
    }
    if random.chance(25) {
        // Verdicts that change more than once need several deadlines on one flow.
        for index in 0..3 {
            objects.push(Object::Policy(expiring(random, index)));
        }
    }
    for index in 0..random.below(3) {
        objects.push(Object::Grant(grant(random, index)));
    }
    for index in 0..random.below(3) {
        objects.push(Object::Filter(filter(random, index)));
    }
    for index in 0..random.below(3) {
        objects.push(Object::Mode(mode(random, index)));
    }
    for object in &mut objects {
        // A policy that replaces itself is refused; the generator may have made one.
        if let Object::Policy(policy) = object
            && policy.replaces.as_ref() == Some(&policy.metadata.name)
        {
            policy.replaces = None;
        }
    }
    objects
}

/// A protocol and a port that it can have.
pub fn protocol_and_port(random: &mut Random) -> (u8, u16) {
    match random.below(10) {
        0..=4 => (6, probe_port(random)),
        5 => (17, probe_port(random)),
        6 => (132, probe_port(random)),
        7 => (1, random.pick(&[8 << 8, (3 << 8) | 1, 3 << 8])),
        8 => (58, random.pick(&[128 << 8, (128 << 8) | 1])),
        _ => (random.pick(&[47, 50, 89]), 0),
    }
}

fn probe_port(random: &mut Random) -> u16 {
    if random.chance(80) {
        random.pick(&PORTS)
    } else {
        (random.bits() & 0xffff) as u16
    }
}
