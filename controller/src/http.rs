//! `/metrics` and `/healthz`, plain HTTP, for monitoring only.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::store::Store as _;

/// Answers until `stop`.
pub(crate) async fn serve(listener: TcpListener, core: Arc<Core>, stop: CancellationToken) {
    let app = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .with_state(core);
    let served = axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = served.await {
        tracing::error!(%error, "HTTP ended");
    }
}

async fn metrics(State(core): State<Arc<Core>>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], core.metrics.text())
}

async fn health(State(core): State<Arc<Core>>) -> (StatusCode, String) {
    match probe(&core).await {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}

/// Whether both databases answer.
///
/// # Errors
/// When one does not.
pub(crate) async fn probe(core: &Core) -> Result<(), crate::store::StoreError> {
    core.store.get("").await?;
    core.flows.sequence("").await?;
    Ok(())
}
