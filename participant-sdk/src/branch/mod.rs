//! One branch on its participant's side: a pure state machine, (state, event) → (state, actions).
//!
//! Nothing in here waits, reads a clock or touches a store. [`crate::session`] brings what happened and carries out what is
//! asked for; a simulator can do the same. The table is in `table.rs`; read it beside this page.
//!
//! # The life of a branch
//!
//! ```text
//!           join                prepare            yes             decide
//!  Absent ───────▶ Opening ─▶ Open ───────▶ Preparing ─────▶ Prepared ─────▶ Applying ─▶ Ended
//!                     │         │ │ or vote    │                              ▲
//!                     ▼         ▼ │            ▼ unresolved                   │
//!                     Doomed ◀──┘ │          Undoing ─▶ Ended                 │
//!                       │         └──▶ CommittingOnePhase ────────────────────┘ unresolved: prove
//!                       ▼
//!                     Ended
//! ```
//!
//! **Until it votes commit, a branch is its participant's own**: it can be rolled back here at any time, without asking,
//! and is when its handler fails, its deadline passes or its session breaks. **From that vote on it is not**: only a
//! decision ends it, however long that takes.
//!
//! **An early vote** moves that point forward: the handler ends with it, and the coordinator need not ask. It waits for the
//! enlist's acknowledgement, because a coordinator counts no vote of a branch that it does not know. Until the store has
//! prepared, the handler waits for the answer, and whatever befalls it or its session rolls the branch back. If commit is
//! requested meanwhile, both ways meet: a prepare is answered by the vote that is on its way, and an order to commit in one
//! phase that finds the branch prepared commits it (P10).
//!
//! # What holds it together
//!
//! - *No answer is guessed.* A vote and an acknowledgement follow from what the store has proved ([`Fate`], [`Prepared`]), or
//!   from the fact that an open local transaction was never prepared and its connection is gone. An error proves nothing
//!   (protocol.md, P15): after one, the store is asked again, and a coordinator that waits is told *not yet*.
//! - *One thing at a time.* At most one operation of the store runs for a branch. What arrives meanwhile is remembered as
//!   [`Owed`], or needs no answer of its own because the running operation's result is one.
//! - *A connection that a handler holds is not touched* (P17). A doomed branch waits until its handler lets go.
//! - *Anything may arrive late, twice or out of order.* Every message is defined in every state. A pair that only a fault of
//!   the code around can bring about is [`Impossible`], which names both.
//! - *What the store knows is not remembered here.* After a decision was applied the next one asks the store again: a
//!   failover may have brought a prepared branch back (participants.md, "What breaks atomicity first", 4). Only of a branch
//!   that was never prepared is the end answered from memory, and where that memory is gone, the store puts a fence in.
//!
//! Sources: Gray and Lamport, "Consensus on Transaction Commit", 2006, section 3; Mohan, Lindsay, Obermarck, "Transaction
//! Management in the R* Distributed Database Management System", 1986, section 2 (the subordinate's side).

mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use lockstep_proto::LogPosition;

use crate::resource::{Fate, Prepared, Unresolved};

/// What the coordinator chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Every branch commits.
    Commit,
    /// No branch commits.
    Rollback,
}

/// An operation of the store. Each is answered by exactly one [`Event`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Opens the local transaction, which may take so long. [`Event::Begun`] or [`Event::NotBegun`].
    Begin(Duration),
    /// Ends an open local transaction that was never prepared. [`Event::Discarded`].
    Discard,
    /// Prepares the open local transaction. [`Event::PrepareDone`].
    Prepare(LogPosition),
    /// Is the branch among the prepared ones? [`Event::Found`].
    Find,
    /// Commits the open local transaction. [`Event::Resolved`], as all that follow.
    CommitOnePhase(LogPosition),
    /// Commits what is prepared, or tells what became of it.
    Commit(LogPosition),
    /// Rolls back what is prepared, or fences it and tells what became of it.
    Rollback(LogPosition),
    /// Finds out what became of it, and makes that final.
    Prove(LogPosition),
}

/// Something that happened to a branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A handler wants the connection; the transaction's deadline is so far away.
    Joined(Duration),
    /// The handler has done its work and gave the connection back.
    Finished(Then),
    /// The handler is gone without having finished, or without having learned that it had.
    HandlerGone,

    /// The coordinator has taken the branch into the transaction.
    Enlisted,
    /// It has not.
    EnlistRefused(Refusal),
    /// It asks for a vote.
    Prepare(LogPosition),
    /// It has decided.
    Decide(Decision, LogPosition),
    /// It leaves the commit to this branch, the only one of its transaction.
    CommitOnePhase(LogPosition),

    /// The transaction's deadline has passed, by this side's clock.
    DeadlinePassed,
    /// The session in which the branch was enlisted is over.
    SessionLost,
    /// An answer of the store was not to be had, and some time has passed since.
    AskAgain,

    /// The local transaction is open.
    Begun,
    /// It could not be opened, and why.
    NotBegun(String),
    /// The local transaction is gone.
    Discarded,
    /// What came of preparing.
    PrepareDone(Result<Prepared, Unresolved>),
    /// Whether it is prepared: asked for, or noticed when all that is prepared was listed.
    Found(Result<bool, Unresolved>),
    /// What the branch has become.
    Resolved(Result<Fate, Unresolved>),
}

/// What becomes of a branch whose handler has done its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Then {
    /// It stays open, for a further handler, until the coordinator asks for its vote.
    StayOpen,
    /// It votes now. Its evidence keeps the newest place in the decision log that is known here.
    Vote(LogPosition),
}

/// A participant's vote.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Vote {
    /// Prepared: it can go either way, whatever crashes.
    Commit,
    /// It is rolled back or will be, and can never commit. Why.
    Rollback(String),
    /// It has written nothing and wants no decision.
    ReadOnly,
    /// It has ended by something other than this protocol, and a part of its work may be durable. What.
    Hazard(String),
}

/// What is acknowledged of a decision.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Applied {
    /// Proved.
    Committed,
    /// Proved.
    RolledBack,
    /// It can be brought to neither end.
    Hazard,
    /// Not known, or not possible now. What stands in the way.
    NotYet(String),
}

impl From<Fate> for Applied {
    fn from(fate: Fate) -> Self {
        match fate {
            Fate::Committed => Self::Committed,
            Fate::RolledBack => Self::RolledBack,
            Fate::Hazard => Self::Hazard,
        }
    }
}

/// What has to be done after a step, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Have the store do this.
    Run(Operation),
    /// Tell the coordinator that the branch exists.
    Enlist,
    /// Vote.
    Vote(Vote),
    /// Acknowledge a decision.
    Acknowledge(Applied),
    /// Give the connection to the handler that waits for it.
    Hand,
    /// Tell the handler that waits, for the connection or after finishing, how it stands.
    Answer(Result<(), Doom>),
    /// Bring [`Event::AskAgain`] after a while; so many attempts have failed.
    AskLater(u32),
}

/// A coordinator's refusal to take a branch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Refusal {
    /// The transaction is being rolled back. Otherwise it may have committed without this branch.
    pub rollback_only: bool,
    /// What the coordinator said.
    pub detail: String,
}

/// Why a branch that was never prepared is rolled back.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Doom {
    /// Prepare came while a handler was still at work.
    HandlerRunning,
    /// Its handler failed, panicked or was cancelled.
    HandlerGone,
    /// The coordinator takes no such branch.
    Refused(Refusal),
    /// The coordinator decided to roll back.
    Decided,
    /// The coordinator decided to commit, though this branch had not voted.
    CommitWithoutVote,
    /// The session broke before the branch had voted.
    SessionLost,
    /// The deadline passed before prepare came.
    DeadlinePassed,
    /// The store could not open a local transaction. What it said.
    NotBegun(String),
    /// The store did not prepare it for an early vote, or its answer was lost. What it said.
    NotPrepared(String),
    /// Its service ended the local transaction by itself, and a part of its work may be durable. What.
    EndedByService(String),
}

impl fmt::Display for Doom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HandlerRunning => f.write_str(
                "commit was requested while its handler was still running: wait for every service first",
            ),
            Self::HandlerGone => {
                f.write_str("its handler ended without finish(): it failed, panicked or was cancelled")
            }
            Self::Refused(refusal) => write!(f, "the coordinator refused it: {}", refusal.detail),
            Self::Decided => f.write_str("the coordinator rolled the transaction back"),
            Self::CommitWithoutVote => {
                f.write_str("the coordinator decided to commit a branch that had not voted")
            }
            Self::SessionLost => f.write_str("the session with the coordinator broke before it was prepared"),
            Self::DeadlinePassed => f.write_str("the transaction's deadline passed before it was prepared"),
            Self::NotBegun(why) => write!(f, "the store could not begin it: {why}"),
            Self::NotPrepared(why) => write!(f, "the store did not prepare it: {why}"),
            Self::EndedByService(why) => f.write_str(why),
        }
    }
}

/// What a handler has to do with the open connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Handler {
    /// It works. The connection is out of reach.
    Busy(Enlist),
    /// It has given the connection back, and waits to hear that the coordinator has enlisted the branch.
    Finishing(Then),
    /// No handler. The branch is enlisted.
    Idle,
}

/// Whether the coordinator is known to have taken the branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Enlist {
    /// Asked.
    Asked,
    /// Taken.
    Taken,
}

/// Who keeps a doomed branch from being over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Held {
    /// The store is still opening it.
    ByBegin,
    /// Its handler has not let go.
    ByHandler,
    /// The store is ending it.
    ByDiscard,
}

/// What the coordinator waits for while something else has to end first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Owed {
    /// Nothing.
    Nothing,
    /// The acknowledgement of a rollback.
    Rollback(LogPosition),
    /// The acknowledgement of a commit.
    Commit(LogPosition),
    /// The outcome of a one-phase commit.
    OnePhase(LogPosition),
}

/// Who wants the vote that a branch is being prepared for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// The coordinator has asked for it.
    ByCoordinator,
    /// The handler votes early, and waits to hear how.
    ByHandler,
    /// The handler that voted early is gone without having heard how: what its caller takes for failed does not commit.
    ByNobody,
    /// The session in which the branch was enlisted is over: no vote of it counts any more.
    NoMore,
}

/// How a branch ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum End {
    /// Rolled back without ever having been prepared: nothing can bring it back. Why.
    NeverPrepared(Doom),
    /// Preparing it was refused by the store, for good. Why.
    Refused(String),
    /// It had written nothing.
    ReadOnly,
    /// As the store has proved.
    Proved(Fate),
}

/// Where a branch is on its way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum State {
    /// This process holds nothing of it. The store knows what became of it, if it ever was.
    Absent,
    /// The store opens the local transaction, and a handler waits for it.
    Opening(Enlist),
    /// The local transaction is open.
    Open(Handler),
    /// It can never commit any more, and is rolled back as soon as nobody holds it.
    Doomed {
        /// Why.
        why: Doom,
        /// Until when.
        held: Held,
        /// What the coordinator hears then.
        owed: Owed,
    },
    /// A vote is asked for, for a branch that this process does not know: the store is asked whether it is prepared, and only then
    /// there is a vote.
    Finding {
        /// What came meanwhile.
        owed: Owed,
    },
    /// The store prepares it.
    Preparing {
        /// The prepare's, or the early vote's.
        position: LogPosition,
        /// What came meanwhile.
        owed: Owed,
        /// Who waits for it.
        wanted: Wanted,
    },
    /// It has voted commit and does not know the decision.
    Prepared,
    /// The store commits it in one phase.
    CommittingOnePhase(LogPosition),
    /// The store applies a decision, or finds out what became of the branch; the result is acknowledged.
    Applying,
    /// It may or may not be prepared and has not voted: the store rolls it back, however often that takes.
    Undoing {
        /// The prepare's.
        position: LogPosition,
        /// Why.
        why: String,
        /// A vote is still waited for.
        vote: bool,
        /// A decision came meanwhile: what is proved is acknowledged.
        acknowledge: bool,
        /// Attempts that failed.
        failed: u32,
        /// Between two attempts.
        waiting: bool,
    },
    /// Over.
    Ended(End),
}

/// An event that cannot happen in the state it is said to have happened in: a fault of the code around this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the event {event:?} cannot happen to a branch in the state {state:?}")]
pub struct Impossible {
    /// Where the branch was, and still is.
    pub state: State,
    /// What is said to have happened.
    pub event: Event,
}

/// One branch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Branch {
    state: State,
}

impl Branch {
    /// A branch that this process holds nothing of.
    #[must_use]
    pub const fn absent() -> Self {
        Self { state: State::Absent }
    }

    /// Where it is on its way.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Whether its local transaction is being opened or open, so that it goes with its session and its deadline.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(self.state, State::Opening(_) | State::Open(_))
    }

    /// Whether a further handler of the same transaction can have the connection now.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        matches!(self.state, State::Open(Handler::Idle))
    }

    /// Takes one event and says what has to be done.
    ///
    /// # Errors
    /// [`Impossible`], and nothing has changed.
    pub fn step(&mut self, event: Event) -> Result<Vec<Action>, Box<Impossible>> {
        let (state, actions) = table::step(&self.state, event)?;
        self.state = state;
        Ok(actions)
    }
}
