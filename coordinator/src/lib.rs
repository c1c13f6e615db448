//! The coordinator.

pub mod decision_log;
pub mod protocol;
