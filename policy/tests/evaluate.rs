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

/// `enforced draft rule reason` of one end of one probe under some documents.
fn end(documents: &str, inventory: &str, probe: &str, end: &str) -> String {
    let lines = eval_probes(
        &Source::new("inv.yaml", inventory),
        &[Source::new("policy.yaml", documents)],
        &Source::new("probes.jsonl", format!(r#"{{"id": "x", {probe}}}"#)),
        datetime!(2030-01-01 00:00 UTC),
    )
    .unwrap();
    let answer: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
    ["enforced", "draft", "rule", "reason"]
        .map(|key| answer[end][key].as_str().unwrap_or("null").to_owned())
        .join(" ")
}

fn document(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: cofferdam.dev/v1, kind: {kind}, metadata: {{name: {name}}}, spec: {{{spec}}}}}\n"
    )
}

const SSH: &str = r#""from": "10.0.0.5", "to": "db-1", "protocol": "tcp", "port": 22"#;

fn ingress(documents: &[String]) -> String {
    end(&documents.concat(), INVENTORY, SSH, "ingress")
}

#[test]
fn tiers_come_in_their_order() {
    let enforced = "state: enforced, subject: {app: db}";
    let allow = document(
        "Policy",
        "b",
        &format!("{enforced}, ingress: [{{action: allow}}]"),
    );
    let earlier = document(
        "Policy",
        "a",
        &format!("{enforced}, ingress: [{{action: deny}}]"),
    );
    let lower = document(
        "Policy",
        "z",
        &format!("{enforced}, priority: 1, ingress: [{{action: pass}}]"),
    );
    let closed = document("Policy", "c", &format!("{enforced}, ingress: []"));
    let base = document(
        "Policy",
        "base",
        &format!("{enforced}, tier: baseline, ingress: [{{action: allow}}]"),
    );
    let grant = document(
        "Grant",
        "g",
        "subject: {app: db}, peers: [{selector: {app: web}}], expires: 2030-01-01T01:00:00Z",
    );
    let past = document(
        "Grant",
        "g",
        "subject: {app: db}, peers: [{entity: any}], expires: 2030-01-01T00:00:00Z",
    );
    let rail = document(
        "Guardrail",
        "rail",
        "subject: all, ingress: [{action: deny, ports: [{port: 22}]}]",
    );
    let filter = document(
        "Filter",
        "f",
        "subject: all, entries: [{direction: ingress, cidr: 10.0.0.0/24, action: deny}]",
    );
    for (documents, wanted) in [
        (vec![], "deny deny default-deny default-deny"),
        (vec![&allow], "allow allow standard/b/ingress[0] none"),
        (
            vec![&allow, &earlier],
            "deny deny standard/a/ingress[0] policy-deny",
        ),
        (
            vec![&allow, &earlier, &lower],
            "deny deny default-deny default-deny",
        ),
        (
            vec![&earlier, &lower, &base],
            "allow allow baseline/base/ingress[0] none",
        ),
        (
            vec![&closed, &base],
            "deny deny standard/c/ingress (default deny) default-deny",
        ),
        (
            vec![&earlier, &grant],
            "allow allow grants/g/ingress[0] none",
        ),
        (
            vec![&earlier, &past],
            "deny deny standard/a/ingress[0] policy-deny",
        ),
        (
            vec![&grant, &rail],
            "deny deny guardrail/rail/ingress[0] policy-deny",
        ),
        (vec![&rail, &filter], "deny deny filter/f/ingress[0] filter"),
    ] {
        let documents: Vec<String> = documents.into_iter().cloned().collect();
        assert_eq!(ingress(&documents), wanted, "{documents:?}");
    }
}

#[test]
fn the_draft_honours_staged_policies_replacements_and_modes() {
    let open = document(
        "Policy",
        "old",
        "state: enforced, subject: {app: db}, ingress: [{action: allow}]",
    );
    let staged = document(
        "Policy",
        "new",
        "replaces: old, subject: {app: db}, ingress: []",
    );
    let gone = document(
        "Policy",
        "new",
        "replaces: old, subject: {app: db}, ingress: [], expires: 2029-01-01T00:00:00Z",
    );
    let observe = document("Mode", "m", "subject: {app: db}, mode: observe");
    let selective = document(
        "Mode",
        "m",
        "subject: {app: db}, mode: selective, enforce: [{port: 22}]",
    );
    let elsewhere = document(
        "Mode",
        "m",
        "subject: {app: db}, mode: selective, enforce: [{port: 23}]",
    );
    let lenient = document("Mode", "m", "subject: {app: db}, defaultAction: allow");
    let cut = document("Mode", "m", "subject: {app: db}, mode: isolate");
    for (documents, wanted) in [
        (
            vec![&open, &staged],
            "allow deny standard/old/ingress[0] none",
        ),
        (
            vec![&open, &gone],
            "allow allow standard/old/ingress[0] none",
        ),
        (vec![&observe], "allow deny default-deny mode-observe"),
        (vec![&selective], "deny deny default-deny default-deny"),
        (vec![&lenient], "allow allow default-allow none"),
        (vec![&open, &cut], "deny deny isolation isolated"),
    ] {
        let documents: Vec<String> = documents.into_iter().cloned().collect();
        assert_eq!(ingress(&documents), wanted, "{documents:?}");
    }
    assert_eq!(
        ingress(&[elsewhere]),
        "allow deny default-deny mode-observe"
    );
}

#[test]
fn isolation_and_unknown_peers() {
    let open = document(
        "Policy",
        "open",
        "state: enforced, subject: all, ingress: [{action: allow}], egress: [{action: allow}]",
    );
    let inventory = "workloads:\n  - {name: a, labels: {}, addresses: [10.0.0.1, 10.0.0.9], mode: isolate}\n  - {name: b, labels: {}, addresses: [10.0.0.2], mode: observe}\n  - {name: c, labels: {}, addresses: [10.0.0.3, 10.0.0.4]}\n  - {name: d, labels: {}, addresses: [10.0.0.4]}\n";
    let probe = |from: &str, to: &str| {
        format!(r#""from": "{from}", "to": "{to}", "protocol": "udp", "port": 9"#)
    };
    for (from, to, side, wanted) in [
        ("a", "b", "egress", "deny deny isolation isolated"),
        ("a", "b", "ingress", "deny deny isolation peer-isolated"),
        (
            "b",
            "c",
            "ingress",
            "allow allow standard/open/ingress[0] none",
        ),
        ("10.0.0.4", "c", "egress", "null null null null"),
        (
            "10.0.0.4",
            "b",
            "ingress",
            "allow deny standard/open/ingress (default deny) mode-observe",
        ),
        (
            "d",
            "10.0.0.3",
            "ingress",
            // c claims d's address too: for c it is its own.
            "allow allow loopback none",
        ),
        (
            "d",
            "10.0.0.3",
            "egress",
            "allow allow standard/open/egress[0] none",
        ),
    ] {
        let found = end(&open, inventory, &probe(from, to), side);
        assert_eq!(found, wanted, "{from} → {to} {side}");
    }
}

#[test]
fn named_ports_are_looked_up_at_the_receiver() {
    let policy = document(
        "Policy",
        "p",
        "state: enforced, subject: {app: web}, egress: [{action: allow, peers: [{selector: {app: db}}], ports: [{port: pg}]}]",
    );
    for (port, wanted) in [
        (5432, "allow allow standard/p/egress[0] none"),
        (
            5433,
            "deny deny standard/p/egress (default deny) default-deny",
        ),
    ] {
        let probe = format!(r#""from": "web-1", "to": "db-1", "protocol": "tcp", "port": {port}"#);
        assert_eq!(end(&policy, INVENTORY, &probe, "egress"), wanted);
    }
}

#[test]
fn an_explanation_tells_the_whole_walk() {
    let scenario = policy::api::Scenario::parse(
        Some(&Source::new("inv.yaml", INVENTORY)),
        &[Source::new("policy.yaml", SHOP)],
    )
    .unwrap();
    let probe = policy::probe::Probe {
        id: String::new(),
        from: policy::probe::ProbeEnd::parse("web-1"),
        to: policy::probe::ProbeEnd::parse("db-1"),
        protocol: 6,
        port: 22,
    };
    let at = datetime!(2030-01-01 00:00 UTC);
    let explanation = policy::explain::explain(&scenario.world, &scenario.set, &probe, at).unwrap();
    let text = explanation.to_string();
    for wanted in [
        "web-1 (10.0.0.5) → db-1 (10.0.1.9), tcp port 22",
        "standard/shop-web — skipped: its subject does not select the workload",
        "standard/shop-db/ingress[0] allow: no match: other port",
        "⇒ deny by standard/shop-db/ingress (default deny) at policy.yaml:2:1 (reason default-deny)",
        "to allow it: add port tcp/22 to standard/shop-db/ingress[0] (policy.yaml:9:7): its peers match",
    ] {
        assert!(text.contains(wanted), "{text}\nlacks: {wanted}");
    }
}
