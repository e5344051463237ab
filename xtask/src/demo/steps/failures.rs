//! What fails at three in the morning: an agent, the controller, a push.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::json;

use super::super::report::Outcome;
use super::super::world::World;
use super::accounting::{records, request};
use super::{ANSWER, apply, sessions_live};
use crate::estate::probe::{self, Reach};
use crate::estate::wait_for;

/// New connections per second while things are killed.
const RATE: u32 = 1_000;
/// For how many seconds.
const SECONDS: u32 = 6;

/// Kills two agents and the controller under load, starts them again, and looks for missing or doubled records.
pub(in super::super) fn restart(world: &mut World) -> Result<Outcome<()>> {
    let before: BTreeSet<_> = records(world, &["web", "app"])?.into_keys().collect();
    let app = world.host("app")?;
    let server = SocketAddr::new(app.addresses()[0], 8080);
    let web_path = world.host("web")?.netns.path();
    let begun = Instant::now();
    let load = std::thread::spawn(move || run_load(&web_path, server, begun));
    let after = |seconds: u64| {
        wait_for("the next act", Duration::from_secs(30), || {
            (begun.elapsed() >= Duration::from_secs(seconds)).then_some(())
        })
    };
    after(1)?;
    world.agent("web")?.process.crash()?;
    world.agent("app")?.process.crash()?;
    after(2)?;
    world.controller.process.crash()?;
    // Nobody is alive to enforce anything but the kernel.
    let (kiosk, db) = (world.host("kiosk")?, world.host("app")?);
    if probe::from_host(
        kiosk,
        &[(db.addresses()[0], 8080), (db.addresses()[1], 8080)],
        ANSWER,
    )? != [Reach::Blocked, Reach::Blocked]
    {
        bail!("kiosk reached app while its agent was dead");
    }
    sessions_live(world)?;
    after(4)?;
    world.agent("web")?.restart()?;
    world.controller.restart()?;
    world.agent("app")?.restart()?;
    let clients = load
        .join()
        .map_err(|_| anyhow!("the load thread panicked"))??;
    sessions_live(world)?;
    let (missing, extra, open) = wait_for(
        "every connection's record from both ends",
        Duration::from_secs(120),
        || {
            let mut found = records(world, &["web", "app"]).ok()?;
            found.retain(|key, _| !before.contains(key));
            let open = found.values().filter(|record| !record.closed).count();
            let (mut missing, mut extra) = (Vec::new(), 0);
            for host in ["web", "app"] {
                let mut recorded: BTreeMap<SocketAddr, usize> = BTreeMap::new();
                for (_, from, ..) in found.keys().filter(|(at, ..)| at == host) {
                    *recorded.entry(*from).or_default() += 1;
                }
                for client in clients
                    .keys()
                    .chain(recorded.keys())
                    .collect::<BTreeSet<_>>()
                {
                    let made = clients.get(client).map_or(&[][..], Vec::as_slice);
                    let seen = recorded.get(client).copied().unwrap_or(0);
                    if seen < made.len() {
                        missing.push(format!("{client} of {made:?} at {host}, which has {seen}"));
                    }
                    extra += seen.saturating_sub(made.len());
                }
            }
            let late = begun.elapsed() > Duration::from_secs(60);
            ((missing.is_empty() && open == 0) || late).then_some((missing, extra, open))
        },
    )?;
    let total: usize = clients.values().map(Vec::len).sum();
    if missing.len() + extra + open > 0 {
        bail!(
            "of {total} connections {} clients' records are missing, {extra} belong to none and {open} never closed (both ends \
             together); missing, with the time since the load began: {}",
            missing.len(),
            missing.join("; ")
        );
    }
    let text = format!(
        "   {} connections at {RATE}/s while two agents and the controller were killed (-9) and came back:\n   every one has \
         exactly one record from each end; enforcement and sessions went on",
        total
    );
    Ok(Outcome::new(
        (),
        text,
        json!({"connections": total, "rate": RATE, "missing": missing.len(), "doubled": extra}),
    ))
}

/// Makes connections at a steady rate from a namespace: when each client's own address was used, since `begun`.
fn run_load(
    netns: &str,
    server: SocketAddr,
    begun: Instant,
) -> Result<BTreeMap<SocketAddr, Vec<Duration>>> {
    const THREADS: u32 = 4;
    let file = std::fs::File::open(netns)?;
    let mut workers = Vec::new();
    for _ in 0..THREADS {
        let file = file.try_clone()?;
        workers.push(std::thread::spawn(
            move || -> Result<Vec<(SocketAddr, Duration)>> {
                nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET)?;
                let start = Instant::now();
                let mut made = Vec::new();
                let total = RATE * SECONDS / THREADS;
                for number in 0..total {
                    let due =
                        Duration::from_secs_f64(f64::from(number * THREADS) / f64::from(RATE));
                    std::thread::sleep(due.saturating_sub(start.elapsed()));
                    let at = begun.elapsed();
                    let client = request(server)
                        .with_context(|| format!("a connection of {at:?} after the load began"))?;
                    made.push((client, at));
                }
                Ok(made)
            },
        ));
    }
    let mut clients: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for worker in workers {
        for (client, at) in worker
            .join()
            .map_err(|_| anyhow!("a client thread panicked"))??
        {
            clients.entry(client).or_default().push(at);
        }
    }
    Ok(clients)
}

/// A policy that takes the operator's access away is applied with a deadline, and the host's agent is killed.
pub(in super::super) fn lock_out(world: &mut World) -> Result<Outcome<()>> {
    let everything = [
        ("bastion", "web", 22),
        ("bastion", "app", 22),
        ("bastion", "db", 22),
        ("bastion", "cache", 22),
    ];
    let answer = apply(world, &everything, &["--confirm-within", "6s"])?;
    let applied = Instant::now();
    let target = [(world.host("db")?.addresses()[0], 22)];
    wait_for("the lock-out to take hold", Duration::from_secs(5), || {
        let reach = probe::from_host(
            world.host("bastion").ok()?,
            &target,
            Duration::from_millis(300),
        )
        .ok()?;
        (reach == [Reach::Blocked]).then_some(())
    })?;
    world.agent("db")?.process.crash()?;
    world.agent("bastion")?.process.crash()?;
    wait_for("the kernels to fall back", Duration::from_secs(30), || {
        let reach = probe::from_host(
            world.host("bastion").ok()?,
            &target,
            Duration::from_millis(300),
        )
        .ok()?;
        (reach == [Reach::Open]).then_some(())
    })?;
    let back_ms = applied.elapsed().as_millis() as u64;
    world.agent("db")?.restart()?;
    world.agent("bastion")?.restart()?;
    let state = wait_for(
        "the history to say that it was rolled back",
        Duration::from_secs(30),
        || {
            let history = world.controller.ask(&["history"]).ok()?;
            let entry = history["entries"]
                .as_array()?
                .iter()
                .find(|entry| entry["revision"] == answer["revision"])?;
            (entry["state"] == json!("rolled-back")).then(|| entry["state"].clone())
        },
    )?;
    wait_for(
        "every agent to verify the old policy",
        Duration::from_secs(60),
        || {
            let status = world.controller.ask(&["status"]).ok()?;
            let agents = status["agents"].as_array()?;
            agents
                .iter()
                .all(|agent| {
                    agent["digest_matches"] == json!(true) && agent["pending"] == json!(false)
                })
                .then_some(())
        },
    )?;
    sessions_live(world)?;
    let text = format!(
        "   bastion lost ssh to db, both agents were killed, nobody confirmed: {back_ms} ms after the push it was back,\n   by the \
         kernels alone; the controller's history says {state}"
    );
    Ok(Outcome::new(
        (),
        text,
        json!({"back_ms": back_ms, "deadline_s": 6, "history": state}),
    ))
}
