//! Every lint: a file that triggers it and one, almost the same, that does not.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;

use policy::api::Scenario;
use policy::lint::{Finding, Level, Settings, lint, lints, parse_flows};
use policy::source::Source;
use policy::testing::NOW;

const INVENTORY: &str = "
managedNetworks: [10.0.0.0/8]
workloads:
  - {name: web-1, labels: {app: web}, addresses: [10.0.0.1]}
  - {name: db-1, labels: {app: db}, addresses: [10.0.0.9]}
";

/// What `cofferdam flows -o json` prints: two web requests from one network.
const FLOWS: &str = r#"{"flows": [
{"uid": "a", "protocol": "tcp", "icmp_type": null, "icmp_code": null, "initiator": {"address": "198.51.100.7", "port": 40000, "workload": null}, "responder": {"address": "10.0.0.1", "port": 443, "workload": "web-1"}, "packets_out": 3},
{"uid": "b", "protocol": "tcp", "icmp_type": null, "icmp_code": null, "initiator": {"address": "198.51.100.8", "port": 40001, "workload": null}, "responder": {"address": "10.0.0.1", "port": 443, "workload": "web-1"}, "packets_out": 3}
], "truncated": false}"#;

fn document(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: cofferdam.dev/v1\nkind: {kind}\nmetadata: {{name: {name}, owner: me}}\nspec:\n  {}\n---\n",
        spec.replace('\n', "\n  ")
    )
}

/// An enforced policy for app: db.
fn db(rules: &str) -> String {
    document(
        "Policy",
        "db",
        &format!("state: enforced\nsubject: {{app: db}}\ningress:\n{rules}"),
    )
}

/// Whoever wants may open connections; so that no rule is half-open.
fn anybody_out() -> String {
    document(
        "Policy",
        "zz-out",
        "state: enforced\npriority: 2000\nsubject: {app: web}\negress: [{action: allow, peers: [{entity: managed}], ports: [{protocol: any}]}]",
    )
}

fn findings(text: &str) -> Vec<Finding> {
    let source = Source::new("p.yaml", text);
    let inventory = Source::new("inv.yaml", INVENTORY);
    let scenario = Scenario::parse(Some(&inventory), std::slice::from_ref(&source))
        .unwrap_or_else(|problems| panic!("{problems}\n{text}"));
    let talks = parse_flows(&Source::new("flows.json", FLOWS)).unwrap();
    assert_eq!(talks.len(), 2);
    let settings = Settings::at(NOW);
    let world = Some(&scenario.world);
    lint(&scenario.set, &[source], world, &talks, &settings)
}

struct Case {
    id: &'static str,
    /// Triggers it, at this line.
    bad: String,
    line: u64,
    /// Does not.
    good: String,
}

fn case(id: &'static str, line: u64, bad: impl Into<String>, good: impl Into<String>) -> Case {
    Case {
        id,
        bad: bad.into(),
        line,
        good: good.into(),
    }
}

fn rules(first: &str, second: &str) -> String {
    db(&format!("  - {first}\n  - {second}")) + &anybody_out()
}

fn order_cases() -> Vec<Case> {
    let web = "peers: [{selector: {app: web}}]";
    vec![
        case(
            "shadowed-rule",
            9,
            rules(
                "{action: deny, ports: [{port: 1, endPort: 100}]}",
                &format!("{{action: allow, {web}, ports: [{{port: 22}}]}}"),
            ),
            rules(
                "{action: deny, ports: [{port: 1, endPort: 21}]}",
                &format!("{{action: allow, {web}, ports: [{{port: 22}}]}}"),
            ),
        ),
        case(
            "conflicting-rules",
            9,
            rules(
                "{action: deny, peers: [{cidr: 10.0.0.0/8}]}",
                "{action: allow, peers: [{cidr: 10.0.0.0/9}, {cidr: 10.128.0.0/9}]}",
            ),
            rules(
                "{action: deny, peers: [{cidr: 10.0.0.0/9}]}",
                "{action: allow, peers: [{cidr: 10.0.0.0/9}, {cidr: 10.128.0.0/9}]}",
            ),
        ),
        case(
            "deny-after-allow-any",
            9,
            rules(
                "{action: allow}",
                "{action: deny, peers: [{cidr: 10.0.0.0/8}]}",
            ),
            rules(
                "{action: allow, peers: [{entity: world}]}",
                "{action: deny, peers: [{cidr: 10.0.0.0/8}]}",
            ),
        ),
        case(
            "redundant-rule",
            8,
            rules(
                &format!("{{action: allow, {web}, ports: [{{port: 80}}]}}"),
                &format!("{{action: allow, {web}}}"),
            ),
            // The deny between them makes the first an exception.
            db(&format!(
                "  - {{action: allow, {web}, ports: [{{port: 80}}]}}\n  - {{action: deny, {web}, ports: [{{port: 1, endPort: 90}}]}}\n  - {{action: allow, {web}}}"
            )) + &anybody_out(),
        ),
        case(
            "order-by-name",
            17,
            db("  - {action: allow, ports: [{port: 80}]}")
                + &document(
                    "Policy",
                    "dc",
                    "state: enforced\nsubject: {env: prod}\ningress:\n  - {action: deny, peers: [{cidr: 10.1.0.0/16}]}",
                ),
            db("  - {action: allow, ports: [{port: 80}]}")
                + &document(
                    "Policy",
                    "dc",
                    "state: enforced\npriority: 500\nsubject: {env: prod}\ningress:\n  - {action: deny, peers: [{cidr: 10.1.0.0/16}]}",
                ),
        ),
        case(
            "redundant-item",
            8,
            db("  - {action: allow, peers: [{cidr: 10.0.0.0/8}, {cidr: 10.1.0.0/16}]}"),
            db(
                "  - {action: allow, peers: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}, {cidr: 10.1.0.0/16}]}",
            ),
        ),
    ]
}

fn exposure_cases() -> Vec<Case> {
    let out = |rule: &str| {
        document(
            "Policy",
            "out",
            &format!("state: enforced\nsubject: {{app: db}}\negress:\n  - {rule}"),
        )
    };
    vec![
        case(
            "any-any-allow",
            8,
            db(
                "  - {action: allow, peers: [{cidr: 0.0.0.0/1}, {cidr: 128.0.0.0/1}], ports: [{protocol: any}]}",
            ),
            db("  - {action: allow, peers: [{cidr: 0.0.0.0/1}], ports: [{protocol: any}]}"),
        ),
        case(
            "world-open-admin-port",
            8,
            db("  - {action: allow, ports: [{port: 5000, endPort: 6000}]}"),
            // The same rule behind a guardrail that keeps the world out.
            db("  - {action: allow, ports: [{port: 5000, endPort: 6000}]}")
                + &document(
                    "Guardrail",
                    "keep-out",
                    "subject: all\ningress: [{action: deny, peers: [{entity: world}], ports: [{port: 5000, endPort: 7000}]}]",
                ),
        ),
        case(
            "egress-world-any-port",
            8,
            out("{action: allow, peers: [{entity: world}], ports: [{protocol: tcp}]}"),
            out("{action: allow, peers: [{entity: world}], ports: [{port: 443}]}"),
        ),
        case(
            "closed-without-rule",
            1,
            db("  []"),
            db("  []")
                + &document(
                    "Policy",
                    "more",
                    "state: enforced\nsubject: {tier: gold}\ningress: [{action: allow, ports: [{port: 80}]}]",
                ),
        ),
        case(
            "half-open",
            8,
            db("  - {action: allow, peers: [{selector: {app: web}}], ports: [{port: 5432}]}"),
            db("  - {action: allow, peers: [{selector: {app: web}}], ports: [{port: 5432}]}")
                + &document(
                    "Policy",
                    "web",
                    "subject: {app: web}\negress: [{action: allow, peers: [{selector: {app: db}}], ports: [{port: 5432}]}]",
                ),
        ),
        case(
            "impossible-selector",
            8,
            db(
                "  - {action: allow, peers: [{selector: {app: web, matchExpressions: [{key: app, operator: NotIn, values: [web]}]}}]}",
            ),
            db(
                "  - {action: allow, peers: [{selector: {app: web, matchExpressions: [{key: app, operator: NotIn, values: [cache]}]}}]}",
            ),
        ),
        case(
            "keep-without-effect",
            8,
            db("  - {action: deny, existing: keep}"),
            db("  - {action: allow, existing: keep, ports: [{port: 80}]}"),
        ),
    ]
}

fn name_cases() -> Vec<Case> {
    let with = |spec: &str| document("Policy", "p", &format!("subject: {{app: db}}\n{spec}"));
    let grant = |expires: &str| {
        document(
            "Grant",
            "g",
            &format!("subject: {{app: db}}\npeers: [{{cidr: 10.0.9.7/32}}]\nexpires: {expires}"),
        )
    };
    let since = |date: &str| {
        with("ingress: []").replace(
            "owner: me",
            &format!("owner: me, annotations: {{cofferdam.dev/staged-since: \"{date}\"}}"),
        )
    };
    let group = document("AddressGroup", "office", "cidrs: [192.0.2.0/24]");
    let service = document("Service", "web", "ports: [{port: 80}]");
    vec![
        case(
            "missing-owner",
            1,
            with("ingress: []").replace(", owner: me", ""),
            with("ingress: []"),
        ),
        case(
            "expired",
            1,
            grant("2029-12-31T23:00:00Z"),
            grant("2030-01-01T01:00:00Z"),
        ),
        case(
            "expires-soon",
            1,
            with("expires: 2030-01-05T00:00:00Z"),
            with("expires: 2030-03-05T00:00:00Z"),
        ),
        case(
            "long-grant",
            1,
            grant("2030-06-01T00:00:00Z"),
            grant("2030-01-02T00:00:00Z"),
        ),
        case("staged-long", 1, since("2029-10-01"), since("2029-12-20")),
        case(
            "replaces-nothing",
            1,
            with("replaces: olt"),
            with("replaces: old")
                + &document("Policy", "old", "state: enforced\nsubject: {app: db}"),
        ),
        case(
            "replaced-still-there",
            1,
            with("state: enforced\nreplaces: old")
                + &document("Policy", "old", "state: enforced\nsubject: {app: db}"),
            with("state: staged\nreplaces: old")
                + &document("Policy", "old", "state: enforced\nsubject: {app: db}"),
        ),
        case(
            "unused-address-group",
            1,
            group.clone(),
            group + &with("ingress: [{action: allow, peers: [{addressGroup: office}]}]"),
        ),
        case(
            "unused-service",
            1,
            service.clone(),
            service + &with("ingress: [{action: allow, ports: [{service: web}]}]"),
        ),
        case(
            "zero-match-selector",
            1,
            with("ingress: []").replace("app: db", "app: dbx"),
            with("ingress: []"),
        ),
    ]
}

fn traffic_cases() -> Vec<Case> {
    let web = |rule: &str| {
        document(
            "Policy",
            "web",
            &format!("subject: {{app: web}}\ningress:\n  - {rule}"),
        )
    };
    vec![
        case(
            "unused-rule",
            7,
            web("{action: allow, ports: [{port: 8443}]}"),
            web("{action: allow, ports: [{port: 443}]}"),
        ),
        case(
            "rule-wider-than-traffic",
            7,
            web(
                "{action: allow, peers: [{cidr: 198.51.100.0/28}], ports: [{port: 400, endPort: 499}]}",
            ),
            web(
                "{action: allow, peers: [{cidr: 198.51.100.0/29}, {cidr: 198.51.100.8/32}], ports: [{port: 443}]}",
            ),
        ),
    ]
}

fn suppression_cases() -> Vec<Case> {
    let with = |comment: &str| comment.to_owned() + "\n" + &db("  - {action: allow}");
    let good = "# cofferdam-lint: ignore any-any-allow: the honeypot";
    vec![
        case(
            "suppression-unknown",
            1,
            with("# cofferdam-lint: ignore any-any-alow: the honeypot"),
            with(good),
        ),
        case(
            "suppression-unused",
            1,
            with("# cofferdam-lint: ignore expired: the honeypot"),
            with(good),
        ),
        case(
            "suppression-without-reason",
            1,
            with("# cofferdam-lint: ignore any-any-allow"),
            with(good),
        ),
    ]
}

#[test]
fn every_lint_says_what_it_is_for_and_nothing_else() {
    let mut tested = BTreeSet::new();
    let mut wrong = Vec::new();
    let cases = order_cases()
        .into_iter()
        .chain(exposure_cases())
        .chain(name_cases())
        .chain(traffic_cases())
        .chain(suppression_cases());
    for case in cases {
        let found = findings(&case.bad);
        let of = |findings: &[Finding]| -> Vec<u64> {
            let own = findings.iter().filter(|finding| finding.id == case.id);
            own.map(|finding| finding.place.line).collect()
        };
        if !of(&found).contains(&case.line) {
            wrong.push(format!(
                "{} not at line {} but {:?}:\n{}",
                case.id,
                case.line,
                of(&found),
                case.bad
            ));
        }
        let found = findings(&case.good);
        if !of(&found).is_empty() {
            wrong.push(format!("{} at {:?}:\n{}", case.id, of(&found), case.good));
        }
        tested.insert(case.id);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let all: BTreeSet<&str> = lints().iter().map(|lint| lint.id).collect();
    assert_eq!(tested, all);
}

/// No single rule hides the last one; three do together, and a fourth has nothing to do with it.
#[test]
fn several_rules_shadow_together() {
    let text = db("  - {action: deny, peers: [{entity: world}]}
  - {action: deny, peers: [{selector: {env: prod}}, {entity: unmanaged}]}
  - {action: deny, ports: [{protocol: udp}]}
  - {action: deny, peers: [{selector: {matchExpressions: [{key: env, operator: NotIn, values: [prod]}]}}]}
  - {action: allow, ports: [{port: 80}]}");
    let found = findings(&text);
    let shadowed = found
        .iter()
        .find(|finding| finding.id == "shadowed-rule")
        .unwrap();
    assert_eq!(shadowed.rule.as_deref(), Some("standard/db/ingress[4]"));
    let names: Vec<&str> = shadowed
        .related
        .iter()
        .map(|related| related.text.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "standard/db/ingress[0] (deny)",
            "standard/db/ingress[1] (deny)",
            "standard/db/ingress[3] (deny)"
        ]
    );
    assert_eq!(shadowed.level, Level::Warning);
    // With one label value left open, it is not.
    let found = findings(&text.replace("values: [prod]", "values: [prod, dev]"));
    assert!(
        found.iter().all(|finding| finding.id != "shadowed-rule"),
        "{found:#?}"
    );
}

#[test]
fn earlier_tiers_shadow_and_pass_gets_through() {
    let guardrail = |rules: &str| {
        document(
            "Guardrail",
            "g",
            &format!("subject: all\ningress: [{rules}]"),
        )
    };
    let policy = db("  - {action: allow, peers: [{cidr: 10.0.0.0/8}], ports: [{port: 23}]}");
    let shadowed = |text: &str| {
        findings(text)
            .iter()
            .any(|finding| finding.id == "shadowed-rule")
    };
    assert!(shadowed(
        &(guardrail("{action: deny, ports: [{port: 23}]}") + &policy)
    ));
    assert!(!shadowed(
        &(guardrail(
            "{action: pass, peers: [{cidr: 10.1.0.0/16}]}, {action: deny, ports: [{port: 23}]}"
        ) + &policy)
    ));
    // What is staged hides nothing that is enforced.
    assert!(!shadowed(
        &(guardrail("{action: deny, ports: [{port: 23}]}")
            .replace("subject", "state: staged\n  subject")
            + &policy)
    ));
    // What ends earlier does not either.
    let text = guardrail("{action: deny, ports: [{port: 23}]}")
        .replace("subject", "expires: 2030-06-01T00:00:00Z\n  subject")
        + &policy;
    assert!(!shadowed(&text));
    // The baseline is never asked where the standard tier is closed.
    let baseline = document(
        "Policy",
        "base",
        "tier: baseline\nstate: enforced\nsubject: {app: db}\ningress: [{action: allow, ports: [{port: 99}]}]",
    );
    assert!(shadowed(&(policy + &baseline)));
}

#[test]
fn suppressions_need_a_reason_and_the_right_place() {
    let rule = "  - {action: allow}";
    let suppressed = |text: &str| {
        let found = findings(text);
        let finding = found
            .iter()
            .find(|finding| finding.id == "any-any-allow")
            .unwrap();
        finding.suppressed.as_ref().map(|own| own.reason.clone())
    };
    let reason = Some("it is the honeypot".to_owned());
    let wish = "# cofferdam-lint: ignore any-any-allow: it is the honeypot";
    assert_eq!(suppressed(&db(&format!("{rule} {wish}"))), reason);
    assert_eq!(
        suppressed(&db(&format!("  {wish}\n  # more words\n{rule}"))),
        reason
    );
    assert_eq!(suppressed(&format!("{wish}\n{}", db(rule))), reason);
    let annotated = db(rule).replace("owner: me", "owner: me, annotations: {cofferdam.dev/lint-ignore: \"expired: never; any-any-allow: it is the honeypot\"}");
    assert_eq!(suppressed(&annotated), reason);
    let long = format!(
        "  - action: allow\n    ports: []\n    audit: true {wish}\n  - {{action: deny, ports: [{{port: 1}}]}}"
    );
    assert_eq!(suppressed(&db(&long)), reason);
    assert_eq!(
        suppressed(&db(&format!(
            "{rule}\n  - {{action: deny, ports: [{{port: 1}}]}} {wish}"
        ))),
        None
    );
    // Elsewhere in the file it means something else.
    assert_eq!(suppressed(&(db(rule) + wish + "\n" + &anybody_out())), None);
    assert_eq!(
        suppressed(&db(&format!(
            "{rule}  # cofferdam-lint: ignore any-any-allow"
        ))),
        None
    );
    // Text that looks like a comment is none.
    assert_eq!(
        suppressed(&db(&format!("  - {{action: allow, name: \"{wish}\"}}"))),
        None
    );
}

#[test]
fn fingerprints_stay_when_lines_move() {
    let text = db("  - {action: allow}\n  - {action: deny, ports: [{port: 22}]}")
        + &document("AddressGroup", "office", "cidrs: [192.0.2.0/24]");
    let prints = |text: &str| -> BTreeSet<String> {
        findings(text)
            .into_iter()
            .map(|finding| finding.fingerprint)
            .collect()
    };
    let before = prints(&text);
    assert_eq!(before.len(), findings(&text).len(), "they are unique");
    assert_eq!(prints(&format!("# a line\n\n{text}")), before);
    assert_ne!(prints(&text.replace("office", "home")), before);
}

#[test]
fn flow_records_are_read_strictly() {
    let line = r#"{"protocol": "icmp", "icmp_type": 8, "icmp_code": 0, "initiator": {"address": "10.0.0.1"}, "responder": {"address": "10.0.0.9"}}"#;
    let talks = parse_flows(&Source::new(
        "f",
        format!("{line}\n{{\"missed\": 3}}\n\n{line}\n"),
    ))
    .unwrap();
    assert_eq!((talks.len(), talks[0].port), (1, 8 << 8));
    let problems = parse_flows(&Source::new("f", format!("{line}\n{{\"a\": 1}}\n"))).unwrap_err();
    assert!(
        problems
            .to_string()
            .starts_with("f:2:1: error: not a flow record"),
        "{problems}"
    );
}
