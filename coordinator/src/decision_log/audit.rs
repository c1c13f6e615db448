//! What operators do, on record: who, when, why, and how it was before and after.
//!
//! An action's record is forced before the action takes effect, in the same write as whatever it changes in the log itself. So
//! nothing is ever done by hand that is not on record; what is on record, and was not done because the process died in between, is
//! seen from what the transaction is now, and may be asked for again. What failed while the process lived has a second record, which names
//! the first and says how.

use lockstep_proto::Gtrid;

use super::KnownResourceManager;

/// An action, as it is to be recorded. Texts are at most 1,024 bytes each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// When, by this coordinator's clock, in milliseconds since 1970.
    pub at_ms: u64,
    /// Who says to have asked for it: a claim, as long as nobody is authenticated.
    pub who: String,
    /// What was asked for, such as `abandon`.
    pub action: String,
    /// What it was about: a gtrid, a resource manager, or the cluster.
    pub subject: String,
    /// The transaction, if it was about one.
    pub gtrid: Option<Gtrid>,
    /// Why.
    pub reason: String,
    /// How it was before.
    pub before: String,
    /// What the action makes of it.
    pub after: String,
    /// What changes in the log with it, in the same write.
    pub effect: Effect,
}

/// What an operation changes in the log itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: what it does is done by the engine, behind the record.
    None,
    /// The heuristic outcome of its transaction has been dealt with: its record may go when its retention is over.
    Acknowledge,
    /// A resource manager is from now on known like this.
    Remember(KnownResourceManager),
}

/// An action on record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRecord {
    /// Its number in this log, from 1.
    pub id: u64,
    /// As it was recorded, without its effect.
    pub operation: Operation,
}

/// Which records are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditQuery {
    /// Only of this transaction.
    pub of: Option<Gtrid>,
    /// Only records below this number; 0: all of them.
    pub below: u64,
    /// At most so many.
    pub limit: u32,
}
