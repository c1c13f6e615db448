//! What is asked for without gRPC, on the same address: metrics, and whether this process is alive and to be used.
//!
//! `/livez` means "restart me if this fails": it answers as long as anything does. `/readyz` means "send new work to me": it fails
//! while nothing may begin, such as on a full disk, and from the moment a drain begins. `?verbose` names each check.

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;

use super::readiness::Readiness;
use crate::sessions::session::Shared;
use crate::telemetry::scrape;

/// Prometheus' text format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn router(shared: Shared) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(shared)
}

async fn metrics(State(shared): State<Shared>) -> impl IntoResponse {
    match scrape::scrape(&shared).await {
        Ok(text) => (StatusCode::OK, [(CONTENT_TYPE, TEXT_FORMAT)], text),
        Err(error) => {
            let sentence = format!("the metrics cannot be told now: {error}\n");
            (StatusCode::SERVICE_UNAVAILABLE, [(CONTENT_TYPE, "text/plain; charset=utf-8")], sentence)
        }
    }
}

async fn ready(State(shared): State<Shared>, RawQuery(query): RawQuery) -> (StatusCode, String) {
    let readiness = Readiness::of(&shared).await;
    let status = if readiness.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let verbose = query.is_some_and(|query| query.split('&').any(|word| word == "verbose"));
    (status, readiness.text(verbose))
}
