//! A store that is away, slow or strange, and a coordinator that speaks nonsense.

use std::time::Duration;

use lockstep_proto::v1::coordinator_message::Kind;

use super::*;
use crate::support::coordinator::position;
use crate::support::until;

#[tokio::test]
async fn a_decision_that_the_store_cannot_apply_is_acknowledged_not_yet() {
    let mut bank = Bank::attached().await;
    let xid = bank.prepared(1, "alice", "90").await;
    bank.store.take_away();
    bank.session.decide(&xid, v1::Decision::Commit).await;
    let (answer, why) = bank.session.acknowledgement(&xid).await;
    assert_eq!(answer, v1::Applied::NotYet);
    assert!(why.contains("the store failed"), "{why}");

    bank.store.bring_back();
    bank.session.decide(&xid, v1::Decision::Commit).await;
    loop {
        match bank.session.next().await {
            // After a failure the store is listed again, before or behind the answer.
            Some(v1::participant_message::Kind::Report(_)) => {}
            Some(v1::participant_message::Kind::Acknowledge(ack)) => {
                assert_eq!(ack.applied(), v1::Applied::Committed);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(bank.store.committed("alice").as_deref(), Some("90"));
}

#[tokio::test]
async fn a_prepare_without_an_answer_is_found_out_before_the_vote() {
    let mut bank = Bank::attached().await;
    let xid = bank.finished(1, "alice", "90").await;
    bank.store.take_away();
    bank.session.prepare(&xid).await;
    until("the prepare to fail", || bank.store.open_branches() == 0).await;
    bank.store.bring_back();
    loop {
        match bank.session.next().await {
            Some(v1::participant_message::Kind::Report(report)) => assert!(report.prepared.is_empty()),
            Some(v1::participant_message::Kind::Vote(vote)) => {
                assert_eq!(vote.vote(), v1::VoteKind::Rollback);
                assert!(vote.detail.contains("was not known"), "{}", vote.detail);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    // Proved: a fence keeps it from ever committing.
    assert_eq!(bank.store.evidence(), ["fence"]);
}

#[tokio::test]
async fn a_store_that_cannot_begin_fails_the_join_and_the_transaction() {
    let mut bank = Bank::attached().await;
    bank.store.take_away();
    let context = context(1);
    let (result, xid) = tokio::join!(bank.participant.join(&context), bank.session.enlisted());
    let error = result.unwrap_err();
    assert_eq!(error.advice(), lockstep::Advice::Retry);
    assert!(error.to_string().contains("the store is away"), "{error}");
    assert_eq!(bank.session.vote(&xid).await.0, v1::VoteKind::Rollback);
    bank.store.bring_back();
}

#[tokio::test]
async fn a_store_whose_code_panics_leaves_no_branch_behind() {
    let mut bank = Bank::attached().await;
    let xid = bank.finished(1, "panic", "1").await;
    bank.session.prepare(&xid).await;
    let (vote, why) = bank.session.vote(&xid).await;
    assert_eq!(vote, v1::VoteKind::Rollback);
    assert!(why.contains("panicked"), "{why}");
    assert_eq!((bank.store.open_branches(), bank.store.evidence()), (0, vec!["fence".to_owned()]));
}

#[tokio::test]
async fn a_slow_prepare_holds_nobody_else_up() {
    let mut bank = Bank::attached().await;
    let slow = bank.finished(1, "alice", "90").await;
    let held = bank.store.hold().await;
    bank.session.prepare(&slow).await;
    // Others join, finish and commit in one phase meanwhile.
    let quick = bank.finished(2, "bob", "110").await;
    bank.session.commit_one_phase(&quick).await;
    assert_eq!(bank.session.acknowledgement(&quick).await, applied(v1::Applied::Committed));
    drop(held);
    assert_eq!(bank.session.vote(&slow).await.0, v1::VoteKind::Commit);
}

#[tokio::test]
async fn a_session_that_breaks_while_the_store_prepares_is_found_out_and_rolled_back() {
    let mut bank = Bank::attached().await;
    let xid = bank.finished(1, "alice", "90").await;
    let held = bank.store.hold().await;
    bank.session.prepare(&xid).await;
    let (other, _) = bank.joined(2).await; // Behind the prepare, which has been read by now.
    let address = bank.coordinator.crash();
    until("the loss to be known", || !bank.participant.is_attached()).await;
    drop((other, held));
    until("the branch to be rolled back", || bank.store.evidence() == ["fence"]).await;
    assert_eq!(bank.store.prepared_branches(), 0);

    let coordinator = Coordinator::start_at(address).await;
    let mut session = coordinator.hello().await;
    session.welcome().await;
    assert!(session.report().await.prepared.is_empty());
    session.decide(&xid, v1::Decision::Rollback).await;
    assert_eq!(session.acknowledgement(&xid).await, applied(v1::Applied::RolledBack));
}

#[tokio::test]
async fn nonsense_ends_the_session_and_the_next_one_works() {
    let garbled = Some(v1::Xid { gtrid: "nonsense".to_owned(), bqual: "bank.1".to_owned() });
    let xid = Some(v1::Xid { gtrid: gtrid(1).to_string(), bqual: "bank.0000000000000001".to_owned() });
    let decide = v1::Decide { xid: xid.clone(), decision: v1::Decision::Commit.into(), position: position() };
    let nonsense = [
        vec![Kind::Decide(v1::Decide { xid: garbled, ..decide.clone() })],
        vec![Kind::Decide(v1::Decide { xid: None, ..decide.clone() })],
        vec![Kind::Decide(v1::Decide { decision: 0, ..decide.clone() })],
        vec![Kind::Decide(v1::Decide { decision: 99, ..decide.clone() })],
        vec![Kind::Decide(v1::Decide { position: None, ..decide })],
        vec![Kind::Welcome(crate::support::coordinator::welcome())],
        vec![Kind::Drain(v1::Drain {}); 1025],
    ];
    let mut bank = Bank::attached().await;
    for kinds in nonsense {
        let text = format!("{:.100?}", kinds);
        bank.session.send_all(kinds).await;
        assert!(bank.session.next().await.is_none(), "{text}");
        bank.session = bank.coordinator.attached().await;
    }
    assert_eq!(bank.store.evidence().len(), 0, "nothing of it was acted on");
    let xid = bank.finished(1, "alice", "90").await;
    bank.session.commit_one_phase(&xid).await;
    assert_eq!(bank.session.acknowledgement(&xid).await, applied(v1::Applied::Committed));
}

#[tokio::test]
async fn branches_of_another_resource_manager_are_left_alone() {
    let mut bank = Bank::attached().await;
    let foreign = v1::Xid { gtrid: gtrid(1).to_string(), bqual: "other.0000000000000001".to_owned() };
    bank.session.decide(&foreign, v1::Decision::Rollback).await;
    bank.session.commit_one_phase(&foreign).await;
    let ours = bank.finished(2, "alice", "90").await;
    bank.session.commit_one_phase(&ours).await;
    assert_eq!(bank.session.acknowledgement(&ours).await, applied(v1::Applied::Committed));
    assert_eq!(bank.store.evidence(), ["branch"]);
}

#[tokio::test]
async fn a_coordinator_that_refuses_later_is_tried_again_slowly() {
    let mut bank = Bank::attached().await;
    bank.session.fail(tonic::Status::failed_precondition("rebind it first")).await;
    until("the loss to be known", || !bank.participant.is_attached()).await;
    // A hundred attempts would have been made by now if this were taken for a broken connection.
    let again = tokio::time::timeout(Duration::from_millis(400), bank.coordinator.hello()).await;
    assert!(again.is_err(), "tried again at once");
}

#[tokio::test]
async fn many_branches_are_prepared_and_committed_at_once() {
    let mut bank = Bank::attached().await;
    let mut xids = Vec::new();
    for number in 0..250 {
        xids.push(bank.finished(number, &format!("key{number}"), "1").await);
    }
    let prepares = xids.iter().map(|xid| {
        Kind::Prepare(v1::Prepare { xid: Some(xid.clone()), position: position(), remaining_ms: 30_000 })
    });
    bank.session.send_all(prepares.collect()).await;
    for _ in &xids {
        let Some(v1::participant_message::Kind::Vote(vote)) = bank.session.next().await else {
            panic!("no vote")
        };
        assert_eq!(vote.vote(), v1::VoteKind::Commit);
    }
    let decisions = xids.iter().map(|xid| {
        let decision = v1::Decision::Commit.into();
        Kind::Decide(v1::Decide { xid: Some(xid.clone()), decision, position: position() })
    });
    bank.session.send_all(decisions.collect()).await;
    for _ in &xids {
        let Some(v1::participant_message::Kind::Acknowledge(ack)) = bank.session.next().await else {
            panic!("none")
        };
        assert_eq!(ack.applied(), v1::Applied::Committed);
    }
    assert!((0..250).all(|number| bank.store.committed(&format!("key{number}")).is_some()));
}
