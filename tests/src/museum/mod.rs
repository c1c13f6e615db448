//! `prove museum`: known bugs, put back one at a time, to see that the tests find them.
//!
//! A bug is a place in the coordinator, its log, or the SDK at which one rule is not kept ([`lockstep_proto::museum`]). Each is tried on
//! the layer that is meant to find it, and has to be found there, by the invariant that it breaks; the code without it passes the same
//! tries. [`catalogue`] is the list; docs/museum.md has it for reading, and a test compares the two.
//!
//! - [`catalogue`]: the bugs, the schedules that they need, and who is meant to find each.
//! - [`run`]: puts each one back, tries it, and reports.
//! - [`schedule`]: what only real servers, files and connections can show.
//! - [`log`], [`store`], [`script`]: what is tried where neither the simulation nor the model has the real code: the embedded decision log,
//!   a real SQLite database, and rules about two databases or two coordinators of one name.

pub mod catalogue;
pub mod log;
pub mod run;
pub mod schedule;
pub mod script;
pub mod store;
