//! P7 where several nodes share a log: what is pruned, what resource managers are told, and what begins, whatever the nodes' clocks say.

use lockstep_coordinator::decision_log::contract::{commit, committed, ends};
use lockstep_coordinator::decision_log::postgres::{OpenError, Options, PostgresLog, Renewal};
use lockstep_coordinator::decision_log::{DecisionLog, PruneLimits};
use lockstep_coordinator::engine::clock::unix_ms;
use lockstep_proto::{Epoch, Gtrid};
use lockstep_tests::harness::postgres::fresh_database;

use super::{decide, leased, look, open, options, own};

/// Later than the clock of any machine that runs this: a log knows its nodes' own times.
const LATE_MS: u64 = 4_000_000_000_000;

fn gtrid(epoch: Epoch, ms: u64, n: u8) -> Gtrid {
    Gtrid::new(epoch, LATE_MS + ms, [n; 10])
}

/// A prune stays below what lives at another node.
#[tokio::test]
async fn pruning_stays_below_what_another_node_published() {
    let database = fresh_database();
    let log = open(&leased(&database.url(), "a")).await;
    let other = open(&leased(&database.url(), "b")).await;
    let epoch = own(&log);
    let old = commit(gtrid(epoch, 0, 1));
    decide(&log, &old).await.unwrap();
    log.force(&ends(&[committed(&old)])).await.unwrap();
    let limits = PruneLimits { ended_before_ms: u64::MAX >> 1, below: gtrid(epoch, 1 << 30, 0), limit: 10 };
    other.renew(Renewal { floor_ms: old.gtrid.unix_ms(), live: 1 }).await.unwrap();
    assert_eq!(log.prune(limits).await.unwrap(), 0);
    assert_eq!(log.floor(limits.below).await.unwrap().unix_ms(), old.gtrid.unix_ms());
    other.renew(Renewal { floor_ms: old.gtrid.unix_ms() + 1, live: 0 }).await.unwrap();
    assert_eq!(log.prune(limits).await.unwrap(), 1);
    // That there may have been a record is more than nothing: it is told only behind a write (P3).
    let passed = || database.psql("SELECT sum(passed) FROM lockstep_log.barriers").parse::<i64>().unwrap();
    let before = passed();
    assert!(look(&other, old.gtrid).await.below_horizon);
    assert_eq!(passed(), before + 1);
}

/// Else its transactions are older than what a resource manager reports as its oldest, and than what may be pruned.
#[tokio::test]
async fn a_node_begins_nothing_below_what_another_one_told_before() {
    let database = fresh_database();
    // Its clock is ahead of all others.
    let ahead = open(&options(&database.url(), "a")).await;
    let told = gtrid(own(&ahead), 5_000, 0);
    assert_eq!(ahead.floor(told).await.unwrap(), told);
    let late = open(&leased(&database.url(), "b")).await;
    assert!(late.begins_from_ms().await.unwrap() >= told.unix_ms());
    // By now the first one is sealed. What it told stays told.
    let later = open(&leased(&database.url(), "c")).await;
    assert!(later.begins_from_ms().await.unwrap() >= told.unix_ms());
    // A floor never goes down again, whatever the clock does.
    late.floor(gtrid(own(&late), 9_000, 0)).await.unwrap();
    late.floor(gtrid(own(&late), 2_000, 0)).await.unwrap();
    late.renew(Renewal { floor_ms: 1, live: 0 }).await.unwrap();
    let last = open(&leased(&database.url(), "d")).await;
    assert_eq!(last.begins_from_ms().await.unwrap(), LATE_MS + 9_000);
}

/// The other way round: it was there before, and has begun what it may.
#[tokio::test]
async fn nobody_is_told_a_floor_above_what_another_node_may_have_begun() {
    let database = fresh_database();
    let behind = open(&leased(&database.url(), "b")).await;
    let ahead = open(&leased(&database.url(), "a")).await;
    let begins_from_ms = behind.begins_from_ms().await.unwrap();
    assert!(begins_from_ms < LATE_MS);
    let told = ahead.floor(gtrid(own(&ahead), 5_000, 0)).await.unwrap();
    assert!(told.unix_ms() <= begins_from_ms, "{told}");
}

/// Else they are presumed nothing as soon as they begin: an operator would have to look at each of them.
#[tokio::test]
async fn a_node_begins_nothing_below_the_horizon_of_another() {
    let database = fresh_database();
    let log = open(&leased(&database.url(), "a")).await;
    let old = commit(gtrid(own(&log), 0, 1));
    decide(&log, &old).await.unwrap();
    log.force(&ends(&[committed(&old)])).await.unwrap();
    let below = gtrid(own(&log), 7_000, 0);
    let limits = PruneLimits { ended_before_ms: u64::MAX >> 1, below, limit: 10 };
    assert_eq!(log.prune(limits).await.unwrap(), 1);
    let late = open(&leased(&database.url(), "b")).await;
    // Not only above what was pruned: the next prune of the first node, with the floors it has read by now, may come up to here.
    assert_eq!(late.begins_from_ms().await.unwrap(), below.unix_ms());
}

#[tokio::test]
async fn a_node_whose_clock_is_far_off_the_servers_does_not_start() {
    const LIMIT_MS: u64 = 10 * 60 * 1000;
    let database = fresh_database();
    let minute = 60 * 1000;
    for (now_ms, fits) in [
        (unix_ms() + LIMIT_MS - minute, true),
        (unix_ms() + LIMIT_MS + minute, false),
        (unix_ms() - LIMIT_MS + minute, true),
        (unix_ms() - LIMIT_MS - minute, false),
    ] {
        let opened = PostgresLog::open(&Options { now_ms, ..leased(&database.url(), "a") }).await;
        match opened {
            Ok(_) => assert!(fits, "{now_ms}"),
            Err(refused @ OpenError::Clock { .. }) => assert!(!fits, "{refused}"),
            Err(other) => panic!("{other}"),
        }
    }
}
