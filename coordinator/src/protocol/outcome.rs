//! How transactions and branches end. Unknown is an outcome of its own, never rounded to one of the others.

/// What the coordinator chose. Not the same as the outcome: a branch may end differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Every branch commits.
    Commit,
    /// No branch commits.
    Rollback,
}

/// A transaction's outcome, as it is reported and recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The decision is commit, and no branch is known to have done anything else.
    Committed,
    /// No branch has committed or can.
    RolledBack,
    /// No branch had written anything (protocol.md, P11).
    NothingToCommit,
    /// At least one branch ended differently from the decision.
    Heuristic(Heuristic),
    /// It cannot be told. An operator, or time, has to help.
    Unknown,
}

/// How branches differ from the decision (X/Open XA, section 2.3; CORBA OTS heuristic exceptions).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Heuristic {
    /// The decision was rollback, and every branch that is known to have ended has committed.
    Commit,
    /// The decision was commit, and every branch that is known to have ended has rolled back.
    Rollback,
    /// Some branches committed and others rolled back.
    Mixed,
    /// What some branch did is not known, and cannot be found out by itself.
    Hazard,
}

/// How one branch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BranchEnd {
    /// Proved by its resource manager.
    Committed,
    /// Proved by its resource manager, or voted.
    RolledBack,
    /// It had written nothing.
    ReadOnly,
    /// Its resource manager can bring it to neither end.
    Hazard,
    /// It had not voted, and its session broke: it is taken to have rolled back with its connection. An assumption, which a later
    /// proof may correct.
    Lost,
    /// An operator has given it up: its resource manager is gone for good, and nobody knows what it did (P28). If it is heard of again
    /// after all, what it proves then holds.
    Abandoned,
}

impl BranchEnd {
    /// Its name, for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::RolledBack => "rolled-back",
            Self::ReadOnly => "read-only",
            Self::Hazard => "hazard",
            Self::Lost => "lost",
            Self::Abandoned => "abandoned",
        }
    }
}

impl Heuristic {
    /// How branches that ended so differ from the decision, if any does. What is known to be mixed stays so whatever a hazard, or a
    /// branch that was given up, did.
    #[must_use]
    pub fn of(decision: Decision, ends: &[BranchEnd]) -> Option<Self> {
        let committed = ends.contains(&BranchEnd::Committed);
        let rolled_back = ends.contains(&BranchEnd::RolledBack) || ends.contains(&BranchEnd::Lost);
        if committed && rolled_back {
            return Some(Self::Mixed);
        }
        if ends.contains(&BranchEnd::Hazard) || ends.contains(&BranchEnd::Abandoned) {
            return Some(Self::Hazard);
        }
        match decision {
            Decision::Commit => rolled_back.then_some(Self::Rollback),
            Decision::Rollback => committed.then_some(Self::Commit),
        }
    }
}
