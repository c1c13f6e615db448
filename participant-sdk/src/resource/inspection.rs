//! What a store says of branches to a person who looks: as it is, changing nothing.

use super::{BranchId, Fate};

/// What a store says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// The branches of this resource manager that it knows. Complete, as far as what was asked for goes.
    pub branches: Vec<Inspected>,
    /// Sessions that wait for a prepared branch; or why nothing is known of them.
    pub blocked: Result<Vec<Blocked>, String>,
}

/// A branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    /// Which, of any cluster.
    pub branch: BranchId,
    /// What became of it.
    pub found: Found,
    /// When it was prepared, or its evidence written, by the store's clock, in milliseconds since 1970; 0 if the store does not say.
    pub at_ms: u64,
}

/// What became of a branch, as far as a look tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It is prepared.
    Prepared,
    /// There is evidence of its end.
    Ended(Fate),
}

/// A session that waits for a prepared branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// The server's number for it.
    pub session: u64,
    /// For so long, in milliseconds.
    pub waiting_ms: u64,
    /// Since its statement began, in milliseconds; 0 if the server does not say.
    pub statement_ms: u64,
    /// What it waits for.
    pub object: String,
    /// The branch that has it, if the server says which.
    pub held_by: Option<BranchId>,
}

/// How many of each are told at most.
pub(crate) const MOST: usize = 1000;
