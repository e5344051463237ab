//! How the `tests` and the invariants of policy files went.

use std::io;

use policy::filetests::TestResult;
use policy::invariants::InvariantResult;
use serde::Serialize;

use crate::output::{Document, Screen, Tone};

/// What became of every test and invariant.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    tests: Vec<Test>,
    invariants: Vec<Invariant>,
    passed: usize,
    pub(super) failed: usize,
}

/// What became of one test.
#[derive(Debug, Serialize)]
struct Test {
    policy: String,
    /// Its name, or `tests[index]`.
    name: String,
    file: String,
    line: u64,
    column: u64,
    passed: bool,
    /// Connections that were tried; several when an end is a selector.
    connections: usize,
    /// What did not come out as expected.
    failures: Vec<String>,
}

/// What became of one invariant.
#[derive(Debug, Serialize)]
struct Invariant {
    file: String,
    line: u64,
    column: u64,
    passed: bool,
    /// Why not.
    failure: Option<String>,
    #[serde(flatten)]
    result: InvariantResult,
}

impl From<InvariantResult> for Invariant {
    fn from(result: InvariantResult) -> Self {
        Self {
            file: result.place.file.to_string(),
            line: result.place.line,
            column: result.place.column,
            passed: result.holds(),
            failure: (!result.holds()).then(|| result.outcome.to_string()),
            result,
        }
    }
}

impl From<TestResult> for Test {
    fn from(result: TestResult) -> Self {
        let mut failures = result.failures;
        // A test of nothing would pass for ever.
        if result.connections == 0 && failures.is_empty() {
            failures.push("the test means no connection at all".into());
        }
        Self {
            policy: result.policy,
            name: result.name,
            file: result.place.file.to_string(),
            line: result.place.line,
            column: result.place.column,
            passed: failures.is_empty(),
            connections: result.connections,
            failures,
        }
    }
}

impl Report {
    /// Of everything that was run.
    pub(super) fn new(tests: Vec<TestResult>, invariants: Vec<InvariantResult>) -> Self {
        let tests: Vec<Test> = tests.into_iter().map(Into::into).collect();
        let invariants: Vec<Invariant> = invariants.into_iter().map(Into::into).collect();
        let tested = tests.iter().map(|test| test.passed);
        let all = tested.chain(invariants.iter().map(|invariant| invariant.passed));
        let passed = all.filter(|passed| *passed).count();
        Self {
            failed: tests.len() + invariants.len() - passed,
            passed,
            tests,
            invariants,
        }
    }
}

impl Document for Report {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        for test in &self.tests {
            let (word, tone) = if test.passed {
                ("pass", Tone::Good)
            } else {
                ("FAIL", Tone::Bad)
            };
            screen.toned(word, tone)?;
            screen.line(&format!(
                "  {}: {}  ({}:{}:{})",
                test.policy, test.name, test.file, test.line, test.column
            ))?;
            for failure in &test.failures {
                screen.line(&format!("      {failure}"))?;
            }
        }
        for invariant in &self.invariants {
            let (word, tone) = if invariant.passed {
                ("pass", Tone::Good)
            } else {
                ("FAIL", Tone::Bad)
            };
            screen.toned(word, tone)?;
            let result = &invariant.result;
            screen.line(&format!(
                "  invariant {}: {}  ({}:{}:{})",
                result.name, result.claim, invariant.file, invariant.line, invariant.column
            ))?;
            if let Some(failure) = &invariant.failure {
                screen.line(&format!("      {failure}"))?;
            }
        }
        screen.line(&format!("{} passed, {} failed", self.passed, self.failed))
    }
}
