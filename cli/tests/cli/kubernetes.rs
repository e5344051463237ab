//! `policy import kubernetes` and `policy conformance`.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;

use crate::command::{Run, run, run_with_input};
use crate::expected;

const POLICY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
    - from:
        - podSelector: {matchLabels: {app: web}}
      ports:
        - port: 5432
";

const CASES: &str = include_str!("../../../policy/tests/conformance/cases.jsonl");

fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("db.yaml"), POLICY).unwrap();
    home
}

fn import(home: &Path, extra: &[&str]) -> Run {
    run(home, &[&["policy", "import", "kubernetes"], extra].concat())
}

#[test]
fn imported_objects_are_printed_and_read_again() {
    let home = home();
    let home = home.path();
    let printed = import(home, &["db.yaml"]).expect(0);
    assert_eq!(printed.stderr, "2 objects imported\n");
    expected::check("import-kubernetes.yaml", &printed.stdout);
    fs::write(home.join("ours.yaml"), &printed.stdout).unwrap();
    let check = run(home, &["policy", "check", "ours.yaml"]).expect(0);
    assert_eq!(check.stdout, "2 objects in 1 file: no problem\n");
    let again = import(home, &["ours.yaml", "-o", "yaml"]).expect(0);
    assert_eq!(again.stdout, printed.stdout);
    let json = import(home, &["db.yaml", "-o", "json"]).expect(0);
    let from_json = run_with_input(home, &["policy", "import", "kubernetes", "-"], &json.stdout);
    assert_eq!(from_json.expect(0).stdout, printed.stdout);
    let names = import(home, &["db.yaml", "-o", "name"]).expect(0);
    assert_eq!(
        names.stdout,
        "Policy/NetworkPolicy/shop/db\nMode/kubernetes-pods\n"
    );
    let staged = import(home, &["db.yaml", "--staged"]).expect(0);
    assert_eq!(
        staged.stdout,
        printed.stdout.replace("state: enforced", "state: staged")
    );
}

#[test]
fn a_field_that_cannot_be_kept_prints_nothing_but_its_place() {
    let home = home();
    let home = home.path();
    fs::write(
        home.join("odd.yaml"),
        POLICY.replace("port: 5432", "port: 5432\n          name: pg"),
    )
    .unwrap();
    let refused = import(home, &["."]).expect(1);
    assert_eq!(
        refused.stderr,
        "./odd.yaml:11:11: error: unknown field \"name\" in port; known fields: protocol, port, endPort\n"
    );
    assert_eq!(refused.stdout, "");
}

#[test]
fn kubernetes_files_are_evaluated_as_they_are() {
    let home = home();
    let home = home.path();
    fs::write(
        home.join("inv.yaml"),
        "workloads:\n  - {name: web, namespace: shop, labels: {app: web}, addresses: [10.0.0.1]}\n  - {name: db, namespace: shop, labels: {app: db}, addresses: [10.0.0.2]}\n",
    )
    .unwrap();
    let probes = "{\"id\": \"1\", \"from\": \"shop/web\", \"to\": \"shop/db\", \"port\": 5432}\n{\"id\": \"2\", \"from\": \"shop/web\", \"to\": \"shop/db\", \"port\": 22}\n";
    let args = [
        "policy",
        "eval",
        "--inventory",
        "inv.yaml",
        "--policy",
        "db.yaml",
        "--probes",
        "-",
    ];
    let answers = run_with_input(home, &args, probes).expect(0);
    let rules: Vec<String> = answers
        .stdout
        .lines()
        .map(|line| {
            let answer: serde_json::Value = serde_json::from_str(line).unwrap();
            format!(
                "{} {}",
                answer["enforced"].as_str().unwrap(),
                answer["rule"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(
        rules,
        [
            "allow standard/NetworkPolicy/shop/db/ingress[0]",
            "deny standard/NetworkPolicy/shop/db/ingress (default deny)"
        ]
    );
    let why = run(
        home,
        &[
            "policy",
            "explain",
            "--inventory",
            "inv.yaml",
            "--policy",
            "db.yaml",
            "shop/db",
            "shop/web",
            "80",
        ],
    )
    .expect(0);
    assert!(why.stdout.contains("default-allow"), "{why:?}");
}

/// Every line without the fields that say what is expected.
fn stripped(cases: &str) -> String {
    cases
        .lines()
        .map(|line| {
            let mut case: serde_json::Value = serde_json::from_str(line).unwrap();
            for probe in case["probes"].as_array_mut().unwrap() {
                probe
                    .as_object_mut()
                    .unwrap()
                    .retain(|field, _| !field.starts_with("expected"));
            }
            format!("{case}\n")
        })
        .collect()
}

/// Answers are the same by both judges, packed or not, with or without what is expected.
fn answers_do_not_depend_on_what_is_expected(cases: &str, summary: &str) {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    fs::write(home.join("cases.jsonl"), cases).unwrap();
    fs::write(home.join("bare.jsonl"), stripped(cases)).unwrap();
    let packed = fs::File::create(home.join("cases.jsonl.gz")).unwrap();
    let mut packed = flate2::write::GzEncoder::new(packed, flate2::Compression::fast());
    packed.write_all(cases.as_bytes()).unwrap();
    packed.finish().unwrap();
    let conformance =
        |args: &[&str]| run(home, &[&["policy", "conformance"], args].concat()).expect(0);
    let whole = conformance(&["cases.jsonl"]);
    assert!(whole.stderr.ends_with(summary), "{}", whole.stderr);
    let bare = conformance(&["bare.jsonl"]);
    assert!(!bare.stderr.contains("wrong"), "{}", bare.stderr);
    assert!(whole.stdout == bare.stdout, "expectations change answers");
    let other = conformance(&["cases.jsonl.gz", "--compiled"]);
    assert!(whole.stdout == other.stdout, "the judges differ");
    let mut lines = whole.stdout.lines().zip(cases.lines());
    assert!(lines.all(|(answer, case)| {
        let answer: serde_json::Value = serde_json::from_str(answer).unwrap();
        let case: serde_json::Value = serde_json::from_str(case).unwrap();
        answer["id"] == case["id"]
            && answer["results"].as_array().unwrap().len()
                == case["probes"].as_array().unwrap().len()
    }));
}

#[test]
fn own_cases_are_answered() {
    answers_do_not_depend_on_what_is_expected(CASES, "27 cases, 151 probes, 0 of 151 wrong\n");
}

#[test]
fn shared_cases_are_answered() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared/conformance/networkpolicy-cases.jsonl.gz");
    let Ok(file) = fs::File::open(&path) else {
        eprintln!(
            "SKIPPED 378 shared conformance cases: there is no {}",
            path.display()
        );
        return;
    };
    let mut cases = String::new();
    flate2::read::GzDecoder::new(file)
        .read_to_string(&mut cases)
        .unwrap();
    let summary = "378 cases, 68225 probes, 0 of 68225 wrong\n";
    answers_do_not_depend_on_what_is_expected(&cases, summary);
}

#[test]
fn what_cannot_be_answered_is_null_and_fails() {
    let home = tempfile::tempdir().unwrap();
    let cases = r#"{"id": "a", "pods": [{"ns": "n", "name": "p", "ip": "10.0.0.1"}], "policies": [{"kind": "NetworkPolicy"}], "probes": [{"from": "n/p", "to": "10.0.0.2", "port": 1, "proto": "TCP"}]}
{"id": "b", "pods": [{"ns": "n", "name": "p", "ip": "10.0.0.1"}], "policies": [], "probes": [{"from": "n/p", "to": "10.0.0.2", "port": 1, "proto": "TCP", "expected": "deny"}, {"from": "n/q", "to": "10.0.0.2", "port": 1, "proto": "TCP"}]}
{"id": "c", "pods": [{"ns": "n", "name": "p", "ip": "nonsense"}], "probes": [{}, {}]}
no case at all
"#;
    let answers = run_with_input(home.path(), &["policy", "conformance", "-"], cases).expect(1);
    assert_eq!(
        answers.stdout,
        "{\"id\": \"a\", \"results\": [null]}\n{\"id\": \"b\", \"results\": [\"allow\",null]}\n{\"id\": \"c\", \"results\": [null,null]}\n"
    );
    for wanted in [
        "<stdin>:1: a: a#policies[0]:1:1: error: document has no \"apiVersion\"",
        "<stdin>:2: b: there is no pod \"n/q\"",
        "wrong: b: n/p → 10.0.0.2 1/TCP: allow, expected deny",
        "<stdin>:3: not a case: invalid IP address syntax",
        "<stdin>:4: not a case: ",
        "3 cases, 5 probes, 4 without a verdict, 1 line unreadable, 1 of 1 wrong",
    ] {
        assert!(
            answers.stderr.contains(wanted),
            "{wanted}\n{}",
            answers.stderr
        );
    }
}
