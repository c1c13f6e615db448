//! The connections that the resource opens for itself, and what it asks of SQLite on them.

use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteLockingMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection};
use tokio::time::Instant;

use crate::doctor::refuse_errors;
use crate::doctor::sqlite::judge;
use crate::resource::ResourceError;

/// How long SQLite waits for a lock before it says that it is busy: see [`begin_immediate`].
const BUSY: Duration = Duration::from_millis(100);
/// How long a checkpoint waits for readers of older states, and a reader for the recovery of the WAL.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Turns a failed statement into an error that may be gone next time.
pub(super) fn unavailable(what: &'static str) -> impl FnOnce(sqlx::Error) -> ResourceError {
    move |error| ResourceError::Unavailable(format!("{what}: {error}"))
}

/// What every connection of the resource has in common, whatever the service's pool is set to.
fn own(options: &SqliteConnectOptions) -> SqliteConnectOptions {
    options
        .clone()
        .create_if_missing(false)
        .read_only(false)
        // One cache for several connections would show uncommitted rows to the one that reads before-images.
        .shared_cache(false)
        .locking_mode(SqliteLockingMode::Normal)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        // Its ANALYZE would write at a moment when nobody expects it.
        .optimize_on_close(false, None)
        .busy_timeout(BUSY)
        .pragma("query_only", "OFF")
}

/// For branches: foreign keys as the service set them, `recursive_triggers` for the capture (P26).
pub(super) fn for_branches(options: &SqliteConnectOptions) -> SqliteConnectOptions {
    own(options).pragma("recursive_triggers", "ON")
}

/// For the committed state.
pub(super) fn for_reading(options: &SqliteConnectOptions) -> SqliteConnectOptions {
    own(options).busy_timeout(PATIENCE).pragma("query_only", "ON")
}

/// For writing a prepared branch again: its rows were checked when they were first written, and foreign-key actions
/// have their results in the journal.
pub(super) fn for_replay(options: &SqliteConnectOptions) -> SqliteConnectOptions {
    own(options).busy_timeout(PATIENCE).foreign_keys(false).pragma("ignore_check_constraints", "ON")
}

/// Connects.
pub(super) async fn connect(options: &SqliteConnectOptions) -> Result<SqliteConnection, ResourceError> {
    options.connect().await.map_err(|error| {
        ResourceError::Unavailable(format!(
            "the database {} cannot be opened: {error}",
            options.get_filename().display()
        ))
    })
}

/// Refuses what cannot be durable (P22), by name: the same judgement that `lockstep doctor` shows.
pub(super) async fn check_fitness(connection: &mut SqliteConnection) -> Result<(), ResourceError> {
    let row = sqlx::query(
        "SELECT sqlite_version(), (SELECT journal_mode FROM pragma_journal_mode), \
         (SELECT synchronous FROM pragma_synchronous)",
    )
    .fetch_one(connection)
    .await
    .map_err(unavailable("the database's settings"))?;
    let failed = unavailable("the database's settings");
    let read = || -> Result<(String, String, i64), sqlx::Error> {
        Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
    };
    let (version, journal_mode, synchronous) = read().map_err(failed)?;
    refuse_errors(&[
        judge::version(&version),
        judge::journal_mode_set(&journal_mode),
        judge::synchronous(synchronous),
    ])
}

/// The file that the connection has open, as SQLite says it; empty for a database in memory.
pub(super) async fn file_of(connection: &mut SqliteConnection) -> Result<String, ResourceError> {
    sqlx::query_scalar("SELECT coalesce(file, '') FROM pragma_database_list WHERE name = 'main'")
        .fetch_one(connection)
        .await
        .map_err(unavailable("the database's path"))
}

/// Begins a write transaction, waiting for writers of other processes and of the service's pool until `deadline`.
///
/// SQLite waits on the connection's own thread and cannot be told to stop. So it waits a little at a time: where nobody
/// wants the transaction any more, the connection is closed soon.
pub(super) async fn begin_immediate(
    connection: &mut SqliteConnection,
    deadline: Instant,
) -> Result<(), ResourceError> {
    let begun = Instant::now();
    loop {
        match sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut *connection).await {
            Ok(_) => return Ok(()),
            Err(error) if !is_busy(&error) => return Err(unavailable("beginning a write")(error)),
            Err(_busy) if Instant::now() < deadline => {}
            Err(error) => {
                let waited = begun.elapsed().as_millis();
                return Err(ResourceError::Unavailable(format!(
                    "a writer that does not use the SDK had the file for {waited} ms: {error}"
                )));
            }
        }
    }
}

/// Commits what [`begin_immediate`] began. After an error the outcome is unknown.
pub(super) async fn commit(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql("COMMIT").execute(connection).await.map(drop)
}

/// Rolls back what [`begin_immediate`] began.
pub(super) async fn rollback(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql("ROLLBACK").execute(connection).await.map(drop)
}

/// Makes sqlx count a transaction on this connection for good, so that a handler's `begin()` inside a branch makes a
/// savepoint. sqlx counts what its own `begin` did, and cannot be told of a transaction that others began and end.
pub(super) async fn count_a_transaction(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    // Forgotten, it is never ended, and so never uncounted. It owns nothing.
    std::mem::forget(connection.begin().await?);
    rollback(connection).await
}

/// Closes it, waiting until its transaction is rolled back and its locks are gone.
pub(super) async fn close(connection: SqliteConnection) {
    if let Err(error) = connection.close().await {
        // The thread of the connection is gone, and the connection with it: there is nothing left to wait for.
        tracing::warn!(%error, "closing a SQLite connection");
    }
}

/// Moves everything that is in the WAL into the database file, durably.
///
/// After a COMMIT that failed, or a process that died, a row that can be read may still be in the operating system's memory only:
/// a failed fsync is reported once, and nobody may be left who heard of it. What a complete checkpoint has moved is
/// certain (the same reasoning as P6).
pub(super) async fn checkpoint(connection: &mut SqliteConnection) -> Result<(), ResourceError> {
    let row = sqlx::query("PRAGMA wal_checkpoint(FULL)")
        .fetch_one(connection)
        .await
        .map_err(unavailable("checkpointing the WAL"))?;
    let busy: i64 = row.try_get(0).map_err(unavailable("checkpointing the WAL"))?;
    if busy == 0 {
        return Ok(());
    }
    Err(ResourceError::Unavailable(
        "the WAL cannot be checkpointed completely: another connection (a backup tool, perhaps) has been reading an older state \
         for seconds, or is writing; it has to end first"
            .into(),
    ))
}

fn code_of(error: &sqlx::Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}

fn is_busy(error: &sqlx::Error) -> bool {
    const SQLITE_BUSY: i32 = 5;
    code_of(error).is_some_and(|code| code & 0xff == SQLITE_BUSY)
}

/// Whether a statement was refused by a constraint, and would be next time.
pub(super) fn is_constraint(error: &sqlx::Error) -> bool {
    const SQLITE_CONSTRAINT: i32 = 19;
    code_of(error).is_some_and(|code| code & 0xff == SQLITE_CONSTRAINT)
}
