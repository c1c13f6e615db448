//! The HTTP service around a ledger. Its handlers know nothing of two-phase commit: they join, work, and finish.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use lockstep::{Context, Participant};
use serde::{Deserialize, Serialize};

use crate::ledger::{BookError, Ledger};

/// The body of `POST /reserve` and `POST /restock`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// What it is for: used once.
    pub reference: String,
    /// The item.
    pub item: String,
    /// How many, at least 1.
    pub count: u32,
}

/// The service: what takes part in transactions, and the ledger to read from.
#[derive(Debug, Clone)]
struct Shop {
    participant: Participant<Ledger>,
    ledger: Ledger,
}

/// `POST /reserve`, `POST /restock`: in the transaction of the request's context. `GET /items`: what is committed.
pub fn router(participant: Participant<Ledger>, ledger: Ledger) -> Router {
    Router::new()
        .route("/reserve", post(reserve))
        .route("/restock", post(restock))
        .route("/items", get(items))
        .route("/health", get(async || "open"))
        .with_state(Shop { participant, ledger })
}

async fn reserve(
    State(shop): State<Shop>,
    context: Context,
    Json(order): Json<Order>,
) -> Result<(), Refusal> {
    let mut branch = shop.participant.join(&context).await.map_err(Refusal::unavailable)?;
    branch.reserve(&order.reference, &order.item, order.count).await?;
    branch.finish().await.map_err(Refusal::unavailable)
}

async fn restock(
    State(shop): State<Shop>,
    context: Context,
    Json(order): Json<Order>,
) -> Result<(), Refusal> {
    let mut branch = shop.participant.join(&context).await.map_err(Refusal::unavailable)?;
    branch.restock(&order.reference, &order.item, order.count).await?;
    branch.finish().await.map_err(Refusal::unavailable)
}

async fn items(State(shop): State<Shop>) -> Result<Json<BTreeMap<String, u64>>, Refusal> {
    shop.ledger.items().await.map(Json).map_err(Refusal::unavailable)
}

/// Why a request was not served. Nothing of it is done then.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    /// The shop's own no: it would say it again.
    #[error("declined: {0}")]
    Declined(BookError),
    /// It could not be done now.
    #[error("{0}")]
    Unavailable(String),
}

impl Refusal {
    fn unavailable(cause: impl std::fmt::Display) -> Self {
        Self::Unavailable(cause.to_string())
    }
}

impl From<BookError> for Refusal {
    fn from(error: BookError) -> Self {
        match error {
            BookError::NoSuchItem(_)
            | BookError::NotEnough { .. }
            | BookError::Taken(_)
            | BookError::Malformed(_) => Self::Declined(error),
            BookError::TooLate | BookError::Ledger(_) => Self::unavailable(error),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Declined(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, self.to_string()).into_response()
    }
}
