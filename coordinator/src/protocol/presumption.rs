//! What may be concluded from the log, and above all from its silence.
//!
//! "Presumed abort" is an inference: no record, so rolled back. It holds only if no record can appear any more, and none
//! has been removed. Protocol rules P4, P7, P8 and P9 say when; this is their one place. Whether the transaction is live
//! was looked at *before* the log was read (P4): otherwise a commit that is decided in between would be denied.

use lockstep_proto::museum::mutated;
use lockstep_proto::{Bqual, Xid};

use super::event::Applied;
use super::outcome::{BranchEnd, Decision, Heuristic, Outcome};
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

impl Recorded {
    /// The decision, if one was ever recorded.
    #[must_use]
    pub fn decision(&self) -> Option<&DecisionRecord> {
        match self {
            Self::Decided(decision) | Self::Ended(Some(decision), _) => Some(decision),
            Self::Absent | Self::Ended(None, _) => None,
        }
    }

    /// The end, if it is recorded.
    #[must_use]
    pub fn end(&self) -> Option<&EndRecord> {
        match self {
            Self::Ended(_, end) => Some(end),
            Self::Absent | Self::Decided(_) => None,
        }
    }

    /// Whether a decision is recorded that is about this branch.
    #[must_use]
    pub fn names(&self, bqual: &Bqual) -> bool {
        self.decision().is_some_and(|decision| decision.branches.contains(bqual))
    }

    fn is_commit(&self) -> bool {
        self.decision().is_some_and(|decision| decision.kind == DecisionKind::Commit)
    }

    fn is_intent_of(&self, bqual: &Bqual) -> bool {
        self.names(bqual)
            && self.decision().is_some_and(|decision| decision.kind == DecisionKind::OnePhaseIntent)
    }

    fn end_of(&self, bqual: &Bqual) -> Option<BranchEnd> {
        self.end()?.branches.iter().find(|(name, _)| name == bqual).map(|(_, end)| *end)
    }
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

impl LookUp {
    /// No record, and another node may still write one: nothing follows from it, and so it needs no proof that it will outlive a failover
    /// (P3). Below the horizon it may have had one: that is more than nothing, and somebody acts on it.
    #[must_use]
    pub fn says_nothing(&self) -> bool {
        self.recorded == Recorded::Absent && self.epoch == EpochState::Live && !self.below_horizon
    }

    /// Whether it was begun under this coordinator's own epoch.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.epoch == EpochState::Own
    }
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
    /// No record, and another coordinator, which has not been sealed, may still write one.
    Elsewhere,
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
        // Whatever this log has lost: who may still decide it is another coordinator, and nobody else (P14).
        Recorded::Absent if behind && look_up.epoch == EpochState::Live => Known::Elsewhere,
        Recorded::Absent if behind && !mutated("P8-a-lost-tail-is-presumed") => Known::Unknown(
            "participants have seen decisions that this log does not have: it was restored from a backup, \
             and presumes nothing before an operator says so",
        ),
        Recorded::Absent if look_up.below_horizon && !mutated("P7-presumes-below-the-horizon") => {
            Known::Unknown("it is older than what the log still remembers: its record may have been pruned")
        }
        Recorded::Absent => match look_up.epoch {
            EpochState::Own | EpochState::Sealed => Known::PresumedRolledBack,
            EpochState::Live if mutated("P4-presumes-under-a-live-epoch") => Known::PresumedRolledBack,
            EpochState::Unknown if mutated("P8-presumes-under-an-unknown-epoch") => Known::PresumedRolledBack,
            EpochState::Live => Known::Elsewhere,
            EpochState::Unknown => Known::Unknown(
                "the decision log does not know all of its epoch: it was restored from a backup, or is another one",
            ),
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
    /// Ask again later: its coordinator decides, or is sealed.
    StillRunning,
    /// Leave it alone, and why: an operator has to look.
    Unknown(&'static str),
}

/// What a participant is told that lists `bqual` as prepared (P9). A commit stays a commit after its end: a database that
/// failed over to a stale standby may bring a committed branch back (participants.md, "What breaks atomicity first", 4).
#[must_use]
pub fn prepared_fate(look_up: &LookUp, behind: bool, bqual: &Bqual) -> PreparedFate {
    // A branch that the decision does not name never voted commit to it (P12).
    let by_decision =
        if look_up.recorded.names(bqual) { PreparedFate::Commit } else { PreparedFate::Rollback };
    match conclude(look_up, behind) {
        Known::Ended(Outcome::Committed, _) if mutated("an-ended-commit-is-forgotten") => {
            PreparedFate::Rollback
        }
        Known::Committing | Known::OnePhase | Known::Ended(Outcome::Committed, _) => by_decision,
        Known::Ended(Outcome::RolledBack | Outcome::NothingToCommit, _) | Known::PresumedRolledBack => {
            PreparedFate::Rollback
        }
        // What other branches did does not change the decision. An intent decides nothing by itself.
        Known::Ended(Outcome::Heuristic(_), _) if !look_up.recorded.is_intent_of(bqual) => by_decision,
        Known::Ended(Outcome::Heuristic(_) | Outcome::Unknown, _) => PreparedFate::Unknown(
            "its one-phase commit has a heuristic outcome on record: an operator decides",
        ),
        Known::Elsewhere => PreparedFate::StillRunning,
        Known::Unknown(why) => PreparedFate::Unknown(why),
    }
}

/// Whether what a branch did agrees with what is on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// It does, or was judged before: evidence of it may go.
    Agrees,
    /// Not to be told now: evidence of it stays, and is asked for again.
    Open,
    /// It does not, and no record says so yet: that comes first, then the evidence may go.
    Differs,
}

/// Judges how a branch of a transaction that is not live here has ended: by an acknowledgement that came late, or by an evidence
/// row that is old enough to go (P19; of kind *branch*: committed, *fence*: rolled back, *hazard*).
#[must_use]
pub fn judge(look_up: &LookUp, behind: bool, bqual: &Bqual, applied: Applied) -> Judgement {
    let expected = match conclude(look_up, behind) {
        Known::Ended(Outcome::Committed, _) if look_up.recorded.names(bqual) => Applied::Committed,
        Known::Ended(Outcome::Committed | Outcome::RolledBack | Outcome::NothingToCommit, _)
        | Known::PresumedRolledBack => Applied::RolledBack,
        Known::Ended(Outcome::Heuristic(_), _) => match look_up.recorded.end_of(bqual) {
            Some(BranchEnd::Committed) => Applied::Committed,
            Some(BranchEnd::Hazard) => Applied::Hazard,
            // Nothing was known of it: whatever it proves is new.
            Some(BranchEnd::Abandoned) => return Judgement::Differs,
            Some(BranchEnd::RolledBack | BranchEnd::ReadOnly | BranchEnd::Lost) | None => Applied::RolledBack,
        },
        Known::Committing | Known::OnePhase | Known::Elsewhere | Known::Ended(Outcome::Unknown, _) => {
            return Judgement::Open;
        }
        Known::Unknown(_) => return judge_unknown(look_up, behind),
    };
    if applied == expected || mutated("P19-evidence-is-not-compared") {
        Judgement::Agrees
    } else {
        Judgement::Differs
    }
}

/// Below the horizon the record was pruned, which happens only after everything that it judges was judged (P7). That holds only for
/// epochs of this log, as it is now (P8).
fn judge_unknown(look_up: &LookUp, behind: bool) -> Judgement {
    match look_up.epoch {
        EpochState::Own | EpochState::Sealed | EpochState::Live if look_up.below_horizon && !behind => {
            Judgement::Agrees
        }
        EpochState::Own | EpochState::Sealed | EpochState::Live | EpochState::Unknown => Judgement::Open,
    }
}

/// The end record of a transaction of which one branch turns out, after its end, to have ended otherwise ([`Judgement::Differs`]):
/// what was recorded of the others, this branch as it is proved now, and a heuristic outcome.
#[must_use]
pub fn late_end(look_up: &LookUp, xid: &Xid, applied: Applied, now_ms: u64) -> EndRecord {
    let recorded = &look_up.recorded;
    let earlier = recorded.end();
    let others = earlier.map(|end| end.branches.as_slice()).unwrap_or_default();
    let mut branches: Vec<_> = others.iter().filter(|(bqual, _)| *bqual != xid.bqual).cloned().collect();
    branches.push((xid.bqual.clone(), applied.into()));
    let ends: Vec<BranchEnd> = branches.iter().map(|(_, end)| *end).collect();

    let was_committed = earlier.is_some_and(|end| end.outcome == Outcome::Committed);
    let decision = if was_committed || recorded.is_commit() { Decision::Commit } else { Decision::Rollback };
    // Where they all agree, this one was not to take part, or was a hazard that has been resolved since.
    let heuristic = Heuristic::of(decision, &ends).unwrap_or(match applied {
        Applied::Committed => Heuristic::Commit,
        Applied::RolledBack => Heuristic::Rollback,
        Applied::Hazard => Heuristic::Hazard,
    });
    let decided = match decision {
        Decision::Commit => "commit",
        Decision::Rollback => "rollback",
    };
    EndRecord {
        gtrid: xid.gtrid,
        outcome: Outcome::Heuristic(heuristic),
        detail: format!(
            "the decision was {decided}, and later branch {} turned out to be {applied}",
            xid.bqual
        ),
        branches,
        ended_ms: now_ms,
        about: earlier.map(|end| end.about.clone()).unwrap_or_default(),
    }
}
