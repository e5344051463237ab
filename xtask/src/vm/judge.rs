//! Holds what a guest reported against what is expected of its kernel.

use std::collections::BTreeMap;

use anyhow::Result;

use super::Plan;
use super::expect::{Expected, How};
use super::guest::{Report, Suite};
use super::lock::Package;
use super::record::{Kernel, SkippedTest};
use super::suites::SUPPORT;

/// A kernel's results, and whatever is wrong with them.
#[derive(Debug)]
pub(super) struct Judged {
    /// What may be recorded when nothing is wrong.
    pub(super) record: Kernel,
    /// Empty when all is as it should be.
    pub(super) problems: Vec<String>,
}

impl Judged {
    /// One phrase.
    pub(super) fn outcome(&self) -> String {
        if self.record.missing.is_empty() {
            let passed: usize = self.record.passed.values().sum();
            format!(
                "{passed} tests passed, {} skipped, hooks: {}",
                self.record.skipped.len(),
                self.record.hook
            )
        } else {
            format!(
                "refused, as it should be: lacks {}",
                self.record.missing.join(", ")
            )
        }
    }
}

/// Judges a guest.
pub(super) fn judge(
    series: &str,
    package: &Package,
    report: Result<Report>,
    plan: &Plan,
) -> Judged {
    let (report, mut problems) = match report {
        Ok(report) => (report, Vec::new()),
        Err(error) => (Report::default(), vec![format!("{error:#}")]),
    };
    if !report.done {
        problems.push("the guest did not come to its end: see its console".into());
    }
    problems.extend(report.broken.iter().map(|line| format!("guest: {line}")));
    let expected = &plan.expected;
    let refusal = expected.refusal(series);
    for name in plan.of(series) {
        match report.suites.iter().find(|suite| suite.name == name) {
            None => problems.push(format!("{name}: did not run")),
            Some(suite) => problems.extend(suite_problems(series, suite, &report, expected)),
        }
    }
    if refusal.is_none()
        && plan.suites.iter().any(|suite| suite == SUPPORT)
        && report.verifier.is_empty()
    {
        problems.push("nobody said what the programs cost the verifier".into());
    }
    let features = features(&report);
    if features.is_empty() {
        problems.push("preflight named no feature".into());
    }
    let skipped = expected
        .excuses
        .iter()
        .filter(|excuse| excuse.series == series);
    let record = Kernel {
        series: series.to_owned(),
        release: report.kernel.clone(),
        version: package.version.clone(),
        object: plan.object.clone(),
        hook: report.preflight["hook"]
            .as_str()
            .unwrap_or("unknown")
            .to_owned(),
        missing: refusal.unwrap_or_default().to_vec(),
        features,
        passed: report
            .suites
            .iter()
            .map(|suite| (suite.name.clone(), suite.passed.len()))
            .collect(),
        skipped: skipped
            .map(|excuse| SkippedTest {
                test: format!("{}: {}", excuse.suite, excuse.test),
                reason: excuse.reason.clone(),
            })
            .collect(),
        verifier: report.verifier,
    };
    Judged { record, problems }
}

fn suite_problems(
    series: &str,
    suite: &Suite,
    report: &Report,
    expected: &Expected,
) -> Vec<String> {
    let name = &suite.name;
    let mut problems: Vec<String> = suite
        .failed
        .iter()
        .map(|test| format!("{name}: {test}"))
        .collect();
    if suite.failed.is_empty() && !suite.is_whole() {
        problems.push(match suite.status {
            Some(137) => format!("{name}: out of time"),
            Some(status) => format!("{name}: ended with {status}, and not every test was heard of"),
            None => format!("{name}: did not come to its end"),
        });
    }
    let says = |line: &str, test: &str| {
        line.strip_prefix("SKIP: ")
            .is_some_and(|rest| rest.starts_with(test))
    };
    for line in &suite.skipped {
        let excused = expected
            .of(series, name)
            .any(|excuse| excuse.how == How::Skips && says(line, &excuse.test));
        if !excused {
            problems.push(format!(
                "{name}: not on the list of what may be skipped: {line}"
            ));
        }
    }
    for excuse in expected.of(series, name) {
        let unearned = match excuse.how {
            How::Skips => {
                suite.is_whole() && !suite.skipped.iter().any(|line| says(line, &excuse.test))
            }
            How::Fails => !report
                .alone
                .iter()
                .any(|(suite, test, passed)| suite == name && *test == excuse.test && !passed),
        };
        if unearned {
            problems.push(format!(
                "{name}: {} is on the list of what cannot run, and runs: take it off",
                excuse.test
            ));
        }
    }
    problems
}

/// Names and answers of the agent's probes.
fn features(report: &Report) -> BTreeMap<String, String> {
    let list = report.preflight["features"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    list.iter()
        .filter_map(|feature| {
            Some((
                feature["name"].as_str()?.to_owned(),
                feature["answer"].as_str()?.to_owned(),
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUITES: [&str; 3] = [SUPPORT, "kernel", "clsact"];

    fn plan(list: &str) -> Plan {
        Plan {
            suites: SUITES.map(str::to_owned).into(),
            expected: Expected::parse(list).unwrap(),
            object: String::new(),
        }
    }

    fn package() -> Package {
        super::super::lock::parse(&format!(
            "6.1 debian s linux-image-x 6.1.2-1 {} pool/x.deb",
            "a".repeat(64)
        ))
        .unwrap()
        .remove(0)
    }

    fn good(suites: &[&str]) -> String {
        let mut text = "@kernel 6.1.0\n@preflight {\"hook\":\"tcx\",\"features\":[{\"name\":\"tcx\",\"answer\":\"yes\"}]}\n".to_owned();
        for suite in suites {
            text += &format!(
                "@suite {suite}\ntest t ... ok\ntest result: ok. 1 passed; 0 failed; x\n@exit 0\n"
            );
        }
        text + "@verifier prog 5\n@done\n"
    }

    fn problems(text: &str, list: &str) -> Vec<String> {
        judge("6.1", &package(), Ok(Report::parse(text)), &plan(list)).problems
    }

    #[test]
    fn nothing_is_wrong_when_all_passed() {
        assert_eq!(problems(&good(&SUITES), ""), [""; 0]);
    }

    #[test]
    fn whatever_is_missing_is_a_failure() {
        let text = good(&SUITES);
        for (from, to) in [
            ("@done", ""),
            ("@exit 0", "@exit 137"),
            ("t ... ok", "t ... FAILED"),
            ("@verifier prog 5", ""),
            ("@kernel", "@dmesg WARNING: x\n@kernel"),
            ("@suite clsact", "@other"),
            ("@preflight", "@other"),
            (
                "@exit 0\n@suite clsact",
                "@exit 0\n@skipped SKIP: t: why\n@suite clsact",
            ),
        ] {
            assert_ne!(
                problems(&text.replacen(from, to, 1), ""),
                [""; 0],
                "{from} -> {to}"
            );
        }
        let lost = judge("6.1", &package(), Err(anyhow::anyhow!("lost")), &plan(""));
        assert_eq!(lost.problems[0], "lost");
    }

    #[test]
    fn a_skip_is_earned_or_an_error() {
        let text = good(&SUITES);
        let skips = "skips 6.1 clsact t why";
        assert_eq!(problems(&text, skips).len(), 1);
        let said = text.replace("@verifier", "@skipped SKIP: t: why\n@verifier");
        assert_eq!(problems(&said, skips), [""; 0]);
        let fails = "fails 6.1 clsact u why";
        let alone = |status: i32| {
            text.replace(
                "@verifier",
                &format!("@alone clsact u\n@exit {status}\n@verifier"),
            )
        };
        assert_eq!(problems(&alone(101), fails), [""; 0]);
        assert_eq!(problems(&alone(0), fails).len(), 1);
        assert_eq!(problems(&text, fails).len(), 1);
        let gone = "skips 6.1 clsact gone why";
        assert_eq!(problems(&text, gone).len(), 1, "no such test");
    }

    #[test]
    fn a_refused_kernel_is_asked_for_nothing_more() {
        let text = good(&[SUPPORT]).replace("@verifier prog 5\n", "");
        assert_eq!(problems(&text, "refused 6.1 fetch-atomics"), [""; 0]);
        assert_ne!(problems(&text, ""), [""; 0]);
    }
}
