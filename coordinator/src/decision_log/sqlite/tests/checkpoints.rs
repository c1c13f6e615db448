//! The write-ahead log ends.

use std::time::Duration;

use super::{TempSqlite, open, stranger};
use crate::decision_log::contract::{Store, commit, committed, decisions, ends, gtrid};
use crate::decision_log::{AppendError, DecisionLog, Recorded};

fn size(store: &TempSqlite, file: &str) -> u64 {
    std::fs::metadata(store.0.path().join(file)).map_or(0, |metadata| metadata.len())
}

#[tokio::test]
async fn the_write_ahead_log_does_not_grow_with_what_is_written() {
    let store = TempSqlite::create().await;
    let (log, opened) = open(&store).await.unwrap();
    let epoch = opened.position.epoch;
    let before = size(&store, "decisions.db");
    let (mut written, mut largest) = (0, 0);
    // Four times as much as the checkpointer lets it grow; commits without a pause between them.
    for ms in 0..1024 {
        let all: Vec<_> = (0..16).map(|n| commit(gtrid(epoch, ms, n))).collect();
        log.force(&decisions(&all)).await.unwrap();
        log.force(&ends(&all.iter().map(committed).collect::<Vec<_>>())).await.unwrap();
        written += 2 * super::super::PAGES_PER_BATCH_BYTES;
        largest = largest.max(size(&store, "decisions.db-wal"));
    }
    assert!(written > 4 * super::super::CHECKPOINT_BYTES);
    assert!(largest < 3 * super::super::CHECKPOINT_BYTES, "{largest}");
    assert!(size(&store, "decisions.db") > before, "nothing was moved while the log was open");
    log.close().await;
    assert_eq!(size(&store, "decisions.db-wal"), 0);
    drop(log);
    let log = store.open().await;
    assert_eq!(log.recently_ended(u32::MAX).await.unwrap().len() as u64, 1024 * 16);
}

#[tokio::test]
async fn a_reader_does_not_stop_forces_nor_do_forces_stop_it() {
    let store = TempSqlite::create().await;
    let (log, opened) = open(&store).await.unwrap();
    let epoch = opened.position.epoch;
    let gtrids: Vec<_> = (0..200).map(|n| gtrid(epoch, 0, n)).collect();
    log.force(&decisions(&gtrids.iter().copied().map(commit).collect::<Vec<_>>())).await.unwrap();
    // Another program holds the write lock: a force has to wait for it, and a reader has not.
    let mut holder = stranger(&store).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut holder).await.unwrap();
    let batch = decisions(&[commit(gtrid(epoch, 1, 1))]);
    let mut force = log.force(&batch);
    let early = tokio::time::timeout(Duration::from_millis(50), &mut force).await;
    assert!(early.is_err(), "the force waits");
    let answers = log.look_up(&gtrids).await.unwrap();
    assert!(answers.iter().all(|answer| matches!(answer.recorded, Recorded::Decided(_))));
    sqlx::query("ROLLBACK").execute(&mut holder).await.unwrap();
    force.await.unwrap();
    sqlx::Connection::close(holder).await.unwrap();
}

/// A force that waits longer than SQLite is told to gives up before it has written anything.
#[tokio::test]
async fn a_write_lock_that_is_not_given_free_refuses_the_force() {
    let store = TempSqlite::create().await;
    let (log, opened) = open(&store).await.unwrap();
    let mut holder = stranger(&store).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut holder).await.unwrap();
    let decision = commit(gtrid(opened.position.epoch, 0, 1));
    let batch = decisions(std::slice::from_ref(&decision));
    let refused = log.force(&batch).await;
    assert!(matches!(&refused, Err(AppendError::Refused(_))), "{refused:?}");
    sqlx::query("ROLLBACK").execute(&mut holder).await.unwrap();
    assert_eq!(log.look_up(&[decision.gtrid]).await.unwrap()[0].recorded, Recorded::Absent);
    assert_eq!(log.force(&batch).await.unwrap().sequence, 1);
    sqlx::Connection::close(holder).await.unwrap();
}

/// A force that is given up halfway may have been in its COMMIT.
#[tokio::test]
async fn a_cancelled_force_breaks_the_log() {
    let store = TempSqlite::create().await;
    let (log, opened) = open(&store).await.unwrap();
    let batch = decisions(&[commit(gtrid(opened.position.epoch, 0, 1))]);
    let mut force = log.force(&batch);
    assert!(futures::poll!(&mut force).is_pending());
    drop(force);
    let after = log.force(&batch).await;
    assert!(matches!(&after, Err(AppendError::Unknown(_))), "{after:?}");
}
