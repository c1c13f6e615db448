//! One attached database: who may write, what is prepared, and how each branch ends.
//!
//! At any moment at most one of these has the file's write lock: an open branch, the prepared branch, a local write or one of the
//! store's own small writes. Whoever has the [`Turn`] has the right to it. The [`Slot`] says what is known of the
//! journal; it is [`Slot::Unknown`] from before the first effect of a step until its last one succeeded, so that whatever fails
//! in between (an error, a panic, a runtime that ends) has the next one read the journal and the evidence again.
//!
//! Each end of a branch is a sequence of durable effects:
//!
//! ```text
//! prepare    evidence row in the open transaction · journal entry · vote
//! commit     COMMIT · end mark · acknowledgement
//! rollback   end mark · ROLLBACK · fence row · acknowledgement
//! ```
//!
//! A crash loses the open transaction. So on the next attach: an entry and no evidence, the branch is prepared and is
//! written again; an entry and evidence, it has ended and only the mark is missing; no entry, there is nothing to do.
//! The end mark of a rollback comes before ROLLBACK: the other way round another writer could change a row between the two, and
//! after a crash right then the entry would no longer fit the database, though nobody needs it any more.

use std::sync::Arc;
use std::time::Duration;

use lockstep_proto::{LogPosition, ResourceManagerId};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteConnectOptions;
use tokio::sync::{Mutex, MutexGuard, OwnedMutexGuard};
use tokio::time::Instant;

use super::branch::OpenBranch;
use super::connection::{self, begin_immediate, connect, unavailable};
use super::entry::Entry;
use super::evidence::{self, Kind, NewEvidence, position_bytes, unix_ms};
use super::files::{DatabaseFile, InstanceLock};
use super::hazard;
use super::journal::{Found, Journal};
use super::replay::{ReplayError, replay};
use super::schema::Schema;
use super::turn::{Order, Turn, Turnstile};
use super::writer::Writer;
use crate::resource::{BranchId, Fate, ResourceError, Unresolved, wall_clock};

/// How long the store's own writes wait for the file. An open branch may have it for longer; the coordinator asks again.
const OWN_WAIT: Duration = Duration::from_secs(5);
/// How often a writer is opened anew because the schema was changed under it, before a branch is refused.
const SCHEMA_ATTEMPTS: usize = 5;

/// An attached database.
#[derive(Debug)]
pub(super) struct Store {
    pub file: DatabaseFile,
    pub identity: ResourceManagerId,
    options: SqliteConnectOptions,
    journal: Arc<Journal>,
    turnstile: Arc<Turnstile>,
    slot: Arc<Mutex<Slot>>,
    reader: Mutex<SqliteConnection>,
    _lock: InstanceLock,
}

/// What is known of the journal.
#[derive(Debug)]
pub(super) enum Slot {
    /// It has to be read again, with the evidence.
    Unknown,
    /// It has no entry. Perhaps a writer that is open and idle.
    Free(Option<Writer>),
    /// Its entry is a prepared branch, whose transaction is open.
    Prepared(Box<Held>),
    /// Its entry is a prepared branch that could not be written again.
    Misfit(Box<Misfit>),
}

/// A prepared branch.
#[derive(Debug)]
pub(super) struct Held {
    pub branch: BranchId,
    deadline_ms: i64,
    transaction: Transaction,
    turn: Turn,
}

/// The transaction of a prepared branch.
#[derive(Debug)]
enum Transaction {
    /// The one that the handler worked in.
    Original(Writer),
    /// One that was written from the journal.
    Replayed(SqliteConnection),
}

/// A prepared branch that does not fit the database any more. Nobody writes through the SDK until it is decided: what
/// it changed would otherwise be changed by others too, and a person could not tell any more what it had been.
#[derive(Debug)]
pub(super) struct Misfit {
    pub branch: BranchId,
    entry: Entry,
    reason: String,
    turn: Turn,
}

/// A short write of the store's own. Dropped without a commit, it is rolled back and its connection closed.
struct OwnWrite {
    writer: Writer,
    _turn: Turn,
}

fn unresolved(error: ResourceError) -> Unresolved {
    match error {
        ResourceError::Unfit(why) | ResourceError::Unavailable(why) => Unresolved(why),
    }
}

fn failed(what: &'static str) -> impl FnOnce(sqlx::Error) -> Unresolved {
    move |error| Unresolved(format!("{what}: {error}"))
}

impl Transaction {
    fn connection(&mut self) -> &mut SqliteConnection {
        match self {
            Self::Original(writer) => &mut writer.connection,
            Self::Replayed(connection) => connection,
        }
    }

    async fn commit(&mut self) -> Result<(), sqlx::Error> {
        match self {
            Self::Original(writer) => writer.commit().await,
            Self::Replayed(connection) => connection::commit(connection).await,
        }
    }

    /// The writer, if it can be used again.
    async fn ended(self) -> Option<Writer> {
        match self {
            Self::Original(writer) => Some(writer),
            // It was opened for this one branch, without foreign keys and capture.
            Self::Replayed(connection) => {
                connection::close(connection).await;
                None
            }
        }
    }
}

impl Store {
    /// Opens the database, takes its lock, makes the SDK's tables, and brings back what was prepared.
    pub(super) async fn open(options: SqliteConnectOptions) -> Result<Arc<Self>, ResourceError> {
        let mut reader = connect(&options.clone().optimize_on_close(false, None)).await?;
        let file = DatabaseFile::new(&connection::file_of(&mut reader).await?)?;
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

    /// Recovery in a task of its own: a caller that goes away must not leave half of it behind.
    async fn recover_apart(
        self: &Arc<Self>,
        mut slot: OwnedMutexGuard<Slot>,
        turn: Turn,
    ) -> Result<(), ResourceError> {
        let store = Arc::clone(self);
        super::in_own_task(async move {
            *slot = store.recover(turn).await?;
            Ok(())
        })
        .await
    }

    /// Reads the journal and the evidence, and does what they ask for.
    async fn recover(&self, turn: Turn) -> Result<Slot, ResourceError> {
        turn.rename("recovery".into());
        let mut connection = connect(&connection::for_replay(&self.options)).await?;
        connection::checkpoint(&mut connection).await?;
        begin_immediate(&mut connection, Instant::now() + OWN_WAIT).await?;
        let entry = match self.journal.read()? {
            Found::Entry(bytes) => Entry::decode(&bytes).map_err(|error| self.unreadable(&error))?,
            found @ (Found::Nothing | Found::Torn) => {
                connection::close(connection).await;
                if found == Found::Torn {
                    tracing::warn!(journal = %self.journal.path().display(), "an entry was not completed: that branch was never prepared");
                    self.end_mark().await.map_err(|error| ResourceError::Unavailable(error.0))?;
                }
                return Ok(Slot::Free(None));
            }
        };
        let kind =
            evidence::kind_of(&mut connection, &entry.branch).await.map_err(unavailable("the evidence"))?;
        if let Some(kind) = kind {
            tracing::info!(branch = %entry.branch, ?kind, "a branch had ended, and its end mark was missing");
            connection::close(connection).await;
            fail::fail_point!("sqlite-recovery-ended");
            self.end_mark().await.map_err(|error| ResourceError::Unavailable(error.0))?;
            return Ok(Slot::Free(None));
        }
        self.bring_back(connection, entry, turn).await
    }

    fn unreadable(&self, error: &super::entry::Malformed) -> ResourceError {
        ResourceError::Unfit(format!("{}: {error}", self.journal.path().display()))
    }

    /// Writes the entry's branch again and holds it.
    async fn bring_back(
        &self,
        mut connection: SqliteConnection,
        entry: Entry,
        turn: Turn,
    ) -> Result<Slot, ResourceError> {
        fail::fail_point!("sqlite-replay-begun");
        let written = async {
            replay(&mut connection, &entry).await?;
            let row = NewEvidence {
                branch: &entry.branch,
                kind: Kind::Branch,
                position: entry.position,
                deadline_ms: entry.deadline_ms,
            };
            evidence::insert(&mut connection, &row).await?;
            Ok(())
        };
        match written.await {
            Ok(()) => {}
            Err(ReplayError::Failed(why)) => {
                return Err(ResourceError::Unavailable(format!(
                    "the prepared branch {} cannot be written again now: {why}",
                    entry.branch
                )));
            }
            Err(ReplayError::Misfit(reason)) => {
                connection::close(connection).await;
                tracing::error!(branch = %entry.branch, %reason, "a prepared branch does not fit the database any more");
                turn.rename(format!(
                    "the prepared branch {} cannot be written again ({reason}) and waits for its decision; it",
                    entry.branch
                ));
                let branch = entry.branch.clone();
                return Ok(Slot::Misfit(Box::new(Misfit { branch, entry, reason, turn })));
            }
        }
        fail::fail_point!("sqlite-replay-written");
        tracing::info!(branch = %entry.branch, "a prepared branch was written again and waits for its decision");
        let transaction = Transaction::Replayed(connection);
        Ok(Slot::prepared(entry.branch, entry.deadline_ms, transaction, turn))
    }

    async fn end_mark(&self) -> Result<(), Unresolved> {
        self.journal.end().await.map_err(|error| {
            Unresolved(format!("the journal's end mark {}: {error}", self.journal.path().display()))
        })
    }

    /// Begins a branch.
    pub(super) async fn begin(
        self: &Arc<Self>,
        branch: &BranchId,
        remaining: Duration,
    ) -> Result<OpenBranch, ResourceError> {
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
        if self.journal.is_free()? {
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

    /// Makes the entry of an open branch durable. The branch is prepared then.
    pub(super) async fn prepare(&self, open: OpenBranch, entry: Vec<u8>) -> Result<(), PrepareError> {
        let (branch, deadline_ms) = (open.branch().clone(), open.deadline_ms());
        let (writer, turn) = open.into_parts();
        let mut slot = Arc::clone(&self.slot).lock_owned().await;
        *slot = Slot::Unknown;
        fail::fail_point!("sqlite-prepare-journal");
        if let Err(error) = self.journal.write(entry).await {
            // It may be there all the same. It must not be found later: nobody has heard a vote.
            self.end_mark().await.map_err(PrepareError::Unresolved)?;
            writer.close().await;
            *slot = Slot::Free(None);
            return Err(PrepareError::No(format!("the journal {}: {error}", self.journal.path().display())));
        }
        fail::fail_point!("sqlite-prepare-done");
        *slot = Slot::prepared(branch, deadline_ms, Transaction::Original(writer), turn);
        Ok(())
    }

    /// Commits the branch if it is prepared; tells what became of it if it is not.
    pub(super) async fn commit(
        self: &Arc<Self>,
        branch: &BranchId,
        position: &LogPosition,
    ) -> Result<Fate, Unresolved> {
        let mut slot = self.known_slot().await.map_err(unresolved)?;
        match std::mem::replace(&mut *slot, Slot::Unknown) {
            Slot::Prepared(held) if held.branch == *branch => {
                let writer = self.commit_held(*held, position).await?;
                *slot = Slot::Free(writer);
                Ok(Fate::Committed)
            }
            Slot::Misfit(misfit) if misfit.branch == *branch => {
                self.give_up(*misfit, position).await?;
                *slot = Slot::Free(None);
                Ok(Fate::Hazard)
            }
            other @ (Slot::Unknown | Slot::Free(_) | Slot::Prepared(_) | Slot::Misfit(_)) => {
                *slot = other;
                drop(slot);
                self.settle(branch, position).await
            }
        }
    }

    async fn commit_held(
        &self,
        mut held: Held,
        position: &LogPosition,
    ) -> Result<Option<Writer>, Unresolved> {
        evidence::raise_position(held.transaction.connection(), &held.branch, position)
            .await
            .map_err(failed("the evidence of the branch"))?;
        fail::fail_point!("sqlite-commit-begun");
        held.transaction.commit().await.map_err(failed("COMMIT"))?;
        fail::fail_point!("sqlite-commit-committed");
        self.end_mark().await?;
        fail::fail_point!("sqlite-commit-ended");
        // The turn goes with `held`, when the writer is in the slot or closed.
        Ok(held.transaction.ended().await)
    }

    /// Rolls the branch back if it is prepared; fences it and tells what became of it if it is not.
    pub(super) async fn rollback(
        self: &Arc<Self>,
        branch: &BranchId,
        position: &LogPosition,
    ) -> Result<Fate, Unresolved> {
        let mut slot = self.known_slot().await.map_err(unresolved)?;
        match std::mem::replace(&mut *slot, Slot::Unknown) {
            Slot::Prepared(held) if held.branch == *branch => {
                fail::fail_point!("sqlite-rollback-begun");
                self.end_mark().await?;
                fail::fail_point!("sqlite-rollback-ended");
                let (deadline_ms, turn) = (held.deadline_ms, held.turn);
                let writer = roll_back(held.transaction).await;
                *slot = Slot::Free(writer);
                drop(slot);
                fail::fail_point!("sqlite-rollback-rolled-back");
                self.fence(branch, position, deadline_ms, turn).await
            }
            // It was never written again, so there is nothing to roll back.
            Slot::Misfit(misfit) if misfit.branch == *branch => {
                self.end_mark().await?;
                *slot = Slot::Free(None);
                drop(slot);
                self.fence(branch, position, misfit.entry.deadline_ms, misfit.turn).await
            }
            other @ (Slot::Unknown | Slot::Free(_) | Slot::Prepared(_) | Slot::Misfit(_)) => {
                *slot = other;
                drop(slot);
                self.settle(branch, position).await
            }
        }
    }

    /// What became of a branch that is not prepared: its evidence, or a fence that goes in now.
    async fn settle(self: &Arc<Self>, branch: &BranchId, position: &LogPosition) -> Result<Fate, Unresolved> {
        let on_record = evidence::kind_of(&mut *self.reader().await, branch).await;
        if let Some(kind) = on_record.map_err(failed("the evidence of the branch"))? {
            return Ok(kind.fate());
        }
        let deadline = Instant::now() + OWN_WAIT;
        let turn =
            self.enter(format!("a fence for {branch}"), Order::Urgent, deadline).await.map_err(unresolved)?;
        self.fence(branch, position, evidence::latest_deadline_ms(), turn).await
    }

    /// Puts a fence in, unless there is a row already.
    async fn fence(
        &self,
        branch: &BranchId,
        position: &LogPosition,
        deadline_ms: i64,
        turn: Turn,
    ) -> Result<Fate, Unresolved> {
        let position = position_bytes(position);
        let row = NewEvidence { branch, kind: Kind::Fence, position, deadline_ms };
        let mut write = self.own_write(turn).await?;
        let there = evidence::insert(&mut write.writer.connection, &row)
            .await
            .map_err(failed("a fence for the branch"))?;
        self.finish(write).await?;
        fail::fail_point!("sqlite-fence-written");
        Ok(there.unwrap_or(Kind::Fence).fate())
    }

    /// Records that a branch which was to commit never will, and keeps what it changed for a person.
    async fn give_up(&self, misfit: Misfit, position: &LogPosition) -> Result<(), Unresolved> {
        let report = hazard::set_aside(&self.file, &misfit.entry, &misfit.reason)
            .map_err(|error| Unresolved(format!("keeping what the branch changed: {error}")))?;
        fail::fail_point!("sqlite-hazard-kept");
        let row = NewEvidence {
            branch: &misfit.branch,
            kind: Kind::Hazard,
            position: position_bytes(position),
            deadline_ms: misfit.entry.deadline_ms,
        };
        let mut connection = connect(&connection::for_replay(&self.options)).await.map_err(unresolved)?;
        begin_immediate(&mut connection, Instant::now() + OWN_WAIT).await.map_err(unresolved)?;
        evidence::insert(&mut connection, &row).await.map_err(failed("recording the hazard"))?;
        connection::commit(&mut connection).await.map_err(failed("recording the hazard"))?;
        fail::fail_point!("sqlite-hazard-recorded");
        connection::close(connection).await;
        self.end_mark().await?;
        tracing::error!(branch = %misfit.branch, report = %report.display(), "a branch that was to commit is lost; a person has to look");
        Ok(())
    }

    async fn own_write(&self, turn: Turn) -> Result<OwnWrite, Unresolved> {
        let writer = self.begin_write(Instant::now() + OWN_WAIT).await.map_err(unresolved)?;
        Ok(OwnWrite { writer, _turn: turn })
    }

    /// Commits one of the store's own writes.
    async fn finish(&self, mut write: OwnWrite) -> Result<(), Unresolved> {
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
    pub(super) async fn bind(self: &Arc<Self>, cluster: lockstep_proto::ClusterId) -> Result<(), Unresolved> {
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

/// A branch that is not prepared.
#[derive(Debug)]
pub(super) enum PrepareError {
    /// And never will be.
    No(String),
    /// Or perhaps is.
    Unresolved(Unresolved),
}

impl Slot {
    fn prepared(branch: BranchId, deadline_ms: i64, transaction: Transaction, turn: Turn) -> Self {
        turn.rename(format!("the prepared branch {branch}"));
        Self::Prepared(Box::new(Held { branch, deadline_ms, transaction, turn }))
    }

    /// The branch that the journal has.
    pub(super) fn branch(&self) -> Option<&BranchId> {
        match self {
            Self::Unknown | Self::Free(_) => None,
            Self::Prepared(held) => Some(&held.branch),
            Self::Misfit(misfit) => Some(&misfit.branch),
        }
    }
}

/// Rolls back; the writer, if it can be used again.
async fn roll_back(mut transaction: Transaction) -> Option<Writer> {
    match connection::rollback(transaction.connection()).await {
        Ok(()) => transaction.ended().await,
        Err(error) => {
            tracing::warn!(%error, "ROLLBACK failed: the connection is closed instead");
            match transaction {
                Transaction::Original(writer) => writer.close().await,
                Transaction::Replayed(connection) => connection::close(connection).await,
            }
            None
        }
    }
}

/// The database's identity; made, with the SDK's tables, at the first attach.
async fn identify(
    options: &SqliteConnectOptions,
    journal: &Journal,
) -> Result<ResourceManagerId, ResourceError> {
    let mut connection = connect(&connection::for_replay(options)).await?;
    begin_immediate(&mut connection, Instant::now() + OWN_WAIT).await?;
    let known = evidence::identity(&mut connection).await?;
    if let Found::Entry(bytes) = journal.read()? {
        let entry = Entry::decode(&bytes).map_err(|error| ResourceError::Unfit(error.to_string()))?;
        if known != Some(entry.identity) {
            return Err(ResourceError::Unfit(format!(
                "the journal {} holds the prepared branch {} of another database: put the two files that belong together in \
                 one place",
                journal.path().display(),
                entry.branch
            )));
        }
    }
    if let Some(identity) = known {
        connection::close(connection).await;
        return Ok(identity);
    }
    let failed = || unavailable("making the SDK's tables");
    let identity = evidence::create(&mut connection).await.map_err(failed())?;
    fail::fail_point!("sqlite-attach-tables");
    connection::commit(&mut connection).await.map_err(failed())?;
    connection::close(connection).await;
    Ok(identity)
}
