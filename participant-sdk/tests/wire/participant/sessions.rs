//! Attaching, losing the session, attaching again, going away.

use std::collections::BTreeSet;
use std::time::Duration;

use lockstep::{Advice, AttachError, JoinError};
use lockstep_proto::v1::coordinator_message::Kind;
use lockstep_proto::v1::report_answer::Answer;
use tokio::time::Instant;

use super::*;
use crate::support::coordinator::{position, welcome};
use crate::support::until;

#[tokio::test]
async fn a_first_hello_names_no_cluster_and_the_next_one_does() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path());
    let coordinator = Coordinator::start().await;
    let url = coordinator.url();
    let (participant, first) = tokio::join!(attach("bank", &store, &url), async {
        let mut session = coordinator.hello().await;
        session.welcome().await;
        session.report().await;
        session.hello
    });
    assert_eq!((first.protocol_version, first.resource_manager.as_str()), (1, "bank"));
    assert_eq!((first.identity.len(), first.instance.len(), first.cluster.as_str()), (16, 16, ""));
    assert!(first.clock_ms > 0 && !first.sdk_version.is_empty());

    let second = coordinator.hello().await.hello;
    assert_eq!((&second.identity, &second.instance), (&first.identity, &first.instance));
    assert_eq!(second.cluster, cluster().to_string());
    drop(participant);
}

#[tokio::test]
async fn the_store_is_bound_before_it_is_listed_and_its_evidence_is_read_last() {
    let bank = Bank::attached().await;
    // The other way round, a branch that commits in between would be in neither list (P7).
    assert_eq!(bank.store.questions(), ["attach", "bind", "attach", "prepared", "oldest evidence"]);
}

#[tokio::test]
async fn what_comes_behind_the_welcome_waits_until_the_store_is_bound() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path());
    let held = store.hold().await;
    let coordinator = Coordinator::start().await;
    let (early, url) = (store.clone(), coordinator.url());
    let attaching = tokio::spawn(async move { attach("bank", &early, &url).await });
    let mut session = coordinator.hello().await;
    session.welcome().await;
    let xid = v1::Xid { gtrid: gtrid(1).to_string(), bqual: "bank.0000000000000001".to_owned() };
    session.decide(&xid, v1::Decision::Rollback).await;
    assert!(!attaching.is_finished());
    drop(held);
    session.report().await;
    assert_eq!(session.acknowledgement(&xid).await, applied(v1::Applied::RolledBack));
    soon("attaching", attaching).await.unwrap();
}

#[tokio::test]
async fn attaching_waits_for_a_coordinator_that_is_not_up_yet() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path());
    let address = Coordinator::start().await.crash();
    let url = format!("http://{address}");
    let attaching = tokio::spawn(async move { attach("bank", &store, &url).await });
    let coordinator = Coordinator::start_at(address).await;
    coordinator.attached().await;
    assert_eq!(soon("attaching", attaching).await.unwrap().name(), "bank");
}

#[tokio::test]
async fn attaching_waits_for_a_store_that_is_not_up_yet() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(&dir.path().join("store"));
    store.take_away();
    let coordinator = Coordinator::start().await;
    let (away, url) = (store.clone(), coordinator.url());
    let attaching = tokio::spawn(async move { attach("bank", &away, &url).await });
    tokio::task::yield_now().await;
    assert!(!attaching.is_finished());
    store.bring_back();
    coordinator.attached().await;
    soon("attaching", attaching).await.unwrap();
}

#[tokio::test]
async fn what_waiting_does_not_mend_fails_the_first_attach() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path());
    let coordinator = Coordinator::start().await;
    let attach = async |name: &str, url: &str| {
        let attach = Participant::builder(name, store.clone()).coordinator(url).attach();
        let error = soon("refusing", attach).await.unwrap_err();
        assert_eq!(error.advice(), Advice::GiveUp);
        error
    };
    let url = coordinator.url();
    assert!(matches!(attach("No Name", &url).await, AttachError::Name(_)));
    assert!(matches!(attach("bank", "nowhere").await, AttachError::Address(_)));
    let error = attach("refused", &url).await;
    assert!(matches!(&error, AttachError::Refused { name, .. } if name == "refused"), "{error:?}");
    assert!(error.to_string().contains("IDENTITY_MISMATCH"), "{error}");

    let other = async {
        let mut session = coordinator.hello().await;
        session.send(Kind::Welcome(v1::Welcome { protocol_version: 2, ..welcome() })).await;
        session
    };
    let (error, _session) = tokio::join!(attach("bank", &url), other);
    assert!(error.to_string().contains("version 2"), "{error}");

    std::fs::write(dir.path().join("unfit"), "").unwrap();
    let error = attach("bank", &url).await;
    assert!(matches!(&error, AttachError::Unfit(why) if why.contains("remove it")), "{error:?}");
}

#[tokio::test]
async fn a_store_of_another_cluster_is_not_attached() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path());
    std::fs::write(dir.path().join("cluster"), "00000bad").unwrap();
    let coordinator = Coordinator::start().await;
    let attach = Participant::builder("bank", store).coordinator(coordinator.url()).attach();
    let welcomed = async {
        let mut session = coordinator.hello().await;
        assert_eq!(session.hello.cluster, "00000bad");
        session.welcome().await;
        session
    };
    let (result, mut session) = tokio::join!(attach, welcomed);
    let error = result.unwrap_err();
    assert!(error.to_string().contains("belongs to cluster 00000bad"), "{error}");
    assert!(session.next().await.is_none());
}

/// The answer to a report: every branch of it is to be committed.
fn all_to_commit(report: &v1::Report) -> Kind {
    let answer = v1::BranchAnswer::Commit.into();
    let commit = |xid: &v1::Xid| Answer { xid: Some(xid.clone()), answer, detail: String::new() };
    let (answers, listing) = (report.prepared.iter().map(commit).collect(), report.listing);
    Kind::ReportAnswer(v1::ReportAnswer { answers, position: position(), listing })
}

#[tokio::test]
async fn a_broken_session_rolls_back_what_is_open_and_finishes_what_is_prepared() {
    let mut bank = Bank::attached().await;
    let prepared = bank.prepared(1, "alice", "90").await;
    bank.finished(2, "bob", "110").await;
    let (busy, _) = bank.joined(3).await;
    assert_eq!(bank.store.open_branches(), 2);

    let address = bank.coordinator.crash();
    until("the idle branch to be rolled back", || bank.store.open_branches() == 1).await;
    until("the loss to be known", || !bank.participant.is_attached()).await;
    let error = bank.participant.join(&context(4)).await.unwrap_err();
    assert!(matches!(error, JoinError::NotAttached { .. }) && error.advice() == Advice::Retry, "{error:?}");
    let error = busy.finish().await.unwrap_err();
    assert!(error.to_string().contains("session with the coordinator broke"), "{error}");

    let coordinator = Coordinator::start_at(address).await;
    let mut session = coordinator.hello().await;
    session.welcome().await;
    let report = session.report().await;
    assert_eq!((report.prepared.as_slice(), report.complete), ([prepared.clone()].as_slice(), true));
    assert_eq!(report.oldest_held, gtrid(1).to_string());
    session.send(all_to_commit(&report)).await;
    assert_eq!(session.acknowledgement(&prepared).await, applied(v1::Applied::Committed));
    assert_eq!((bank.store.committed("alice").as_deref(), bank.store.committed("bob")), (Some("90"), None));
    assert!(bank.participant.is_attached());
}

#[tokio::test]
async fn a_branch_of_an_earlier_process_is_found_and_finished() {
    let mut bank = Bank::attached().await;
    let xid = bank.prepared(1, "alice", "90").await;
    // Its driver is gone with its last handle, as with its process.
    drop(bank.participant);
    assert!(bank.session.next().await.is_none());

    let url = bank.coordinator.url();
    let (participant, report) = tokio::join!(attach("bank", &bank.store, &url), async {
        let mut session = bank.coordinator.hello().await;
        assert_ne!(session.hello.instance, bank.session.hello.instance);
        session.welcome().await;
        let report = session.report().await;
        session.decide(&xid, v1::Decision::Rollback).await;
        assert_eq!(session.acknowledgement(&xid).await, applied(v1::Applied::RolledBack));
        report
    });
    assert_eq!(report.prepared, [xid]);
    assert_eq!((bank.store.prepared_branches(), bank.store.committed("alice")), (0, None));
    assert_eq!(participant.name(), "bank");
}

/// A participant that has found these prepared, was told to commit them, and has committed all but the last one, which hangs.
async fn committing(branches: u8) -> (Bank, Vec<v1::Xid>, Instant) {
    let mut bank = Bank::attached().await;
    let mut left = Vec::new();
    for number in 1..=branches {
        left.push(bank.prepared(number, &format!("account {number}"), "90").await);
    }
    drop(bank.participant);
    assert!(bank.session.next().await.is_none());

    bank.store.hold_commits();
    let url = bank.coordinator.url();
    let (participant, session) = tokio::join!(attach("bank", &bank.store, &url), async {
        let mut session = bank.coordinator.hello().await;
        session.welcome().await;
        let report = session.report().await;
        session.send(all_to_commit(&report)).await;
        session
    });
    let begun = Instant::now();
    bank.store.let_pass(left.len() - 1);
    (Bank { participant, session, ..bank }, left, begun)
}

/// After a restart there may be thousands of them, and a frame for each would cost both sides more than what is in it.
#[tokio::test]
async fn the_end_of_what_an_earlier_process_left_is_told_after_a_moment_in_which_others_may_end() {
    let (mut bank, left, begun) = committing(3).await;
    let told = bank.session.frame().await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(5), "{:?}", begun.elapsed());
    assert!(!told.is_empty() && told.len() < left.len(), "{told:?}");
    bank.store.let_pass(1);
    let mut ends = told.len();
    while ends < left.len() {
        ends += bank.session.frame().await.unwrap().len();
    }
}

#[tokio::test]
async fn detaching_says_at_once_what_would_have_waited_for_others() {
    let (mut bank, _left, _begun) = committing(2).await;
    until("the first commit", || bank.store.prepared_branches() == 1).await;
    let store = bank.store.clone();
    tokio::join!(bank.participant.detach(Duration::ZERO), async {
        let Some(v1::participant_message::Kind::Acknowledge(_)) = bank.session.next().await else {
            panic!("no acknowledgement")
        };
        assert!(bank.session.next().await.is_none());
        drop(bank.session);
        store.let_pass(1);
    });
}

/// More than are finished at a time: each of those that wait has its turn when one before it has ended.
#[tokio::test]
async fn all_that_an_earlier_process_left_are_finished() {
    let mut bank = Bank::attached().await;
    let mut left = BTreeSet::new();
    for number in 1..=50 {
        left.insert(bank.prepared(number, &format!("account {number}"), "90").await.gtrid);
    }
    drop(bank.participant);
    assert!(bank.session.next().await.is_none());

    let url = bank.coordinator.url();
    let finished = async {
        let mut session = bank.coordinator.hello().await;
        session.welcome().await;
        let report = session.report().await;
        session.send(all_to_commit(&report)).await;
        let mut acknowledged = BTreeSet::new();
        for _ in 0..report.prepared.len() {
            let Some(v1::participant_message::Kind::Acknowledge(said)) = session.next().await else {
                panic!("no acknowledgement")
            };
            assert_eq!(said.applied(), v1::Applied::Committed);
            acknowledged.insert(said.xid.unwrap().gtrid);
        }
        acknowledged
    };
    let (_participant, acknowledged) = tokio::join!(attach("bank", &bank.store, &url), finished);
    assert_eq!(acknowledged, left);
    assert_eq!(bank.store.prepared_branches(), 0);
}

#[tokio::test]
async fn evidence_is_pruned_when_the_coordinator_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path());
    let coordinator = Coordinator::start().await;
    let url = coordinator.url();
    let welcomed = async {
        let mut session = coordinator.hello().await;
        session.send(Kind::Welcome(v1::Welcome { retention_ms: 0, ..welcome() })).await;
        session.report().await;
        session
    };
    let (participant, mut session) = tokio::join!(attach("bank", &store, &url), welcomed);
    let xid = v1::Xid { gtrid: gtrid(1).to_string(), bqual: "bank.0000000000000001".to_owned() };
    session.decide(&xid, v1::Decision::Rollback).await;
    session.acknowledgement(&xid).await;
    assert_eq!(store.evidence(), ["fence"]);

    // The next session lists it again, and asks.
    drop(session);
    let mut session = coordinator.hello().await;
    session.send(Kind::Welcome(v1::Welcome { retention_ms: 0, ..welcome() })).await;
    assert_eq!(session.report().await.oldest_held, gtrid(1).to_string());
    let Some(v1::participant_message::Kind::Reconcile(asked)) = session.next().await else {
        panic!("no question")
    };
    assert_eq!(asked.rows.len(), 1);
    assert_eq!((asked.rows[0].xid.as_ref(), asked.rows[0].kind()), (Some(&xid), v1::EvidenceKind::Fence));
    session.send(Kind::ReconcileAnswer(v1::ReconcileAnswer { forget: vec![xid] })).await;
    until("the evidence to go", || store.evidence().is_empty()).await;
    drop(participant);
}

#[tokio::test]
async fn detaching_finishes_what_is_under_way_and_says_everything() {
    let mut bank = Bank::attached().await;
    let xid = bank.prepared(1, "alice", "90").await;
    let participant = bank.participant.clone();
    let detach = tokio::spawn(async move { participant.detach(Duration::from_secs(20)).await });
    soon("the refusal of new branches", async {
        while !matches!(bank.participant.join(&context(2)).await, Err(JoinError::Detaching { .. })) {
            let _enlist_and_vote = (bank.session.next().await, bank.session.next().await);
        }
    })
    .await;
    bank.session.decide(&xid, v1::Decision::Commit).await;
    assert_eq!(bank.session.acknowledgement(&xid).await, applied(v1::Applied::Committed));
    assert!(bank.session.next().await.is_none(), "the participant ends its half of the stream");
    drop(bank.session);
    soon("detaching", detach).await.unwrap();
    let error = bank.participant.join(&context(3)).await.unwrap_err();
    assert!(matches!(error, JoinError::Detaching { .. }) && error.advice() == Advice::Retry);
    assert!(!bank.participant.is_attached());
}

#[tokio::test]
async fn detaching_does_not_wait_longer_than_it_may() {
    let mut bank = Bank::attached().await;
    bank.finished(1, "alice", "90").await;
    let in_doubt = bank.prepared(2, "bob", "110").await;
    let detach = bank.participant.detach(Duration::from_millis(50));
    let (_, end) = tokio::join!(detach, async {
        let end = bank.session.next().await;
        drop(bank.session);
        end
    });
    assert!(end.is_none());
    assert_eq!((bank.store.open_branches(), bank.store.prepared_branches()), (0, 1));
    assert_eq!(in_doubt.gtrid, gtrid(2).to_string());
}

#[tokio::test]
async fn two_participants_in_one_process_are_two_participants() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start().await;
    let url = coordinator.url();
    let mut parts = Vec::new();
    for name in ["orders", "stock"] {
        let store = Store::at(&dir.path().join(name));
        let (participant, session) = tokio::join!(attach(name, &store, &url), coordinator.attached());
        parts.push((participant, session));
    }
    for (participant, session) in &mut parts {
        let context = context(1);
        let (branch, xid) = tokio::join!(participant.join(&context), session.enlisted());
        assert!(xid.bqual.starts_with(participant.name()), "{xid:?}");
        branch.unwrap().finish().await.unwrap();
    }
}

/// A frame costs both sides more than what is in it.
#[tokio::test]
async fn what_happens_together_goes_into_one_frame() {
    let mut bank = Bank::attached().await;
    let contexts: Vec<Context> = (1..=20).map(context).collect();
    let joins = contexts.iter().map(|context| bank.participant.join(context));
    let _branches = futures::future::join_all(joins).await;
    assert_eq!(bank.session.frame().await.unwrap().len(), contexts.len());
}
