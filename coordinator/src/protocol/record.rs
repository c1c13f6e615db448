//! What the decision log keeps of a transaction.
//!
//! Two records at most. The *decision* is forced before anything that follows from it leaves the coordinator: the commit
//! decision with its branches, or the intent to commit a single branch in one phase. The *end* is written lazily, once
//! every branch has acknowledged, or when a transaction was rolled back: for people, and so that the decision may go when
//! its retention is over. A transaction with no decision record is rolled back (presumed abort: Mohan, Lindsay,
//! Obermarck, "Transaction Management in the R* Distributed Database Management System", 1986, section 3).

use lockstep_proto::{Bqual, Gtrid, TraceParent};

use super::outcome::{BranchEnd, Outcome};

/// What is known of a transaction from its begin: for people, the protocol does not look at it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct About {
    /// At most 64 bytes.
    pub name: String,
    /// At most 16 of at most 256 bytes each, in the order of their keys.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Its span, if that is recorded: what is done about it later, by recovery or by hand, links to it.
    pub trace: Option<TraceParent>,
}

/// Which promise a decision record makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DecisionKind {
    /// Every branch commits.
    Commit,
    /// The one branch may commit by itself; its evidence tells whether it did (protocol.md, P10).
    OnePhaseIntent,
}

/// A forced record: it alone can make a transaction commit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DecisionRecord {
    /// Whose decision.
    pub gtrid: Gtrid,
    /// Commit, or one-phase intent.
    pub kind: DecisionKind,
    /// The branches that have to be told: 1 to 256, and of an intent exactly one. Read-only ones are not among them.
    pub branches: Vec<Bqual>,
    /// When, by this coordinator's clock, in milliseconds since 1970. For people.
    pub decided_ms: u64,
    /// For people.
    pub about: About,
}

/// A lazily written record (forced where the outcome is heuristic): the transaction has ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EndRecord {
    /// Whose end.
    pub gtrid: Gtrid,
    /// How: never [`Outcome::Unknown`].
    pub outcome: Outcome,
    /// Why, where it did not commit. At most 1,024 bytes.
    pub detail: String,
    /// What each branch did, as far as it is known.
    pub branches: Vec<(Bqual, BranchEnd)>,
    /// When, by this coordinator's clock, in milliseconds since 1970. Retention counts from here.
    pub ended_ms: u64,
    /// For people.
    pub about: About,
}

/// What the protocol asks of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogWrite {
    /// Force it, and tell the transaction what came of it. Nothing leaves for this transaction meanwhile.
    ForceDecision(DecisionRecord),
    /// Force it, and tell the transaction: a heuristic outcome must be on record before anyone forgets it.
    ForceEnd(EndRecord),
    /// Write it with some later batch; nobody waits.
    LazyEnd(EndRecord),
}
