//! `policy lint`.

use std::fs;
use std::path::Path;

use crate::command::{Run, run};
use crate::expected;

const SHOP: &str = "\
apiVersion: cofferdam.dev/v1
kind: Policy
metadata: {name: shop-db, owner: team-shop}
spec:
  state: enforced
  subject: {app: db}
  ingress:
    - action: allow
      peers: [{cidr: 10.0.0.0/8}]
    - action: deny
      peers: [{cidr: 10.2.0.0/16}]
    - action: allow
      peers: [{entity: world}]
      ports: [{port: 22}]
    - action: allow # cofferdam-lint: ignore world-open-admin-port: the bastion's neighbour
      peers: [{cidr: 0.0.0.0/0}]
      ports: [{port: 3389}]
";

const INVENTORY: &str = "\
managedNetworks: [10.0.0.0/8]
workloads:
  - {name: db-1, labels: {app: bd}, addresses: [10.0.1.9]}
";

fn lint(home: &Path, more: &[&str]) -> Run {
    fs::create_dir_all(home.join("policies")).unwrap();
    fs::write(home.join("policies/shop.yaml"), SHOP).unwrap();
    fs::write(home.join("inv.yaml"), INVENTORY).unwrap();
    let args = ["policy", "lint", "policies", "--at", "2026-11-23T10:00:00Z"];
    run(home, &[&args[..], more].concat())
}

#[test]
fn findings_for_people() {
    let home = tempfile::tempdir().unwrap();
    let result = lint(home.path(), &["--inventory", "inv.yaml"]).expect(1);
    assert_eq!(result.stderr, "");
    expected::check("lint.txt", &result.stdout);
    let with = lint(home.path(), &["--suppressed"]).expect(1);
    assert!(
        with.stdout.contains("suppressed: the bastion's neighbour"),
        "{with:?}"
    );
}

#[test]
fn the_level_decides_the_exit_code() {
    let home = tempfile::tempdir().unwrap();
    lint(home.path(), &["--deny", "note"]).expect(1);
    lint(home.path(), &["--deny", "never"]).expect(0);
    fs::write(home.path().join("group.yaml"), "apiVersion: cofferdam.dev/v1\nkind: AddressGroup\nmetadata: {name: g}\nspec: {cidrs: [10.0.0.0/8]}\n").unwrap();
    run(
        home.path(),
        &["policy", "lint", "group.yaml", "--deny", "warning"],
    )
    .expect(0);
    run(
        home.path(),
        &["policy", "lint", "group.yaml", "--deny", "note"],
    )
    .expect(1);
}

#[test]
fn findings_for_machines() {
    let home = tempfile::tempdir().unwrap();
    let json = lint(home.path(), &["-o", "json"]).expect(1).json();
    assert_eq!(
        (json["errors"].as_u64(), json["suppressed"].as_u64()),
        (Some(1), Some(1))
    );
    let ids: Vec<&str> = json["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["shadowed-rule", "world-open-admin-port"]);
    let list = run(home.path(), &["policy", "lint", "--list", "-o", "json"])
        .expect(0)
        .json();
    assert!(list["lints"].as_array().unwrap().len() > 20);
}

/// What SARIF 2.1.0 requires (OASIS, sections 3.13 to 3.58), and what code hosts build on.
#[test]
fn sarif_has_what_the_format_requires() {
    let home = tempfile::tempdir().unwrap();
    let log = lint(home.path(), &["-o", "sarif"]).expect(1).json();
    assert_eq!(log["version"], "2.1.0");
    let [run_] = &log["runs"].as_array().unwrap()[..] else {
        panic!("one run");
    };
    let driver = &run_["tool"]["driver"];
    assert!(driver["name"].is_string());
    let rules = driver["rules"].as_array().unwrap();
    let results = run_["results"].as_array().unwrap();
    assert_eq!(results.len(), 3);
    let mut prints = Vec::new();
    for result in results {
        let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
        assert_eq!(rules[index]["id"], result["ruleId"]);
        assert!(["note", "warning", "error"].contains(&result["level"].as_str().unwrap()));
        assert!(result["message"]["text"].is_string());
        let place = &result["locations"][0]["physicalLocation"];
        assert_eq!(place["artifactLocation"]["uri"], "policies/shop.yaml");
        assert!(place["region"]["startLine"].as_u64().unwrap() >= 1);
        assert!(place["region"]["startColumn"].as_u64().unwrap() >= 1);
        prints.push(
            result["partialFingerprints"]["cofferdam/v1"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
    }
    prints.sort();
    prints.dedup();
    assert_eq!(prints.len(), 3);
    for rule in rules {
        assert!(
            rule["shortDescription"]["text"].is_string()
                && rule["fullDescription"]["text"].is_string()
        );
        assert!(rule["defaultConfiguration"]["level"].is_string());
    }
    // What the file suppresses is there, so that the code host knows that it was seen.
    let suppressed: Vec<_> = results
        .iter()
        .filter(|result| result["suppressions"].is_array())
        .collect();
    assert_eq!(suppressed.len(), 1);
    assert_eq!(suppressed[0]["suppressions"][0]["kind"], "inSource");
    assert_eq!(
        suppressed[0]["suppressions"][0]["justification"],
        "the bastion's neighbour"
    );
}

#[test]
fn other_verbs_have_no_sarif() {
    let home = tempfile::tempdir().unwrap();
    lint(home.path(), &[]).expect(1);
    let result = run(home.path(), &["policy", "check", "policies", "-o", "sarif"]).expect(1);
    assert!(result.stderr.contains("no -o sarif output"), "{result:?}");
}

#[test]
fn bad_input_is_refused() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("flows.json"), "{\"a\": 1}\n").unwrap();
    let result = lint(
        home.path(),
        &["--inventory", "inv.yaml", "--flows", "flows.json"],
    )
    .expect(1);
    assert!(
        result
            .stderr
            .contains("flows.json:1:1: error: not a flow record"),
        "{result:?}"
    );
    // Flows say nothing without the workloads they are about.
    lint(home.path(), &["--flows", "flows.json"]).expect(1);
    fs::write(home.path().join("bad.yaml"), "kind: [").unwrap();
    let result = run(home.path(), &["policy", "lint", "bad.yaml"]).expect(1);
    assert!(result.stderr.contains("bad.yaml:1:"), "{result:?}");
}
