//! Small worlds with a known right answer.

use policy::model::{Entity, Object, Peer, Policy, State};
use policy::ports::PortSpec;
use policy::probe::ProbeEnd;
use policy::recommend::{KeptOut, Observation, Observations, Options, Recommendation, Shape};
use policy::selectors::Selector;
use policy::world::{Workload, World};
use time::Duration;

use crate::brute::{self, AT};
use crate::estate::{address, labels, row, seen};

fn world(groups: &[(&str, &str, usize)]) -> World {
    let mut workloads = Vec::new();
    for (role, env, count) in groups {
        for index in 0..*count {
            let name = format!("{role}-{env}-{index}");
            let of = labels(&[("role", role), ("env", env), ("hostname", &name)]);
            workloads.push(Workload::new(name, of, vec![address(workloads.len())]));
        }
    }
    World::new(vec!["10.0.0.0/16".parse().unwrap()], workloads)
}

fn pairs(from: &str, n: usize, to: &str, m: usize, protocol: u8, port: u16) -> Vec<Observation> {
    (0..n)
        .flat_map(|i| (0..m).map(move |j| (i, j)))
        .map(|(i, j)| {
            row(
                &format!("{from}-{i}"),
                &format!("{to}-{j}"),
                protocol,
                port,
                20,
            )
        })
        .filter(|row| row.source != row.destination)
        .collect()
}

fn policies(got: &Recommendation) -> Vec<&Policy> {
    let policies = got.objects.iter().filter_map(|object| match object {
        Object::Policy(policy) => Some(policy),
        _ => None,
    });
    policies.collect()
}

fn by_name<'a>(got: &'a Recommendation, name: &str) -> &'a Policy {
    let names: Vec<&str> = policies(got)
        .iter()
        .map(|policy| policy.metadata.name.as_str())
        .collect();
    policies(got)
        .into_iter()
        .find(|policy| policy.metadata.name == name)
        .unwrap_or_else(|| panic!("no {name} in {names:?}"))
}

#[test]
fn a_shop_gets_both_halves_by_role() {
    let world = world(&[("web", "prod", 3), ("db", "prod", 2), ("batch", "prod", 3)]);
    let rows = pairs("web-prod", 3, "db-prod", 2, 6, 5432);
    let got = brute::run(&world, &rows, &Options::default());
    assert_eq!(got.report.keys.keys, ["role"]);
    let db = by_name(&got, "recommended-db");
    assert_eq!(db.state, State::Staged);
    assert_eq!(db.subject, Selector::label("role", "db"));
    assert_eq!(db.egress, None);
    let [rule] = db.ingress.as_deref().unwrap() else {
        panic!("{db:#?}")
    };
    assert_eq!(
        rule.peers,
        [Peer::Selector {
            selector: Selector::label("role", "web")
        }]
    );
    assert_eq!(rule.ports, [PortSpec::port(6, 5432)]);
    let web = by_name(&got, "recommended-web");
    assert_eq!(web.ingress, None);
    assert_eq!(web.egress.as_ref().unwrap().len(), 1);
    assert_eq!(got.objects.len(), 2);
    let over = got.report.over_permission.unwrap();
    assert_eq!((over.allowed, over.seen), (6, 6));
    assert_eq!(
        db.metadata.description.as_deref(),
        Some("Recommended from 6 edges with 120 flows, seen 2029-12-22 to 2029-12-31.")
    );
    brute::check(&world, &rows, &got);
}

#[test]
fn environments_are_kept_apart_only_where_traffic_is() {
    let world = world(&[
        ("web", "prod", 4),
        ("web", "dev", 4),
        ("db", "prod", 4),
        ("db", "dev", 4),
    ]);
    let mut rows = pairs("web-prod", 4, "db-prod", 4, 6, 5432);
    rows.extend(pairs("web-dev", 4, "db-dev", 4, 6, 5432));
    let apart = brute::run(&world, &rows, &Options::default());
    assert_eq!(apart.report.keys.keys, ["env", "role"]);
    rows.extend(pairs("web-prod", 4, "db-dev", 4, 6, 5432));
    rows.extend(pairs("web-dev", 4, "db-prod", 4, 6, 5432));
    let together = brute::run(&world, &rows, &Options::default());
    assert_eq!(together.report.keys.keys, ["role"]);
    for change in &together.report.keys.changes {
        assert!(change.bits > 0, "{change:?}");
    }
    for got in [&apart, &together] {
        assert_eq!(got.report.over_permission.unwrap().percent(), 0.0);
    }
}

#[test]
fn names_of_single_workloads_are_a_last_resort() {
    let alike = |n: usize| {
        let workloads = (0..n).map(|i| {
            let name = format!("vm-{i}");
            Workload::new(
                name.clone(),
                labels(&[("hostname", &name), ("os", "linux")]),
                vec![address(i)],
            )
        });
        World::new(vec!["10.0.0.0/16".parse().unwrap()], workloads.collect())
    };
    let world = alike(6);
    let rows: Vec<_> = (0..10u16)
        .map(|i| {
            row(
                &format!("vm-{}", i % 6),
                &format!("vm-{}", (i * 5 + 2) % 6),
                6,
                80 + i,
                9,
            )
        })
        .filter(|row| row.source != row.destination)
        .collect();
    let got = brute::run(&world, &rows, &Options::default());
    assert_eq!(got.report.keys.keys, ["hostname"]);
    brute::check(&world, &rows, &got);
}

#[test]
fn rare_edges_are_called_out_unless_their_group_does_the_same() {
    let world = world(&[("web", "prod", 4), ("db", "prod", 3), ("batch", "prod", 3)]);
    let mut rows = pairs("web-prod", 4, "db-prod", 2, 6, 5432);
    let once = AT - Duration::days(20);
    // One of many that do the same, and one that is alone.
    rows.push(seen("web-prod-1", "db-prod-2", 6, 5432, 1, once, once));
    rows.push(seen("batch-prod-0", "db-prod-0", 6, 5432, 1, once, once));
    let long_ago = AT - Duration::days(90);
    rows.push(seen(
        "batch-prod-1",
        "web-prod-0",
        6,
        22,
        90,
        long_ago - Duration::days(3),
        long_ago,
    ));
    let got = brute::run(&world, &rows, &Options::default());
    let called: Vec<_> = got
        .report
        .called_out
        .iter()
        .map(|edge| (edge.from.as_str(), edge.reason))
        .collect();
    assert_eq!(
        called,
        [
            ("batch-prod-0", KeptOut::Rare),
            ("batch-prod-1", KeptOut::Stale)
        ]
    );
    assert_eq!(got.report.coverage.edges.part, 9);
    brute::check(&world, &rows, &got);
    let lenient = Options {
        min_flows: 1,
        min_periods: 1,
        stale_days: 0,
        ..Options::default()
    };
    let got = brute::run(&world, &rows, &lenient);
    assert_eq!(got.report.coverage.edges.part, 11);
    assert!(got.report.called_out.is_empty());
}

#[test]
fn infrastructure_comes_first_and_serves_everybody() {
    let world = world(&[
        ("web", "prod", 6),
        ("db", "prod", 4),
        ("dns", "prod", 2),
        ("mon", "prod", 1),
    ]);
    let names: Vec<String> = world.workloads().iter().map(Workload::full_name).collect();
    let mut rows = pairs("web-prod", 6, "db-prod", 4, 6, 5432);
    for name in &names {
        for server in ["dns-prod-0", "dns-prod-1"] {
            if name != server {
                rows.push(row(name, server, 17, 53, 40));
            }
        }
        if name != "mon-prod-0" {
            rows.push(row("mon-prod-0", name, 6, 9100, 300));
        }
        rows.push(row(name, "192.0.2.123", 17, 123, 30));
    }
    let got = brute::run(&world, &rows, &Options::default());
    let found: Vec<_> = got
        .report
        .infrastructure
        .iter()
        .map(|found| (found.name.as_str(), found.shape, found.many))
        .collect();
    assert_eq!(
        found,
        [
            ("dns", Shape::FanIn, 13),
            ("monitoring", Shape::FanOut, 12),
            ("ntp", Shape::FanIn, 13)
        ]
    );
    let clients = by_name(&got, "recommended-infra-dns-for-all");
    assert!(clients.subject.is_empty());
    assert!(clients.priority < by_name(&got, "recommended-db").priority);
    let servers = by_name(&got, "recommended-infra-dns-dns");
    let [rule] = servers.ingress.as_deref().unwrap() else {
        panic!()
    };
    assert_eq!(
        rule.peers,
        [Peer::Entity {
            entity: Entity::Managed
        }]
    );
    assert!(
        by_name(&got, "recommended-infra-monitoring-for-all")
            .ingress
            .is_some()
    );
    let ntp = by_name(&got, "recommended-infra-ntp-for-all");
    let [rule] = ntp.egress.as_deref().unwrap() else {
        panic!()
    };
    assert_eq!(
        rule.peers,
        [Peer::Cidr {
            cidr: "192.0.2.123/32".parse().unwrap(),
            except: vec![]
        }]
    );
    assert_eq!(got.report.coverage.edges.percent(), 100.0);
    assert_eq!(got.report.keys.keys, ["role"]);
    brute::check(&world, &rows, &got);
}

#[test]
fn a_scanner_is_named_and_kept_out() {
    let world = world(&[("web", "prod", 20), ("db", "prod", 20), ("scan", "prod", 1)]);
    let mut rows = pairs("web-prod", 20, "db-prod", 20, 6, 5432);
    rows.push(row("scan-prod-0", "web-prod-0", 6, 443, 50));
    rows.extend(pairs("db-prod", 3, "web-prod", 1, 6, 443));
    for host in 0..20 {
        for port in [21, 22, 23, 25, 445, 3389, 5432] {
            let mut probe = seen(
                "scan-prod-0",
                &format!("db-prod-{host}"),
                6,
                port,
                1,
                AT,
                AT,
            );
            probe.failed = u64::from(port != 5432);
            rows.push(probe);
        }
    }
    let got = brute::run(&world, &rows, &Options::default());
    let [scanner] = got.report.scanners.as_slice() else {
        panic!("{:?}", got.report.scanners)
    };
    assert_eq!(
        (scanner.source.as_str(), scanner.hosts, scanner.failed),
        ("scan-prod-0", 21, 120)
    );
    let set = brute::read_back(&got.objects);
    for row in &rows {
        let probe = row.failed > 0;
        assert!(!probe || !brute::allows(&world, &set, row), "{row:?}");
    }
    // What it does like others do stays wanted.
    assert!(brute::allows(
        &world,
        &set,
        &row("scan-prod-0", "web-prod-0", 6, 443, 1)
    ));
    assert_eq!(got.report.kept_out.get("scan"), Some(&120));
    brute::check(&world, &rows, &got);
}

#[test]
fn a_sweep_without_verdicts_is_a_scan_too() {
    let world = world(&[("web", "prod", 50), ("pc", "prod", 1)]);
    let mut rows = pairs("web-prod", 5, "web-prod", 5, 6, 80);
    for host in 0..50 {
        rows.push(seen(
            "pc-prod-0",
            &format!("web-prod-{host}"),
            6,
            445,
            1,
            AT,
            AT,
        ));
    }
    let got = brute::run(&world, &rows, &Options::default());
    assert_eq!(got.report.scanners.len(), 1);
    assert_eq!(got.report.kept_out.get("scan"), Some(&50));
}

#[test]
fn changing_ports_become_a_range_with_the_program() {
    let world = world(&[
        ("app", "prod", 4),
        ("files", "prod", 2),
        ("other", "prod", 3),
    ]);
    let mut rows = pairs("app-prod", 4, "files-prod", 2, 6, 21);
    for index in 0..12u16 {
        let when = AT - Duration::hours(i64::from(index) * 3 + 2);
        let from = format!("app-prod-{}", index % 4);
        let to = format!("files-prod-{}", index % 2);
        let mut passive = seen(&from, &to, 6, 49_200 + index * 97, 1, when, when);
        passive.process = Some("/usr/sbin/vsftpd".into());
        rows.push(passive);
    }
    let got = brute::run(&world, &rows, &Options::default());
    let rules = by_name(&got, "recommended-files").ingress.clone().unwrap();
    assert_eq!(rules.len(), 2, "{rules:#?}");
    let ranged = rules.iter().find(|rule| rule.name.is_some()).unwrap();
    assert_eq!(ranged.name.as_deref(), Some("changing ports of vsftpd"));
    let spec: Vec<String> = ranged.ports.iter().map(ToString::to_string).collect();
    assert_eq!(spec, ["tcp/49152-65535"]);
    assert_eq!(got.report.coverage.edges.percent(), 100.0);
}

#[test]
fn answers_recorded_as_openings_are_no_rules() {
    let world = world(&[("web", "prod", 3), ("db", "prod", 2)]);
    let mut rows = pairs("web-prod", 3, "db-prod", 2, 6, 5432);
    for port in [40_001, 40_002, 40_003] {
        let mut answer = row("db-prod-0", "web-prod-1", 6, port, 6);
        answer.source_port = Some(5432);
        rows.push(answer);
    }
    let got = brute::run(&world, &rows, &Options::default());
    assert_eq!(got.report.kept_out.get("reversed"), Some(&3));
    assert_eq!(by_name(&got, "recommended-db").egress, None);
}

#[test]
fn strangers_become_networks_and_only_wide_traffic_the_world() {
    let world = world(&[("web", "prod", 2), ("db", "prod", 2)]);
    let mut rows = Vec::new();
    for place in 0..100u8 {
        rows.push(row(
            &format!("{}.{place}.7.9", place % 50 + 20),
            "web-prod-0",
            6,
            443,
            9,
        ));
    }
    for host in 0..6 {
        rows.push(row("db-prod-0", &format!("203.0.113.{host}"), 6, 22, 9));
    }
    rows.push(row("db-prod-1", "10.0.77.3", 6, 3260, 9));
    rows.push(seen("db-prod-1", "198.51.100.1", 6, 22, 1, AT, AT));
    let got = brute::run(&world, &rows, &Options::default());
    let web = by_name(&got, "recommended-web").ingress.clone().unwrap();
    assert_eq!(
        web[0].peers,
        [Peer::Entity {
            entity: Entity::World
        }]
    );
    let db = by_name(&got, "recommended-db").egress.clone().unwrap();
    let nets: Vec<String> = db
        .iter()
        .flat_map(|rule| &rule.peers)
        .map(|peer| format!("{peer:?}"))
        .collect();
    assert_eq!(nets.len(), 2, "{nets:?}");
    assert!(
        nets.iter().any(|net| net.contains("203.0.113.0/29")),
        "{nets:?}"
    );
    assert!(
        nets.iter().any(|net| net.contains("10.0.77.3/32")),
        "{nets:?}"
    );
    let called: Vec<&str> = got
        .report
        .called_out
        .iter()
        .map(|edge| edge.to.as_str())
        .collect();
    assert_eq!(called, ["198.51.100.1"]);
    brute::check(&world, &rows, &got);
}

#[test]
fn a_recording_of_nothing_gives_nothing() {
    let world = world(&[("web", "prod", 2)]);
    let got = brute::run(&world, &[], &Options::default());
    assert!(got.objects.is_empty());
    assert_eq!(got.report.coverage.edges.whole, 0);
    let nobody = World::default();
    let got = brute::run(
        &nobody,
        &[row("192.0.2.1", "192.0.2.2", 6, 80, 9)],
        &Options::default(),
    );
    assert!(got.objects.is_empty());
}

#[test]
fn names_that_are_gone_are_told_and_too_many_edges_refused() {
    let world = world(&[("web", "prod", 2)]);
    let rows = [
        row("old-1", "web-prod-0", 6, 80, 7),
        row("web-prod-1", "web-prod-0", 6, 80, 7),
    ];
    let got = brute::run(&world, &rows, &Options::default());
    assert_eq!(got.report.unresolved.get("old-1"), Some(&7));
    let mut few = Observations::with_limit(&world, 1);
    few.add(&rows[1]).unwrap();
    few.add(&rows[1]).unwrap();
    let other = Observation {
        port: 81,
        destination: ProbeEnd::parse("web-prod-0"),
        ..rows[1].clone()
    };
    assert!(few.add(&other).is_err());
    assert_eq!(few.len(), 1);
}
