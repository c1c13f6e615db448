//! Proof over the real thing: what the tests and `prove` share.

pub mod cluster;
pub mod crashes;
pub mod harness;
pub mod model;
pub mod museum;
pub mod operators;
pub mod resources;
pub mod simulation;
pub mod torture;
pub mod trial;
