//! Who reaches what, before and after default deny.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::super::policy::ALLOWED;
use super::super::report::Outcome;
use super::super::world::{SERVICES, World};
use crate::estate::probe::{self, Reach};

/// How long a probe waits for an answer: silence means dropped.
const LIMIT: Duration = Duration::from_millis(1_500);

type Row = (&'static str, Vec<Reach>);

/// One row a host, one column a (service, address).
fn probe_all(world: &World) -> Result<Vec<Row>> {
    let targets: Vec<(IpAddr, u16)> = world
        .targets()?
        .into_iter()
        .map(|(_, address, port)| (address, port))
        .collect();
    world
        .protected()
        .map(|host| Ok((host.name, probe::from_host(host, &targets, LIMIT)?)))
        .collect()
}

fn table(rows: &[Row], cell: impl Fn(usize, usize, Reach) -> String) -> String {
    let mut text = format!("   {:<11}", "from \\ to");
    for (name, port) in SERVICES {
        text.push_str(&format!(" {:<10}", format!("{name}:{port}")));
    }
    text.push('\n');
    for (row, (name, reached)) in rows.iter().enumerate() {
        text.push_str(&format!("   {name:<11}"));
        // Both families are probed; the table shows IPv4, the check compares both.
        for (column, pair) in reached.chunks(2).enumerate() {
            let shown = pair.first().copied().unwrap_or(Reach::Blocked);
            text.push_str(&format!(" {:<10}", cell(row, column, shown)));
        }
        text.push('\n');
    }
    text
}

/// Without protection everything reaches everything.
pub(in super::super) fn matrix_before(world: &mut World) -> Result<Outcome<()>> {
    let rows = probe_all(world)?;
    let open = rows
        .iter()
        .flat_map(|(_, reached)| reached)
        .filter(|reach| **reach == Reach::Open)
        .count();
    let all = rows.iter().map(|(_, reached)| reached.len()).sum::<usize>();
    if open != all {
        bail!("only {open} of {all} probes connect on an open network");
    }
    let text = format!(
        "{}   {open} of {all} connections (IPv4 and IPv6) succeed",
        table(&rows, |_, _, _| "open".into())
    );
    Ok(Outcome::new((), text, json!({"open": open, "probes": all})))
}

/// Every cell must be what the policy says, over both families, and the controller must name the rule.
pub(in super::super) fn matrix_after(world: &mut World) -> Result<Outcome<()>> {
    let rows = probe_all(world)?;
    let mut wrong = Vec::new();
    let mut cells: Vec<Value> = Vec::new();
    for (from, reached) in &rows {
        for ((to, port), pair) in SERVICES.iter().zip(reached.chunks(2)) {
            // A host's own address is reached over loopback, which is never filtered.
            let local = from == to;
            let allowed = local || ALLOWED.contains(&(*from, *to, *port));
            let expected = if allowed { Reach::Open } else { Reach::Blocked };
            if pair.iter().any(|reach| *reach != expected) {
                wrong.push(format!(
                    "{from} → {to}:{port} is {pair:?}, expected {expected:?}"
                ));
            }
            if !local {
                cells.push(explain(world, from, to, *port, allowed)?);
            }
        }
    }
    if !wrong.is_empty() {
        bail!("{} cells are wrong: {}", wrong.len(), wrong.join("; "));
    }
    let mut text = table(&rows, |_, _, reach| {
        if reach == Reach::Open {
            "open".into()
        } else {
            "·".into()
        }
    });
    text.push_str("   deciding rules:\n");
    for cell in &cells {
        let field = |name: &str| cell[name].as_str().unwrap_or_default().to_owned();
        text.push_str(&format!(
            "   {:<11} → {:<14} {:<6} {}\n",
            field("from"),
            format!("{}:{}", field("to"), cell["port"]),
            field("verdict"),
            field("rule")
        ));
    }
    // These probes are a scan from every host at once, and the detector does not know better.
    let found = world.controller.ask(&["findings"])?;
    let found = found["findings"].as_array().map_or(0, Vec::len);
    text.push_str(&format!(
        "   (to the detector these probes are scans: it has {found} findings by now)\n"
    ));
    Ok(Outcome::new(
        (),
        text,
        json!({"cells": cells, "findings": found}),
    ))
}

fn explain(world: &World, from: &str, to: &str, port: u16, allowed: bool) -> Result<Value> {
    let answer = world
        .controller
        .ask(&["explain", from, to, &port.to_string()])?;
    let verdict = answer["enforced"]
        .as_str()
        .context("an explanation without a verdict")?;
    let rule = answer["rule"]
        .as_str()
        .with_context(|| format!("{from} → {to}:{port}: no deciding rule"))?;
    if (verdict == "allow") != allowed {
        bail!("explain says {verdict} for {from} → {to}:{port}, the wire says otherwise");
    }
    Ok(json!({"from": from, "to": to, "port": port, "verdict": verdict, "rule": rule}))
}
