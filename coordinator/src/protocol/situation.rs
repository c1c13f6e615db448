//! The four situations that an operator is called for, and what may be done in each.
//!
//! | situation | what it is | what is safe |
//! |---|---|---|
//! | undelivered | the decision is durable, and a branch has not acknowledged it | deliver now, hold back, let go on; give a branch up |
//! | undecided | the deadline has passed, and there is no decision | roll back |
//! | orphan | prepared in a database, and no coordinator answers for it | what the evidence of every resource manager proves |
//! | heuristic | a branch ended differently from the decision | look, export, acknowledge |
//!
//! [`Standing::permit`] is the one place that says yes or no to a person, and a no says why and what to do instead. Nothing in it
//! contradicts a durable decision, and nothing forces a commit that nobody has proved: both would tear the transaction.

use std::fmt;

use lockstep_proto::Bqual;
use lockstep_proto::museum::mutated;

use super::outcome::Outcome;
use super::presumption::{Known, LookUp, PreparedFate, Recorded, conclude, prepared_fate};
use super::record::DecisionKind;
use super::transaction::State;

/// What is wrong with a transaction, so that a person may have to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Situation {
    /// The decision is durable, and a branch has not acknowledged it.
    Undelivered,
    /// The deadline has passed, and there is no decision.
    Undecided,
    /// Prepared in a database, and no coordinator answers for it.
    Orphan,
    /// A branch ended differently from the decision, and nobody has acknowledged that.
    Heuristic,
}

impl Situation {
    /// Its name, for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Undelivered => "undelivered",
            Self::Undecided => "undecided",
            Self::Orphan => "orphan",
            Self::Heuristic => "heuristic",
        }
    }
}

/// What a person may want to do about a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Deliver the decision now.
    Retry,
    /// Deliver nothing until it is resumed.
    Pause,
    /// Deliver again.
    Resume,
    /// Roll back what is not decided.
    Rollback,
    /// Commit what is not decided: never. It is here so that whoever asks for it is told why.
    Commit,
    /// Give a branch up whose resource manager will not come back.
    Abandon,
    /// Note that a heuristic outcome was dealt with.
    Acknowledge,
    /// Commit an orphan, because another branch of its transaction is proved to have committed.
    CommitOrphan,
    /// Roll an orphan back, because no branch of its transaction has committed or can.
    RollbackOrphan,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Retry,
        Self::Pause,
        Self::Resume,
        Self::Rollback,
        Self::Commit,
        Self::Abandon,
        Self::Acknowledge,
        Self::CommitOrphan,
        Self::RollbackOrphan,
    ];

    /// Its name, for people and for the audit.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Rollback => "rollback",
            Self::Commit => "commit",
            Self::Abandon => "abandon",
            Self::Acknowledge => "acknowledge",
            Self::CommitOrphan => "commit-orphan",
            Self::RollbackOrphan => "rollback-orphan",
        }
    }

    /// Whether what it does cannot be taken back, so that whoever asks has to name the transaction twice.
    #[must_use]
    pub const fn is_dangerous(self) -> bool {
        match self {
            Self::Retry | Self::Pause | Self::Resume | Self::Acknowledge | Self::Commit => false,
            Self::Rollback | Self::Abandon | Self::CommitOrphan | Self::RollbackOrphan => true,
        }
    }
}

/// What every resource manager has said of an orphan's transaction (P14).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proof {
    /// A branch of it has committed: it is in that resource manager's evidence.
    Committed,
    /// Every resource manager was asked, and none of them has committed anything of it.
    NotCommitted,
    /// Some resource manager did not answer, and none of the others has committed.
    Incomplete,
}

/// Where a transaction stands, as far as it matters to what may be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Nothing is decided, and nothing was given to the log.
    Open {
        /// Its deadline has passed.
        overdue: bool,
    },
    /// Its decision is on its way to the log, or whether it is there is unknown.
    Deciding,
    /// Commit is durable; a branch has still to acknowledge it.
    Committing,
    /// Its only branch commits by itself; its evidence is awaited.
    OnePhase,
    /// It is being rolled back; a branch has still to acknowledge that.
    RollingBack,
    /// It ended as it was decided.
    Ended,
    /// A branch ended differently from the decision, and that is on its way to the log.
    Recording,
    /// A branch ended differently from the decision.
    Heuristic {
        /// A person has noted that it was dealt with.
        acknowledged: bool,
    },
    /// Prepared in a database of this cluster, and the log cannot tell what becomes of it.
    Orphan(Proof),
    /// Prepared in a database, and its record is a one-phase commit that was given up: it does not tell what the branch did.
    Intended(Proof),
    /// Prepared in a database, by another cluster.
    Foreign,
    /// Another coordinator on the same log has it: it may still decide it, or delivers its decision.
    Elsewhere,
}

impl Standing {
    /// Of a transaction that is live here.
    #[must_use]
    pub fn of_live(state: &State, overdue: bool) -> Self {
        match state {
            State::Active | State::Preparing => Self::Open { overdue },
            State::Deciding(DecisionKind::Commit | DecisionKind::OnePhaseIntent)
            | State::DecisionUnknown(DecisionKind::Commit | DecisionKind::OnePhaseIntent) => Self::Deciding,
            State::Committing => Self::Committing,
            State::CommittingOnePhase => Self::OnePhase,
            State::RollbackOnly(_) | State::RollingBack(_) => Self::RollingBack,
            State::Recording(_) => Self::Recording,
            State::Ended(outcome, _) => Self::of_ended(*outcome, false),
        }
    }

    /// Of a transaction that ended so, by record.
    #[must_use]
    pub fn of_ended(outcome: Outcome, acknowledged: bool) -> Self {
        match outcome {
            Outcome::Heuristic(_) => Self::Heuristic { acknowledged },
            Outcome::Committed | Outcome::RolledBack | Outcome::NothingToCommit | Outcome::Unknown => {
                Self::Ended
            }
        }
    }

    /// Of a transaction whose end is on its way to the log.
    #[must_use]
    pub fn of_unrecorded(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Heuristic(_) => Self::Recording,
            Outcome::Committed | Outcome::RolledBack | Outcome::NothingToCommit | Outcome::Unknown => {
                Self::Ended
            }
        }
    }

    /// Of a transaction that is not live here, and of which databases hold these branches prepared. `proof`: what they all say of it; `None` if
    /// it is another cluster's.
    #[must_use]
    pub fn of_prepared<'a>(
        look_up: &LookUp,
        behind: bool,
        acknowledged: bool,
        mut prepared: impl Iterator<Item = &'a Bqual>,
        proof: Option<Proof>,
    ) -> Self {
        let open = |bqual: &Bqual| matches!(prepared_fate(look_up, behind, bqual), PreparedFate::Unknown(_));
        match (Self::of_recorded(look_up, behind, acknowledged), proof) {
            (Some(_), Some(proof)) if prepared.any(open) => Self::Intended(proof),
            // Every cluster counts its epochs from 1: what this log knows of that number is about its own transactions.
            (Some(_), None) if look_up.recorded == Recorded::Absent => Self::Foreign,
            (Some(standing), _) => standing,
            (None, Some(proof)) => Self::Orphan(proof),
            (None, None) => Self::Foreign,
        }
    }

    /// Of a transaction that is not live here and whose end is not on its way to the log, by what the log says of it. `None`: the log can say nothing.
    #[must_use]
    pub fn of_recorded(look_up: &LookUp, behind: bool, acknowledged: bool) -> Option<Self> {
        match conclude(look_up, behind) {
            Known::Ended(outcome, _) => Some(Self::of_ended(outcome, acknowledged)),
            // It is live where it is delivered: nothing that is done here would reach it.
            Known::Committing | Known::OnePhase if !look_up.is_own() => Some(Self::Elsewhere),
            Known::Committing => Some(Self::Committing),
            Known::OnePhase => Some(Self::OnePhase),
            Known::Elsewhere => Some(Self::Elsewhere),
            Known::PresumedRolledBack => Some(Self::RollingBack),
            Known::Unknown(_) => None,
        }
    }

    /// The situation that it is, if it is one. `overdue`: of a decision on its way, whether the deadline has passed.
    #[must_use]
    pub fn situation(self, overdue: bool) -> Option<Situation> {
        match self {
            Self::Open { overdue: true } => Some(Situation::Undecided),
            Self::Deciding if overdue => Some(Situation::Undecided),
            Self::Committing | Self::OnePhase | Self::RollingBack => Some(Situation::Undelivered),
            Self::Recording | Self::Heuristic { acknowledged: false } => Some(Situation::Heuristic),
            Self::Orphan(_) | Self::Intended(_) | Self::Foreign => Some(Situation::Orphan),
            Self::Open { overdue: false }
            | Self::Deciding
            | Self::Ended
            | Self::Heuristic { acknowledged: true }
            | Self::Elsewhere => None,
        }
    }

    /// Whether this may be done now.
    ///
    /// # Errors
    /// Why not.
    pub fn permit(self, action: Action) -> Result<(), Forbidden> {
        match self {
            Self::Open { .. } => match action {
                Action::Rollback => Ok(()),
                Action::Commit => Err(Forbidden::ForcedCommit),
                Action::Retry | Action::Pause | Action::Resume | Action::Abandon => {
                    Err(Forbidden::NotDecided)
                }
                Action::Acknowledge => Err(Forbidden::NotHeuristic),
                Action::CommitOrphan | Action::RollbackOrphan => Err(Forbidden::NoOrphan),
            },
            Self::Deciding => match action {
                Action::Commit => Err(Forbidden::ForcedCommit),
                Action::Retry | Action::Pause | Action::Resume | Action::Rollback | Action::Abandon => {
                    Err(Forbidden::DecisionUnderWay)
                }
                Action::Acknowledge => Err(Forbidden::NotHeuristic),
                Action::CommitOrphan | Action::RollbackOrphan => Err(Forbidden::NoOrphan),
            },
            Self::Committing => undelivered(action, Forbidden::CommitIsDurable),
            Self::OnePhase => undelivered(action, Forbidden::OnePhaseUnderWay),
            Self::RollingBack => undelivered(action, Forbidden::RollbackIsDecided),
            Self::Ended => match action {
                Action::Acknowledge => Err(Forbidden::NotHeuristic),
                Action::Retry
                | Action::Pause
                | Action::Resume
                | Action::Rollback
                | Action::Commit
                | Action::Abandon
                | Action::CommitOrphan
                | Action::RollbackOrphan => Err(Forbidden::Ended),
            },
            Self::Recording => heuristic(Err(Forbidden::NotOnRecord), action),
            Self::Heuristic { acknowledged: true } => heuristic(Err(Forbidden::AcknowledgedBefore), action),
            Self::Heuristic { acknowledged: false } => heuristic(Ok(()), action),
            Self::Orphan(proof) => orphan(proof, action),
            Self::Intended(proof) => intended(proof, action),
            Self::Foreign => Err(Forbidden::OtherCluster),
            Self::Elsewhere => Err(Forbidden::OtherCoordinator),
        }
    }
}

/// `against`: why the outcome cannot be chosen any more.
fn undelivered(action: Action, against: Forbidden) -> Result<(), Forbidden> {
    match action {
        Action::Retry | Action::Pause | Action::Resume | Action::Abandon => Ok(()),
        Action::Rollback | Action::Commit => Err(against),
        Action::Acknowledge => Err(Forbidden::NotHeuristic),
        Action::CommitOrphan | Action::RollbackOrphan => Err(Forbidden::NoOrphan),
    }
}

/// `acknowledge`: whether it may be acknowledged now.
fn heuristic(acknowledge: Result<(), Forbidden>, action: Action) -> Result<(), Forbidden> {
    match action {
        Action::Acknowledge => acknowledge,
        Action::Retry
        | Action::Pause
        | Action::Resume
        | Action::Rollback
        | Action::Commit
        | Action::Abandon
        | Action::CommitOrphan
        | Action::RollbackOrphan => Err(Forbidden::HeuristicIsFinal),
    }
}

fn orphan(proof: Proof, action: Action) -> Result<(), Forbidden> {
    match (action, proof) {
        (Action::RollbackOrphan, Proof::Incomplete) if mutated("P14-who-does-not-answer-has-nothing") => {
            Ok(())
        }
        (Action::CommitOrphan, Proof::Committed) | (Action::RollbackOrphan, Proof::NotCommitted) => Ok(()),
        (Action::CommitOrphan | Action::Commit, Proof::NotCommitted | Proof::Incomplete) => {
            Err(Forbidden::CommitNotProved)
        }
        (Action::RollbackOrphan | Action::Rollback, Proof::Committed) => Err(Forbidden::CommittedElsewhere),
        (Action::RollbackOrphan | Action::Rollback, Proof::Incomplete) => Err(Forbidden::NotEveryoneAnswered),
        (
            Action::Retry
            | Action::Pause
            | Action::Resume
            | Action::Rollback
            | Action::Commit
            | Action::Abandon
            | Action::Acknowledge,
            Proof::Committed | Proof::NotCommitted | Proof::Incomplete,
        ) => Err(Forbidden::IsOrphan),
    }
}

/// P10: the intent names this branch alone, and one that turns out to be prepared is answered commit. Nobody was told so, though: it may
/// be rolled back as well, if it has not committed.
fn intended(proof: Proof, action: Action) -> Result<(), Forbidden> {
    match action {
        Action::CommitOrphan => Ok(()),
        Action::Retry
        | Action::Pause
        | Action::Resume
        | Action::Rollback
        | Action::Commit
        | Action::Abandon
        | Action::Acknowledge
        | Action::RollbackOrphan => orphan(proof, action),
    }
}

/// Why an action is refused. Its text says it; [`Forbidden::instead`] says what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Forbidden {
    /// The opposite of a durable commit, or the same again.
    CommitIsDurable,
    /// The outcome of a one-phase commit is in its database alone.
    OnePhaseUnderWay,
    /// It is being rolled back already.
    RollbackIsDecided,
    /// Nobody may commit by hand what was not decided.
    ForcedCommit,
    /// The log may hold the decision, or may not.
    DecisionUnderWay,
    /// There is no decision to deliver.
    NotDecided,
    /// It ended, as decided.
    Ended,
    /// No heuristic outcome.
    NotHeuristic,
    /// Its heuristic outcome is not in the log yet.
    NotOnRecord,
    /// It was acknowledged before.
    AcknowledgedBefore,
    /// What has happened in a database stays.
    HeuristicIsFinal,
    /// It is no orphan.
    NoOrphan,
    /// It is one.
    IsOrphan,
    /// A branch of the orphan's transaction has committed.
    CommittedElsewhere,
    /// No branch of the orphan's transaction is known to have committed.
    CommitNotProved,
    /// A resource manager did not answer.
    NotEveryoneAnswered,
    /// The branch belongs to another cluster.
    OtherCluster,
    /// The transaction belongs to another coordinator.
    OtherCoordinator,
}

impl Forbidden {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::CommitIsDurable,
        Self::OnePhaseUnderWay,
        Self::RollbackIsDecided,
        Self::ForcedCommit,
        Self::DecisionUnderWay,
        Self::NotDecided,
        Self::Ended,
        Self::NotHeuristic,
        Self::NotOnRecord,
        Self::AcknowledgedBefore,
        Self::HeuristicIsFinal,
        Self::NoOrphan,
        Self::IsOrphan,
        Self::CommittedElsewhere,
        Self::CommitNotProved,
        Self::NotEveryoneAnswered,
        Self::OtherCluster,
        Self::OtherCoordinator,
    ];

    /// What to do instead.
    #[must_use]
    pub const fn instead(self) -> &'static str {
        match self {
            Self::CommitIsDurable => {
                "have it delivered: `lockstep tx retry ID`; if a database is lost for good: \
                 `lockstep tx abandon ID --resource NAME --dry-run`"
            }
            Self::OnePhaseUnderWay => {
                "attach an instance of its resource manager: its evidence tells the outcome; if that database is lost for \
                 good: `lockstep tx abandon ID --resource NAME --dry-run`"
            }
            Self::RollbackIsDecided => {
                "have it delivered: `lockstep tx retry ID`; a commit of the same work is a new transaction"
            }
            Self::ForcedCommit => {
                "let the application commit, or roll back: `lockstep tx rollback ID --dry-run`"
            }
            Self::DecisionUnderWay => {
                "wait: the log answers, or the coordinator ends and reads at its next start what is there; `lockstep health` \
                 says whether the log answers"
            }
            Self::NotDecided => {
                "roll it back: `lockstep tx rollback ID --dry-run`, or let it run into its deadline"
            }
            Self::Ended => "look at it: `lockstep tx show ID`; to undo its effects takes a new transaction",
            Self::NotHeuristic => "look at it: `lockstep tx show ID` lists what can be done now",
            Self::NotOnRecord => "ask again in a moment; `lockstep health` says whether the log answers",
            Self::AcknowledgedBefore => "nothing: `lockstep audit ls ID` tells who did, when and why",
            Self::HeuristicIsFinal => {
                "look at the evidence with `lockstep tx show ID`, mend the data by hand in the database that is wrong, and \
                 note that: `lockstep tx ack ID --reason TEXT`"
            }
            Self::NoOrphan => "look at it: `lockstep tx show ID` lists what can be done now",
            Self::IsOrphan => {
                "look at the evidence: `lockstep orphans scan`, then `lockstep orphans resolve ID --dry-run`"
            }
            Self::CommittedElsewhere => "commit it too: `lockstep orphans resolve ID --commit --dry-run`",
            Self::CommitNotProved => {
                "if every resource manager has answered: `lockstep orphans resolve ID --rollback --dry-run`"
            }
            Self::NotEveryoneAnswered => {
                "attach an instance of each of them and ask again: `lockstep orphans scan`; one that is lost for good: \
                 `lockstep participants retire NAME --dry-run`"
            }
            Self::OtherCluster => {
                "ask the coordinator of that cluster; if that is gone for good, decide by its participants' evidence and end \
                 the branch in the database by hand: docs/runbook/orphan.md"
            }
            Self::OtherCoordinator => {
                "ask that coordinator (`--server`); when it is gone, another one takes over by itself"
            }
        }
    }
}

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CommitIsDurable => "COMMIT is durable, and cannot be taken back or chosen again",
            Self::OnePhaseUnderWay => {
                "its only branch commits by itself, and whether it did stands in its database alone"
            }
            Self::RollbackIsDecided => "it is being rolled back, and cannot commit any more",
            Self::ForcedCommit => "only all branches' votes make a commit: a branch may not be prepared, or have refused",
            Self::DecisionUnderWay => {
                "its decision is on its way to the decision log, and may be there already: nobody knows yet"
            }
            Self::NotDecided => "nothing is decided yet, so that there is nothing to deliver or to give up",
            Self::Ended => "it has ended as it was decided",
            Self::NotHeuristic => "it has no heuristic outcome",
            Self::NotOnRecord => "its heuristic outcome is still on its way to the decision log",
            Self::AcknowledgedBefore => "its heuristic outcome was acknowledged before",
            Self::HeuristicIsFinal => {
                "its branches have ended, and differently: nothing in Lockstep may undo what a database has committed"
            }
            Self::NoOrphan => "this coordinator answers for it: it is no orphan",
            Self::IsOrphan => "it is an orphan: this coordinator knows neither its decision nor its branches",
            Self::CommittedElsewhere => "another branch of the same transaction has committed, by the evidence in its database",
            Self::CommitNotProved => "no branch of the same transaction is proved to have committed",
            Self::NotEveryoneAnswered => {
                "not every resource manager has said what it holds of this transaction, and one of them may have committed"
            }
            Self::OtherCluster => "it belongs to another cluster, whose coordinator may still decide it",
            Self::OtherCoordinator => "another coordinator on the same decision log has it: that one decides it, and delivers",
        })
    }
}
