//! A SQLite file as a resource.
//!
//! SQLite has no prepared transactions. A branch is prepared here by writing what it changed to a journal beside the
//! database while its write transaction stays open; if the process dies, the next one writes the same rows again from
//! the journal and holds them, uncommitted, until the decision is known. An evidence row in the same transaction tells whether a
//! branch has committed.
//!
//! ```no_run
//! # async fn example() -> Result<(), sqlx::Error> {
//! let pool = sqlx::SqlitePool::connect("sqlite:///var/lib/bank/bank.db").await?;
//! let resource = lockstep::resource::sqlite::Sqlite::new(pool.clone());
//! # Ok(()) }
//! ```
//!
//! # One writer
//!
//! A SQLite file has one writer at a time, and a branch holds that place from its first statement until its transaction is
//! decided, over all of two-phase commit. So:
//!
//! - Throughput is one branch at a time. Keep branches short, and do slow things (calls to others, above all) before
//!   the branch is begun. [`Resource::begin`] waits for its turn until the transaction's deadline; the error says
//!   which branch has the file.
//! - Two branches of one global transaction in the same file wait for each other until the deadline. Transactions over several
//!   files should take them in one order.
//! - Reads through the service's own pool are never blocked. They see the committed state: not what is prepared.
//! - Plain writes through the service's own pool wait for SQLite's lock, as long as their `busy_timeout` says, and then
//!   fail with `database is locked`. Use [`Sqlite::local_write`] instead: it queues with the branches.
//! - One process serves a file: a lock file beside it sees to that, also against a second pool in the same process.
//!
//! # What a handler finds on its connection
//!
//! An ordinary `sqlx::SqliteConnection` with the settings of the pool's *connect options*; what a pool's `after_connect` does
//! is not done on it. `begin()` on it makes a savepoint. It cannot commit: a commit hook turns any attempt into a rollback, and
//! the branch then votes no. A service that replaces that hook and ends the transaction makes the branch a hazard. After the transaction's deadline its statements are interrupted; the file's lock is free when
//! the handler lets the branch go, which only the handler can do.
//!
//! Changes are captured by TEMP triggers on every table. What that means:
//!
//! - `recursive_triggers` is on, so that a row displaced by REPLACE is seen. It lets a trigger of the service's own
//!   that changes its own table fire itself again, and `INSERT OR REPLACE` fires delete triggers.
//! - Virtual tables (FTS, R-tree) anywhere in the file, attached databases, and changes of the schema, of `user_version` or
//!   of `application_id` inside a branch are refused. Names that begin with `lockstep_` belong to the SDK.
//! - What ANALYZE writes in a branch counts as nothing: it is lost with a crash, and a branch that does nothing else is
//!   read-only.
//! - `total_changes()` counts the notes that the triggers make; `changes()` and `last_insert_rowid()` do not.
//! - A branch that changes more than 64 MiB of rows, before and after together, is refused.
//!
//! # What a writer that does not use the SDK can break
//!
//! While the process lives, nothing: SQLite's lock keeps every other writer out of a prepared branch's file. When the
//! process has died with a branch prepared, that lock is gone until [`Resource::attach`] has taken it again. Whoever writes in
//! between (another program, the `sqlite3` shell, or this service's own pool before it attaches: *attach first, migrate
//! later*) gets in.
//!
//! - If it changes rows that the prepared branch changed, or the definition of their table, the branch cannot be
//!   written again. Nothing is overwritten. Nothing is written through the SDK until the decision is known. If it is
//!   rollback, all is well. If it is commit, the outcome is a *hazard*: recorded as heuristic at the coordinator, and a
//!   text file beside the database says what the branch would have changed. Then the file is served again.
//! - If it reads, it sees a state without the branch, as every reader does before the commit.
//! - If it changes other rows, nothing is lost; but what it decided on may be what the branch was about to change.
//!
//! The files `<db>-lockstep` and `<db>-lockstep-lock` belong to the database as its `-wal` does. Whoever removes the
//! journal, or restores the database from a copy, makes prepared branches disappear; their commit is then reported as
//! heuristic. Rows of `lockstep_evidence` deleted by hand make committed branches look as if they had not been.
//!
//! # Reading order
//!
//! `decided` (the order of durable effects), `store` and `slot` (who may write, what is held), `branch` and `ending` (an open
//! branch and its ends), `capture` (what it changed), `journal` and `entry` (what is written), `recovery` and `replay`
//! (after a crash), `evidence` (what is proved), `writer` and `connection` (what is asked of SQLite), `turn` and `files`; `look` (what a
//! doctor sees).

mod branch;
mod capture;
mod connection;
mod decided;
mod ending;
mod entry;
mod evidence;
mod files;
mod foreign_keys;
mod hazard;
mod journal;
mod local;
pub(crate) mod look;
mod recovery;
mod replay;
mod schema;
mod slot;
mod store;
mod turn;
mod value;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use lockstep_proto::{ClusterId, Epoch, Gtrid, LogPosition, ResourceManagerName, Xid};
use sqlx::{SqliteConnection, SqlitePool};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::{
    Attachment, BranchId, EvidenceRow, Fate, Found, Inspected, Inspection, Prepared, Resource, ResourceError,
    Unresolved,
};
pub use branch::OpenBranch;
pub use local::LocalWrite;
use store::Store;

/// A SQLite file that takes part in global transactions. Clones share it.
#[derive(Debug, Clone)]
pub struct Sqlite {
    pool: SqlitePool,
    /// There from the first successful attach on.
    store: Arc<OnceCell<Arc<Store>>>,
}

impl Sqlite {
    /// The file that `pool` is connected to. The pool stays the service's: the resource opens connections of its own,
    /// with the pool's connect options, when it attaches.
    #[must_use]
    pub fn new(pool: SqlitePool) -> Self {
        Self { pool, store: Arc::default() }
    }

    /// Begins a write of the service's own, outside of any global transaction, waiting at most `wait` for branches and other
    /// local writes to end.
    ///
    /// # Errors
    ///
    /// [`ResourceError::Unavailable`] if the resource was not attached yet, if the file was not free within `wait`
    /// (the error says what holds it), or if the pool has no connection or cannot write.
    pub async fn local_write(&self, wait: Duration) -> Result<LocalWrite, ResourceError> {
        let store = self.attached()?;
        let deadline = Instant::now() + wait;
        let turn = store.enter("a local write".into(), turn::Order::Ordinary, deadline).await?;
        let begun = tokio::time::timeout_at(deadline, self.pool.begin_with("BEGIN IMMEDIATE"));
        let transaction = match begun.await {
            Ok(begun) => begun.map_err(connection::unavailable("beginning a local write"))?,
            Err(_elapsed) => {
                return Err(ResourceError::Unavailable(
                    "a local write could not begin in time: the pool has no free connection, or a writer that does not use the \
                     SDK has the file"
                        .into(),
                ));
            }
        };
        store.check_journal().await?;
        Ok(LocalWrite::new(transaction, turn))
    }

    fn attached(&self) -> Result<&Arc<Store>, ResourceError> {
        self.store
            .get()
            .ok_or_else(|| ResourceError::Unavailable("the SQLite resource is not attached yet".into()))
    }

    fn store(&self) -> Result<Arc<Store>, Unresolved> {
        self.attached().cloned().map_err(unresolved)
    }
}

fn unresolved(error: ResourceError) -> Unresolved {
    match error {
        ResourceError::Unfit(why) | ResourceError::Unavailable(why) => Unresolved(why),
    }
}

fn failed(what: &'static str) -> impl FnOnce(sqlx::Error) -> Unresolved {
    move |error| Unresolved(format!("{what}: {error}"))
}

/// Runs a step of the protocol to its end, even if whoever asked for it goes away in the middle.
async fn in_own_task<T: Send + 'static>(step: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(step).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that shuts down cancels it, and then this task is not run any more either.
            Err(_cancelled) => std::future::pending().await,
        },
    }
}

impl Resource for Sqlite {
    type Connection = SqliteConnection;
    type Open = OpenBranch;

    async fn attach(&self, name: &ResourceManagerName) -> Result<Attachment, ResourceError> {
        let options = (*self.pool.connect_options()).clone();
        let cell = Arc::clone(&self.store);
        let store = in_own_task(async move {
            let store = cell.get_or_try_init(|| Store::open(options)).await?;
            store.ready().await?;
            Ok(Arc::clone(store))
        })
        .await?;
        tracing::info!(%name, database = %store.file.path().display(), identity = %store.identity, "attached");
        let mut reader = store.reader().await;
        Ok(Attachment {
            identity: store.identity,
            cluster: evidence::cluster(&mut reader).await.map_err(connection::unavailable("the cluster"))?,
            seen: evidence::newest_positions(&mut reader)
                .await
                .map_err(connection::unavailable("the newest log positions"))?,
            location: store.file.location()?,
            timeline: 0,
        })
    }

    async fn bind(&self, cluster: ClusterId) -> Result<(), Unresolved> {
        let store = self.store()?;
        in_own_task(async move { store.bind(cluster).await }).await
    }

    async fn begin(&self, branch: &BranchId, remaining: Duration) -> Result<OpenBranch, ResourceError> {
        self.attached()?.begin(branch, remaining).await
    }

    fn connection(open: &mut OpenBranch) -> &mut SqliteConnection {
        open.connection()
    }

    fn connection_ref(open: &OpenBranch) -> &SqliteConnection {
        open.connection_ref()
    }

    async fn has_written(open: &mut OpenBranch) -> bool {
        open.has_written().await
    }

    async fn prepare(
        &self,
        branch: &BranchId,
        open: OpenBranch,
        position: &LogPosition,
    ) -> Result<Prepared, Unresolved> {
        assert_eq!(branch, open.branch(), "a branch is prepared with its own transaction");
        let (store, position) = (self.store()?, *position);
        in_own_task(async move { ending::prepare(&store, open, &position).await }).await
    }

    async fn commit_one_phase(
        &self,
        branch: &BranchId,
        open: OpenBranch,
        position: &LogPosition,
    ) -> Result<Fate, Unresolved> {
        assert_eq!(branch, open.branch(), "a branch is committed with its own transaction");
        let (store, position) = (self.store()?, *position);
        in_own_task(async move { ending::commit_one_phase(&store, open, &position).await }).await
    }

    async fn discard(&self, open: OpenBranch) {
        in_own_task(open.close()).await;
    }

    async fn commit(&self, branch: &BranchId, position: &LogPosition) -> Result<Fate, Unresolved> {
        let (store, branch, position) = (self.store()?, branch.clone(), *position);
        in_own_task(async move { store.commit(&branch, &position).await }).await
    }

    async fn rollback(&self, branch: &BranchId, position: &LogPosition) -> Result<Fate, Unresolved> {
        let (store, branch, position) = (self.store()?, branch.clone(), *position);
        in_own_task(async move { store.rollback(&branch, &position).await }).await
    }

    /// The same as [`Resource::commit`] here: what is prepared is committed, and what is not is proved.
    async fn prove(&self, branch: &BranchId, position: &LogPosition) -> Result<Fate, Unresolved> {
        self.commit(branch, position).await
    }

    async fn prepared(&self, cluster: ClusterId, name: &ResourceManagerName) -> Result<Vec<Xid>, Unresolved> {
        let slot = self.store()?.known_slot().await.map_err(unresolved)?;
        let ours = slot.branch().filter(|branch| {
            branch.cluster == cluster && branch.xid.bqual.resource_manager_str() == name.as_str()
        });
        Ok(ours.map(|branch| branch.xid.clone()).into_iter().collect())
    }

    async fn oldest_evidence(&self, cluster: ClusterId) -> Result<Option<Gtrid>, Unresolved> {
        let store = self.store()?;
        drop(store.known_slot().await.map_err(unresolved)?);
        let mut reader = store.reader().await;
        evidence::oldest(&mut reader, cluster).await.map_err(failed("the oldest evidence"))
    }

    async fn old_evidence(
        &self,
        cluster: ClusterId,
        retention: Duration,
        limit: usize,
    ) -> Result<Vec<EvidenceRow>, Unresolved> {
        let store = self.store()?;
        let journaled = store.known_slot().await.map_err(unresolved)?.branch().cloned();
        let mut rows = evidence::old(&mut *store.reader().await, cluster, retention, limit)
            .await
            .map_err(failed("the old evidence"))?;
        rows.retain(|row| Some(&row.branch) != journaled.as_ref());
        Ok(rows)
    }

    /// SQLite says neither since when a branch is prepared nor who waits for it: every writer of the file does.
    async fn inspect(
        &self,
        name: &ResourceManagerName,
        cluster: ClusterId,
        gtrid: Option<Gtrid>,
    ) -> Result<Inspection, Unresolved> {
        let store = self.store()?;
        let prepared = store.known_slot().await.map_err(unresolved)?.branch().cloned();
        let wanted = |branch: &BranchId| {
            branch.xid.bqual.resource_manager_str() == name.as_str()
                && gtrid.is_none_or(|gtrid| branch.xid.gtrid == gtrid)
        };
        let found = |branch| Inspected { branch, found: Found::Prepared, at_ms: 0 };
        let mut branches: Vec<_> = prepared.into_iter().filter(wanted).map(found).collect();
        if let Some(gtrid) = gtrid {
            let mut reader = store.reader().await;
            let rows = evidence::of_transaction(&mut reader, cluster, gtrid).await;
            for (branch, fate, at_ms) in rows.map_err(failed("the evidence"))? {
                branches.push(Inspected { branch, found: Found::Ended(fate), at_ms });
            }
        }
        let blocked = Err("SQLite does not say who waits: every writer of the file does".to_owned());
        Ok(Inspection { branches, blocked })
    }

    async fn forget(&self, branches: &[BranchId]) -> Result<(), Unresolved> {
        let (store, branches) = (self.store()?, branches.to_vec());
        in_own_task(async move { store.forget(&branches).await }).await
    }

    async fn settle(&self, position: &LogPosition, epochs: &[Epoch]) -> Result<(), Unresolved> {
        let (store, position, epochs) = (self.store()?, *position, epochs.to_vec());
        in_own_task(async move { store.let_go(position, &epochs).await }).await
    }
}
