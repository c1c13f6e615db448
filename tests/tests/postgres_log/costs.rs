//! What a commit costs the server of a shared log.

use lockstep_coordinator::decision_log::contract::{commit, committed, gtrid};
use lockstep_coordinator::decision_log::{Batch, DecisionLog};
use lockstep_coordinator::protocol::record::{DecisionRecord, EndRecord};
use lockstep_tests::harness::postgres::PostgresServer;

use super::{leased, open, own};

/// So many that the server keeps the statement's plan from the time when the log was nearly empty.
const BATCHES: u64 = 100;
/// Decisions of each.
const IN_ONE: u8 = 20;
/// Bytes of write-ahead log for each commit of two branches, without images of pages: its record, its end, three entries in two indexes, and its
/// share of the batch.
const MOST_BYTES: f64 = 580.0;

#[tokio::test]
async fn a_commit_writes_little_ahead_and_no_batch_reads_the_whole_log() {
    // Nothing else of this server writes, and nothing tells it how large the log has become.
    let server = PostgresServer::start_with(&[("autovacuum", "off"), ("checkpoint_timeout", "1h")]).unwrap();
    server.create_database("log").unwrap();
    server.psql("log", "CREATE EXTENSION pg_walinspect").unwrap();
    let log = open(&leased(&server.url("log"), "a")).await;
    let place = || server.psql("log", "SELECT pg_current_wal_insert_lsn()").unwrap();
    let before = place();
    let mut ends: Vec<EndRecord> = Vec::new();
    for n in 0..BATCHES {
        let decisions: Vec<DecisionRecord> =
            (0..IN_ONE).map(|place| commit(gtrid(own(&log), n, place))).collect();
        let next = decisions.iter().map(committed).collect();
        log.force(&Batch { decisions, ends: std::mem::replace(&mut ends, next) }).await.unwrap();
    }
    log.write_lazily(&ends).await.unwrap();
    // Its sessions end, and tell what they have read.
    log.close().await;

    let sum = format!("SELECT sum(record_size) FROM pg_get_wal_stats('{before}', '{}')", place());
    // The last ends were written lazily.
    server.psql("log", "CHECKPOINT").unwrap();
    let bytes: f64 = server.psql("log", &sum).unwrap().parse().unwrap();
    let commits = f64::from(u32::from(IN_ONE) * u32::try_from(BATCHES).unwrap());
    assert!(bytes / commits < MOST_BYTES, "{} bytes for each commit", bytes / commits);
    let read = "SELECT seq_tup_read, n_tup_upd FROM pg_stat_user_tables WHERE relname = 'transactions'";
    assert_eq!(server.psql("log", read).unwrap(), format!("0|{commits}"));
    assert_eq!(
        server.psql("log", "SELECT count(*) FROM lockstep_log.transactions WHERE ended_ms IS NULL").unwrap(),
        "0"
    );
}
