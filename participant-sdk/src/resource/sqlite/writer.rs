//! The connection that branches work on, and the two hooks that keep it ours while a handler has it.
//!
//! A handler gets a whole `sqlx::SqliteConnection`. Whatever it sends, nothing may be committed on that connection but by the
//! resource: SQLite asks a *commit hook* before any commit, an explicit one, a released savepoint or a single statement
//! outside of a transaction, and turns it into a rollback if the hook says no. And nothing may run on long after the transaction's
//! deadline, or after the branch was given up: a *progress handler* interrupts statements.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteConnectOptions;
use tokio::time::Instant;

use super::connection::{self, unavailable};
use super::schema::Schema;
use super::{capture, connection::connect};
use crate::resource::ResourceError;

/// Steps of SQLite's virtual machine between two looks at the clock: well below a millisecond.
const STEPS_BETWEEN_LOOKS: i32 = 4000;

/// What the hooks look at.
#[derive(Debug)]
pub(super) struct Gate {
    made: Instant,
    commits: AtomicBool,
    /// A commit that was not ours was refused.
    refused: AtomicBool,
    /// Nothing may run any more.
    stopped: AtomicBool,
    /// Nanoseconds after `made`.
    deadline: AtomicU64,
}

impl Gate {
    fn new() -> Self {
        Self {
            made: Instant::now(),
            commits: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            deadline: AtomicU64::new(u64::MAX),
        }
    }

    fn may_commit(&self) -> bool {
        let open = self.commits.load(Ordering::Acquire);
        if !open {
            self.refused.store(true, Ordering::Release);
        }
        open
    }

    fn may_run(&self) -> bool {
        !self.stopped.load(Ordering::Acquire)
            && Instant::now() < self.made + Duration::from_nanos(self.deadline.load(Ordering::Acquire))
    }

    /// From now on a handler has the connection, until `deadline`.
    pub(super) fn lend(&self, deadline: Instant) {
        self.refused.store(false, Ordering::Release);
        let nanos = u64::try_from((deadline - self.made).as_nanos()).unwrap_or(u64::MAX);
        self.deadline.store(nanos, Ordering::Release);
    }

    /// The handler is done: statements of the resource are not interrupted. Whether a commit was refused meanwhile.
    pub(super) fn take_back(&self) -> bool {
        self.deadline.store(u64::MAX, Ordering::Release);
        self.refused.load(Ordering::Acquire)
    }

    /// Interrupts what is running, and everything that comes after it.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }
}

/// An open writer, with the capture installed for the schema as it was then.
#[derive(Debug)]
pub(super) struct Writer {
    pub connection: SqliteConnection,
    pub gate: Arc<Gate>,
    pub schema: Arc<Schema>,
    /// The TEMP schema's cookie after [`capture::install`]: a handler that leaves something of its own changes it.
    temp_version: i64,
}

impl Writer {
    /// Opens it. [`ResourceError::Unfit`] if the schema has something that cannot take part.
    pub(super) async fn open(options: &SqliteConnectOptions) -> Result<Self, ResourceError> {
        let mut connection = connect(&connection::for_branches(options)).await?;
        connection::check_fitness(&mut connection).await?;
        let schema = Schema::read(&mut connection).await?;
        capture::install(&mut connection, &schema)
            .await
            .map_err(unavailable("making the triggers that capture changes"))?;
        let temp_version = temp_version(&mut connection).await.map_err(unavailable("the TEMP schema"))?;
        connection::count_a_transaction(&mut connection)
            .await
            .map_err(unavailable("preparing the connection"))?;
        let gate = Arc::new(Gate::new());
        let mut handle = connection.lock_handle().await.map_err(unavailable("setting hooks"))?;
        handle.set_commit_hook({
            let gate = Arc::clone(&gate);
            move || gate.may_commit()
        });
        handle.set_progress_handler(STEPS_BETWEEN_LOOKS, {
            let gate = Arc::clone(&gate);
            move || gate.may_run()
        });
        drop(handle);
        Ok(Self { connection, gate, schema: Arc::new(schema), temp_version })
    }

    /// Whether the capture still fits: asked inside the transaction, after which the schema cannot change any more.
    pub(super) async fn is_current(&mut self) -> Result<bool, sqlx::Error> {
        let version: i64 = sqlx::query_scalar("SELECT schema_version FROM pragma_schema_version")
            .fetch_one(&mut self.connection)
            .await?;
        Ok(version == self.schema.version && temp_version(&mut self.connection).await? == self.temp_version)
    }

    /// Commits. After an error the outcome is unknown, and the writer is of no use any more.
    pub(super) async fn commit(&mut self) -> Result<(), sqlx::Error> {
        self.gate.commits.store(true, Ordering::Release);
        let committed = connection::commit(&mut self.connection).await;
        self.gate.commits.store(false, Ordering::Release);
        committed
    }

    /// Closes it and waits until its transaction is rolled back.
    pub(super) async fn close(self) {
        self.gate.stop();
        connection::close(self.connection).await;
    }

    /// Whether the commit hook is still the resource's: a handler can reach the raw handle and replace it.
    pub(super) fn is_guarded(&self) -> bool {
        // Ours, the commit hook's and the progress handler's.
        Arc::strong_count(&self.gate) == 3
    }
}

async fn temp_version(connection: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("PRAGMA temp.schema_version").fetch_one(connection).await
}
