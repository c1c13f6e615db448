//! What handlers do, and what becomes of their branches.

use lockstep::{Advice, FinishError, JoinError};
use lockstep_proto::v1::coordinator_message::Kind;

use super::*;
use crate::support::until;

#[tokio::test]
async fn a_branch_commits_in_two_phases() {
    let mut bank = Bank::attached().await;
    let (mut branch, xid) = bank.joined(1).await;
    assert_eq!(branch.gtrid(), gtrid(1));
    assert!(xid.bqual.starts_with("bank."), "{xid:?}");
    branch.set("alice", "90");
    assert_eq!((branch.get("alice").as_deref(), bank.store.committed("alice")), (Some("90"), None));
    branch.finish().await.unwrap();
    assert_eq!((bank.store.committed("alice"), bank.store.open_branches()), (None, 1));

    bank.session.prepare(&xid).await;
    assert_eq!(bank.session.vote(&xid).await, (v1::VoteKind::Commit, String::new()));
    assert_eq!((bank.store.prepared_branches(), bank.store.open_branches()), (1, 0));
    assert_eq!(bank.store.committed("alice"), None);

    bank.session.decide(&xid, v1::Decision::Commit).await;
    assert_eq!(bank.session.acknowledgement(&xid).await, applied(v1::Applied::Committed));
    assert_eq!(bank.store.committed("alice").as_deref(), Some("90"));
    // A repetition is answered the same.
    bank.session.decide(&xid, v1::Decision::Commit).await;
    assert_eq!(bank.session.acknowledgement(&xid).await, applied(v1::Applied::Committed));
}

#[tokio::test]
async fn a_prepared_branch_rolls_back() {
    let mut bank = Bank::attached().await;
    let xid = bank.prepared(1, "alice", "90").await;
    bank.session.decide(&xid, v1::Decision::Rollback).await;
    assert_eq!(bank.session.acknowledgement(&xid).await, applied(v1::Applied::RolledBack));
    assert_eq!((bank.store.committed("alice"), bank.store.evidence()), (None, vec!["fence".to_owned()]));
}

#[tokio::test]
async fn an_open_branch_rolls_back_without_a_trace() {
    let mut bank = Bank::attached().await;
    let xid = bank.finished(1, "alice", "90").await;
    bank.session.decide(&xid, v1::Decision::Rollback).await;
    assert_eq!(bank.session.acknowledgement(&xid).await, applied(v1::Applied::RolledBack));
    assert_eq!((bank.store.open_branches(), bank.store.evidence().len()), (0, 0));
}

#[tokio::test]
async fn a_branch_commits_in_one_phase() {
    let mut bank = Bank::attached().await;
    let xid = bank.finished(1, "alice", "90").await;
    bank.session.commit_one_phase(&xid).await;
    assert_eq!(bank.session.acknowledgement(&xid).await, applied(v1::Applied::Committed));
    assert_eq!(bank.store.committed("alice").as_deref(), Some("90"));
}

#[tokio::test]
async fn a_read_only_branch_leaves_after_its_vote() {
    let mut bank = Bank::attached().await;
    let (branch, xid) = bank.joined(1).await;
    branch.finish().await.unwrap();
    bank.session.prepare(&xid).await;
    assert_eq!(bank.session.vote(&xid).await, (v1::VoteKind::ReadOnly, String::new()));
    assert_eq!((bank.store.open_branches(), bank.store.prepared_branches()), (0, 0));
}

#[tokio::test]
async fn what_the_store_refuses_to_prepare_is_a_rollback_vote_with_its_reason() {
    let mut bank = Bank::attached().await;
    let xid = bank.finished(1, "forbidden", "1").await;
    bank.session.prepare(&xid).await;
    let (vote, why) = bank.session.vote(&xid).await;
    assert_eq!(vote, v1::VoteKind::Rollback);
    assert!(why.contains("may not be written"), "{why}");
}

#[tokio::test]
async fn finishing_waits_for_the_enlists_acknowledgement() {
    let mut bank = Bank::attached().await;
    let context = context(1);
    // The connection is there before the coordinator has said anything.
    let branch = soon("joining", bank.participant.join(&context)).await.unwrap();
    let xid = bank.session.enlist().await;
    let finish = tokio::spawn(branch.finish());
    // A later message that is answered shows that the participant has had time to finish.
    let (other, _) = bank.joined(2).await;
    assert!(!finish.is_finished());
    bank.session.accept(&xid).await;
    soon("finishing", finish).await.unwrap().unwrap();
    drop(other);
}

#[tokio::test]
async fn a_refused_enlist_fails_the_handler() {
    for (reason, is_refused) in
        [(v1::EnlistRefusal::CommitRequested, true), (v1::EnlistRefusal::RollbackOnly, false)]
    {
        let mut bank = Bank::attached().await;
        let branch = bank.participant.join(&context(1)).await.unwrap();
        let xid = bank.session.enlist().await;
        let detail = "too late".to_owned();
        let refused = v1::EnlistRefused { xid: Some(xid), reason: reason.into(), detail };
        bank.session.send(Kind::EnlistRefused(refused)).await;
        let error = soon("finishing", branch.finish()).await.unwrap_err();
        assert_eq!(matches!(error, FinishError::Refused { .. }), is_refused, "{error:?}");
        assert_eq!(error.advice(), if is_refused { Advice::GiveUp } else { Advice::Retry });
        assert!(error.to_string().contains("too late") && error.to_string().contains(&gtrid(1).to_string()));
        until("the connection to go", || bank.store.open_branches() == 0).await;
    }
}

#[tokio::test]
async fn a_dropped_branch_is_rolled_back_and_votes_at_once() {
    let mut bank = Bank::attached().await;
    let (mut branch, xid) = bank.joined(1).await;
    branch.set("alice", "90");
    drop(branch);
    let (vote, why) = bank.session.vote(&xid).await;
    assert_eq!(vote, v1::VoteKind::Rollback);
    assert!(why.contains("finish()"), "{why}");
    until("the connection to go", || bank.store.open_branches() == 0).await;
    assert_eq!(bank.store.committed("alice"), None);
}

#[tokio::test]
async fn a_handler_that_panics_or_is_cancelled_rolls_back() {
    let mut bank = Bank::attached().await;
    let (branch, xid) = bank.joined(1).await;
    let handler = tokio::spawn(async move {
        let _branch = branch;
        panic!("on purpose");
    });
    assert!(handler.await.unwrap_err().is_panic());
    assert_eq!(bank.session.vote(&xid).await.0, v1::VoteKind::Rollback);

    let (branch, xid) = bank.joined(2).await;
    let handler = tokio::spawn(async move {
        let _branch = branch;
        std::future::pending::<()>().await;
    });
    handler.abort();
    assert_eq!(bank.session.vote(&xid).await.0, v1::VoteKind::Rollback);
    until("the connections to go", || bank.store.open_branches() == 0).await;
}

#[tokio::test]
async fn a_handler_that_is_cancelled_while_it_finishes_rolls_back() {
    let mut bank = Bank::attached().await;
    let branch = bank.participant.join(&context(1)).await.unwrap();
    let xid = bank.session.enlist().await;
    let mut finish = Box::pin(branch.finish());
    assert!(futures::poll!(&mut finish).is_pending());
    drop(finish);
    let (vote, _) = bank.session.vote(&xid).await;
    assert_eq!(vote, v1::VoteKind::Rollback);
    until("the connection to go", || bank.store.open_branches() == 0).await;
}

#[tokio::test]
async fn a_join_that_is_cancelled_rolls_back_what_it_had_opened() {
    let mut bank = Bank::attached().await;
    let context = context(1);
    let mut join = Box::pin(bank.participant.join(&context));
    assert!(futures::poll!(&mut join).is_pending());
    let xid = bank.session.enlist().await;
    drop(join);
    let (vote, _) = bank.session.vote(&xid).await;
    assert_eq!(vote, v1::VoteKind::Rollback);
    until("the connection to go", || bank.store.open_branches() == 0).await;
}

#[tokio::test]
async fn a_prepare_that_meets_a_running_handler_is_voted_rollback() {
    let mut bank = Bank::attached().await;
    let (mut branch, xid) = bank.joined(1).await;
    bank.session.prepare(&xid).await;
    let (vote, why) = bank.session.vote(&xid).await;
    assert_eq!(vote, v1::VoteKind::Rollback);
    assert!(why.contains("handler was still running"), "{why}");
    // The connection is the handler's until it lets go (P17).
    branch.set("alice", "90");
    assert_eq!(bank.store.open_branches(), 1);
    let error = branch.finish().await.unwrap_err();
    assert!(error.to_string().contains("handler was still running"), "{error}");
    assert_eq!(error.advice(), Advice::Retry);
    until("the connection to go", || bank.store.open_branches() == 0).await;
}

#[tokio::test]
async fn a_rollback_that_meets_a_running_handler_is_acknowledged_when_it_lets_go() {
    let mut bank = Bank::attached().await;
    let (branch, xid) = bank.joined(1).await;
    bank.session.decide(&xid, v1::Decision::Rollback).await;
    // What comes behind it is answered first.
    let (other, other_xid) = bank.joined(2).await;
    drop(other);
    assert_eq!(bank.session.vote(&other_xid).await.0, v1::VoteKind::Rollback);
    let error = branch.finish().await.unwrap_err();
    assert!(error.to_string().contains("rolled the transaction back"), "{error}");
    assert_eq!(bank.session.acknowledgement(&xid).await, applied(v1::Applied::RolledBack));
}

#[tokio::test]
async fn a_second_handler_waits_and_sees_what_the_first_has_written() {
    let mut bank = Bank::attached().await;
    let (mut first, xid) = bank.joined(1).await;
    let participant = bank.participant.clone();
    let second = tokio::spawn(async move { participant.join(&context(1)).await });
    first.set("alice", "90");
    // Another transaction's branch is opened meanwhile.
    let (other, _) = bank.joined(2).await;
    assert!(!second.is_finished());
    first.finish().await.unwrap();
    let mut second = soon("the second join", second).await.unwrap().unwrap();
    assert_eq!(second.get("alice").as_deref(), Some("90"));
    second.set("bob", "110");
    second.finish().await.unwrap();
    drop(other);
    let _vote_of_the_other = bank.session.next().await;

    bank.session.prepare(&xid).await;
    assert_eq!(bank.session.vote(&xid).await.0, v1::VoteKind::Commit);
    bank.session.decide(&xid, v1::Decision::Commit).await;
    bank.session.acknowledgement(&xid).await;
    let committed = (bank.store.committed("alice"), bank.store.committed("bob"));
    assert_eq!(committed, (Some("90".to_owned()), Some("110".to_owned())));
}

#[tokio::test]
async fn a_deadline_rolls_an_open_branch_back() {
    let mut bank = Bank::attached().await;
    let context: Context = format!("01-{}-{}-150", cluster(), gtrid(1)).parse().unwrap();
    let (branch, xid) = tokio::join!(bank.participant.join(&context), bank.session.enlisted());
    let (vote, why) = bank.session.vote(&xid).await;
    assert_eq!(vote, v1::VoteKind::Rollback);
    assert!(why.contains("deadline"), "{why}");
    assert!(branch.unwrap().finish().await.unwrap_err().to_string().contains("deadline"));

    let error = bank.participant.join(&context).await.unwrap_err();
    assert!(matches!(error, JoinError::Expired { .. }) && error.advice() == Advice::GiveUp, "{error:?}");
}

#[tokio::test]
async fn a_context_of_another_cluster_is_refused() {
    let bank = Bank::attached().await;
    let context: Context = format!("01-00000bad-{}-30000", gtrid(1)).parse().unwrap();
    let error = bank.participant.join(&context).await.unwrap_err();
    assert!(matches!(error, JoinError::ForeignCluster { .. }) && error.advice() == Advice::GiveUp);
    assert_eq!(bank.store.open_branches(), 0);
}
