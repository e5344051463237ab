//! `recommend`: staged policy from recorded traffic, from files and from a controller.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::command::{Run, run};
use crate::expected;
use crate::fake::{Behaviour, Fake};

const INVENTORY: &str = "\
managedNetworks: [10.0.0.0/16]
workloads:
  - {name: web-1, labels: {app: web, host: web-1}, addresses: [10.0.0.5]}
  - {name: web-2, labels: {app: web, host: web-2}, addresses: [10.0.0.6]}
  - {name: web-3, labels: {app: web, host: web-3}, addresses: [10.0.0.7]}
  - {name: db-1, labels: {app: db, host: db-1}, addresses: [10.0.1.9]}
  - {name: db-2, labels: {app: db, host: db-2}, addresses: [10.0.1.10]}
";

fn flow(uid: u32, from: &str, to: &str, port: u16, hour: u32, answered: bool) -> String {
    let end = |name: &str| {
        let (workload, address) = match name {
            "web-1" => ("\"web-1\"", "10.0.0.5"),
            "web-2" => ("\"web-2\"", "10.0.0.6"),
            "web-3" => ("\"web-3\"", "10.0.0.7"),
            "db-1" => ("\"db-1\"", "10.0.1.9"),
            "db-2" => ("\"db-2\"", "10.0.1.10"),
            address => ("null", address),
        };
        format!("\"address\": \"{address}\", \"workload\": {workload}")
    };
    let packets_in = u32::from(answered) * 5;
    format!(
        r#"{{"uid": "{uid}", "host": "{to}", "first_seen": "2026-11-23T{hour:02}:00:00Z", "last_seen": "2026-11-23T{hour:02}:00:09Z", "direction": "ingress", "protocol": "tcp", "icmp_type": null, "icmp_code": null, "initiator": {{{}, "port": 40000}}, "responder": {{{}, "port": {port}}}, "packets_out": 6, "bytes_out": 600, "packets_in": {packets_in}, "bytes_in": 900, "closed": true, "verdict": "allow", "enforced": "allow", "draft": "deny", "process": null}}"#,
        end(from),
        end(to)
    )
}

fn flows() -> String {
    let mut text = String::new();
    let mut uid = 0;
    let mut add = |from: &str, to: &str, port: u16, hour: u32, answered: bool| {
        uid += 1;
        let line = flow(uid, from, to, port, hour, answered);
        // A flow is told of more than once, and counts once.
        writeln!(text, "{line}\n{line}").unwrap();
    };
    for hour in 8..12 {
        for web in ["web-1", "web-2", "web-3"] {
            for db in ["db-1", "db-2"] {
                add(web, db, 5432, hour, true);
            }
            add("192.0.2.7", web, 443, hour, true);
        }
    }
    add("db-1", "web-1", 22, 9, true);
    for hour in 8..12 {
        add("web-2", "db-1", 3306, hour, false);
    }
    text
}

fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("inv.yaml"), INVENTORY).unwrap();
    fs::write(home.path().join("flows.jsonl"), flows()).unwrap();
    home
}

const ARGS: &[&str] = &[
    "recommend",
    "--inventory",
    "inv.yaml",
    "--flows",
    "flows.jsonl",
];

fn recommended(home: &Path, more: &[&str]) -> Run {
    run(home, &[ARGS, more].concat())
}

#[test]
fn policies_go_to_stdout_and_the_report_to_stderr() {
    let home = home();
    let result = recommended(home.path(), &[]).expect(0);
    expected::check("recommend.yaml", &result.stdout);
    expected::check("recommend.txt", &result.stderr);
    let result = recommended(home.path(), &["-o", "json"]).expect(0);
    assert_eq!(result.stderr, "");
    expected::check("recommend.json", &result.stdout);
    let result = recommended(home.path(), &["-o", "markdown"]).expect(0);
    expected::check("recommend.md", &result.stdout);
    let result = recommended(home.path(), &["-o", "name"]).expect(0);
    assert_eq!(
        result.stdout,
        "Policy/recommended-db\nPolicy/recommended-web\n"
    );
}

#[test]
fn the_answer_is_ready_for_check_and_plan() {
    let home = home();
    let result = recommended(home.path(), &["--out", "new", "--owner", "team-shop"]).expect(0);
    assert_eq!(result.stdout, "");
    run(home.path(), &["policy", "check", "new"]).expect(0);
    let files: Vec<_> = fs::read_dir(home.path().join("new")).unwrap().collect();
    assert_eq!(files.len(), 2);
    // Everything that got a rule passes with the policies in force; what got none is dropped.
    let yaml = recommended(home.path(), &[]).expect(0).stdout;
    let enforced = yaml.replace("state: staged", "state: enforced");
    fs::write(home.path().join("enforced.yaml"), enforced).unwrap();
    let plan = [
        "plan",
        "enforced.yaml",
        "--inventory",
        "inv.yaml",
        "--flows",
        "flows.jsonl",
        "--fail-on",
        "none",
    ];
    let all = run(home.path(), &[&plan[..], &["-o", "json"]].concat())
        .expect(0)
        .json();
    assert_eq!(all["rules"].as_array().unwrap().len(), 3, "{all:#}");
    // The same again is no harm; other content is not overwritten.
    recommended(home.path(), &["--out", "new", "--owner", "team-shop"]).expect(0);
    let refused = recommended(home.path(), &["--out", "new", "--owner", "others"]).expect(1);
    assert!(refused.stderr.contains("is there already"), "{refused:?}");
    // With them, nothing is left to recommend.
    let again = recommended(home.path(), &["--policy", "new"]).expect(0);
    assert_eq!(again.stdout, "");
}

#[test]
fn flags_choose_what_counts() {
    let home = home();
    let all = recommended(home.path(), &["--min-seen", "1", "--min-hours", "1"]).expect(0);
    assert!(all.stdout.contains("port: 22"), "{all:?}");
    let part = recommended(home.path(), &["--subject", "app=web"]).expect(0);
    assert!(!part.stdout.contains("recommended-db"), "{part:?}");
    let none = recommended(home.path(), &["--since", "2026-11-23T20:00:00Z"]).expect(0);
    assert!(none.stderr.contains("there is no traffic"), "{none:?}");
    let early = recommended(home.path(), &["--until", "2026-11-23T08:30:00Z"]).expect(0);
    assert!(early.stderr.contains("rare"), "{early:?}");
    let named = recommended(home.path(), &["--prefix", "draft"]).expect(0);
    assert!(named.stdout.contains("name: draft-web"), "{named:?}");
    for bad in [
        &["--subject", "=web"][..],
        &["--prefix", "a b"],
        &["--since", "tomorrow"],
        &["--max-edges", "2"],
        &["--flows", "none.jsonl"],
        &["--policy", "none.yaml"],
    ] {
        let result = recommended(home.path(), bad).expect(1);
        assert_eq!(result.stdout, "", "{bad:?}");
        assert!(result.stderr.contains("error"), "{bad:?}: {result:?}");
    }
    let bad = home.path().join("bad.jsonl");
    fs::write(&bad, flows() + "{\"uid\": 1}\n").unwrap();
    let args = [
        "recommend",
        "--inventory",
        "inv.yaml",
        "--flows",
        "bad.jsonl",
    ];
    let result = run(home.path(), &args).expect(1);
    assert!(result.stderr.contains("bad.jsonl:"), "{result:?}");
    let result = run(home.path(), &[&args[..], &["--skip-bad"]].concat()).expect(0);
    assert!(
        result.stderr.contains("1 bad records were left out"),
        "{result:?}"
    );
}

#[test]
fn the_order_of_the_flows_does_not_matter() {
    let home = home();
    let first = recommended(home.path(), &["-o", "json"]).expect(0).stdout;
    let mut lines: Vec<String> = flows().lines().map(str::to_owned).collect();
    lines.reverse();
    fs::write(home.path().join("flows.jsonl"), lines.join("\n")).unwrap();
    let second = recommended(home.path(), &["-o", "json"]).expect(0).stdout;
    assert_eq!(first, second);
}

#[test]
fn against_a_controller() {
    let stored = |kind: &str, name: &str, spec: &str| {
        let text = format!(
            "apiVersion: cofferdam.dev/v1\nkind: {kind}\nmetadata: {{name: {name}, labels: {{tier: web}}}}\nspec: {spec}\n"
        );
        [kind.to_owned(), name.to_owned(), text]
    };
    let fake = Fake::start(Behaviour {
        stored: vec![stored("Workload", "web-1", "{addresses: [10.0.0.5]}")],
        ..Behaviour::default()
    });
    let result = fake.run(&["recommend", "-o", "json"]).expect(0).json();
    assert_eq!(
        result["report"]["coverage"]["edges"]["part"], 1,
        "{result:#}"
    );
    let names = fake.run(&["recommend", "-o", "name"]).expect(0).stdout;
    assert!(names.contains("Policy/recommended-"), "{names}");
}
