//! What the parser refuses, and what it says about it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::time::{Duration, Instant};

use policy::model::Object;
use policy::parse::parse;
use policy::problems::Problems;
use policy::set::PolicySet;
use policy::source::Source;
use policy::testing as generate;

fn problems(text: &str) -> String {
    let set = PolicySet::parse(&[Source::new("p.yaml", text)]);
    set.expect_err("the text should be refused").to_string()
}

/// A policy with one ingress rule.
fn with_rule(rule: &str) -> String {
    format!(
        "apiVersion: cofferdam.dev/v1\nkind: Policy\nmetadata: {{name: p}}\nspec:\n  subject: {{app: db}}\n  ingress:\n    - {rule}\n"
    )
}

fn with_spec(spec: &str) -> String {
    format!("apiVersion: cofferdam.dev/v1\nkind: Policy\nmetadata: {{name: p}}\nspec:\n  {spec}\n")
}

#[test]
fn names_place_and_fix() {
    for (text, wanted) in [
        (
            with_rule("{action: allow, portz: []}"),
            r#"p.yaml:7:23: error: unknown field "portz" in rule; did you mean "ports"?"#,
        ),
        (
            with_rule("{action: alow}"),
            r#"p.yaml:7:16: error: unknown action "alow"; did you mean "allow"?"#,
        ),
        (
            with_rule("{action: allow, action: deny}"),
            r#"p.yaml:7:23: error: duplicate key "action" in rule; keep one of the two"#,
        ),
        (
            with_rule("{action: allow, peers: [{cidr: 10.0.0.5/24}]}"),
            "write 10.0.0.0/24 for the network, or 10.0.0.5/32 for the one address",
        ),
        (
            with_rule("{action: allow, peers: [{cidr: 10.0.0.5}]}"),
            "write 10.0.0.5/32",
        ),
        (
            with_rule("{action: allow, peers: [{cidr: 10.0.0.0/33}]}"),
            r#""10.0.0.0/33" is no CIDR"#,
        ),
        (
            with_rule("{action: allow, peers: [{cidr: 10.0.0.0/24, except: [10.0.0.0/25, 10.0.0.128/25]}]}"),
            r#""except" covers all of 10.0.0.0/24"#,
        ),
        (
            with_rule("{action: allow, peers: [{cidr: 10.0.0.0/24, except: [10.0.0.0/8]}]}"),
            r#""except" covers all of 10.0.0.0/24"#,
        ),
        (
            with_rule("{action: allow, peers: [{cidr: 10.0.0.0/24, except: [10.1.0.0/24]}]}"),
            "10.1.0.0/24 is not inside 10.0.0.0/24",
        ),
        (
            with_rule("{action: allow, peers: [{cidr: \"::ffff:10.0.0.0/104\"}]}"),
            "write 10.0.0.0/8",
        ),
        (
            with_rule("{action: allow, peers: [{}]}"),
            "this peer says nothing",
        ),
        (
            with_rule("{action: allow, peers: [{entity: wrld}]}"),
            r#"did you mean "world"?"#,
        ),
        (
            with_rule("{action: allow, ports: [{port: 90, endPort: 80}]}"),
            "p.yaml:7:51: error: the port range 90–80 runs backwards; write port: 80, endPort: 90",
        ),
        (
            with_rule("{action: allow, ports: [{port: 70000}]}"),
            "outside 0–65535",
        ),
        (
            with_rule(r#"{action: allow, ports: [{port: "443"}]}"#),
            "write it without quotes: port: 443",
        ),
        (
            with_rule("{action: allow, ports: [{protocol: icmp, port: 8}]}"),
            r#"use "type" and "code""#,
        ),
        (
            with_rule("{action: allow, ports: [{protocol: icpm}]}"),
            r#"did you mean "icmp"?"#,
        ),
        (
            with_rule("{action: allow, ports: [{service: webb}]}"),
            r#"there is no Service "webb""#,
        ),
        (
            with_rule("{action: allow, audit: yes}"),
            r#""audit" must be true or false, but is a text"#,
        ),
        (
            with_spec("subject: {}"),
            "p.yaml:5:12: error: the subject's selector is empty; to mean every workload, write subject: all",
        ),
        (with_spec("ingress: []"), r#"there is no "subject""#),
        (
            with_spec("{subject: {app: db}, tier: gardrail}"),
            r#"did you mean "guardrail"?"#,
        ),
        (
            with_spec("{subject: {app: db}, priority: 70000}"),
            "outside 0–65535",
        ),
        (
            with_spec("{subject: {app: db}, expires: tomorrow}"),
            "no RFC 3339 time",
        ),
        (
            with_spec("{subject: {app: db}, ingress: }"),
            "write ingress: [] to close the direction",
        ),
        (
            with_spec("{subject: {version: 1.10}}"),
            "put it in quotes",
        ),
        (
            with_spec("{subject: {matchLabel: {app: db}}}"),
            r#"did you mean "matchLabels"?"#,
        ),
        (
            with_spec("{subject: {matchExpressions: [{key: a, operator: In}]}}"),
            r#"this operator needs "values""#,
        ),
        (
            "apiVersion: cofferdam.dev/v2\nkind: Policy\nmetadata: {name: p}\nspec: {subject: all}".to_owned(),
            "write cofferdam.dev/v1",
        ),
        (
            "apiVersion: cofferdam.dev/v1\nkind: Polcy\nmetadata: {name: p}\nspec: {}".to_owned(),
            r#"unknown kind "Polcy"; did you mean "Policy"?"#,
        ),
        (
            "apiVersion: cofferdam.dev/v1\nkind: Grant\nmetadata: {name: g}\nspec: {subject: {app: db}, peers: [{entity: any}]}".to_owned(),
            r#"has no "expires""#,
        ),
        ("a: [".to_owned(), "p.yaml:"),
        (
            with_spec("{subject: {app: db}}") + "---\n" + &with_spec("{subject: {app: web}}"),
            "there are two objects Policy/p; the other one is at p.yaml:1:1",
        ),
        (
            with_spec("{subject: {app: db}, replaces: p}"),
            "replaces itself",
        ),
    ] {
        let found = problems(&text);
        assert!(found.contains(wanted), "{text}\nsaid: {found}\nwanted: {wanted}");
    }
}

#[test]
fn every_problem_is_named_at_once() {
    let text = with_rule("{action: alow, portz: [], peers: [{cidr: 10.0.0.1/8}, {}]}")
        + "---\n"
        + &with_spec("{subject: {}, tier: x}");
    let Problems(list) = parse(&[Source::new("a.yaml", text)]).unwrap_err();
    assert_eq!(list.len(), 6, "{list:#?}");
}

#[test]
fn reads_what_it_writes() {
    for seed in 0..200 {
        let random = &mut generate::Random::new(seed);
        let mut objects = generate::objects(random);
        // Text cannot say an empty selector's difference to `all`, nor peers that cover themselves.
        let before: Vec<String> = objects
            .iter()
            .map(|object| object.to_json().to_string())
            .collect();
        let parsed: Vec<Object> = match parse(&[Source::new("x.json", before.join("\n---\n"))]) {
            Ok(parsed) => parsed,
            Err(problems) => {
                assert!(problems.to_string().contains("covers all of"), "{problems}");
                continue;
            }
        };
        for object in &mut objects {
            // Rules of modes and filters without ports come back as "any".
            assert_eq!(
                parsed.iter().find(|other| other.id() == object.id()),
                Some(&*object)
            );
        }
    }
}

#[test]
fn hostile_texts_are_refused_quickly() {
    let bomb: String = (1..30).fold(
        "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned(),
        |text, level| {
            let list = vec![format!("*a{}", level - 1); 9].join(", ");
            text + &format!("a{level}: &a{level} [{list}]\n")
        },
    );
    for text in [
        bomb,
        "[".repeat(200_000),
        "{a: ".repeat(200_000),
        "- ".repeat(200_000),
        "a: ".to_owned() + &"&a ".repeat(100_000),
        "x".repeat(5 * 1024 * 1024),
        "---\n".repeat(900_000),
        "? ".repeat(100_000),
        "\u{0}\u{1}\u{2}".to_owned(),
    ] {
        let began = Instant::now();
        let _result = PolicySet::parse(&[Source::new("x", text)]);
        assert!(began.elapsed() < Duration::from_secs(5));
    }
    let error = Source::from_bytes("x.yaml", b"ok: 1\nbad: \xff\n").unwrap_err();
    assert_eq!(
        error.to_string(),
        "x.yaml:2:6: error: this byte is not UTF-8; save the file as UTF-8"
    );
}

/// A list is as strict as its items would be alone.
#[test]
fn items_of_a_list_are_read_strictly() {
    let list = |item: &str| format!("kind: List\napiVersion: v1\nitems:\n- {item}\n");
    for (item, wanted) in [
        (
            "{apiVersion: cofferdam.dev/v1, metadata: {name: p}, spec: {subject: all}}",
            "p.yaml:4:3: error: document has no \"kind\"",
        ),
        (
            "{apiVersion: cofferdam.dev/v1, kind: 7, metadata: {name: p}, spec: {subject: all}}",
            "\"kind\" must be a text",
        ),
        (
            "{apiVersion: cofferdam.dev/v1, kind: Policy, metadata: {name: p}, spec: {subject: {a: b}}, spec: {subject: all}}",
            "duplicate key \"spec\"",
        ),
        ("{kind: List, items: []}", "unknown kind \"List\""),
    ] {
        let found = problems(&list(item));
        assert!(found.contains(wanted), "{item}\nsaid: {found}");
    }
}

#[test]
fn lists_and_selectors_have_short_and_long_forms() {
    let short = with_spec("{subject: {app: db}}");
    let long = with_spec("{subject: {matchLabels: {app: db}}}");
    assert_eq!(
        parse(&[Source::new("a", short.clone())]).unwrap(),
        parse(&[Source::new("b", long)]).unwrap()
    );
    let listed = "kind: List\napiVersion: v1\nitems:\n- {apiVersion: cofferdam.dev/v1, kind: Policy, metadata: {name: p}, spec: {subject: {app: db}}}\n";
    assert_eq!(
        parse(&[Source::new("a", short)]).unwrap(),
        parse(&[Source::new("b", listed)]).unwrap()
    );
}
