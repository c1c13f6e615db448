//! A MariaDB or MySQL database as a participant: XA, and an evidence row for every branch.
//!
//! Read in this order:
//! - `branch`: a branch while it is open, and how it is prepared. `session`: how its session is ended from outside. `waits`: what it
//!   waits for.
//! - `recovery`: how a prepared branch is finished, and what is found out about one that is not there. `kept`: why the session
//!   that prepared it should do so.
//! - `evidence`: the table that proves it, and pruning. `inspect`: what a person is shown.
//! - `attach`: our tables and our identity. What a server has to be, [`crate::doctor`] judges; `look`: what it sees.
//! - `sql`: every statement. `refusal`: every refusal in words. `connection`: who holds a connection, and when
//!   it is closed.
//!
//! It must never take the server's word for more than it said: that an XA branch is unknown says nothing about what became
//! of it, that XA PREPARE succeeded says nothing about the statements before it, and an error on a connection says
//! nothing about what the server did.
//!
//! What is left to the service: its pool, its SQL, its isolation level, which it chooses for its pool's sessions. On a
//! branch's connection it may do whatever InnoDB can roll back; sqlx's own `begin()` makes a savepoint there. COMMIT,
//! ROLLBACK and statements that commit by themselves, such as CREATE TABLE, are refused by the server. A statement that failed
//! turns the branch down, whether its error was returned or not: a lock that was waited for in vain undoes one statement and
//! leaves the others, and nobody could tell a branch with half of its work from one whose service meant it so. Instead of
//! catching a duplicate key, use INSERT … ON DUPLICATE KEY UPDATE or INSERT IGNORE. What fails before it reaches an
//! engine (a syntax error, a missing table, SIGNAL) has done nothing and can't be noticed. Temporary tables, and
//! changes to tables of other engines, turn the branch down as well; what was written to the latter stays. A handler that chooses
//! `autocommit` hides them. The session's user locks whose names begin with `lockstep-` are not the handler's: after RELEASE_ALL_LOCKS a
//! handler that is dropped while it waits for a row keeps its locks until the branch's deadline.
//!
//! What an operator sees: three tables in the service's database, `lockstep_evidence`, `lockstep_identity` and `lockstep_positions`; XA
//! branches with the format id 1819239275; up to 8 connections beside the service's. A branch's connection is closed at the branch's end, or half a
//! second after it was prepared, and the pool opens a new one. A commit waits for the disk twice, the first time for the position of its
//! decision (P8), unless another one has kept that or a newer one just before. XA branches have no owner: whoever can log in to the
//! server and knows a branch's name can end it, so such a name is not to be shown to strangers.
//!
//! Tested with MariaDB. Everything here is written for MySQL from 8.0.30 as well, and untested with it. (Its usual way of
//! asking for a password needs TLS, the socket, or sqlx's feature `mysql-rsa`.)

mod attach;
mod branch;
mod connection;
mod evidence;
mod inspect;
mod kept;
pub(crate) mod look;
mod recovery;
mod refusal;
mod session;
pub(crate) mod sql;
mod waits;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lockstep_proto::{ClusterId, Epoch, Gtrid, LogPosition, ResourceManagerName, Xid};
use sqlx::{MySqlConnection, MySqlPool};

pub use self::branch::OpenBranch;
use self::kept::Kept;
use self::sql::Schema;
use self::waits::Waits;
use super::newest::Newest;
use super::{
    Attachment, BranchId, EvidenceRow, Fate, Inspection, Prepared, Resource, ResourceError, Room, Unresolved,
};

/// A MariaDB or MySQL database that takes part through the service's own pool.
///
/// Branches use connections of that pool, so it bounds how many are open at once. Everything else (finishing
/// prepared branches, listing them, pruning) uses up to 8 connections of its own, opened when needed: a pool
/// full of branches that wait for their decision must not keep the decisions out. Each is replaced after half an hour of use: for a moment
/// there are both.
#[derive(Debug)]
pub struct MySql {
    pool: MySqlPool,
    own: connection::OwnPool,
    kept: Kept,
    /// As which it attached.
    name: OnceLock<ResourceManagerName>,
    /// Where our tables are; known after attaching.
    schema: OnceLock<Schema>,
    newest: Arc<Newest>,
    waits: Waits,
}

impl MySql {
    /// Takes part with the database of `pool`, which has to be named in the pool's options. Nothing is connected yet. Call it
    /// where tokio runs, as for the pool itself.
    #[must_use]
    pub fn new(pool: MySqlPool) -> Self {
        let newest = Arc::new(Newest::default());
        let own = connection::own_pool((*pool.connect_options()).clone(), Arc::clone(&newest));
        Self {
            waits: Waits::new(own.clone()),
            pool,
            own,
            kept: Kept::default(),
            name: OnceLock::new(),
            schema: OnceLock::new(),
            newest,
        }
    }

    /// As which it attached, and where its tables are.
    fn attached(&self) -> Result<(&ResourceManagerName, &Schema), Unresolved> {
        let attached = self.name.get().zip(self.schema.get());
        attached.ok_or_else(|| Unresolved("the database was not attached yet".to_owned()))
    }
}

impl Resource for MySql {
    type Connection = MySqlConnection;
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
        let schema = self.schema.get_or_init(|| found.schema.clone());
        if *schema != found.schema {
            return Err(ResourceError::Unfit(format!(
                "the pool connects to database {}, and has been attached with {}",
                found.schema.quoted(),
                schema.quoted()
            )));
        }
        Ok(Attachment { seen: self.newest.found(found.attachment.seen), ..found.attachment })
    }

    async fn bind(&self, cluster: ClusterId) -> Result<(), Unresolved> {
        let (name, schema) = self.attached()?;
        recovery::run(&self.own, schema.bind(name, cluster)).await.map(drop)
    }

    async fn begin(&self, branch: &BranchId, remaining: Duration) -> Result<OpenBranch, ResourceError> {
        branch::begin(&self.pool, &self.own, &self.waits, branch, remaining).await
    }

    fn connection(open: &mut OpenBranch) -> &mut MySqlConnection {
        open.lease.connection()
    }

    fn connection_ref(open: &OpenBranch) -> &MySqlConnection {
        open.lease.connection_ref()
    }

    fn awaited_lock(open: &OpenBranch, error: &(dyn std::error::Error + 'static)) -> Option<String> {
        refusal::awaited_lock(open.watch.found(), error)
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
        branch::prepare(&self.own, &self.kept, branch, open, self.attached()?.1, position).await
    }

    async fn commit_one_phase(
        &self,
        branch: &BranchId,
        open: OpenBranch,
        position: &LogPosition,
    ) -> Result<Fate, Unresolved> {
        self.newest.told(position);
        branch::commit_one_phase(&self.own, branch, open, self.attached()?.1, position).await
    }

    async fn discard(&self, open: OpenBranch) {
        open.roll_back().await;
    }

    async fn commit(&self, branch: &BranchId, position: &LogPosition) -> Result<Fate, Unresolved> {
        self.newest.told(position);
        let (name, schema) = self.attached()?;
        let keeper = recovery::Keeper { schema, name, newest: &self.newest };
        recovery::commit(&self.own, &self.kept, keeper, branch, position).await
    }

    async fn rollback(&self, branch: &BranchId, position: &LogPosition) -> Result<Fate, Unresolved> {
        self.newest.told(position);
        recovery::rollback(&self.own, &self.kept, self.attached()?.1, branch, position).await
    }

    /// The same as [`MySql::commit`]: a branch that was told to commit in one phase and is prepared is to be
    /// committed, and one that is neither prepared nor committed is fenced, whoever asks.
    async fn prove(&self, branch: &BranchId, position: &LogPosition) -> Result<Fate, Unresolved> {
        self.commit(branch, position).await
    }

    async fn prepared(&self, cluster: ClusterId, name: &ResourceManagerName) -> Result<Vec<Xid>, Unresolved> {
        recovery::prepared(&self.own, cluster, name).await
    }

    /// InnoDB has no limit of prepared branches; the pool has one of open ones.
    async fn room(&self, name: &ResourceManagerName) -> Result<Option<Room>, Unresolved> {
        let _anyone = name;
        let connections = usize::try_from(self.pool.options().get_max_connections()).unwrap_or(usize::MAX);
        Ok(Some(Room { slots: usize::MAX, prepared: Vec::new(), prepared_by_others: 0, connections }))
    }

    async fn oldest_evidence(&self, cluster: ClusterId) -> Result<Option<Gtrid>, Unresolved> {
        let (name, schema) = self.attached()?;
        evidence::oldest(&self.own, schema, name, cluster).await
    }

    async fn old_evidence(
        &self,
        cluster: ClusterId,
        retention: Duration,
        limit: usize,
    ) -> Result<Vec<EvidenceRow>, Unresolved> {
        let (name, schema) = self.attached()?;
        evidence::old(&self.own, schema, name, cluster, retention, limit).await
    }

    async fn inspect(
        &self,
        name: &ResourceManagerName,
        cluster: ClusterId,
        gtrid: Option<Gtrid>,
    ) -> Result<Inspection, Unresolved> {
        inspect::inspect(&self.own, self.attached()?.1, name, cluster, gtrid).await
    }

    async fn forget(&self, branches: &[BranchId]) -> Result<(), Unresolved> {
        let (name, schema) = self.attached()?;
        evidence::forget(&self.own, schema, name, branches).await
    }

    async fn settle(&self, position: &LogPosition, epochs: &[Epoch]) -> Result<(), Unresolved> {
        let (name, schema) = self.attached()?;
        evidence::settle(&self.own, schema.settle(name, position, epochs)).await?;
        self.newest.settled(epochs);
        Ok(())
    }
}
