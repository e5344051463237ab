//! The `tests` of policy files.

use std::io;

use policy::api::Scenario;
use policy::evaluate::{ConnectionVerdict, EndVerdict, evaluate};
use policy::model::{PolicyTest, TestEnd};
use policy::probe::{Probe, ProbeEnd};
use serde::Serialize;
use time::OffsetDateTime;

use crate::output::{self, Document, Screen, Tone};

/// What became of every test.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) tests: Vec<Test>,
    pub(super) passed: usize,
    pub(super) failed: usize,
}

/// What became of one test.
#[derive(Debug, Serialize)]
pub(super) struct Test {
    policy: String,
    name: Option<String>,
    file: String,
    line: u64,
    column: u64,
    passed: bool,
    /// `allow` or `deny`.
    expected: &'static str,
    /// Connections that were evaluated; several when an end is a selector.
    connections: usize,
    /// Why it failed.
    message: Option<String>,
}

impl Document for Report {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        for test in &self.tests {
            let (word, tone) = if test.passed {
                ("pass", Tone::Good)
            } else {
                ("FAIL", Tone::Bad)
            };
            let what = test.name.as_deref().unwrap_or("test");
            let place = format!("{}:{}:{}", test.file, test.line, test.column);
            screen.toned(word, tone)?;
            screen.line(&format!("  {}: {what}  ({place})", test.policy))?;
            if let Some(message) = &test.message {
                screen.line(&format!("      {message}"))?;
            }
        }
        screen.line(&format!("{} passed, {} failed", self.passed, self.failed))
    }
}

/// Runs every test of every policy.
pub(super) fn run(scenario: &Scenario, at: OffsetDateTime) -> Report {
    let mut tests = Vec::new();
    for policy in scenario.set.policies() {
        for test in &policy.tests {
            let (connections, result) = judge(scenario, test, at);
            tests.push(Test {
                policy: policy.metadata.name.clone(),
                name: test.name.clone(),
                file: test.place.file.to_string(),
                line: test.place.line,
                column: test.place.column,
                passed: result.is_ok(),
                expected: crate::model::verdict(test.expect_allow),
                connections,
                message: result.err(),
            });
        }
    }
    let failed = tests.iter().filter(|test| !test.passed).count();
    Report {
        passed: tests.len() - failed,
        failed,
        tests,
    }
}

/// Evaluates every connection that the test means; the first that is not as expected fails it.
fn judge(
    scenario: &Scenario,
    test: &PolicyTest,
    at: OffsetDateTime,
) -> (usize, Result<(), String>) {
    let (sources, destinations) = match (
        members(scenario, &test.from, "from"),
        members(scenario, &test.to, "to"),
    ) {
        (Ok(sources), Ok(destinations)) => (sources, destinations),
        (Err(message), _) | (_, Err(message)) => return (0, Err(message)),
    };
    let both_selected = matches!(
        (&test.from, &test.to),
        (TestEnd::Selected(_), TestEnd::Selected(_))
    );
    let mut count = 0;
    for from in &sources {
        for to in &destinations {
            // Nobody means a workload's talk with itself by "every A to every B".
            if both_selected && from == to {
                continue;
            }
            count += 1;
            let probe = Probe {
                id: String::new(),
                from: from.clone(),
                to: to.clone(),
                protocol: test.protocol,
                port: test.port,
            };
            let result = evaluate(&scenario.world, &scenario.set, &probe, at)
                .map_err(|error| error.to_string())
                .and_then(|verdict| compare(test, &probe, &verdict));
            if result.is_err() {
                return (count, result);
            }
        }
    }
    if count == 0 {
        return (0, Err("the test means no connection at all".into()));
    }
    (count, Ok(()))
}

fn members(scenario: &Scenario, end: &TestEnd, which: &str) -> Result<Vec<ProbeEnd>, String> {
    match end {
        TestEnd::Named(name) => Ok(vec![ProbeEnd::parse(name)]),
        TestEnd::Selected(selector) => {
            let members: Vec<_> = scenario
                .world
                .workloads()
                .iter()
                .filter(|workload| selector.matches(*workload))
                .map(|workload| ProbeEnd::Name(workload.full_name()))
                .collect();
            if members.is_empty() {
                return Err(format!(
                    "`{which}` selects no workload; name the inventory with --inventory, or add \
                     Workload objects"
                ));
            }
            Ok(members)
        }
    }
}

fn compare(test: &PolicyTest, probe: &Probe, verdict: &ConnectionVerdict) -> Result<(), String> {
    let (side, decided) = decided_by(verdict);
    let rule = decided.map_or("none", |end| end.draft_rule.as_str());
    let reason = decided.map_or("none", |end| end.draft_reason.name());
    let expected = crate::model::verdict(test.expect_allow);
    let got = verdict.draft.name();
    let wanted_rule = test.rule.as_deref().unwrap_or(rule);
    let wanted_reason = test.reason.as_deref().unwrap_or(reason);
    let complaint = if expected != got {
        format!("expected {expected}, got {got}")
    } else if wanted_rule != rule {
        format!("expected rule {wanted_rule}, got {rule}")
    } else if wanted_reason != reason {
        format!("expected reason {wanted_reason}, got {reason}")
    } else {
        return Ok(());
    };
    let (from, to) = (end_name(&probe.from), end_name(&probe.to));
    let port = output::port(test.protocol.into(), test.port.into());
    Err(format!(
        "{complaint}: {from} → {to} {port}, {side} rule {rule}, reason {reason}"
    ))
}

/// The end whose draft decides: the first that denies, egress first; otherwise the destination's.
fn decided_by(verdict: &ConnectionVerdict) -> (&'static str, Option<&EndVerdict>) {
    let denies = |end: &&EndVerdict| !end.draft.is_allow();
    let (egress, ingress) = (verdict.egress.as_ref(), verdict.ingress.as_ref());
    if let Some(end) = egress.filter(denies) {
        return ("egress", Some(end));
    }
    match ingress {
        Some(end) => ("ingress", Some(end)),
        None => ("egress", egress),
    }
}

fn end_name(end: &ProbeEnd) -> String {
    match end {
        ProbeEnd::Name(name) => name.clone(),
        ProbeEnd::Address(address) => address.to_string(),
    }
}
