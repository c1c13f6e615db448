//! The decision log of several coordinators: a PostgreSQL database, with one epoch for each life of each of them.
//!
//! Read in this order:
//! - `open`: the schema, a new epoch, what is adopted with it; `schema`, `durability`, `connect`: what is checked before that;
//! - `append`: a batch in one statement, which is the fence too (P1); `writer`: what is done when its answer does not come (P2);
//! - `keeping`: this node's own lease, and those of others that have run out; `epochs`: sealing and adopting (P5);
//! - `barrier`: what is read leaves this node only behind a write (P3); `read`, `find`: reading; `upkeep`: pruning (P7); `restore` (P8);
//!   `nodes`: for people; `audit`: what operators do.
//!
//! **Connections.** One writes: what is forced, what is lazy, and the upkeep, one after the other, because overlapping share locks on
//! the epoch's row would keep a sealer waiting for ever. One keeps the lease, and does nothing else. One seals. A pool reads. None waits for
//! another. Those that write, keep the lease and seal are named after the epoch, so that whoever seals it can end them.
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
mod keeping;
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
use lockstep_proto::{ClusterId, Epoch, Gtrid, LogPosition, ResourceManagerName};
use sqlx::{PgExecutor, PgPool};
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
use self::epochs::{Own, Standing, Taken};
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
    /// For the lease; `None` once the log is closed.
    keeper: Mutex<Option<Line>>,
    /// For sealing and adopting; `None` once the log is closed.
    sealer: Mutex<Option<Line>>,
    /// For what is needed only now and then.
    connector: Connector,
    readers: PgPool,
    barrier: Barrier,
    lease: Duration,
    /// Earlier epochs of this node are over.
    succeeds: Option<String>,
}

impl PostgresLog {
    fn new(cluster: ClusterId, taken: Taken, connector: &Connector, options: &Options) -> Self {
        let Taken { own, beside } = taken;
        let name = own.session_name();
        let line =
            |name: &str, patience| Line::new(connector.named(name).answering_within(patience).by_key());
        let writer = Writer::new(line(&name, options.patience), own, options.patience);
        Self {
            cluster,
            start: own,
            beside,
            sequence: AtomicU64::new(0),
            over: OnceLock::new(),
            writer: Mutex::new(Some(writer)),
            keeper: Mutex::new(Some(line(&format!("{name} lease"), keeping::patience(options.lease)))),
            sealer: Mutex::new(Some(line(&format!("{name} seal"), epochs::PATIENCE))),
            connector: connector.clone(),
            readers: connector.answering_within(read::PATIENCE).pool(READERS),
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

    /// The log has lost the own epoch (P8).
    async fn end_gone(&self, executor: impl PgExecutor<'_>) -> AppendError {
        upkeep::leave_word(executor).await;
        self.end(AppendError::Unknown(epochs::gone(self.start.epoch)))
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

    async fn remember_floor_now(&self, name: &ResourceManagerName, floor: Gtrid) -> Result<(), AppendError> {
        let mut guard = self.writer.lock().await;
        self.goes_on()?;
        let writer = open_writer(&mut guard)?;
        let mut connection = writer.line.lend().await.map_err(Failure::from)?;
        upkeep::remember_floor(&mut connection, &writer.own, name, floor).await?;
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
        let mut guard = self.sealer.lock().await;
        let sealer = open_line(&mut guard)?;
        let mut connection = sealer.lend().await?;
        let mut epochs = epochs::owned(&mut connection, &self.start).await?;
        sealer.give_back(connection);
        epochs.push(self.start.epoch);
        Ok(epochs)
    }
}

fn open_line<'a>(guard: &'a mut MutexGuard<'_, Option<Line>>) -> Result<&'a mut Line, Failure> {
    guard.as_mut().ok_or_else(|| Failure::Lost("the decision log is closed".to_owned()))
}

fn open_writer<'a>(guard: &'a mut MutexGuard<'_, Option<Writer>>) -> Result<&'a mut Writer, AppendError> {
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
            if !found.iter().all(LookUp::says_nothing) {
                self.barrier.pass(readers).await?;
            }
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

    fn remember_floor<'a>(
        &'a self,
        name: &'a ResourceManagerName,
        floor: Gtrid,
    ) -> BoxFuture<'a, Result<(), AppendError>> {
        self.remember_floor_now(name, floor).boxed()
    }

    fn epochs(&self) -> BoxFuture<'_, Result<Epochs, ReadError>> {
        async move {
            let readers = self.readers()?;
            let over = |why: AppendError| ReadError::Unavailable(why.to_string());
            match read::epochs(readers, &self.start).await? {
                Standing::Unsealed(epochs) => {
                    self.barrier.pass(readers).await?;
                    Ok(epochs)
                }
                Standing::Sealed => Err(over(self.end_sealed())),
                Standing::Gone => Err(over(self.end_gone(readers).await)),
            }
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
