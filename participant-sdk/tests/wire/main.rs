//! The SDK over real sockets: against a coordinator that says what a test has it say, with a store that really prepares.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod client;
mod layers;
mod participant;
mod several;
mod support;
