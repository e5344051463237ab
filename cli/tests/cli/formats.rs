//! What the reading verbs print, for people and for machines.

use crate::expected;
use crate::fake::{Behaviour, Fake};

/// Every reading verb with its expected files' name.
const VERBS: &[(&str, &[&str])] = &[
    ("get", &["get"]),
    ("history", &["history"]),
    ("workloads", &["workloads"]),
    ("status", &["status"]),
    ("flows", &["flows"]),
    ("edges", &["edges"]),
    ("findings", &["findings"]),
    ("explain", &["explain", "web-1", "db-1", "5432"]),
];

#[test]
fn tables() {
    let fake = Fake::start(Behaviour::default());
    for (name, args) in VERBS {
        let run = fake.run(args).expect(0);
        assert_eq!(run.stderr, "", "{name}");
        assert!(!run.stdout.contains('\u{1b}'), "no colour, no escapes");
        expected::check(&format!("{name}.txt"), &run.stdout);
    }
}

#[test]
fn json_documents() {
    let fake = Fake::start(Behaviour::default());
    for (name, args) in VERBS {
        let run = fake.run(&[args, &["-o", "json"][..]].concat()).expect(0);
        run.json();
        expected::check(&format!("{name}.json"), &run.stdout);
    }
}

#[test]
fn names_and_yaml() {
    let fake = Fake::start(Behaviour::default());
    let run = fake.run(&["get", "-o", "name"]).expect(0);
    assert_eq!(run.stdout, "Policy/shop-db\nPolicy/shop-web\n");
    let run = fake.run(&["workloads", "-o", "name"]).expect(0);
    assert_eq!(run.stdout, "db-1\nweb-1\n");
    let run = fake.run(&["edges", "-o", "name"]).expect(1);
    assert!(run.stderr.contains("use -o json"), "{run:?}");
    let run = fake.run(&["workloads", "-o", "yaml"]).expect(0);
    expected::check("workloads.yaml", &run.stdout);
    let run = fake
        .run(&["get", "policy", "shop-db", "-o", "yaml"])
        .expect(0);
    expected::check("get.yaml", &run.stdout);
}

#[test]
fn get_takes_what_it_prints_as_a_name() {
    let fake = Fake::start(Behaviour::default());
    let run = fake
        .run(&["get", "Policy/shop-web", "-o", "name"])
        .expect(0);
    assert_eq!(run.stdout, "Policy/shop-web\n");
    let run = fake.run(&["get", "policy", "shop"]).expect(1);
    assert!(
        run.stderr
            .starts_with("error: there is no Policy named shop\nnext: "),
        "{run:?}"
    );
}

#[test]
fn lists_are_gathered_over_pages() {
    let fake = Fake::start(Behaviour {
        page: 1,
        ..Behaviour::default()
    });
    let run = fake.run(&["workloads", "-o", "name"]).expect(0);
    assert_eq!(run.stdout, "db-1\nweb-1\n");
    assert_eq!(fake.seen().len(), 2);
    let run = fake.run(&["flows", "--limit", "2", "-o", "json"]).expect(0);
    let json = run.json();
    assert_eq!(json["flows"].as_array().unwrap().len(), 2);
    assert_eq!(json["truncated"], true);
    let run = fake.run(&["flows", "--limit", "2"]).expect(0);
    assert!(run.stderr.contains("--limit"), "{run:?}");
}

#[test]
fn what_hosts_say_cannot_drive_the_terminal() {
    let fake = Fake::start(Behaviour {
        hostile: true,
        ..Behaviour::default()
    });
    let run = fake.run(&["flows"]).expect(0);
    assert_eq!(run.stdout.lines().count(), 3, "{run:?}");
    assert!(run.stdout.contains("web\\u{1b}[2J"), "{run:?}");
    assert!(run.stdout.contains("one two"), "{run:?}");
    let run = fake.run(&["flows", "-o", "json"]).expect(0);
    assert_eq!(
        run.json()["flows"][0]["initiator"]["workload"],
        "web\u{1b}[2J"
    );
}

#[test]
fn filters_reach_the_server() {
    let fake = Fake::start(Behaviour::default());
    let args = [
        "--workload",
        "web-1",
        "--peer",
        "10.0.1.9",
        "--port",
        "53/udp",
        "--denied",
    ];
    for verb in ["flows", "edges"] {
        fake.run(&[&[verb], &args[..]].concat()).expect(0);
        let seen = fake.seen().pop().unwrap();
        for part in [
            "workload: \"web-1\"",
            "peer: \"10.0.1.9\"",
            "port: 53",
            "protocol: 17",
            "denied_only: true",
        ] {
            assert!(seen.contains(part), "{verb}: {seen}");
        }
    }
}

#[test]
fn explain_sends_protocol_and_port() {
    let fake = Fake::start(Behaviour::default());
    fake.run(&["explain", "web-1", "10.0.1.9", "8/icmp"])
        .expect(0);
    let seen = fake.seen().pop().unwrap();
    assert!(seen.contains("protocol: 1, port: 2048"), "{seen}");
}

#[test]
fn a_stored_record_is_explained() {
    let fake = Fake::start(Behaviour {
        stored: vec![[
            "Policy".into(),
            "p".into(),
            "apiVersion: cofferdam.dev/v1\nkind: Policy\nmetadata: {name: p}\nspec: {subject: all, ingress: []}\n".into(),
        ]],
        page: 1,
        ..Behaviour::default()
    });
    let run = fake.run(&["explain", "--record", "u-2"]).expect(0);
    assert!(
        run.stdout
            .starts_with("then, ingress of db-host (revision 12, "),
        "{run:?}"
    );
    let asked = fake
        .seen()
        .into_iter()
        .find(|seen| seen.starts_with("ExplainRequest"));
    let asked = asked.unwrap();
    assert!(
        asked.contains("from: \"10.0.0.5\", to: \"10.0.1.9\""),
        "{asked}"
    );
    let run = fake.run(&["explain", "--record", "u-"]).expect(1);
    assert!(run.stderr.contains("begins with u-"), "{run:?}");
    let run = fake.run(&["explain", "--record", "x"]).expect(1);
    assert!(run.stderr.contains("no flow with the id x"), "{run:?}");
}
