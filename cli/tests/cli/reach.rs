//! `policy reach`, and invariants in `policy test` and `policy check`.

use std::fs;
use std::path::Path;

use crate::command::run;

const INVENTORY: &str = r#"managedNetworks: [10.0.0.0/8]
workloads:
  - {name: dev-1, labels: {env: dev}, addresses: [10.0.0.1, "fd00::1"]}
  - {name: dev-2, labels: {env: dev}, addresses: [10.0.0.2]}
  - {name: db-1, labels: {env: prod, data-class: pci}, addresses: [10.0.0.3, "fd00::3"]}
"#;

const POLICIES: &str = r"apiVersion: cofferdam.dev/v1
kind: Policy
metadata: {name: dev}
spec:
  subject: {env: dev}
  state: enforced
  egress:
    - {action: allow, peers: [{entity: managed}]}
---
apiVersion: cofferdam.dev/v1
kind: Policy
metadata: {name: db}
spec:
  subject: {data-class: pci}
  ingress:
    - {action: deny, ports: [{port: 22}]}
    - {action: allow, peers: [{selector: {env: dev}}], ports: [{port: 5432}]}
";

const INVARIANT: &str = r"apiVersion: cofferdam.dev/v1
kind: Invariant
metadata: {name: no-dev-to-pci}
spec:
  from: [{selector: {env: dev}}]
  to: [{selector: {data-class: pci}}]
  expect: unreachable
  reason: PCI DSS 1.3
";

fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("inv.yaml"), INVENTORY).unwrap();
    fs::create_dir(home.path().join("policies")).unwrap();
    fs::write(home.path().join("policies/p.yaml"), POLICIES).unwrap();
    home
}

fn reach(home: &Path, more: &[&str], code: i32) -> crate::command::Run {
    let mut arguments = vec![
        "policy",
        "reach",
        "--inventory",
        "inv.yaml",
        "--policy",
        "policies",
    ];
    arguments.extend(more);
    run(home, &arguments).expect(code)
}

#[test]
fn yes_with_a_counter_example_or_no() {
    let home = home();
    let question = ["--from", "env=dev", "--to", "data-class=pci"];
    let result = reach(home.path(), &question, 0);
    assert_eq!(
        result.stdout,
        "not reachable: env=dev (2 workloads) → data-class=pci (1 workload) on any, enforced\n"
    );
    let draft = [&question[..], &["--lens", "draft"]].concat();
    let result = reach(home.path(), &draft, 2);
    // What the manual shows.
    let manual =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md")).unwrap();
    let shown: String = result
        .stdout
        .lines()
        .map(|line| format!("    {line}\n"))
        .collect();
    assert!(manual.contains(&shown), "{shown}");
    let json = reach(home.path(), &[&draft[..], &["-o", "json"]].concat(), 2).json();
    assert_eq!(json["reachable"], true);
    assert_eq!(json["example"]["ingress"]["rule"], "standard/db/ingress[1]");
    assert_eq!(
        json["pieces"].as_array().unwrap().len(),
        2,
        "one of each family"
    );
    assert_eq!(
        json["pieces"][0]["ports"]["protocols"][0]["ranges"][0][0],
        5432
    );
    let other = [&draft[..], &["--port", "tcp/80", "--port", "udp"]].concat();
    reach(home.path(), &other, 0);
}

#[test]
fn lists_end_with_zero_and_say_everything() {
    let home = home();
    let result = reach(home.path(), &["--to", "db-1", "--lens", "draft"], 0);
    assert!(
        result.stdout.contains("dev-1, dev-2  db-1  tcp/5432"),
        "{}",
        result.stdout
    );
    let result = reach(
        home.path(),
        &["--from", "dev-1", "--lens", "draft", "--transitive"],
        0,
    );
    assert!(
        result
            .stdout
            .ends_with("WORKLOAD  HOPS  PATH\ndb-1      1     dev-1 → db-1 5432/tcp\n"),
        "{}",
        result.stdout
    );
}

#[test]
fn questions_about_nobody_are_errors() {
    let home = home();
    for (question, wrong) in [
        (
            &["--from", "env=gone", "--to", "db-1"][..],
            "\"from\" means nobody that is there (env=gone)",
        ),
        (
            &["--from", "dbb-1"],
            "there is no workload \"dbb-1\"; did you mean \"db-1\"?",
        ),
        (
            &["--from", "world", "--to", "192.0.2.0/24"],
            "no flow from one side to the other has an end that is managed",
        ),
        (
            &["--from", "dev-1", "--port", "tpc/1"],
            "\"tpc/1\" is no port",
        ),
        (&["--from", "env=(dev"], "is no selector"),
        (
            &["--from", "group:gone"],
            "there is no AddressGroup \"gone\"",
        ),
        (&[], "--from <WHO>"),
    ] {
        let result = reach(home.path(), question, 1);
        assert!(
            result.stderr.contains(wrong),
            "{question:?}: {}",
            result.stderr
        );
        assert_eq!(result.stdout, "");
    }
}

#[test]
fn invariants_are_checked_with_the_tests() {
    let home = home();
    let with = |text: &str| fs::write(home.path().join("policies/i.yaml"), text).unwrap();
    let test = ["policy", "test", "policies", "--inventory", "inv.yaml"];
    with(INVARIANT);
    let result = run(home.path(), &test).expect(1);
    assert_eq!(
        result.stdout,
        "FAIL  invariant no-dev-to-pci: env=dev → data-class=pci: unreachable  (policies/i.yaml:1:1)\n      \
         does not hold: dev-1 (10.0.0.1) → db-1 (10.0.0.3) tcp/5432: egress allowed by standard/dev/egress[0]; \
         ingress allowed by standard/db/ingress[1]; and for one more pair of classes\n0 passed, 1 failed\n"
    );
    with(&INVARIANT.replace("reason", "lens: enforced\n  reason"));
    let result = run(home.path(), &[&test[..], &["-o", "json"]].concat()).expect(0);
    assert_eq!(result.json()["invariants"][0]["outcome"]["result"], "holds");
    with(&INVARIANT.replace("env: dev", "env: gone"));
    let result = run(home.path(), &test).expect(1);
    assert!(
        result
            .stdout
            .contains("checks nothing: \"from\" means nobody"),
        "{}",
        result.stdout
    );
    // Without workloads there is nothing to check, which is no mistake of the files.
    run(home.path(), &["policy", "check", "policies"]).expect(0);
}
