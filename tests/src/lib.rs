//! Proof over the real thing: what the tests and `prove` share.
//!
//! [`harness`] alone is also what `bench` starts its processes with.

#[cfg(feature = "proof")]
pub mod cluster;
#[cfg(feature = "proof")]
pub mod crashes;
pub mod harness;
#[cfg(feature = "proof")]
pub mod model;
#[cfg(feature = "proof")]
pub mod museum;
#[cfg(feature = "proof")]
pub mod operators;
#[cfg(feature = "proof")]
pub mod resources;
#[cfg(feature = "proof")]
pub mod simulation;
#[cfg(feature = "proof")]
pub mod torture;
#[cfg(feature = "proof")]
pub mod trial;
