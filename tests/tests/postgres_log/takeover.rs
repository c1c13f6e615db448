//! P5: leases, sealing and adopting.

use std::sync::Arc;
use std::time::Duration;

use lockstep_coordinator::decision_log::contract::{commit, gtrid};
use lockstep_coordinator::decision_log::postgres::{Options, PostgresLog, Renewal};
use lockstep_coordinator::decision_log::{AppendError, DecisionLog, EpochState, Recorded};
use lockstep_tests::harness::postgres::{PostgresServer, fresh_database};

use super::{AT_GATE, Gate, LONG, decide, leased, look, open, options, own, until};

#[tokio::test]
async fn an_epoch_is_sealed_when_its_lease_has_run_out_and_not_before() {
    let database = fresh_database();
    let peer = open(&leased(&database.url(), "b")).await;
    let options = Options { lease: Duration::from_secs(2), ..leased(&database.url(), "a") };
    let log = open(&options).await;
    let decision = commit(gtrid(own(&log), 0, 1));
    decide(&log, &decision).await.unwrap();
    log.renew(Renewal { floor_ms: 1, live: 1 }).await.unwrap();
    assert_eq!(peer.take_over().await.unwrap(), []);
    assert_eq!(look(&peer, decision.gtrid).await.epoch, EpochState::Live);

    let run_out =
        format!("SELECT expires_at < clock_timestamp() FROM lockstep_log.leases WHERE epoch = {}", own(&log));
    until(&database, "the lease to run out", &run_out).await;
    assert_eq!(peer.take_over().await.unwrap(), [own(&log)]);
    assert_eq!(look(&peer, decision.gtrid).await.epoch, EpochState::Sealed);
    assert_eq!(peer.unfinished(None, 10).await.unwrap(), [decision]);
    // Once is enough, and it stays this node's.
    assert_eq!(peer.take_over().await.unwrap(), [own(&log)]);
}

#[tokio::test]
async fn a_node_that_closes_its_log_is_succeeded_at_once() {
    let database = fresh_database();
    let peer = open(&leased(&database.url(), "b")).await;
    let log = open(&leased(&database.url(), "a")).await;
    let silent = open(&options(&database.url(), "c")).await;
    log.close().await;
    assert_eq!(peer.take_over_what_was_given_up().await.unwrap(), [own(&log)]);
    // One that has only run out is left alone by this look.
    assert_eq!(look(&peer, gtrid(own(&silent), 0, 1)).await.epoch, EpochState::Live);
}

#[tokio::test]
async fn a_node_that_starts_again_does_not_wait_for_its_own_lease() {
    let database = fresh_database();
    let peer = leased(&database.url(), "b");
    let (first, other) = (open(&leased(&database.url(), "a")).await, open(&peer).await);
    let again = Options { succeeds: true, ..leased(&database.url(), "a") };
    let second = open(&again).await;
    assert_eq!(look(&other, gtrid(own(&first), 0, 1)).await.epoch, EpochState::Sealed);
    assert_eq!(look(&second, gtrid(own(&other), 0, 1)).await.epoch, EpochState::Live);
    // A life that follows on a seal, in the same process, succeeds nobody: two nodes of one name would seal each other for ever.
    let third = open(&leased(&database.url(), "a")).await;
    assert_eq!(look(&third, gtrid(own(&second), 0, 1)).await.epoch, EpochState::Live);
}

/// Else an adopter dies before it has delivered, and nobody delivers.
#[tokio::test]
async fn sealing_adopts_what_the_sealed_epoch_had_adopted() {
    let database = fresh_database();
    let first = open(&options(&database.url(), "a")).await;
    let decision = commit(gtrid(own(&first), 0, 1));
    decide(&first, &decision).await.unwrap();
    let second = open(&options(&database.url(), "b")).await;
    let also = commit(gtrid(own(&second), 1, 2));
    decide(&second, &also).await.unwrap();
    assert_eq!(second.unfinished(None, 10).await.unwrap(), [decision.clone(), also.clone()]);
    let third = open(&leased(&database.url(), "c")).await;
    assert_eq!(third.take_over().await.unwrap(), [own(&first), own(&second)]);
    assert_eq!(third.unfinished(None, 10).await.unwrap(), [decision, also]);
}

/// Else it adopts under an epoch that nobody looks at any more.
#[tokio::test]
async fn a_node_whose_own_epoch_was_sealed_seals_nobody() {
    let database = fresh_database();
    let first = open(&options(&database.url(), "a")).await;
    let stopped = open(&Options { lease: Duration::from_secs(600), ..options(&database.url(), "b") }).await;
    let victim = open(&leased(&database.url(), "c")).await;
    database.psql("UPDATE lockstep_log.leases SET expires_at = '-infinity'");
    database.psql(&format!(
        "UPDATE lockstep_log.epochs SET sealed = true, owner = {} WHERE number = {}",
        own(&victim),
        own(&stopped)
    ));
    // It had sealed the first one while it could.
    assert_eq!(stopped.take_over().await.unwrap(), [own(&first)]);
    assert_eq!(look(&victim, gtrid(own(&victim), 0, 1)).await.epoch, EpochState::Own);
    assert_eq!(
        database.psql(&format!("SELECT sealed FROM lockstep_log.epochs WHERE number = {}", own(&victim))),
        "f"
    );
}

/// Both may try at once: one wins, and neither waits for the other for ever.
#[tokio::test]
async fn nodes_that_seal_each_other_do_not_deadlock() {
    let database = fresh_database();
    for _round in 0..5 {
        let one = Arc::new(open(&leased(&database.url(), "a")).await);
        let other = Arc::new(open(&leased(&database.url(), "b")).await);
        let pair = format!("{}, {}", own(&one), own(&other));
        database.psql(&format!(
            "UPDATE lockstep_log.leases SET expires_at = '-infinity' WHERE epoch IN ({pair})"
        ));
        let both = async { tokio::join!(one.take_over(), other.take_over()) };
        let (first, second) = tokio::time::timeout(LONG, both).await.unwrap();
        first.unwrap();
        second.unwrap();
        let sealed = database
            .psql(&format!("SELECT count(*) FROM lockstep_log.epochs WHERE sealed AND number IN ({pair})"));
        assert_eq!(sealed, "1", "exactly one of them is over");
        let rest = format!("UPDATE lockstep_log.leases SET expires_at = 'infinity' WHERE epoch IN ({pair})");
        database.psql(&rest);
    }
}

/// A node that was stopped in the middle of a statement holds its epoch's row: its sessions are ended, and takeover goes on.
#[tokio::test]
async fn a_session_that_holds_the_row_is_ended() {
    let database = fresh_database();
    let peer = open(&leased(&database.url(), "b")).await;
    let log = Arc::new(open(&leased(&database.url(), "a")).await);
    let gate = Gate::close(&database).await;
    let decision = commit(gtrid(own(&log), 0, 1));
    let write = tokio::spawn({
        let (log, decision) = (Arc::clone(&log), decision.clone());
        async move { decide(&log, &decision).await }
    });
    until(&database, "the write to begin", AT_GATE).await;
    database.psql(&format!(
        "UPDATE lockstep_log.leases SET expires_at = '-infinity' WHERE epoch = {}",
        own(&log)
    ));
    let adopted = tokio::time::timeout(LONG, async {
        loop {
            let adopted = peer.take_over().await.unwrap();
            if !adopted.is_empty() {
                return adopted;
            }
        }
    });
    assert_eq!(adopted.await.unwrap(), [own(&log)]);
    assert_eq!(look(&peer, decision.gtrid).await.recorded, Recorded::Absent);
    gate.open().await;
    let refused = tokio::time::timeout(LONG, write).await.unwrap().unwrap();
    assert!(matches!(refused, Err(AppendError::Sealed(_))), "{refused:?}");
    assert_eq!(look(&peer, decision.gtrid).await.recorded, Recorded::Absent);
}

/// A node that has just started does not know yet whether the others are gone, or only have had no log to renew their leases in.
#[tokio::test]
async fn opening_seals_nobody_whose_lease_has_only_run_out() {
    let database = fresh_database();
    let late = open(&options(&database.url(), "a")).await;
    let (given_up, _opened) = PostgresLog::open(&leased(&database.url(), "b")).await.unwrap();
    given_up.close().await;
    let (peer, opened) = PostgresLog::open(&leased(&database.url(), "c")).await.unwrap();
    assert_eq!(opened.adopted, [own(&given_up)]);
    assert_eq!(look(&peer, gtrid(own(&late), 0, 1)).await.epoch, EpochState::Live);
    assert_eq!(peer.take_over().await.unwrap(), [own(&late), own(&given_up)]);
}

/// A node that was stopped between the seal and its COMMIT holds a row that is not its own.
#[tokio::test]
async fn a_sealer_that_holds_the_row_is_ended() {
    use sqlx::Connection as _;
    let database = fresh_database();
    let peer = open(&leased(&database.url(), "c")).await;
    let victim = open(&leased(&database.url(), "a")).await;
    let stopped = open(&leased(&database.url(), "b")).await;
    victim.close().await;
    // As the other node's connection for that is called.
    let incarnation = "SELECT left(encode(incarnation, 'hex'), 16) FROM lockstep_log.epochs WHERE number";
    let incarnation = database.psql(&format!("{incarnation} = {}", own(&stopped)));
    let name = format!("lockstep epoch {} {incarnation} seal", own(&stopped));
    let mut sealer = sqlx::PgConnection::connect(&database.url()).await.unwrap();
    let halfway = format!(
        "SET application_name = '{name}'; BEGIN; \
         UPDATE lockstep_log.epochs SET sealed = true, owner = {} WHERE number = {}",
        own(&stopped),
        own(&victim)
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(halfway)).execute(&mut sealer).await.unwrap();
    let begun = tokio::time::Instant::now();
    let adopted = async {
        loop {
            let adopted = peer.take_over().await.unwrap();
            if !adopted.is_empty() {
                return adopted;
            }
        }
    };
    assert_eq!(tokio::time::timeout(Duration::from_secs(20), adopted).await.unwrap(), [own(&victim)]);
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    assert_eq!(look(&peer, gtrid(own(&stopped), 0, 1)).await.epoch, EpochState::Live);
    assert!(sqlx::raw_sql("COMMIT").execute(&mut sealer).await.is_err(), "its session is over");
}

/// It ends by itself, and nothing is gained: the seal would wait for the same standby. And nobody is to break such a wait off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_waits_for_a_standby_is_left_alone() {
    let server = PostgresServer::start().unwrap();
    let peer = open(&leased(&server.url("postgres"), "b")).await;
    let log = Arc::new(open(&leased(&server.url("postgres"), "a")).await);
    super::wait_for_nobody(&server, true);
    let decision = commit(gtrid(own(&log), 0, 1));
    let write = tokio::spawn({
        let (log, decision) = (Arc::clone(&log), decision.clone());
        async move { decide(&log, &decision).await }
    });
    let waits =
        "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE 'WITH own%'";
    super::until_at(&server, "the write to wait for the standby", waits).await;
    let run_out =
        format!("UPDATE lockstep_log.leases SET expires_at = '-infinity' WHERE epoch = {}", own(&log));
    server.psql("postgres", &format!("SET synchronous_commit = off; {run_out}")).unwrap();
    for _attempt in 0..2 {
        assert_eq!(peer.take_over().await.unwrap(), []);
    }
    assert_eq!(server.psql("postgres", waits).unwrap(), "t");
    super::wait_for_nobody(&server, false);
    assert_eq!(tokio::time::timeout(LONG, write).await.unwrap().unwrap(), Ok(()));
    assert_eq!(peer.take_over().await.unwrap(), [own(&log)]);
    assert_eq!(peer.unfinished(None, 10).await.unwrap(), [decision]);
}

/// A renewal may still be under way when a node gives its lease up.
#[tokio::test]
async fn a_lease_that_was_given_up_is_not_renewed() {
    let database = fresh_database();
    let log = open(&leased(&database.url(), "a")).await;
    let given_up = "SELECT expires_at = '-infinity' FROM lockstep_log.leases";
    database.psql("UPDATE lockstep_log.leases SET expires_at = '-infinity'");
    log.renew(Renewal { floor_ms: 1, live: 1 }).await.unwrap();
    assert_eq!(database.psql(given_up), "t");
}
