//! Runs `cargo test`, shows its output as it comes and adds up the results of all its binaries.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

/// The sum over all test binaries.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Results {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) ignored: usize,
    /// Names of failed tests.
    pub(crate) failures: Vec<String>,
    /// Whether cargo itself was content; false also when something did not compile.
    pub(crate) success: bool,
}

impl Results {
    /// Takes one line of the test harness's output into account.
    fn line(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed += count(counts, "passed");
            self.failed += count(counts, "failed");
            self.ignored += count(counts, "ignored");
        } else if let Some(test) = line.strip_prefix("test ")
            && let Some(name) = test.strip_suffix(" ... FAILED")
        {
            self.failures.push(name.to_owned());
        }
    }
}

/// The number before `word` in `ok. 3 passed; 0 failed; …`.
fn count(counts: &str, word: &str) -> usize {
    counts
        .split([';', '.'])
        .find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
        .unwrap_or(0)
}

/// Runs a `cargo test` command to its end.
pub(crate) fn run(command: &mut Command) -> Result<Results> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo test")?;
    let stdout = child.stdout.take().context("cargo test has no output")?;
    let mut results = Results::default();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("cannot read the output of cargo test")?;
        // A test may print anything, not only text.
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        results.line(&line);
    }
    results.success = child.wait().context("cargo test was lost")?.success();
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_add_up() {
        let mut results = Results::default();
        for line in [
            "running 3 tests",
            "test a::b ... ok",
            "test a::c ... FAILED",
            "test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test result: ok. 40 passed; 0 failed; 2 ignored; 0 measured; 9 filtered out; finished in 1.00s",
        ] {
            results.line(line);
        }
        let expected = Results {
            passed: 41,
            failed: 1,
            ignored: 3,
            failures: vec!["a::c".into()],
            success: false,
        };
        assert_eq!(results, expected);
    }

    #[test]
    fn the_exit_status_is_kept() {
        let ok = run(Command::new("sh").args(["-c", "echo 'test result: ok. 2 passed; 0 failed'"]));
        let ok = ok.unwrap();
        assert!(ok.success && ok.passed == 2);
        assert!(
            !run(Command::new("sh").args(["-c", "exit 101"]))
                .unwrap()
                .success
        );
    }
}
