//! `prove simulate`: the real protocol, shards, deliveries, presumption, session and branch machine, in worlds that are made of nothing but a
//! seed: network, disk, clock, stores, applications and operators are simulated, and everything goes wrong.
//!
//! A world is another shell around the pure machines, beside `engine/shell.rs` and `participant/driver.rs`. What those shells do in tasks
//! is done here in the order of a virtual clock; what they decide, they do not decide: that is in the machines. First there are
//! faults, then none, and then everything has to end; a few transactions that are begun after that have to commit.
//!
//! # Read in this order
//!
//! - [`world`]: what there is, and the loop; [`happening`]: what can be planned, and who takes it.
//! - [`node`]: the coordinator's process, with [`node_log`] (group commit, and what becomes of a write) and [`node_questions`] (shards first,
//!   then the log); [`log`]: the log and the disk under it.
//! - [`participant`]: a participant's process, with [`operations`]; [`store`]: its database, with evidence and fences.
//! - [`client`]: applications; [`calamities`]: what befalls a world, and people; [`network`]: what happens to messages.
//! - [`faults`]: the kinds, and how each world draws its own; [`history`]: what an observer knows; [`invariants`]: what must hold of it;
//!   [`sometimes`]: what has to be reached; [`trace`], [`queue`], [`rng`]: why a seed repeats exactly.
//! - [`run`]: many worlds, on every core; [`report`]: what is printed.
//!
//! # What is not simulated
//!
//! - The tokio shells themselves, gRPC, and the SQL of the stores and of the decision log: real processes try those (`prove crashes`). The
//!   shells' orders (durable, sent, answered; shards before log) are written again here, from the pure parts that they share.
//! - Two coordinators at a time. A coordinator is restarted on the same log under a new epoch, and the old one is sealed by that.
//! - A log that loses what it had forced (a restore from backup).
//! - Retention that is not much longer than the slowest message, and a standby that lacks more than is retained.

pub mod calamities;
pub mod client;
pub mod faults;
pub mod happening;
pub mod history;
pub mod invariants;
pub mod log;
pub mod network;
pub mod node;
pub mod node_log;
pub mod node_questions;
pub mod operations;
pub mod participant;
pub mod queue;
pub mod report;
pub mod rng;
pub mod run;
pub mod sometimes;
pub mod store;
pub mod trace;
pub mod world;
