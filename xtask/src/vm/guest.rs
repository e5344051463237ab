//! Boots a guest and understands what it reports.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Time from power-on to the first suite, and from the last to power-off, on a processor that is not emulated.
pub(super) const BOOT_LIMIT: Duration = Duration::from_secs(20);

const QEMU: &str = "qemu-system-x86_64";

/// What a guest's init reported: lines with `@word` are its own, the others come from the test harness.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Report {
    /// `uname -r`.
    pub(super) kernel: String,
    /// What the agent's `preflight` says.
    pub(super) preflight: Value,
    pub(super) suites: Vec<Suite>,
    /// Runs of single tests that are known to fail: suite, test, whether it passed.
    pub(super) alone: Vec<(String, String, bool)>,
    /// Instructions that the verifier processed, by program.
    pub(super) verifier: BTreeMap<String, u32>,
    /// What is wrong with the guest itself: modules that did not load, complaints of the kernel.
    pub(super) broken: Vec<String>,
    /// Whether init came to its end.
    pub(super) done: bool,
}

/// One suite.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Suite {
    pub(super) name: String,
    /// Exit status; `None` when it did not come to that.
    pub(super) status: Option<i32>,
    pub(super) passed: Vec<String>,
    pub(super) failed: Vec<String>,
    /// Lines of tests that said they cannot run: `SKIP: ...`.
    pub(super) skipped: Vec<String>,
    /// What the harness counts itself.
    counted: Option<usize>,
}

impl Suite {
    /// Whether every test that ran passed, and the harness agrees on their number.
    pub(super) fn is_whole(&self) -> bool {
        self.status == Some(0) && self.failed.is_empty() && self.counted == Some(self.passed.len())
    }
}

impl Report {
    /// Reads what came out of the serial port.
    pub(super) fn parse(text: &str) -> Self {
        let mut report = Self::default();
        let mut alone: Option<(String, String)> = None;
        for line in text.lines().map(str::trim_end) {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match word {
                "@kernel" => report.kernel = rest.to_owned(),
                "@preflight" => report.preflight = serde_json::from_str(rest).unwrap_or_default(),
                "@suite" => report.suites.push(Suite {
                    name: rest.to_owned(),
                    ..Suite::default()
                }),
                "@alone" => {
                    alone = rest
                        .split_once(' ')
                        .map(|(suite, test)| (suite.to_owned(), test.to_owned()))
                }
                "@exit" => {
                    let status: Option<i32> = rest.parse().ok();
                    match (alone.take(), report.suites.last_mut()) {
                        (Some((suite, test)), _) => {
                            report.alone.push((suite, test, status == Some(0)))
                        }
                        (None, Some(suite)) => suite.status = status,
                        (None, None) => {}
                    }
                }
                "@verifier" => {
                    if let Some((name, number)) = rest.split_once(' ')
                        && let Ok(number) = number.parse()
                    {
                        report.verifier.insert(name.to_owned(), number);
                    }
                }
                "@broken" | "@dmesg" => report.broken.push(rest.to_owned()),
                "@done" => report.done = true,
                "@skipped" => {
                    if let Some(suite) = report.suites.last_mut() {
                        suite.skipped.push(rest.to_owned());
                    }
                }
                "test" if alone.is_none() => {
                    if let Some(suite) = report.suites.last_mut() {
                        suite.line(rest);
                    }
                }
                _ => {}
            }
        }
        report
    }
}

impl Suite {
    /// A line of the harness behind its first word.
    fn line(&mut self, rest: &str) {
        if let Some(counts) = rest.strip_prefix("result: ") {
            let passed = counts
                .split([';', '.'])
                .find_map(|part| part.trim().strip_suffix(" passed"));
            self.counted = passed.and_then(|number| number.parse().ok());
        } else if let Some((name, verdict)) = rest.split_once(" ... ") {
            let name = name.trim().to_owned();
            if verdict == "ok" {
                self.passed.push(name);
            } else {
                self.failed.push(format!("{name}: {verdict}"));
            }
        }
    }
}

/// Whether guests can be booted here.
pub(super) fn has_qemu() -> bool {
    crate::run::find_program(QEMU).is_some()
}

/// Boots a guest and waits for its end. `console` gets the kernel's messages, `report` what init reports.
pub(super) fn boot(
    image: &Path,
    initramfs: &Path,
    console: &Path,
    report: &Path,
    limit: Duration,
) -> Result<Report> {
    let file = |path: &Path| {
        File::create(path).with_context(|| format!("cannot write {}", path.display()))
    };
    let log = file(console)?;
    file(report)?;
    let mut child = Command::new(QEMU)
        .args([
            "-machine",
            "q35",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            "1536",
        ])
        .args([
            "-nographic",
            "-no-reboot",
            "-nodefaults",
            "-serial",
            "stdio",
            "-serial",
        ])
        .arg(format!("file:{}", report.display()))
        .arg("-kernel")
        .arg(image)
        .arg("-initrd")
        .arg(initramfs)
        // An emulated processor is slow: what looks like a lock-up is not one.
        .args([
            "-append",
            "console=ttyS0 panic=-1 mitigations=off nosoftlockup rdinit=/init",
        ])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot run {QEMU}"))?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if start.elapsed() > limit {
            child.kill().context("cannot end the guest")?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let text = fs::read(report).with_context(|| format!("cannot read {}", report.display()))?;
    let parsed = Report::parse(&String::from_utf8_lossy(&text));
    match status {
        None => bail!("the guest had not ended after {} s", limit.as_secs()),
        Some(status) if !status.success() => bail!("{QEMU} ended with {status}"),
        Some(_) => Ok(parsed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "noise\r\n@kernel 6.1.0\n@preflight {\"hook\":\"clsact\"}\n@suite kernel\nrunning 3 tests\n\
        test a ... ok\ntest m::b - should panic ... ok\ntest c ... FAILED\n\
        test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s\n\
        @exit 101\n@skipped SKIP: a: why\n@alone kernel d\ntest d ... ok\n\
        test result: ok. 1 passed; 0 failed\n@exit 0\n@verifier prog 123\n@dmesg WARNING: x\n";

    #[test]
    fn a_report_is_understood() {
        let report = Report::parse(TEXT);
        assert_eq!(report.kernel, "6.1.0");
        assert_eq!(report.preflight["hook"], "clsact");
        let [suite] = &report.suites[..] else {
            panic!("{report:?}")
        };
        assert_eq!(
            (suite.passed.len(), suite.status, suite.counted),
            (2, Some(101), Some(2))
        );
        assert_eq!(suite.failed, ["c: FAILED"]);
        assert_eq!(suite.skipped, ["SKIP: a: why"]);
        assert_eq!(report.alone, [("kernel".to_owned(), "d".to_owned(), true)]);
        assert_eq!(report.verifier["prog"], 123);
        assert_eq!(report.broken, ["WARNING: x"]);
        assert!(!report.done);
        assert!(!suite.is_whole());
    }

    #[test]
    fn a_suite_is_whole_only_when_all_agree() {
        let whole = "@suite s\ntest a ... ok\ntest result: ok. 1 passed; 0 failed; x\n@exit 0\n";
        let is_whole = |text: &str| Report::parse(text).suites[0].is_whole();
        assert!(is_whole(whole));
        assert!(!is_whole(&whole.replace("@exit 0", "@exit 137")));
        assert!(!is_whole(&whole.replace("@exit 0", "")));
        assert!(!is_whole(&whole.replace("test a ... ok", "test b garbled")));
        assert!(!is_whole(&whole.replace("a ... ok", "a ... ignored")));
    }
}
