//! Lockstep's SDK.

mod client;
mod clock;
mod context;
mod error;
mod layers;
pub mod resource;

pub use client::{Begin, Client, ClientBuilder, Committed, DEFAULT_PATIENCE, Outcome, Transaction};
pub use context::{CONTEXT_HEADER, Context, MAX_CONTEXT_BYTES};
pub use error::{
    Advice, AttachError, BeginError, CommitError, ConnectError, ContextError, FinishError, InquireError,
    JoinError, RollbackError, TransactionError,
};
pub use layers::{ContextLayer, ContextService, InjectContext, InjectContextLayer};
pub use lockstep_proto::{ClusterId, Gtrid};
