//! The meaning of policy by example.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use policy::api::eval_probes;
use policy::source::Source;
use time::macros::datetime;

const INVENTORY: &str = r"
managedNetworks: [10.0.0.0/16, 'fd00::/16']
workloads:
  - {name: web-1, labels: {app: web}, addresses: [10.0.0.5]}
  - {name: db-1, labels: {app: db}, addresses: [10.0.1.9], namedPorts: [{name: pg, port: 5432}]}
";

const SHOP: &str = r"
apiVersion: cofferdam.dev/v1
kind: Policy
metadata: {name: shop-db}
spec:
  state: enforced
  subject: {app: db}
  ingress:
    - action: allow
      peers: [{selector: {app: web}}]
      ports: [{port: pg}]
---
apiVersion: cofferdam.dev/v1
kind: Policy
metadata: {name: shop-web}
spec:
  state: enforced
  subject: {app: web}
  egress:
    - action: allow
";

fn eval(policies: &str, probes: &str) -> Vec<String> {
    eval_probes(
        &Source::new("inv.yaml", INVENTORY),
        &[Source::new("policy.yaml", policies)],
        &Source::new("probes.jsonl", probes),
        datetime!(2030-01-01 00:00 UTC),
    )
    .unwrap()
}

#[test]
fn answers_in_the_documented_form() {
    let lines = eval(
        SHOP,
        r#"{"id": "p1", "from": "web-1", "to": "db-1", "protocol": "tcp", "port": 5432}
{"id": "p2", "from": "web-1", "to": "10.0.1.9", "protocol": "tcp", "port": 22}
{"id": "p3", "from": "8.8.8.8", "to": "9.9.9.9", "protocol": "icmp"}
"#,
    );
    assert_eq!(
        lines[0],
        r#"{"id": "p1", "enforced": "allow", "draft": "allow", "rule": "standard/shop-db/ingress[0]", "egress": {"enforced": "allow", "draft": "allow", "rule": "standard/shop-web/egress[0]", "reason": "none"}, "ingress": {"enforced": "allow", "draft": "allow", "rule": "standard/shop-db/ingress[0]", "reason": "none"}}"#
    );
    assert_eq!(
        lines[1],
        r#"{"id": "p2", "enforced": "deny", "draft": "deny", "rule": "standard/shop-db/ingress (default deny)", "egress": {"enforced": "allow", "draft": "allow", "rule": "standard/shop-web/egress[0]", "reason": "none"}, "ingress": {"enforced": "deny", "draft": "deny", "rule": "standard/shop-db/ingress (default deny)", "reason": "default-deny"}}"#
    );
    assert_eq!(
        lines[2],
        r#"{"id": "p3", "enforced": "allow", "draft": "allow", "rule": null, "egress": null, "ingress": null}"#
    );
}
