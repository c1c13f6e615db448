//! What a store has to be able to do to take part in a global transaction.
//!
//! [`Resource`] is the edge between the protocol, which the SDK owns, and one store, which an implementation owns:
//! `postgres` (`PREPARE TRANSACTION`), `mysql` (XA), `sqlite` (a journal beside the file), and whatever is written outside of this
//! crate. An implementation never decides anything: it
//! prepares, commits, rolls back, and says truthfully what became of a branch, or that it cannot tell.
//!
//! Three answers that must never be mixed up, and so have three types: *done* ([`Fate`]), *refused* ([`Prepared::No`])
//! and *not known* ([`Unresolved`]). The evidence row (protocol.md, P15 to P19) is what makes the first one provable.

pub mod inspection;
#[cfg(feature = "mysql")]
pub mod mysql;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod newest;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod own;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "sqlite")]
pub mod sqlite;

use std::future::Future;
use std::time::{Duration, SystemTime};

pub use inspection::{Blocked, Found, Inspected, Inspection};
pub use lockstep_proto::limits::MAX_TIMEOUT;
pub use lockstep_proto::{
    Bqual, ClusterId, Epoch, Gtrid, Incarnation, LogPosition, ParseIdError, Positions, ResourceManagerId,
    ResourceManagerName, Xid,
};

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
    type Err = ParseIdError;

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
    /// The newest place in the decision log that it has seen of *each* epoch (from evidence rows and what pruning kept of them).
    pub seen: Positions,
    /// Where it lives, if a change of it matters; else empty.
    pub location: String,
    /// PostgreSQL's timeline, 0 elsewhere.
    pub timeline: u32,
}

/// How many branches a store can have at a time, and how many there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// Branches that can be prepared at a time, whoever prepares them.
    pub slots: usize,
    /// The prepared branches of this resource manager, whichever instance has prepared them.
    pub prepared: Vec<BranchId>,
    /// What others have prepared, and takes a slot too.
    pub prepared_by_others: usize,
    /// Connections that branches can have at a time, each one until it is prepared.
    pub connections: usize,
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
///
/// # Implementing it for a store of one's own
///
/// It need not be a database. What it has to have is a place where one write is durable or not there at all: a synced line of a
/// file, one conditional put of an object store, one call of a service that keeps what it has confirmed. An API that can
/// *try*, *confirm* and *cancel* fits as it is:
///
/// | the business | the protocol |
/// |---|---|
/// | try, not binding | work in an open branch |
/// | try, binding: kept until it is told | [`Resource::prepare`] |
/// | confirm | [`Resource::commit`] |
/// | cancel, also of what was never tried | [`Resource::rollback`] |
/// | what became of it? | [`Resource::prove`], [`Resource::prepared`] |
///
/// Five things make the difference between an API of that kind and a participant:
///
/// 1. **A yes is a promise.** When [`Resource::prepare`] answers [`Prepared::Yes`], the branch survives any crash, and a commit cannot
///    fail any more for a reason of the business: what it needs was put aside. There is no timeout after which the store may forget it.
/// 2. **A no is for ever.** A rollback of a branch that the store has never heard of leaves a *fence* under its name, durably, before
///    it is answered: the prepare may still be on its way. An expired *try* is one thing; one that comes after its *cancel* another.
/// 3. **The end leaves evidence**, written in one with the work: a second commit, and whoever lost the first one's answer, is told
///    from it. It stays until [`Resource::forget`].
/// 4. **What is not known is said to be not known.** After a timeout, a cut connection or a failed sync, the answer is
///    [`Unresolved`], never a guess. The caller asks again, as long as it takes.
/// 5. **What was begun goes on.** Each method is called from a task that can be dropped at any await. What is left then must be what a lost
///    reply leaves: done or not done, never half. To spawn the step, and to wait for that, is one way.
///
/// `testing::contract` (feature `testing`) tries whether a store keeps all of this, without a coordinator, and says in words what
/// it does not keep. `docs/own-resource.md` walks through a complete example, `participant-sdk/examples/reservations`.
pub trait Resource: Send + Sync + 'static {
    /// What a handler works with, such as `sqlx::PgConnection`.
    type Connection: Send;
    /// A branch's local transaction while it is open: owns its connection. Dropping it must leave the store as after
    /// [`Resource::discard`], as soon as the store can.
    type Open: Send + 'static;

    /// Checks that the store is fit (versions, durability settings, slots), creates what the SDK keeps in it, and
    /// brings prepared branches of a crashed process back under control. Called before anything else, and again after a
    /// lost connection, while branches may be open or prepared: it disturbs none of them.
    ///
    /// # Errors
    /// [`ResourceError::Unfit`] ends the attempt, and a person has to mend something; [`ResourceError::Unavailable`] has it tried
    /// again.
    fn attach(
        &self,
        name: &ResourceManagerName,
    ) -> impl Future<Output = Result<Attachment, ResourceError>> + Send;

    /// Stores `cluster` as the one this store belongs to, durably, if none is stored yet. Success says that one is stored, not
    /// which: the caller attaches again to see.
    fn bind(&self, cluster: ClusterId) -> impl Future<Output = Result<(), Unresolved>> + Send;

    /// Opens the branch's local transaction. `remaining`: until the global transaction's deadline; the store itself
    /// ends the branch soon after that (P19), and waits for no lock longer. Soon: within some seconds, after which it is neither
    /// prepared nor committed in one phase, whoever was stopped meanwhile.
    ///
    /// # Errors
    /// [`ResourceError`]: nothing is open then.
    fn begin(
        &self,
        branch: &BranchId,
        remaining: Duration,
    ) -> impl Future<Output = Result<Self::Open, ResourceError>> + Send;

    /// The connection that the handler works with.
    fn connection(open: &mut Self::Open) -> &mut Self::Connection;

    /// The same, shared: what `Deref` of a [`crate::Branch`] gives, without which there is no `DerefMut`.
    fn connection_ref(open: &Self::Open) -> &Self::Connection;

    /// Which lock a statement on the branch's connection waited for in vain, in words that follow "waited for"; `None` if `error` says
    /// nothing of the kind, or the store has no such waits, which is what this says unless implemented.
    #[must_use]
    fn awaited_lock(open: &Self::Open, error: &(dyn std::error::Error + 'static)) -> Option<String> {
        let _says_nothing = (open, error);
        None
    }

    /// Whether the open branch has written anything; asked of a branch that is to vote before the coordinator has asked for it,
    /// while its handler still holds it. Only if so it is prepared then. One that has written nothing would be over with its vote,
    /// and its locks gone, while others still work in the transaction (P23), so it waits for the coordinator. A store that
    /// cannot tell says no, which is what this does unless implemented: its branches never vote early. One that could not be
    /// asked says yes: preparing finds out what is wrong.
    fn has_written(open: &mut Self::Open) -> impl Future<Output = bool> + Send {
        let _never_asked = open;
        async { false }
    }

    /// Prepares: durable when this returns [`Prepared::Yes`], together with its evidence row, which keeps `position`.
    /// [`Prepared::No`] where a fence is in its way.
    ///
    /// # Errors
    /// [`Unresolved`] if it may or may not be prepared: the caller then has [`Resource::rollback`] find out.
    fn prepare(
        &self,
        branch: &BranchId,
        open: Self::Open,
        position: &LogPosition,
    ) -> impl Future<Output = Result<Prepared, Unresolved>> + Send;

    /// Commits without preparing, together with the evidence row, also if nothing was written. [`Fate::RolledBack`] where
    /// a fence is in its way.
    ///
    /// # Errors
    /// [`Unresolved`] if the reply was lost: the caller then has [`Resource::prove`] find out.
    fn commit_one_phase(
        &self,
        branch: &BranchId,
        open: Self::Open,
        position: &LogPosition,
    ) -> impl Future<Output = Result<Fate, Unresolved>> + Send;

    /// Ends an open branch that was never prepared and that no handler holds: closes its connection, or rolls back and
    /// gives it back if its state is known.
    fn discard(&self, open: Self::Open) -> impl Future<Output = ()> + Send;

    /// Commits a prepared branch; where it is not prepared, tells what became of it (as [`Resource::prove`]). `position` is at
    /// least that of the decision, and durable before the commit is visible: by it a log is recognised that has lost the decision (P8).
    ///
    /// # Errors
    /// [`Unresolved`], as long as it cannot be told or done now.
    fn commit(
        &self,
        branch: &BranchId,
        position: &LogPosition,
    ) -> impl Future<Output = Result<Fate, Unresolved>> + Send;

    /// Rolls a prepared branch back; where it is not prepared, fences it and tells what became of it. So a branch that is committed
    /// is answered with [`Fate::Committed`], and that is no error here.
    ///
    /// # Errors
    /// [`Unresolved`], as long as it cannot be told or done now: also while the branch is open.
    fn rollback(
        &self,
        branch: &BranchId,
        position: &LogPosition,
    ) -> impl Future<Output = Result<Fate, Unresolved>> + Send;

    /// Finds out what became of a branch that is not open here, and makes that final: prepared → it is committed (the
    /// caller only asks this of a branch that was told to commit in one phase, P10), evidence → committed, neither → a
    /// fence goes in and it can never commit.
    ///
    /// # Errors
    /// [`Unresolved`], as long as it cannot be told or done now.
    fn prove(
        &self,
        branch: &BranchId,
        position: &LogPosition,
    ) -> impl Future<Output = Result<Fate, Unresolved>> + Send;

    /// All prepared branches of `cluster` in this store that name `name`. Complete, or an error.
    ///
    /// # Errors
    /// [`Unresolved`] if the list might lack one.
    fn prepared(
        &self,
        cluster: ClusterId,
        name: &ResourceManagerName,
    ) -> impl Future<Output = Result<Vec<Xid>, Unresolved>> + Send;

    /// How many branches there is room for; `None` if the store has no such limit. Asked when a branch is about to be
    /// opened and the last answer is a second old, so that one that could not be prepared is refused before it is begun.
    /// Nothing that finishes a branch waits for this.
    fn room(
        &self,
        name: &ResourceManagerName,
    ) -> impl Future<Output = Result<Option<Room>, Unresolved>> + Send {
        let _anyone = name;
        async { Ok(None) }
    }

    /// The oldest transaction of `cluster` with evidence of a commit or of a hazard here; fences need not count. Read after [`Resource::prepared`], never before: a
    /// branch that commits in between is then in at least one of the two.
    fn oldest_evidence(
        &self,
        cluster: ClusterId,
    ) -> impl Future<Output = Result<Option<Gtrid>, Unresolved>> + Send;

    /// Up to `limit` evidence rows of `cluster` whose branch deadline has passed by `retention` or more, by the store's
    /// clock, and that no unfinished journal entry needs. Where a prepared branch was committed after its deadline, the retention counts
    /// from the commit, or from when its row was first seen here: others may have been told to commit it too, and have to find it.
    fn old_evidence(
        &self,
        cluster: ClusterId,
        retention: Duration,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<EvidenceRow>, Unresolved>> + Send;

    /// What the store says to a person who looks: of `gtrid`, the branches of `name` that are prepared and the evidence of those
    /// that have ended (of `cluster`); without one, all prepared branches of `name`, of any cluster. Changes nothing.
    ///
    /// A store that cannot tell says so, which is what this does unless implemented: an operator then sees nothing of it, and may
    /// not roll back what others have left behind.
    fn inspect(
        &self,
        name: &ResourceManagerName,
        cluster: ClusterId,
        gtrid: Option<Gtrid>,
    ) -> impl Future<Output = Result<Inspection, Unresolved>> + Send {
        let _never_asked = (name, cluster, gtrid);
        async { Err(Unresolved("this store does not say what it holds".to_owned())) }
    }

    /// Deletes these rows by key, keeping the newest log position of each epoch that they hold.
    fn forget(&self, branches: &[BranchId]) -> impl Future<Output = Result<(), Unresolved>> + Send;

    /// Keeps `position`, durably, and lets go of what was seen of these earlier epochs: both or neither. A log that has this position
    /// has all of theirs ([`lockstep_proto::positions`]). Else a position stays for every life that a coordinator ever had, which is
    /// safe, and what this does unless implemented.
    fn settle(
        &self,
        position: &LogPosition,
        epochs: &[Epoch],
    ) -> impl Future<Output = Result<(), Unresolved>> + Send {
        let _kept = (position, epochs);
        async { Ok(()) }
    }
}

/// How long a branch may wait for one lock when so much is left until its transaction's deadline: a little less. Two transactions that
/// wait for each other have often begun together; if each waited to the very end, the first to be rolled back would free the
/// other's lock, and nobody would hear what they had waited for.
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) fn lock_wait(left: Duration) -> Duration {
    left.saturating_sub((left / 10).min(Duration::from_secs(1)))
}

/// The wall clock: only for what people read and for a store's own bookkeeping, never for a decision.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place where stores read it")]
pub fn wall_clock() -> SystemTime {
    SystemTime::now()
}
