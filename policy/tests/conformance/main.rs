//! Kubernetes conformance cases: our own sample, and the shared collection where it is there.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod shared;

use policy::conformance::{Answer, Case, Examiner, Expected, Judge};
use policy::evaluate::Verdict;
use time::OffsetDateTime;

const AT: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

/// A case and the verdicts that it expects.
fn read(line: &str) -> (Case, Vec<Option<Verdict>>) {
    let case: Case = serde_json::from_str(line).expect("a case");
    let expected: Expected = serde_json::from_str(line).expect("a case");
    (case, expected.verdicts().collect())
}

/// Answers of both judges, and everything that is wrong with them.
fn examine<'a>(lines: impl Iterator<Item = &'a str>) -> (usize, usize, Vec<String>) {
    let mut evaluator = Examiner::new(Judge::Evaluator);
    let mut snapshot = Examiner::new(Judge::Snapshot);
    let (mut cases, mut probes, mut wrong) = (0, 0, Vec::new());
    for line in lines {
        let (case, expected) = read(line);
        cases += 1;
        probes += expected.len();
        for (judge, examiner) in [("evaluator", &mut evaluator), ("snapshot", &mut snapshot)] {
            let answer: Answer = examiner.answer(&case, AT);
            wrong.extend(
                answer
                    .errors
                    .iter()
                    .map(|error| format!("{} ({judge}): {error}", case.id)),
            );
            for (probe, (got, wanted)) in
                case.probes.iter().zip(answer.results.iter().zip(&expected))
            {
                assert!(wanted.is_some(), "{}: a probe expects nothing", case.id);
                if got != wanted {
                    wrong.push(format!("{} ({judge}): {probe:?} is {got:?}", case.id));
                }
            }
        }
    }
    (cases, probes, wrong)
}

#[test]
fn every_own_case_is_right_by_both_judges() {
    let (cases, probes, wrong) = examine(include_str!("cases.jsonl").lines());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!((cases, probes), (27, 151));
}

#[test]
fn a_case_that_says_the_opposite_is_told() {
    let line = include_str!("cases.jsonl").lines().next().unwrap();
    let opposite = line.replacen("\"expected\":\"allow\"", "\"expected\":\"deny\"", 1);
    let (_, _, wrong) = examine(std::iter::once(opposite.as_str()));
    assert_eq!(wrong.len(), 2, "{wrong:?}");
}

/// What no case can say, because nobody defines it for a cluster.
#[test]
fn two_pods_on_one_address_are_nobody() {
    let line = r#"{"id": "twins", "namespaces": [], "policies": [],
        "pods": [{"ns": "a", "name": "one", "ip": "10.0.0.1"}, {"ns": "a", "name": "two", "ip": "10.0.0.1"},
                 {"ns": "a", "name": "other", "ip": "10.0.0.2"}],
        "probes": [{"from": "a/one", "to": "a/other", "port": 1, "proto": "TCP"},
                   {"from": "a/other", "to": "a/two", "port": 1, "proto": "TCP"},
                   {"from": "10.0.0.1", "to": "a/other", "port": 1, "proto": "TCP"}]}"#;
    let (case, _) = read(line);
    for judge in [Judge::Evaluator, Judge::Snapshot] {
        let answer = Examiner::new(judge).answer(&case, AT);
        assert_eq!(answer.results, [Some(Verdict::Deny); 3], "{judge:?}");
    }
}

#[test]
fn what_cannot_be_judged_has_no_verdict_and_a_reason() {
    let line = r#"{"id": "odd", "pods": [{"ns": "a", "name": "one", "ip": "10.0.0.1"}], "policies": [],
        "probes": [{"from": "a/none", "to": "a/one", "port": 1, "proto": "TCP"},
                   {"from": "10.0.0.9", "to": "a/one", "port": 1, "proto": "TCP"},
                   {"from": "fd00::1", "to": "a/one", "port": 1, "proto": "TCP"},
                   {"from": "10.0.0.9", "to": "a/one", "port": 1, "proto": "QUIC"}]}"#;
    let (case, _) = read(line);
    let answer = Examiner::new(Judge::Evaluator).answer(&case, AT);
    assert_eq!(answer.results, [None, Some(Verdict::Allow), None, None]);
    let errors: Vec<String> = answer.errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        errors,
        [
            "there is no pod \"a/none\"",
            "from fd00::1 to 10.0.0.1: the ends have no address family in common",
            "unknown protocol \"QUIC\""
        ]
    );
    let refused = line.replacen(
        r#""policies": []"#,
        r#""policies": [{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"}, "spec": {"ingres": []}}]"#,
        1,
    );
    let (case, _) = read(&refused);
    let answer = Examiner::new(Judge::Evaluator).answer(&case, AT);
    assert_eq!(answer.results, [None; 4]);
    assert!(
        answer.errors[0].to_string().contains("odd#policies[0]:1:"),
        "{:?}",
        answer.errors
    );
}
