//! What the demo prints: text for people, one JSON document per step for machines.

use std::time::Instant;

use anyhow::{Result, bail};
use serde_json::{Value, json};

/// Collects the outcome of every step.
pub(crate) struct Report {
    json: bool,
    passed: u32,
    failed: u32,
    start: Instant,
}

/// What a step has to say.
pub(crate) struct Outcome<T> {
    /// For the next steps.
    pub(crate) value: T,
    /// For people.
    pub(crate) text: String,
    /// For machines.
    pub(crate) data: Value,
}

impl<T> Outcome<T> {
    /// A result with something to show.
    pub(crate) fn new(value: T, text: impl Into<String>, data: Value) -> Self {
        Self {
            value,
            text: text.into(),
            data,
        }
    }
}

impl Report {
    /// An empty report.
    pub(crate) fn new(json: bool) -> Self {
        Self {
            json,
            passed: 0,
            failed: 0,
            start: Instant::now(),
        }
    }

    /// Runs one step and prints what came of it.
    pub(crate) fn step<T>(
        &mut self,
        name: &str,
        about: &str,
        work: impl FnOnce() -> Result<Outcome<T>>,
    ) -> Result<T> {
        if !self.json {
            println!("\n== {name}: {about}");
        }
        let start = Instant::now();
        let outcome = work();
        let seconds = (start.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
        match outcome {
            Ok(outcome) => {
                self.passed += 1;
                if self.json {
                    println!(
                        "{}",
                        json!({"step": name, "ok": true, "seconds": seconds, "result": outcome.data})
                    );
                } else {
                    println!("{}\n   ok, {seconds} s", outcome.text.trim_end());
                }
                Ok(outcome.value)
            }
            Err(error) => {
                self.failed += 1;
                if self.json {
                    println!(
                        "{}",
                        json!({"step": name, "ok": false, "seconds": seconds, "error": format!("{error:#}")})
                    );
                } else {
                    println!("   FAILED after {seconds} s: {error:#}");
                }
                Err(error)
            }
        }
    }

    /// Prints something that is no step.
    pub(crate) fn say(&self, text: &str) {
        if !self.json {
            println!("\n{text}");
        }
    }

    /// Prints the summary; an error when a step failed.
    pub(crate) fn close(self, outcome: Result<()>) -> Result<()> {
        let seconds = self.start.elapsed().as_secs();
        if self.json {
            println!(
                "{}",
                json!({"summary": {"passed": self.passed, "failed": self.failed, "seconds": seconds}})
            );
        } else {
            println!(
                "\ndemo: {} passed, {} failed, in {seconds} s",
                self.passed, self.failed
            );
        }
        match outcome {
            Ok(()) => Ok(()),
            Err(error) => bail!("the demo failed: {error:#}"),
        }
    }
}
