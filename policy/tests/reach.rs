//! reach = brute force: what the sets say of small random worlds is what the evaluator says of every
//! pair of addresses, protocol and port, under every lens.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use policy::evaluate::{EndVerdict, evaluate_end};
use policy::model::Peer;
use policy::probe::Flow;
use policy::reach::{
    Direction, End, Example, Found, Lens, PortSet, Question, Reach, RuleAt, Wanted, blast_radius,
};
use policy::set::PolicySet;
use policy::snapshot::FlowDirection;
use policy::testing::{self as generate, NOW, Random};
use policy::world::{Workload, World};

const WORLDS: u64 = 150;
const LENSES: [Lens; 3] = [Lens::Enforced, Lens::Evaluated, Lens::Draft];

fn scenario(seed: u64) -> (World, PolicySet, Random) {
    let mut random = Random::new(seed);
    let world = generate::world(&mut random);
    let set = PolicySet::build(generate::objects(&mut random)).unwrap();
    (world, set, random)
}

fn address(address: IpAddr) -> Vec<End> {
    vec![End::Peer(Peer::Cidr {
        cidr: IpNet::from(address),
        except: Vec::new(),
    })]
}

fn question(from: Vec<End>, to: Vec<End>, lens: Lens, wanted: Wanted) -> Question {
    Question {
        from,
        to,
        ports: PortSet::ALL,
        lens,
        wanted,
    }
}

/// Ports on both sides of every border that the generator makes.
fn points(random: &mut Random) -> Vec<(u8, u16)> {
    let mut points = vec![(47, 0), (50, 0), (255, 0)];
    for _ in 0..9 {
        let (protocol, port) = generate::protocol_and_port(random);
        let step = [0, 0, 1, u16::MAX][random.below(4)];
        let ported = matches!(protocol, 1 | 6 | 17 | 58 | 132);
        points.push((
            protocol,
            if ported {
                port.wrapping_add(step)
            } else {
                port
            },
        ));
    }
    points
}

fn allows(end: &EndVerdict, lens: Lens) -> bool {
    match lens {
        Lens::Enforced => end.enforced,
        Lens::Evaluated => end.evaluated,
        Lens::Draft => end.draft,
    }
    .is_allow()
}

fn rule(end: &EndVerdict, lens: Lens) -> &str {
    match lens {
        Lens::Enforced | Lens::Evaluated => &end.rule,
        Lens::Draft => &end.draft_rule,
    }
}

/// The two ends of every flow between two addresses, for everybody that claims them.
fn flows<'a>(world: &'a World, from: IpAddr, to: IpAddr, point: (u8, u16)) -> Vec<Flow<'a>> {
    let owners = |address| -> Vec<Option<&Workload>> {
        let owners: Vec<_> = world.claimants(address).map(Some).collect();
        if owners.is_empty() {
            vec![None]
        } else {
            owners
        }
    };
    let mut flows = Vec::new();
    for source in owners(from) {
        for destination in owners(to) {
            let itself = source.is_some() && source == destination;
            if itself || (source.is_none() && destination.is_none()) {
                continue;
            }
            flows.push(Flow {
                source: from,
                destination: to,
                from: source,
                to: destination,
                protocol: point.0,
                port: point.1,
            });
        }
    }
    flows
}

fn ends(world: &World, set: &PolicySet, flow: &Flow<'_>) -> [Option<EndVerdict>; 2] {
    [FlowDirection::Egress, FlowDirection::Ingress]
        .map(|direction| evaluate_end(world, set, flow, direction, NOW))
}

fn passes(ends: &[Option<EndVerdict>; 2], lens: Lens) -> bool {
    ends.iter().flatten().all(|end| allows(end, lens))
}

/// Addresses of all workloads, and some of nobody.
fn addresses(world: &World, random: &mut Random) -> Vec<IpAddr> {
    let mut addresses: BTreeSet<IpAddr> = world
        .workloads()
        .iter()
        .flat_map(|workload| workload.addresses.clone())
        .collect();
    addresses.extend((0..4).map(|_| generate::address(random.pick(&generate::STRANGERS))));
    addresses.into_iter().collect()
}

#[test]
fn reach_is_brute_force() {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in 0..WORLDS {
        let (world, set, mut random) = scenario(seed);
        let mut reach = Reach::new(&world, &set, NOW);
        let points = points(&mut random);
        let addresses = addresses(&world, &mut random);
        for (from, to) in pairs(&addresses) {
            let found = LENSES.map(|lens| {
                [Wanted::Passing, Wanted::Denied].map(|wanted| {
                    let question = question(address(from), address(to), lens, wanted);
                    let found = reach.ask(&question).unwrap();
                    let pieces = reach.pieces(&found, usize::MAX).pieces;
                    assert_eq!(
                        pieces
                            .iter()
                            .fold(PortSet::NONE, |all, piece| all.union(&piece.ports)),
                        reach.ports(&found)
                    );
                    (reach.ports(&found), pieces)
                })
            });
            for point in &points {
                let flows = flows(&world, from, to, *point);
                let verdicts: Vec<_> = flows.iter().map(|flow| ends(&world, &set, flow)).collect();
                for (lens, [passing, denied]) in LENSES.into_iter().zip(&found) {
                    let what = format!("seed {seed} {lens:?} {from} → {to} {point:?}");
                    let some = verdicts.iter().any(|ends| passes(ends, lens));
                    assert_eq!(passing.0.contains(point.0, point.1), some, "{what}");
                    let not_all = verdicts.iter().any(|ends| !passes(ends, lens));
                    assert_eq!(denied.0.contains(point.0, point.1), not_all, "{what}");
                    *seen
                        .entry(if some { "passes" } else { "does not" })
                        .or_default() += 1;
                    *seen.entry(lens.name()).or_default() += usize::from(some);
                    if let [ends] = verdicts.as_slice() {
                        let pieces = if some { &passing.1 } else { &denied.1 };
                        let mut own = pieces.iter().filter(|p| p.ports.contains(point.0, point.1));
                        let piece = own.next().unwrap();
                        assert_eq!(own.next(), None, "pieces are disjoint, {what}");
                        same_rule(piece.egress.as_ref(), ends[0].as_ref(), lens, &what);
                        same_rule(piece.ingress.as_ref(), ends[1].as_ref(), lens, &what);
                    } else if verdicts.len() > 1 {
                        *seen.entry("several claimants").or_default() += 1;
                    }
                }
            }
        }
    }
    println!("{seen:?}");
    for (what, count) in seen {
        assert!(count > 1_500, "\"{what}\" was seen only {count} times");
    }
}

fn same_rule(said: Option<&RuleAt>, end: Option<&EndVerdict>, lens: Lens, what: &str) {
    let Some(end) = end else {
        assert_eq!(said, None, "{what}");
        return;
    };
    let said = said.expect("the end is managed");
    assert_eq!(said.rule, rule(end, lens), "{what}");
    assert_eq!(said.allow, allows(end, lens), "{what}");
    let observed = end.reason == datapath::drop_reason::DropReason::ModeObserve;
    assert_eq!(said.observed, observed && lens == Lens::Enforced, "{what}");
}

fn pairs(addresses: &[IpAddr]) -> impl Iterator<Item = (IpAddr, IpAddr)> {
    addresses.iter().flat_map(move |from| {
        addresses
            .iter()
            .filter(move |to| to.is_ipv4() == from.is_ipv4())
            .map(move |to| (*from, *to))
    })
}

fn some_ends(world: &World, random: &mut Random) -> Vec<End> {
    let texts = [
        "world",
        "unmanaged",
        "managed",
        "any",
        "10.0.0.0/28",
        "group:office",
        "192.0.2.0/24",
    ];
    let one = match random.below(3) {
        0 => End::parse(random.pick(&texts)).unwrap(),
        1 => End::Workload(random.pick(world.workloads()).full_name()),
        _ => End::Peer(Peer::Selector {
            selector: generate::selector(random, true),
        }),
    };
    vec![one]
}

/// A counter-example is one for the evaluator as well, and is there whenever anything was found.
#[test]
fn examples_are_examples() {
    let mut counted = [0, 0, 0];
    for seed in 0..WORLDS * 4 {
        let (world, set, mut random) = scenario(seed);
        let mut reach = Reach::new(&world, &set, NOW);
        let lens = random.pick(&LENSES);
        let wanted = random.pick(&[Wanted::Passing, Wanted::Denied]);
        let (from, to) = (
            some_ends(&world, &mut random),
            some_ends(&world, &mut random),
        );
        let ports = PortSet::range(6, 80, 443).union(&PortSet::range(17, 0, 65_535));
        let question = Question {
            ports: ports.clone(),
            ..question(from, to, lens, wanted)
        };
        let found = reach.ask(&question).unwrap();
        let Some(example) = reach.example(&found) else {
            assert!(found.is_empty());
            counted[0] += 1;
            continue;
        };
        assert!(
            ports.contains(example.protocol, example.port),
            "seed {seed}"
        );
        let flow = flow_of(&world, &example);
        let ends = ends(&world, &set, &flow);
        assert_eq!(
            passes(&ends, lens),
            wanted == Wanted::Passing,
            "seed {seed}: {example}"
        );
        same_rule(example.egress.as_ref(), ends[0].as_ref(), lens, "egress");
        same_rule(example.ingress.as_ref(), ends[1].as_ref(), lens, "ingress");
        let again = again(&world, &set, &question);
        assert_eq!(
            Some(example),
            again,
            "the same question has the same example"
        );
        counted[if wanted == Wanted::Passing { 1 } else { 2 }] += 1;
    }
    println!("nothing, passing, denied: {counted:?}");
    assert!(counted.iter().all(|count| *count > 100), "{counted:?}");
}

fn again(world: &World, set: &PolicySet, question: &Question) -> Option<Example> {
    let mut reach = Reach::new(world, set, NOW);
    let found: Found = reach.ask(question).unwrap();
    reach.example(&found)
}

fn flow_of<'a>(world: &'a World, example: &Example) -> Flow<'a> {
    let workload = |name: &Option<String>| name.as_ref().map(|name| world.workload(name).unwrap());
    let flow = Flow {
        source: example.from_address,
        destination: example.to_address,
        from: workload(&example.from),
        to: workload(&example.to),
        protocol: example.protocol,
        port: example.port,
    };
    for (owner, address) in [(flow.from, flow.source), (flow.to, flow.destination)] {
        match owner {
            Some(owner) => assert!(owner.addresses.contains(&address)),
            None => assert_eq!(world.claimants(address).count(), 0),
        }
    }
    flow
}

/// Who can open any flow to whom, by asking the evaluator about every port that can make a difference.
fn edges(world: &World, set: &PolicySet, lens: Lens) -> BTreeSet<(String, String)> {
    let mut ports: BTreeSet<u16> =
        [1, 8 << 8, 128 << 8, 3 << 8, (3 << 8) | 1, 13 << 8, 139 << 8].into();
    ports.extend(generate::PORTS);
    ports.extend(generate::PORTS.map(|port| port.wrapping_add(1)));
    ports.extend(generate::PORTS.map(|port| port.wrapping_sub(1)));
    let mut points: Vec<(u8, u16)> = vec![(47, 0), (255, 0)];
    for protocol in [6, 17, 132, 1, 58] {
        points.extend(ports.iter().map(|port| (protocol, *port)));
    }
    let mut edges = BTreeSet::new();
    for from in world.workloads() {
        for to in world.workloads().iter().filter(|to| *to != from) {
            let mut addresses = from.addresses.iter().flat_map(|from| {
                let family = to
                    .addresses
                    .iter()
                    .filter(|to| to.is_ipv4() == from.is_ipv4());
                family.map(|to| (*from, *to))
            });
            let edge = addresses.any(|(source, destination)| {
                points.iter().any(|(protocol, port)| {
                    let flow = Flow {
                        source,
                        destination,
                        from: Some(from),
                        to: Some(to),
                        protocol: *protocol,
                        port: *port,
                    };
                    passes(&ends(world, set, &flow), lens)
                })
            });
            if edge {
                edges.insert((from.full_name(), to.full_name()));
            }
        }
    }
    edges
}

/// Hops from a set of workloads, by the plainest search there is.
fn hops(edges: &BTreeSet<(String, String)>, start: &str) -> BTreeMap<String, usize> {
    let mut hops: BTreeMap<String, usize> = [(start.to_owned(), 0)].into();
    for round in 0..edges.len() {
        for (from, to) in edges {
            if hops.get(from) == Some(&round) && !hops.contains_key(to) {
                hops.insert(to.clone(), round + 1);
            }
        }
    }
    hops.remove(start);
    hops
}

#[test]
fn a_blast_radius_is_the_closure_of_the_edges() {
    let (mut direct, mut further) = (0, 0);
    for seed in 0..WORLDS / 2 {
        let (world, set, mut random) = scenario(seed);
        let lens = random.pick(&LENSES);
        let edges = edges(&world, &set, lens);
        let backwards: BTreeSet<_> = edges.iter().map(|(a, b)| (b.clone(), a.clone())).collect();
        let mut reach = Reach::new(&world, &set, NOW);
        for workload in world.workloads() {
            let name = workload.full_name();
            let radius = blast_radius(&world, &set, &name, lens, NOW).unwrap();
            let wanted = hops(&edges, &name);
            let one: Vec<_> = wanted
                .iter()
                .filter(|(_, hops)| **hops == 1)
                .map(|(to, _)| to.clone())
                .collect();
            assert_eq!(radius.direct, one, "seed {seed} {name}");
            assert_eq!(
                radius.all,
                wanted.keys().cloned().collect::<Vec<_>>(),
                "seed {seed} {name}"
            );
            direct += one.len();
            further += radius.all.len() - one.len();
            for (direction, edges) in [(Direction::From, &edges), (Direction::To, &backwards)] {
                let start = [End::Workload(name.clone())];
                let spread = reach
                    .spread(&start, &PortSet::ALL, lens, direction)
                    .unwrap();
                let reached = reach.reached(&spread);
                let found: BTreeMap<_, _> =
                    reached.iter().map(|r| (r.name.clone(), r.hops)).collect();
                assert_eq!(
                    found,
                    hops(edges, &name),
                    "seed {seed} {name} {direction:?}"
                );
                for reached in reached {
                    assert_eq!(reached.path.len(), reached.hops);
                    let mut at = if direction == Direction::From {
                        name.clone()
                    } else {
                        reached.name.clone()
                    };
                    for step in &reached.path {
                        assert_eq!(step.from, at, "seed {seed}");
                        assert!(
                            edges_has(edges, &step.from, &step.to, direction),
                            "seed {seed} {step}"
                        );
                        assert!(
                            [&step.egress, &step.ingress]
                                .into_iter()
                                .all(|rule| rule.as_ref().unwrap().allow)
                        );
                        at.clone_from(&step.to);
                    }
                    let end = if direction == Direction::From {
                        &reached.name
                    } else {
                        &name
                    };
                    assert_eq!(at, *end);
                }
            }
        }
    }
    println!("{direct} direct, {further} further");
    assert!(direct > 150 && further > 20, "{direct} {further}");
}

fn edges_has(
    edges: &BTreeSet<(String, String)>,
    from: &str,
    to: &str,
    direction: Direction,
) -> bool {
    let (from, to) = (from.to_owned(), to.to_owned());
    edges.contains(&match direction {
        Direction::From => (from, to),
        Direction::To => (to, from),
    })
}

/// There is a way from some workloads to others exactly if one of them comes to another one.
#[test]
fn ways_are_found() {
    let (mut there, mut not) = (0, 0);
    for seed in 0..WORLDS / 2 {
        let (world, set, mut random) = scenario(seed);
        let lens = random.pick(&LENSES);
        let edges = edges(&world, &set, lens);
        let mut reach = Reach::new(&world, &set, NOW);
        let selectors = [
            generate::selector(&mut random, true),
            generate::selector(&mut random, true),
        ];
        let [from, to] = selectors
            .clone()
            .map(|selector| vec![End::Peer(Peer::Selector { selector })]);
        let [sources, goals] = selectors.map(|selector| -> Vec<String> {
            let selected = world
                .workloads()
                .iter()
                .filter(|workload| selector.matches(*workload));
            selected.map(Workload::full_name).collect()
        });
        let shortest = sources
            .iter()
            .flat_map(|from| hops(&edges, from))
            .filter(|(to, _)| goals.contains(to))
            .map(|(_, hops)| hops)
            .min();
        let way = reach.way(&from, &to, &PortSet::ALL, lens).unwrap();
        assert_eq!(way.as_ref().map(Vec::len), shortest, "seed {seed}");
        match way {
            Some(way) => {
                assert!(sources.contains(&way[0].from) && goals.contains(&way[way.len() - 1].to));
                there += 1;
            }
            None => not += 1,
        }
    }
    assert!(there > 8 && not > 15, "{there} {not}");
}
