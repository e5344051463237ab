//! What an operator sees: of the running daemon, or of the pins alone.

use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::Ordering;

use super::{Host, adopt::Seeded};
use crate::kernel::attach::Attached;
use crate::kernel::attribution::State as Attribution;
use crate::kernel::{KernelError, OfflineKernel, clock};
use crate::reconcile::breaker::Trip;
use crate::reconcile::failsafes::Failsafe;
use crate::reconcile::store::Store;

/// Status of one host.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Status {
    /// A daemon answered; otherwise this is read from pins and files.
    pub daemon: bool,
    /// Of the agent.
    pub version: &'static str,
    /// Name of the workload.
    pub workload: String,
    /// Mode of the workload.
    pub mode: String,
    /// `armed`, `learning` or `empty`.
    pub state: &'static str,
    /// `off`, `open` or `close`.
    pub panic: &'static str,
    /// Applied revision.
    pub revision: u64,
    /// Its digest.
    pub digest: String,
    /// Generation of the active content.
    pub generation: u32,
    /// Its slot.
    pub slot: u32,
    /// Waits for a confirmation.
    pub pending: bool,
    /// Seconds until it falls back.
    pub falls_back_in: Option<u64>,
    /// The kernel gave up this revision because nobody confirmed.
    pub fell_back_from: u64,
    /// The stream to the controller is up.
    pub controller: bool,
    /// No controller is configured: policy comes from files.
    pub standalone: bool,
    /// Armed devices.
    pub devices: Vec<Attached>,
    /// How much is learnt of who owns sockets.
    pub attribution: Attribution,
    /// When the breaker tripped last.
    pub breaker: Option<Trip>,
    /// Visible failsafes.
    pub failsafes: Vec<Failsafe>,
    /// Flows in the tables.
    pub flows: u64,
    /// Packets and bytes by reason.
    pub reasons: BTreeMap<String, (u64, u64)>,
    /// Lost records by cause.
    pub losses: BTreeMap<String, u64>,
    /// Batches that wait for the controller.
    pub spooled_batches: u64,
    /// Connections taken over at arming.
    pub adopted: Seeded,
    /// The wall clock is behind: grants are off.
    pub clock_behind: bool,
    /// The last thing that went wrong.
    pub last_error: String,
}

impl Status {
    /// Of the running daemon.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn of(host: &Host) -> Result<Self, KernelError> {
        let mut status = Self::of_kernel(&host.kernel)?;
        // Before the engine is held: a change holds both, in this order.
        status.breaker = host.tripped();
        let engine = host.engine();
        status.daemon = true;
        status.workload = host.config.workload.name();
        if let Some(mode) = engine.mode() {
            status.mode = mode.name().to_owned();
        }
        if let Some(active) = engine.active() {
            if let Some(endpoint) = active
                .snapshot
                .iter()
                .find_map(|held| held.endpoints.first())
            {
                status.workload.clone_from(&endpoint.name);
            }
            status.revision = active.revision();
            status.digest.clone_from(&active.digest);
        }
        status.fell_back_from = engine.fell_back_from();
        status.failsafes = engine.failsafes().to_vec();
        status.clock_behind = engine.clock_behind();
        drop(engine);
        status.standalone = host.config.controller.endpoints.is_empty();
        status.controller = host.counters.connected.load(Ordering::Relaxed);
        status.devices = host.attached();
        status.attribution = host.attribution.state().clone();
        status.adopted = host.seeded();
        status.last_error = host.last_error();
        status.flows = host.counters.flows.load(Ordering::Relaxed);
        let spool = super::lock(&host.spool);
        status.spooled_batches = spool.waiting();
        if spool.dropped() > 0 {
            status.losses.insert("spool-full".into(), spool.dropped());
        }
        Ok(status)
    }

    /// Of pins and files, without a daemon.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn offline(kernel: &OfflineKernel, store: Option<&Store>) -> Result<Self, KernelError> {
        let mut status = Self::of_kernel(kernel)?;
        status.flows = kernel.flow_count()?;
        let word = kernel.word();
        let (_, _, fell) = word.effective(clock::boot_ns() / 1_000_000_000);
        if let Some(store) = store {
            let intent = store
                .intent()
                .filter(|intent| !fell && intent.is_in(word))
                .map(|intent| intent.stored);
            if let Some(stored) = intent.or_else(|| store.good().ok().flatten()) {
                status.revision = stored.snapshot.revision;
                status.digest = stored.digest;
                if let Some(endpoint) = stored.snapshot.endpoints.first() {
                    status.workload.clone_from(&endpoint.name);
                    status.mode = endpoint.mode.name().to_owned();
                }
            }
        }
        let list = crate::kernel::devices::list().unwrap_or_default();
        status.devices = crate::kernel::attach::armed_devices(kernel.dir())?
            .into_iter()
            .map(|(ifindex, how)| Attached {
                ifindex,
                device: list
                    .iter()
                    .find(|device| device.index == ifindex)
                    .map_or_else(String::new, |device| device.name.clone()),
                how,
            })
            .collect();
        Ok(status)
    }

    fn of_kernel(kernel: &OfflineKernel) -> Result<Self, KernelError> {
        let word = kernel.word();
        let now = clock::boot_ns() / 1_000_000_000;
        let (generation, slot, fell) = word.effective(now);
        let totals = kernel.totals()?;
        let pending = word.is_pending() && !fell;
        Ok(Self {
            version: env!("CARGO_PKG_VERSION"),
            state: if word.is_empty() {
                "empty"
            } else if word.is_learning() {
                "learning"
            } else {
                "armed"
            },
            panic: kernel.panic()?.name(),
            generation,
            slot,
            pending,
            falls_back_in: pending.then(|| word.deadline().saturating_sub(now)),
            reasons: totals.reasons,
            losses: totals.losses,
            ..Self::default()
        })
    }

    /// For a person, from the JSON that the daemon sends.
    #[must_use]
    pub fn text_of(value: &Value) -> String {
        let mut out = String::new();
        let mut line = |key: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{key:<13}{value}");
        };
        let word = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
        let number = |key: &str| value.get(key).and_then(Value::as_u64).unwrap_or(0);
        let flag = |key: &str| value.get(key).and_then(Value::as_bool).unwrap_or(false);
        let list = |key: &str| {
            value
                .get(key)
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default()
        };
        let object = |key: &str| {
            value
                .get(key)
                .and_then(Value::as_object)
                .cloned()
                .unwrap_or_default()
        };
        let inner = |entry: &Value, key: &str| {
            entry
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };

        line(
            "workload",
            format!("{} ({})", word("workload"), word("mode")),
        );
        let daemon = if flag("daemon") {
            ""
        } else {
            " - no daemon runs; enforcement goes on"
        };
        line("state", format!("{}{daemon}", word("state")));
        if word("panic") != "off" {
            line("PANIC", word("panic").to_owned());
        }
        let pending = match value.get("falls_back_in").and_then(Value::as_u64) {
            Some(seconds) => format!(", falls back in {seconds} s unless confirmed"),
            None => String::new(),
        };
        line(
            "revision",
            format!(
                "{} (generation {}, slot {}{pending})",
                number("revision"),
                number("generation"),
                number("slot")
            ),
        );
        if number("fell_back_from") > 0 {
            line(
                "fell back",
                format!("revision {} was not confirmed", number("fell_back_from")),
            );
        }
        if let Some(trip) = value
            .get("breaker")
            .and_then(|trip| serde_json::from_value::<Trip>(trip.clone()).ok())
        {
            line("BREAKER", trip.to_string());
        }
        let devices: Vec<String> = list("devices")
            .iter()
            .map(|device| inner(device, "device"))
            .collect();
        line(
            "devices",
            if devices.is_empty() {
                "none".into()
            } else {
                devices.join(" ")
            },
        );
        line(
            "controller",
            if flag("standalone") {
                "none (standalone)"
            } else if flag("controller") {
                "connected"
            } else {
                "not connected"
            }
            .to_owned(),
        );
        if let Some(attribution) = value
            .get("attribution")
            .filter(|it| inner(it, "state") != "on")
        {
            for (hook, why) in attribution
                .get("missing")
                .and_then(Value::as_object)
                .into_iter()
                .flatten()
            {
                line(
                    "attribution",
                    format!("{hook}: {}", why.as_str().unwrap_or_default()),
                );
            }
        }
        line("flows", number("flows").to_string());
        for (reason, counts) in object("reasons") {
            let count = |at: usize| counts.get(at).and_then(Value::as_u64).unwrap_or(0);
            line(
                "packets",
                format!("{reason}: {} ({} bytes)", count(0), count(1)),
            );
        }
        for (cause, count) in object("losses") {
            if count.as_u64().unwrap_or(0) > 0 {
                line("LOST", format!("{cause}: {count}"));
            }
        }
        let tolerated = value
            .pointer("/adopted/tolerated")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        for flow in &tolerated {
            line(
                "adopted",
                format!(
                    "{} <-> {} would be denied ({})",
                    inner(flow, "local"),
                    inner(flow, "remote"),
                    inner(flow, "reason")
                ),
            );
        }
        for failsafe in &list("failsafes") {
            line(
                "failsafe",
                format!(
                    "{} {}",
                    inner(failsafe, "direction"),
                    inner(failsafe, "name")
                ),
            );
        }
        if flag("clock_behind") {
            line(
                "clock",
                "behind what was seen before: grants are off".to_owned(),
            );
        }
        if !word("last_error").is_empty() {
            line("last error", word("last_error").to_owned());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::Status;

    #[test]
    fn an_agent_without_a_controller_is_not_said_to_miss_it() {
        let text = |standalone| {
            let status = Status {
                standalone,
                ..Status::default()
            };
            Status::text_of(&serde_json::to_value(&status).expect("json"))
        };
        assert!(text(true).contains("controller   none (standalone)\n"));
        assert!(text(false).contains("controller   not connected\n"));
    }
}
