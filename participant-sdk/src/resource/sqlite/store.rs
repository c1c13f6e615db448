//! One attached database: who may write, and what is known of its journal.
//!
//! At any moment at most one of these has the file's write lock: an open branch, the prepared branch, a local write or one of the
//! store's own small writes. Whoever has the [`Turn`] has the right to it. The [`Slot`] says what is known of the
//! journal; it is [`Slot::Unknown`] from before the first effect of a step until its last one succeeded, so that whatever fails
//! in between (an error, a panic, a runtime that ends) has the next one read the journal and the evidence again.

use std::sync::Arc;
use std::time::Duration;

use lockstep_proto::limits::MAX_TIMEOUT;
use lockstep_proto::museum::mutated;
use lockstep_proto::{ClusterId, Epoch, LogPosition, ResourceManagerId};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteConnectOptions;
use tokio::sync::{Mutex, MutexGuard, OwnedMutexGuard};
use tokio::time::Instant;

use super::branch::OpenBranch;
use super::connection::{self, begin_immediate, connect};
use super::evidence::{self, unix_ms};
use super::files::{DatabaseFile, InstanceLock};
use super::journal::Journal;
use super::recovery::identify;
use super::schema::Schema;
use super::slot::Slot;
use super::turn::{Order, Turn, Turnstile};
use super::writer::Writer;
use super::{failed, unresolved};
use crate::doctor::sqlite::judge;
use crate::doctor::{Severity, refuse_errors};
use crate::resource::{BranchId, ResourceError, Unresolved, wall_clock};

/// How long the store's own writes wait for the file. An open branch may have it for longer; the coordinator asks again.
pub(super) const OWN_WAIT: Duration = Duration::from_secs(5);
/// How often a writer is opened anew because the schema was changed under it, before a branch is refused.
const SCHEMA_ATTEMPTS: usize = 5;

/// An attached database.
#[derive(Debug)]
pub(super) struct Store {
    pub file: DatabaseFile,
    pub identity: ResourceManagerId,
    pub options: SqliteConnectOptions,
    pub journal: Arc<Journal>,
    pub slot: Arc<Mutex<Slot>>,
    turnstile: Arc<Turnstile>,
    reader: Mutex<SqliteConnection>,
    _lock: InstanceLock,
}

/// A short write of the store's own. Dropped without a commit, it is rolled back and its connection closed.
pub(super) struct OwnWrite {
    pub writer: Writer,
    _turn: Turn,
}

impl Store {
    /// Opens the database, takes its lock, makes the SDK's tables, and brings back what was prepared.
    pub(super) async fn open(options: SqliteConnectOptions) -> Result<Arc<Self>, ResourceError> {
        let mut reader = connect(&options.clone().optimize_on_close(false, None)).await?;
        let file = DatabaseFile::new(&connection::file_of(&mut reader).await?)?;
        let place = judge::file_system(file.file_system()?, &file.path().display().to_string());
        if place.severity == Severity::Warning {
            tracing::warn!("{}", place.what);
        }
        refuse_errors(&[place])?;
        let lock = file.lock()?;
        connection::close(reader).await;

        let mut reader = connect(&connection::for_reading(&options)).await?;
        connection::check_fitness(&mut reader).await?;
        let journal = Journal::open(file.beside("-lockstep")).map_err(|error| {
            ResourceError::Unavailable(format!("the journal beside the database: {error}"))
        })?;
        let identity = identify(&options, &journal).await?;
        let store = Arc::new(Self {
            file,
            identity,
            options,
            journal: Arc::new(journal),
            turnstile: Arc::default(),
            slot: Arc::new(Mutex::new(Slot::Unknown)),
            reader: Mutex::new(reader),
            _lock: lock,
        });
        store.ready().await?;
        Ok(store)
    }

    /// Makes sure that the journal is known, and that the schema can take part.
    pub(super) async fn ready(self: &Arc<Self>) -> Result<(), ResourceError> {
        drop(self.known_slot().await?);
        Schema::read(&mut *self.reader().await).await.map(drop)
    }

    /// The connection that sees the committed state.
    pub(super) async fn reader(&self) -> MutexGuard<'_, SqliteConnection> {
        self.reader.lock().await
    }

    /// The slot, once the journal is known.
    pub(super) async fn known_slot(self: &Arc<Self>) -> Result<OwnedMutexGuard<Slot>, ResourceError> {
        let deadline = Instant::now() + OWN_WAIT;
        loop {
            let slot = Arc::clone(&self.slot).lock_owned().await;
            if !matches!(*slot, Slot::Unknown) {
                return Ok(slot);
            }
            drop(slot);
            let turn = self.turn("recovery".into(), Order::Urgent, deadline).await?;
            let slot = Arc::clone(&self.slot).lock_owned().await;
            if matches!(*slot, Slot::Unknown) {
                self.recover_apart(slot, turn).await?;
            }
        }
    }

    async fn turn(&self, who: String, order: Order, deadline: Instant) -> Result<Turn, ResourceError> {
        self.turnstile.take(who, order, deadline).await.map_err(|occupied| {
            ResourceError::Unavailable(format!("{}: {occupied}", self.file.path().display()))
        })
    }

    /// The turn to write, with a journal that has no entry.
    pub(super) async fn enter(
        self: &Arc<Self>,
        who: String,
        order: Order,
        deadline: Instant,
    ) -> Result<Turn, ResourceError> {
        loop {
            let turn = self.turn(who.clone(), order, deadline).await?;
            let slot = Arc::clone(&self.slot).lock_owned().await;
            match *slot {
                Slot::Free(_) => return Ok(turn),
                Slot::Unknown => self.recover_apart(slot, turn).await?,
                Slot::Prepared(_) | Slot::Misfit(_) => unreachable!("what is prepared has the turn itself"),
            }
        }
    }

    /// Begins a branch.
    pub(super) async fn begin(
        self: &Arc<Self>,
        branch: &BranchId,
        remaining: Duration,
    ) -> Result<OpenBranch, ResourceError> {
        let remaining = remaining.min(MAX_TIMEOUT);
        let deadline = Instant::now() + remaining;
        let deadline_ms = unix_ms(wall_clock() + remaining);
        let turn = self.enter(format!("the open branch {branch}"), Order::Ordinary, deadline).await?;
        let writer = self.begin_write(deadline).await?;
        OpenBranch::new(writer, turn, branch, deadline, deadline_ms).await
    }

    /// A writer in a transaction, with a capture that fits. The caller has the turn.
    async fn begin_write(&self, deadline: Instant) -> Result<Writer, ResourceError> {
        for _ in 0..SCHEMA_ATTEMPTS {
            let idle = match &mut *self.slot.lock().await {
                Slot::Free(writer) => writer.take(),
                Slot::Unknown | Slot::Prepared(_) | Slot::Misfit(_) => None,
            };
            let mut writer = match idle {
                Some(writer) => writer,
                None => Writer::open(&self.options).await?,
            };
            begin_immediate(&mut writer.connection, deadline).await?;
            // An error here is that of a schema that was changed under the triggers, more often than not.
            if writer.is_current().await.unwrap_or(false) {
                self.check_journal().await?;
                return Ok(writer);
            }
            writer.close().await;
        }
        Err(ResourceError::Unavailable("the schema changes faster than it can be read: try again".into()))
    }

    /// Refuses to write beside an entry (P25). The caller has the file's write lock.
    pub(super) async fn check_journal(&self) -> Result<(), ResourceError> {
        if self.journal.is_free()? || mutated("P27-acknowledged-before-the-end-mark") {
            return Ok(());
        }
        *self.slot.lock().await = Slot::Unknown;
        Err(ResourceError::Unavailable(format!(
            "the journal {} has an entry that this process did not write; it is looked at now: try again",
            self.journal.path().display()
        )))
    }

    /// Gives a writer back that is in no transaction.
    pub(super) async fn put_back(&self, writer: Writer) {
        if let Slot::Free(idle @ None) = &mut *self.slot.lock().await {
            *idle = Some(writer);
        }
    }

    /// Writes the journal's end mark.
    pub(super) async fn end_mark(&self) -> Result<(), Unresolved> {
        self.journal.end().await.map_err(|error| {
            Unresolved(format!("the journal's end mark {}: {error}", self.journal.path().display()))
        })
    }

    /// Begins one of the store's own writes.
    pub(super) async fn own_write(&self, turn: Turn) -> Result<OwnWrite, Unresolved> {
        let writer = self.begin_write(Instant::now() + OWN_WAIT).await.map_err(unresolved)?;
        Ok(OwnWrite { writer, _turn: turn })
    }

    /// Commits one of the store's own writes.
    pub(super) async fn finish(&self, mut write: OwnWrite) -> Result<(), Unresolved> {
        self.commit_writer(&mut write.writer).await.map_err(failed("COMMIT"))?;
        self.put_back(write.writer).await;
        Ok(())
    }

    /// Commits without a journal. After an error nothing is believed before it was checkpointed.
    pub(super) async fn commit_writer(&self, writer: &mut Writer) -> Result<(), sqlx::Error> {
        let committed = writer.commit().await;
        if committed.is_err() {
            *self.slot.lock().await = Slot::Unknown;
        }
        committed
    }

    /// Binds the database to a cluster, if it is bound to none.
    pub(super) async fn bind(self: &Arc<Self>, cluster: ClusterId) -> Result<(), Unresolved> {
        let bound = evidence::cluster(&mut *self.reader().await).await;
        if bound.map_err(failed("the cluster"))?.is_some() {
            return Ok(());
        }
        let deadline = Instant::now() + OWN_WAIT;
        let turn = self.enter("bind".into(), Order::Urgent, deadline).await.map_err(unresolved)?;
        let mut write = self.own_write(turn).await?;
        evidence::bind(&mut write.writer.connection, cluster).await.map_err(failed("binding the cluster"))?;
        self.finish(write).await
    }

    /// Keeps a log position, and lets go of what was seen of earlier epochs.
    pub(super) async fn let_go(
        self: &Arc<Self>,
        position: LogPosition,
        epochs: &[Epoch],
    ) -> Result<(), Unresolved> {
        let deadline = Instant::now() + OWN_WAIT;
        let turn = self
            .enter("letting go of positions".into(), Order::Urgent, deadline)
            .await
            .map_err(unresolved)?;
        let mut write = self.own_write(turn).await?;
        evidence::settle(&mut write.writer.connection, position, epochs)
            .await
            .map_err(failed("letting go of positions"))?;
        self.finish(write).await
    }

    /// Deletes evidence. While the turn is ours the journal has no entry that could need it (P27).
    pub(super) async fn forget(self: &Arc<Self>, branches: &[BranchId]) -> Result<(), Unresolved> {
        let deadline = Instant::now() + OWN_WAIT;
        let turn = self.enter("pruning".into(), Order::Urgent, deadline).await.map_err(unresolved)?;
        let mut write = self.own_write(turn).await?;
        for branch in branches {
            evidence::forget(&mut write.writer.connection, branch)
                .await
                .map_err(failed("pruning evidence"))?;
        }
        self.finish(write).await
    }
}
