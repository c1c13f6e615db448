//! What may be concluded from the log, and above all from its silence.
//!
//! "Presumed abort" is an inference: no record, so rolled back. It holds only if no record can appear any more, and none
//! has been removed. Protocol rules P4, P7, P8 and P9 say when; this is their one place. Whether the transaction is live
//! was looked at *before* the log was read (P4): otherwise a commit that is decided in between would be denied.

use super::outcome::{BranchEnd, Heuristic, Outcome};
use super::record::{DecisionKind, DecisionRecord, EndRecord};

/// What the log knows of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EpochState {
    /// This coordinator's own.
    Own,
    /// Over: nothing can be decided under it any more.
    Sealed,
    /// Another node's, which may still decide.
    Live,
    /// The log has never given it out.
    Unknown,
}

/// What the log keeps of one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recorded {
    /// No record.
    Absent,
    /// A decision, and no end yet.
    Decided(DecisionRecord),
    /// Ended; the decision too, if there was one and for as long as it is kept.
    Ended(Option<DecisionRecord>, EndRecord),
}

/// An answer of the log about one transaction, all of it from one snapshot (P4, P7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookUp {
    /// What is recorded.
    pub recorded: Recorded,
    /// The state of the epoch in the gtrid.
    pub epoch: EpochState,
    /// The transaction is older than the newest that was ever pruned: absence proves nothing.
    pub below_horizon: bool,
}

/// What is known of a transaction that is not live here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// It ended so, by record.
    Ended(Outcome, String),
    /// Commit is decided, and is being delivered.
    Committing,
    /// A single branch may commit in one phase; only its evidence tells whether it did.
    OnePhase,
    /// No record, and none can appear: it is rolled back.
    PresumedRolledBack,
    /// Nothing may be concluded, and why.
    Unknown(&'static str),
}

/// What the log's answer about a transaction that is not live here proves. `behind`: participants have seen decisions that
/// this log has lost (P8), so that its silence proves nothing.
#[must_use]
pub fn conclude(look_up: &LookUp, behind: bool) -> Known {
    match &look_up.recorded {
        Recorded::Ended(_, end) => Known::Ended(end.outcome, end.detail.clone()),
        Recorded::Decided(decision) => match decision.kind {
            DecisionKind::Commit => Known::Committing,
            DecisionKind::OnePhaseIntent => Known::OnePhase,
        },
        Recorded::Absent if behind => Known::Unknown(
            "participants have seen decisions that this log does not have: it was restored from a backup, \
             and presumes nothing before an operator says so",
        ),
        Recorded::Absent if look_up.below_horizon => {
            Known::Unknown("it is older than what the log still remembers: its record may have been pruned")
        }
        Recorded::Absent => match look_up.epoch {
            EpochState::Own | EpochState::Sealed => Known::PresumedRolledBack,
            EpochState::Live => Known::Unknown("another coordinator may still decide it: ask that one"),
            EpochState::Unknown => Known::Unknown("its epoch was never given out by this decision log"),
        },
    }
}

/// What becomes of a prepared branch whose transaction is not live here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreparedFate {
    /// Commit it.
    Commit,
    /// Roll it back.
    Rollback,
    /// Leave it alone: an operator has to look.
    Unknown(&'static str),
}

/// What a participant is told that lists a branch as prepared (P9). A commit stays a commit after its end: a database that
/// failed over to a stale standby may bring a committed branch back (participants.md, row 4).
#[must_use]
pub fn prepared_fate(known: &Known, names_branch: bool) -> PreparedFate {
    match known {
        // A branch that the decision does not name never voted commit to it (P12).
        Known::Ended(Outcome::Committed, _) | Known::Committing | Known::OnePhase if names_branch => {
            PreparedFate::Commit
        }
        Known::Ended(Outcome::Committed, _) | Known::Committing | Known::OnePhase => PreparedFate::Rollback,
        Known::Ended(Outcome::RolledBack | Outcome::NothingToCommit, _) | Known::PresumedRolledBack => {
            PreparedFate::Rollback
        }
        Known::Ended(Outcome::Heuristic(_) | Outcome::Unknown, _) => {
            PreparedFate::Unknown("the transaction has a heuristic outcome on record: an operator decides")
        }
        Known::Unknown(why) => PreparedFate::Unknown(why),
    }
}

/// What becomes of an evidence row that is old enough to go (P19).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowJudgement {
    /// It agrees with what is recorded, or was judged before: it may go.
    Forget,
    /// It stays, and is asked for again.
    Keep,
    /// The branch committed though the transaction did not: to be recorded first, then forgotten.
    HeuristicCommit,
}

/// Judges an evidence row of a transaction that is not live here. `committed`: the row is of kind *branch*.
#[must_use]
pub fn judge_row(look_up: &LookUp, behind: bool, committed: bool) -> RowJudgement {
    if let Recorded::Absent = look_up.recorded
        && look_up.below_horizon
        && !behind
    {
        // The record was pruned, and records are pruned only after every row that they judge was (P7).
        return RowJudgement::Forget;
    }
    match conclude(look_up, behind) {
        Known::Ended(Outcome::Committed | Outcome::Heuristic(_), _) => RowJudgement::Forget,
        Known::Ended(Outcome::RolledBack | Outcome::NothingToCommit, _) | Known::PresumedRolledBack => {
            if committed {
                RowJudgement::HeuristicCommit
            } else {
                RowJudgement::Forget
            }
        }
        Known::Committing | Known::OnePhase | Known::Unknown(_) | Known::Ended(Outcome::Unknown, _) => {
            RowJudgement::Keep
        }
    }
}

/// The heuristic outcome of a rolled-back transaction of which one branch turns out to have committed, given how the
/// others ended as far as it is recorded.
#[must_use]
pub fn late_heuristic(others: &[BranchEnd]) -> Heuristic {
    let rolled_back = |end: &BranchEnd| matches!(end, BranchEnd::RolledBack | BranchEnd::Lost);
    if others.iter().any(rolled_back) { Heuristic::Mixed } else { Heuristic::Commit }
}
