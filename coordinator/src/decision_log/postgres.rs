//! The decision log of several coordinators: a PostgreSQL database, with one epoch for each life of each of them.
//!
//! Read in this order:
//! - `open`: the schema, a new epoch, what is adopted with it; `schema`, `durability`, `connect`: what is checked before that;
//! - `append`: a batch in one statement, which is the fence too (P1); `writer`: what is done when its answer does not come (P2);
//! - `epochs`: leases, sealing, adopting (P5);
//! - `barrier`: what is read leaves this node only behind a write (P3); `read`, `find`: reading; `upkeep`: pruning (P7); `restore` (P8);
//!   `nodes`: for people; `audit`: what operators do.
//!
//! **Connections.** One writes: what is forced, what is lazy, and the upkeep, one after the other, because overlapping share locks on
//! the epoch's row would keep a sealer waiting for ever. One keeps the lease and seals. A pool reads. None waits for another.
//!
//! **What it never does.** It concludes nothing from a connection that broke; it writes nothing under an epoch that it was
//! told is sealed; and it never cancels a write: a synchronous standby is waited for as long as it takes.

mod append;
mod audit;
mod barrier;
mod connect;
mod durability;
mod epochs;
mod find;
mod nodes;
mod open;
mod read;
mod restore;
mod schema;
mod upkeep;
mod writer;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use lockstep_proto::{ClusterId, Epoch, Gtrid, LogPosition};
use sqlx::PgPool;
use tokio::sync::{Mutex, MutexGuard};

pub use self::durability::{Accepted, Setting, Unfit};
pub use self::epochs::{NodeAddress, Renewal};
pub use self::nodes::{Node, NodeState};
pub use self::open::{OpenError, Opened, Options, migrate, nodes};
pub use self::restore::restore;
pub use self::schema::SchemaError;

use self::append::Changes;
use self::barrier::Barrier;
use self::connect::{Connector, Failure};
use self::epochs::{Own, Sealed, Taken};
use self::writer::{Line, WriteError, Writer};
use super::audit::{AuditQuery, AuditRecord, Operation};
use super::{
    AppendError, Batch, DecisionLog, Epochs, KnownResourceManager, LogStatus, LookUp, PruneLimits, ReadError,
    Recorded, pruning,
};
use crate::protocol::record::{DecisionRecord, EndRecord};

/// Connections that read: a look of a person, a report's answer, and the write behind each of them.
const READERS: u32 = 4;

/// The decision log in a PostgreSQL database, open under an epoch of its own.
pub struct PostgresLog {
    cluster: ClusterId,
    /// Where this life began: sequence 0.
    start: Own,
    /// Earlier epochs that were not sealed yet when this one was taken.
    beside: Vec<Epoch>,
    /// The newest forced batch.
    sequence: AtomicU64,
    /// Why nothing more is written or read here, once that is so. The first reason stays.
    over: OnceLock<AppendError>,
    /// `None` once the log is closed.
    writer: Mutex<Option<Writer>>,
    /// For the lease and for sealing; `None` once the log is closed.
    keeper: Mutex<Option<Line>>,
    readers: PgPool,
    barrier: Barrier,
    lease: Duration,
    /// Earlier epochs of this node are over.
    succeeds: Option<String>,
}

impl PostgresLog {
    fn new(cluster: ClusterId, taken: Taken, connector: &Connector, options: &Options) -> Self {
        let Taken { own, beside } = taken;
        let writer = Writer::new(connector.named(&own.session_name()), own, options.patience);
        Self {
            cluster,
            start: own,
            beside,
            sequence: AtomicU64::new(0),
            over: OnceLock::new(),
            writer: Mutex::new(Some(writer)),
            keeper: Mutex::new(Some(Line::new(connector.clone()))),
            readers: connector.pool(READERS),
            barrier: Barrier::new(own.epoch),
            lease: options.lease,
            succeeds: options.succeeds.then(|| options.node.clone()),
        }
    }

    /// Ends this life of the log: everything is answered so from now on.
    fn end(&self, why: AppendError) -> AppendError {
        self.over.get_or_init(|| why).clone()
    }

    fn end_sealed(&self) -> AppendError {
        let epoch = self.start.epoch;
        self.end(AppendError::Sealed(format!(
            "epoch {epoch} was sealed by another node, which has taken over"
        )))
    }

    /// Whether it goes on.
    fn goes_on(&self) -> Result<(), AppendError> {
        self.over.get().map_or(Ok(()), |why| Err(why.clone()))
    }

    /// What may be read: nothing, once this life is over.
    fn readers(&self) -> Result<&PgPool, ReadError> {
        if self.readers.is_closed() {
            return Err(ReadError::Unavailable("the decision log is closed".to_owned()));
        }
        self.goes_on().map_err(|why| ReadError::Unavailable(why.to_string()))?;
        Ok(&self.readers)
    }

    async fn append(
        &self,
        decisions: &[DecisionRecord],
        ends: &[EndRecord],
        forced: bool,
    ) -> Result<LogPosition, AppendError> {
        let mut guard = self.writer.lock().await;
        self.goes_on()?;
        let writer = open_writer(&mut guard)?;
        let changes = Changes::new(decisions, ends)
            .map_err(|contradiction| self.end(AppendError::Unknown(contradiction.0)))?;
        if !forced && changes.is_empty() {
            return Ok(writer.own.position());
        }
        let written = writer.write(changes, forced).await;
        let position = written.map_err(|error| match error {
            WriteError::Refused(why) => AppendError::Refused(why),
            WriteError::Sealed => self.end_sealed(),
            WriteError::Contradiction(what) => self.end(AppendError::Unknown(what)),
        })?;
        self.sequence.store(position.sequence, Ordering::Release);
        Ok(position)
    }

    async fn prune_now(&self, limits: PruneLimits) -> Result<u64, AppendError> {
        let mut guard = self.writer.lock().await;
        self.goes_on()?;
        let writer = open_writer(&mut guard)?;
        let mut connection = writer.line.lend().await.map_err(Failure::from)?;
        let pruned = upkeep::prune(&mut connection, &writer.own, &limits).await?;
        fail::fail_point!("log-shared-prune-after-commit");
        writer.line.give_back(connection);
        Ok(pruned)
    }

    async fn remember_now(&self, known: &KnownResourceManager) -> Result<(), AppendError> {
        let mut guard = self.writer.lock().await;
        self.goes_on()?;
        let writer = open_writer(&mut guard)?;
        let mut connection = writer.line.lend().await.map_err(Failure::from)?;
        upkeep::remember(&mut connection, &writer.own, known).await?;
        fail::fail_point!("log-shared-remember-after-commit");
        writer.line.give_back(connection);
        Ok(())
    }

    async fn operate_now(&self, operation: &Operation) -> Result<u64, AppendError> {
        let mut guard = self.writer.lock().await;
        self.goes_on()?;
        let writer = open_writer(&mut guard)?;
        let mut connection = writer.line.lend().await.map_err(Failure::from)?;
        let (id, sequence) = audit::operate(&mut connection, &writer.own, operation).await?;
        writer.line.give_back(connection);
        writer.own.sequence = sequence;
        self.sequence.store(sequence, Ordering::Release);
        Ok(id)
    }

    /// Renews the lease, and publishes what prunes of other nodes stay below (P7). Who shares the log, as far as they have said where
    /// they are reached: at most [`lockstep_proto::limits::MAX_NODES`].
    ///
    /// # Errors
    /// [`AppendError::Sealed`] if another node has taken over, and [`AppendError::Unknown`] if the log has lost what this node has
    /// written: this life is over. [`AppendError::Refused`] if the server did not
    /// answer: try again.
    pub async fn renew(&self, renewal: Renewal) -> Result<Vec<NodeAddress>, AppendError> {
        let mut guard = self.keeper.lock().await;
        self.goes_on()?;
        let keeper = open_keeper(&mut guard)?;
        let mut connection = keeper.lend().await.map_err(Failure::from)?;
        // Read before the log is asked: what was acknowledged by now, it has to have.
        let acknowledged = self.sequence.load(Ordering::Acquire);
        let renewed = epochs::renew(&mut connection, &self.start, self.lease, renewal).await?;
        let Some(renewed) = renewed else {
            keeper.give_back(connection);
            return Err(self.end_sealed());
        };
        if renewed.sequence < acknowledged {
            let what = writer::lost_tail(&mut connection, acknowledged).await;
            return Err(self.end(AppendError::Unknown(what)));
        }
        keeper.give_back(connection);
        Ok(renewed.nodes)
    }

    /// Seals and adopts every epoch whose lease has run out. Every epoch that this node owns then, its own not among
    /// them: their unfinished decisions are this node's to deliver.
    ///
    /// # Errors
    /// [`ReadError`]: try again.
    pub async fn take_over(&self) -> Result<Vec<Epoch>, ReadError> {
        self.seal_and_adopt(true).await
    }

    /// The same, but only of epochs whose node has given its lease up.
    ///
    /// # Errors
    /// As [`PostgresLog::take_over`].
    pub async fn take_over_what_was_given_up(&self) -> Result<Vec<Epoch>, ReadError> {
        self.seal_and_adopt(false).await
    }

    async fn seal_and_adopt(&self, run_out: bool) -> Result<Vec<Epoch>, ReadError> {
        let mut guard = self.keeper.lock().await;
        let keeper = open_keeper(&mut guard).map_err(|error| ReadError::Unavailable(error.to_string()))?;
        let mut connection = keeper.lend().await?;
        let succeeds = self.succeeds.as_deref();
        for expired in epochs::expired(&mut connection, &self.start, run_out, succeeds).await? {
            match epochs::seal(&mut connection, &self.start, &expired).await {
                Ok(Sealed::Now) => {
                    tracing::warn!(epoch = %expired.epoch, "its node is gone: sealed, and adopted");
                }
                Ok(Sealed::Before | Sealed::OwnIsOver) => {}
                Err(failure) if failure.is(Failure::LOCK_NOT_AVAILABLE) => {
                    let ended = epochs::end_sessions(&mut connection, &expired).await?;
                    tracing::warn!(
                        epoch = %expired.epoch, ended,
                        "a session of it holds its row: ended, and sealing is tried again"
                    );
                }
                Err(failure) => return Err(failure.into()),
            }
        }
        let owned = epochs::owned(&mut connection, &self.start).await?;
        keeper.give_back(connection);
        Ok(owned)
    }

    /// Decisions of these epochs without an end, in the order of their gtrids, from behind `after`, at most `limit`. Of sealed
    /// epochs only: behind the seal none can appear any more (P1).
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn unfinished_of(
        &self,
        epochs: &[Epoch],
        after: Option<Gtrid>,
        limit: u32,
    ) -> Result<Vec<DecisionRecord>, ReadError> {
        let readers = self.readers()?;
        let found = read::unfinished(readers, epochs, after, limit).await?;
        self.barrier.pass(readers).await?;
        Ok(found)
    }

    async fn own_and_adopted(&self) -> Result<Vec<Epoch>, ReadError> {
        let mut guard = self.keeper.lock().await;
        let keeper = open_keeper(&mut guard).map_err(|error| ReadError::Unavailable(error.to_string()))?;
        let mut connection = keeper.lend().await?;
        let mut epochs = epochs::owned(&mut connection, &self.start).await?;
        keeper.give_back(connection);
        epochs.push(self.start.epoch);
        Ok(epochs)
    }

    async fn close_now(&self) {
        if let Some(mut keeper) = self.keeper.lock().await.take() {
            if let Err(error) = self.release(&mut keeper).await {
                tracing::warn!(%error, "the lease was not given up: another node takes over when it has run out");
            }
            keeper.close().await;
        }
        self.readers.close().await;
        if let Some(mut writer) = self.writer.lock().await.take() {
            writer.line.close().await;
        }
    }

    async fn release(&self, keeper: &mut Line) -> Result<(), Failure> {
        let mut connection = keeper.lend().await?;
        epochs::release(&mut connection, &self.start).await?;
        keeper.give_back(connection);
        Ok(())
    }
}

fn open_writer<'a>(guard: &'a mut MutexGuard<'_, Option<Writer>>) -> Result<&'a mut Writer, AppendError> {
    guard.as_mut().ok_or_else(|| AppendError::Refused("the decision log is closed".to_owned()))
}

fn open_keeper<'a>(guard: &'a mut MutexGuard<'_, Option<Line>>) -> Result<&'a mut Line, AppendError> {
    guard.as_mut().ok_or_else(|| AppendError::Refused("the decision log is closed".to_owned()))
}

impl DecisionLog for PostgresLog {
    fn cluster(&self) -> ClusterId {
        self.cluster
    }

    fn position(&self) -> LogPosition {
        LogPosition { sequence: self.sequence.load(Ordering::Acquire), ..self.start.position() }
    }

    fn force<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<LogPosition, AppendError>> {
        self.append(&batch.decisions, &batch.ends, true).boxed()
    }

    fn write_lazily<'a>(&'a self, ends: &'a [EndRecord]) -> BoxFuture<'a, Result<(), AppendError>> {
        async move { self.append(&[], ends, false).await.map(|_position| ()) }.boxed()
    }

    fn look_up<'a>(&'a self, gtrids: &'a [Gtrid]) -> BoxFuture<'a, Result<Vec<LookUp>, ReadError>> {
        async move {
            let readers = self.readers()?;
            let found = read::look_up(readers, self.start.epoch, gtrids).await?;
            self.barrier.pass(readers).await?;
            Ok(found)
        }
        .boxed()
    }

    fn reaches(&self, position: LogPosition) -> BoxFuture<'_, Result<bool, ReadError>> {
        async move { read::reaches(self.readers()?, position).await }.boxed()
    }

    fn has_all_of(&self, epoch: Epoch) -> bool {
        epoch < self.start.epoch && !self.beside.contains(&epoch)
    }

    fn note_behind(&self) -> BoxFuture<'_, Result<(), AppendError>> {
        async move {
            let readers = self.readers().map_err(|error| AppendError::Refused(error.to_string()))?;
            Ok(upkeep::note_behind(readers).await?)
        }
        .boxed()
    }

    fn unfinished(
        &self,
        after: Option<Gtrid>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<DecisionRecord>, ReadError>> {
        async move {
            let epochs = self.own_and_adopted().await?;
            self.unfinished_of(&epochs, after, limit).await
        }
        .boxed()
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

    fn epochs(&self) -> BoxFuture<'_, Result<Epochs, ReadError>> {
        async move {
            let readers = self.readers()?;
            let epochs = read::epochs(readers, self.start.epoch).await?;
            self.barrier.pass(readers).await?;
            epochs.ok_or_else(|| ReadError::Unavailable(self.end_sealed().to_string()))
        }
        .boxed()
    }

    fn begins_from_ms(&self) -> BoxFuture<'_, Result<u64, ReadError>> {
        async move {
            // A floor that is published later than this is below this node's own, which is in the log since it has its epoch.
            let newest_floor = read::newest_floor_ms(self.readers()?).await?;
            let horizon_ms = self.status().await?.horizon_ms;
            let begins_from_ms = pruning::begins_from_ms(horizon_ms, &self.resource_managers().await?);
            Ok(begins_from_ms.max(newest_floor))
        }
        .boxed()
    }

    fn floor(&self, own: Gtrid) -> BoxFuture<'_, Result<Gtrid, ReadError>> {
        async move {
            let readers = self.readers()?;
            epochs::publish_floor(readers, &self.start, own.unix_ms()).await?;
            let others = read::floor_of_others(readers, self.start.epoch).await?;
            // Also for what was published: the server must not forget it while somebody knows it.
            self.barrier.pass(readers).await?;
            let others = others.map(|ms| Gtrid::new(self.start.epoch, ms, [0; 10]));
            Ok(others.map_or(own, |others| others.min(own)))
        }
        .boxed()
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

    fn prune(&self, limits: PruneLimits) -> BoxFuture<'_, Result<u64, AppendError>> {
        self.prune_now(limits).boxed()
    }

    fn status(&self) -> BoxFuture<'_, Result<LogStatus, ReadError>> {
        async move {
            let readers = self.readers()?;
            let behind = read::marks(readers).await?.is_behind();
            Ok(LogStatus { behind, ..read::facts(readers).await? })
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.close_now().boxed()
    }
}
