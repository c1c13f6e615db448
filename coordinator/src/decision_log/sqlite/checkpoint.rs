//! Checkpoints: moving what was committed from the write-ahead log into the database file, so that the former ends.
//!
//! Two occasions. When the log is opened and closed, a *truncating* one, which must succeed before anything that was read
//! leaves the process: after an fsync that failed, a restart reads from the page cache what may not be on disk (P6); the
//! checkpoint writes it again, to the database file, and syncs that. And in between, in the background, whenever the
//! write-ahead log has grown: SQLite's own automatic checkpoint is switched off, because it runs inside a COMMIT, so
//! that now and then a batch would wait for it, and because it keeps its errors to itself.
//!
//! The background one has two passes. The first copies most, beside the writer. The second holds the writer off and copies
//! the little that was added meanwhile; without it a busy log would never be copied to its end, and only a write-ahead
//! log that was copied to its end begins anew instead of growing. (Checkpointing beside a writer needs SQLite 3.51.3 or
//! newer: up to 3.51.2 it could, very rarely, corrupt the database. See "The WAL Reset Bug" on sqlite.org/wal.html.)

use std::sync::Arc;

use sqlx::SqliteConnection;
use tokio_util::sync::CancellationToken;

use super::{Shared, read};

/// Checkpoints everything and empties the write-ahead log, or says why not. On a connection with `synchronous=FULL`, so that
/// it syncs the database file.
pub(super) async fn truncate(connection: &mut SqliteConnection) -> Result<(), String> {
    let (busy, _frames, _copied): (i64, i64, i64) = sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)")
        .fetch_one(connection)
        .await
        .map_err(|error| error.to_string())?;
    if busy == 0 { Ok(()) } else { Err("another process is using the database".to_owned()) }
}

/// The background task: ends when it is told to, or when the log is broken.
pub(super) async fn run(shared: Arc<Shared>, mut connection: SqliteConnection, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = shared.grown.notified() => {}
        }
        if let Err(error) = both_passes(&shared, &mut connection).await
            && !can_wait(&error)
        {
            tracing::error!(%error, "the decision log's checkpoint failed");
            let _ = shared.broken.set(&format!("the checkpoint failed: {error}"));
            break;
        }
    }
    // Nothing hangs on it: the connection holds no data.
    let _ = sqlx::Connection::close(connection).await;
}

async fn both_passes(shared: &Shared, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    const PASSIVE: &str = "PRAGMA wal_checkpoint(PASSIVE)";
    fail::fail_point!("log-before-checkpoint");
    super::transaction::execute(connection, PASSIVE).await?;
    fail::fail_point!("log-between-checkpoint-passes");
    let mut writers = shared.writers.lock().await;
    super::transaction::execute(connection, PASSIVE).await?;
    if let Some(writers) = writers.as_mut() {
        writers.grown_bytes = 0;
    }
    fail::fail_point!("log-after-checkpoint");
    Ok(())
}

/// Whether the next one may succeed: a reader or another program is in the way, or the disk is full. Nothing is lost; the
/// write-ahead log stays as it is.
fn can_wait(error: &sqlx::Error) -> bool {
    const SQLITE_BUSY: i32 = 5;
    const SQLITE_LOCKED: i32 = 6;
    const SQLITE_FULL: i32 = 13;
    matches!(read::code(error), Some(SQLITE_BUSY | SQLITE_LOCKED | SQLITE_FULL))
}
