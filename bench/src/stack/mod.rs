//! `cargo xtask bench stack`: what the firewall costs on the whole way of a packet, beside a host without one and a host
//! with an nftables rule set of the same meaning, in one run. See docs/benchmarks.md for the method.

mod daemon;
mod generator;
mod load;
mod netns;
mod packets;
mod policy;
mod probes;
mod report;
mod throughput;
mod wire;
mod world;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::load::{Shape, Step};
use self::probes::Verdict;
use self::report::{Limits, Report};
use self::world::{Firewall, World};
use crate::report::Machine;
use crate::{host, sys};

/// Arguments of `bench stack`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Few rounds: about two minutes.
    #[arg(long)]
    quick: bool,
    /// Writes everything that was measured to a file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fails when a figure is beyond the limits in this file.
    #[arg(long, value_name = "FILE")]
    gate: Option<PathBuf>,
    /// Puts the tables between the marks `measured: LABEL` and `end: LABEL` of this document.
    #[arg(long, value_name = "FILE", requires = "label")]
    record: Option<PathBuf>,
    /// See --record.
    #[arg(long)]
    label: Option<String>,
    /// The agent to put under load; the one built beside this program unless named.
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

/// What this machine lacks, if anything.
pub(crate) fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".into());
    }
    for (program, argument) in [("nft", "-v"), ("ip", "-V"), ("ethtool", "--version")] {
        let found = std::process::Command::new(program).arg(argument).output();
        if found.is_err() {
            return Some(format!("needs {program} (`cargo xtask setup` installs it)"));
        }
    }
    None
}

/// Runs the benchmark.
pub(crate) fn run(args: &Args) -> Result<()> {
    let limits = args.gate.as_deref().map(Limits::read).transpose()?;
    if let Some(missing) = missing() {
        if limits.is_some() {
            bail!("nothing was measured: {missing}");
        }
        println!("SKIP: bench stack: {missing}");
        return Ok(());
    }
    host::private_bpffs()?;
    let report = measure(args)?;
    let tables = report.markdown();
    println!("{tables}");
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    let unreported = report::unreported(&report);
    if !unreported.is_empty() {
        bail!("{}", unreported.join("\n"));
    }
    if let (Some(document), Some(label)) = (&args.record, &args.label) {
        crate::report::record(document, label, &tables)?;
    }
    if let Some(limits) = limits {
        limits.check(&report)?;
        println!("everything is within its limit");
    }
    Ok(())
}

fn measure(args: &Args) -> Result<Report> {
    let effort = if args.quick {
        Effort::QUICK
    } else {
        Effort::FULL
    };
    let worlds: Vec<World> = Firewall::ALL
        .into_iter()
        .map(World::new)
        .collect::<Result<_>>()?;
    let open: Vec<&World> = worlds
        .iter()
        .filter(|world| world.firewall.is_open())
        .collect();
    let probes = agree(&open, 0)?;
    eprintln!("{probes} probes were judged as they must be; timing packets");
    let costs = packets::run(&worlds, effort.rounds)?;
    agree(&open, 1)?;
    eprintln!("timing streams");
    let rates = throughput::run(&open, effort.streams, effort.stream)?;
    agree(&open, 2)?;
    drop(worlds);
    eprintln!("connecting");
    let load = load::run(&agent_binary(args)?, effort.steps, effort.idle)?;
    Ok(Report {
        machine: Machine::here(sys::cpus()?.len()),
        rounds: effort.rounds,
        probes,
        costs,
        rates,
        load,
    })
}

/// The agent that was built beside this program, unless another is named.
fn agent_binary(args: &Args) -> Result<PathBuf> {
    let beside = std::env::current_exe()?.with_file_name("cofferdam-agent");
    let binary = args.agent.clone().unwrap_or(beside);
    if !binary.is_file() {
        bail!("there is no agent at {}: see --agent", binary.display());
    }
    Ok(binary)
}

/// How long and how often.
struct Effort {
    /// Of packets.
    rounds: usize,
    /// Streams with each firewall, and how long one lasts.
    streams: usize,
    stream: Duration,
    /// What the agent meets.
    steps: &'static [Step],
    /// How long it is watched without traffic.
    idle: Duration,
}

const fn step(shape: Shape, rate: Option<u32>, count: u32) -> Step {
    Step { shape, rate, count }
}

impl Effort {
    const QUICK: Self = Self {
        rounds: 10,
        streams: 6,
        stream: Duration::from_millis(250),
        steps: &[
            step(Shape::Connection, Some(10_000), 40_000),
            step(Shape::Datagram, Some(50_000), 50_000),
            step(Shape::Datagram, None, 200_000),
        ],
        idle: Duration::from_secs(3),
    };
    const FULL: Self = Self {
        rounds: 40,
        streams: 30,
        stream: Duration::from_millis(300),
        steps: &[
            step(Shape::Connection, Some(10_000), 100_000),
            step(Shape::Datagram, Some(10_000), 30_000),
            step(Shape::Datagram, Some(50_000), 100_000),
            step(Shape::Datagram, Some(100_000), 200_000),
            step(Shape::Datagram, None, 500_000),
        ],
        idle: Duration::from_secs(10),
    };
}

/// Real-time priority of measured threads.
const PRIORITY: i32 = 50;

/// Gives the calling thread one of this process's CPUs and real-time priority, so that it is interrupted by nothing but the
/// kernel. A machine with fewer CPUs gives the last it has.
fn alone(which: usize) -> Result<()> {
    let cpus = sys::cpus()?;
    let cpu = cpus
        .get(which)
        .or(cpus.last())
        .context("no CPU to run on")?;
    if !sys::run_alone(*cpu, PRIORITY)? {
        bail!("real-time priority was refused: figures would mean nothing");
    }
    Ok(())
}

/// Asks every world the same; an error names every difference.
fn agree(worlds: &[&World], round: u16) -> Result<usize> {
    let verdicts: Vec<(Firewall, Vec<Verdict>)> = worlds
        .iter()
        .map(|world| Ok((world.firewall, probes::ask(world, round)?)))
        .collect::<Result<_>>()?;
    let differences = probes::differences(&verdicts);
    if !differences.is_empty() {
        bail!("the firewalls differ:\n  {}", differences.join("\n  "));
    }
    Ok(verdicts.iter().map(|(_, verdicts)| verdicts.len()).sum())
}
