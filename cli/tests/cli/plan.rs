//! `plan`: a change against recorded traffic, from files and from a controller.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use crate::command::{Run, run, run_with_input};
use crate::expected;
use crate::fake::{Behaviour, Fake};

const INVENTORY: &str = "\
managedNetworks: [10.0.0.0/16]
workloads:
  - {name: web-1, labels: {app: web}, addresses: [10.0.0.5]}
  - {name: web-2, labels: {app: web}, addresses: [10.0.0.6]}
  - {name: db-1, labels: {app: db}, addresses: [10.0.1.9]}
";

const BASE: &str = "\
apiVersion: cofferdam.dev/v1
kind: Policy
metadata: {name: shop-db}
spec:
  state: enforced
  subject: {app: db}
  ingress:
    - action: allow
      peers: [{selector: {app: web}}, {cidr: 192.0.2.0/24}]
---
apiVersion: cofferdam.dev/v1
kind: Policy
metadata: {name: out}
spec:
  state: enforced
  subject: all
  egress: [{action: allow}]
";

/// Narrower, and with a rule that nobody needs.
const CHANGE: &str = "\
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
    - action: allow
      peers: [{cidr: 203.0.113.0/24}]
      ports: [{port: 443}]
";

fn flow(uid: &str, from: &str, workload: &str, port: u16, last: &str, verdict: &str) -> String {
    let workload = match workload {
        "" => "null".to_owned(),
        name => format!("\"{name}\""),
    };
    format!(
        r#"{{"uid": "{uid}", "host": "db-1", "first_seen": "2026-08-01T10:00:00Z", "last_seen": "{last}", "direction": "ingress", "protocol": "tcp", "icmp_type": null, "icmp_code": null, "initiator": {{"address": "{from}", "port": 40000, "workload": {workload}}}, "responder": {{"address": "10.0.1.9", "port": {port}, "workload": "db-1"}}, "packets_out": 3, "bytes_out": 180, "packets_in": 2, "bytes_in": 120, "state": "established", "closed": true, "verdict": "{verdict}", "enforced": "{verdict}", "draft": "{verdict}", "rule": null, "draft_rule": null, "reason": null, "denial": false, "adopted": false, "process": {{"pid": 7, "name": "postgres", "executable": null, "unit": "postgresql.service"}}, "peer_identity": 300, "generation": 7, "revision": 12}}"#
    )
}

fn flows() -> String {
    [
        flow(
            "a",
            "10.0.0.5",
            "web-1",
            5432,
            "2026-11-23T10:00:00Z",
            "allow",
        ),
        flow(
            "b",
            "10.0.0.5",
            "web-1",
            22,
            "2026-11-22T10:00:00Z",
            "allow",
        ),
        flow(
            "b",
            "10.0.0.5",
            "web-1",
            22,
            "2026-11-22T10:00:00Z",
            "allow",
        ),
        flow(
            "c",
            "10.0.0.6",
            "web-2",
            22,
            "2026-11-22T09:00:00Z",
            "allow",
        ),
        flow("d", "192.0.2.7", "", 8443, "2026-08-01T10:00:00Z", "allow"),
        flow(
            "e",
            "10.0.0.99",
            "old-1",
            22,
            "2026-11-01T10:00:00Z",
            "allow",
        ),
        flow("f", "198.51.100.9", "", 22, "2026-11-20T10:00:00Z", "deny"),
        "{\"missed\": 17}".to_owned(),
    ]
    .join("\n")
        + "\n"
}

fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("base")).unwrap();
    for (name, text) in [
        ("inv.yaml", INVENTORY),
        ("base/all.yaml", BASE),
        ("change.yaml", CHANGE),
        ("flows.jsonl", &flows()),
    ] {
        fs::write(home.path().join(name), text).unwrap();
    }
    home
}

const ARGS: &[&str] = &[
    "plan",
    "change.yaml",
    "--inventory",
    "inv.yaml",
    "--base",
    "base",
    "--flows",
    "flows.jsonl",
    "--at",
    "2026-11-24T00:00:00Z",
];

fn planned(home: &Path, more: &[&str]) -> Run {
    run(home, &[ARGS, more].concat())
}

#[test]
fn a_plan_tells_what_breaks_first() {
    let home = home();
    let result = planned(home.path(), &[]).expect(2);
    assert_eq!(result.stderr, "");
    expected::check("plan.txt", &result.stdout);
    let result = planned(home.path(), &["-o", "json"]).expect(2);
    expected::check("plan.json", &result.stdout);
    let result = planned(home.path(), &["-o", "markdown"]).expect(2);
    expected::check("plan.md", &result.stdout);
    let yaml = planned(home.path(), &["-o", "yaml"]).expect(2);
    assert!(yaml.stdout.contains("newly-blocked"), "{yaml:?}");
    let result = planned(home.path(), &["-o", "name"]).expect(1);
    assert!(result.stderr.contains("use -o json"), "{result:?}");
}

#[test]
fn the_exit_code_is_what_the_flags_forbid() {
    let home = home();
    for (flags, code) in [
        (&["--fail-on", "none"][..], 0),
        (&["--fail-on", "newly-allowed,draft-allowed"], 0),
        (&["--fail-on", "draft-blocked"], 0),
        (&["--fail-on", "newly-allowed,newly-blocked"], 2),
        (&["--fail-on", "unused-rule"], 2),
        (&["--fail-on", "gone"], 2),
        (&["--fail-on", "all"], 1),
        (&["--since", "tomorrow"], 1),
        (&["--since", "12h", "--fail-on", "gone"], 0),
        (&["--flows", "none.jsonl"], 1),
    ] {
        planned(home.path(), flags).expect(code);
    }
    // The change turned round allows what the base denies, and what the base is, is no change.
    let args = [
        "plan",
        "base",
        "--inventory",
        "inv.yaml",
        "--flows",
        "flows.jsonl",
    ];
    let round = [
        &args[..],
        &[
            "--base",
            "change.yaml",
            "base/out.yaml",
            "--at",
            "2026-11-24T00:00:00Z",
        ],
    ]
    .concat();
    let out = BASE.split("---\n").nth(1).unwrap();
    fs::write(home.path().join("base/out.yaml"), out).unwrap();
    fs::write(
        home.path().join("base/all.yaml"),
        BASE.split("---\n").next().unwrap(),
    )
    .unwrap();
    let result = run(home.path(), &round).expect(0);
    assert!(
        result.stdout.contains("  newly-allowed  3 edges"),
        "{result:?}"
    );
    run(
        home.path(),
        &[&round[..], &["--fail-on", "newly-allowed"]].concat(),
    )
    .expect(2);
    let same = [
        &args[..],
        &["--base", "base", "--at", "2026-11-24T00:00:00Z"],
    ]
    .concat();
    let result = run(home.path(), &same).expect(0);
    assert!(result.stdout.starts_with("no change\n"), "{result:?}");
    let json = run(home.path(), &[&same[..], &["-o", "json"]].concat())
        .expect(0)
        .json();
    assert_eq!(json["edges"].as_array().unwrap().len(), 0);
}

#[test]
fn staged_policy_changes_the_draft_only() {
    let home = home();
    let staged = CHANGE
        .replace("name: shop-db", "name: shop-db-2")
        .replace("state: enforced", "replaces: shop-db");
    fs::write(home.path().join("change.yaml"), staged).unwrap();
    let result = planned(home.path(), &[]).expect(0);
    assert!(
        result.stdout.contains("  draft-blocked  3 edges"),
        "{result:?}"
    );
    planned(home.path(), &["--fail-on", "draft-blocked"]).expect(2);
}

#[test]
fn objects_can_go() {
    let home = home();
    let args = [
        "plan",
        "--inventory",
        "inv.yaml",
        "--base",
        "base",
        "--flows",
        "flows.jsonl",
    ];
    let delete = |id: &str| run(home.path(), &[&args[..], &["--delete", id]].concat());
    let result = delete("Policy/out").expect(2);
    assert!(result.stdout.starts_with("- Policy/out\n"), "{result:?}");
    assert!(
        result.stdout.contains("default-deny (egress)"),
        "{result:?}"
    );
    let result = delete("Policy/shop-bd").expect(1);
    assert!(
        result.stderr.contains("did you mean \"Policy/shop-db\"?"),
        "{result:?}"
    );
    let result = planned(home.path(), &["--prune", "-o", "json"])
        .expect(2)
        .json();
    assert_eq!(
        result["changes"][0],
        serde_json::json!({"kind": "Policy", "name": "out", "change": "removed", "fields": []})
    );
    let result = run(home.path(), &args).expect(1);
    assert!(result.stderr.contains("<FILE|DIR>"), "{result:?}");
}

#[test]
fn every_form_of_recorded_traffic_gives_the_same_plan() {
    let home = home();
    let json = |flows: &str, input: &str| {
        let mut args = ARGS.to_vec();
        args[7] = flows;
        let run = run_with_input(home.path(), &[&args[..], &["-o", "json"]].concat(), input);
        let mut json = run.expect(2).json();
        json["input"] = serde_json::Value::Null;
        json
    };
    let expected = json("flows.jsonl", "");
    assert_eq!(json("-", &flows()), expected);

    let mut zipped = Vec::new();
    let mut writer = flate2::write::GzEncoder::new(&mut zipped, flate2::Compression::fast());
    writer.write_all(flows().as_bytes()).unwrap();
    writer.finish().unwrap();
    fs::write(home.path().join("flows.jsonl.gz"), zipped).unwrap();
    assert_eq!(json("flows.jsonl.gz", ""), expected);

    let records: Vec<serde_json::Value> = flows()
        .lines()
        .filter(|line| !line.contains("missed"))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let document = serde_json::json!({"flows": records, "truncated": false});
    assert_eq!(json("-", &document.to_string()), expected);
    assert_eq!(
        json("-", &serde_json::to_string_pretty(&document).unwrap()),
        expected
    );
}

#[test]
fn what_the_cli_prints_is_read_again() {
    let fake = Fake::start(Behaviour::default());
    for verb in ["flows", "edges"] {
        let printed = fake.run(&[verb, "-o", "json"]).expect(0).stdout;
        fs::write(fake.home().join("inv.yaml"), INVENTORY).unwrap();
        fs::write(fake.home().join("change.yaml"), CHANGE).unwrap();
        let args = [
            "plan",
            "change.yaml",
            "--inventory",
            "inv.yaml",
            "--flows",
            "-",
            "-o",
            "json",
        ];
        let json = run_with_input(fake.home(), &args, &printed)
            .expect(0)
            .json();
        let rows = serde_json::from_str::<serde_json::Value>(&printed).unwrap()[verb]
            .as_array()
            .unwrap()
            .len();
        assert_eq!(json["input"]["records"], rows, "{verb}: {json}");
    }
}

#[test]
fn bad_records_are_named_and_never_dropped_in_silence() {
    let home = home();
    let bad = flows().replacen("\"port\": 22", "\"port\": 70022", 1);
    fs::write(home.path().join("flows.jsonl"), bad).unwrap();
    let result = planned(home.path(), &[]).expect(1);
    assert!(
        result.stderr.starts_with("error: flows.jsonl:2: column "),
        "{result:?}"
    );
    assert!(result.stderr.contains("--skip-bad"), "{result:?}");
    assert_eq!(result.stdout, "");
    let result = planned(home.path(), &["--skip-bad"]).expect(2);
    assert!(
        result.stdout.contains("note: 1 bad records were left out"),
        "{result:?}"
    );
    assert!(
        result.stdout.contains("left out: flows.jsonl:2: "),
        "{result:?}"
    );
    let result = planned(home.path(), &["--skip-bad", "--max-edges", "2"]).expect(1);
    assert!(
        result.stderr.contains("more than 2 different edges"),
        "{result:?}"
    );
}

#[test]
fn bad_policy_changes_nothing_and_says_where() {
    let home = home();
    fs::write(
        home.path().join("change.yaml"),
        CHANGE.replace("ports:", "prots:"),
    )
    .unwrap();
    let result = planned(home.path(), &[]).expect(1);
    assert!(
        result.stderr.contains("change.yaml:10:7: error: "),
        "{result:?}"
    );
    fs::write(
        home.path().join("change.yaml"),
        format!("{CHANGE}---\n{CHANGE}"),
    )
    .unwrap();
    let result = planned(home.path(), &[]).expect(1);
    assert!(
        result
            .stderr
            .contains("there are two objects Policy/shop-db"),
        "{result:?}"
    );
}

#[test]
fn against_a_controller() {
    let text = |kind: &str, name: &str, spec: &str| {
        [
            kind.to_owned(),
            name.to_owned(),
            format!(
                "apiVersion: cofferdam.dev/v1\nkind: {kind}\nmetadata: {{name: {name}, labels: {{app: web}}}}\nspec: {spec}\n"
            ),
        ]
    };
    let fake = Fake::start(Behaviour {
        stored: vec![
            text(
                "Policy",
                "shop-db",
                "{state: enforced, subject: {tier: db}, ingress: [{action: allow}]}",
            ),
            text(
                "Policy",
                "out",
                "{state: enforced, subject: all, egress: [{action: allow}]}",
            ),
            text("Workload", "web-1", "{addresses: [10.0.0.5]}"),
        ],
        page: 1,
        ..Behaviour::default()
    });
    let change = CHANGE
        .replace("{app: db}", "{tier: db}")
        .replace("5432", "5433");
    fs::write(fake.home().join("change.yaml"), change).unwrap();
    let run = fake.run(&["plan", "change.yaml", "-o", "json"]).expect(2);
    let json = run.json();
    let edge = &json["edges"][0];
    assert_eq!(edge["classes"][0], "newly-blocked", "{json}");
    assert_eq!(
        (&edge["from"]["workload"], &edge["flows"]),
        (&"web-1".into(), &42.into())
    );
    assert_eq!(edge["to"]["labels"]["tier"], "db");
}

#[test]
fn a_missing_half_is_printed_ready_to_apply_and_who_comes_further_is_told() {
    let home = home();
    let closed = BASE.replace(
        "subject: all\n  egress: [{action: allow}]",
        "subject: {app: web}\n  egress: []",
    );
    fs::write(home.path().join("base/all.yaml"), closed).unwrap();
    let staged = CHANGE
        .replace("name: shop-db", "name: shop-db-2")
        .replace("state: enforced", "state: staged\n  priority: 10");
    fs::write(home.path().join("change.yaml"), &staged).unwrap();
    planned(home.path(), &["--fail-on", "missing-half"]).expect(2);
    planned(home.path(), &["--fail-on", "widened,draft-widened"]).expect(0);
    let result = planned(home.path(), &["--fail-on", "none"]).expect(0);
    let wanted = "missing half: standard/shop-db-2/ingress[0] allows what the egress of the other end denies (standard/out/egress (default deny)), as from web-1 to db-1, 2 pairs; the missing half, staged:";
    assert!(result.stdout.contains(wanted), "{result:?}");
    let json = planned(home.path(), &["--fail-on", "none", "-o", "json"])
        .expect(0)
        .json();
    let half = json["missing_halves"][0]["yaml"].as_str().unwrap();
    fs::write(
        home.path().join("change.yaml"),
        format!("{staged}---\n{half}"),
    )
    .unwrap();
    let flags = ["--fail-on", "missing-half,draft-widened,draft-allowed"];
    let result = planned(home.path(), &flags).expect(2);
    assert!(
        result
            .stdout
            .contains("forbidden by --fail-on: draft-allowed"),
        "{result:?}"
    );
    assert!(
        result.stdout.contains(
            "  draft widened  2 pairs of workloads more could talk, 0 of them never seen to"
        ),
        "{result:?}"
    );
    assert!(
        result.stdout.contains("web-1     0/0       0/0 → 1/1"),
        "{result:?}"
    );
    let page = planned(home.path(), &["-o", "markdown"]).expect(0).stdout;
    assert!(page.contains("| `web-2` | 0/0 | 0/0 → 1/1 |"), "{page}");
}
