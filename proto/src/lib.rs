//! The wire format of Lockstep, and the identifiers that are checked before anything else sees them.
//!
//! Read in this order:
//! - [`ids`]: `Gtrid`, `Bqual`, `Xid` and the other names, with their limits, text forms and parsers.
//! - [`v1`]: what prost and tonic generate from `proto/lockstep/v1/*.proto`.
//! - [`museum`]: switches for bugs, for tests of the tests.
//! - [`trace`]: the span that a piece of work belongs to.
//! - [`wire`]: from the generated types to checked ones, and back. Wire types stop there.
//!
//! This crate never decides anything about a transaction.

#[cfg(test)]
#[path = "../../tests/corpus/mod.rs"]
mod fuzz;
pub mod ids;
pub mod limits;
pub mod museum;
pub mod positions;
pub mod trace;
pub mod wire;

/// Generated from `proto/lockstep/v1/*.proto`.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    unreachable_pub,
    reason = "generated"
)]
pub mod v1 {
    tonic::include_proto!("lockstep.v1");
}

/// What the `.proto` files say, for reflection: a serialized `FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lockstep.bin"));

pub use ids::{
    Bqual, ClusterId, Epoch, Gtrid, Incarnation, InstanceId, LogPosition, ParseIdError, ResourceManagerId,
    ResourceManagerName, Xid,
};
pub use positions::Positions;
pub use trace::{TRACE_PARENT_HEADER, TraceParent};
