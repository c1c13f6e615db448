//! How transactions and branches end. Unknown is an outcome of its own, never rounded to one of the others.

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
    /// It never voted and was told to roll back; its session was gone, so that it rolled back by itself.
    Lost,
}
