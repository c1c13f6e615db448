//! Rows that are not what was written are errors that name them, and are never left out.

use lockstep_proto::Gtrid;

use super::opening::tamper;
use super::{TempSqlite, open};
use crate::decision_log::contract::{Store, commit, committed, decisions, ends, gtrid, manager, rolled_back};
use crate::decision_log::sqlite::OpenError;
use crate::decision_log::sqlite::SqliteLog;
use crate::decision_log::{AppendError, DecisionLog, PruneLimits, ReadError};

/// One decision that is unfinished, then changed by `sql`.
async fn damaged_decision(sql: &'static str) -> (TempSqlite, SqliteLog, Gtrid) {
    let store = TempSqlite::create().await;
    let log = store.open().await;
    let epoch = log.position().epoch;
    let (victim, other) = (commit(gtrid(epoch, 0, 1)), commit(gtrid(epoch, 1, 2)));
    log.force(&decisions(&[victim.clone(), other])).await.unwrap();
    tamper(&store, sql).await;
    (store, log, victim.gtrid)
}

fn names<T: std::fmt::Debug>(result: Result<T, ReadError>, gtrid: Gtrid) -> bool {
    matches!(&result, Err(ReadError::Damaged(what)) if what.contains(&gtrid.to_string()))
}

/// Changes the last byte of the first row's decision.
const FLIP_DECISION: &str = "UPDATE transactions SET decision = \
     CAST(substr(decision, 1, length(decision) - 1) || iif(substr(decision, -1) = x'00', x'01', x'00') AS BLOB) \
     WHERE gtrid = (SELECT min(gtrid) FROM transactions)";

#[tokio::test]
async fn a_flipped_byte_in_a_decision_is_named_wherever_it_is_read() {
    let (store, log, gtrid) = damaged_decision(FLIP_DECISION).await;
    assert!(names(log.look_up(&[gtrid]).await, gtrid));
    assert!(names(log.unfinished(None, 10).await, gtrid));
    // Behind it all is well.
    assert_eq!(log.unfinished(Some(gtrid), 10).await.unwrap().len(), 1);
    let end = committed(&commit(gtrid));
    let result = log.force(&ends(&[end])).await;
    assert!(
        matches!(&result, Err(AppendError::Unknown(why)) if why.contains(&gtrid.to_string())),
        "{result:?}"
    );
    drop(log);
    let log = store.open().await;
    assert!(names(log.unfinished(None, 10).await, gtrid));
}

#[tokio::test]
async fn a_flipped_byte_on_the_disk_is_noticed() {
    let store = TempSqlite::create().await;
    let log = store.open().await;
    let decision = commit(gtrid(log.position().epoch, 0, 1));
    log.force(&decisions(std::slice::from_ref(&decision))).await.unwrap();
    log.close().await;
    drop(log);
    let file = store.0.path().join("decisions.db");
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.windows(9).position(|window| window == b"orders-db").unwrap();
    bytes[at + 3] ^= 1;
    std::fs::write(&file, bytes).unwrap();

    let log = store.open().await;
    assert!(names(log.unfinished(None, 10).await, decision.gtrid));
}

#[tokio::test]
async fn a_decision_in_another_transactions_row_is_noticed() {
    let swap = "UPDATE transactions SET decision = \
         (SELECT decision FROM transactions AS other WHERE other.gtrid <> transactions.gtrid)";
    let (_store, log, gtrid) = damaged_decision(swap).await;
    assert!(names(log.look_up(&[gtrid]).await, gtrid));
}

#[tokio::test]
async fn an_end_that_nobody_wrote_does_not_end_anything() {
    let forge = "UPDATE transactions SET ended_ms = 1, ending = x'0100000000'";
    let (_store, log, gtrid) = damaged_decision(forge).await;
    assert!(names(log.look_up(&[gtrid]).await, gtrid));
    assert!(names(
        log.recently_ended(1).await.map_err(|error| ReadError::Damaged(format!("{error} {gtrid}"))),
        gtrid
    ));
    let below = Gtrid::new(gtrid.epoch(), gtrid.unix_ms() + 999, [0; 10]);
    let limits = PruneLimits { ended_before_ms: u64::MAX, below, limit: 9 };
    let pruned = log.prune(limits).await;
    assert!(
        matches!(&pruned, Err(AppendError::Refused(why)) if why.contains(&gtrid.to_string())),
        "{pruned:?}"
    );
    assert_eq!(log.find("1.", 9).await.unwrap().len(), 2, "nothing was pruned");
}

#[tokio::test]
async fn a_time_that_was_changed_does_not_let_a_record_be_pruned() {
    let store = TempSqlite::create().await;
    let log = store.open().await;
    let end = rolled_back(gtrid(log.position().epoch, 0, 1));
    log.force(&ends(std::slice::from_ref(&end))).await.unwrap();
    tamper(&store, "UPDATE transactions SET ended_ms = 1").await;
    let below = gtrid(log.position().epoch, 1, 0);
    let limits = PruneLimits { ended_before_ms: end.ended_ms, below, limit: 9 };
    let pruned = log.prune(limits).await;
    assert!(matches!(&pruned, Err(AppendError::Refused(why)) if why.contains("checksum")), "{pruned:?}");
}

#[tokio::test]
async fn a_damaged_resource_manager_is_named_and_nothing_is_pruned() {
    let store = TempSqlite::create().await;
    let log = store.open().await;
    let epoch = log.position().epoch;
    log.force(&ends(&[rolled_back(gtrid(epoch, 0, 1))])).await.unwrap();
    log.remember(&manager("orders-db", Some(gtrid(epoch, 999, 0)))).await.unwrap();
    tamper(&store, "UPDATE resource_managers SET record = substr(record, 1, length(record) - 1)").await;
    let listed = log.resource_managers().await;
    assert!(matches!(&listed, Err(ReadError::Damaged(what)) if what.contains("orders-db")), "{listed:?}");
    let limits = PruneLimits { ended_before_ms: u64::MAX, below: gtrid(epoch, 500, 0), limit: 9 };
    assert!(matches!(log.prune(limits).await, Err(AppendError::Refused(_))));
    assert_eq!(log.recently_ended(9).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_log_with_a_damaged_epoch_or_mark_is_not_opened() {
    for (sql, named) in [
        ("UPDATE epochs SET record = zeroblob(length(record)) WHERE number = 1", "epoch"),
        ("UPDATE epochs SET number = 7 WHERE number = 1", "epoch"),
        ("INSERT INTO epochs (number, record) VALUES (-1, x'01')", "-1"),
        ("UPDATE marks SET record = (SELECT record FROM marks WHERE name = 'horizon')", "cluster"),
        ("DELETE FROM marks WHERE name = 'cluster'", "cluster"),
        ("DELETE FROM marks WHERE name = 'horizon'", "horizon"),
        (
            "UPDATE marks SET record = CAST(x'02' || substr(record, 2) AS BLOB) WHERE name = 'horizon'",
            "newer",
        ),
    ] {
        let store = TempSqlite::create().await;
        drop(store.open().await);
        tamper(&store, sql).await;
        let error = open(&store).await.err().unwrap();
        assert!(matches!(&error, OpenError::Damaged { what, .. } if what.contains(named)), "{sql}: {error}");
    }
}

#[tokio::test]
async fn a_damaged_epoch_is_not_presumed_sealed() {
    let store = TempSqlite::create().await;
    drop(store.open().await);
    let log = store.open().await;
    tamper(&store, "UPDATE epochs SET record = zeroblob(length(record)) WHERE number = 1").await;
    let earlier = gtrid(lockstep_proto::Epoch::new(1).unwrap(), 0, 1);
    let answer = log.look_up(&[earlier]).await;
    assert!(matches!(&answer, Err(ReadError::Damaged(what)) if what.contains("epoch 1")), "{answer:?}");
}
