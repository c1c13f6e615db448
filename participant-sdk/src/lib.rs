//! Lockstep's SDK: commit one piece of work in several databases, or in none.
//!
//! # Begin and end a transaction
//!
//! ```no_run
//! # async fn reserve(_: &lockstep::Context) -> Result<(), std::io::Error> { Ok(()) }
//! # async fn charge(_: &lockstep::Context) -> Result<(), std::io::Error> { Ok(()) }
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = lockstep::Client::connect("http://127.0.0.1:7420").await?;
//! // Commits if the work succeeds; rolls back if it fails, panics or is cancelled.
//! client.transaction("order", async |tx| {
//!     reserve(&tx.context()).await?; // Each call sends the context along, in one header.
//!     charge(&tx.context()).await
//! }).await?;
//! # Ok(()) }
//! ```
//!
//! Every error says what its caller may do: [`Advice`]. A commit whose answer was lost is neither a success nor a failure;
//! it is [`CommitError::Unknown`], with the transaction's id to ask for.
//!
//! # Take part with your own database
//!
//! The service keeps its own pool and its own SQL. There is no `commit()` on a branch: it is committed when the
//! transaction is. A handler that fails, panics or is cancelled before [`Branch::finish`] rolls its branch back, and the transaction with
//! it. Its caller is told by an error, and should not commit then: a commit that reaches the coordinator before it has heard of that
//! branch at all commits the others' work without it.
//!
//! ```no_run
//! # #[cfg(all(feature = "sqlite", feature = "axum"))] mod example {
//! use axum::{Router, extract::State, http::StatusCode, routing::post};
//!
//! type Stock = lockstep::Participant<lockstep::Sqlite>;
//!
//! async fn reserve(State(stock): State<Stock>, context: lockstep::Context) -> Result<(), StatusCode> {
//!     let mut branch = stock.join(&context).await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
//!     let sql = sqlx::query("UPDATE items SET free = free - 1 WHERE name = 'chair'");
//!     sql.execute(&mut *branch).await.map_err(|_| StatusCode::CONFLICT)?;
//!     branch.finish().await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)
//! }
//!
//! async fn service(pool: sqlx::SqlitePool) -> Result<Router, lockstep::AttachError> {
//!     let database = lockstep::Sqlite::new(pool);
//!     let stock = lockstep::Participant::builder("stock-db", database)
//!         .coordinator("http://127.0.0.1:7420").attach().await?;
//!     Ok(Router::new().route("/reserve", post(reserve)).with_state(stock))
//! }
//! # }
//! ```
//!
//! # More than one call, more than one database
//!
//! - A service that a transaction calls again continues the branch that this process has open for it; another instance opens one of its
//!   own, which does not see the first one's work.
//! - An application that marks its last call to a service ([`Transaction::vote`]) has the branch vote when the handler ends: the commit
//!   saves a round, and a further call fails ([`JoinError::Voted`]). [`Branch::vote`] is the same, chosen by the service.
//! - Several databases in one service are several [`Participant`]s, each under its own name.
//!
//! # Read in this order
//!
//! - [`Client`], [`Transaction`]: the application's side.
//! - [`Context`], and [`ContextLayer`]: what travels from one service to the next.
//! - [`Participant`], [`Branch`]: the side of a service that takes part with its own database.
//! - [`resource`]: what a store has to be able to do. With the feature `testing`, `testing::contract` tries whether it does.
//! - [`doctor`]: whether a store is fit to take part, and what stands in the way.
//! - [`branch`]: two-phase commit on the participant's side, as a pure state machine. [`session`] is the conversation around
//!   it. Both are public for simulators and model checkers, not for services, and change with the protocol.

pub mod branch;
mod client;
mod clock;
mod context;
pub mod doctor;
mod error;
#[cfg(test)]
#[path = "../../tests/corpus/mod.rs"]
mod fuzz;
mod layers;
mod nodes;
mod participant;
#[cfg(test)]
mod pure;
pub mod resource;
pub mod session;
mod status;
#[cfg(feature = "testing")]
pub mod testing;
mod traces;

pub use client::{Begin, Client, ClientBuilder, Committed, DEFAULT_PATIENCE, Outcome, Transaction};
pub use context::{CONTEXT_HEADER, Context, MAX_CONTEXT_BYTES};
pub use error::{
    Advice, AttachError, BeginError, CommitError, ConnectError, ContextError, FinishError, InquireError,
    JoinError, RollbackError, TransactionError, WorkError,
};
pub use layers::{ContextLayer, ContextService, InjectContext, InjectContextLayer};
pub use lockstep_proto::{ClusterId, Gtrid};
pub use participant::{Branch, Participant, ParticipantBuilder};
#[cfg(feature = "mysql")]
pub use resource::mysql::MySql;
#[cfg(feature = "postgres")]
pub use resource::postgres::Postgres;
#[cfg(feature = "sqlite")]
pub use resource::sqlite::Sqlite;
