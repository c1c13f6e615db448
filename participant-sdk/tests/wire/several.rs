//! Several coordinators that share their decision log.

use std::collections::BTreeSet;

use lockstep::{Client, JoinError, Outcome, Participant};
use lockstep_proto::v1;
use lockstep_proto::v1::coordinator_message::Kind;

use crate::support::coordinator::{Call, Coordinator, Session, cluster, gtrid, welcome};
use crate::support::soon;
use crate::support::store::Store;

async fn two() -> (Coordinator, Coordinator, Client) {
    let (one, other) = (Coordinator::start().await, Coordinator::start().await);
    let client = Client::builder_of([one.url(), other.url()]).connect().unwrap();
    (one, other, client)
}

/// The coordinator that is called next, the other one, and the call.
async fn called(one: Coordinator, other: Coordinator) -> (Coordinator, Coordinator, Call) {
    let (first, call) = tokio::select! {
        call = one.call() => (true, call),
        call = other.call() => (false, call),
    };
    if first { (one, other, call) } else { (other, one, call) }
}

fn grant(call: Call) {
    let Call::Begin(_, reply) = call else { panic!("another call") };
    let response = v1::BeginResponse {
        gtrid: gtrid(1).to_string(),
        cluster: cluster().to_string(),
        timeout_ms: 30_000,
        traceparent: String::new(),
    };
    reply.send(Ok(response)).unwrap();
}

/// Which of the two gets a begin is drawn by lot: that one of them got none of so many happens once in 2^63 runs.
#[tokio::test]
async fn begins_are_spread_over_all() {
    let (mut one, mut other, client) = two().await;
    let mut begun_at = BTreeSet::new();
    for _ in 0..64 {
        let begin = tokio::spawn({
            let client = client.clone();
            async move { client.begin("test").start().await }
        });
        let (home, rest, call) = called(one, other).await;
        grant(call);
        let transaction = begin.await.unwrap().unwrap();
        // It is ended where it was begun.
        tokio::join!(transaction.rollback("test"), home.rollback()).0.unwrap();
        begun_at.insert(home.url());
        (one, other) = (home, rest);
    }
    assert_eq!(begun_at, BTreeSet::from([one.url(), other.url()]));
}

#[tokio::test]
async fn what_a_coordinator_does_not_answer_is_asked_of_the_next() {
    let (one, other, client) = two().await;
    let begin = tokio::spawn({
        let client = client.clone();
        async move { client.begin("test").start().await }
    });
    let (home, other, call) = called(one, other).await;
    grant(call);
    let transaction = begin.await.unwrap().unwrap();
    let commit = tokio::spawn(transaction.commit());
    let Call::Commit(..) = home.call().await else { panic!("another call") };
    // Whether it was decided is known to nobody but the log.
    home.crash();
    let asked = other.commit(v1::Outcome::Undecided, "not sealed yet").await;
    assert_eq!(asked.gtrid, gtrid(1).to_string());
    // The one that is gone has its turn in between.
    other.commit(v1::Outcome::Committed, "").await;
    assert_eq!(soon("the answer", commit).await.unwrap().unwrap().gtrid, gtrid(1));
    for _ in 0..2 {
        let (outcome, _) = tokio::join!(client.inquire(gtrid(1)), other.inquire(v1::Outcome::Committed));
        assert_eq!(outcome.unwrap(), Outcome::Committed);
    }
}

/// A begin at one that is frozen must not wait until it is found out to be gone.
#[tokio::test]
async fn a_begin_that_is_not_answered_is_made_at_another() {
    let (one, other, client) = two().await;
    let begin = tokio::spawn(async move { client.begin("test").start().await });
    let (_frozen, other, _unanswered) = called(one, other).await;
    grant(other.call().await);
    let transaction = soon("the begin", begin).await.unwrap().unwrap();
    tokio::join!(transaction.rollback("test"), other.rollback()).0.unwrap();
}

/// A commit at one that is frozen is learned from whoever has taken over, long before the connection is found out to be dead.
#[tokio::test]
async fn a_commit_that_is_not_answered_is_asked_of_another() {
    let (one, other, client) = two().await;
    let begin = tokio::spawn(async move { client.begin("test").start().await });
    let (frozen, other, call) = called(one, other).await;
    grant(call);
    let commit = tokio::spawn(begin.await.unwrap().unwrap().commit());
    let Call::Commit(_, _unanswered) = frozen.call().await else { panic!("another call") };
    other.commit(v1::Outcome::Committed, "").await;
    assert_eq!(soon("the answer", commit).await.unwrap().unwrap().gtrid, gtrid(1));
}

/// As a coordinator of this epoch, on a log of which the newest is 4.
async fn welcomed(coordinator: &Coordinator, epoch: u32) -> Session {
    welcome_as(epoch, coordinator.hello().await).await
}

async fn welcome_as(epoch: u32, mut session: Session) -> Session {
    let position = welcome().position.map(|position| v1::LogPosition { epoch, ..position });
    session.send(Kind::Welcome(v1::Welcome { position, newest_epoch: 4, ..welcome() })).await;
    session.report().await;
    session
}

async fn attached(store: &Store) -> (Participant<Store>, [Coordinator; 2], [Session; 2]) {
    let (one, other) = (Coordinator::start().await, Coordinator::start().await);
    let attach = Participant::builder("bank", store.clone()).coordinators([one.url(), other.url()]).attach();
    let (participant, first, second) = tokio::join!(attach, welcomed(&one, 3), welcomed(&other, 4));
    (participant.unwrap(), [one, other], [first, second])
}

#[tokio::test]
async fn a_transaction_is_joined_at_the_coordinator_that_it_was_begun_at() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(&dir.path().join("store"));
    let (participant, _coordinators, [mut first, _second]) = attached(&store).await;
    assert_eq!(gtrid(1).epoch().get(), 3);
    let context = format!("01-{}-{}-30000", cluster(), gtrid(1)).parse().unwrap();
    let (branch, xid) = tokio::join!(participant.join(&context), first.enlisted());
    assert_eq!(xid.gtrid, gtrid(1).to_string());
    drop(branch.unwrap());

    // Of an epoch that no coordinator here has.
    let foreign = gtrid(1).to_string().replacen("3.", "9.", 1);
    let context = format!("01-{}-{foreign}-30000", cluster()).parse().unwrap();
    let refused = participant.join(&context).await.unwrap_err();
    assert!(matches!(refused, JoinError::NotAttached { .. }), "{refused}");
}

/// P19 and P20: nothing is taken from the sealed one any more, and the store is listed at once for whoever answers now.
#[tokio::test]
async fn a_seal_ends_the_session_with_the_sealed_coordinator() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(&dir.path().join("store"));
    let (participant, [one, _other], [mut first, mut second]) = attached(&store).await;
    second.send(Kind::Sealed(v1::Sealed { epochs: vec![3] })).await;
    second.report().await;
    while first.next().await.is_some() {}
    assert!(participant.is_attached());
    // It begins again under another epoch.
    let again = one.hello().await;
    assert_eq!(again.hello.resource_manager, "bank");
}

fn told(nodes: &[(u32, &Coordinator)]) -> Kind {
    let node = |(epoch, node): &(u32, &Coordinator)| v1::Node { epoch: *epoch, address: node.url() };
    Kind::Nodes(v1::Nodes { nodes: nodes.iter().map(node).collect() })
}

#[tokio::test]
async fn who_is_told_of_is_attached_to_and_left_once_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(&dir.path().join("store"));
    let (named, other) = (Coordinator::start().await, Coordinator::start().await);
    let attach = Participant::builder("bank", store.clone()).coordinator(named.url()).attach();
    let (participant, mut first) = tokio::join!(attach, welcomed(&named, 4));
    let participant = participant.unwrap();
    first.send(told(&[(4, &named), (3, &other)])).await;
    let second = other.hello().await;
    // Whoever joins a transaction of the one that was told of waits until it is attached to.
    let context = format!("01-{}-{}-30000", cluster(), gtrid(1)).parse().unwrap();
    let join = participant.join(&context);
    let enlisted = async {
        let mut second = welcome_as(3, second).await;
        (second.enlisted().await, second)
    };
    let (branch, (xid, _second)) = tokio::join!(join, enlisted);
    assert_eq!(xid.gtrid, gtrid(1).to_string());
    drop(branch.unwrap());

    first.send(told(&[(4, &named)])).await;
    let address = other.crash();
    let again = Coordinator::start_at(address).await;
    // It may have been tried once more before that was looked at.
    let tried = async {
        loop {
            again.hello().await;
        }
    };
    let quiet = tokio::time::timeout(std::time::Duration::from_secs(4), tried).await;
    assert!(quiet.is_err());
    let tried = tokio::time::timeout(std::time::Duration::from_secs(4), again.hello()).await;
    assert!(tried.is_err(), "it is tried for ever");
    assert!(participant.is_attached());
}
