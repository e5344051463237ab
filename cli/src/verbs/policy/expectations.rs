//! How the `tests` of policy files went.

use std::io;

use policy::filetests::TestResult;
use serde::Serialize;

use crate::output::{Document, Screen, Tone};

/// What became of every test.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    tests: Vec<Test>,
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

impl From<Vec<TestResult>> for Report {
    fn from(results: Vec<TestResult>) -> Self {
        let tests: Vec<Test> = results.into_iter().map(Into::into).collect();
        let passed = tests.iter().filter(|test| test.passed).count();
        Self {
            failed: tests.len() - passed,
            passed,
            tests,
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
        screen.line(&format!("{} passed, {} failed", self.passed, self.failed))
    }
}
