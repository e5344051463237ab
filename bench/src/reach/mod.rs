//! What exact reachability costs at the size of a large fleet.

mod fleet;

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use policy::reach::{End, Lens, PortSet, Question, Reach, Wanted};
use policy::set::PolicySet;
use policy::world::World;
use time::OffsetDateTime;

/// Arguments of `cargo xtask bench reach`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often everything is done; the table shows the median and the worst.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Fails when the worst round took longer than this, from nothing to every answer.
    #[arg(long, value_name = "MILLISECONDS")]
    limit: Option<u128>,
}

/// One step, in microseconds, one figure a round.
struct Step {
    name: String,
    micros: Vec<u128>,
}

/// Measures, and prints a table.
pub(crate) fn run(args: &Args) -> Result<()> {
    let world = fleet::world();
    let set = PolicySet::build(fleet::objects())?;
    let mut steps: Vec<Step> = Vec::new();
    let mut classes = 0;
    for _ in 0..args.rounds.max(1) {
        classes = round(&world, &set, &mut steps)?;
    }
    println!(
        "{} workloads, {} policies, {classes} classes of ends, one thread\n",
        world.workloads().len(),
        set.policies().len()
    );
    println!("| step | median ms | worst ms |\n|---|---:|---:|");
    for step in &mut steps {
        step.micros.sort_unstable();
        let median = step
            .micros
            .get(step.micros.len() / 2)
            .copied()
            .unwrap_or_default();
        let worst = step.micros.last().copied().unwrap_or_default();
        println!(
            "| {} | {} | {} |",
            step.name,
            milliseconds(median),
            milliseconds(worst)
        );
    }
    println!("\npeak memory of the process: {} MiB", peak_mib()?);
    let whole = steps.last().and_then(|step| step.micros.last()).copied();
    if let (Some(limit), Some(whole)) = (args.limit, whole) {
        ensure!(
            whole <= limit * 1_000,
            "the worst round took {} ms",
            milliseconds(whole)
        );
    }
    Ok(())
}

/// From nothing to every answer; how many classes there are.
fn round(world: &World, set: &PolicySet, steps: &mut Vec<Step>) -> Result<usize> {
    let begun = Instant::now();
    let mut reach = Reach::new(world, set, OffsetDateTime::UNIX_EPOCH);
    note(steps, "sort into classes, match every rule", begun);
    let questions = [
        ("env=dev", "data-class=pci", Lens::Draft),
        ("any", "any", Lens::Draft),
        ("any", "any", Lens::Enforced),
    ];
    for (from, to, lens) in questions {
        let step = Instant::now();
        let question = Question {
            from: vec![End::parse(from)?],
            to: vec![End::parse(to)?],
            ports: PortSet::ALL,
            lens,
            wanted: Wanted::Passing,
        };
        let found = reach.ask(&question)?;
        let example = reach.example(&found);
        ensure!(
            example.is_some() && found.pairs() < found.compared,
            "some pass, some do not"
        );
        let name = format!(
            "{from} → {to}, {}: {} of {} pairs of classes, with a counter-example",
            lens.name(),
            found.pairs(),
            found.compared
        );
        note(steps, &name, step);
    }
    let step = Instant::now();
    let radius = reach.blast_radius("app3-prod-web-1", Lens::Draft)?;
    ensure!(
        radius.all.len() > radius.direct.len(),
        "it goes further than one hop"
    );
    note(
        steps,
        &format!("blast radius: {} workloads", radius.all.len()),
        step,
    );
    note(steps, "all of it", begun);
    Ok(reach.classes())
}

fn note(steps: &mut Vec<Step>, name: &str, begun: Instant) {
    let took = begun.elapsed().as_micros();
    match steps.iter_mut().find(|step| step.name == name) {
        Some(step) => step.micros.push(took),
        None => steps.push(Step {
            name: name.to_owned(),
            micros: vec![took],
        }),
    }
}

fn milliseconds(micros: u128) -> String {
    format!("{}.{:01}", micros / 1_000, micros % 1_000 / 100)
}

fn peak_mib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line
        .and_then(|line| line.split_whitespace().next())
        .context("no VmHWM")?;
    Ok(kib.parse::<u64>()? / 1_024)
}
