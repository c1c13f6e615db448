//! Real things for tests to break: database servers made from nothing, and killed like anything else.

pub mod postgres;
