//! Tests of the tests: small faults are put into a copy of the kernel's sources, one at a time, and the differential
//! tests must fail on the object that is built from them.

mod list;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::ebpf;
use crate::project::Project;
use crate::run;
use crate::setup::bpf::{self, BpfToolchain};
use list::{MUTATIONS, Mutation};

/// Arguments of `cargo xtask mutate`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only three, chosen by the seed.
    #[arg(long)]
    quick: bool,
    /// Chooses with --quick. Without it the sources choose: another tree, other mutations.
    #[arg(long)]
    seed: Option<u64>,
    /// Only those whose file or description contains this.
    #[arg(long)]
    only: Option<String>,
}

/// Tests of the agent that run the loaded object, in this order; the first that fails is enough.
const TESTS: [&str; 3] = [
    "kernel_evaluator",
    "kernel_differential",
    "kernel_scenarios",
];
const QUICK: usize = 3;
/// Names the object that the rig of these tests loads in place of the embedded one.
const OBJECT: &str = "COFFERDAM_TEST_OBJECT";

/// What became of a mutant.
enum Fate {
    /// A test noticed.
    Caught(&'static str),
    Survived,
    /// The object does not build, or the verifier refuses it: it says nothing about the tests.
    Stillborn(String),
}

/// `cargo xtask mutate`.
pub(crate) fn run(project: &Project, args: &Args) -> Result<()> {
    for mutation in MUTATIONS {
        mutation.applied(project.root())?;
    }
    let chosen = choose(project, args)?;
    if chosen.is_empty() {
        bail!("no mutation fits");
    }
    let toolchain = bpf::prepare(project)?;
    let tests = tests(project)?;
    for (name, test) in &tests {
        if !passes(project, test, None)?.0 {
            bail!("{name} fails on the object as it is");
        }
    }
    let copy = Copy::of(project)?;
    let mut failures = Vec::new();
    for (number, mutation) in chosen.iter().enumerate() {
        let began = Instant::now();
        let fate = try_one(project, &copy, &toolchain, &tests, mutation)?;
        let seconds = began.elapsed().as_secs_f64();
        let word = match &fate {
            Fate::Caught(test) => format!("caught by {test}"),
            Fate::Survived => "SURVIVED".to_owned(),
            Fate::Stillborn(why) => format!("STILLBORN: {why}"),
        };
        let line = format!("{} ({}): {word}", mutation.breaks, mutation.file);
        println!(
            "mutant {}/{} {seconds:5.1} s  {line}",
            number + 1,
            chosen.len()
        );
        if !matches!(fate, Fate::Caught(_)) {
            failures.push(line);
        }
    }
    if !failures.is_empty() {
        bail!(
            "{} of {} mutants were not caught:\n  {}",
            failures.len(),
            chosen.len(),
            failures.join("\n  ")
        );
    }
    println!("all {} mutants were caught", chosen.len());
    Ok(())
}

fn choose(project: &Project, args: &Args) -> Result<Vec<&'static Mutation>> {
    let fits = |mutation: &&Mutation| {
        args.only
            .as_ref()
            .is_none_or(|part| mutation.file.contains(part) || mutation.breaks.contains(part))
    };
    let mut chosen: Vec<&Mutation> = MUTATIONS.iter().filter(fits).collect();
    if !args.quick {
        return Ok(chosen);
    }
    let mut seed = match args.seed {
        Some(seed) => seed,
        None => ebpf::sources_seed(project)?,
    };
    println!("--seed {seed}");
    let mut out = Vec::new();
    while out.len() < QUICK && !chosen.is_empty() {
        // SplitMix64.
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = seed;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let at = (bits ^ (bits >> 31)) % chosen.len() as u64;
        out.push(chosen.swap_remove(usize::try_from(at)?));
    }
    Ok(out)
}

impl Mutation {
    /// The text of its file with the fault in it.
    fn applied(&self, root: &Path) -> Result<String> {
        let path = root.join(self.file);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        match text.matches(self.text).count() {
            1 => Ok(text.replacen(self.text, self.replacement, 1)),
            count => bail!(
                "\"{}\" is {count} times in {}, not once: bring the mutation \"{}\" up to date",
                self.text,
                self.file,
                self.breaks
            ),
        }
    }
}

/// A copy of the workspace's sources, to be broken.
struct Copy {
    project: Project,
    _dir: tempfile::TempDir,
}

impl Copy {
    fn of(project: &Project) -> Result<Self> {
        fs::create_dir_all(project.scratch()).context("cannot create the scratch directory")?;
        let dir = tempfile::Builder::new()
            .prefix("mutants-")
            .tempdir_in(project.scratch())
            .context("cannot create a temporary directory")?;
        copy(project.root(), dir.path())?;
        Ok(Self {
            project: Project::at(dir.path().to_path_buf()),
            _dir: dir,
        })
    }
}

/// Copies a tree without build products and hidden files.
fn copy(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", from.display()))?;
        let name = entry.file_name();
        if name == "target" || name.to_string_lossy().starts_with('.') {
            continue;
        }
        let target = to.join(&name);
        if entry.file_type()?.is_dir() {
            fs::create_dir(&target)?;
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)
                .with_context(|| format!("cannot copy {}", entry.path().display()))?;
        }
    }
    Ok(())
}

fn try_one(
    project: &Project,
    copy: &Copy,
    toolchain: &BpfToolchain,
    tests: &[(&'static str, PathBuf)],
    mutation: &Mutation,
) -> Result<Fate> {
    let broken = copy.project.path(mutation.file);
    let whole = fs::read_to_string(&broken)?;
    fs::write(&broken, mutation.applied(copy.project.root())?)?;
    let built = ebpf::object_of(
        &copy.project,
        toolchain,
        &copy.project.scratch().join("bpf"),
    );
    fs::write(&broken, whole)?;
    let bytes = match built {
        Ok(bytes) => bytes,
        Err(error) => return Ok(Fate::Stillborn(format!("{error:#}"))),
    };
    let object = copy.project.scratch().join("mutant.o");
    fs::write(&object, bytes)?;
    for (name, test) in tests {
        let (passed, output) = passes(project, test, Some(&object))?;
        if output.contains("the object does not load") {
            return Ok(Fate::Stillborn("the kernel refuses it".to_owned()));
        }
        if !passed {
            return Ok(Fate::Caught(name));
        }
    }
    Ok(Fate::Survived)
}

/// Builds the tests and says where they are.
fn tests(project: &Project) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut command = run::cargo();
    command.current_dir(project.root()).args([
        "test",
        "--locked",
        "--package=agent",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    for test in TESTS {
        command.args(["--test", test]);
    }
    let text = run::output(&mut command)?;
    TESTS
        .into_iter()
        .map(|name| {
            text.lines()
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
                .find_map(|message| {
                    (message["target"]["name"] == name).then_some(())?;
                    Some((name, PathBuf::from(message["executable"].as_str()?)))
                })
                .with_context(|| format!("cargo did not say where the test {name} is"))
        })
        .collect()
}

/// Whether a test passes, and what it says. A test that is skipped has said nothing about a mutant.
fn passes(project: &Project, test: &Path, object: Option<&Path>) -> Result<(bool, String)> {
    let mut command = Command::new(test);
    command
        .current_dir(project.path("agent"))
        .arg("--nocapture")
        .env_remove(OBJECT)
        .env_remove("COFFERDAM_SKIP_LOG");
    if let Some(object) = object {
        command.env(OBJECT, object);
    }
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", test.display()))?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    if let Some(skip) = text.lines().find(|line| line.starts_with("SKIP: ")) {
        bail!("mutants can only be judged where the tests run: {skip}");
    }
    Ok((output.status.success(), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutation_still_fits_the_sources() {
        let project = Project::find().unwrap();
        assert!(MUTATIONS.len() >= 25);
        let stale: Vec<String> = MUTATIONS
            .iter()
            .filter_map(|mutation| match mutation.applied(project.root()) {
                Ok(broken) => {
                    let sound = fs::read_to_string(project.path(mutation.file)).unwrap();
                    (broken == sound).then(|| format!("\"{}\" changes nothing", mutation.breaks))
                }
                Err(error) => Some(error.to_string()),
            })
            .collect();
        assert!(stale.is_empty(), "{}", stale.join("\n"));
    }

    #[test]
    fn a_text_that_is_gone_is_an_error() {
        let gone = Mutation {
            file: "xtask/Cargo.toml",
            text: "no such text",
            replacement: "",
            breaks: "nothing",
        };
        let error = gone.applied(Project::find().unwrap().root()).unwrap_err();
        assert!(error.to_string().contains("0 times"), "{error}");
    }

    #[test]
    fn a_seed_chooses_three_and_the_same_ones_again() {
        let project = Project::find().unwrap();
        let names = |seed| -> Vec<&str> {
            let args = Args {
                quick: true,
                seed: Some(seed),
                only: None,
            };
            let chosen = choose(&project, &args).unwrap();
            chosen.iter().map(|mutation| mutation.breaks).collect()
        };
        assert_eq!(names(7).len(), QUICK);
        assert_eq!(names(7), names(7));
        assert!((0..20).any(|seed| names(seed) != names(7)));
    }
}
