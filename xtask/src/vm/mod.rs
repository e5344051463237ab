//! `cargo xtask vm`: the agent's kernel suites inside distribution kernels, under QEMU's software emulation, one
//! guest at a time. `xtask/vm/` says which kernels, what is expected of them, and what was recorded last.

mod archive;
mod cpio;
mod expect;
mod guest;
mod image;
mod judge;
mod kernel;
mod lock;
mod record;
mod suites;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use self::archive::Archive;
use self::expect::Expected;
use self::judge::Judged;
use self::lock::Package;
use self::record::Recorded;
use self::suites::Programs;
use crate::project::{Project, sha256};

/// Which kernels there are.
const LOCK: &str = "xtask/vm/kernels.lock";
/// What is expected of them.
const EXPECTED: &str = "xtask/vm/expected.list";
/// The results that `docs/kernels.md` is made of.
const RESULTS: &str = "xtask/vm/results.json";
const OBJECT: &str = "agent-ebpf/prebuilt/cofferdam.bpf.o";
/// What people read.
const PAGE: &str = "docs/kernels.md";

/// How much longer everything may take than on a processor that is not emulated.
const SCALE: u32 = 5;

/// Arguments of `cargo xtask vm`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Series to boot; all of `xtask/vm/kernels.lock` when none is given.
    #[arg(long, value_delimiter = ',')]
    kernel: Vec<String>,
    /// Take kernels from the cache only.
    #[arg(long)]
    offline: bool,
    /// Fetch the kernels into the cache and boot nothing.
    #[arg(long, conflicts_with = "offline")]
    fetch: bool,
    /// Write the newest packages of each series into the lock file, and do nothing else.
    #[arg(long, conflicts_with_all = ["offline", "fetch"])]
    refresh: bool,
    /// Run these suites of `agent/tests` only.
    #[arg(long, value_delimiter = ',')]
    suite: Vec<String>,
    /// Record the results of the kernels that are as expected, and write docs/kernels.md.
    #[arg(long, conflicts_with = "suite")]
    record: bool,
    /// Check that docs/kernels.md is made of the recorded results, and do nothing else.
    #[arg(long, conflicts_with_all = ["offline", "fetch", "refresh", "record"])]
    check: bool,
}

/// What runs in every guest.
struct Plan {
    suites: Vec<String>,
    expected: Expected,
    /// SHA-256 of the kernel object that the agent carries.
    object: String,
}

impl Plan {
    /// The suites of a kernel: one that is refused runs only the one that sees it refused.
    fn of(&self, series: &str) -> impl Iterator<Item = &str> {
        let refused = self.expected.refusal(series).is_some();
        let suites = self.suites.iter().map(String::as_str);
        suites.filter(move |suite| !refused || *suite == suites::SUPPORT)
    }
}

/// Some kernels could not be had; nothing else was wrong.
#[derive(Debug)]
pub(crate) struct Unavailable(String);

impl std::fmt::Display for Unavailable {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

/// Runs the verb.
pub(crate) fn run(project: &Project, args: &Args) -> Result<()> {
    if args.check {
        return record::check(project);
    }
    let read = |name: &str| {
        let path = project.path(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let text = read(LOCK)?;
    let packages = lock::parse(&text).with_context(|| format!("in {LOCK}"))?;
    let wanted = wanted(&packages, &args.kernel)?;
    let archive = Archive::open(project, args.offline)?;
    if args.refresh {
        return refresh(project, &archive, &text, &packages, &wanted);
    }
    let expected = Expected::parse(&read(EXPECTED)?).with_context(|| format!("in {EXPECTED}"))?;
    let mut missing = Vec::new();
    let mut ready = Vec::new();
    for series in &wanted {
        match fetch(&archive, &packages, series) {
            Ok((packages, debs)) => ready.push((series, packages, debs)),
            Err(error) => {
                println!("SKIPPED: kernel {series} cannot be had: {error:#}");
                missing.push(series.as_str());
            }
        }
    }
    if !guest::has_qemu() {
        return Err(Unavailable(
            "no guest was booted: no QEMU here; run cargo xtask setup --vm".into(),
        )
        .into());
    }
    if !args.fetch && !ready.is_empty() {
        let plan = Plan {
            suites: chosen(suites::all(project)?, &args.suite)?,
            expected,
            object: object(project)?,
        };
        let programs = suites::build(project, &plan.suites)?;
        let mut results = Vec::new();
        for (series, packages, debs) in &ready {
            results.push(one(project, series, packages, debs, &programs, &plan)?);
        }
        summary(project, &results, args.record)?;
    }
    if !missing.is_empty() {
        return Err(Unavailable(format!(
            "SKIPPED, because they cannot be had: {}",
            missing.join(", ")
        ))
        .into());
    }
    Ok(())
}

fn object(project: &Project) -> Result<String> {
    let object = fs::read(project.path(OBJECT)).with_context(|| format!("cannot read {OBJECT}"))?;
    Ok(sha256(&object))
}

/// The series asked for, or all.
fn wanted(packages: &[Package], asked: &[String]) -> Result<Vec<String>> {
    let known = lock::series(packages);
    for name in asked {
        if !known.contains(name) {
            bail!("no kernel {name} in {LOCK}; there are {}", known.join(", "));
        }
    }
    Ok(if asked.is_empty() {
        known
    } else {
        asked.to_vec()
    })
}

/// The suites asked for, or all.
fn chosen(all: Vec<String>, asked: &[String]) -> Result<Vec<String>> {
    for name in asked {
        if !all.contains(name) {
            bail!("no suite {name}; there are {}", all.join(", "));
        }
    }
    let wanted = |name: &String| asked.is_empty() || asked.contains(name);
    Ok(all.into_iter().filter(wanted).collect())
}

/// The packages of a series and their files; newer ones, said loudly, when the archive has dropped the locked ones.
fn fetch(
    archive: &Archive,
    packages: &[Package],
    series: &str,
) -> Result<(Vec<Package>, Vec<PathBuf>)> {
    let locked: Vec<Package> = packages
        .iter()
        .filter(|package| package.series == series)
        .cloned()
        .collect();
    let get = |packages: &[Package]| {
        packages
            .iter()
            .map(|package| archive.get(package))
            .collect::<Result<Vec<_>>>()
    };
    let gone = match get(&locked) {
        Ok(debs) => return Ok((locked, debs)),
        Err(error) => error,
    };
    let newer = archive
        .newest(&locked)
        .with_context(|| format!("{gone:#}"))?;
    if newer == locked {
        return Err(gone);
    }
    println!("vm: WARNING: {LOCK} is stale: {gone:#}; these are taken instead, please lock them:");
    for package in &newer {
        println!("{package}");
    }
    let debs = get(&newer)?;
    Ok((newer, debs))
}

fn refresh(
    project: &Project,
    archive: &Archive,
    text: &str,
    packages: &[Package],
    wanted: &[String],
) -> Result<()> {
    let mut all = Vec::new();
    for series in lock::series(packages) {
        let locked: Vec<Package> = packages
            .iter()
            .filter(|package| package.series == series)
            .cloned()
            .collect();
        all.extend(if wanted.contains(&series) {
            archive.newest(&locked)?
        } else {
            locked
        });
    }
    let path = project.path(LOCK);
    fs::write(&path, lock::rewrite(text, &all))
        .with_context(|| format!("cannot write {}", path.display()))?;
    let changed = all
        .iter()
        .filter(|package| !packages.contains(package))
        .count();
    println!("vm: {changed} of {} packages of {LOCK} are new", all.len());
    Ok(())
}

/// Boots one kernel and judges what comes of it.
fn one(
    project: &Project,
    series: &str,
    packages: &[Package],
    debs: &[PathBuf],
    programs: &Programs,
    plan: &Plan,
) -> Result<Judged> {
    let start = Instant::now();
    let kernel = kernel::open(project, debs).with_context(|| format!("kernel {series}"))?;
    let home = project.scratch().join("vm");
    let [files, console, log] =
        ["cpio", "console", "report"].map(|kind| home.join(format!("{series}.{kind}")));
    fs::write(&files, image::build(series, &kernel, programs, plan)?)
        .with_context(|| format!("cannot write {}", files.display()))?;
    println!(
        "vm: {series}: booting {} (logs: {} and {})",
        packages[0].version,
        console.display(),
        log.display()
    );
    let report = guest::boot(&kernel.image, &files, &console, &log, image::limit(plan));
    let judged = judge::judge(series, &packages[0], report, plan);
    println!(
        "vm: {series}: {} in {} s",
        if judged.problems.is_empty() {
            judged.outcome()
        } else {
            "FAILED".into()
        },
        start.elapsed().as_secs()
    );
    for problem in &judged.problems {
        println!("  {problem}");
    }
    Ok(judged)
}

/// Says what came of all, and records it.
fn summary(project: &Project, results: &[Judged], record: bool) -> Result<()> {
    println!();
    for result in results {
        let word = if result.problems.is_empty() {
            "ok"
        } else {
            "FAILED"
        };
        println!(
            "{:<8} {:<24} {word:<7} {}",
            result.record.series,
            result.record.release,
            result.outcome()
        );
    }
    let (good, bad): (Vec<&Judged>, Vec<&Judged>) = results
        .iter()
        .partition(|result| result.problems.is_empty());
    if record {
        let mut recorded = Recorded::read(project)?;
        recorded.merge(project, &good)?;
        recorded.write(project)?;
        println!(
            "vm: {} kernels recorded in {RESULTS} and {PAGE}",
            good.len()
        );
    }
    if !bad.is_empty() {
        bail!("{} of {} kernels failed", bad.len(), results.len());
    }
    Ok(())
}
