//! What a committed transaction costs on disk, and a force in time.

use super::{TempSqlite, open};
use crate::decision_log::contract::{Store, bqual, commit, committed, decisions, ends, gtrid};
use crate::decision_log::{Batch, DecisionLog};
use crate::protocol::record::DecisionRecord;

/// Table and index, once it has ended, for names as people choose them.
#[tokio::test]
async fn a_committed_transaction_takes_at_most_250_bytes() {
    let store = TempSqlite::create().await;
    let (log, opened) = open(&store).await.unwrap();
    let epoch = opened.position.epoch;
    let count = 10_000;
    let decision = |n: u64| {
        let gtrid = lockstep_proto::Gtrid::new(epoch, 1_800_000_000_000 + n / 4, rand::random());
        let branches = vec![bqual("orders-db", rand::random()), bqual("warehouse-stock", rand::random())];
        DecisionRecord { branches, ..commit(gtrid) }
    };
    let all: Vec<DecisionRecord> = (0..count).map(decision).collect();
    // Each batch ends what the one before decided, as it is in life.
    let mut before: Vec<_> = Vec::new();
    for chunk in all.chunks(64) {
        let ended = std::mem::replace(&mut before, chunk.iter().map(committed).collect());
        log.force(&Batch { decisions: chunk.to_vec(), ends: ended }).await.unwrap();
    }
    log.force(&ends(&before)).await.unwrap();
    assert_eq!(log.recently_ended(u32::MAX).await.unwrap().len() as u64, count);
    log.close().await;
    // All of the file, with the little that an empty log has.
    let bytes = std::fs::metadata(store.0.path().join("decisions.db")).unwrap().len();
    println!("{} bytes per committed transaction", bytes / count);
    assert!(bytes <= 250 * count, "{bytes} bytes");
}

#[tokio::test]
#[ignore = "a measurement, for people: cargo test … forces_per_second -- --ignored --nocapture"]
async fn forces_per_second() {
    let store = TempSqlite::create().await;
    let (log, opened) = open(&store).await.unwrap();
    let epoch = opened.position.epoch;
    for (size, forces) in [(1, 500), (64, 300), (1024, 40)] {
        let batches: Vec<Batch> = (0..forces)
            .map(|n| {
                let all: Vec<_> = (0..size)
                    .map(|m| {
                        let random: [u8; 10] = rand::random();
                        commit(lockstep_proto::Gtrid::new(epoch, gtrid(epoch, n, 0).unix_ms() + m, random))
                    })
                    .collect();
                decisions(&all)
            })
            .collect();
        let start = tokio::time::Instant::now();
        for batch in &batches {
            log.force(batch).await.unwrap();
        }
        let took = start.elapsed();
        let each = took / u32::try_from(forces).unwrap();
        println!("{size} records: {each:?} a force, {:.0} forces/s", 1.0 / each.as_secs_f64());
    }
}
