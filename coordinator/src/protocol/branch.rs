//! One branch, as its coordinator sees it.

use lockstep_proto::Bqual;

use super::event::Vote;
use super::outcome::BranchEnd;

/// How far a branch has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BranchState {
    /// Part of the transaction; its local transaction is open at one instance.
    Enlisted,
    /// Asked to prepare. Until it votes it may be prepared or not.
    Preparing,
    /// Voted commit.
    Prepared,
    /// Its session broke while it was being prepared, or while a one-phase intent was on its way to the log: it may be prepared
    /// or not, and only an acknowledgement tells.
    InDoubt,
    /// Told the decision, while it was only enlisted: it ends with its session.
    ToldOpen,
    /// Told the decision, while it was or may have been prepared: only its acknowledgement ends it.
    Told,
    /// Over.
    Ended(BranchEnd),
}

/// One branch of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Branch {
    /// Its name.
    pub bqual: Bqual,
    /// How far it has come.
    pub state: BranchState,
}

impl Branch {
    /// A branch that was just enlisted.
    #[must_use]
    pub(super) fn enlisted(bqual: Bqual) -> Self {
        Self { bqual, state: BranchState::Enlisted }
    }

    /// Whether it has not voted and no decision was sent to it.
    pub(super) fn awaits_vote(&self) -> bool {
        match self.state {
            BranchState::Enlisted | BranchState::Preparing => true,
            BranchState::Prepared
            | BranchState::InDoubt
            | BranchState::ToldOpen
            | BranchState::Told
            | BranchState::Ended(_) => false,
        }
    }

    /// Whether it left with a read-only vote.
    pub(super) fn is_read_only(&self) -> bool {
        self.state == BranchState::Ended(BranchEnd::ReadOnly)
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<BranchEnd> {
        match self.state {
            BranchState::Ended(end) => Some(end),
            BranchState::Enlisted
            | BranchState::Preparing
            | BranchState::Prepared
            | BranchState::InDoubt
            | BranchState::ToldOpen
            | BranchState::Told => None,
        }
    }

    /// Whether this vote repeats what is known of the branch already.
    pub(super) fn has_voted(&self, vote: &Vote) -> bool {
        match vote {
            Vote::Commit => self.state == BranchState::Prepared,
            Vote::ReadOnly => self.is_read_only(),
            Vote::Rollback(_) => self.state == BranchState::Ended(BranchEnd::RolledBack),
            Vote::Hazard(_) => self.state == BranchState::Ended(BranchEnd::Hazard),
        }
    }

    /// The name of the state in which a branch was told the decision, and has not acknowledged it.
    pub const DELIVERING: &str = "delivering";

    /// The state's name, for people.
    #[must_use]
    pub fn state_name(&self) -> &'static str {
        match self.state {
            BranchState::Enlisted => "enlisted",
            BranchState::Preparing => "preparing",
            BranchState::Prepared => "prepared",
            BranchState::InDoubt => "in-doubt",
            BranchState::ToldOpen | BranchState::Told => Self::DELIVERING,
            BranchState::Ended(end) => end.name(),
        }
    }
}
