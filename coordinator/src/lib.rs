//! The coordinator.
pub mod decision_log;
pub mod engine;
pub mod protocol;
