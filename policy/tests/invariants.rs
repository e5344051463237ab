//! Invariants: read strictly, written back, checked exactly.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use policy::api::Scenario;
use policy::invariants::{Breach, InvariantOutcome, InvariantResult, check_invariants};
use policy::parse::parse;
use policy::source::Source;
use time::macros::datetime;

const WORLD: &str = r"
managedNetworks: [10.0.0.0/8]
workloads:
  - {name: dev-1, labels: {env: dev}, addresses: [10.0.0.1]}
  - {name: jump-1, labels: {env: ops}, addresses: [10.0.0.2]}
  - {name: db-1, labels: {env: prod, data-class: pci}, addresses: [10.0.0.3]}
";

const POLICIES: &str = r"
apiVersion: cofferdam.dev/v1
kind: Policy
metadata: {name: jump}
spec:
  subject: {env: ops}
  state: enforced
  ingress:
    - {action: allow, peers: [{selector: {env: dev}}], ports: [{port: 22}]}
  egress:
    - {action: allow, peers: [{selector: {data-class: pci}}], ports: [{port: 5432}]}
---
apiVersion: cofferdam.dev/v1
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
  state: enforced
  ingress:
    - {action: allow, peers: [{selector: {env: ops}}], ports: [{port: 5432, endPort: 5440}]}
";

fn invariant(spec: &str) -> String {
    format!(
        "apiVersion: cofferdam.dev/v1\nkind: Invariant\nmetadata: {{name: i, owner: security}}\nspec:\n  {}\n",
        spec.trim().replace('\n', "\n  ")
    )
}

fn check(spec: &str, more: &str) -> InvariantResult {
    let sources = [
        Source::new("policies.yaml", POLICIES),
        Source::new("more.yaml", more),
        Source::new("invariant.yaml", invariant(spec)),
    ];
    let inventory = Source::new("inv.yaml", WORLD);
    let scenario = Scenario::parse(Some(&inventory), &sources).unwrap();
    let at = datetime!(2030-01-01 00:00 UTC);
    let results = check_invariants(&scenario.world, &scenario.set, at);
    assert_eq!(results.len(), 1);
    results.into_iter().next().unwrap()
}

const NEVER: &str = "from: [{selector: {env: dev}}]\nto: [{selector: {data-class: pci}}]\nexpect: unreachable\nreason: PCI DSS 1.3";

#[test]
fn what_holds_holds_and_what_does_not_has_a_counter_example() {
    assert!(check(NEVER, "").holds());
    let hole = r"
apiVersion: cofferdam.dev/v1
kind: Policy
metadata: {name: hole}
spec:
  subject: {data-class: pci}
  priority: 10
  ingress:
    - {action: allow, peers: [{entity: managed}], ports: [{port: 8000, endPort: 8080}]}
";
    // A staged policy breaks the draft, which is the default, and nothing else.
    let result = check(NEVER, hole);
    assert!(result.is_broken());
    assert_eq!(
        result.problem().unwrap().to_string(),
        "invariant.yaml:1:1: error: invariant \"i\" (env=dev → data-class=pci: unreachable) does not hold: \
         dev-1 (10.0.0.1) → db-1 (10.0.0.3) tcp/8000: egress allowed by standard/dev/egress[0]; \
         ingress allowed by standard/hole/ingress[0]; it says why it must hold: PCI DSS 1.3"
    );
    assert!(check(&format!("{NEVER}\nlens: enforced"), hole).holds());
    let enforced = hole.replace("  priority", "  state: enforced\n  priority");
    assert!(check(&format!("{NEVER}\nlens: enforced"), &enforced).is_broken());
}

#[test]
fn a_way_over_others_counts_if_it_is_asked_for() {
    let result = check(&format!("{NEVER}\ntransitive: true"), "");
    let InvariantOutcome::Broken {
        breach: Breach::Way(way),
        ..
    } = &result.outcome
    else {
        panic!("{result:?}");
    };
    let steps: Vec<String> = way.iter().map(ToString::to_string).collect();
    assert_eq!(
        steps,
        [
            "dev-1 → jump-1 tcp/22: egress allowed by standard/dev/egress[0]; ingress allowed by standard/jump/ingress[0]",
            "jump-1 → db-1 tcp/5432: egress allowed by standard/jump/egress[0]; ingress allowed by standard/db/ingress[0]",
        ]
    );
    let on_443 = format!("{NEVER}\ntransitive: true\nports: [{{port: 443}}]");
    assert!(check(&on_443, "").holds());
}

#[test]
fn what_must_be_reachable_must_be_so_for_everybody() {
    let must = "from: [{selector: {env: ops}}]\nto: [{selector: {data-class: pci}}]\nports: [{port: 5432}]\nexpect: reachable";
    assert!(check(must, "").holds());
    let result = check(&must.replace("port: 5432", "port: 5432, endPort: 5433"), "");
    assert_eq!(
        result.outcome.to_string(),
        "does not hold: jump-1 (10.0.0.2) → db-1 (10.0.0.3) tcp/5433: egress denied by standard/jump/egress \
         (default deny); ingress allowed by standard/db/ingress[0]"
    );
}

#[test]
fn a_check_of_nothing_does_not_hold() {
    for (spec, why) in [
        (
            NEVER.replace("env: dev", "env: gone"),
            "\"from\" means nobody that is there (env=gone)",
        ),
        (
            NEVER.replace("data-class: pci", "env: gone"),
            "\"to\" means nobody that is there (env=gone)",
        ),
        (
            "from: [{entity: world}]\nto: [{cidr: 192.0.2.0/24}]\nexpect: unreachable".to_owned(),
            "no flow from one side to the other has an end that is managed",
        ),
        (
            "from: [{selector: {env: dev}}]\nto: [{selector: {env: dev}}]\nexpect: unreachable"
                .to_owned(),
            "no flow from one side to the other has an end that is managed",
        ),
    ] {
        let result = check(&spec, "");
        assert!(!result.holds() && !result.is_broken());
        let problem = result.problem().unwrap();
        assert!(problem.message.ends_with(why), "{problem}");
    }
}

#[test]
fn reading_is_strict_and_writing_gives_the_same_again() {
    for (spec, wrong) in [
        (
            "to: [{entity: any}]\nexpect: unreachable",
            "5:3: error: invariant has no \"from\"",
        ),
        (
            "from: []\nto: [{entity: any}]\nexpect: unreachable",
            "5:9: error: \"from\" means nobody",
        ),
        (
            "from: [{entity: any}]\nto: [{entity: any}]",
            "invariant has no \"expect\"",
        ),
        (
            "from: [{entity: any}]\nto: [{entity: any}]\nexpect: unreachible",
            "did you mean \"unreachable\"?",
        ),
        (
            "from: [{entity: any}]\nto: [{entity: any}]\nexpect: reachable",
            "what must be reachable needs \"ports\"",
        ),
        (
            "from: [{entity: any}]\nto: [{entity: any}]\nexpect: reachable\nports: [{port: 1}]\ntransitive: true",
            "with expect: unreachable only",
        ),
        (
            "from: [{entity: any}]\nto: [{entity: any}]\nexpect: unreachable\nport: 1",
            "unknown field \"port\"",
        ),
        (
            "from: [{entity: any}]\nto: [{entity: any}]\nexpect: unreachable\nports: [{port: http}]",
            "http",
        ),
        (
            "from: [{entity: any}]\nto: [{addressGroup: gone}]\nexpect: unreachable",
            "there is no AddressGroup \"gone\"",
        ),
        (
            "from: [{entity: any}]\nto: [{entity: any}]\nexpect: unreachable\nports: [{service: named}]",
            "the port \"http\" of a service is not a number",
        ),
    ] {
        let service = "apiVersion: cofferdam.dev/v1\nkind: Service\nmetadata: {name: named}\nspec: {ports: [{port: http}]}\n";
        let sources = [
            Source::new("i.yaml", invariant(spec)),
            Source::new("s.yaml", service),
        ];
        let problems = Scenario::parse(None, &sources).unwrap_err().to_string();
        assert!(problems.contains(wrong), "{spec}:\n{problems}");
    }
    let full = "from: [{selector: {env: dev}}, {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]\nto: [{entity: world}]\n\
                ports: [{protocol: any}, {protocol: icmp, type: 8}]\nexpect: unreachable\nlens: evaluated\ntransitive: true\nreason: because";
    for spec in [full, NEVER] {
        let objects = parse(&[Source::new("i.yaml", invariant(spec))]).unwrap();
        let text = serde_json::to_string(&objects[0].to_json()).unwrap();
        let mut again = parse(&[Source::new("i.json", text)]).unwrap();
        if let (policy::model::Object::Invariant(again), policy::model::Object::Invariant(first)) =
            (&mut again[0], &objects[0])
        {
            again.place = first.place.clone();
        }
        assert_eq!(objects, again);
        assert_eq!(objects[0].id(), "Invariant/i");
    }
}
