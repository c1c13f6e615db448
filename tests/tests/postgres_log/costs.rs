//! What a commit costs the server of a shared log.

use lockstep_coordinator::decision_log::contract::{commit, committed, gtrid};
use lockstep_coordinator::decision_log::postgres::PostgresLog;
use lockstep_coordinator::decision_log::{Batch, DecisionLog};
use lockstep_coordinator::protocol::record::{DecisionRecord, EndRecord};
use lockstep_tests::harness::clock::wait_for;
use lockstep_tests::harness::postgres::PostgresServer;

use super::{LONG, leased, open, own};

/// Decisions of a batch.
const IN_ONE: u8 = 20;
/// Bytes of write-ahead log for each commit of two branches, without images of pages: its record, its end, three entries in two indexes, and its
/// share of the batch.
const MOST_BYTES: f64 = 580.0;

/// A log on a server where nothing else writes, and nothing tells how large the log has become.
async fn quiet() -> (PostgresServer, PostgresLog) {
    let server = PostgresServer::start_with(&[("autovacuum", "off"), ("checkpoint_timeout", "1h")]).unwrap();
    server.create_database("log").unwrap();
    let log = open(&leased(&server.url("log"), "a")).await;
    (server, log)
}

/// A batch of decisions, which nobody else's are like.
fn decisions(log: &PostgresLog, number: u64) -> Vec<DecisionRecord> {
    (0..IN_ONE).map(|place| commit(gtrid(own(log), number, place))).collect()
}

/// Forces these batches, each with the ends of the one before; the last ends are written lazily.
async fn commit_batches(log: &PostgresLog, numbers: std::ops::Range<u64>) {
    let mut ends: Vec<EndRecord> = Vec::new();
    for number in numbers {
        let decisions = decisions(log, number);
        let next = decisions.iter().map(committed).collect();
        log.force(&Batch { decisions, ends: std::mem::replace(&mut ends, next) }).await.unwrap();
    }
    log.write_lazily(&ends).await.unwrap();
}

/// What the sessions of a log that is closed have told of a table or an index, once they have.
fn told(server: &PostgresServer, updates: u64, sql: &str) -> u64 {
    let all = format!("SELECT n_tup_upd = {updates} FROM pg_stat_user_tables WHERE relname = 'transactions'");
    wait_for("the sessions to tell", LONG, || Ok((server.psql("log", &all)? == "t").then_some(()))).unwrap();
    server.psql("log", sql).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_commit_writes_little_ahead() {
    let (server, log) = quiet().await;
    server.psql("log", "CREATE EXTENSION pg_walinspect").unwrap();
    let place = || server.psql("log", "SELECT pg_current_wal_insert_lsn()").unwrap();
    let before = place();
    commit_batches(&log, 0..100).await;
    let sum = format!("SELECT sum(record_size) FROM pg_get_wal_stats('{before}', '{}')", place());
    // What was written lazily is not on disk yet, and can't be asked about.
    server.psql("log", "CHECKPOINT").unwrap();
    let bytes: f64 = server.psql("log", &sum).unwrap().parse().unwrap();
    let each = bytes / f64::from(100 * u32::from(IN_ONE));
    assert!(each < MOST_BYTES, "{each} bytes for each commit");
    log.close().await;
}

/// A plan that was made for a small table is kept while the table grows.
#[tokio::test]
async fn no_batch_reads_the_whole_log() {
    let (server, log) = quiet().await;
    commit_batches(&log, 0..2).await;
    server.psql("log", "ANALYZE lockstep_log.transactions").unwrap();
    let rows = "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'transactions'";
    let before: u64 = server.psql("log", rows).unwrap().parse().unwrap();
    commit_batches(&log, 2..100).await;
    log.close().await;
    assert_eq!(told(&server, 100 * u64::from(IN_ONE), rows), before);
}

/// A plan that was made when nothing was unfinished, and what a restart finds thousands of.
#[tokio::test]
async fn no_batch_reads_all_that_is_unfinished() {
    let (server, log) = quiet().await;
    commit_batches(&log, 0..100).await;
    server.psql("log", "VACUUM ANALYZE lockstep_log.transactions").unwrap();
    for number in 100..200 {
        let batch = Batch { decisions: decisions(&log, number), ends: Vec::new() };
        log.force(&batch).await.unwrap();
    }
    commit_batches(&log, 200..220).await;
    log.close().await;
    let read =
        "SELECT coalesce(sum(idx_tup_read), 0) FROM pg_stat_user_indexes WHERE indexrelname = 'unfinished'";
    assert_eq!(told(&server, 120 * u64::from(IN_ONE), read), 0);
}
