//! The decision log: what a coordinator must still know after any crash.
//!
//! [`DecisionLog`] is the edge to a store; [`sqlite`] is the embedded one, [`postgres`] that of several coordinators. [`group_commit`] stands between the engine and a log: whatever waits
//! goes into one forced write. The log knows nothing of messages or participants; the protocol knows nothing of
//! stores. Rules P1 to P9 of the protocol say what an implementation owes.
//!
//! What a failed write means is in the types: [`AppendError::Refused`] wrote nothing and never will,
//! [`AppendError::Unknown`] may have written, and nobody may conclude anything before the log was read again. A form of a record
//! (`rows`), and what may follow on what (`ends`, `pruning`), is the same in every log.

pub mod audit;
#[cfg(any(test, feature = "contract"))]
pub mod contract;
pub mod data_dir;
mod ends;
pub mod group_commit;
pub mod postgres;
mod prefix;
mod pruning;
#[cfg(test)]
mod rerun;
pub mod restore;
mod rows;
pub mod sqlite;

use futures::future::BoxFuture;
use lockstep_proto::{ClusterId, Epoch, Gtrid, LogPosition, ResourceManagerId, ResourceManagerName};

use crate::codes::Code;
pub use crate::protocol::presumption::{EpochState, LookUp, Recorded};
use crate::protocol::record::{DecisionRecord, EndRecord};
use audit::{AuditQuery, AuditRecord, Operation};

/// What one forced write carries, in this order. Decisions of one batch are of different transactions; an end may be of
/// a transaction whose decision is in the same batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// New decisions.
    pub decisions: Vec<DecisionRecord>,
    /// Ends: of a recorded decision, or of a transaction that was rolled back and has none.
    pub ends: Vec<EndRecord>,
}

impl Batch {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.decisions.is_empty() && self.ends.is_empty()
    }
}

/// A write that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Nothing was written, and nothing of it will appear later.
    #[error("the decision log refused the write: {0}")]
    Refused(String),
    /// It may have been written, or the log contradicts what was asked for (a decision that stands there with other contents):
    /// nothing that this process believes of it counts any more. This ends the process (P6); until then it refuses everything,
    /// reads too.
    #[error("whether the decision log has the write is unknown: {0}")]
    Unknown(String),
    /// Another node has sealed the epoch: nothing is decided under it any more, and what this write was about, the log alone tells.
    /// Nothing more is written or read; a new epoch has to be taken.
    #[error("{0}")]
    Sealed(String),
}

/// The log could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// It did not answer.
    #[error("the decision log cannot be read: {0}")]
    Unavailable(String),
    /// A row is not what was written: its checksum or its form is wrong.
    #[error("the decision log is damaged: {0}")]
    Damaged(String),
}

impl ReadError {
    /// Its code: docs/errors has a page for it.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Unavailable(_) => Code::CannotOpenLog,
            Self::Damaged(_) => Code::LogDamaged,
        }
    }
}

/// A resource manager as the log knows it (P21).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownResourceManager {
    /// Its name.
    pub name: ResourceManagerName,
    /// Its stored identity.
    pub identity: ResourceManagerId,
    /// Where it lives, if that matters; else empty.
    pub location: String,
    /// The highest timeline seen.
    pub timeline: u32,
    /// Nothing of this resource manager is older than this transaction: neither a prepared branch nor evidence that was
    /// not reconciled (P7). `None` before its first complete report.
    pub floor: Option<Gtrid>,
    /// It is gone for good (P28): nothing waits for it, and its identity is refused for ever.
    pub retired: bool,
}

/// The epochs that a log has given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epochs {
    /// Every epoch below this one is sealed.
    pub sealed_below: Epoch,
    /// No epoch above this one was given out.
    pub newest: Epoch,
}

/// What [`DecisionLog::prune`] may remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PruneLimits {
    /// Only transactions that ended before this, in milliseconds since 1970 by this node's clock.
    pub ended_before_ms: u64,
    /// Only transactions older than this one: the oldest that is live here.
    pub below: Gtrid,
    /// At most so many rows at a time.
    pub limit: u32,
}

/// What a look at the whole log tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogStatus {
    /// Decisions without an end.
    pub unfinished: u64,
    /// Transactions with a heuristic outcome on record.
    pub heuristic: u64,
    /// Those of them that nobody has acknowledged.
    pub heuristic_open: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// The newest pruned gtrid's time, milliseconds since 1970; 0 if nothing was ever pruned.
    pub horizon_ms: u64,
    /// A participant has seen more than the log has, and no operator has dealt with it ([`DecisionLog::note_behind`]).
    pub behind: bool,
}

/// A durable decision log, opened under an epoch of its own.
pub trait DecisionLog: Send + Sync + 'static {
    /// The cluster, made once with the log.
    fn cluster(&self) -> ClusterId;

    /// The epoch this was opened under, its incarnation, and the newest forced batch.
    fn position(&self) -> LogPosition;

    /// Forces a batch, all of it or nothing. The position it has then. Calls wait for one another. What is recorded already is left
    /// as it is: repeating a write changes nothing. Must not be cancelled: a call that is dropped halfway is an unknown write.
    fn force<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<LogPosition, AppendError>>;

    /// Writes ends, without forcing them: a crash may lose them. Does not overlap with [`DecisionLog::force`].
    fn write_lazily<'a>(&'a self, ends: &'a [EndRecord]) -> BoxFuture<'a, Result<(), AppendError>>;

    /// What the log knows of each of these, from one snapshot, in their order.
    fn look_up<'a>(&'a self, gtrids: &'a [Gtrid]) -> BoxFuture<'a, Result<Vec<LookUp>, ReadError>>;

    /// Whether this position is behind the newest one of this log: its epoch is known under that incarnation, and has come at
    /// least so far; or it is of before a restore that an operator has dealt with. If not, the log has lost its tail, or is another one, and nothing may be presumed from it (P8).
    fn reaches(&self, position: LogPosition) -> BoxFuture<'_, Result<bool, ReadError>>;

    /// Whether this epoch was sealed when the own one began: a log that has the own one has all of that one, whatever its tail has
    /// lost ([`lockstep_proto::positions`]).
    fn has_all_of(&self, epoch: Epoch) -> bool;

    /// Notes in the log that a participant has seen more than it has. From now on [`DecisionLog::look_up`] calls every epoch unknown
    /// but that of another node which may still decide, here, at every other node and after every restart, until an operator has dealt with it ([`restore`]). Forced.
    fn note_behind(&self) -> BoxFuture<'_, Result<(), AppendError>>;

    /// Decisions without an end, in the order of their gtrids, from behind `after`, at most `limit`.
    fn unfinished(
        &self,
        after: Option<Gtrid>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<DecisionRecord>, ReadError>>;

    /// Ended transactions, newest first by gtrid, at most `limit`. For people.
    fn recently_ended(&self, limit: u32) -> BoxFuture<'_, Result<Vec<EndRecord>, ReadError>>;

    /// Transactions with a record whose gtrid begins with this text, or whose hex digits do; at most `limit`. For people.
    fn find<'a>(&'a self, prefix: &'a str, limit: u32) -> BoxFuture<'a, Result<Vec<Gtrid>, ReadError>>;

    /// All resource managers that ever attached.
    fn resource_managers(&self) -> BoxFuture<'_, Result<Vec<KnownResourceManager>, ReadError>>;

    /// Remembers a resource manager as it is now: a new one, or a new location, timeline or floor. Forced, if anything is new.
    /// The highest timeline stays; another identity under its name is refused (P21).
    fn remember<'a>(&'a self, known: &'a KnownResourceManager) -> BoxFuture<'a, Result<(), AppendError>>;

    /// Remembers a known resource manager's floor, and leaves everything else as the log has it: an operator may have changed that in
    /// between. Forced, if it is new.
    fn remember_floor<'a>(
        &'a self,
        name: &'a ResourceManagerName,
        floor: Gtrid,
    ) -> BoxFuture<'a, Result<(), AppendError>>;

    /// The epochs that this log has given out, as it is now.
    fn epochs(&self) -> BoxFuture<'_, Result<Epochs, ReadError>>;

    /// The first time, in milliseconds since 1970, that a transaction may have that begins under this epoch: above the horizon, and not
    /// below any floor that a node of this log has told anybody (P7). No clock has a say in it.
    fn begins_from_ms(&self) -> BoxFuture<'_, Result<u64, ReadError>>;

    /// Nothing that is live at any node on this log, or will be, is older than this; `own`: the same of this node, which the other
    /// nodes are told first.
    fn floor(&self, own: Gtrid) -> BoxFuture<'_, Result<Gtrid, ReadError>>;

    /// Forces an operator's action together with what it changes in the log: both or neither. The action's number. Does not
    /// overlap with [`DecisionLog::force`].
    fn operate<'a>(&'a self, operation: &'a Operation) -> BoxFuture<'a, Result<u64, AppendError>>;

    /// Operators' actions, newest first.
    fn audit(&self, query: AuditQuery) -> BoxFuture<'_, Result<Vec<AuditRecord>, ReadError>>;

    /// Heuristic outcomes that nobody has acknowledged, newest first by gtrid, at most `limit`.
    fn open_heuristics(&self, limit: u32) -> BoxFuture<'_, Result<Vec<EndRecord>, ReadError>>;

    /// Whether this transaction's heuristic outcome was acknowledged.
    fn is_acknowledged(&self, gtrid: Gtrid) -> BoxFuture<'_, Result<bool, ReadError>>;

    /// Everything on record, in the order of the gtrids, from behind `after`, at most `limit`. For people.
    fn walk(
        &self,
        after: Option<Gtrid>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<(Gtrid, Recorded)>, ReadError>>;

    /// Removes records that ended long enough ago (a heuristic outcome only once it is acknowledged) and raises the horizon in the
    /// same write, which stays below every known resource manager's floor (one without a floor stops pruning) and every node's.
    /// How many rows went.
    fn prune(&self, limits: PruneLimits) -> BoxFuture<'_, Result<u64, AppendError>>;

    /// Numbers for people.
    fn status(&self) -> BoxFuture<'_, Result<LogStatus, ReadError>>;

    /// Closes it: what was written lazily is on disk then.
    fn close(&self) -> BoxFuture<'_, ()>;
}
