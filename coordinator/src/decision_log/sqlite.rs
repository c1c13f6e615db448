//! The embedded decision log: one SQLite file in a directory of its own.
//!
//! Read in this order:
//! - `open`: what happens before there is a log, and in which order;
//! - `transaction`: one SQLite transaction, and what a failure in it means;
//! - `append`: decisions and ends, written (the form of a record is in `decision_log/rows.rs`); `hex`: how many of them go into one statement;
//! - `epochs`, `read`, `find`, `prune`, `checkpoint`, `restore`; `audit`: what operators do;
//! - `frozen`: a log that no coordinator has, looked at without changing it; `backup`: a copy of one, while a coordinator runs or not.
//!
//! **Connections.** One writes what is forced (`synchronous=FULL`: an fsync in every COMMIT), one what is lazy (`NORMAL`:
//! none; the next forced commit syncs the same file and takes it along). Two, rather than one whose setting goes back
//! and forth, because then no error can leave the forced one without its fsync. Both are behind one mutex, and the write
//! lock is never contended. Readers and the checkpointer have their own.
//!
//! **What it never does.** It does not go on after a write whose result is unknown: everything is refused from then on,
//! reads too, because what they would show may not be on disk. The process has to end and open the log again (P6).

mod append;
mod audit;
mod backup;
mod checkpoint;
mod epochs;
mod find;
mod frozen;
mod hex;
mod open;
mod prune;
mod read;
mod restore;
#[cfg(test)]
pub(crate) mod tests;
mod transaction;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;
use lockstep_proto::{ClusterId, Epoch, Gtrid, LogPosition, ResourceManagerName};
use sqlx::{Connection, SqliteConnection, SqlitePool};
use tokio::sync::{Mutex, MutexGuard, Notify};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use self::backup::{BackedUp, BackupError, back_up};
pub use self::frozen::{FrozenError, FrozenLog, Look};
pub use self::open::{OpenError, Opened, Options};
pub use self::restore::restore;

use self::epochs::OwnEpoch;
use self::transaction::{Broken, Fault, Tx};
use super::audit::{AuditQuery, AuditRecord, Operation};
use super::data_dir::DataDir;
use super::restore::{BEHIND, encode_behind};
use super::{
    AppendError, Batch, DecisionLog, Epochs, KnownResourceManager, LogStatus, LookUp, PruneLimits, ReadError,
    Recorded, pruning,
};
use crate::protocol::record::{DecisionRecord, EndRecord};

/// The background checkpoint starts when the write-ahead log has grown by about so much: SQLite's own default of 1,000
/// pages.
const CHECKPOINT_BYTES: u64 = 4 * 1024 * 1024;
/// What a batch adds to the write-ahead log beside its records: the pages that they lie on, an index page, the epoch's.
const PAGES_PER_BATCH_BYTES: u64 = 4 * 4096;

/// The embedded decision log, open under an epoch of its own. Dropping it gives the directory free.
pub struct SqliteLog {
    cluster: ClusterId,
    /// Where this process began: sequence 0.
    start: LogPosition,
    /// The newest forced batch.
    sequence: AtomicU64,
    shared: Arc<Shared>,
    readers: SqlitePool,
    checkpointer: std::sync::Mutex<Option<JoinHandle<()>>>,
    stop: CancellationToken,
    /// Last, so that it is given free last.
    dir: DataDir,
}

/// What the log and its checkpointer share.
struct Shared {
    /// `None` once the log is closed.
    writers: Mutex<Option<Writers>>,
    broken: Broken,
    /// Told when the write-ahead log has grown enough for a checkpoint.
    grown: Notify,
}

/// The connections that write, and what they write under.
struct Writers {
    forced: SqliteConnection,
    lazy: SqliteConnection,
    own: OwnEpoch,
    /// About how much the write-ahead log has grown since the last checkpoint.
    grown_bytes: u64,
}

impl SqliteLog {
    fn new(
        dir: DataDir,
        cluster: ClusterId,
        writers: Writers,
        checkpoints: SqliteConnection,
        readers: SqlitePool,
    ) -> Self {
        let start = writers.own.position();
        let shared = Arc::new(Shared {
            writers: Mutex::new(Some(writers)),
            broken: Broken::default(),
            grown: Notify::new(),
        });
        let stop = CancellationToken::new();
        let task = checkpoint::run(Arc::clone(&shared), checkpoints, stop.clone());
        let checkpointer = std::sync::Mutex::new(Some(tokio::spawn(task)));
        let sequence = AtomicU64::new(start.sequence);
        Self { cluster, start, sequence, shared, readers, checkpointer, stop, dir }
    }

    /// Bytes that may still be written to the log's file system. One system call: cheap enough to ask before a transaction
    /// is begun, so that a full disk is met there and not in a force.
    ///
    /// # Errors
    /// Where the system does not tell.
    pub fn free_bytes(&self) -> io::Result<u64> {
        self.dir.free_bytes()
    }

    /// Waits until this process must not go on with the log (P6): whichever write it was that may have failed, the next force is
    /// not waited for.
    pub async fn broken(&self) -> AppendError {
        AppendError::Unknown(self.shared.broken.wait().await)
    }

    async fn append(
        &self,
        decisions: &[DecisionRecord],
        ends: &[EndRecord],
        forced: bool,
    ) -> Result<LogPosition, AppendError> {
        let mut guard = self.shared.writers.lock().await;
        let writers = open_writers(&mut guard)?;
        let connection = if forced { &mut writers.forced } else { &mut writers.lazy };
        let mut tx = Tx::begin(connection, &self.shared.broken).await?;
        let work = match append::append(tx.connection(), decisions, ends).await {
            Ok(bytes) => own_epoch(tx.connection(), &writers.own, forced).await.map(|own| (own, bytes)),
            Err(fault) => Err(fault),
        };
        fail::fail_point!("log-after-insert-before-commit");
        let (own, bytes) = tx.finish(work).await?;
        fail::fail_point!("log-after-commit-before-checkpoint");
        writers.own = own;
        self.sequence.store(own.row.sequence, Ordering::Release);
        self.shared.grew(writers, bytes);
        Ok(own.position())
    }

    async fn prune_now(&self, limits: PruneLimits) -> Result<u64, AppendError> {
        let candidates = prune::candidates(&self.readers, &limits).await;
        let candidates = candidates.map_err(|error| AppendError::Refused(error.to_string()))?;
        if candidates.is_empty() {
            return Ok(0);
        }
        let mut guard = self.shared.writers.lock().await;
        let writers = open_writers(&mut guard)?;
        // Not forced: rows and horizon come back together, or stay away together.
        let mut tx = Tx::begin(&mut writers.lazy, &self.shared.broken).await?;
        let work = match epochs::hold(tx.connection(), &writers.own).await {
            Ok(()) => prune::delete(tx.connection(), &candidates, &limits).await,
            Err(fault) => Err(fault),
        };
        fail::fail_point!("log-prune-before-commit");
        let pruned = tx.finish(work).await?;
        fail::fail_point!("log-prune-after-commit");
        self.shared.grew(writers, 0);
        Ok(pruned)
    }

    async fn remember_now(&self, known: &KnownResourceManager) -> Result<(), AppendError> {
        let mut guard = self.shared.writers.lock().await;
        let writers = open_writers(&mut guard)?;
        let mut tx = Tx::begin(&mut writers.forced, &self.shared.broken).await?;
        let work = remember(tx.connection(), known, &writers.own).await;
        fail::fail_point!("log-remember-before-commit");
        tx.finish(work).await?;
        fail::fail_point!("log-remember-after-commit");
        self.shared.grew(writers, 0);
        Ok(())
    }

    async fn remember_floor_now(&self, name: &ResourceManagerName, floor: Gtrid) -> Result<(), AppendError> {
        let mut guard = self.shared.writers.lock().await;
        let writers = open_writers(&mut guard)?;
        let mut tx = Tx::begin(&mut writers.forced, &self.shared.broken).await?;
        let work = remember_floor(tx.connection(), name, floor, &writers.own).await;
        tx.finish(work).await?;
        self.shared.grew(writers, 0);
        Ok(())
    }

    async fn operate_now(&self, operation: &Operation) -> Result<u64, AppendError> {
        let mut guard = self.shared.writers.lock().await;
        let writers = open_writers(&mut guard)?;
        let mut tx = Tx::begin(&mut writers.forced, &self.shared.broken).await?;
        let work = audit::operate(tx.connection(), operation, &writers.own).await;
        fail::fail_point!("log-operate-before-commit");
        let (id, own) = tx.finish(work).await?;
        fail::fail_point!("log-operate-after-commit");
        writers.own = own;
        self.sequence.store(own.row.sequence, Ordering::Release);
        self.shared.grew(writers, 0);
        Ok(id)
    }

    async fn note_behind_now(&self) -> Result<(), AppendError> {
        let mut guard = self.shared.writers.lock().await;
        let writers = open_writers(&mut guard)?;
        let mut tx = Tx::begin(&mut writers.forced, &self.shared.broken).await?;
        let work = match epochs::hold(tx.connection(), &writers.own).await {
            Ok(()) => epochs::set_mark(tx.connection(), BEHIND, &encode_behind()).await,
            Err(fault) => Err(fault),
        };
        tx.finish(work).await
    }

    /// What may be read: nothing, once the log is broken.
    fn readers(&self) -> Result<&SqlitePool, ReadError> {
        match self.shared.broken.reason() {
            None => Ok(&self.readers),
            Some(reason) => Err(ReadError::Unavailable(format!("this process has to end first: {reason}"))),
        }
    }

    async fn close_now(&self) {
        self.stop_checkpointer().await;
        self.readers.close().await;
        let Some(mut writers) = self.shared.writers.lock().await.take() else {
            return;
        };
        if self.shared.broken.reason().is_none()
            && let Err(error) = checkpoint::truncate(&mut writers.forced).await
        {
            // What was forced is safe where it is; what was lazy may be lost.
            tracing::warn!(%error, "the decision log was closed without a checkpoint");
        }
        for connection in [writers.lazy, writers.forced] {
            if let Err(error) = connection.close().await {
                tracing::warn!(%error, "a connection to the decision log was not closed cleanly");
            }
        }
    }

    async fn stop_checkpointer(&self) {
        let task = self.checkpointer.lock().expect("nobody panics with this lock").take();
        self.stop.cancel();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the decision log's checkpointer panicked");
        }
    }
}

impl Drop for SqliteLog {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Shared {
    /// Wakes the checkpointer, if that is due.
    fn grew(&self, writers: &mut Writers, bytes: u64) {
        writers.grown_bytes += bytes + PAGES_PER_BATCH_BYTES;
        if writers.grown_bytes >= CHECKPOINT_BYTES {
            self.grown.notify_one();
        }
    }
}

fn open_writers<'a>(guard: &'a mut MutexGuard<'_, Option<Writers>>) -> Result<&'a mut Writers, AppendError> {
    guard.as_mut().ok_or_else(|| AppendError::Refused("the decision log is closed".to_owned()))
}

/// The own epoch's row as it is after this transaction: a forced batch counts in it, any other write only checks it.
async fn own_epoch(
    connection: &mut SqliteConnection,
    own: &OwnEpoch,
    forced: bool,
) -> Result<OwnEpoch, Fault> {
    if forced {
        return epochs::advance(connection, own).await;
    }
    epochs::hold(connection, own).await?;
    Ok(*own)
}

/// Writes what is new of a resource manager. Its identity is fixed, the highest timeline stays, and so does that it is retired.
async fn remember(
    connection: &mut SqliteConnection,
    known: &KnownResourceManager,
    own: &OwnEpoch,
) -> Result<(), Fault> {
    epochs::hold(connection, own).await?;
    remember_within(connection, known).await
}

/// The log's own record with another floor.
async fn remember_floor(
    connection: &mut SqliteConnection,
    name: &ResourceManagerName,
    floor: Gtrid,
    own: &OwnEpoch,
) -> Result<(), Fault> {
    epochs::hold(connection, own).await?;
    match read::resource_manager(&mut *connection, name).await? {
        Some(known) => {
            let now = KnownResourceManager { floor: Some(floor), ..known };
            remember_within(connection, &now).await
        }
        None => Err(Fault::Refused(format!("{name} is not known"))),
    }
}

/// The same in a transaction that has compared the own epoch already.
async fn remember_within(
    connection: &mut SqliteConnection,
    known: &KnownResourceManager,
) -> Result<(), Fault> {
    let before = read::resource_manager(&mut *connection, &known.name).await?;
    let mut now = known.clone();
    if let Some(before) = &before {
        if before.identity != now.identity {
            let name = &now.name;
            return Err(Fault::Refused(format!(
                "{name} is known under another identity ({})",
                before.identity
            )));
        }
        now.timeline = now.timeline.max(before.timeline);
        now.retired |= before.retired;
    }
    if before.as_ref() == Some(&now) {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO resource_managers (name, record) VALUES (?1, ?2) \
         ON CONFLICT (name) DO UPDATE SET record = excluded.record",
    )
    .bind(now.name.as_str())
    .bind(super::rows::encode_resource_manager(&now))
    .execute(connection)
    .await?;
    Ok(())
}

impl DecisionLog for SqliteLog {
    fn cluster(&self) -> ClusterId {
        self.cluster
    }

    fn position(&self) -> LogPosition {
        LogPosition { sequence: self.sequence.load(Ordering::Acquire), ..self.start }
    }

    fn force<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<LogPosition, AppendError>> {
        self.append(&batch.decisions, &batch.ends, true).boxed()
    }

    fn write_lazily<'a>(&'a self, ends: &'a [EndRecord]) -> BoxFuture<'a, Result<(), AppendError>> {
        async move { self.append(&[], ends, false).await.map(|_position| ()) }.boxed()
    }

    fn look_up<'a>(&'a self, gtrids: &'a [Gtrid]) -> BoxFuture<'a, Result<Vec<LookUp>, ReadError>> {
        async move { read::look_up(self.readers()?, self.start.epoch, gtrids).await }.boxed()
    }

    fn reaches(&self, position: LogPosition) -> BoxFuture<'_, Result<bool, ReadError>> {
        async move { read::reaches(self.readers()?, position).await }.boxed()
    }

    /// The own epoch was taken in the transaction that sealed all others.
    fn has_all_of(&self, epoch: Epoch) -> bool {
        epoch < self.start.epoch
    }

    fn note_behind(&self) -> BoxFuture<'_, Result<(), AppendError>> {
        self.note_behind_now().boxed()
    }

    fn unfinished(
        &self,
        after: Option<Gtrid>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<DecisionRecord>, ReadError>> {
        async move { read::unfinished(self.readers()?, after, limit).await }.boxed()
    }

    fn recently_ended(&self, limit: u32) -> BoxFuture<'_, Result<Vec<EndRecord>, ReadError>> {
        async move { read::recently_ended(self.readers()?, limit).await }.boxed()
    }

    fn find<'a>(&'a self, prefix: &'a str, limit: u32) -> BoxFuture<'a, Result<Vec<Gtrid>, ReadError>> {
        async move { find::find(self.readers()?, prefix, limit).await }.boxed()
    }

    fn resource_managers(&self) -> BoxFuture<'_, Result<Vec<KnownResourceManager>, ReadError>> {
        async move { read::resource_managers(self.readers()?).await }.boxed()
    }

    fn remember<'a>(&'a self, known: &'a KnownResourceManager) -> BoxFuture<'a, Result<(), AppendError>> {
        self.remember_now(known).boxed()
    }

    fn remember_floor<'a>(
        &'a self,
        name: &'a ResourceManagerName,
        floor: Gtrid,
    ) -> BoxFuture<'a, Result<(), AppendError>> {
        self.remember_floor_now(name, floor).boxed()
    }

    fn operate<'a>(&'a self, operation: &'a Operation) -> BoxFuture<'a, Result<u64, AppendError>> {
        self.operate_now(operation).boxed()
    }

    fn audit(&self, query: AuditQuery) -> BoxFuture<'_, Result<Vec<AuditRecord>, ReadError>> {
        async move { audit::audit(self.readers()?, &query).await }.boxed()
    }

    fn open_heuristics(&self, limit: u32) -> BoxFuture<'_, Result<Vec<EndRecord>, ReadError>> {
        async move { audit::open_heuristics(self.readers()?, limit).await }.boxed()
    }

    fn is_acknowledged(&self, gtrid: Gtrid) -> BoxFuture<'_, Result<bool, ReadError>> {
        async move { audit::is_acknowledged(self.readers()?, gtrid).await }.boxed()
    }

    fn walk(
        &self,
        after: Option<Gtrid>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<(Gtrid, Recorded)>, ReadError>> {
        async move { audit::walk(self.readers()?, after, limit).await }.boxed()
    }

    fn epochs(&self) -> BoxFuture<'_, Result<Epochs, ReadError>> {
        // One process at a time has the log: every earlier epoch is sealed.
        let own = self.start.epoch;
        futures::future::ok(Epochs { sealed_below: own, newest: own }).boxed()
    }

    fn begins_from_ms(&self) -> BoxFuture<'_, Result<u64, ReadError>> {
        async move {
            let horizon_ms = self.status().await?.horizon_ms;
            Ok(pruning::begins_from_ms(horizon_ms, &self.resource_managers().await?))
        }
        .boxed()
    }

    fn floor(&self, own: Gtrid) -> BoxFuture<'_, Result<Gtrid, ReadError>> {
        // One process at a time has the log.
        futures::future::ok(own).boxed()
    }

    fn prune(&self, limits: PruneLimits) -> BoxFuture<'_, Result<u64, AppendError>> {
        self.prune_now(limits).boxed()
    }

    fn status(&self) -> BoxFuture<'_, Result<LogStatus, ReadError>> {
        async move {
            let readers = self.readers()?;
            let facts = read::facts(readers).await?;
            let bytes = self.dir.log_bytes().map_err(|error| ReadError::Unavailable(error.to_string()))?;
            let behind = read::marks(readers).await?.is_behind();
            Ok(LogStatus { bytes, behind, ..facts })
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.close_now().boxed()
    }
}
