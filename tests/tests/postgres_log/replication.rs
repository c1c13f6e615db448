//! P3: a log on a primary with a synchronous standby, and what is left when the primary is lost.

use std::sync::Arc;
use std::time::Duration;

use lockstep_coordinator::decision_log::contract::{commit, gtrid};
use lockstep_coordinator::decision_log::postgres::{Options, PostgresLog};
use lockstep_coordinator::decision_log::{AppendError, DecisionLog, EpochState, Recorded};
use lockstep_coordinator::protocol::record::DecisionRecord;
use lockstep_tests::harness::postgres::PostgresServer;

use tokio::sync::mpsc::UnboundedSender;

use super::{LONG, decide, leased, own};

/// A primary, and a standby that its commits wait for.
fn pair() -> (PostgresServer, PostgresServer) {
    let primary = PostgresServer::start().unwrap();
    let standby = primary.start_standby().unwrap();
    primary.wait_for_standby().unwrap();
    (primary, standby)
}

/// Runs what blocks.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// What the log says, asked again as long as it does not answer.
async fn recorded(log: &PostgresLog, decision: &DecisionRecord) -> Recorded {
    let asked = async {
        loop {
            match log.look_up(&[decision.gtrid]).await {
                Ok(mut answers) => return answers.remove(0).recorded,
                Err(error) => eprintln!("{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LONG, asked).await.unwrap()
}

/// Decides one transaction after the other, and tells of each that was acknowledged, until nobody listens.
async fn keep_deciding(log: Arc<PostgresLog>, round: u8, acknowledged: UnboundedSender<DecisionRecord>) {
    for n in 0u64.. {
        let decision = commit(gtrid(own(&log), u64::from(round) << 32 | n, round));
        // A refused one was never written, and is nobody's.
        let is_decided = decide(&log, &decision).await.is_ok();
        if is_decided && acknowledged.send(decision).is_err() {
            return;
        }
    }
}

/// Again and again: the primary is killed while decisions are being written, and its standby takes its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_to_a_synchronous_standby_loses_no_acknowledged_decision() {
    const FAILOVERS: u8 = 3;
    let (mut primary, mut standby) = blocking(pair).await;
    let options = Options { patience: Duration::from_secs(2), ..leased(&primary.url("postgres"), "a") };
    let log = Arc::new(super::open(&options).await);
    let mut acknowledged = Vec::new();
    for round in 0..FAILOVERS {
        let (sender, mut decided) = tokio::sync::mpsc::unbounded_channel();
        let writing = tokio::spawn(keep_deciding(Arc::clone(&log), round, sender));
        for _ in 0..50 {
            acknowledged.push(tokio::time::timeout(LONG, decided.recv()).await.unwrap().unwrap());
        }
        (primary, standby) = blocking(move || {
            primary.kill().unwrap();
            standby.promote_in_place_of(&primary).unwrap();
            let next = standby.start_standby().unwrap();
            standby.wait_for_standby().unwrap();
            (standby, next)
        })
        .await;
        // It goes on, on the same address, under the same epoch.
        while let Ok(decision) = decided.try_recv() {
            acknowledged.push(decision);
        }
        for _ in 0..10 {
            acknowledged.push(tokio::time::timeout(LONG, decided.recv()).await.unwrap().unwrap());
        }
        drop(decided);
        tokio::time::timeout(LONG, writing).await.unwrap().unwrap();
    }
    assert!(acknowledged.len() >= 60 * usize::from(FAILOVERS));
    for decision in acknowledged {
        assert_eq!(recorded(&log, &decision).await, Recorded::Decided(decision));
    }
}

/// P3's schedule: the record is visible on the primary before the standby has it. A node acts on it, the primary is lost, and
/// the standby has no record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_the_standby_does_not_have_is_told_to_nobody() {
    let (mut primary, mut standby) = blocking(pair).await;
    let options = Options { patience: Duration::from_secs(2), ..leased(&primary.url("postgres"), "a") };
    let writer = Arc::new(super::open(&options).await);
    let decision = commit(gtrid(own(&writer), 0, 1));
    standby.freeze().unwrap();
    let write = tokio::spawn({
        let (writer, decision) = (Arc::clone(&writer), decision.clone());
        async move { decide(&writer, &decision).await }
    });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let deadline = tokio::time::Instant::now() + LONG;
    while primary.psql("postgres", waits).unwrap() == "0" {
        assert!(tokio::time::Instant::now() < deadline, "nobody waits for the standby");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    write.abort();
    // The primary crashes and comes back: nobody waits any more, and the record is there to be seen.
    primary = blocking(move || {
        primary.kill().unwrap();
        primary.restart().unwrap();
        primary
    })
    .await;
    let there = format!(
        "SELECT count(*) FROM lockstep_log.transactions WHERE epoch = {} AND ended_ms IS NULL",
        own(&writer)
    );
    assert_eq!(primary.psql("postgres", &there).unwrap(), "1");

    let mut telling = tokio::spawn({
        let (writer, asked) = (Arc::clone(&writer), decision.gtrid);
        async move { writer.look_up(&[asked]).await }
    });
    // It may fail, or wait; it must not tell.
    if let Ok(told) = tokio::time::timeout(Duration::from_secs(3), &mut telling).await {
        assert!(told.unwrap().is_err(), "a record was told that is about to be lost");
    }
    telling.abort();

    standby = blocking(move || {
        primary.kill().unwrap();
        // With what it had received and not read.
        standby.kill().unwrap();
        standby.restart().unwrap();
        standby.promote_in_place_of(&primary).unwrap();
        standby
    })
    .await;
    // The primary that was lost had more than it told anybody of.
    assert_eq!(standby.psql("postgres", &there).unwrap(), "0");
    let reader = super::open(&options).await;
    assert_eq!(recorded(&reader, &decision).await, Recorded::Absent);
    let answer = super::look(&reader, decision.gtrid).await;
    assert_eq!(answer.epoch, EpochState::Live);
}

/// What an asynchronous standby loses: decisions that were acknowledged. The node that made them notices at its next write, ends, and leaves word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_lost_acknowledged_decisions_is_noticed_by_the_node_that_made_them() {
    let (mut primary, mut standby) = blocking(|| {
        let primary = PostgresServer::start().unwrap();
        let standby = primary.start_standby().unwrap();
        (primary, standby)
    })
    .await;
    let options = Options { patience: Duration::from_secs(2), ..leased(&primary.url("postgres"), "a") };
    let log = super::open(&options).await;
    let kept = commit(gtrid(own(&log), 0, 1));
    decide(&log, &kept).await.unwrap();
    let has_it = "SELECT count(*) > 0 FROM lockstep_log.transactions";
    let deadline = tokio::time::Instant::now() + LONG;
    while standby.psql("postgres", has_it).ok().as_deref() != Some("t") {
        assert!(tokio::time::Instant::now() < deadline, "the standby does not follow");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    standby.freeze().unwrap();
    let lost = commit(gtrid(own(&log), 1, 2));
    decide(&log, &lost).await.unwrap();
    standby = blocking(move || {
        primary.kill().unwrap();
        standby.kill().unwrap();
        standby.restart().unwrap();
        standby.promote_in_place_of(&primary).unwrap();
        standby
    })
    .await;
    let next = commit(gtrid(own(&log), 2, 3));
    let over = decide(&log, &next).await.unwrap_err();
    assert!(matches!(&over, AppendError::Unknown(why) if why.contains("lockstep restore")), "{over}");
    assert!(log.look_up(&[kept.gtrid]).await.is_err(), "this life is over");
    let reader = super::open(&options).await;
    assert!(reader.status().await.unwrap().behind);
    // By its lease the node may still be there: it is left to say so itself, and nothing is presumed.
    assert_eq!(super::look(&reader, lost.gtrid).await.epoch, EpochState::Live);
    assert_eq!(recorded(&reader, &kept).await, Recorded::Decided(kept));
    drop(standby);
}
