//! What clients get wrong.

use std::collections::HashMap;
use std::time::Duration;

use lockstep_proto::v1::{self, Outcome, Wait};
use tonic::Code;

use super::lockstep::{Lockstep, assert_refused};
use super::raw::Raw;

/// No version 7, upper case, too short, too long, no epoch, epoch 0, no gtrid at all.
const MALFORMED: &[&str] = &[
    "",
    "1",
    "1.",
    ".0192f0c1a2b37c3d8e4f5a6b7c8d9e0f",
    "0.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f",
    "01.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f",
    "1.0192f0c1a2b37c3d8e4f5a6b7c8d9e0",
    "1.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f0",
    "1.0192F0C1A2B37C3D8E4F5A6B7C8D9E0F",
    "1.0192f0c1a2b34c3d8e4f5a6b7c8d9e0f",
    "4294967296.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f",
    "' OR 1=1; --",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_gtrid_is_refused_wherever_one_is_given() {
    let mut lockstep = Lockstep::start().await;
    let long = "1.".to_owned() + &"0".repeat(100_000);
    for gtrid in MALFORMED.iter().copied().chain([long.as_str()]) {
        assert_refused(lockstep.commit(gtrid).await, Code::InvalidArgument, "MALFORMED_GTRID", "gtrid");
        assert_refused(lockstep.rollback(gtrid).await, Code::InvalidArgument, "MALFORMED_GTRID", "gtrid");
        let inquired = lockstep.inquire(gtrid).await;
        assert!(inquired.as_ref().is_err_and(|status| status.message().len() < 500), "the answer is cut");
        assert_refused(inquired, Code::InvalidArgument, "MALFORMED_GTRID", "gtrid");
    }
    lockstep.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_another_cluster_is_refused_and_one_of_an_epoch_that_never_was_is_unknown() {
    let mut lockstep = Lockstep::start().await;
    let gtrid = lockstep.begin().await;
    let foreign = |cluster: &str| {
        let request = v1::InquireRequest { gtrid: gtrid.clone(), cluster: cluster.to_owned() };
        let mut rpc = lockstep.rpc.clone();
        async move { rpc.inquire(request).await }
    };
    assert_refused(
        foreign("00000000").await,
        Code::FailedPrecondition,
        "FOREIGN_CLUSTER",
        "cluster 00000000",
    );
    assert_refused(foreign("nonsense").await, Code::InvalidArgument, "MALFORMED_ID", "cluster id");
    // Absence proves nothing for an epoch that this log has never given out (P8).
    let never = "4000000.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f";
    assert_eq!(lockstep.inquire(never).await.unwrap().outcome(), Outcome::Unknown);
    assert_eq!(lockstep.commit(never).await.unwrap().outcome(), Outcome::Unknown);
    assert_eq!(lockstep.rollback(never).await.unwrap().outcome(), Outcome::Unknown);
    lockstep.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_begun_or_has_ended_is_answered_the_same_each_time() {
    let mut lockstep = Lockstep::start().await;
    let begun = lockstep.begin().await;
    // Of an epoch that is live here, and with a time that is not pruned: presumed rolled back.
    let (epoch, uuid) = begun.split_once('.').unwrap();
    let never = format!("{epoch}.{}{}", &uuid[..24], "0123abcd");
    for _ in 0..2 {
        assert_eq!(lockstep.commit(&never).await.unwrap().outcome(), Outcome::RolledBack);
        assert_eq!(lockstep.rollback(&never).await.unwrap().outcome(), Outcome::RolledBack);
        assert_eq!(lockstep.inquire(&never).await.unwrap().outcome(), Outcome::RolledBack);
    }
    assert_eq!(lockstep.inquire(&begun).await.unwrap().outcome(), Outcome::Undecided);
    for _ in 0..2 {
        assert_eq!(lockstep.rollback(&begun).await.unwrap().outcome(), Outcome::RolledBack);
        assert_eq!(
            lockstep.commit(&begun).await.unwrap().outcome(),
            Outcome::RolledBack,
            "commit after rollback"
        );
    }
    lockstep.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_answered_the_same_twice_and_a_rollback_after_it_is_refused() {
    let mut lockstep = Lockstep::start().await;
    let mut raw = Raw::attach(&lockstep.url(), "raw-db").await;
    let mut other = Raw::attach(&lockstep.url(), "other-db").await;
    let gtrid = lockstep.begin().await;
    let (mine, theirs) = (raw.xid(&gtrid, 1), other.xid(&gtrid, 1));
    raw.enlist(&mine).await.unwrap();
    other.enlist(&theirs).await.unwrap();
    let committing = async {
        let (first, second) = tokio::join!(lockstep.commit(&gtrid), lockstep.commit(&gtrid));
        (first.unwrap(), second.unwrap())
    };
    let participating = async {
        for (raw, xid) in [(&mut raw, &mine), (&mut other, &theirs)] {
            raw.expect_prepare(xid).await;
            raw.vote(xid, v1::VoteKind::Commit).await;
        }
        for (raw, xid) in [(&mut raw, &mine), (&mut other, &theirs)] {
            assert_eq!(raw.expect_decision(xid).await, v1::Decision::Commit);
            raw.acknowledge(xid, v1::Applied::Committed).await;
        }
    };
    let ((first, second), ()) = tokio::join!(committing, participating);
    let third = lockstep.commit(&gtrid).await.unwrap();
    for answer in [first, second, third] {
        assert_eq!((answer.outcome(), answer.branches, answer.branches_pending), (Outcome::Committed, 2, 0));
    }
    let rolled_back = lockstep.rollback(&gtrid).await;
    assert_refused(rolled_back, Code::FailedPrecondition, "ALREADY_COMMITTED", "has committed");
    assert_eq!(lockstep.inquire(&gtrid).await.unwrap().outcome(), Outcome::Committed);
    lockstep.is_well().await;
}

/// The end is written a second later than it is told; nobody who asks in between may hear that it is undecided again.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_in_one_phase_is_answered_the_same_at_once_and_later() {
    let mut lockstep = Lockstep::start().await;
    let mut raw = Raw::attach(&lockstep.url(), "raw-db").await;
    for (applied, outcome) in
        [(v1::Applied::Committed, Outcome::Committed), (v1::Applied::RolledBack, Outcome::RolledBack)]
    {
        let gtrid = lockstep.begin().await;
        let xid = raw.xid(&gtrid, 1);
        raw.enlist(&xid).await.unwrap();
        let participating = async {
            raw.expect_commit_one_phase(&xid).await;
            raw.acknowledge(&xid, applied).await;
        };
        let (first, ()) = tokio::join!(lockstep.commit(&gtrid), participating);
        let (again, inquired) =
            (lockstep.commit(&gtrid).await.unwrap(), lockstep.inquire(&gtrid).await.unwrap());
        assert_eq!(
            (first.unwrap().outcome(), again.outcome(), inquired.outcome()),
            (outcome, outcome, outcome)
        );
    }
    lockstep.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_past_its_deadline_is_rolled_back_and_says_so() {
    let mut lockstep = Lockstep::start().await;
    let mut raw = Raw::attach(&lockstep.url(), "raw-db").await;
    let begin = v1::BeginRequest { timeout_ms: 300, ..Default::default() };
    let gtrid = lockstep.begin_with(begin).await.unwrap();
    let xid = raw.xid(&gtrid, 1);
    raw.enlist(&xid).await.unwrap();
    // The deadline tells the branch to roll back: nobody asked for anything.
    assert_eq!(raw.expect_decision(&xid).await, v1::Decision::Rollback);
    let answer = lockstep.commit(&gtrid).await.unwrap();
    assert_eq!(answer.outcome(), Outcome::RolledBack);
    assert!(answer.detail.contains("deadline"), "{}", answer.detail);
    raw.acknowledge(&xid, v1::Applied::RolledBack).await;
    lockstep.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_labels_and_timeouts_have_limits_that_are_exact() {
    let mut lockstep = Lockstep::start().await;
    let labels = |count: usize, bytes: usize| -> HashMap<String, String> {
        (0..count).map(|n| (format!("{n:0bytes$}"), "v".repeat(bytes))).collect()
    };
    let begin = |timeout_ms: u64, name: usize, labels| v1::BeginRequest {
        timeout_ms,
        name: "n".repeat(name),
        labels,
    };
    for good in
        [begin(100, 64, labels(16, 256)), begin(86_400_000, 0, labels(0, 0)), begin(0, 1, labels(1, 1))]
    {
        let gtrid = lockstep.begin_with(good).await.unwrap();
        lockstep.rollback(&gtrid).await.unwrap();
    }
    let long_value = HashMap::from([("key".to_owned(), "v".repeat(257))]);
    let no_key = HashMap::from([(String::new(), "v".to_owned())]);
    for (bad, reason, says) in [
        (begin(99, 0, labels(0, 0)), "INVALID_TIMEOUT", "100 ms to 24 h"),
        (begin(86_400_001, 0, labels(0, 0)), "INVALID_TIMEOUT", "100 ms to 24 h"),
        (begin(u64::MAX, 0, labels(0, 0)), "INVALID_TIMEOUT", "100 ms to 24 h"),
        (begin(0, 65, labels(0, 0)), "INVALID_NAME", "64"),
        (begin(0, 1_000_000, labels(0, 0)), "INVALID_NAME", "64"),
        (begin(0, 0, labels(17, 2)), "INVALID_LABELS", "16"),
        (begin(0, 0, labels(1, 257)), "INVALID_LABELS", "256"),
        (begin(0, 0, long_value), "INVALID_LABELS", "256"),
        (begin(0, 0, no_key), "INVALID_LABELS", ""),
    ] {
        assert_refused(lockstep.begin_with(bad).await, Code::InvalidArgument, reason, says);
    }
    // Something that is only for people is cut, not refused.
    let gtrid = lockstep.begin().await;
    let request = v1::RollbackRequest { gtrid, cluster: String::new(), reason: "ä".repeat(10_000) };
    let answer = lockstep.rpc.clone().rollback(request).await.unwrap().into_inner();
    assert!(answer.detail.len() <= 1024, "{} bytes", answer.detail.len());
    lockstep.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_transactions_as_may_be_in_flight_are_and_one_more_is_refused_until_one_ends() {
    let mut lockstep = Lockstep::start_with(&["--max-in-flight=3"]).await;
    let (one, _two, _three) = (lockstep.begin().await, lockstep.begin().await, lockstep.begin().await);
    let fourth = lockstep.begin_with(v1::BeginRequest::default()).await;
    assert_refused(fourth, Code::ResourceExhausted, "TRANSACTION_LIMIT", "limit");
    lockstep.rollback(&one).await.unwrap();
    lockstep.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enum_value_that_nobody_knows_is_refused_by_its_name() {
    let mut lockstep = Lockstep::start().await;
    let gtrid = lockstep.begin().await;
    for wait in [Wait::Unspecified.into(), 3, -1, i32::MAX] {
        let request = v1::CommitRequest { gtrid: gtrid.clone(), cluster: String::new(), wait };
        assert_refused(
            lockstep.rpc.clone().commit(request).await,
            Code::InvalidArgument,
            "INVALID_FIELD",
            "wait",
        );
    }
    assert_eq!(lockstep.inquire(&gtrid).await.unwrap().outcome(), Outcome::Undecided, "nothing was changed");
    lockstep.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_beyond_4_mib_is_refused_unread() {
    let mut lockstep = Lockstep::start().await;
    let begin = v1::BeginRequest { name: "n".repeat(5 * 1024 * 1024), ..Default::default() };
    let refused = lockstep.begin_with(begin).await.expect_err("it is too large");
    assert!(matches!(refused.code(), Code::OutOfRange | Code::ResourceExhausted), "{refused:?}");
    lockstep.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn show_wants_a_beginning_that_only_one_transaction_has() {
    let mut lockstep = Lockstep::start().await;
    let (one, _other) = (lockstep.begin().await, lockstep.begin().await);
    let mut admin = lockstep.admin().await;
    let mut show = async |gtrid: &str| {
        admin.show_transaction(v1::ShowTransactionRequest { gtrid: gtrid.to_owned() }).await
    };
    assert!(show(&one).await.is_ok());
    assert_refused(show("1.0").await, Code::InvalidArgument, "AMBIGUOUS", &one);
    for nobody in ["", "2.", "x", "%", &"1".repeat(10_000)] {
        assert_refused(show(nobody).await, Code::NotFound, "NOT_FOUND", "");
    }
    lockstep.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sdk_says_which_of_these_are_worth_another_attempt() {
    let mut lockstep = Lockstep::start_with(&["--max-in-flight=2"]).await;
    let client = lockstep::Client::connect(lockstep.url()).await.unwrap();
    let too_short = client.begin("short").timeout(Duration::from_millis(1)).start().await.unwrap_err();
    assert_eq!(too_short.advice(), lockstep::Advice::GiveUp, "{too_short}");
    let (_one, _two) =
        (client.begin("one").start().await.unwrap(), client.begin("two").start().await.unwrap());
    let full = client.begin("three").start().await.unwrap_err();
    assert!(matches!(full, lockstep::BeginError::Busy(_)), "{full}");
    assert_eq!(full.advice(), lockstep::Advice::Retry);
    drop((_one, _two));
    tokio::time::timeout(super::lockstep::PATIENCE, async {
        while client.begin("again").start().await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("what was dropped is rolled back, and makes room");
    lockstep.is_well().await;
}
