//! `policy`: without any server.

use std::fs;
use std::path::Path;

use crate::command::{Run, run, run_with_input};
use crate::expected;

const INVENTORY: &str = "\
managedNetworks: [10.0.0.0/16]
workloads:
  - name: web-1
    labels: {app: web}
    addresses: [10.0.0.5]
    mode: enforce
  - name: db-1
    labels: {app: db}
    addresses: [10.0.1.9]
    mode: enforce
  - name: db-2
    labels: {app: db}
    addresses: [10.0.1.10]
    mode: observe
";

const SHOP: &str = "\
apiVersion: cofferdam.dev/v1
kind: Policy
metadata: {name: shop-db}
spec:
  state: enforced
  subject: {app: db}
  ingress:
    - action: allow
      peers: [{selector: {app: web}}]
      ports: [{port: 5432}]
---
apiVersion: cofferdam.dev/v1
kind: Policy
metadata: {name: shop-web}
spec:
  state: staged
  subject: {app: web}
  egress:
    - action: allow
      peers: [{selector: {app: db}}]
tests:
  - {name: web reaches every database, from: {app: web}, to: {app: db}, port: 5432, expect: allow}
  - {name: ssh is closed, from: web-1, to: db-1, port: 22, expect: deny}
";

const PROBES: &str = r#"{"id": "p1", "from": "web-1", "to": "db-1", "protocol": "tcp", "port": 5432}
{"id": "p2", "from": "web-1", "to": "db-1", "protocol": "tcp", "port": 22}
{"id": "p3", "from": "web-1", "to": "db-2", "protocol": "tcp", "port": 22}
{"id": "p4", "from": "10.0.7.7", "to": "10.0.1.9", "protocol": "icmp", "type": 8, "code": 0}
{"id": "p5", "from": "192.0.2.1", "to": "198.51.100.1", "protocol": "udp", "port": 53}
"#;

fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("policies")).unwrap();
    fs::write(home.path().join("inv.yaml"), INVENTORY).unwrap();
    fs::write(home.path().join("policies/shop.yaml"), SHOP).unwrap();
    fs::write(home.path().join("probes.jsonl"), PROBES).unwrap();
    home
}

fn eval(home: &Path) -> Run {
    run(
        home,
        &[
            "policy",
            "eval",
            "--inventory",
            "inv.yaml",
            "--policy",
            "policies",
            "--probes",
            "probes.jsonl",
            "--at",
            "2026-11-23T10:00:00Z",
        ],
    )
}

#[test]
fn eval_answers_every_probe_in_order() {
    let home = home();
    let result = eval(home.path()).expect(0);
    assert_eq!(result.stderr, "");
    expected::check("eval.jsonl", &result.stdout);
    for line in result.stdout.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
}

#[test]
fn eval_reads_probes_from_stdin() {
    let home = home();
    let args = [
        "policy",
        "eval",
        "--inventory",
        "inv.yaml",
        "--policy",
        "policies",
        "--probes",
        "-",
    ];
    let result = run_with_input(home.path(), &args, PROBES).expect(0);
    expected::check("eval.jsonl", &result.stdout);
}

#[test]
fn bad_texts_show_file_line_and_column() {
    let home = home();
    let probes = PROBES.replace("\"icmp\"", "\"icpm\"");
    fs::write(home.path().join("probes.jsonl"), probes).unwrap();
    let result = eval(home.path()).expect(1);
    assert!(
        result.stderr.starts_with("probes.jsonl:4:1: error: "),
        "{result:?}"
    );
    assert_eq!(result.stdout, "");

    let bad = SHOP.replace("subject:", "subjct:");
    fs::write(home.path().join("policies/shop.yaml"), &bad).unwrap();
    for args in [
        &["policy", "check", "policies"][..],
        &["policy", "test", "policies", "--inventory", "inv.yaml"],
    ] {
        let result = run(home.path(), args).expect(1);
        assert!(
            result.stderr.contains("policies/shop.yaml:6:3: error: "),
            "{result:?}"
        );
        assert!(
            result.stderr.contains("did you mean \"subject\"?"),
            "{result:?}"
        );
    }
    let args = ["policy", "check", "-", "-o", "json"];
    let problems = run_with_input(home.path(), &args, &bad).expect(1).json();
    assert_eq!(problems["problems"][0]["file"], "<stdin>");
    let lines = problems["problems"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["line"].as_u64());
    assert!(lines.into_iter().any(|line| line == Some(6)), "{problems}");

    fs::write(home.path().join("latin.yaml"), b"a: \xe4\n").unwrap();
    let result = run(home.path(), &["policy", "check", "latin.yaml"]).expect(1);
    assert!(
        result
            .stderr
            .contains("latin.yaml:1:4: error: this byte is not UTF-8"),
        "{result:?}"
    );
    let result = run(home.path(), &["policy", "check", "none.yaml"]).expect(1);
    assert!(
        result.stderr.contains("cannot read none.yaml"),
        "{result:?}"
    );
}

#[test]
fn check_says_that_all_is_well() {
    let home = home();
    let result = run(home.path(), &["policy", "check", "policies"]).expect(0);
    assert_eq!(result.stdout, "2 objects in 1 file: no problem\n");
}

#[test]
fn tests_in_policies_pass_and_fail() {
    let home = home();
    let args = ["policy", "test", "policies", "--inventory", "inv.yaml"];
    let result = run(home.path(), &args).expect(0);
    expected::check("test-pass.txt", &result.stdout);
    let same = [
        "policy",
        "test",
        "--inventory",
        "inv.yaml",
        "--policy",
        "policies",
    ];
    assert_eq!(run(home.path(), &same).expect(0).stdout, result.stdout);

    let wrong = SHOP.replace("port: 22, expect: deny", "port: 22, expect: allow");
    fs::write(home.path().join("policies/shop.yaml"), wrong).unwrap();
    let result = run(home.path(), &args).expect(1);
    expected::check("test-fail.txt", &result.stdout);
    let result = run(home.path(), &[&args[..], &["-o", "json"]].concat()).expect(1);
    expected::check("test-fail.json", &result.stdout);
}

#[test]
fn explain_walks_both_ends() {
    let home = home();
    let args = [
        "policy",
        "explain",
        "--inventory",
        "inv.yaml",
        "--policy",
        "policies",
        "--at",
        "2026-11-23T10:00:00Z",
        "web-1",
        "db-1",
        "22",
    ];
    let result = run(home.path(), &args).expect(0);
    expected::check("policy-explain.txt", &result.stdout);
    let json = run(home.path(), &[&args[..], &["-o", "json"]].concat()).expect(0);
    let json = json.json();
    assert_eq!(
        (&json["enforced"], &json["port"]),
        (&"deny".into(), &"22/tcp".into())
    );
    assert!(json["walk"]["ingress"]["tiers"].is_array(), "{json}");
    let wrong = args.map(|arg| if arg == "web-1" { "web-2" } else { arg });
    let result = run(home.path(), &wrong).expect(1);
    assert!(
        result.stderr.contains("there is no workload \"web-2\""),
        "{result:?}"
    );
}

#[test]
fn a_test_that_means_nobody_fails() {
    let home = home();
    let result = run(home.path(), &["policy", "test", "policies"]).expect(1);
    assert!(
        result.stdout.contains("\"from\" selects no workload"),
        "{result:?}"
    );
}

#[test]
fn a_recorded_flow_is_explained_then_and_now() {
    let home = home();
    let record = r#"{"uid": "u-9", "host": "db-1", "last_seen": "2026-11-22T10:00:00Z", "direction": "ingress", "protocol": "tcp", "initiator": {"address": "10.0.0.5", "port": 40000, "workload": "old-1"}, "responder": {"address": "10.0.1.9", "port": 22, "workload": "db-1"}, "verdict": "allow", "enforced": "allow", "draft": "deny", "rule": "standard/ssh/ingress[0]", "revision": 7}"#;
    let args = |flow| {
        let args = [
            "policy",
            "explain",
            "--inventory",
            "inv.yaml",
            "--policy",
            "policies",
        ];
        [&args[..], &["--flow", flow]].concat()
    };
    let result = run_with_input(home.path(), &args("-"), record).expect(0);
    for wanted in [
        "then, ingress of db-1 (revision 7, 2026-11-22T10:00:00.000Z): allow by standard/ssh/ingress[0] (reason none)",
        "  the peer was old-1 then; its address is web-1's now",
        "  verdict: allow then, deny now",
        "  rule: standard/ssh/ingress[0] then, which is there no more; standard/shop-db/ingress (default deny) now",
        "web-1 (10.0.0.5) → db-1 (10.0.1.9), tcp port 22",
    ] {
        assert!(result.stdout.contains(wanted), "{result:?}\nlacks {wanted}");
    }
    let json = run(home.path(), &[&args(record)[..], &["-o", "json"]].concat())
        .expect(0)
        .json();
    assert_eq!(
        (&json["past"]["revision"], &json["past"]["direction"]),
        (&7.into(), &"ingress".into())
    );
    let same = record
        .replace("old-1", "web-1")
        .replace("\"allow\"", "\"deny\"")
        .replace(
            "standard/ssh/ingress[0]",
            "standard/shop-db/ingress (default deny)",
        );
    let result = run(home.path(), &args(&same)).expect(0);
    assert!(result.stdout.contains("now: the same"), "{result:?}");
    let result = run(home.path(), &args("{}")).expect(1);
    assert!(
        result.stderr.contains("this is no recorded flow: "),
        "{result:?}"
    );
    let both = [&args("-")[..], &["web-1", "db-1", "22"]].concat();
    run(home.path(), &both).expect(1);
}
