//! What a transaction costs: Lockstep beside the same work by hand, in one run, on one machine.
//!
//! A transaction coordinator is judged by what it adds to the work of the databases. So the unit is a ratio, measured side by side:
//! real PostgreSQL servers that force every write, coordinator and services as processes of their own, the contenders by turns, and the
//! books checked after every run.
//!
//! - [`contender`]: who is compared. [`teller`]: the services. [`driver`]: the clients. [`peer`]: another coordinator, where it is installed.
//! - [`stage`]: starts everything, and checks the books. [`meter`]: what a run has cost.
//! - [`alone`]: the coordinator without databases. [`wal`]: its log in PostgreSQL. [`voter`]: participants that vote at once. [`grown`]: with a log that has grown.
//! - [`engine`]: the engine without the edge, in this process.
//! - [`branch`]: a branch and its database, without a coordinator.
//! - [`restart`]: what is in doubt when everything is killed.
//! - [`suite`]: runs it all. [`report`], [`plot`]: shows it.

pub mod alone;
pub mod branch;
pub mod contender;
pub mod driver;
pub mod engine;
pub mod grown;
pub mod meter;
pub mod peer;
pub mod plot;
pub mod report;
pub mod restart;
pub mod stage;
pub mod statements;
pub mod suite;
pub mod teller;
pub mod voter;
pub mod wal;

/// Generated from `proto/`: the tellers' calls, and those of the peer.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    unreachable_pub,
    reason = "generated"
)]
pub mod generated {
    pub mod teller {
        tonic::include_proto!("bench.v1");
    }
    pub mod dtmrs {
        tonic::include_proto!("dtmrs.v1");
    }
}
