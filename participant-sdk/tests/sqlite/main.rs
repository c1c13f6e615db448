//! The SQLite resource over real files: what it captures, what a crash at any point leaves, and what it refuses.
//!
//! The tests that kill a process start this binary again (`harness::Child`), tell it by environment which scenario to play
//! and at which crash point to die, and look at the files afterwards.

#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used, reason = "in a test a panic is the message")]

mod capture;
mod connections;
mod crashes;
mod evidence;
mod faults;
mod generated;
mod harness;
mod hazards;
mod refusals;
