//! What can happen to a transaction, and what it asks for in return.

use std::fmt;

use lockstep_proto::Bqual;

use super::outcome::{BranchEnd, Outcome};
use super::record::LogWrite;

/// Something that happened to one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A participant wants its new branch to be part of the transaction.
    Enlist(Bqual),
    /// The application asks to commit, for the first time or again.
    CommitRequested,
    /// The application or an operator asks to roll back, and says why.
    RollbackRequested(String),
    /// A branch voted.
    Voted(Bqual, Vote),
    /// The session over which a branch was enlisted broke. If the branch had not voted, its participant rolls it back unless it is
    /// prepared.
    BranchLost(Bqual),
    /// The deadline passed. It means nothing once the decision is on its way to the log.
    DeadlinePassed,
    /// What the transaction last gave to the log, to be forced, is durable.
    LogForced,
    /// It was not written, and will never appear.
    LogRefused(String),
    /// Whether it was written is unknown.
    LogUnknown(String),
    /// After [`Event::LogUnknown`]: the log was read again behind the fence, and has it.
    LogFound,
    /// After [`Event::LogUnknown`]: the log was read again behind the fence, and neither has it nor ever will.
    LogAbsent,
    /// It is time to give the refused end record to the log again.
    RecordAgain,
    /// A branch has ended, as its resource manager proved.
    Acknowledged(Bqual, Applied),
    /// An operator has given a branch up that was told the decision: its resource manager will not come back (P28).
    Abandoned(Bqual),
}

/// A branch's vote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vote {
    /// Prepared: it can go either way, whatever crashes.
    Commit,
    /// Rolled back for good, and why.
    Rollback(String),
    /// Nothing was written, and it has ended.
    ReadOnly,
    /// Ended by something other than this protocol before it could be prepared, and part of its work may be durable. Why.
    Hazard(String),
}

/// How a branch ended, proved by its resource manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Applied {
    /// Its work is durable and visible.
    Committed,
    /// It did not commit and can never do so.
    RolledBack,
    /// It can be brought to neither end.
    Hazard,
}

impl From<Applied> for BranchEnd {
    fn from(applied: Applied) -> Self {
        match applied {
            Applied::Committed => Self::Committed,
            Applied::RolledBack => Self::RolledBack,
            Applied::Hazard => Self::Hazard,
        }
    }
}

/// What a step asks for, in the order in which it has to be done: first durable, then sent, then answered.
///
/// While a forced write is under way the transaction emits nothing else: what follows from the write comes with the step
/// that is told of its result. [`Effects::assert_ordered`] holds that.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "an effect that is not carried out is a lost message or a lost decision"]
pub struct Effects {
    /// First: to the decision log.
    pub log: Option<LogWrite>,
    /// Second: to the participants. All of them at once, in any order.
    pub messages: Vec<(Bqual, Message)>,
    /// Third: to whoever waits for the outcome.
    pub reply: Option<Reply>,
}

impl Effects {
    /// Nothing has to be done.
    pub fn none() -> Self {
        Self::default()
    }

    /// Asserts that nothing leaves together with a write that is not durable yet.
    ///
    /// # Panics
    /// If a message or reply stands beside a forced write: it could leave before the write is durable.
    pub fn assert_ordered(&self) {
        let forced = match &self.log {
            Some(LogWrite::ForceDecision(_) | LogWrite::ForceEnd(_)) => true,
            Some(LogWrite::LazyEnd(_)) | None => false,
        };
        let silent = self.messages.is_empty() && self.reply.is_none();
        assert!(!forced || silent, "nothing leaves while a forced write is under way: {self:?}");
    }
}

/// What a participant is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// The branch is part of the transaction.
    Enlisted,
    /// It is not.
    EnlistRefused(EnlistRefusal),
    /// Prepare and vote. Sent once, to the instance that holds the branch open.
    Prepare,
    /// The decision is commit. Delivered until it is acknowledged.
    Commit,
    /// The decision is rollback. Delivered until it is acknowledged, or until the branch is known to have ended.
    Rollback,
    /// Commit without preparing, or find out what became of the branch. Delivered until it is acknowledged.
    CommitOnePhase,
}

/// Why a branch was not enlisted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EnlistRefusal {
    /// Commit was already requested.
    CommitRequested,
    /// The transaction is being rolled back, or is rollback only.
    RollbackOnly,
    /// It has as many branches as it may have.
    TooManyBranches,
    /// A branch of this name is enlisted already.
    DuplicateBranch,
    /// It has ended.
    Ended,
}

/// What whoever waits for the outcome may be told now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The outcome is decided and cannot change, and no branch is known to contradict it; branches may still have to apply it.
    Decided(Outcome, String),
    /// Every branch has ended.
    Ended(Outcome, String),
}

/// An event that cannot happen in this state, or not to this branch. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{event} does not fit a transaction that is {state}: {why}")]
pub struct Rejected {
    /// The state's name.
    pub state: &'static str,
    /// The event.
    pub event: String,
    /// What is wrong with it.
    pub why: String,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enlist(bqual) => write!(f, "enlist {bqual}"),
            Self::CommitRequested => f.write_str("commit requested"),
            Self::RollbackRequested(why) => write!(f, "rollback requested ({why})"),
            Self::Voted(bqual, vote) => write!(f, "{bqual} voted {vote}"),
            Self::BranchLost(bqual) => write!(f, "{bqual} lost"),
            Self::DeadlinePassed => f.write_str("deadline passed"),
            Self::LogForced => f.write_str("log forced"),
            Self::LogRefused(why) => write!(f, "log refused ({why})"),
            Self::LogUnknown(why) => write!(f, "log unknown ({why})"),
            Self::LogFound => f.write_str("log found"),
            Self::LogAbsent => f.write_str("log absent"),
            Self::RecordAgain => f.write_str("record again"),
            Self::Acknowledged(bqual, applied) => write!(f, "{bqual} acknowledged {applied}"),
            Self::Abandoned(bqual) => write!(f, "{bqual} abandoned"),
        }
    }
}

impl fmt::Display for Vote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Commit => f.write_str("commit"),
            Self::Rollback(why) => write!(f, "rollback ({why})"),
            Self::ReadOnly => f.write_str("read-only"),
            Self::Hazard(why) => write!(f, "hazard ({why})"),
        }
    }
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Committed => "committed",
            Self::RolledBack => "rolled back",
            Self::Hazard => "hazard",
        })
    }
}
