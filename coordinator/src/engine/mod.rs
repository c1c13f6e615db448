//! Runs the protocol: many transactions at once, with deadlines, waiting clients, and decisions that have to arrive.
//!
//! The engine has a pure part, which decides, and a shell, which waits. The pure part is [`shard`], [`delivery`] and [`input`]; like
//! the [protocol](crate::protocol) it knows no clock, no task and no socket. A simulator is another shell around the same code.
//!
//! # What it must never do
//!
//! 1. **Let an effect overtake another.** What a step asks for comes out in the order durable, sent, answered, and the shell
//!    carries it out in that order.
//! 2. **Lose a decision.** A durable decision stays in its delivery queue until its branch has ended, whoever is attached,
//!    however often it fails, and after a restart again.
//! 3. **Let one hold up another.** Transactions do not wait for each other, resource managers do not stand in one another's queues,
//!    and a client that does not wait for its answers costs nothing but its own memory.
//! 4. **Forget who waits.** Every client is answered once: with the outcome, or after a bounded time with what is known.
//! 5. **Believe a participant.** It speaks only for branches of its own resource manager; only the session that enlisted a branch
//!    votes for it; what does not fit is refused and changes nothing.
//! 6. **Grow without a limit.** Live transactions, branches, clients that wait for one transaction, decisions in flight: each has a number,
//!    and reaching it is an answer.
//!
//! # A shard
//!
//! ```text
//!   clients      begin, commit, roll back, inquire ──▶ ┌───────────────────────────────┐ ──▶ log      decisions, ends
//!   sessions     attach, enlist, vote, acknowledge ──▶ │ transactions (crate::protocol)│ ──▶ sessions prepare, commit, …
//!   log          forced, refused, unknown, …       ──▶ │ deadlines   waiting clients   │ ──▶ clients  outcomes
//!   time         tick                              ──▶ │ delivery queues               │ ──▶ log      strays, to be compared
//!                                                      └───────────────────────────────┘
//!                              one input, one moment           everything it asks for
//! ```
//!
//! [`shard::Shard::step`] takes one [`input::Input`] and the moment, first fires every timer that is due, then takes the input, then
//! sends what may be sent. A transaction lives in one shard, by the random bits of its gtrid ([`shard::shard_of`]), from its begin
//! to its end: nothing is shared, nothing is locked, and a run repeats exactly.
//!
//! **A session's end** loses the branches that it had open. Which those are is kept per session, so that it costs as much
//! as was lost, not as much as there is. What it had in flight goes to another instance.
//!
//! **A decision** goes to the instance that holds the branch, once; after a failure to each instance in turn, since that one may be cut
//! off from its database while another is not. At most [`delivery::WINDOW`] are in flight to one resource manager from one shard,
//! half of them left over by a restart or a failure.
//! An answer *not yet* backs off, up to 30 s, with a jitter that follows from the branch's name; no answer at all is
//! waited for 15 s, then longer. An instance that attaches wakes everything.
//!
//! **A client** waits for the decision, or until every branch has applied it; the second wait is bounded from the decision on. Before
//! the decision it waits for the deadline and a little, because until then everything may still go well.
//!
//! **What is not live here** is answered by the log, and only by rules of [`crate::protocol::presumption`]. A shard never
//! guesses about it: it says [`input::Answer::NotLive`], and hands strays out.
//!
//! # Recovery
//!
//! Reads the decisions without an end and feeds each to its shard as [`input::Input::Recover`], before any session attaches. A recovered
//! transaction has no deadline and no session: its branches are told as soon as their resource manager attaches, by
//! whichever instance. Until a transaction is recovered its shard says that it is not live, and the log, which has its decision,
//! says so.
//!
//! The sets that matter, in the order in which they are read (Citus reads its own in this order too, for the same reason): first the
//! participant lists what it has *prepared*; then the shards say which of those are *live*; then, for the rest, the log says what
//! is *recorded*, in one snapshot (P4). A transaction that is decided between the first two is live. One that ends between the last
//! two has left its record before it left its shard. The other way round, a transaction could be decided and end unseen between
//! "not recorded" and "not live", and a committed branch would be rolled back.
//!
//! # The shell
//!
//! [`shell`] is one task per shard and its channels, [`clock`] the only clock, [`handle`] what the edge calls, [`inquiry`] the questions
//! that need shards and log, [`maintenance`] what is done now and then. They carry out, and conclude nothing.
//!
//! # What is left out, and why
//!
//! - **Moving a transaction to another shard.** A shard costs little; a transaction that moved would need a lock.
//! - **Priorities.** Every queue is first come, first served, but for one thing: new decisions and those that were left over take turns
//!   ([`delivery`]). What starves is then what is broken, not what is unimportant.
//! - **Cancelling a delivery.** Only evidence, or an operator who retires a resource manager (P28), ends the wait for a branch.

pub mod clock;
pub mod delivery;
pub mod handle;
pub mod input;
pub mod inquiry;
pub mod maintenance;
pub mod shard;
pub mod shell;

#[cfg(test)]
mod tests;
