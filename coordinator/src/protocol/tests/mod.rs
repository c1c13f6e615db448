//! Tests of the protocol: golden scripts for its behaviour, a table for its completeness, a walk through everything reachable
//! for its safety, and tables for what the log's silence means.

mod golden;
pub(crate) mod names;
mod presumption;
pub(crate) mod scripts;
pub(crate) mod show;
mod situation;
mod table;
mod walk;
