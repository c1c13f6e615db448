//! What every service says to its callers: a refusal, and whether it is well.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::Failure;

/// How long a service that was told to stop waits for what is under way.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long a health check waits for its answer.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);

/// Why a service did not do what it was asked for. Nothing of it is done then.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The service's own no: it would say it again.
    Declined(String),
    /// It could not be done now.
    Failed(String),
}

impl<E: std::error::Error> From<E> for Refused {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        match self {
            Self::Declined(why) => (StatusCode::UNPROCESSABLE_ENTITY, why).into_response(),
            Self::Failed(why) => (StatusCode::SERVICE_UNAVAILABLE, why).into_response(),
        }
    }
}

/// Answers requests until SIGTERM, and finishes those that it has begun to answer. `/health` says whether it is well.
pub(crate) async fn listen<W>(address: SocketAddr, service: Router, is_well: W) -> Result<(), Failure>
where
    W: Fn() -> bool + Clone + Send + Sync + 'static,
{
    let health = async move || if is_well() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let service = service.route("/health", get(health));
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move {
        terminate.recv().await;
    };
    let listener = TcpListener::bind(address).await?;
    tracing::info!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, service).with_graceful_shutdown(stop).await?)
}

/// Asks a part of the shop whether it is well.
pub(super) async fn is_well(address: SocketAddr) -> Result<ExitCode, Failure> {
    let http = reqwest::Client::builder().no_proxy().timeout(HEALTH_TIMEOUT).build()?;
    let url = format!("http://127.0.0.1:{}/health", address.port());
    let answer = http.get(url).send().await?;
    Ok(if answer.status().is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
