//! A plan says of every edge what the evaluator says.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

use std::collections::BTreeMap;
use std::net::IpAddr;

use policy::api::Scenario;
use policy::evaluate::{ConnectionVerdict, evaluate_flow};
use policy::model::Object;
use policy::plan::edges::{Edge, EdgeLimits, Edges};
use policy::plan::record::{EdgeRecord, Record, RecordedEnd};
use policy::plan::report::{Class, Judged};
use policy::plan::{EndNote, GoneReason, Thresholds, plan};
use policy::probe::Flow;
use policy::set::PolicySet;
use policy::source::Source;
use policy::testing::{self as generate, NOW, Random, STRANGERS};
use policy::world::{Workload, World};
use proptest::prelude::*;
use time::Duration;

/// An end as records tell it: of a workload with its name, of others the address.
fn ends(world: &World) -> Vec<(Option<&Workload>, IpAddr)> {
    let owned = world.workloads().iter().flat_map(|workload| {
        let addresses = workload.addresses.iter();
        addresses.map(move |address| (Some(workload), *address))
    });
    let strangers = STRANGERS.iter().map(|text| generate::address(text));
    owned
        .chain(
            strangers
                .filter(|address| world.who(*address).workload().is_none())
                .map(|address| (None, address)),
        )
        .collect()
}

fn recorded(end: (Option<&Workload>, IpAddr)) -> RecordedEnd {
    RecordedEnd {
        workload: end.0.map(Workload::full_name),
        address: Some(end.1),
    }
}

fn edge(source: RecordedEnd, destination: RecordedEnd, protocol: u8, port: u16) -> EdgeRecord {
    EdgeRecord {
        source,
        destination,
        protocol,
        port,
        first_seen: Some(NOW - Duration::days(90)),
        last_seen: Some(NOW - Duration::days(1)),
        flows: 3,
        packets: 30,
        bytes: 300,
        allowed: 3,
        denied: 0,
    }
}

fn rolled(records: impl IntoIterator<Item = EdgeRecord>) -> Vec<Edge> {
    let mut edges = Edges::new(EdgeLimits::default(), None);
    for record in records {
        edges.add(Record::Edge(record)).unwrap();
    }
    edges.finish().0
}

/// Some objects of the one, some of the other, some changed.
fn mixed(random: &mut Random, one: &[Object], other: Vec<Object>) -> PolicySet {
    let mut mixed: BTreeMap<String, Object> = BTreeMap::new();
    for object in other.into_iter().chain(one.iter().cloned()) {
        let known = mixed.contains_key(&object.id());
        if matches!(object, Object::AddressGroup(_) | Object::Service(_))
            || random.chance(if known { 50 } else { 70 })
        {
            mixed.insert(object.id(), object);
        }
    }
    PolicySet::build(mixed.into_values().collect()).unwrap()
}

fn expected_classes(before: &ConnectionVerdict, after: &ConnectionVerdict) -> Vec<Class> {
    let mut classes = Vec::new();
    let turned =
        |a: policy::evaluate::Verdict, b: policy::evaluate::Verdict| (a != b).then(|| b.is_allow());
    let enforced = turned(before.enforced, after.enforced);
    let draft = turned(before.draft, after.draft);
    if enforced == Some(false) {
        classes.push(Class::NewlyBlocked);
    }
    if draft == Some(false) && enforced != Some(false) {
        classes.push(Class::DraftBlocked);
    }
    if enforced == Some(true) {
        classes.push(Class::NewlyAllowed);
    }
    if draft == Some(true) && enforced != Some(true) {
        classes.push(Class::DraftAllowed);
    }
    classes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_agrees_with_the_evaluator_on_every_edge(seed: u64) {
        let random = &mut Random::new(seed);
        let world = generate::world(random);
        let one = generate::objects(random);
        let other = generate::objects(random);
        let before = Scenario { world: world.clone(), set: PolicySet::build(one.clone()).unwrap() };
        let mut after = Scenario { world: world.clone(), set: mixed(random, &one, other) };
        if random.chance(30) {
            // Labels change too: a workload that was one thing becomes another.
            let mut workloads = world.workloads().to_vec();
            workloads[0].labels.insert("app".into(), "db".into());
            after.world = World::new(world.managed_networks.clone(), workloads);
        }
        let all = ends(&before.world);
        let mut asked = BTreeMap::new();
        for _ in 0..40 {
            let (source, destination) = (random.pick(&all), random.pick(&all));
            if source.1.is_ipv4() != destination.1.is_ipv4() {
                continue;
            }
            let (protocol, port) = generate::protocol_and_port(random);
            asked.insert((recorded(source), recorded(destination), protocol, port), (source, destination));
        }
        let edges = rolled(asked.keys().map(|(source, destination, protocol, port)| {
            edge(source.clone(), destination.clone(), *protocol, *port)
        }));
        let plan = plan(&before, &after, &edges, NOW, Thresholds::default());

        let mut expected = BTreeMap::new();
        let mut unchanged = [0, 0];
        for ((_, _, protocol, port), (source, destination)) in &asked {
            let ask = |scenario: &Scenario| {
                let owner = |end: &(Option<&Workload>, IpAddr)| {
                    let named = end.0.map(|own| scenario.world.workload(&own.full_name()).unwrap().full_name());
                    named.and_then(|name| scenario.world.workloads().iter().position(|w| w.full_name() == name))
                };
                let workload = |index: Option<usize>| index.map(|index| &scenario.world.workloads()[index]);
                let flow = Flow {
                    source: source.1,
                    destination: destination.1,
                    from: workload(owner(source)),
                    to: workload(owner(destination)),
                    protocol: *protocol,
                    port: *port,
                };
                evaluate_flow(&scenario.world, &scenario.set, &flow, NOW)
            };
            let (old, new) = (ask(&before), ask(&after));
            let classes = expected_classes(&old, &new);
            if classes.is_empty() {
                unchanged[usize::from(new.enforced.is_allow())] += 1;
            } else {
                let name = |end: &(Option<&Workload>, IpAddr)| (end.0.map(Workload::full_name), end.1);
                expected.insert(
                    (name(source), name(destination), *protocol, *port),
                    (classes, Judged::from(&old), Judged::from(&new)),
                );
            }
        }
        let told: BTreeMap<_, _> = plan.edges.iter().map(|row| {
            let name = |end: &policy::plan::report::EndInfo| (end.workload.clone(), end.address.unwrap());
            (
                (name(&row.from), name(&row.to), row.traffic.protocol, row.traffic.port),
                (row.classes.clone(), row.before.clone(), row.after.clone()),
            )
        }).collect();
        prop_assert_eq!(told, expected);
        prop_assert_eq!([plan.counts.unchanged_denied, plan.counts.unchanged_allowed], unchanged);
        prop_assert_eq!(plan.counts.gone, 0);
        prop_assert_eq!(plan.counts.edges as usize, asked.len());
    }

    #[test]
    fn a_plan_of_no_change_is_empty(seed: u64) {
        let random = &mut Random::new(seed);
        let world = generate::world(random);
        let set = PolicySet::build(generate::objects(random)).unwrap();
        let scenario = Scenario { world, set };
        let all = ends(&scenario.world);
        let edges = rolled(all.iter().zip(all.iter().rev()).filter(|(a, b)| a.1.is_ipv4() == b.1.is_ipv4())
            .map(|(a, b)| edge(recorded(*a), recorded(*b), 6, 80)));
        let plan = plan(&scenario, &scenario, &edges, NOW, Thresholds::default());
        prop_assert!(plan.is_quiet() && plan.objects.is_empty() && plan.rules.is_empty(), "{plan:#?}");
        prop_assert_eq!(plan.counts.edges as usize, edges.len());
    }
}

const INVENTORY: &str = "
managedNetworks: [10.0.0.0/16]
workloads:
  - {name: web-1, labels: {app: web}, addresses: [10.0.0.5, 'fd00::5']}
  - {name: db-1, labels: {app: db}, addresses: [10.0.1.9, 'fd00::9']}
  - {name: new-1, labels: {app: new}, addresses: [10.0.0.77]}
";

const OPEN: &str = "
apiVersion: cofferdam.dev/v1
kind: Policy
metadata: {name: db}
spec:
  state: enforced
  subject: {app: db}
  ingress: [{action: allow}]
---
apiVersion: cofferdam.dev/v1
kind: Policy
metadata: {name: out}
spec: {state: enforced, subject: all, egress: [{action: allow}]}
";

fn scenario(policies: &str) -> Scenario {
    Scenario::parse(
        Some(&Source::new("inv.yaml", INVENTORY)),
        &[Source::new("p.yaml", policies)],
    )
    .unwrap()
}

fn line(text: &str) -> EdgeRecord {
    match Record::parse(text).unwrap() {
        Record::Edge(edge) => edge,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_blocked_is_told_with_its_rules_the_most_dangerous_first() {
    let (before, after) = (
        scenario(OPEN),
        scenario(&OPEN.replace(
            "ingress: [{action: allow}]",
            "ingress: [{action: allow, peers: [{cidr: 10.0.0.0/24}], ports: [{port: 5432}]}, {action: deny, ports: [{port: 1}]}]",
        )),
    );
    let seen = |to: &str, port: u16, days: i64, flows: u64| {
        let mut edge = line(&format!(
            r#"{{"from": "web-1", "to": "{to}", "protocol": "tcp", "port": {port}}}"#
        ));
        edge.last_seen = Some(NOW - Duration::days(days));
        edge.flows = flows;
        edge
    };
    let edges = rolled([
        seen("db-1", 22, 90, 1),
        seen("db-1", 80, 2, 5),
        seen("db-1", 81, 20, 50),
        seen("db-1", 5432, 1, 7),
        seen("gone-1", 22, 1, 7),
    ]);
    let plan = plan(&before, &after, &edges, NOW, Thresholds::default());
    let ports: Vec<_> = plan.edges.iter().map(|row| row.traffic.port).collect();
    // The database speaks IPv6 too, which the new rule forgot: port 5432 is blocked between those addresses.
    assert_eq!(ports, [5432, 80, 81, 22]);
    assert_eq!(plan.edges[0].from.address, Some("fd00::5".parse().unwrap()));
    let rare: Vec<_> = plan.edges.iter().map(|row| row.traffic.rare).collect();
    assert_eq!(rare, [false, false, false, true]);
    let count = plan.count(Class::NewlyBlocked);
    assert_eq!(
        (count.edges, count.flows, count.recent, count.rare),
        (4, 63, 2, 1)
    );
    assert_eq!(
        plan.edges[1].after.rule.as_deref(),
        Some("standard/db/ingress (default deny)")
    );
    assert_eq!(plan.edges[1].after.end, Some("ingress"));
    let uses: Vec<_> = plan
        .rules
        .iter()
        .map(|rule| (rule.rule.as_str(), rule.edges))
        .collect();
    assert_eq!(
        uses,
        [("standard/db/ingress[0]", 0), ("standard/db/ingress[1]", 0)]
    );
    assert_eq!(plan.rules[1].place.as_deref(), Some("p.yaml:8:83"));
    assert_eq!(
        (plan.gone.len(), plan.gone[0].reason),
        (1, GoneReason::WorkloadGone)
    );
}

#[test]
fn ends_that_are_no_longer_what_they_were_are_told() {
    let (before, after) = (
        scenario(OPEN),
        scenario(&OPEN.replace("enforced", "staged")),
    );
    let end = |name: Option<&str>, address: &str| RecordedEnd {
        workload: name.map(ToOwned::to_owned),
        address: Some(address.parse().unwrap()),
    };
    let to = || end(Some("db-1"), "10.0.1.9");
    let edges = rolled([
        edge(end(Some("web-1"), "10.0.0.200"), to(), 6, 1),
        edge(end(None, "10.0.0.77"), to(), 6, 2),
        edge(end(None, "10.0.0.88"), to(), 6, 3),
        edge(end(None, "192.0.2.1"), to(), 6, 4),
        edge(end(Some("old-1"), "10.0.0.77"), to(), 6, 5),
        edge(end(Some("old-1"), "10.0.0.99"), to(), 6, 6),
        edge(end(Some("new-1"), "fd00::77"), end(None, "fd00::1"), 6, 7),
    ]);
    let plan = plan(&before, &after, &edges, NOW, Thresholds::default());
    let notes: BTreeMap<u16, _> = (plan.edges.iter())
        .map(|row| (row.traffic.port, row.from.note))
        .collect();
    assert_eq!(
        notes.into_iter().collect::<Vec<_>>(),
        [
            (1, Some(EndNote::Moved)),
            (2, Some(EndNote::NowManaged)),
            (3, Some(EndNote::Unmanaged)),
            (4, Some(EndNote::World)),
        ]
    );
    let gone: BTreeMap<u16, _> = (plan.gone.iter())
        .map(|row| (row.traffic.port, row.reason))
        .collect();
    assert_eq!(
        gone.into_iter().collect::<Vec<_>>(),
        [
            (5, GoneReason::AddressReused),
            (6, GoneReason::WorkloadGone),
            (7, GoneReason::NoAddress),
        ]
    );
    let counts = &plan.counts;
    assert_eq!(
        (
            counts.gone,
            counts.address_reused,
            counts.moved,
            counts.now_managed
        ),
        (3, 1, 1, 1)
    );
    // Nothing is denied today, and the records agree; what was denied then was recorded otherwise.
    assert_eq!(counts.recorded_otherwise, 0);
}

#[test]
fn the_missing_half_is_proposed_and_lets_the_flow_through() {
    let closed = "
apiVersion: cofferdam.dev/v1
kind: Policy
metadata: {name: web-out}
spec: {state: enforced, subject: {app: web}, egress: [{action: allow, ports: [{port: 443}]}]}
";
    let before = scenario(closed);
    let with = |rule: &str| {
        scenario(&format!(
            "{closed}---
apiVersion: cofferdam.dev/v1
kind: Policy
metadata: {{name: db, owner: team}}
spec: {{subject: {{app: db}}, ingress: [{rule}]}}
"
        ))
    };
    let after = with("{action: allow, peers: [{selector: {app: web}}], ports: [{port: 5432}]}");
    let made = plan(&before, &after, &[], NOW, Thresholds::default());
    assert_eq!(made.missing_halves.len(), 1, "{made:#?}");
    let half = &made.missing_halves[0];
    assert_eq!(
        (half.rule.as_str(), half.end, half.pairs),
        ("standard/db/ingress[0]", "egress", 1)
    );
    assert_eq!(half.denied_by, "standard/web-out/egress (default deny)");
    let yaml = half.yaml.clone().unwrap();
    let mut objects = after.set.objects();
    objects.extend(policy::parse::parse(&[Source::new("half.yaml", yaml)]).unwrap());
    let whole = Scenario {
        world: after.world.clone(),
        set: PolicySet::build(objects).unwrap(),
    };
    let flow = Flow::between(
        &whole.world,
        "10.0.0.5".parse().unwrap(),
        "10.0.1.9".parse().unwrap(),
        6,
        5432,
    );
    let draft = |scenario: &Scenario| {
        evaluate_flow(&scenario.world, &scenario.set, &flow, NOW)
            .draft
            .is_allow()
    };
    assert!(!draft(&after) && draft(&whole));
    let made = plan(&before, &whole, &[], NOW, Thresholds::default());
    assert_eq!(made.missing_halves, [], "both halves are there");

    // A deny is somebody's will: nothing is proposed.
    let denied = scenario(&format!(
        "{}---\napiVersion: cofferdam.dev/v1\nkind: Policy\nmetadata: {{name: db}}\nspec: {{subject: {{app: db}}, ingress: [{{action: allow, peers: [{{selector: {{app: web}}}}], ports: [{{port: 5432}}]}}]}}\n",
        closed.replace(
            "[{action: allow, ports: [{port: 443}]}]",
            "[{action: deny}]"
        )
    ));
    let made = plan(&before, &denied, &[], NOW, Thresholds::default());
    let yaml: Vec<_> = made
        .missing_halves
        .iter()
        .map(|half| half.yaml.is_some())
        .collect();
    assert_eq!(yaml, [false], "{made:#?}");
}

#[test]
fn who_comes_further_is_told() {
    let (before, after) = (
        scenario(
            &OPEN
                .replace("[{action: allow}]}\n---", "[]}\n---")
                .replace("ingress: [{action: allow}]", "ingress: []"),
        ),
        scenario(OPEN),
    );
    let edges = rolled([line(
        r#"{"from": "web-1", "to": "db-1", "protocol": "tcp", "port": 5432}"#,
    )]);
    let made = plan(&before, &after, &edges, NOW, Thresholds::default());
    let rows: BTreeMap<_, _> = (made.radius.iter())
        .map(|row| {
            (
                row.workload.as_str(),
                (row.before.direct, row.after.direct, row.draft_after.all),
            )
        })
        .collect();
    assert_eq!(
        rows.into_iter().collect::<Vec<_>>(),
        [("new-1", (0, 1, 1)), ("web-1", (0, 1, 1))]
    );
    assert_eq!((made.widening.pairs, made.widening.never_seen), (2, 1));
    let back = plan(&after, &before, &edges, NOW, Thresholds::default());
    assert_eq!((back.widening.pairs, back.radius.len()), (0, 2));
}
