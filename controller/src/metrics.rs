//! Numbers about the controller, in OpenMetrics.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Every metric, and the registry that prints them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// TLS handshakes that failed.
    pub handshakes_failed: Counter,
    /// Requests that the gate refused.
    pub requests_refused: Counter,
    /// Agents that are connected.
    pub agents_connected: Gauge,
    /// Revision of the state.
    pub revision: Gauge<u64, AtomicU64>,
    /// Time to compile every agent's snapshot.
    pub plan_seconds: Histogram,
    /// Snapshots sent.
    pub pushes: Counter,
    /// Snapshots that an agent refused.
    pub nacks: Counter,
    /// Flow records stored.
    pub flow_records: Counter,
    /// Batches that came again.
    pub flow_batches_repeated: Counter,
    /// Batches refused because they spoke for others.
    pub flow_batches_refused: Counter,
    /// Batches that agents lost, by gaps in their numbering.
    pub flow_batches_lost: Counter,
    /// Open flows forgotten before they closed because too many were open.
    pub flows_forgotten_open: Counter,
    /// Records that live followers lost because they were too slow.
    pub follower_lost: Counter,
    /// Findings of all detectors.
    pub findings: Counter,
    /// Writes refused because the disk is full.
    pub disk_full: Counter,
    invariants: Family<[(&'static str, &'static str); 1], Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("cofferdam_controller");
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let handshakes_failed = counter("handshakes_failed", "TLS handshakes that failed");
        let requests_refused = counter(
            "requests_refused",
            "Requests refused for lack of identity or right",
        );
        let pushes = counter("snapshots_pushed", "Snapshots sent to agents");
        let nacks = counter("snapshots_refused", "Snapshots that an agent refused");
        let flow_records = counter("flow_records", "Flow records stored");
        let flow_batches_repeated = counter(
            "flow_batches_repeated",
            "Flow batches that came again and were not counted",
        );
        let flow_batches_refused = counter(
            "flow_batches_refused",
            "Flow batches refused because they spoke for others",
        );
        let flow_batches_lost = counter(
            "flow_batches_lost",
            "Flow batches missing in an agent's numbering",
        );
        let flows_forgotten_open = counter(
            "flows_forgotten_open",
            "Open flows forgotten because too many were open",
        );
        let follower_lost = counter(
            "follower_records_lost",
            "Records that slow live followers lost",
        );
        let findings = counter("findings", "Findings of all detectors");
        let disk_full = counter("disk_full", "Writes refused because the disk is full");
        let agents_connected = Gauge::default();
        registry.register(
            "agents_connected",
            "Agents that are connected",
            agents_connected.clone(),
        );
        let revision = Gauge::default();
        registry.register("revision", "Revision of the state", revision.clone());
        let plan_seconds = Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0]);
        registry.register(
            "plan_seconds",
            "Time to compile every agent's snapshot",
            plan_seconds.clone(),
        );
        let invariants = Family::default();
        registry.register(
            "invariants",
            "Invariants by what came out of their last check",
            invariants.clone(),
        );
        Self {
            registry,
            handshakes_failed,
            requests_refused,
            agents_connected,
            revision,
            plan_seconds,
            pushes,
            nacks,
            flow_records,
            flow_batches_repeated,
            flow_batches_refused,
            flow_batches_lost,
            flows_forgotten_open,
            follower_lost,
            findings,
            disk_full,
            invariants,
        }
    }
}

impl Metrics {
    /// How many invariants are in a state: `holds`, `broken` or `empty`.
    #[must_use]
    pub fn invariants(&self, state: &'static str) -> Gauge {
        self.invariants.get_or_create(&[("state", state)]).clone()
    }

    /// The text that `/metrics` answers.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a string cannot fail.
        let _infallible = encode(&mut text, &self.registry);
        text
    }
}
