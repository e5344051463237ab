//! User space's side: reading the flow tables, and the memory that they take.

use std::time::Instant;

use agent::config::Config;
use agent::flows::collect::{Collector, Settings};
use agent::kernel::clock::{self, Converter};
use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::host::Host;

/// Reading the tables, nanoseconds a live flow.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Export {
    /// Live flows, both families.
    pub(crate) flows: u64,
    /// Places in the tables.
    pub(crate) capacity: u64,
    /// Every entry is looked at once.
    pub(crate) read_ns: f64,
    /// The agent's sweep when every flow is to be reported.
    pub(crate) first_sweep_ns: f64,
    /// The agent's sweep when nothing changed.
    pub(crate) sweep_ns: f64,
}

/// A pinned map.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Map {
    pub(crate) map: String,
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
}

/// What the tables take.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Memory {
    /// Bytes of all maps whose names begin with FLOWS4, by flow that they were sized for.
    pub(crate) bytes_per_flow4: f64,
    /// The same for FLOWS6.
    pub(crate) bytes_per_flow6: f64,
    /// Every pinned map with the configured capacities.
    pub(crate) maps: Vec<Map>,
}

/// Times both ways of reading; the least of `rounds`.
pub(crate) fn export(host: &Host, rounds: usize) -> Result<Export> {
    let hz = clock::ticks_per_second();
    let flows = host.kernel.flow_count()?;
    if flows == 0 {
        bail!("no flows to read");
    }
    let now = host.kernel.clock()?;
    let utc = clock::utc_ns();
    let boot = i64::try_from(now.boot_ns).unwrap_or(i64::MAX);
    let converter = Converter::new(now, utc.saturating_sub(boot), hz);
    let settings = Settings {
        interval_ns: 60_000_000_000,
        timeouts: Config::default().timeouts(hz),
        deny_idle: 120 * hz,
    };
    let (mut read, mut first, mut again) = (f64::INFINITY, f64::INFINITY, f64::INFINITY);
    let per_flow = |start: Instant| start.elapsed().as_secs_f64() * 1e9 / flows as f64;
    for _ in 0..rounds {
        let start = Instant::now();
        host.kernel.flow_count()?;
        read = read.min(per_flow(start));
        let mut collector = Collector::new("bench", settings, []);
        let start = Instant::now();
        let pass = collector.sweep(&host.kernel, &converter, utc)?;
        first = first.min(per_flow(start));
        if pass.flows != flows {
            bail!("the sweep saw {} flows of {flows}", pass.flows);
        }
        let start = Instant::now();
        let quiet = collector.sweep(&host.kernel, &converter, utc)?;
        again = again.min(per_flow(start));
        if !quiet.records.is_empty() {
            bail!("nothing changed, but {} records came", quiet.records.len());
        }
    }
    Ok(Export {
        flows,
        capacity: u64::from(host.sizes.flows4) + u64::from(host.sizes.flows6),
        read_ns: read,
        first_sweep_ns: first,
        sweep_ns: again,
    })
}

/// Adds up what the kernel says of the pinned maps.
pub(crate) fn memory(host: &Host) -> Result<Memory> {
    let maps: Vec<Map> = host
        .memory()?
        .into_iter()
        .map(|(map, bytes, entries)| Map {
            map,
            bytes,
            entries,
        })
        .collect();
    let per_flow = |prefix: &str, flows: u32| {
        let of: Vec<u64> = maps
            .iter()
            .filter(|map| map.map.starts_with(prefix))
            .map(|map| map.bytes)
            .collect();
        (!of.is_empty()).then(|| of.iter().sum::<u64>() as f64 / f64::from(flows))
    };
    Ok(Memory {
        bytes_per_flow4: per_flow("FLOWS4", host.sizes.flows4).context("no map FLOWS4")?,
        bytes_per_flow6: per_flow("FLOWS6", host.sizes.flows6).context("no map FLOWS6")?,
        maps,
    })
}
