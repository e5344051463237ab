//! `/metrics` (OpenMetrics) and `/healthz`, read from the kernel at each scrape.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use crate::daemon::Host;
use crate::daemon::status::Status;
use crate::kernel::clock;

type Labels = Vec<(&'static str, String)>;

/// Serves until the daemon stops.
pub(crate) async fn serve(host: Arc<Host>, listener: tokio::net::TcpListener) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .with_state(host);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "serving metrics");
    }
}

async fn metrics(State(host): State<Arc<Host>>) -> impl IntoResponse {
    let text = tokio::task::spawn_blocking(move || render(&host)).await;
    match text {
        Ok(Ok(text)) => (
            StatusCode::OK,
            [(
                header::CONTENT_TYPE,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )],
            text,
        ),
        Ok(Err(error)) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(header::CONTENT_TYPE, "text/plain")],
            error,
        ),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(header::CONTENT_TYPE, "text/plain")],
            error.to_string(),
        ),
    }
}

/// Healthy while something is enforced and the collector turns.
async fn health(State(host): State<Arc<Host>>) -> impl IntoResponse {
    let now = clock::boot_ns() / 1_000_000_000;
    let swept = host.counters.swept_at.load(Ordering::Relaxed);
    if host.kernel.word().is_empty() {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "no policy content is active\n",
        )
    } else if now.saturating_sub(swept) > 15 {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "the collector does not turn\n",
        )
    } else {
        (StatusCode::OK, "ok\n")
    }
}

fn render(host: &Host) -> Result<String, String> {
    let status = Status::of(host).map_err(|error| error.to_string())?;
    let mut registry = Registry::with_prefix("cofferdam_agent");
    let gauge = |value: u64| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    for (name, help, value) in [
        ("flows", "Flows in the tables", status.flows),
        (
            "generation",
            "Generation of the active content",
            u64::from(status.generation),
        ),
        ("revision", "Applied revision", status.revision),
        (
            "pending",
            "1 while a change waits for its confirmation",
            u64::from(status.pending),
        ),
        (
            "controller_connected",
            "1 while the stream to the controller is up",
            u64::from(status.controller),
        ),
        (
            "spooled_batches",
            "Batches that wait for the controller",
            status.spooled_batches,
        ),
        ("devices", "Armed devices", status.devices.len() as u64),
        (
            "panic",
            "1 while an operator's panic switch is thrown",
            u64::from(status.panic != "off"),
        ),
    ] {
        registry.register(name, help, gauge(value));
    }
    let counter = |value: u64| {
        let counter: Counter<u64, AtomicU64> = Counter::default();
        counter.inc_by(value);
        counter
    };
    let packets: Family<Labels, Counter> = Family::default();
    let bytes: Family<Labels, Counter> = Family::default();
    for (reason, (count, size)) in &status.reasons {
        let labels = vec![("reason", reason.clone())];
        packets.get_or_create(&labels).inc_by(*count);
        bytes.get_or_create(&labels).inc_by(*size);
    }
    registry.register(
        "packets",
        "Packets by drop reason; none = passed outside tracked flows",
        packets,
    );
    registry.register("bytes", "L3 bytes by drop reason", bytes);
    let losses: Family<Labels, Counter> = Family::default();
    for (cause, count) in &status.losses {
        losses
            .get_or_create(&vec![("cause", cause.clone())])
            .inc_by(*count);
    }
    registry.register(
        "lost_records",
        "Records that did not leave this host, by cause",
        losses,
    );
    registry.register(
        "records",
        "Records made durable in the spool",
        counter(host.counters.records.load(Ordering::Relaxed)),
    );
    registry.register(
        "ring_drops",
        "Events that did not fit the ring",
        ConstCounter::new(status.losses.get("ring-full").copied().unwrap_or(0)),
    );
    let info: Family<Labels, Gauge> = Family::default();
    info.get_or_create(&vec![
        ("version", status.version.to_owned()),
        ("mode", status.mode.clone()),
    ])
    .set(1);
    registry.register("info", "Version and mode", info);
    let mut text = String::new();
    encode(&mut text, &registry).map_err(|error| error.to_string())?;
    Ok(text)
}
