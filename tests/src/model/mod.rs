//! `prove model`: every state that a small world can come to, one global transaction and two coordinators, explored exhaustively.
//!
//! What decides is the real code: the coordinator's transaction ([`lockstep_coordinator::protocol::transaction::Transaction`]), what is
//! concluded from the log ([`lockstep_coordinator::protocol::presumption`]), and the participant's branch ([`lockstep::branch::Branch`]).
//! Around them stands as little as possible: a log with epochs and seals, stores that hold one branch each, a wire on which every message
//! can be overtaken by every other, and an application that asks. Time is not there: what a timer could do may happen at any moment.
//!
//! # Read in this order
//!
//! - [`world`]: what there is, and what it remembers; [`bounds`]: how many branches, and how many faults of each kind.
//! - [`happening`]: what can happen next in a world; [`coordinator`] and [`participant`]: what it does.
//! - [`log`]: the decision log, with the fence; [`properties`]: what must hold in every state.
//! - [`explore`]: that from every state an end can be reached without further faults; [`run`]: the worlds that are tried, and the report.
//!
//! # Why there are two explorations
//!
//! Safety is checked by stateright, which visits every state once. Its `eventually` is right on acyclic paths only, and a world in which
//! messages are sent again is full of cycles. So liveness is checked on the graph that [`explore`] keeps: backwards from the states in which
//! everything is over, over all steps that are no faults. A state that is not met on this way could never come to an end.

pub mod bounds;
pub mod coordinator;
pub mod explore;
pub mod happening;
pub mod log;
pub mod participant;
pub mod properties;
pub mod run;
pub mod world;
