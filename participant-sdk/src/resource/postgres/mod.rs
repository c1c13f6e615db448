//! A PostgreSQL database as a participant: `PREPARE TRANSACTION`, and an evidence row for every branch.
//!
//! Read in this order:
//! - `branch`: a branch while it is open, and how it is prepared.
//! - `recovery`: how a prepared branch is finished, and what is found out about one that is not there.
//! - `evidence`: the table that proves it, and pruning. `inspect`: what a person is shown.
//! - `attach`: our tables, and the identity. What a server has to be, [`crate::doctor`] judges.
//! - `schema`: our tables and functions, as they are made. `sql`: every statement. `refusal`: every refusal in words.
//!   `connection`: who holds a connection, and when it is closed.
//!
//! It must never take PostgreSQL's word for more than it said: that a prepared transaction does not exist says
//! nothing about what became of it, and an error on a connection says nothing about what the server did.
//!
//! What is left to the service: its pool, its SQL, its isolation level. On a branch's connection it may do
//! whatever can be prepared (no temporary tables, LISTEN or NOTIFY together with writes), and neither COMMIT
//! nor ROLLBACK; sqlx's own `begin()` makes a savepoint there. A COMMIT all the same can't be undone: it is found when the
//! branch is prepared, and ends as a *hazard*, a heuristic outcome (one that the handler does not finish is not looked at).
//! A NOTIFY in a branch that writes nothing is never published. The connection returns to the service's pool, as after any other
//! use of it: what a plain `SET` or a session's advisory lock left behind is still there.
//!
//! What an operator sees: a schema `lockstep` with three tables and two functions, prepared transactions whose names begin with
//! `lockstep:`, up to 8 connections called `lockstep` beside the service's, and in the server's log an ERROR
//! for each branch that is turned down, with what our function was doing as its context. The one that names
//! `branch_read_only_and_not_prepared` is none: the branch had only read.
//!
//! A role must not be named `lockstep`: PostgreSQL's usual `search_path` begins with `"$user"`, so that what such a role creates
//! goes into our schema.

mod attach;
mod branch;
mod connection;
mod evidence;
mod inspect;
mod recovery;
mod refusal;
pub(crate) mod schema;
pub(crate) mod sql;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lockstep_proto::{ClusterId, Epoch, Gtrid, LogPosition, ResourceManagerName, Xid};
use sqlx::{PgConnection, PgPool};

pub use self::branch::OpenBranch;
use self::schema::Callable;
use super::newest::Newest;
use super::{
    Attachment, BranchId, EvidenceRow, Fate, Inspection, Prepared, Resource, ResourceError, Room, Unresolved,
};

/// A PostgreSQL database that takes part through the service's own pool.
///
/// Branches use connections of that pool, so it bounds how many are open at once; four for each may wait for one, at most
/// half of the time that their transactions have left. How many can be prepared, `max_prepared_transactions` bounds for the
/// whole server. A branch for which there is no slot or no place to wait is refused with [`crate::JoinError::NoRoom`] before
/// anything is begun: open and prepared branches of this process are counted exactly, the prepared ones of others as they
/// were a second ago at most, and branches that others have open not at all. Where instances or applications share a
/// server, one of them may still find all slots taken at prepare: it then votes rollback, and says so.
/// Everything else (finishing
/// prepared branches, listing them, pruning) uses up to 8 connections of its own, opened when needed: a pool
/// full of branches that wait for their decision must not keep the decisions out. Each is replaced after half an hour of use: for a moment
/// there are both.
#[derive(Debug)]
pub struct Postgres {
    pool: PgPool,
    own: connection::OwnPool,
    /// As which it attached.
    name: OnceLock<ResourceManagerName>,
    /// Whether the server can notice that its client is gone while a statement runs; known after attaching.
    can_watch_client: AtomicBool,
    functions: Callable,
    newest: Arc<Newest>,
}

impl Postgres {
    /// Takes part with the database of `pool`. Nothing is connected yet. Call it where tokio runs, as for the
    /// pool itself.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        let newest = Arc::new(Newest::default());
        let own = connection::own_pool((*pool.connect_options()).clone(), Arc::clone(&newest));
        let can_watch_client = AtomicBool::new(false);
        Self { pool, own, name: OnceLock::new(), can_watch_client, functions: Callable::default(), newest }
    }

    fn name(&self) -> Result<&ResourceManagerName, Unresolved> {
        self.name.get().ok_or_else(|| Unresolved("the database was not attached yet".to_owned()))
    }
}

impl Resource for Postgres {
    type Connection = PgConnection;
    type Open = OpenBranch;

    async fn attach(&self, name: &ResourceManagerName) -> Result<Attachment, ResourceError> {
        let attached = self.name.get_or_init(|| name.clone());
        if attached != name {
            return Err(ResourceError::Unfit(format!(
                "this database is attached as {attached}, not as {name}"
            )));
        }
        // The service may have changed them since, such as a password.
        self.own.set_options((*self.pool.connect_options()).clone());
        let found = attach::attach(&self.own, name).await?;
        self.can_watch_client.store(found.can_watch_client, Ordering::Relaxed);
        self.functions.found(found.has_functions);
        Ok(Attachment { seen: self.newest.found(found.attachment.seen), ..found.attachment })
    }

    async fn bind(&self, cluster: ClusterId) -> Result<(), Unresolved> {
        recovery::run(&self.own, sql::bind(self.name()?, cluster)).await.map(drop)
    }

    async fn begin(&self, branch: &BranchId, remaining: Duration) -> Result<OpenBranch, ResourceError> {
        branch::begin(&self.pool, branch, remaining, self.can_watch_client.load(Ordering::Relaxed)).await
    }

    fn connection(open: &mut OpenBranch) -> &mut PgConnection {
        open.lease.connection()
    }

    fn connection_ref(open: &OpenBranch) -> &PgConnection {
        open.lease.connection_ref()
    }

    fn awaited_lock(_open: &OpenBranch, error: &(dyn std::error::Error + 'static)) -> Option<String> {
        refusal::awaited_lock(error)
    }

    async fn has_written(open: &mut OpenBranch) -> bool {
        branch::has_written(open).await
    }

    async fn prepare(
        &self,
        branch: &BranchId,
        open: OpenBranch,
        position: &LogPosition,
    ) -> Result<Prepared, Unresolved> {
        self.newest.told(position);
        branch::prepare(&self.own, branch, open, position, &self.functions).await
    }

    async fn commit_one_phase(
        &self,
        branch: &BranchId,
        open: OpenBranch,
        position: &LogPosition,
    ) -> Result<Fate, Unresolved> {
        self.newest.told(position);
        branch::commit_one_phase(&self.own, branch, open, position, &self.functions).await
    }

    async fn discard(&self, open: OpenBranch) {
        branch::discard(open).await;
    }

    async fn commit(&self, branch: &BranchId, position: &LogPosition) -> Result<Fate, Unresolved> {
        self.newest.told(position);
        recovery::commit(&self.own, self.name()?, &self.newest, branch, position, &self.functions).await
    }

    async fn rollback(&self, branch: &BranchId, position: &LogPosition) -> Result<Fate, Unresolved> {
        self.newest.told(position);
        recovery::rollback(&self.own, branch, position).await
    }

    /// The same as [`Postgres::commit`]: a branch that was told to commit in one phase and is prepared is to be
    /// committed, and one that is neither prepared nor committed is fenced, whoever asks.
    async fn prove(&self, branch: &BranchId, position: &LogPosition) -> Result<Fate, Unresolved> {
        self.commit(branch, position).await
    }

    async fn prepared(&self, cluster: ClusterId, name: &ResourceManagerName) -> Result<Vec<Xid>, Unresolved> {
        recovery::prepared(&self.own, cluster, name).await
    }

    async fn room(&self, name: &ResourceManagerName) -> Result<Option<Room>, Unresolved> {
        let connections = usize::try_from(self.pool.options().get_max_connections()).unwrap_or(usize::MAX);
        recovery::room(&self.own, name, connections).await.map(Some)
    }

    async fn oldest_evidence(&self, cluster: ClusterId) -> Result<Option<Gtrid>, Unresolved> {
        evidence::oldest(&self.own, self.name()?, cluster).await
    }

    async fn old_evidence(
        &self,
        cluster: ClusterId,
        retention: Duration,
        limit: usize,
    ) -> Result<Vec<EvidenceRow>, Unresolved> {
        evidence::old(&self.own, self.name()?, cluster, retention, limit).await
    }

    async fn inspect(
        &self,
        name: &ResourceManagerName,
        cluster: ClusterId,
        gtrid: Option<Gtrid>,
    ) -> Result<Inspection, Unresolved> {
        inspect::inspect(&self.own, name, cluster, gtrid).await
    }

    async fn forget(&self, branches: &[BranchId]) -> Result<(), Unresolved> {
        evidence::forget(&self.own, self.name()?, branches).await
    }

    async fn settle(&self, position: &LogPosition, epochs: &[Epoch]) -> Result<(), Unresolved> {
        recovery::run(&self.own, sql::settle(self.name()?, position, epochs)).await?;
        self.newest.settled(epochs);
        Ok(())
    }
}
