//! What opening tells, and what it refuses.

use std::os::unix::fs::PermissionsExt;

use super::{TempSqlite, open, stranger};
use crate::decision_log::contract::{Store, commit, committed, decisions, ends, gtrid};
use crate::decision_log::data_dir::DataDirError;
use crate::decision_log::sqlite::OpenError;
use crate::decision_log::{AppendError, DecisionLog, PruneLimits};

/// Runs SQL on the log's file, as a stranger.
pub(super) async fn tamper(store: &TempSqlite, sql: &'static str) {
    let mut connection = stranger(store).await;
    sqlx::query(sql).execute(&mut connection).await.unwrap();
    sqlx::Connection::close(connection).await.unwrap();
}

#[tokio::test]
async fn it_tells_what_it_found() {
    let store = TempSqlite::create().await;
    let (log, first) = open(&store).await.unwrap();
    assert!(first.created);
    assert_eq!((first.sealed_epochs, first.unfinished, first.horizon_ms), (0, 0, 0));
    assert_eq!(first.position, log.position());
    assert_eq!(first.cluster, log.cluster());
    let epoch = first.position.epoch;
    let all = [0, 10, 20].map(|ms| commit(gtrid(epoch, ms, 1)));
    log.force(&decisions(&all)).await.unwrap();
    log.force(&ends(&[committed(&all[0])])).await.unwrap();
    let limits = PruneLimits { ended_before_ms: u64::MAX, below: all[1].gtrid, limit: 9 };
    assert_eq!(log.prune(limits).await.unwrap(), 1);
    log.close().await;
    drop(log);

    let (log, second) = open(&store).await.unwrap();
    assert!(!second.created);
    assert_eq!((second.sealed_epochs, second.unfinished), (1, 2));
    assert_eq!(second.horizon_ms, all[0].gtrid.unix_ms());
    assert_eq!((second.cluster, second.position.epoch.get()), (first.cluster, epoch.get() + 1));
    assert_eq!(second.dir, store.0.path());
    assert!(log.free_bytes().unwrap() > 0);
}

#[tokio::test]
async fn a_log_that_is_open_is_not_opened_twice() {
    let store = TempSqlite::create().await;
    let (log, _) = open(&store).await.unwrap();
    let error = open(&store).await.err().unwrap();
    assert!(matches!(&error, OpenError::DataDir(DataDirError::Locked { .. })), "{error}");
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    drop(log);
    open(&store).await.unwrap();
}

#[tokio::test]
async fn a_newer_schema_is_refused_by_its_number() {
    let store = TempSqlite::create().await;
    drop(store.open().await);
    tamper(
        &store,
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (4711, 'from the future', true, x'00', 0)",
    )
    .await;
    let error = open(&store).await.err().unwrap();
    assert!(matches!(error, OpenError::NewerSchema { found: 4711, .. }), "{error}");
}

#[tokio::test]
async fn a_changed_schema_is_refused() {
    let store = TempSqlite::create().await;
    drop(store.open().await);
    tamper(&store, "UPDATE _sqlx_migrations SET checksum = x'00'").await;
    let error = open(&store).await.err().unwrap();
    assert!(matches!(error, OpenError::UnknownSchema { .. }), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_damaged() {
    let store = TempSqlite::create().await;
    drop(store.open().await);
    std::fs::write(store.0.path().join("decisions.db"), "not a database, by any means".repeat(99)).unwrap();
    let error = open(&store).await.err().unwrap();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
}

#[tokio::test]
async fn a_program_that_reads_stands_in_the_way_of_the_checkpoint() {
    let store = TempSqlite::create().await;
    drop(store.open().await);
    let mut reader = stranger(&store).await;
    for sql in ["BEGIN", "SELECT count(*) FROM epochs"] {
        sqlx::query(sql).execute(&mut reader).await.unwrap();
    }
    let error = open(&store).await.err().unwrap();
    assert!(matches!(error, OpenError::NotCheckpointed { .. }), "{error}");
    sqlx::Connection::close(reader).await.unwrap();
    open(&store).await.unwrap();
}

#[tokio::test]
async fn the_directory_is_for_its_owner_alone() {
    let store = TempSqlite::create().await;
    let dir = store.0.path().join("var/lib/lockstep");
    let options = crate::decision_log::sqlite::Options { min_free_bytes: 0 };
    drop(super::SqliteLog::open(&dir, options).await.unwrap());
    assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
}

/// The lock can fail: the lock file is deleted, or the directory is on a file system that does not lock.
#[tokio::test]
async fn whoever_lost_the_log_to_a_second_process_writes_nothing_more() {
    let store = TempSqlite::create().await;
    let (first, _) = open(&store).await.unwrap();
    std::fs::remove_file(store.0.path().join("lockstep.lock")).unwrap();
    let (second, opened) = open(&store).await.unwrap();
    assert_eq!(opened.sealed_epochs, 1);

    let late = commit(gtrid(first.position().epoch, 0, 1));
    let result = first.force(&decisions(std::slice::from_ref(&late))).await;
    assert!(
        matches!(&result, Err(AppendError::Unknown(why)) if why.contains("another process")),
        "{result:?}"
    );
    assert_eq!(second.unfinished(None, 9).await.unwrap(), []);
    second.force(&decisions(&[commit(gtrid(second.position().epoch, 0, 1))])).await.unwrap();
}

#[tokio::test]
async fn lazy_writes_pruning_and_remembering_stop_at_the_seal_too() {
    use crate::decision_log::contract::{manager, rolled_back};
    let store = TempSqlite::create().await;
    for n in 0..3 {
        let (first, _) = open(&store).await.unwrap();
        let old = commit(gtrid(first.position().epoch, 0, n));
        first.force(&decisions(std::slice::from_ref(&old))).await.unwrap();
        first.force(&ends(&[committed(&old)])).await.unwrap();
        std::fs::remove_file(store.0.path().join("lockstep.lock")).unwrap();
        let (second, _) = open(&store).await.unwrap();
        let below = gtrid(first.position().epoch, 1000, 0);
        let limits = PruneLimits { ended_before_ms: below.unix_ms(), below, limit: 9 };
        let result = match n {
            0 => first.write_lazily(&[rolled_back(gtrid(first.position().epoch, 1, 1))]).await,
            1 => first.remember(&manager("orders-db", None)).await,
            _ => first.prune(limits).await.map(|_pruned| ()),
        };
        assert!(matches!(result, Err(AppendError::Unknown(_))), "{n}: {result:?}");
        assert_eq!(second.recently_ended(u32::MAX).await.unwrap().len() as u64, u64::from(n) + 1);
        assert_eq!(second.resource_managers().await.unwrap(), []);
    }
}
