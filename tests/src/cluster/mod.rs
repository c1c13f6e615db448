//! `prove cluster`: several coordinators on one log, one of them killed or stopped every few seconds.
//!
//! - [`world`]: the processes: coordinators, banks, clients, database servers.
//! - [`run`]: the faults, and how long it took the others to take over after each.
//! - [`report`]: what came of it.
//! - [`throughput`]: what a second node costs.
//!
//! Whether anything was violated is judged as after a crash of a single coordinator: by the books, from outside.

pub mod report;
pub mod run;
pub mod throughput;
pub mod world;
