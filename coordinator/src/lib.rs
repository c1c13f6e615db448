//! The coordinator: owns transactions, runs both phases, keeps the decision log.
//!
//! A transaction from top to bottom: [`rpc`] → [`engine`] → [`protocol`] → [`decision_log`] → [`sessions`] → the SDK, and back.
//! [`cluster`] is what several nodes on one log owe each other.
//! [`telemetry`] is what can be measured of it.
//! [`server`] puts the parts together; [`operator`] is what a person sees of them, and [`config`] what they set. [`codes`] names every
//! error that anybody can meet.

pub mod cluster;
pub mod codes;
pub mod config;
pub mod decision_log;
pub mod engine;
#[cfg(test)]
#[path = "../../tests/corpus/mod.rs"]
mod fuzz;
mod open_log;
pub mod operator;
pub mod protocol;
pub mod rpc;
pub mod server;
pub mod sessions;
pub mod telemetry;

pub use operator::run;
