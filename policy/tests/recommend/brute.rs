//! Everything that a recommendation claims, counted the slow way.

use std::collections::{BTreeMap, BTreeSet};

use policy::evaluate::evaluate_flow;
use policy::model::Object;
use policy::ports::{PortSpec, Ports, Protocol};
use policy::probe::{Flow, ProbeEnd};
use policy::recommend::{Observation, Observations, Options, Recommendation, recommend};
use policy::set::PolicySet;
use policy::source::Source;
use policy::world::World;
use time::OffsetDateTime;
use time::macros::datetime;

pub(crate) const AT: OffsetDateTime = datetime!(2030-01-01 00:00 UTC);

pub(crate) fn observe<'a>(world: &'a World, rows: &[Observation]) -> Observations<'a> {
    let mut observations = Observations::new(world);
    for row in rows {
        observations.add(row).unwrap();
    }
    observations
}

pub(crate) fn run(world: &World, rows: &[Observation], options: &Options) -> Recommendation {
    recommend(
        world,
        observe(world, rows),
        &PolicySet::default(),
        options,
        AT,
    )
}

/// The objects, written down and read again.
pub(crate) fn read_back(objects: &[Object]) -> PolicySet {
    let sources: Vec<Source> = objects
        .iter()
        .map(|object| Source::new(object.id(), object.to_json().to_string()))
        .collect();
    let set = PolicySet::parse(&sources).unwrap_or_else(|problems| panic!("{problems}"));
    let mut again = set.objects();
    let mut given = objects.to_vec();
    again.sort_by_key(Object::id);
    given.sort_by_key(Object::id);
    assert_eq!(again, given);
    set
}

fn resolve<'a>(world: &'a World, row: &Observation) -> Option<Flow<'a>> {
    let address = |end: &ProbeEnd| match end {
        ProbeEnd::Address(address) => Some(*address),
        ProbeEnd::Name(name) => world.workload(name)?.addresses.first().copied(),
    };
    Some(Flow::between(
        world,
        address(&row.source)?,
        address(&row.destination)?,
        row.protocol,
        row.port,
    ))
}

pub(crate) fn allows(world: &World, set: &PolicySet, row: &Observation) -> bool {
    let flow = resolve(world, row).unwrap();
    evaluate_flow(world, set, &flow, AT).draft.is_allow()
}

/// One edge: two addresses or names, protocol, port.
pub(crate) type EdgeId = (String, String, u8, u16);

pub(crate) fn id(row: &Observation) -> EdgeId {
    let text = |end: &ProbeEnd| match end {
        ProbeEnd::Name(name) => name.clone(),
        ProbeEnd::Address(address) => address.to_string(),
    };
    (
        text(&row.source),
        text(&row.destination),
        row.protocol,
        row.port,
    )
}

/// The ports that rules name.
fn named_ports(set: &PolicySet) -> BTreeSet<(u8, u16)> {
    let mut ports = BTreeSet::new();
    let mut add = |spec: &PortSpec| {
        if let PortSpec::Direct {
            protocol: Protocol::Number(protocol),
            ports: range,
        } = spec
        {
            let (low, high) = match range {
                Ports::Range(low, high) => (*low, *high),
                Ports::Icmp { kind, code } => {
                    let port = u16::from_be_bytes([*kind, code.unwrap()]);
                    (port, port)
                }
                _ => (0, 0),
            };
            ports.extend((low..=high).map(|port| (*protocol, port)));
        }
    };
    for policy in set.policies() {
        for rule in [&policy.ingress, &policy.egress]
            .into_iter()
            .flatten()
            .flatten()
        {
            assert!(
                !rule.ports.is_empty(),
                "a rule without ports allows everything"
            );
            for spec in &rule.ports {
                match spec {
                    PortSpec::Service(name) => {
                        set.service(name).unwrap().ports.iter().for_each(&mut add)
                    }
                    PortSpec::Direct { .. } => add(spec),
                }
            }
        }
    }
    ports
}

/// Checks coverage, over-permission and minimality of a recommendation for rows without workloads of several addresses.
pub(crate) fn check(world: &World, rows: &[Observation], got: &Recommendation) {
    let set = read_back(&got.objects);
    let mut edges: BTreeMap<EdgeId, (u64, &Observation)> = BTreeMap::new();
    for row in rows {
        edges.entry(id(row)).or_insert((0, row)).0 += row.flows;
    }
    let (mut covered, mut all, mut flows, mut all_flows) = (0, 0, 0, 0);
    let mut seen: BTreeSet<EdgeId> = BTreeSet::new();
    for (id, (count, row)) in &edges {
        let flow = resolve(world, row).unwrap();
        if flow.source == flow.destination || (flow.from.is_none() && flow.to.is_none()) {
            continue;
        }
        all += 1;
        all_flows += count;
        if allows(world, &set, row) {
            covered += 1;
            flows += count;
            seen.insert(id.clone());
        }
    }
    let coverage = &got.report.coverage;
    assert_eq!(
        (coverage.edges.part, coverage.edges.whole),
        (covered, all),
        "edges covered"
    );
    assert_eq!(
        (coverage.flows.part, coverage.flows.whole),
        (flows, all_flows),
        "flows covered"
    );
    check_over_permission(world, &set, &seen, got);
    check_called_out(got, &edges, world, &set);
}

fn check_over_permission(
    world: &World,
    set: &PolicySet,
    seen: &BTreeSet<EdgeId>,
    got: &Recommendation,
) {
    // A port that no rule names must not be allowed either.
    let mut ports = named_ports(set);
    ports.insert((6, 9));
    let (mut allowed, mut hit) = (0, 0);
    for from in world.workloads() {
        for to in world.workloads() {
            if from.full_name() == to.full_name() {
                continue;
            }
            for (protocol, port) in &ports {
                let flow =
                    Flow::between(world, from.addresses[0], to.addresses[0], *protocol, *port);
                if evaluate_flow(world, set, &flow, AT).draft.is_allow() {
                    allowed += 1;
                    let id = (from.full_name(), to.full_name(), *protocol, *port);
                    hit += u64::from(seen.contains(&id));
                }
            }
        }
    }
    let over = got.report.over_permission.unwrap();
    assert_eq!((over.allowed, over.seen), (allowed, hit), "over-permission");
}

/// Called-out edges are denied, and their number is what is not covered.
fn check_called_out(
    got: &Recommendation,
    edges: &BTreeMap<EdgeId, (u64, &Observation)>,
    world: &World,
    set: &PolicySet,
) {
    let coverage = &got.report.coverage.edges;
    let out: u64 = got.report.kept_out.values().sum();
    assert_eq!(out, coverage.whole - coverage.part);
    for called in &got.report.called_out {
        let row = edges.values().map(|(_, row)| row).find(|row| {
            let (from, to, ..) = id(row);
            from == called.from
                && to == called.to
                && called.service.ends_with(&format!("/{}", row.port))
        });
        if let Some(row) = row {
            assert!(!allows(world, set, row), "{called:?}");
        }
    }
}

/// Without any one rule, or any one peer or port of a rule, an edge is lost.
pub(crate) fn check_minimal(world: &World, rows: &[Observation], objects: &[Object]) {
    let count = |objects: &[Object]| {
        let set = PolicySet::build(objects.to_vec()).unwrap();
        rows.iter().filter(|row| allows(world, &set, row)).count()
    };
    let whole = count(objects);
    for (index, object) in objects.iter().enumerate() {
        let Object::Policy(policy) = object else {
            continue;
        };
        for egress in [false, true] {
            let rules = if egress {
                &policy.egress
            } else {
                &policy.ingress
            };
            for (position, rule) in rules.iter().flatten().enumerate() {
                let mut less = Vec::new();
                less.push(None);
                less.extend((0..rule.peers.len()).map(|peer| Some((peer, true))));
                less.extend((0..rule.ports.len()).map(|port| Some((port, false))));
                for what in less {
                    let mut changed = policy.clone();
                    let list = if egress {
                        &mut changed.egress
                    } else {
                        &mut changed.ingress
                    };
                    let rules = list.as_mut().unwrap();
                    match what {
                        None => drop(rules.remove(position)),
                        Some((peer, true)) if rule.peers.len() > 1 => {
                            drop(rules[position].peers.remove(peer))
                        }
                        Some((port, false)) if rule.ports.len() > 1 => {
                            drop(rules[position].ports.remove(port))
                        }
                        _ => continue,
                    }
                    let mut all = objects.to_vec();
                    all[index] = Object::Policy(changed);
                    assert!(
                        count(&all) < whole,
                        "{} is not needed: {what:?} of egress {egress} [{position}]",
                        policy.metadata.name
                    );
                }
            }
        }
    }
}
