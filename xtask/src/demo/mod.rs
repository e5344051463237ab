//! `cargo xtask demo`: the main job on real traffic, step by step, on an estate that it builds and removes.

mod policy;
mod report;
mod steps;
mod world;

use anyhow::Result;
use clap::Args as ClapArgs;

use crate::estate;
use crate::project::Project;
use crate::setup;

use report::Report;
use world::World;

/// Arguments of the verb.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Print one JSON document per step instead of text for people.
    #[arg(long)]
    json: bool,
    /// Leave everything running at the end and say how to play with it.
    #[arg(long)]
    keep: bool,
    /// Bytes of the large transfer.
    #[arg(long, default_value_t = 1_073_741_824, value_name = "BYTES")]
    transfer: u64,
    /// How many short connections are made.
    #[arg(long, default_value_t = 3_000, value_name = "N")]
    connections: u32,
    /// How often agents and controller are killed under load; each time every record is looked for again.
    #[arg(long, default_value_t = 1, value_name = "N")]
    restarts: u32,
}

/// Runs the demo; an error when any step failed.
pub(crate) fn run(project: &Project, args: &Args) -> Result<()> {
    setup::for_tests()?;
    estate::catch_signals()?;
    let mut report = Report::new(args.json);
    let outcome = tell(project, args, &mut report);
    if outcome.is_err() {
        eprintln!(
            "what every program printed is in {}",
            project.scratch().join("demo-logs").display()
        );
    }
    report.close(outcome)
}

/// The story. Each step may fail on its own; what the later ones build on ends it.
fn tell(project: &Project, args: &Args, report: &mut Report) -> Result<()> {
    let mut world = report.step("estate", "hosts, real servers, a controller", || {
        World::build(project, args)
    })?;
    report.step(
        "open network",
        "who reaches what before anybody protects anything",
        || steps::matrix_before(&mut world),
    )?;
    report.step(
        "sessions",
        "long-lived sessions that must survive what follows",
        || steps::open_sessions(&mut world),
    )?;
    report.step(
        "agents",
        "an agent on every host, observing: nothing is dropped",
        || steps::start_agents(&mut world),
    )?;
    report.step(
        "policy",
        "default deny for everybody, confirmed before its deadline",
        || steps::arm(&mut world),
    )?;
    report.step(
        "live sessions",
        "arming cut none of the sessions that policy allows",
        || steps::sessions_live(&mut world),
    )?;
    report.step(
        "accounting",
        "flow records against an independent count on the wire",
        || steps::accounting(&mut world, args.transfer, args.connections),
    )?;
    report.step(
        "live flows",
        "what passes right now, with identities and bytes",
        || steps::live_flows(&mut world),
    )?;
    report.step(
        "change",
        "a policy change cuts a live session in the kernel",
        || steps::cut_by_change(&mut world),
    )?;
    for _ in 0..args.restarts {
        report.step(
            "restart",
            "agent and controller are killed and come back: nothing is cut",
            || steps::restart(&mut world),
        )?;
    }
    report.step(
        "lock-out",
        "a push that locks its operator out falls back by itself",
        || steps::lock_out(&mut world),
    )?;
    report.step(
        "intruder",
        "a scan hits the bulkhead, is found, and its host is cut off",
        || steps::contain(&mut world),
    )?;
    report.step("restore", "the host is clean again and comes back", || {
        steps::restore(&mut world)
    })?;
    report.step(
        "default deny",
        "the probes of the beginning again, each with the rule that decided",
        || steps::matrix_after(&mut world),
    )?;
    if args.keep {
        world.keep();
        report.say(&world.how_to_play());
    }
    Ok(())
}
