//! Branches that vote when their handler ends, and everything that can cross such a vote.

use lockstep::{Advice, FinishError, JoinError};

use super::*;
use crate::support::until;

impl Bank {
    /// A branch of a transaction whose caller has marked the call, which has written `key=value`.
    async fn called_last(&mut self, number: u8, key: &str, value: &str) -> (Branch<Store>, v1::Xid) {
        let context = context(number).vote();
        let (branch, xid) = tokio::join!(self.participant.join(&context), self.session.enlisted());
        let mut branch = branch.unwrap();
        branch.set(key, value);
        (branch, xid)
    }

    /// As before, and it has voted.
    async fn voted(&mut self, number: u8, key: &str, value: &str) -> v1::Xid {
        let (branch, xid) = self.called_last(number, key, value).await;
        let (finished, vote) = tokio::join!(branch.finish(), self.session.vote(&xid));
        finished.unwrap();
        assert_eq!(vote, (v1::VoteKind::Commit, String::new()));
        xid
    }
}

#[tokio::test]
async fn a_marked_call_votes_when_its_handler_ends() {
    let mut bank = Bank::attached().await;
    let xid = bank.voted(1, "alice", "90").await;
    assert_eq!((bank.store.prepared_branches(), bank.store.open_branches()), (1, 0));
    // No prepare was sent: the decision is the first thing that the branch hears.
    bank.session.decide(&xid, v1::Decision::Commit).await;
    assert_eq!(bank.session.acknowledgement(&xid).await, applied(v1::Applied::Committed));
    assert_eq!(bank.store.committed("alice").as_deref(), Some("90"));
}

#[tokio::test]
async fn a_service_may_vote_by_itself() {
    let mut bank = Bank::attached().await;
    let (mut branch, xid) = bank.joined(1).await;
    branch.set("alice", "90");
    let (voted, vote) = tokio::join!(branch.vote(), bank.session.vote(&xid));
    voted.unwrap();
    assert_eq!(vote, (v1::VoteKind::Commit, String::new()));
    bank.session.decide(&xid, v1::Decision::Rollback).await;
    assert_eq!(bank.session.acknowledgement(&xid).await, applied(v1::Applied::RolledBack));
    assert_eq!(bank.store.committed("alice"), None);
}

#[tokio::test]
async fn a_handler_that_is_dropped_is_rolled_back_whatever_its_caller_has_marked() {
    let mut bank = Bank::attached().await;
    let (branch, xid) = bank.called_last(1, "alice", "90").await;
    drop(branch);
    assert_eq!(bank.session.vote(&xid).await.0, v1::VoteKind::Rollback);
    until("the connection to go", || bank.store.open_branches() == 0).await;
    assert_eq!(bank.store.prepared_branches(), 0);
}

#[tokio::test]
async fn nothing_is_prepared_before_the_coordinator_knows_the_branch() {
    let mut bank = Bank::attached().await;
    let mut branch = soon("joining", bank.participant.join(&context(1).vote())).await.unwrap();
    branch.set("alice", "90");
    let xid = bank.session.enlist().await;
    let finish = tokio::spawn(branch.finish());
    // A later message that is answered shows that the participant has had time to finish, and to prepare.
    let (other, other_xid) = bank.joined(2).await;
    drop(other);
    assert_eq!(bank.session.vote(&other_xid).await.0, v1::VoteKind::Rollback);
    assert!(!finish.is_finished());
    assert_eq!(bank.store.prepared_branches(), 0);
    bank.session.accept(&xid).await;
    assert_eq!(bank.session.vote(&xid).await.0, v1::VoteKind::Commit);
    soon("finishing", finish).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_branch_that_has_written_nothing_stays_open_until_it_is_asked() {
    let mut bank = Bank::attached().await;
    let context = context(1).vote();
    let (branch, xid) = tokio::join!(bank.participant.join(&context), bank.session.enlisted());
    soon("finishing", branch.unwrap().finish()).await.unwrap();
    assert_eq!(bank.store.open_branches(), 1, "what it has read stays locked (P23)");
    bank.session.prepare(&xid).await;
    assert_eq!(bank.session.vote(&xid).await, (v1::VoteKind::ReadOnly, String::new()));
}

#[tokio::test]
async fn what_the_store_refuses_to_prepare_is_told_to_the_handler() {
    let mut bank = Bank::attached().await;
    let (branch, xid) = bank.called_last(1, "forbidden", "1").await;
    let (finished, (vote, why)) = tokio::join!(branch.finish(), bank.session.vote(&xid));
    let error = finished.unwrap_err();
    assert!(matches!(&error, FinishError::RolledBack { .. }) && error.advice() == Advice::Retry, "{error:?}");
    assert!(error.to_string().contains("may not be written"), "{error}");
    assert_eq!(vote, v1::VoteKind::Rollback);
    assert!(why.contains("may not be written"), "{why}");
}

#[tokio::test]
async fn a_further_call_is_refused_and_waits_for_nothing() {
    let mut bank = Bank::attached().await;
    let xid = bank.voted(1, "alice", "90").await;
    for context in [context(1), context(1).vote()] {
        let error = soon("joining again", bank.participant.join(&context)).await.unwrap_err();
        assert!(matches!(error, JoinError::Voted { .. }) && error.advice() == Advice::GiveUp, "{error:?}");
        assert!(error.to_string().contains("has voted"), "{error}");
    }
    bank.session.decide(&xid, v1::Decision::Commit).await;
    assert_eq!(bank.session.acknowledgement(&xid).await, applied(v1::Applied::Committed));
}

#[tokio::test]
async fn a_prepare_that_crosses_the_vote_is_answered_by_it() {
    let mut bank = Bank::attached().await;
    let (branch, xid) = bank.called_last(1, "alice", "90").await;
    let gate = bank.store.hold().await;
    let finish = tokio::spawn(branch.finish());
    bank.session.prepare(&xid).await;
    assert!(!finish.is_finished());
    drop(gate);
    assert_eq!(bank.session.vote(&xid).await, (v1::VoteKind::Commit, String::new()));
    soon("finishing", finish).await.unwrap().unwrap();
    // Asked once more, it says the same.
    bank.session.prepare(&xid).await;
    assert_eq!(bank.session.vote(&xid).await, (v1::VoteKind::Commit, String::new()));
}

#[tokio::test]
async fn an_order_to_commit_in_one_phase_that_crosses_the_vote_commits() {
    let mut bank = Bank::attached().await;
    let xid = bank.voted(1, "alice", "90").await;
    bank.session.commit_one_phase(&xid).await;
    assert_eq!(bank.session.acknowledgement(&xid).await, applied(v1::Applied::Committed));
    assert_eq!(bank.store.committed("alice").as_deref(), Some("90"));
}

#[tokio::test]
async fn a_session_that_breaks_while_the_store_prepares_rolls_back_and_tells_the_handler() {
    let mut bank = Bank::attached().await;
    let (branch, xid) = bank.called_last(1, "alice", "90").await;
    let gate = bank.store.hold().await;
    let finish = tokio::spawn(branch.finish());
    // What is answered behind it shows that the store was asked to prepare.
    let (other, _) = bank.joined(2).await;
    let Bank { coordinator, session, participant, store, _dir } = bank;
    drop(session);
    let error = soon("finishing", finish).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("session with the coordinator broke"), "{error}");
    drop((gate, other));
    let mut session = coordinator.attached().await;
    // Ordered by a coordinator that had sent it before the session broke: the handler's caller was told otherwise.
    session.commit_one_phase(&xid).await;
    assert_eq!(session.acknowledgement(&xid).await, applied(v1::Applied::RolledBack));
    assert_eq!((store.committed("alice"), store.evidence()), (None, vec!["fence".to_owned()]));
    drop(participant);
}

#[tokio::test]
async fn a_branch_that_has_voted_outlives_its_session() {
    let mut bank = Bank::attached().await;
    let xid = bank.voted(1, "alice", "90").await;
    let Bank { coordinator, session, participant, store, _dir } = bank;
    drop(session);
    let mut session = coordinator.hello().await;
    session.welcome().await;
    assert_eq!(session.report().await.prepared, std::slice::from_ref(&xid));
    session.decide(&xid, v1::Decision::Commit).await;
    assert_eq!(session.acknowledgement(&xid).await, applied(v1::Applied::Committed));
    assert_eq!(store.committed("alice").as_deref(), Some("90"));
    drop(participant);
}

#[tokio::test]
async fn a_handler_that_is_cancelled_while_the_store_prepares_rolls_back() {
    let mut bank = Bank::attached().await;
    let (branch, xid) = bank.called_last(1, "alice", "90").await;
    let gate = bank.store.hold().await;
    let finish = tokio::spawn(branch.finish());
    let (other, other_xid) = bank.joined(2).await;
    finish.abort();
    assert!(finish.await.unwrap_err().is_cancelled());
    drop((gate, other));
    let mut votes = vec![bank.session.next().await, bank.session.next().await];
    votes.retain(|vote| matches!(vote, Some(v1::participant_message::Kind::Vote(vote)) if vote.vote() == v1::VoteKind::Rollback));
    assert_eq!(votes.len(), 2, "{xid:?} and {other_xid:?}: {votes:?}");
    assert_eq!(bank.store.prepared_branches(), 0);
}
