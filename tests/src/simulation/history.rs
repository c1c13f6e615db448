//! What an outside observer knows: what was really done to each branch, what the log really shows, and what anyone was told. The
//! invariants compare these; nothing in here is seen by the code under test.

use lockstep_coordinator::protocol::record::{DecisionKind, DecisionRecord};
use lockstep_proto::{Bqual, Gtrid, Xid};

/// What the store really did with a branch's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Local {
    /// Nothing has begun.
    None,
    /// A local transaction is open.
    Open,
    /// It is prepared.
    Prepared,
    /// Its work is there.
    Committed,
    /// Its work is gone.
    RolledBack,
    /// It wrote nothing and has left.
    ReadOnly,
    /// Neither end is possible any more.
    Hazard,
}

/// One branch.
#[derive(Debug, Clone)]
pub struct BranchFacts {
    /// Whose.
    pub transaction: u32,
    /// Its handler writes nothing.
    pub read_only: bool,
    /// What became of its work.
    pub local: Local,
    /// It was prepared, whatever became of it.
    pub was_prepared: bool,
    /// It has said that it will go either way.
    pub voted_commit: bool,
    /// An administrator has ended it, or made it impossible to end.
    pub by_hand: bool,
    /// A failover has undone its commit.
    pub undone: bool,
}

/// A decision as the log shows it.
#[derive(Debug, Clone)]
pub struct Decided {
    /// Which.
    pub kind: DecisionKind,
    /// The numbers of the branches that it names.
    pub branches: Vec<u32>,
}

/// One global transaction.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Its id.
    pub gtrid: Gtrid,
    /// The branches that the coordinator said are enlisted.
    pub enlisted: Vec<u32>,
    /// What the log shows.
    pub decision: Option<Decided>,
    /// A decision is on its way to the log, and nothing is known of it yet.
    pub deciding: Option<DecisionKind>,
    /// Someone was told that it is committed.
    pub told_committed: bool,
    /// Someone was told that it is rolled back.
    pub told_rolled_back: bool,
    /// A heuristic outcome is on record.
    pub heuristic: bool,
}

/// Everything that was.
#[derive(Debug, Default)]
pub struct History {
    /// By their numbers.
    pub transactions: Vec<Facts>,
    /// By their numbers.
    pub branches: Vec<BranchFacts>,
}

/// Random bits for a gtrid that carry a transaction's number.
#[must_use]
pub fn bits_of(number: usize) -> [u8; 10] {
    let mut bits = [0; 10];
    bits[2..].copy_from_slice(&(number as u64).to_be_bytes());
    bits
}

/// The number that a gtrid carries.
///
/// # Panics
/// If it is none of this world.
#[must_use]
pub fn number_of(gtrid: &Gtrid) -> u32 {
    u32::try_from(gtrid.spread()).expect("every gtrid of a world carries a number")
}

/// The number that a bqual carries.
///
/// # Panics
/// If it is none of this world.
#[must_use]
pub fn branch_number(bqual: &Bqual) -> u32 {
    let text = bqual.as_str();
    u32::from_str_radix(&text[text.len() - 8..], 16).expect("every bqual of a world carries a number")
}

impl History {
    /// A transaction.
    pub fn of(&mut self, gtrid: &Gtrid) -> &mut Facts {
        &mut self.transactions[number_of(gtrid) as usize]
    }

    /// A branch.
    pub fn branch(&mut self, xid: &Xid) -> &mut BranchFacts {
        &mut self.branches[branch_number(&xid.bqual) as usize]
    }

    /// Whether anyone has laid hands on a branch of it.
    #[must_use]
    pub fn touched_by_hand(&self, facts: &Facts) -> bool {
        facts.enlisted.iter().any(|branch| self.branches[*branch as usize].by_hand)
    }

    /// Whether the log shows a decision that names this branch.
    #[must_use]
    pub fn named(&self, branch: u32) -> Option<&Decided> {
        let facts = &self.transactions[self.branches[branch as usize].transaction as usize];
        facts.decision.as_ref().filter(|decided| decided.branches.contains(&branch))
    }

    /// The log shows this decision from now on.
    pub fn note_decision(&mut self, record: &DecisionRecord) {
        let branches = record.branches.iter().map(branch_number).collect();
        self.of(&record.gtrid).decision = Some(Decided { kind: record.kind, branches });
    }

    /// All branches of a transaction that ever were, enlisted or not, are looked at: this one has its number.
    #[must_use]
    pub fn transaction_of(&self, branch: u32) -> u32 {
        self.branches[branch as usize].transaction
    }
}
