//! Every example of the policy guide is valid.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use policy::api::{Scenario, eval_probes, parse_probes};
use policy::filetests::run_tests;
use policy::source::Source;
use policy::world::World;
use time::macros::datetime;

const GUIDE: &str = include_str!("../../docs/policy.md");

/// Fenced blocks with exactly this info string.
fn blocks(info: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = GUIDE.lines();
    while let Some(line) = lines.next() {
        if let Some(found) = line.strip_prefix("```") {
            let text: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            if found == info {
                blocks.push(text.join("\n") + "\n");
            }
        }
    }
    blocks
}

#[test]
fn every_example_is_valid_and_they_fit_together() {
    let examples = blocks("yaml");
    assert!(examples.len() >= 9, "{}", examples.len());
    let sources: Vec<Source> = examples
        .iter()
        .enumerate()
        .map(|(index, text)| Source::new(format!("example {index}"), text.clone()))
        .collect();
    let inventory = Source::new("inv.yaml", blocks("yaml inventory").concat());
    let probes = Source::new("probes.jsonl", blocks("json").concat());
    assert_eq!(World::parse(&inventory).unwrap().workloads().len(), 2);
    assert_eq!(parse_probes(&probes).unwrap().len(), 2);
    let at = datetime!(2030-01-01 00:00 UTC);
    let lines = eval_probes(&inventory, &sources, &probes, at).unwrap();
    assert_eq!(lines.len(), 2);
    for line in lines {
        serde_json::from_str::<serde_json::Value>(&line).unwrap();
    }
}

#[test]
fn the_first_policy_passes_its_own_tests() {
    let text = blocks("yaml")[0].clone();
    let inventory = Source::new("inv.yaml", blocks("yaml inventory").concat());
    let at = datetime!(2030-01-01 00:00 UTC);
    let run = |text: &str| {
        let policy = Source::new("shop.yaml", text.to_owned());
        let scenario = Scenario::parse(Some(&inventory), &[policy]).unwrap();
        run_tests(&scenario.world, &scenario.set, at)
    };
    let results = run(&text);
    assert_eq!(results.len(), 2);
    assert!(results.iter().all(|result| result.passed()), "{results:#?}");
    // Without the source's egress the shop does not work, and the test says where it is denied.
    let (destination, _source) = text.split_once("---\n").unwrap();
    let results = run(destination);
    assert_eq!(
        results[0].failures,
        [
            "web-1 → shop/db-1 tcp/5432: expected allow, but it is deny by default-deny (default-deny)"
        ]
    );
    assert_eq!(results[0].place.line, 16);
}

#[test]
fn the_kubernetes_example_is_read() {
    let text = Source::new("k.yaml", blocks("yaml kubernetes").concat());
    let scenario = Scenario::parse(None, &[text]).unwrap();
    assert_eq!(
        scenario.set.policies()[0].metadata.name,
        "NetworkPolicy/shop/db"
    );
}

#[test]
fn the_conformance_case_is_one() {
    let text = blocks("json case").concat();
    let case: policy::conformance::Case = serde_json::from_str(&text).unwrap();
    let mut examiner = policy::conformance::Examiner::default();
    let answer = examiner.answer(&case, datetime!(2030-01-01 00:00 UTC));
    assert_eq!(
        policy::conformance::answer_line(&case.id, &answer),
        r#"{"id": "c1", "results": ["allow"]}"#
    );
}
