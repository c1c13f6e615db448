//! What participants get wrong, by accident or not.

use lockstep_proto::v1::coordinator_message::Kind as Heard;
use lockstep_proto::v1::participant_message::Kind as Said;
use lockstep_proto::v1::{self, Applied, Decision, EnlistRefusal, Outcome, ParticipantMessage, VoteKind};
use tempfile::TempDir;
use tonic::Code;

use super::lockstep::{Lockstep, assert_refused, participant, refusal};
use super::raw::{Raw, frame, hello, xid};

#[tokio::test(flavor = "multi_thread")]
async fn each_enlist_that_cannot_be_is_told_why() {
    let mut lockstep = Lockstep::start().await;
    let mut raw = Raw::attach(&lockstep.url(), "raw-db").await;
    let mut other = Raw::attach(&lockstep.url(), "other-db").await;
    let refused = |result: Result<(), (EnlistRefusal, String)>| result.expect_err("it is refused").0;

    let gtrid = lockstep.begin().await;
    let first = raw.xid(&gtrid, 1);
    raw.enlist(&first).await.unwrap();
    assert_eq!(refused(raw.enlist(&first).await), EnlistRefusal::BadBranch, "its name is in use");
    assert_eq!(
        refused(raw.enlist(&xid(&gtrid, "other-db", 1)).await),
        EnlistRefusal::BadBranch,
        "another's name"
    );

    other.enlist(&other.xid(&gtrid, 1)).await.unwrap();
    let committing = lockstep.commit(&gtrid);
    let late = async {
        raw.expect_prepare(&first).await;
        let reason = refused(raw.enlist(&raw.xid(&gtrid, 2)).await);
        assert_eq!(reason, EnlistRefusal::CommitRequested);
        raw.vote(&first, VoteKind::Rollback).await;
    };
    let (answer, ()) = tokio::join!(committing, late);
    assert_eq!(answer.unwrap().outcome(), Outcome::RolledBack);
    other.expect_prepare(&other.xid(&gtrid, 1)).await;
    assert_eq!(other.expect_decision(&other.xid(&gtrid, 1)).await, Decision::Rollback);
    other.acknowledge(&other.xid(&gtrid, 1), Applied::RolledBack).await;

    let ended = refused(raw.enlist(&raw.xid(&gtrid, 3)).await);
    assert!(matches!(ended, EnlistRefusal::NotActive | EnlistRefusal::RollbackOnly), "{ended:?}");
    let never = format!("4000000.{}", gtrid.split_once('.').unwrap().1);
    assert_eq!(refused(raw.enlist(&raw.xid(&never, 1)).await), EnlistRefusal::NotActive);
    lockstep.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_takes_256_branches_and_not_one_more() {
    let mut lockstep = Lockstep::start().await;
    let mut raw = Raw::attach(&lockstep.url(), "raw-db").await;
    let gtrid = lockstep.begin().await;
    for number in 0..256 {
        raw.enlist(&raw.xid(&gtrid, number)).await.unwrap();
    }
    let (reason, detail) = raw.enlist(&raw.xid(&gtrid, 256)).await.unwrap_err();
    assert_eq!(reason, EnlistRefusal::TooManyBranches);
    assert!(detail.contains("256"), "{detail}");
    // It is the branch that is one too many, not the transaction.
    assert_eq!(lockstep.inquire(&gtrid).await.unwrap().outcome(), Outcome::Undecided);
    lockstep.rollback(&gtrid).await.unwrap();
    lockstep.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_votes_or_acknowledges_for_a_branch_that_is_not_theirs() {
    let mut lockstep = Lockstep::start().await;
    let mut raw = Raw::attach(&lockstep.url(), "raw-db").await;
    let mut other = Raw::attach(&lockstep.url(), "other-db").await;
    let mut thief = Raw::attach(&lockstep.url(), "thief-db").await;
    let gtrid = lockstep.begin().await;
    let (mine, theirs) = (raw.xid(&gtrid, 1), other.xid(&gtrid, 1));
    raw.enlist(&mine).await.unwrap();
    other.enlist(&theirs).await.unwrap();
    let committing = lockstep.commit(&gtrid);
    let participating = async {
        raw.expect_prepare(&mine).await;
        other.expect_prepare(&theirs).await;
        for vote in [VoteKind::Commit, VoteKind::Rollback, VoteKind::ReadOnly] {
            thief.vote(&theirs, vote).await;
            assert!(!thief.expect_refused(&theirs).await.is_empty());
        }
        for applied in [Applied::Committed, Applied::RolledBack, Applied::Hazard, Applied::NotYet] {
            thief.acknowledge(&theirs, applied).await;
            assert!(!thief.expect_refused(&theirs).await.is_empty());
        }
        // Nor for one that nobody has.
        let nobodys = thief.xid(&gtrid, 7);
        thief.vote(&nobodys, VoteKind::Rollback).await;
        assert!(!thief.expect_refused(&nobodys).await.is_empty());
        raw.vote(&mine, VoteKind::Commit).await;
        other.vote(&theirs, VoteKind::Commit).await;
        for (raw, xid) in [(&mut raw, &mine), (&mut other, &theirs)] {
            assert_eq!(raw.expect_decision(xid).await, Decision::Commit, "nothing of that counted");
            thief.acknowledge(xid, Applied::RolledBack).await;
            assert!(!thief.expect_refused(xid).await.is_empty());
            raw.acknowledge(xid, Applied::Committed).await;
        }
    };
    let (answer, ()) = tokio::join!(committing, participating);
    assert_eq!(answer.unwrap().outcome(), Outcome::Committed);
    lockstep.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_names_only_branches_of_its_own_resource_manager() {
    let mut lockstep = Lockstep::start().await;
    let gtrid = lockstep.begin().await;
    let raw = Raw::attach(&lockstep.url(), "raw-db").await;
    let report = v1::Report { prepared: vec![xid(&gtrid, "other-db", 1)], ..Default::default() };
    assert_ends(raw, Said::Report(report), "resource manager").await;
    let raw = Raw::attach(&lockstep.url(), "raw2-db").await;
    let row = v1::reconcile::Row { xid: Some(xid(&gtrid, "other-db", 1)), kind: 1 };
    assert_ends(raw, Said::Reconcile(v1::Reconcile { rows: vec![row] }), "resource manager").await;
    lockstep.is_well().await;
}

/// Says this, and is told off: the session ends with a status that says what was wrong.
async fn assert_ends(mut raw: Raw, said: Said, says: &str) {
    raw.say(said).await;
    let end = raw.end().await;
    assert_eq!(end.code(), Code::InvalidArgument, "{end:?}");
    assert!(end.message().contains(says), "{says:?} is not in {:?}", end.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_message_ends_its_session_and_no_other() {
    let mut lockstep = Lockstep::start().await;
    let mut bystander = Raw::attach(&lockstep.url(), "bystander-db").await;
    let gtrid = lockstep.begin().await;
    let held = bystander.xid(&gtrid, 1);
    bystander.enlist(&held).await.unwrap();
    let good = || Some(xid(&gtrid, "raw-db", 1));
    let bad_gtrid = || Some(xid("1.zz", "raw-db", 1));
    let vote = |xid, vote| Said::Vote(v1::Vote { xid, vote, detail: String::new() });
    let acknowledge =
        |xid, applied| Said::Acknowledge(v1::Acknowledge { xid, applied, detail: String::new() });
    let many = vec![good().unwrap(); 1025];
    let row = |kind| v1::reconcile::Row { xid: good(), kind };
    for (said, says) in [
        (vote(good(), 99), "vote"),
        (vote(good(), 0), "vote"),
        (vote(None, 1), "xid"),
        (vote(bad_gtrid(), 1), "gtrid"),
        (acknowledge(good(), 99), "applied"),
        (acknowledge(good(), 0), "applied"),
        (Said::Enlist(v1::Enlist { xid: bad_gtrid() }), "gtrid"),
        (
            Said::Enlist(v1::Enlist { xid: Some(v1::Xid { gtrid: gtrid.clone(), bqual: "x".repeat(65) }) }),
            "bqual",
        ),
        (Said::Report(v1::Report { prepared: many.clone(), ..Default::default() }), "1,024"),
        (Said::Report(v1::Report { oldest_held: "x".into(), complete: true, ..Default::default() }), "gtrid"),
        (Said::Reconcile(v1::Reconcile { rows: vec![row(9)] }), "kind"),
        (Said::Reconcile(v1::Reconcile { rows: vec![row(1); 1025] }), "1,024"),
        (Said::Hello(hello("raw-db")), "hello twice"),
    ] {
        let raw = Raw::attach(&lockstep.url(), &fresh_name()).await;
        assert_ends(raw, said, says).await;
    }
    let mut raw = Raw::attach(&lockstep.url(), &fresh_name()).await;
    raw.send(v1::ParticipantFrame { messages: vec![ParticipantMessage { kind: None }] }).await;
    let end = raw.end().await;
    assert!(end.code() == Code::InvalidArgument && end.message().contains("kind"), "{end:?}");

    assert_eq!(lockstep.inquire(&gtrid).await.unwrap().outcome(), Outcome::Undecided);
    lockstep.rollback(&gtrid).await.unwrap();
    assert_eq!(bystander.expect_decision(&held).await, Decision::Rollback);
    lockstep.is_well().await;
}

/// A name that nobody has used: what was attached under it before had another identity.
fn fresh_name() -> String {
    format!("raw-{:016x}", rand::random::<u64>())
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_have_limits_in_messages_and_bytes() {
    let mut lockstep = Lockstep::start().await;
    let gtrid = lockstep.begin().await;
    let mut raw = Raw::attach(&lockstep.url(), "many-db").await;
    let enlist = |raw: &Raw, number| Said::Enlist(v1::Enlist { xid: Some(raw.xid(&gtrid, number)) });
    // As many messages as a frame may carry are each answered, even if most of them are refused.
    let most = frame((0..1024).map(|number| enlist(&raw, number)));
    raw.send(most).await;
    for _ in 0..1024 {
        raw.next().await.unwrap();
    }
    let too_many = frame((0..1025).map(|number| enlist(&raw, number)));
    raw.send(too_many).await;
    let end = raw.end().await;
    assert!(end.code() == Code::InvalidArgument && end.message().contains("1,024"), "{end:?}");

    let mut raw = Raw::attach(&lockstep.url(), "large-db").await;
    let detail = "x".repeat(5 * 1024 * 1024);
    let vote = v1::Vote { xid: Some(raw.xid(&gtrid, 1)), vote: VoteKind::Rollback.into(), detail };
    raw.say(Said::Vote(vote)).await;
    let end = raw.end().await;
    assert!(matches!(end.code(), Code::OutOfRange | Code::ResourceExhausted | Code::Cancelled), "{end:?}");
    lockstep.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_participant_that_does_not_fit_is_refused_with_a_reason() {
    let mut lockstep = Lockstep::start().await;
    let url = lockstep.url();
    let hour = 3_600_000;
    let fits = hello("fits-db");
    let early = v1::Hello { clock_ms: fits.clock_ms - hour, ..fits.clone() };
    let late = v1::Hello { clock_ms: fits.clock_ms + hour, ..fits.clone() };
    let foreign = v1::Hello { cluster: "00000000".into(), ..fits.clone() };
    let precondition = Code::FailedPrecondition;
    let invalid = Code::InvalidArgument;
    for (hello, code, reason, says) in [
        (v1::Hello { protocol_version: 2, ..fits.clone() }, precondition, "PROTOCOL_VERSION", "version 2"),
        (v1::Hello { protocol_version: 0, ..fits.clone() }, precondition, "PROTOCOL_VERSION", "version 0"),
        (early, precondition, "CLOCK_SKEW", "clock"),
        (late, precondition, "CLOCK_SKEW", "clock"),
        (v1::Hello { clock_ms: 0, ..fits.clone() }, precondition, "CLOCK_SKEW", "clock"),
        (foreign, precondition, "FOREIGN_CLUSTER", "00000000"),
        (v1::Hello { resource_manager: String::new(), ..fits.clone() }, invalid, "MALFORMED_ID", "name"),
        (v1::Hello { resource_manager: "Upper".into(), ..fits.clone() }, invalid, "MALFORMED_ID", "name"),
        (v1::Hello { resource_manager: "x".repeat(48), ..fits.clone() }, invalid, "MALFORMED_ID", "name"),
        (v1::Hello { identity: vec![1; 15], ..fits.clone() }, invalid, "INVALID_FIELD", "identity"),
        (v1::Hello { instance: vec![], ..fits.clone() }, invalid, "INVALID_FIELD", "instance"),
        (v1::Hello { location: "x".repeat(1025), ..fits.clone() }, invalid, "INVALID_FIELD", "location"),
    ] {
        assert_refused(Raw::greet(&url, frame([Said::Hello(hello)])).await.map(drop), code, reason, says);
    }
    let not_first = frame([Said::Enlist(v1::Enlist { xid: None })]);
    assert_refused(Raw::greet(&url, not_first).await.map(drop), invalid, "NOT_A_HELLO", "hello");
    let not_alone = frame([Said::Hello(fits.clone()), Said::Hello(fits.clone())]);
    assert_refused(Raw::greet(&url, not_alone).await.map(drop), invalid, "NOT_A_HELLO", "hello");
    assert_refused(Raw::greet(&url, frame([])).await.map(drop), invalid, "NOT_A_HELLO", "hello");
    // And the one that all of these were made from does fit.
    Raw::greet(&url, frame([Said::Hello(fits)])).await.unwrap();
    lockstep.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_moved_or_was_left_behind_by_a_failover_is_refused() {
    let mut lockstep = Lockstep::start().await;
    let url = lockstep.url();
    let known = v1::Hello { location: "host:/a#1:2".into(), timeline: 3, ..hello("moved-db") };
    Raw::greet(&url, frame([Said::Hello(known.clone())])).await.unwrap();
    let elsewhere = v1::Hello { location: "host:/b#1:3".into(), ..known.clone() };
    let greeted = Raw::greet(&url, frame([Said::Hello(elsewhere)])).await;
    assert_refused(
        greeted.map(drop),
        Code::FailedPrecondition,
        "LOCATION_CHANGED",
        "participants rebind moved-db",
    );
    let old_primary = v1::Hello { timeline: 2, ..known.clone() };
    let greeted = Raw::greet(&url, frame([Said::Hello(old_primary)])).await;
    assert_refused(greeted.map(drop), Code::FailedPrecondition, "STALE_TIMELINE", "timeline");
    Raw::greet(&url, frame([Said::Hello(known)])).await.unwrap();
    lockstep.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_databases_under_one_name_are_refused_over_the_wire_and_by_the_sdk() {
    let mut lockstep = Lockstep::start().await;
    let url = lockstep.url();
    let _first = Raw::attach(&url, "twice-db").await;
    let second = Raw::greet(&url, frame([Said::Hello(hello("twice-db"))])).await;
    assert_refused(second.map(drop), Code::FailedPrecondition, "IDENTITY_MISMATCH", "another database");
    // The same over two real files: `healthy-a` is attached already, from another directory.
    let elsewhere = TempDir::new().unwrap();
    let refused = participant("healthy-a", elsewhere.path(), &url).await.map(drop).unwrap_err();
    assert!(matches!(refused, lockstep::AttachError::Refused { .. }), "{refused}");
    assert!(refused.to_string().contains("another database"), "{refused}");
    lockstep.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_participant_that_has_seen_more_than_the_log_stops_every_presumption() {
    let lockstep = Lockstep::start().await;
    let gtrid = lockstep.begin().await;
    let absent = format!("1.{}0123abcd", &gtrid.split_once('.').unwrap().1[..24]);
    assert_eq!(lockstep.inquire(&absent).await.unwrap().outcome(), Outcome::RolledBack);
    // It has evidence of an epoch that this log never had: the log was restored from a backup (P8).
    let seen = v1::LogPosition { epoch: 9, incarnation: vec![7; 16], sequence: 5 };
    let ahead = v1::Hello { seen: Some(seen), ..hello("ahead-db") };
    expect_nothing_presumed(&lockstep, ahead, &absent).await;
}

/// What it has seen of the newest epoch is all there, and of an older one it has seen more.
#[tokio::test(flavor = "multi_thread")]
async fn a_participant_that_has_seen_more_of_an_older_epoch_stops_every_presumption() {
    let mut lockstep = Lockstep::start().await;
    let older = Raw::attach(&lockstep.url(), "first-db").await.welcome.position.unwrap();
    lockstep.restart().await;
    let newest = Raw::attach(&lockstep.url(), "second-db").await.welcome.position.unwrap();
    assert!(newest.epoch > older.epoch);
    let gtrid = lockstep.begin().await;
    let absent = format!("{}.{}0123abcd", newest.epoch, &gtrid.split_once('.').unwrap().1[..24]);
    let said = |name: &str, older| {
        let seen_of_epochs = vec![newest.clone(), older];
        v1::Hello { seen: Some(newest.clone()), seen_of_epochs, ..hello(name) }
    };
    let fits = said("fits-db", older.clone());
    let raw = Raw::greet(&lockstep.url(), frame([Said::Hello(fits)])).await.unwrap();
    assert_eq!(raw.welcome.settled, [older.epoch], "it was sealed when the newest one began");
    assert_eq!(lockstep.inquire(&absent).await.unwrap().outcome(), Outcome::RolledBack);
    let ahead = said("ahead-db", v1::LogPosition { sequence: older.sequence + 1, ..older });
    expect_nothing_presumed(&lockstep, ahead, &absent).await;
}

/// Once this participant has attached.
async fn expect_nothing_presumed(lockstep: &Lockstep, ahead: v1::Hello, absent: &str) {
    let raw = Raw::greet(&lockstep.url(), frame([Said::Hello(ahead)])).await.unwrap();
    assert_eq!(raw.welcome.settled, Vec::<u32>::new());
    assert_eq!(lockstep.inquire(absent).await.unwrap().outcome(), Outcome::Unknown);
    let begun = lockstep.begin_with(v1::BeginRequest::default()).await;
    let status = begun.expect_err("nothing new begins");
    assert_eq!(refusal(&status), (Code::FailedPrecondition, "LOG_BEHIND".to_owned()));
}

/// Each has its own line in the record: none may be written over by one that was made from the same earlier record (P19).
#[tokio::test(flavor = "multi_thread")]
async fn late_ends_that_are_proved_at_the_same_moment_are_all_on_record() {
    let mut lockstep = Lockstep::start().await;
    let gtrid = lockstep.begin().await;
    let mut banks = Vec::new();
    for number in 0..8 {
        let mut raw = Raw::attach(&lockstep.url(), &format!("raw-{number}")).await;
        raw.enlist(&raw.xid(&gtrid, 1)).await.unwrap();
        banks.push(raw);
    }
    let branches = async {
        futures::future::join_all(banks.iter_mut().map(async |raw| {
            let xid = raw.xid(&gtrid, 1);
            raw.expect_prepare(&xid).await;
            raw.vote(&xid, VoteKind::Commit).await;
            assert_eq!(raw.expect_decision(&xid).await, Decision::Commit);
            raw.acknowledge(&xid, Applied::Committed).await;
        }))
        .await
    };
    let (answer, _) = tokio::join!(lockstep.commit(&gtrid), branches);
    assert_eq!(answer.unwrap().outcome(), Outcome::Committed);

    futures::future::join_all(banks.iter_mut().zip(0..).map(async |(raw, number)| {
        let kind = if number % 2 == 0 { v1::EvidenceKind::Fence } else { v1::EvidenceKind::Hazard };
        let row = v1::reconcile::Row { xid: Some(raw.xid(&gtrid, 1)), kind: kind.into() };
        // Not before the end of the transaction itself has reached the log. After that, again, and nothing changes.
        let mut forgotten = 0;
        while forgotten < 2 {
            raw.say(Said::Reconcile(v1::Reconcile { rows: vec![row.clone()] })).await;
            let heard = raw.next().await.unwrap();
            let Heard::ReconcileAnswer(answer) = heard else { panic!("the rows are judged, not {heard:?}") };
            forgotten += answer.forget.len();
        }
    }))
    .await;
    let request = v1::ShowTransactionRequest { gtrid: gtrid.clone() };
    let shown = lockstep.admin().await.show_transaction(request).await.unwrap().into_inner();
    let transaction = shown.transaction.unwrap();
    assert_eq!(transaction.outcome(), Outcome::Heuristic);
    let mut ends: Vec<_> = transaction.branches.iter().map(|branch| branch.state.as_str()).collect();
    ends.sort_unstable();
    assert_eq!(ends, [["hazard"; 4], ["rolled-back"; 4]].concat());
    lockstep.is_well().await;
}
