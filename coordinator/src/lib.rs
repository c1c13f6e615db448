//! The coordinator.

pub mod config;
pub mod operator;
pub mod protocol;
pub mod server;

pub use operator::run;
