//! `cargo xtask bench`: what the datapath costs, measured on the agent's own kernel object.
//!
//! Every figure is a difference or a ratio within one run. The programs are run by `BPF_PROG_TEST_RUN` over tables that
//! only this process sees; nothing is attached and no packet leaves. See docs/benchmarks.md for the method.

mod asm;
mod cases;
mod content;
mod frames;
mod gate;
mod host;
mod measure;
mod programs;
mod reach;
mod report;
mod smp;
mod stack;
mod sys;
mod tables;

use std::path::PathBuf;
use std::process::ExitCode;

use agent::kernel::loader::TableSizes;
use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use crate::cases::{Case, Maker};
use crate::frames::Family;
use crate::gate::Limits;
use crate::host::{Host, default_sizes};
use crate::measure::{Bench, Effort};
use crate::report::{Machine, Report};

/// Measures the datapath.
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Nanoseconds a packet by test runs, memory and reading of the flow tables.
    Datapath(Args),
    /// The whole way of a packet, beside no firewall and nftables.
    Stack(stack::Args),
    /// Exact reachability over 10,000 workloads and 2,000 policies.
    Reach(reach::Args),
}

#[derive(clap::Args)]
struct Args {
    /// Few rounds and only what the gate looks at: under a minute.
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// 100,000 rules and 1 M flows as well; wants 2 GiB of memory.
    #[arg(long)]
    full: bool,
    /// Writes everything that was measured to a file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fails when a ratio is beyond the limits in this file.
    #[arg(long, value_name = "FILE")]
    gate: Option<PathBuf>,
    /// Puts the tables between the marks `measured: LABEL` and `end: LABEL` of this document.
    #[arg(long, value_name = "FILE", requires = "label")]
    record: Option<PathBuf>,
    /// See --record.
    #[arg(long)]
    label: Option<String>,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().what {
        What::Datapath(args) => datapath(&args),
        What::Stack(args) => stack::run(&args),
        What::Reach(args) => reach::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Room for new flows and denials, so that no burst meets a full table.
const ROOMY: u32 = 1 << 20;
/// Flows of the large working set.
const MILLION: u32 = 1 << 20;

fn datapath(args: &Args) -> Result<()> {
    let limits = args.gate.as_deref().map(Limits::read).transpose()?;
    host::private_bpffs()?;
    let report = measure(args)?;
    let tables = report.markdown();
    println!("{tables}");
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    if let (Some(document), Some(label)) = (&args.record, &args.label) {
        report::record(document, label, &tables)?;
    }
    if let Some(limits) = limits {
        limits.check(&report)?;
        println!("every ratio is within its limit");
    }
    Ok(())
}

/// The hosts: with flows and default tables, and with room for new ones.
struct Hosts {
    settled: Vec<Host>,
    fresh: Vec<Host>,
    large: Option<Host>,
}

impl Hosts {
    fn open(args: &Args) -> Result<Self> {
        let rules: &[u32] = match (args.quick, args.full) {
            (true, _) => &[10, 10_000],
            (_, true) => &[10, 1_000, 10_000, 100_000],
            _ => &[10, 1_000, 10_000],
        };
        let roomy = TableSizes {
            flows4: ROOMY,
            flows6: ROOMY,
            denies: ROOMY,
            ..default_sizes()
        };
        let mut hosts = Self {
            settled: Vec::new(),
            fresh: Vec::new(),
            large: None,
        };
        for rules in rules {
            let host = Host::open(&format!("settled-{rules}"), *rules, default_sizes())?;
            for family in Family::BOTH {
                host.establish(family, 65_536)?;
            }
            hosts.settled.push(host);
            hosts
                .fresh
                .push(Host::open(&format!("fresh-{rules}"), *rules, roomy)?);
        }
        if args.full {
            let sizes = TableSizes {
                flows4: 2 * MILLION,
                flows6: 2 * MILLION,
                ..default_sizes()
            };
            let host = Host::open("large", 10_000, sizes)?;
            for family in Family::BOTH {
                host.establish(family, MILLION)?;
            }
            hosts.large = Some(host);
        }
        Ok(hosts)
    }

    fn cases(&self) -> Result<Vec<Case<'_>>> {
        let mut cases = Vec::new();
        for family in Family::BOTH {
            for host in &self.settled {
                let make = Maker { host, family };
                cases.extend(make.established(&[8_192, 65_536])?);
                cases.extend(make.repeated()?);
                cases.extend(make.scans("")?);
            }
            for host in &self.fresh {
                let make = Maker { host, family };
                cases.extend(make.new_flows(false)?);
                cases.extend(make.new_flows(true)?);
                cases.extend(make.scans(", first time")?);
            }
            if let Some(host) = &self.large {
                let mut large = Maker { host, family }.established(&[MILLION])?;
                large.retain(|case| case.label.flows == Some(MILLION));
                cases.extend(large);
            }
        }
        Ok(cases)
    }
}

fn measure(args: &Args) -> Result<Report> {
    let effort = if args.quick {
        Effort {
            rounds: 7,
            burst_ms: 5,
        }
    } else {
        Effort {
            rounds: 12,
            burst_ms: 10,
        }
    };
    let cpus = sys::cpus()?;
    let Some(cpu) = cpus.first().copied() else {
        bail!("no CPU to run on");
    };
    let other_cpu = cpus.get(1).copied();
    let hosts = Hosts::open(args)?;
    let cases = hosts.cases()?;
    let probes = measure::probe(&cases)?;
    eprintln!("{probes} packets judged as they must be; measuring");
    let bench = Bench {
        effort,
        cpu,
        other_cpu,
        cases: &cases,
    };
    let (anchors, rows) = bench.run()?;
    measure::probe(&cases)?;
    // Ten thousand rules, unless there are more.
    let at = |hosts: &[Host]| hosts.iter().position(|host| host.rules == 10_000);
    let (Some(settled), Some(fresh)) = (
        at(&hosts.settled).and_then(|at| hosts.settled.get(at)),
        at(&hosts.fresh).and_then(|at| hosts.fresh.get(at)),
    ) else {
        bail!("no host with 10,000 rules");
    };
    let two_cpus = match other_cpu {
        Some(other) => smp::run(settled, fresh, effort, [cpu, other])?,
        None => {
            eprintln!("SKIP: one CPU only: nothing can run on two");
            Vec::new()
        }
    };
    Ok(Report {
        machine: Machine::here(cpus.len()),
        effort,
        probes,
        anchors,
        cases: rows,
        two_cpus,
        export: tables::export(settled, if args.quick { 3 } else { 7 })?,
        memory: tables::memory(settled)?,
    })
}
