//! What a store has to be able to do to take part in a global transaction.
//!
//! [`Resource`] is the edge between the protocol, which the SDK owns, and one store, which an implementation owns:
//! `postgres` (`PREPARE TRANSACTION`) and `sqlite` (a journal beside the file). An implementation never decides anything: it
//! prepares, commits, rolls back, and says truthfully what became of a branch, or that it cannot tell.
//!
//! Three answers that must never be mixed up, and so have three types: *done* ([`Fate`]), *refused* ([`Prepared::No`])
//! and *not known* ([`Unresolved`]). The evidence row (protocol.md, P15 to P19) is what makes the first one provable.

#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "sqlite")]
pub mod sqlite;

use std::future::Future;
use std::time::{Duration, SystemTime};

use lockstep_proto::{ClusterId, Gtrid, LogPosition, ResourceManagerId, ResourceManagerName, Xid};

/// A branch's name in the store: which cluster's, and which branch.
///
/// Text: `<cluster>:<gtrid>:<bqual>`, the key of its evidence row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BranchId {
    /// The cluster that decides about it. Branches of other clusters are nobody's business here.
    pub cluster: ClusterId,
    /// The branch.
    pub xid: Xid,
}

impl std::fmt::Display for BranchId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.cluster, self.xid)
    }
}

impl std::str::FromStr for BranchId {
    type Err = lockstep_proto::ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (cluster, xid) = text.split_once(':').unwrap_or((text, ""));
        Ok(Self { cluster: cluster.parse()?, xid: xid.parse()? })
    }
}

/// What became of a branch, proved by the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fate {
    /// Its work is durable and visible.
    Committed,
    /// Its work is gone, and it can never commit any more: a fence or the store itself sees to that.
    RolledBack,
    /// It can be brought to neither end: its journal does not fit the store any more, or its service committed a part of it
    /// by itself. A person has to look.
    Hazard,
}

/// The store cannot tell now, or cannot do it now. Ask again later; nothing may be concluded from it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unresolved(pub String);

/// What came of preparing a branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prepared {
    /// It survives any crash and can go either way.
    Yes,
    /// Nothing was written: the branch is over, its locks are gone, and it wants no decision.
    ReadOnly,
    /// It is rolled back for good, and this is why.
    No(String),
    /// It can never be prepared, and a part of its work may be durable: its service ended the local transaction with a COMMIT of
    /// its own (P16). What is left of it is rolled back. [`Resource::commit`], [`Resource::rollback`] and [`Resource::prove`]
    /// answer [`Fate::Hazard`] from now on.
    Hazard(String),
}

/// An error at the start of a branch, or at attach.
#[derive(Debug, thiserror::Error)]
pub enum ResourceError {
    /// The store cannot be a safe participant as it is set up. Names the setting and the statement that mends it.
    #[error("{0}")]
    Unfit(String),
    /// The store could not be reached, is busy, or has no room now: try again.
    #[error("{0}")]
    Unavailable(String),
}

/// What a resource manager says of itself when it attaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Its stored identity, made at its first attach.
    pub identity: ResourceManagerId,
    /// The cluster it was first attached to; `None` before that.
    pub cluster: Option<ClusterId>,
    /// The newest place in the decision log that it has seen (from evidence rows and what pruning kept of them).
    pub seen: Option<LogPosition>,
    /// Where it lives, if a change of it matters; else empty.
    pub location: String,
    /// PostgreSQL's timeline, 0 elsewhere.
    pub timeline: u32,
}

/// One row of evidence that is old enough to be pruned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvidenceRow {
    /// Whose it is.
    pub branch: BranchId,
    /// What the row proves.
    pub fate: Fate,
}

/// A store that can take part in global transactions.
///
/// Every method may be called at any time after [`Resource::attach`], by several tasks at once, and any number of
/// times for the same branch: a second commit answers as the first did.
pub trait Resource: Send + Sync + 'static {
    /// What a handler works with, such as `sqlx::PgConnection`.
    type Connection: Send;
    /// A branch's local transaction while it is open: owns its connection. Dropping it must leave the store as after
    /// [`Resource::discard`], as soon as the store can.
    type Open: Send + 'static;

    /// Checks that the store is fit (versions, durability settings, slots), creates what the SDK keeps in it, and
    /// brings prepared branches of a crashed process back under control. Called before anything else, and again after a
    /// lost connection.
    fn attach(
        &self,
        name: &ResourceManagerName,
    ) -> impl Future<Output = Result<Attachment, ResourceError>> + Send;

    /// Stores `cluster` as the one this store belongs to, durably, if none is stored yet.
    fn bind(&self, cluster: ClusterId) -> impl Future<Output = Result<(), Unresolved>> + Send;

    /// Opens the branch's local transaction. `remaining`: until the global transaction's deadline; the store itself
    /// ends the branch soon after that (P19), and waits for no lock longer.
    fn begin(
        &self,
        branch: &BranchId,
        remaining: Duration,
    ) -> impl Future<Output = Result<Self::Open, ResourceError>> + Send;

    /// The connection that the handler works with.
    fn connection(open: &mut Self::Open) -> &mut Self::Connection;

    /// The same, shared: what `Deref` of a [`crate::Branch`] gives, without which there is no `DerefMut`.
    fn connection_ref(open: &Self::Open) -> &Self::Connection;

    /// Prepares: durable when this returns [`Prepared::Yes`], together with its evidence row, which keeps `position`.
    /// [`Unresolved`] if it may or may not be prepared: the caller then has [`Resource::rollback`] find out.
    fn prepare(
        &self,
        branch: &BranchId,
        open: Self::Open,
        position: &LogPosition,
    ) -> impl Future<Output = Result<Prepared, Unresolved>> + Send;

    /// Commits without preparing, together with the evidence row. [`Unresolved`] if the reply was lost: the caller then
    /// has [`Resource::prove`] find out.
    fn commit_one_phase(
        &self,
        branch: &BranchId,
        open: Self::Open,
        position: &LogPosition,
    ) -> impl Future<Output = Result<Fate, Unresolved>> + Send;

    /// Ends an open branch that was never prepared and that no handler holds: closes its connection, or rolls back and
    /// gives it back if its state is known.
    fn discard(&self, open: Self::Open) -> impl Future<Output = ()> + Send;

    /// Commits a prepared branch; where it is not prepared, tells what became of it (as [`Resource::prove`]).
    fn commit(
        &self,
        branch: &BranchId,
        position: &LogPosition,
    ) -> impl Future<Output = Result<Fate, Unresolved>> + Send;

    /// Rolls a prepared branch back; where it is not prepared, fences it and tells what became of it.
    fn rollback(
        &self,
        branch: &BranchId,
        position: &LogPosition,
    ) -> impl Future<Output = Result<Fate, Unresolved>> + Send;

    /// Finds out what became of a branch that is not open here, and makes that final: prepared → it is committed (the
    /// caller only asks this of a branch that was told to commit in one phase, P10), evidence → committed, neither → a
    /// fence goes in and it can never commit.
    fn prove(
        &self,
        branch: &BranchId,
        position: &LogPosition,
    ) -> impl Future<Output = Result<Fate, Unresolved>> + Send;

    /// All prepared branches of `cluster` in this store that name `name`. Complete, or an error.
    fn prepared(
        &self,
        cluster: ClusterId,
        name: &ResourceManagerName,
    ) -> impl Future<Output = Result<Vec<Xid>, Unresolved>> + Send;

    /// The oldest transaction of `cluster` with an evidence row here. Read after [`Resource::prepared`], never before: a
    /// branch that commits in between is then in at least one of the two.
    fn oldest_evidence(
        &self,
        cluster: ClusterId,
    ) -> impl Future<Output = Result<Option<Gtrid>, Unresolved>> + Send;

    /// Up to `limit` evidence rows of `cluster` whose branch deadline has passed by `retention` or more, by the store's
    /// clock, and that no unfinished journal entry needs.
    fn old_evidence(
        &self,
        cluster: ClusterId,
        retention: Duration,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<EvidenceRow>, Unresolved>> + Send;

    /// Deletes these rows by key, keeping the newest log position they hold.
    fn forget(&self, branches: &[BranchId]) -> impl Future<Output = Result<(), Unresolved>> + Send;
}

/// The wall clock: only for what people read and for a store's own bookkeeping, never for a decision.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place where stores read it")]
pub fn wall_clock() -> SystemTime {
    SystemTime::now()
}
