//! The steps of the demo, each proving one thing on real traffic.

mod accounting;
mod contain;
mod failures;
mod matrix;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::policy;
use super::report::Outcome;
use super::world::World;
use crate::estate::cofferdam::Agent;
use crate::estate::process::Session;
use crate::estate::{probe, servers, wait_for};

pub(super) use accounting::accounting;
pub(super) use contain::{contain, restore};
pub(super) use failures::{lock_out, restart};
pub(super) use matrix::{matrix_after, matrix_before};

/// How long a session may take to answer before it counts as cut.
const ANSWER: Duration = Duration::from_millis(1_500);

/// Writes the shop's policy without some pairs.
fn write_policy(world: &World, without: &[(&str, &str, u16)]) -> Result<PathBuf> {
    let file = world.estate.dir("policy")?.join("shop.yaml");
    fs::write(&file, policy::documents(without))?;
    Ok(file)
}

/// Applies the shop's policy without some pairs; `confirm`: the flags that say how.
fn apply(world: &World, without: &[(&str, &str, u16)], confirm: &[&str]) -> Result<Value> {
    let file = write_policy(world, without)?;
    let file = file.to_string_lossy();
    let mut arguments = vec!["apply", "-f", &file];
    arguments.extend(confirm);
    world.controller.ask(&arguments)
}

/// Waits until every connected agent has verified a revision.
fn converge(world: &World, revision: &Value) -> Result<Value> {
    let revision = revision
        .as_u64()
        .context("no revision in the answer")?
        .to_string();
    world.controller.ask(&[
        "status",
        "--wait",
        "--revision",
        &revision,
        "--percent",
        "100",
        "--timeout",
        "60s",
    ])
}

/// Long-lived sessions, each one that the policy will allow.
pub(super) fn open_sessions(world: &mut World) -> Result<Outcome<()>> {
    let (app, bastion, web) = (
        world.host("app")?,
        world.host("bastion")?,
        world.host("web")?,
    );
    let db = world.host("db")?.v4().to_string();
    let cache = world.host("cache")?.v4().to_string();
    let mut psql = app.netns.command("psql");
    psql.args(["-h", &db, "-U", "postgres", "-AtX"]);
    let mut redis = app.netns.command("redis-cli");
    redis.args(["-h", &cache]);
    let mut ssh = servers::ssh_command(&world.estate, bastion, web)?;
    let sessions = vec![
        ("psql app → db", Session::start("psql", &mut psql)?),
        (
            "redis-cli app → cache",
            Session::start("redis-cli", &mut redis)?,
        ),
        ("ssh bastion → web", Session::start("ssh", &mut ssh)?),
    ];
    world.sessions = sessions;
    let alive = alive(world)?;
    if let Some((name, _)) = alive.iter().find(|(_, alive)| !alive) {
        bail!("{name} did not come up");
    }
    Ok(Outcome::new(
        (),
        "   psql app → db, redis-cli app → cache, ssh bastion → web",
        json!({"sessions": alive.len()}),
    ))
}

/// Asks every session for a sign of life.
fn alive(world: &mut World) -> Result<Vec<(&'static str, bool)>> {
    let mut answers = Vec::new();
    for (number, (name, session)) in world.sessions.iter_mut().enumerate() {
        let token = format!("alive-{number}-{}", std::process::id());
        let line = match number {
            0 => format!("select '{token}';"),
            1 => format!("echo {token}"),
            _ => token.clone(),
        };
        // The first answer of a session includes its set-up.
        answers.push((*name, session.ask(&line, &token, Duration::from_secs(10))?));
    }
    Ok(answers)
}

/// Every session must answer.
pub(super) fn sessions_live(world: &mut World) -> Result<Outcome<()>> {
    let answers = alive(world)?;
    let dead: Vec<&str> = answers
        .iter()
        .filter(|(_, alive)| !alive)
        .map(|(name, _)| *name)
        .collect();
    if !dead.is_empty() {
        bail!("cut: {}", dead.join(", "));
    }
    let names: Vec<&str> = answers.iter().map(|(name, _)| *name).collect();
    Ok(Outcome::new(
        (),
        format!("   alive: {}", names.join(", ")),
        json!({"alive": names}),
    ))
}

/// Starts an agent on every protected host, in observe mode: nothing is dropped.
pub(super) fn start_agents(world: &mut World) -> Result<Outcome<()>> {
    let management = world.host("control")?;
    let mut agents = Vec::new();
    for host in world.protected() {
        agents.push(Agent::start(
            &world.estate,
            &world.programs,
            &world.controller,
            host,
            management,
        )?);
    }
    world.agents = agents;
    let count = world.agents.len();
    wait_for(
        "every agent to have a verified policy",
        Duration::from_secs(60),
        || {
            let status = world.controller.ask(&["status"]).ok()?;
            let agents = status["agents"].as_array()?;
            let verified = agents
                .iter()
                .filter(|agent| agent["digest_matches"] == json!(true))
                .count();
            (verified == count).then_some(())
        },
    )?;
    sessions_live(world)?;
    Ok(Outcome::new(
        (),
        format!("   {count} agents enrolled, connected and verified; every session still answers"),
        json!({"agents": count}),
    ))
}

/// Applies the policy with a deadline, proves that it works, and confirms it.
pub(super) fn arm(world: &mut World) -> Result<Outcome<()>> {
    let start = Instant::now();
    let answer = apply(world, &[], &["--confirm-within", "60s"])?;
    let status = converge(world, &answer["revision"])?;
    let verified_ms = start.elapsed().as_millis();
    let (web, app) = (world.host("web")?, world.host("app")?);
    let works = probe::from_host(web, &[(app.addresses()[0], 8080)], ANSWER)?;
    if works != [probe::Reach::Open] {
        bail!("web cannot reach app under the new policy: not confirmed");
    }
    let kiosk = world.host("kiosk")?;
    let denied = probe::from_host(kiosk, &[(world.host("db")?.addresses()[0], 5432)], ANSWER)?;
    if denied != [probe::Reach::Blocked] {
        bail!("kiosk reaches db under default deny: {denied:?}");
    }
    world.controller.ask(&["confirm"])?;
    let text = format!(
        "   revision {}: {} agents verified it in {verified_ms} ms; web → app works, kiosk → db is dropped, so it is confirmed",
        answer["revision"],
        status["agents"].as_array().map_or(0, Vec::len)
    );
    Ok(Outcome::new(
        (),
        text,
        json!({"revision": answer["revision"], "verified_ms": verified_ms as u64}),
    ))
}

/// Shows what passes, with identities and bytes.
pub(super) fn live_flows(world: &mut World) -> Result<Outcome<()>> {
    sessions_live(world)?;
    let flows = wait_for(
        "the sessions' flow records",
        Duration::from_secs(20),
        || {
            let answer = world
                .controller
                .ask(&["flows", "--workload", "db", "--limit", "20"])
                .ok()?;
            let flows = answer["flows"].as_array()?.clone();
            let known = flows.iter().any(|flow| {
                flow["initiator"]["workload"] == json!("app")
                    && flow["responder"]["workload"] == json!("db")
                    && flow["bytes_in"].as_u64().unwrap_or(0) > 0
            });
            known.then_some(flows)
        },
    )?;
    let table = crate::run::output(&mut world.controller.command(&[
        "flows",
        "--workload",
        "db",
        "--limit",
        "6",
    ]))?;
    Ok(Outcome::new((), indent(&table), json!({"flows": flows})))
}

/// Takes a right away and times until the session that used it is dead.
pub(super) fn cut_by_change(world: &mut World) -> Result<Outcome<()>> {
    let start = Instant::now();
    let answer = apply(world, &[("bastion", "web", 22)], &["--no-confirm"])?;
    let applied_ms = start.elapsed().as_millis() as u64;
    let (_, ssh) = world.sessions.get_mut(2).context("no ssh session")?;
    let mut number = 0;
    let mut last_answer = start.elapsed();
    loop {
        number += 1;
        let token = format!("still-{number}");
        if !ssh.ask(&token, &token, ANSWER)? {
            break;
        }
        last_answer = start.elapsed();
        if last_answer > Duration::from_secs(30) {
            bail!("the ssh session still answers {last_answer:?} after its right was taken away");
        }
    }
    converge(world, &answer["revision"])?;
    let reason = wait_for("the record of the cut", Duration::from_secs(20), || {
        let answer = world
            .controller
            .ask(&[
                "flows",
                "--workload",
                "web",
                "--port",
                "22",
                "--limit",
                "50",
            ])
            .ok()?;
        let flow = answer["flows"]
            .as_array()?
            .iter()
            .find(|flow| flow["reason"] == json!("policy-changed"))?;
        Some(flow["rule"].as_str().unwrap_or_default().to_owned())
    })?;
    // Back to the whole policy, with a new session for the steps that follow.
    let back = apply(world, &[], &["--no-confirm"])?;
    converge(world, &back["revision"])?;
    let (bastion, web) = (world.host("bastion")?, world.host("web")?);
    let mut again = servers::ssh_command(&world.estate, bastion, web)?;
    if let Some(slot) = world.sessions.get_mut(2) {
        slot.1 = Session::start("ssh", &mut again)?;
    }
    sessions_live(world)?;
    let last_ms = last_answer.as_millis() as u64;
    let text = format!(
        "   apply answered after {applied_ms} ms; the session's last answer came {last_ms} ms after the command began;\n   its \
         record says policy-changed, by {reason}"
    );
    Ok(Outcome::new(
        (),
        text,
        json!({"apply_ms": applied_ms, "last_answer_ms": last_ms, "rule": reason}),
    ))
}

/// Puts a table under its step.
fn indent(text: &str) -> String {
    text.lines().map(|line| format!("   {line}\n")).collect()
}
