//! Two-phase commit, as a pure function: (state, event, now) → (state, effects).
//!
//! Several databases commit one piece of work, or none does. Each has a *branch* of the *global transaction*; the coordinator
//! asks every branch to *prepare*, and when all have voted commit it *decides* commit, makes that durable, and only then
//! tells them. Whatever crashes in between, a restart finds either the decision or nothing, and nothing means rollback.
//!
//! Nothing in here waits, reads a clock, draws a random number or touches a socket or a disk. [`transaction::Transaction::step`]
//! takes one event and returns the [`event::Effects`] that it asks for; the [engine](crate::engine) carries them out. The same
//! table runs live, in recovery and under every test, so that what the tests walk through is what runs.
//!
//! # What it must never do
//!
//! 1. **Tell a branch to commit before its decision is durable.** A crash in between would roll the other branches back.
//!    The step that gives a decision to the log asks for nothing else, and [`event::Effects::assert_ordered`] holds that.
//! 2. **Decide commit without every vote.** A missing vote is not a vote; a deadline, a broken session and a refused write
//!    only ever lead to rollback.
//! 3. **Change a decision.** From the moment a decision is on its way to the log nothing but the log's answer moves the
//!    transaction: no request, no deadline, no session.
//! 4. **Round unknown to anything.** A write of unknown result is neither there nor not there until the log was read again
//!    behind its fence (P2). A branch that ended differently, or cannot say how it ended, makes the outcome heuristic: from then
//!    on the decision is not told as if it were the outcome, and the record comes before anybody forgets it.
//! 5. **Conclude from silence where silence proves nothing.** "No record, so rolled back" holds only under the conditions of
//!    [`presumption`], and is said nowhere else.
//!
//! A participant can be confused or malicious: what does not fit is [`event::Rejected`] and changes nothing. A panic in here
//! is a bug of the coordinator, and a coordinator with one must not go on deciding.
//!
//! # One transaction
//!
//! Two branches, all well. `══▶` is a message, `▓` a forced write; what stands on one line happens at once.
//!
//! ```text
//!  application        coordinator                 branch a, branch b and their databases
//!       │ begin            │                                │
//!       │────────────────▶ │ nothing is written             │
//!       │  …work…          │ ◀══ enlist a, enlist b ════════│
//!       │ commit           │                                │
//!       │────────────────▶ │ ══ prepare a, prepare b ═════▶ │ ▓ each prepares, with its evidence row
//!       │                  │ ◀══ a: commit, b: commit ══════│
//!       │                  │ ▓ commit of a b                │
//!       │ ◀──── committed  │ ══ commit a, commit b ═══════▶ │ ▓ each commits
//!       │                  │ ◀══ a, b: committed ═══════════│
//!       │                  │ end, lazily                    │
//! ```
//!
//! That is one forced write of the coordinator for a committed transaction and none for any other: *presumed abort*. A branch that
//! wrote nothing votes *read-only* and is gone: the record does not name it, and where all do so there is none. A branch may vote
//! before it is asked and saves its prepare.
//!
//! With one branch left there is nothing to agree on, so it is not prepared; but its commit must not be lost either (P10):
//!
//! ```text
//!       │ commit           │                                │
//!       │────────────────▶ │ ▓ intent: a, in one phase      │
//!       │                  │ ══ commit a in one phase ════▶ │ ▓ commits, with its evidence row
//!       │ ◀──── committed  │ ◀══ a: committed ══════════════│
//!       │                  │ end, lazily                    │
//! ```
//!
//! The intent promises nothing; the *evidence* is the outcome. Whoever is asked about the branch afterwards finds the row, or the
//! branch prepared (an early vote crossed the intent: it commits), or neither, and puts a fence in that keeps it from ever committing.
//!
//! # The states
//!
//! ```text
//!                             Active ─────────────────────────────┬────────────────────┐
//!        commit requested:    │  │  │   rollback vote,            │ rollback requested,│
//!        votes missing        │  │  │   lost branch               │ deadline           │
//!              ┌──────────────┘  │  └─────────────────┐           └────────┐           │ commit requested,
//!              ▼                 │                    ▼                    │           │ one branch left
//!          Preparing             │ all have voted RollbackOnly             │           ▼
//!           │     │ all voted    │                    │ any request,       │   Deciding(OnePhaseIntent)
//!           │     │ commit       ▼                    │ deadline           │      │           ║
//!           │     └───▶ Deciding(Commit)              │                    │      │           ║
//!           │ rollback vote, ║   │                    │                    │      │ refused   ║ forced
//!           │ lost branch,   ║   │ refused            │                    │      │           ║
//!           │ deadline or    ║   └─────────────┐      │                    │      │           ║
//!           │ request        ║ forced          ▼      ▼                    │      │           ▼
//!           └────────────────║──────────▶ RollingBack ◀────────────────────┴──────┘  CommittingOnePhase
//!                            ▼                 │                                           │
//!                        Committing            │                                           │
//!                            └─────────────────┼───────────────────────────────────────────┘
//!                                              │ every branch has ended
//!                                   as decided │ otherwise
//!                                   ┌──────────┴──────────┐
//!                                   ▼      on record      ▼
//!                                 Ended ◀───────────── Recording
//! ```
//!
//! A double line is the log's answer that a record is durable; only with it a commit leaves. Each *Deciding* has a twin,
//! *DecisionUnknown*: *unknown* leads there, *found* leads on like *forced*, and *absent* like *refused*. Not drawn: where nobody
//! wrote, or nobody is left, a transaction goes to *Ended* at once, or to *Recording* if the last one to leave is a hazard. `tests/walk.rs` holds that these ways and no others exist.
//!
//! - [`RollbackOnly`](transaction::State::RollbackOnly) is doomed but not over: the application is still at work and learns it when it
//!   asks to commit. Its branches are told at once, so that their locks go.
//! - [`Deciding`](transaction::State::Deciding) and [`DecisionUnknown`](transaction::State::DecisionUnknown) are mute.
//! - [`Recording`](transaction::State::Recording) waits for the record of a heuristic outcome, however often it takes.
//!
//! A branch on its way: *enlisted* → *preparing* → *prepared* → *told* → *ended*. What it is when something goes wrong:
//!
//! | it was | its session breaks | because |
//! |---|---|---|
//! | enlisted | lost, and the transaction is rollback-only (P12) | its work went with its connection |
//! | enlisted, an intent on its way | in doubt | it may have been prepared early, and the intent must be settled by evidence (P10) |
//! | preparing | in doubt, and the transaction is rolled back | it may be prepared, and its vote may be lost |
//! | prepared | prepared | it is durable |
//! | told to roll back while it was open | lost, which ends it | as above, and nothing else is left to do |
//! | told, and it was or may be prepared | told | only an acknowledgement, which is proof, ends it |
//!
//! "Lost" is an assumption, and the one end that a later proof may correct. A branch that proves both ends is a hazard.
//!
//! # The records
//!
//! [`record`] says what is kept. A *decision* is forced before anything follows from it. An *end* is written lazily with some later
//! batch; losing it means that a decision is delivered again after a restart, to branches that answer as they did before. Only
//! the end of a heuristic outcome is forced, because nobody would find it again.
//!
//! Recovery is not a second protocol: [`transaction::Transaction::recover`] puts a transaction with its record where it was when it gave
//! that record to the log, and lets the table take the log's answer.
//!
//! # Where the rules live
//!
//! The rules P1 to P28 come with the design of Lockstep; each names the schedule that breaks without it. In here:
//!
//! | rule | where |
//! |---|---|
//! | P2 unknown is not an answer | `DecisionUnknown` in `transaction/table.rs` |
//! | P4, P7, P8, P9 when silence is a rollback | [`presumption::conclude`] |
//! | P9 what a prepared branch is told | [`Transaction::answer_prepared`](transaction::Transaction::answer_prepared) live, [`presumption::prepared_fate`] from the log |
//! | P10 one phase | `step_deciding`, `step_committing_one_phase`, `doubt`, `vote_after_one_phase` |
//! | P11 nothing to commit | `decide_by_votes` in `transaction/table.rs` |
//! | P12 a lost branch | `lose` in `transaction/branches.rs` |
//! | P13 no rollback after commit | the SDK's; here a rollback after the decision is answered with the outcome |
//! | P14 an operator's rollback | is `RollbackRequested`, like the application's |
//! | P19 late evidence | [`presumption::judge`], [`presumption::late_end`] |
//!
//! P1, P3, P5 and P6 are the [decision log](crate::decision_log)'s; P15 to P18 and P20 to P27 the participants'.
//!
//! # Sources
//!
//! - C. Mohan, B. Lindsay, R. Obermarck, "Transaction Management in the R* Distributed Database Management System", ACM TODS 11(4),
//!   1986: section 2 for which writes are forced and in what order messages follow them, section 3 for presumed abort and
//!   read-only votes.
//! - J. Gray, L. Lamport, "Consensus on Transaction Commit", ACM TODS 31(1), 2006: section 2 for what transaction commit
//!   is, section 3 for two-phase commit and what it costs, section 6 for how participants come to take part, appendix A.1
//!   for `TCConsistent`, which the tests call agreement.
//! - P. Bernstein, V. Hadzilacos, N. Goodman, *Concurrency Control and Recovery in Database Systems*, 1987, chapter 7: section 7.3
//!   for AC1 to AC5, which name the tests' invariants; section 7.4 for two-phase commit and why it blocks.
//! - X/Open, *Distributed Transaction Processing: The XA Specification*, C193, 1991: section 2.3.2 for the read-only and
//!   one-phase optimisations, section 2.3.3 for heuristic ends.
//!
//! # What is left out, and why
//!
//! - **Presumed commit** (R*, section 4). It saves the forced write or the acknowledgements of commits, and costs a forced write
//!   before every prepare. With group commit the one forced write is shared, so there is nothing to save.
//! - **Three phases, and Paxos Commit** (Gray and Lamport, section 4). A prepared branch blocks while its coordinator is away. The
//!   cure is a decision log that survives its node, on an engine that replicates already; the databases would not take part in
//!   a consensus of ours, so the blocking window would remain where it is.
//! - **A tree of coordinators**: subordinates of subordinates. A participant that is itself a coordinator would need a durable state
//!   between the two. Services enlist with one coordinator directly; X/Open calls that the flat model.
//! - **The last resource gambit**: one participant that cannot prepare commits in between. It is the one-phase commit with other branches
//!   waiting prepared. Its evidence would make it safe; the need has not come up.
//! - **Prepare sent again.** A prepare is sent once. If it or its vote is lost the session broke, which is an event of its own, or the
//!   deadline comes. Sending it twice would only win transactions in which a participant has lost a message and kept its
//!   session.
//! - **Repairing a heuristic outcome.** It is recorded and shown. What to do about money that moved on one side only is
//!   nothing that a protocol can know.

pub mod branch;
pub mod event;
pub mod outcome;
pub mod presumption;
pub mod record;
pub mod situation;
pub mod transaction;

#[cfg(test)]
pub(crate) mod tests;
