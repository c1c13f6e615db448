//! P1 and P4: nothing is decided under a sealed epoch, and whoever sealed it sees everything that was.

use std::sync::Arc;
use std::time::Duration;

use lockstep_coordinator::decision_log::contract::{commit, committed, ends, gtrid, manager};
use lockstep_coordinator::decision_log::postgres::Renewal;
use lockstep_coordinator::decision_log::{
    AppendError, DecisionLog, EpochState, PruneLimits, ReadError, Recorded,
};
use lockstep_tests::harness::postgres::fresh_database;

use super::{AT_GATE, Gate, LONG, decide, leased, look, open, options, own, until};

#[tokio::test]
async fn a_node_whose_epoch_was_sealed_decides_nothing() {
    let database = fresh_database();
    let stopped = open(&options(&database.url(), "a")).await;
    let peer = open(&leased(&database.url(), "b")).await;
    let decision = commit(gtrid(own(&stopped), 0, 1));
    let answer = look(&peer, decision.gtrid).await;
    assert_eq!((answer.recorded, answer.epoch), (Recorded::Absent, EpochState::Sealed));

    // From here on the peer may have answered "rolled back".
    let refused = decide(&stopped, &decision).await;
    assert!(matches!(&refused, Err(AppendError::Sealed(why)) if why.contains("sealed")), "{refused:?}");
    assert_eq!(look(&peer, decision.gtrid).await.recorded, Recorded::Absent);

    // And it stays so: nothing more is written or read in this life.
    assert!(matches!(stopped.force(&ends(&[committed(&decision)])).await, Err(AppendError::Sealed(_))));
    assert!(matches!(stopped.write_lazily(&[committed(&decision)]).await, Err(AppendError::Sealed(_))));
    assert!(matches!(stopped.look_up(&[decision.gtrid]).await, Err(ReadError::Unavailable(_))));
}

#[tokio::test]
async fn a_node_whose_epoch_was_sealed_learns_it_when_it_renews_its_lease() {
    let database = fresh_database();
    let stopped = open(&options(&database.url(), "a")).await;
    let _peer = open(&leased(&database.url(), "b")).await;
    let renewed = stopped.renew(Renewal { floor_ms: 1, live: 0 }).await;
    assert!(matches!(renewed, Err(AppendError::Sealed(_))), "{renewed:?}");
}

/// Of a peer that was there before, decisions may follow on the own epoch's first, whatever becomes of it later (P8).
#[tokio::test]
async fn what_a_peer_decides_is_not_all_there_because_the_own_epoch_is() {
    let database = fresh_database();
    let gone = open(&options(&database.url(), "a")).await;
    let peer = open(&leased(&database.url(), "b")).await;
    assert!(!peer.has_all_of(own(&gone)), "it was sealed behind the moment in which the own one began");
    let late = open(&leased(&database.url(), "c")).await;
    assert!(late.has_all_of(own(&gone)));
    assert!(!late.has_all_of(own(&peer)) && !peer.has_all_of(own(&late)));
}

/// P8: it need not write anything for that.
#[tokio::test]
async fn a_node_whose_batches_are_gone_learns_it_when_it_renews_its_lease() {
    let database = fresh_database();
    let node = open(&leased(&database.url(), "a")).await;
    for low in 0..2 {
        decide(&node, &commit(gtrid(own(&node), 0, low))).await.unwrap();
    }
    node.renew(Renewal { floor_ms: 1, live: 0 }).await.unwrap();
    database.psql("UPDATE lockstep_log.positions SET sequence = sequence - 1");
    let renewed = node.renew(Renewal { floor_ms: 1, live: 0 }).await;
    assert!(
        matches!(&renewed, Err(AppendError::Unknown(why)) if why.contains("lockstep restore")),
        "{renewed:?}"
    );
    assert_eq!(database.psql("SELECT count(*) FROM lockstep_log.marks WHERE name = 'behind'"), "1");
}

#[tokio::test]
async fn a_node_whose_epoch_was_sealed_prunes_and_remembers_nothing() {
    let database = fresh_database();
    let stopped = open(&options(&database.url(), "a")).await;
    let decision = commit(gtrid(own(&stopped), 0, 1));
    decide(&stopped, &decision).await.unwrap();
    stopped.force(&ends(&[committed(&decision)])).await.unwrap();
    let peer = open(&leased(&database.url(), "b")).await;

    let limits =
        PruneLimits { ended_before_ms: u64::MAX >> 1, below: gtrid(own(&stopped), 1 << 40, 0), limit: 10 };
    assert!(matches!(stopped.prune(limits).await, Err(AppendError::Refused(_))));
    assert!(matches!(stopped.remember(&manager("orders-db", None)).await, Err(AppendError::Refused(_))));
    assert!(matches!(look(&peer, decision.gtrid).await.recorded, Recorded::Ended(..)));
    assert_eq!(peer.resource_managers().await.unwrap(), []);
}

/// P1's schedule: A has found its epoch unsealed and is writing; B seals, finds no decision and answers "rolled back"; A
/// commits.
#[tokio::test]
async fn a_seal_waits_for_a_decision_that_is_being_written() {
    let database = fresh_database();
    let writer = Arc::new(open(&options(&database.url(), "a")).await);
    let gate = Gate::close(&database).await;
    let decision = commit(gtrid(own(&writer), 0, 1));
    let write = tokio::spawn({
        let (writer, decision) = (Arc::clone(&writer), decision.clone());
        async move { decide(&writer, &decision).await }
    });
    until(&database, "the write to begin", AT_GATE).await;

    let url = database.url();
    let sealing = tokio::spawn(async move { open(&leased(&url, "b")).await });
    let waits = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
         AND query LIKE 'UPDATE lockstep_log.epochs SET sealed%'";
    until(&database, "the seal to wait", waits).await;
    gate.open().await;
    let peer = tokio::time::timeout(LONG, sealing).await.unwrap().unwrap();
    assert_eq!(write.await.unwrap(), Ok(()));

    let answer = look(&peer, decision.gtrid).await;
    assert_eq!((answer.recorded, answer.epoch), (Recorded::Decided(decision.clone()), EpochState::Sealed));
    assert_eq!(peer.unfinished(None, 10).await.unwrap(), [decision]);
}

/// The other order: the seal holds the row, and the decision's statement, begun before the seal was committed, waits for it and
/// looks again.
#[tokio::test]
async fn a_decision_that_waited_for_a_seal_is_not_written() {
    use sqlx::Connection as _;
    let database = fresh_database();
    let writer = Arc::new(open(&leased(&database.url(), "a")).await);
    let mut sealer = sqlx::PgConnection::connect(&database.url()).await.unwrap();
    let seal = format!(
        "BEGIN; UPDATE lockstep_log.epochs SET sealed = true, owner = 99 WHERE number = {}",
        own(&writer)
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(seal)).execute(&mut sealer).await.unwrap();
    let decision = commit(gtrid(own(&writer), 0, 1));
    let write = tokio::spawn({
        let (writer, decision) = (Arc::clone(&writer), decision.clone());
        async move { decide(&writer, &decision).await }
    });
    let waits =
        "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'WITH own%'";
    until(&database, "the write to wait", waits).await;
    sqlx::raw_sql("COMMIT").execute(&mut sealer).await.unwrap();
    let refused = tokio::time::timeout(LONG, write).await.unwrap().unwrap();
    assert!(matches!(refused, Err(AppendError::Sealed(_))), "{refused:?}");
    let peer = open(&leased(&database.url(), "b")).await;
    assert_eq!(look(&peer, decision.gtrid).await.recorded, Recorded::Absent);
}

/// A live transaction of another node is neither presumed rolled back nor anybody else's to decide.
#[tokio::test]
async fn a_live_epoch_of_another_node_is_not_judged() {
    let database = fresh_database();
    let one = open(&leased(&database.url(), "a")).await;
    let other = open(&leased(&database.url(), "b")).await;
    let undecided = gtrid(own(&one), 0, 1);
    let answer = look(&other, undecided).await;
    assert_eq!((answer.recorded, answer.epoch), (Recorded::Absent, EpochState::Live));
    // What is decided there is no recovery's matter here.
    decide(&one, &commit(undecided)).await.unwrap();
    assert_eq!(other.take_over().await.unwrap(), []);
    assert_eq!(other.unfinished(None, 10).await.unwrap(), []);
}

/// P3: a read is used only behind a write that changes a row.
#[tokio::test]
async fn what_is_read_waits_for_a_write_behind_it() {
    use sqlx::Connection as _;
    let database = fresh_database();
    let log = Arc::new(open(&leased(&database.url(), "a")).await);
    let decision = commit(gtrid(own(&log), 0, 1));
    decide(&log, &decision).await.unwrap();
    let passed = "SELECT sum(passed) FROM lockstep_log.barriers";
    let before: i64 = database.psql(passed).parse().unwrap();
    // Whatever keeps that write waiting, as a standby would, keeps the answer waiting.
    let mut holder = sqlx::PgConnection::connect(&database.url()).await.unwrap();
    sqlx::raw_sql("BEGIN; SELECT * FROM lockstep_log.barriers FOR UPDATE")
        .execute(&mut holder)
        .await
        .unwrap();
    let reader = Arc::clone(&log);
    let asked = decision.gtrid;
    let mut read = tokio::spawn(async move { reader.look_up(&[asked]).await });
    let waits = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
         AND query LIKE 'UPDATE lockstep_log.barriers%'";
    until(&database, "the write behind the read", waits).await;
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut read).await.is_err());
    sqlx::raw_sql("COMMIT").execute(&mut holder).await.unwrap();
    let found = tokio::time::timeout(LONG, read).await.unwrap().unwrap().unwrap();
    assert_eq!(found[0].recorded, Recorded::Decided(decision));
    assert!(database.psql(passed).parse::<i64>().unwrap() > before);
}

/// Nothing follows from "another node may still decide": whoever asks for a live transaction at the wrong node costs the log no write.
#[tokio::test]
async fn what_says_nothing_waits_for_no_write() {
    let database = fresh_database();
    let one = open(&leased(&database.url(), "a")).await;
    let other = open(&leased(&database.url(), "b")).await;
    let [undecided, decided] = [1, 2].map(|n| gtrid(own(&one), 0, n));
    decide(&one, &commit(decided)).await.unwrap();
    let passed = || database.psql("SELECT sum(passed) FROM lockstep_log.barriers").parse::<i64>().unwrap();
    let before = passed();
    assert_eq!(look(&other, undecided).await.epoch, EpochState::Live);
    assert_eq!(passed(), before);
    assert_eq!(other.look_up(&[undecided, decided]).await.unwrap().len(), 2);
    assert_eq!(passed(), before + 1, "a record beside it does");
    assert_eq!(look(&one, undecided).await.epoch, EpochState::Own);
    assert_eq!(passed(), before + 2, "silence at the own node is as good as an answer");
}

/// A log that has lost the whole epoch, as after a failover to a standby that lacked it, was not taken over from. Else the node takes the
/// same number again, and presumes of the transactions of the lost one that they were rolled back (P8).
#[tokio::test]
async fn an_epoch_that_the_log_has_lost_is_not_taken_for_a_sealed_one() {
    for by in ["a write", "a renewal", "a look"] {
        let database = fresh_database();
        let log = open(&leased(&database.url(), "a")).await;
        for row in
            ["epochs WHERE number", "leases WHERE epoch", "positions WHERE epoch", "barriers WHERE epoch"]
        {
            database.psql(&format!("DELETE FROM lockstep_log.{row} = {}", own(&log)));
        }
        let told = match by {
            "a write" => decide(&log, &commit(gtrid(own(&log), 0, 1))).await.unwrap_err().to_string(),
            "a renewal" => log.renew(Renewal { floor_ms: 1, live: 0 }).await.unwrap_err().to_string(),
            _look => log.epochs().await.unwrap_err().to_string(),
        };
        assert!(told.contains("lockstep restore"), "by {by}: {told}");
        let over = decide(&log, &commit(gtrid(own(&log), 0, 2))).await.unwrap_err();
        assert!(matches!(over, AppendError::Unknown(_)), "by {by}: {over}");
        let next = open(&leased(&database.url(), "a")).await;
        assert_eq!(own(&next), own(&log), "the same number is given out again");
        assert!(next.status().await.unwrap().behind, "by {by}");
    }
}
