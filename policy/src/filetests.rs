//! The `tests` of policy files.
//!
//! A test asks for the *draft* verdict: what would happen if everything in the set were enforced. So a
//! policy can be tested before anybody enforces it, and the modes of workloads do not blur the answer.

use std::fmt;

use time::OffsetDateTime;

use crate::evaluate::{ConnectionVerdict, EndVerdict, evaluate};
use crate::model::{PolicyTest, TestEnd};
use crate::ports::{is_icmp, protocol_name};
use crate::probe::{Probe, ProbeEnd};
use crate::set::PolicySet;
use crate::source::Place;
use crate::world::World;

/// How one test went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestResult {
    /// Policy that holds it.
    pub policy: String,
    /// Its name, or `tests[index]`.
    pub name: String,
    /// Where it stands.
    pub place: Place,
    /// How many connections were tried: selectors mean every workload that they select.
    pub connections: usize,
    /// What did not come out as expected.
    pub failures: Vec<String>,
}

impl TestResult {
    /// Whether everything came out as expected.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.failures.is_empty()
    }
}

impl fmt::Display for TestResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.passed() { "ok" } else { "FAILED" };
        write!(f, "{}: {word}: {} ({})", self.place, self.name, self.policy)?;
        for failure in &self.failures {
            write!(f, "\n    {failure}")?;
        }
        Ok(())
    }
}

/// Runs every test of a set.
#[must_use]
pub fn run_tests(world: &World, set: &PolicySet, at: OffsetDateTime) -> Vec<TestResult> {
    let mut results = Vec::new();
    for policy in set.policies() {
        for (index, test) in policy.tests.iter().enumerate() {
            let mut result = TestResult {
                policy: policy.metadata.name.clone(),
                name: test
                    .name
                    .clone()
                    .unwrap_or_else(|| format!("tests[{index}]")),
                place: test.place.clone(),
                connections: 0,
                failures: Vec::new(),
            };
            run(world, set, test, at, &mut result);
            results.push(result);
        }
    }
    results
}

fn run(
    world: &World,
    set: &PolicySet,
    test: &PolicyTest,
    at: OffsetDateTime,
    result: &mut TestResult,
) {
    let (sources, destinations) = (ends(world, &test.from), ends(world, &test.to));
    for (what, end, ends) in [
        ("from", &test.from, &sources),
        ("to", &test.to, &destinations),
    ] {
        if let (TestEnd::Selected(selector), true) = (end, ends.is_empty()) {
            // A test of nothing would pass for ever.
            let failure = format!("\"{what}\" selects no workload: {selector}");
            result.failures.push(failure);
        }
    }
    for from in &sources {
        for to in destinations.iter().filter(|to| *to != from) {
            let probe = Probe {
                id: String::new(),
                from: from.clone(),
                to: to.clone(),
                protocol: test.protocol,
                port: test.port,
            };
            result.connections += 1;
            match evaluate(world, set, &probe, at) {
                Ok(verdict) => {
                    if let Some(difference) = difference(test, &verdict) {
                        result
                            .failures
                            .push(format!("{}: {difference}", title(&probe)));
                    }
                }
                Err(error) => result.failures.push(error.to_string()),
            }
        }
    }
}

fn ends(world: &World, end: &TestEnd) -> Vec<ProbeEnd> {
    match end {
        TestEnd::Named(name) => vec![ProbeEnd::parse(name)],
        TestEnd::Selected(selector) => world
            .workloads()
            .iter()
            .filter(|workload| selector.matches(*workload))
            .map(|workload| ProbeEnd::Name(workload.full_name()))
            .collect(),
    }
}

/// The end that the draft's verdict comes from.
fn deciding(verdict: &ConnectionVerdict) -> Option<&EndVerdict> {
    let ends = || verdict.egress.iter().chain(&verdict.ingress);
    ends()
        .find(|end| !end.draft.is_allow())
        .or(verdict.ingress.as_ref())
        .or(verdict.egress.as_ref())
}

fn difference(test: &PolicyTest, verdict: &ConnectionVerdict) -> Option<String> {
    let end = deciding(verdict);
    let rule = end.map_or("no rule", |end| end.draft_rule.as_str());
    let reason = end.map_or("none", |end| end.draft_reason.name());
    if verdict.draft.is_allow() != test.expect_allow {
        let expected = if test.expect_allow { "allow" } else { "deny" };
        return Some(format!(
            "expected {expected}, but it is {} by {rule} ({reason})",
            verdict.draft.name()
        ));
    }
    if let Some(expected) = &test.reason
        && expected != reason
    {
        return Some(format!(
            "expected reason {expected}, but it is {reason} by {rule}"
        ));
    }
    if let Some(expected) = &test.rule
        && expected != rule
    {
        return Some(format!("expected rule {expected}, but {rule} decided"));
    }
    None
}

fn title(probe: &Probe) -> String {
    let end = |end: &ProbeEnd| match end {
        ProbeEnd::Name(name) => name.clone(),
        ProbeEnd::Address(address) => address.to_string(),
    };
    let [kind, code] = probe.port.to_be_bytes();
    let flow = if is_icmp(probe.protocol) {
        format!("{} type {kind} code {code}", protocol_name(probe.protocol))
    } else {
        format!("{}/{}", protocol_name(probe.protocol), probe.port)
    };
    format!("{} → {} {flow}", end(&probe.from), end(&probe.to))
}
