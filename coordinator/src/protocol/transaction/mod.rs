//! One global transaction.
//!
//! [`Transaction::step`] matches the state first and the event inside it, one function per state (`table`). The state changes
//! only in `become_…` functions (`transitions`), a branch's state mostly in `branches`. A pair of state and event that is not
//! listed is [`Rejected`], naming both, and changes nothing. The same table runs live, in recovery ([`Transaction::recover`])
//! and in every test.

mod branches;
mod table;
mod transitions;

use lockstep_proto::museum::mutated;
use lockstep_proto::{Bqual, Gtrid};

use crate::protocol::branch::{Branch, BranchState};
use crate::protocol::event::{Effects, Event, Rejected};
use crate::protocol::outcome::{BranchEnd, Decision, Heuristic, Outcome};
use crate::protocol::record::{About, DecisionKind, DecisionRecord, EndRecord};

/// Where a transaction is on its way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum State {
    /// The application works; branches enlist.
    Active,
    /// Doomed: the branches are told to roll back, and the application will learn it when it asks to commit.
    RollbackOnly(String),
    /// Commit was requested; votes are awaited.
    Preparing,
    /// The decision record is on its way to the log. From here on no deadline, no broken session and no request ends it.
    Deciding(DecisionKind),
    /// Whether the decision record is in the log is unknown. Nothing leaves until the log was read again (P2).
    DecisionUnknown(DecisionKind),
    /// The commit decision is durable; branches have still to acknowledge it.
    Committing,
    /// The intent is durable; the branch's evidence is awaited (P10).
    CommittingOnePhase,
    /// Being rolled back, and why.
    RollingBack(String),
    /// A heuristic outcome is on its way to the log; the transaction is not forgotten before it is there.
    Recording(EndRecord),
    /// Over. It may be forgotten.
    Ended(Outcome, String),
}

impl State {
    /// The state's name, for people.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::RollbackOnly(_) => "rollback only",
            Self::Preparing => "preparing",
            Self::Deciding(DecisionKind::Commit) => "deciding",
            Self::Deciding(DecisionKind::OnePhaseIntent) => "deciding in one phase",
            Self::DecisionUnknown(DecisionKind::Commit) => "decision unknown",
            Self::DecisionUnknown(DecisionKind::OnePhaseIntent) => "intent unknown",
            Self::Committing => "committing",
            Self::CommittingOnePhase => "committing in one phase",
            Self::RollingBack(_) => "rolling back",
            Self::Recording(_) => "recording a heuristic outcome",
            Self::Ended(..) => "ended",
        }
    }
}

/// What the protocol says to a participant that lists one of this transaction's branches as prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PreparedAnswer {
    /// The decision is commit.
    Commit,
    /// The decision is rollback.
    Rollback,
    /// There is none yet, or it may not leave yet: ask again.
    StillRunning,
}

/// One global transaction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Transaction {
    gtrid: Gtrid,
    about: About,
    state: State,
    branches: Vec<Branch>,
}

type Stepped = Result<Effects, Rejected>;

impl Transaction {
    /// A transaction that was just begun.
    #[must_use]
    pub fn new(gtrid: Gtrid, about: About) -> Self {
        Self { gtrid, about, state: State::Active, branches: Vec::new() }
    }

    /// A transaction whose decision was found in the log after a restart, and what has to be done for it. It takes the
    /// way that it would have taken live: its record has just turned out to be durable.
    ///
    /// # Panics
    /// If the record names no branch, or an intent more than one: no coordinator has ever written such a record.
    pub fn recover(record: DecisionRecord, now_ms: u64) -> (Self, Effects) {
        let branches = match record.kind {
            DecisionKind::Commit => !record.branches.is_empty(),
            DecisionKind::OnePhaseIntent => record.branches.len() == 1,
        };
        assert!(branches, "a decision names who has to be told, and an intent exactly one: {record:?}");
        let kind = if mutated("P10-intent-recovered-as-commit") { DecisionKind::Commit } else { record.kind };
        let state = match kind {
            DecisionKind::Commit => BranchState::Prepared,
            DecisionKind::OnePhaseIntent => BranchState::InDoubt,
        };
        let branches = record.branches.into_iter().map(|bqual| Branch { bqual, state }).collect();
        let mut transaction =
            Self { gtrid: record.gtrid, about: record.about, state: State::Deciding(kind), branches };
        let effects = transaction.step(Event::LogForced, now_ms).expect("deciding takes a forced log");
        (transaction, effects)
    }

    /// One in any state, for tests of the table.
    #[cfg(test)]
    pub(super) fn in_state(gtrid: Gtrid, state: State, branches: Vec<Branch>) -> Self {
        Self { gtrid, about: About::default(), state, branches }
    }

    /// Its id.
    #[must_use]
    pub fn gtrid(&self) -> Gtrid {
        self.gtrid
    }

    /// What people call it.
    #[must_use]
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Where it is on its way.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Its branches, in the order in which they enlisted.
    #[must_use]
    pub fn branches(&self) -> &[Branch] {
        &self.branches
    }

    /// How many branches have not ended.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.branches.iter().filter(|branch| branch.ended().is_none()).count()
    }

    /// Whether its deadline still means anything: until the decision is on its way to the log.
    #[must_use]
    pub fn deadline_applies(&self) -> bool {
        match self.state {
            State::Active | State::RollbackOnly(_) | State::Preparing => true,
            State::Deciding(_)
            | State::DecisionUnknown(_)
            | State::Committing
            | State::CommittingOnePhase
            | State::RollingBack(_)
            | State::Recording(_)
            | State::Ended(..) => false,
        }
    }

    /// What may be told of its outcome now, and why; or why nothing may be.
    ///
    /// # Errors
    /// The outcome is not decided, or not known to be durable, or a branch is known to have ended otherwise: that outcome is
    /// heuristic, and told when it is on record.
    pub fn outcome(&self) -> Result<(Outcome, &str), &'static str> {
        let decided = |decision, outcome, why| match Heuristic::of(decision, &self.ends()) {
            None => Ok((outcome, why)),
            Some(_) => Err("a branch has ended otherwise than decided, and the others are awaited"),
        };
        match &self.state {
            State::Active | State::Preparing => Err("no decision yet"),
            State::Deciding(DecisionKind::Commit) if mutated("told-before-durable") => {
                Ok((Outcome::Committed, ""))
            }
            State::Deciding(_) => Err("the decision is on its way to the log"),
            State::DecisionUnknown(_) => Err("whether the decision is in the log is not known yet"),
            State::CommittingOnePhase => Err("its only branch commits by itself and has not answered yet"),
            State::Recording(_) => Err("a heuristic outcome is being recorded"),
            State::Committing => decided(Decision::Commit, Outcome::Committed, ""),
            State::RollbackOnly(why) | State::RollingBack(why) => {
                decided(Decision::Rollback, Outcome::RolledBack, why.as_str())
            }
            State::Ended(outcome, detail) => Ok((*outcome, detail)),
        }
    }

    /// How the branches that have ended did.
    fn ends(&self) -> Vec<BranchEnd> {
        self.branches.iter().filter_map(Branch::ended).collect()
    }

    /// What a participant that lists `bqual` as prepared has to do with it.
    #[must_use]
    pub fn answer_prepared(&self, bqual: &Bqual) -> PreparedAnswer {
        match &self.state {
            State::Active | State::Preparing if mutated("P9-undecided-is-rolled-back") => {
                PreparedAnswer::Rollback
            }
            State::Deciding(_) if mutated("prepared-told-before-durable") => PreparedAnswer::Commit,
            State::Active | State::Preparing | State::Deciding(_) | State::DecisionUnknown(_) => {
                PreparedAnswer::StillRunning
            }
            State::Committing | State::CommittingOnePhase if self.is_named_by_decision(bqual) => {
                PreparedAnswer::Commit
            }
            // It never voted commit to this decision (P12): nothing that belongs to the transaction can be in it.
            State::Committing | State::CommittingOnePhase => PreparedAnswer::Rollback,
            State::RollbackOnly(_) | State::RollingBack(_) => PreparedAnswer::Rollback,
            // Every branch has ended, some differently from the decision: the log answers for it soon.
            State::Recording(_) | State::Ended(..) => PreparedAnswer::StillRunning,
        }
    }

    /// Whether the decision record has this branch: the same answer as after a restart, when the record is all there is.
    fn is_named_by_decision(&self, bqual: &Bqual) -> bool {
        self.branch(bqual).is_some_and(|branch| !branch.is_read_only())
    }

    /// Takes one event and says what has to be done. `now_ms`: milliseconds since 1970, for the records people read.
    ///
    /// # Errors
    /// [`Rejected`] if the event cannot happen in this state or is not of this transaction. Nothing changed then. From a
    /// participant that is the participant's fault; from the log it is a bug of the coordinator.
    pub fn step(&mut self, event: Event, now_ms: u64) -> Stepped {
        let effects = match self.state {
            State::Active => self.step_active(event, now_ms),
            State::RollbackOnly(_) => self.step_rollback_only(event, now_ms),
            State::Preparing => self.step_preparing(event, now_ms),
            State::Deciding(kind) => self.step_deciding(event, kind, now_ms),
            State::DecisionUnknown(kind) => self.step_decision_unknown(event, kind, now_ms),
            State::Committing => self.step_committing(event, now_ms),
            State::CommittingOnePhase => self.step_committing_one_phase(event, now_ms),
            State::RollingBack(_) => self.step_rolling_back(event, now_ms),
            State::Recording(_) => self.step_recording(event),
            State::Ended(..) => self.step_ended(event),
        }?;
        effects.assert_ordered();
        Ok(effects)
    }

    fn branch(&self, bqual: &Bqual) -> Option<&Branch> {
        self.branches.iter().find(|branch| branch.bqual == *bqual)
    }

    fn known(&self, bqual: &Bqual) -> Result<&Branch, Rejected> {
        self.branch(bqual).ok_or_else(|| Rejected {
            state: self.state.name(),
            event: format!("a message about branch {bqual}"),
            why: "no such branch is enlisted".into(),
        })
    }

    fn branch_mut(&mut self, bqual: &Bqual) -> &mut Branch {
        self.branches
            .iter_mut()
            .find(|branch| branch.bqual == *bqual)
            .expect("the caller has seen this branch")
    }

    fn reject<T>(&self, event: Event, why: &str) -> Result<T, Rejected> {
        Err(Rejected { state: self.state.name(), event: event.to_string(), why: why.to_owned() })
    }
}
