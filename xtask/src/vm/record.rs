//! The results that were recorded last, and the page for people that is made of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::judge::Judged;
use super::lock;
use super::{LOCK, PAGE, RESULTS};
use crate::project::Project;

/// The contents of `xtask/vm/results.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Recorded {
    kernels: Vec<Kernel>,
}

/// What was found on one kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kernel {
    pub(super) series: String,
    /// `uname -r`.
    pub(super) release: String,
    /// Version of the package.
    pub(super) version: String,
    /// SHA-256 of the kernel object that ran.
    #[serde(default)]
    pub(super) object: String,
    /// `tcx` or `clsact`.
    pub(super) hook: String,
    /// What the agent refuses it for; empty when it does not.
    pub(super) missing: Vec<String>,
    /// Answers of the agent's probes.
    pub(super) features: BTreeMap<String, String>,
    /// Tests passed, by suite.
    pub(super) passed: BTreeMap<String, usize>,
    pub(super) skipped: Vec<SkippedTest>,
    /// Instructions that the verifier processed, by program.
    pub(super) verifier: BTreeMap<String, u32>,
}

/// A test that does not run on a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SkippedTest {
    pub(super) test: String,
    pub(super) reason: String,
}

impl Recorded {
    /// What was recorded last; nothing, if nothing was.
    pub(super) fn read(project: &Project) -> Result<Self> {
        let path = project.path(RESULTS);
        match fs::read_to_string(&path) {
            Ok(text) => {
                serde_json::from_str(&text).with_context(|| format!("in {}", path.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Puts new results in place of those of the same kernels, in the order of the lock file.
    pub(super) fn merge(&mut self, project: &Project, results: &[&Judged]) -> Result<()> {
        for result in results {
            let kernel = result.record.clone();
            self.kernels.retain(|other| other.series != kernel.series);
            self.kernels.push(kernel);
        }
        let text = fs::read_to_string(project.path(LOCK))
            .with_context(|| format!("cannot read {LOCK}"))?;
        let order = lock::series(&lock::parse(&text)?);
        self.kernels.retain(|kernel| order.contains(&kernel.series));
        self.kernels
            .sort_by_key(|kernel| order.iter().position(|series| *series == kernel.series));
        Ok(())
    }

    /// Writes the results and the page.
    pub(super) fn write(&self, project: &Project) -> Result<()> {
        let json = serde_json::to_string_pretty(self).context("results cannot be written")?;
        for (name, text) in [(RESULTS, json + "\n"), (PAGE, self.page())] {
            fs::write(project.path(name), text).with_context(|| format!("cannot write {name}"))?;
        }
        Ok(())
    }

    /// The page.
    fn page(&self) -> String {
        let mut page = String::from(HEAD);
        if self.kernels.is_empty() {
            page.push_str("Nothing was recorded yet.\n");
            return page;
        }
        let columns: Vec<String> = self.kernels.iter().map(Kernel::column).collect();
        table(
            &mut page,
            "",
            &columns,
            [
                ("result", self.cells(Kernel::result)),
                (
                    "hooks that are taken",
                    self.cells(|kernel| {
                        if kernel.missing.is_empty() {
                            kernel.hook.clone()
                        } else {
                            "–".into()
                        }
                    }),
                ),
                ("package", self.cells(|kernel| kernel.version.clone())),
                (
                    "object (SHA-256)",
                    self.cells(|kernel| kernel.object.get(..12).unwrap_or("–").to_owned()),
                ),
            ]
            .map(|(name, cells)| (name.to_owned(), cells)),
        );
        page.push_str("\n## Tests passed\n\n");
        table(
            &mut page,
            "suite",
            &columns,
            self.rows(|kernel| &kernel.passed, usize::to_string),
        );
        page.push_str("\n## Tests that do not run\n\n");
        self.skips(&mut page);
        page.push_str(VERIFIER);
        table(
            &mut page,
            "program",
            &columns,
            self.rows(|kernel| &kernel.verifier, |number| thousands(*number)),
        );
        page.push_str("\n## What the agent's probes answer (`cofferdam-agent preflight`)\n\n");
        table(
            &mut page,
            "feature",
            &columns,
            self.rows(|kernel| &kernel.features, String::clone),
        );
        page
    }

    fn cells(&self, cell: impl Fn(&Kernel) -> String) -> Vec<String> {
        self.kernels.iter().map(cell).collect()
    }

    /// A row for each name that any kernel has something for.
    fn rows<'a, T: 'a>(
        &'a self,
        of: impl Fn(&'a Kernel) -> &'a BTreeMap<String, T>,
        show: impl Fn(&T) -> String,
    ) -> Vec<(String, Vec<String>)> {
        let names: BTreeSet<&String> = self
            .kernels
            .iter()
            .flat_map(|kernel| of(kernel).keys())
            .collect();
        names
            .into_iter()
            .map(|name| {
                let cells = self
                    .kernels
                    .iter()
                    .map(|kernel| of(kernel).get(name).map_or_else(|| "–".into(), &show));
                (format!("`{name}`"), cells.collect())
            })
            .collect()
    }

    fn skips(&self, page: &mut String) {
        let mut any = false;
        for kernel in &self.kernels {
            for SkippedTest { test, reason } in &kernel.skipped {
                any = true;
                // Writing to a string does not fail.
                let _ = writeln!(page, "* {}: `{test}`: {reason}", kernel.release);
            }
        }
        if !any {
            page.push_str("None.\n");
        }
    }
}

impl Kernel {
    fn column(&self) -> String {
        self.release.replace("-cloud-amd64", "")
    }

    fn result(&self) -> String {
        if self.missing.is_empty() {
            format!("{} tests passed", self.passed.values().sum::<usize>())
        } else {
            format!("refused: lacks {}", self.missing.join(", "))
        }
    }
}

const HEAD: &str = "<!-- Generated by `cargo xtask vm --record` from xtask/vm/results.json. -->

# Kernels

What the agent's kernel suites (`agent/tests`) found inside Debian's cloud kernels under QEMU. `cargo xtask vm` repeats it.
A kernel that lacks what the agent needs is refused before anything is loaded, with a message that names it.

";

const VERIFIER: &str = "
## What the programs cost the verifier

Instructions processed; kernels stop at 1,000,000. The suite `kernel_support` holds them against `agent-ebpf/verifier.budget`.

";

fn table(
    page: &mut String,
    corner: &str,
    columns: &[String],
    rows: impl IntoIterator<Item = (String, Vec<String>)>,
) {
    let mut line = |cells: &[String]| {
        page.push_str("| ");
        page.push_str(&cells.join(" | "));
        page.push_str(" |\n");
    };
    line(&[&[corner.to_owned()], columns].concat());
    line(&vec!["---".to_owned(); columns.len() + 1]);
    for (name, cells) in rows {
        line(&[&[name], &cells[..]].concat());
    }
}

fn thousands(number: u32) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Whether the page is made of the results.
pub(super) fn check(project: &Project) -> Result<()> {
    let page =
        fs::read_to_string(project.path(PAGE)).with_context(|| format!("cannot read {PAGE}"))?;
    if page != Recorded::read(project)?.page() {
        bail!("{PAGE} is not what {RESULTS} says: run cargo xtask vm --record");
    }
    println!("vm: {PAGE} says what {RESULTS} says");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(series: &str) -> Kernel {
        Kernel {
            series: series.into(),
            release: format!("{series}.9-cloud-amd64"),
            hook: "tcx".into(),
            passed: BTreeMap::from([("kernel".into(), 3), ("clsact".into(), 4)]),
            verifier: BTreeMap::from([("prog".into(), 1_234_567)]),
            ..Kernel::default()
        }
    }

    #[test]
    fn the_page_says_what_was_recorded() {
        let mut refused = kernel("5.10");
        refused.missing = vec!["fetch-atomics".into()];
        refused.passed.clear();
        let mut skipping = kernel("6.1");
        skipping.skipped = vec![SkippedTest {
            test: "clsact: t".into(),
            reason: "no TCX".into(),
        }];
        let page = Recorded {
            kernels: vec![refused, skipping],
        }
        .page();
        for line in [
            "|  | 5.10.9 | 6.1.9 |",
            "| result | refused: lacks fetch-atomics | 7 tests passed |",
            "| `kernel` | – | 3 |",
            "* 6.1.9-cloud-amd64: `clsact: t`: no TCX",
            "| `prog` | 1,234,567 | 1,234,567 |",
        ] {
            assert!(page.contains(line), "{line}\n{page}");
        }
    }

    #[test]
    fn the_page_of_this_tree_is_made_of_its_results() {
        let project = Project::find().unwrap();
        check(&project).unwrap();
    }
}
