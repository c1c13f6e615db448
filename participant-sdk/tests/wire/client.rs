//! The application's side against a coordinator that answers, does not answer, dies, and comes back.

use std::time::Duration;

use crate::support::coordinator::{Call, Coordinator, cluster, committed, gtrid};
use crate::support::soon;
use lockstep::{
    Advice, BeginError, Client, CommitError, Outcome, RollbackError, Transaction, TransactionError,
};
use lockstep_proto::v1;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

async fn client(coordinator: &Coordinator) -> Client {
    Client::connect(coordinator.url()).await.unwrap()
}

/// Whether an error is the one that is expected.
type Is<E> = fn(&E) -> bool;

/// A client that gives up soon.
fn impatient(coordinator: &Coordinator) -> Client {
    Client::builder(coordinator.url()).patience(Duration::from_millis(300)).connect().unwrap()
}

/// A begun transaction with the id `gtrid(1)`, whose deadline is so far away.
async fn begun(client: &Client, coordinator: &Coordinator, timeout_ms: u64) -> Transaction {
    let (transaction, _) =
        tokio::join!(client.begin("test").start(), coordinator.begin(gtrid(1), timeout_ms));
    transaction.unwrap()
}

fn refusal(code: Code, reason: &str) -> Status {
    let info = ErrorDetails::with_error_info(reason, "lockstep", std::collections::HashMap::new());
    Status::with_error_details(code, "no", info)
}

/// Shows that no rollback was sent. One that was is at the coordinator when a call that was made later has come back, and
/// is found where the next one is looked for.
async fn nothing_was_sent_before(client: &Client, coordinator: &Coordinator) {
    tokio::task::yield_now().await;
    for _ in 0..2 {
        let (outcome, request) =
            tokio::join!(client.inquire(gtrid(9)), coordinator.inquire(v1::Outcome::Undecided));
        assert_eq!((outcome.unwrap(), request.gtrid), (Outcome::Undecided, gtrid(9).to_string()));
    }
}

#[tokio::test]
async fn begin_carries_its_options_and_grants_a_context() {
    let coordinator = Coordinator::start().await;
    let client = client(&coordinator).await;
    let begin = client.begin("transfer").timeout(Duration::from_secs(5)).label("order", "o-91").start();
    let (transaction, request) = tokio::join!(begin, coordinator.begin(gtrid(1), 5000));
    let transaction = transaction.unwrap();

    assert_eq!((request.name.as_str(), request.timeout_ms), ("transfer", 5000));
    assert_eq!(request.labels, [("order".to_owned(), "o-91".to_owned())].into());
    let context = transaction.context();
    assert_eq!((context.gtrid(), context.cluster()), (gtrid(1), cluster()));
    assert!(context.remaining() <= Duration::from_secs(5) && context.remaining() > Duration::from_secs(1));
    tokio::join!(transaction.rollback("test"), coordinator.rollback()).0.unwrap();
}

#[tokio::test]
async fn a_begin_without_a_timeout_takes_the_default_and_a_tiny_one_does_not() {
    let coordinator = Coordinator::start().await;
    let client = client(&coordinator).await;
    for (begin, expected) in
        [(client.begin("a"), 0), (client.begin("a").timeout(Duration::from_micros(3)), 1)]
    {
        let (transaction, request) = tokio::join!(begin.start(), coordinator.begin(gtrid(1), 100));
        assert_eq!(request.timeout_ms, expected);
        let (rolled_back, _) = tokio::join!(transaction.unwrap().rollback("test"), coordinator.rollback());
        rolled_back.unwrap();
    }
}

#[tokio::test]
async fn begin_waits_for_a_coordinator_that_is_not_up_yet() {
    let address = Coordinator::start().await.crash();
    let client = Client::connect(format!("http://{address}")).await.unwrap();
    let begin = tokio::spawn(async move { client.begin("early").start().await });
    let coordinator = Coordinator::start_at(address).await;
    coordinator.begin(gtrid(1), 30_000).await;
    let transaction = soon("begin", begin).await.unwrap().unwrap();
    assert_eq!(transaction.gtrid(), gtrid(1));
}

#[tokio::test]
async fn begin_says_what_may_be_done_about_a_refusal() {
    let coordinator = Coordinator::start().await;
    let client = impatient(&coordinator);
    let refusals: [(_, _, Is<BeginError>, _); 6] = [
        (Code::ResourceExhausted, "TRANSACTION_LIMIT", |e| matches!(e, BeginError::Busy(_)), Advice::Retry),
        (Code::InvalidArgument, "INVALID_TIMEOUT", |e| matches!(e, BeginError::Invalid(_)), Advice::GiveUp),
        (Code::InvalidArgument, "INVALID_NAME", |e| matches!(e, BeginError::Invalid(_)), Advice::GiveUp),
        (Code::InvalidArgument, "INVALID_LABELS", |e| matches!(e, BeginError::Invalid(_)), Advice::GiveUp),
        (Code::FailedPrecondition, "LOG_BEHIND", |e| matches!(e, BeginError::Refused(_)), Advice::GiveUp),
        (Code::FailedPrecondition, "NEWER_REASON", |e| matches!(e, BeginError::Refused(_)), Advice::GiveUp),
    ];
    for (code, reason, is, advice) in refusals {
        let answer = async {
            let Call::Begin(_, reply) = coordinator.call().await else { panic!("another call") };
            reply.send(Err(refusal(code, reason))).unwrap();
        };
        let error = tokio::join!(client.begin("x").start(), answer).0.unwrap_err();
        assert!(is(&error) && error.advice() == advice, "{reason}: {error:?}");
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[tokio::test]
async fn begin_is_repeated_while_the_coordinator_drains_and_gives_up_in_the_end() {
    let coordinator = Coordinator::start().await;
    let client = impatient(&coordinator);
    let drain = async {
        let mut calls = 0;
        while let Call::Begin(_, reply) = coordinator.call().await {
            calls += 1;
            // The last one may have been given up already.
            let _gone = reply.send(Err(refusal(Code::Unavailable, "DRAINING")));
        }
        calls
    };
    tokio::select! {
        _ = drain => unreachable!("nothing else is called"),
        result = client.begin("x").start() => {
            let error = result.unwrap_err();
            assert!(matches!(error, BeginError::Unavailable(_)) && error.advice() == Advice::Retry, "{error:?}");
            assert!(error.to_string().contains("DRAINING"), "{error}");
        }
    }
}

#[tokio::test]
async fn an_address_that_is_none_is_refused_at_once() {
    for address in ["", "127.0.0.1:7420", "https://127.0.0.1:7420", "http://", "ftp://x", "http://[::1"] {
        let error = Client::connect(address).await.unwrap_err();
        assert_eq!((error.address.as_str(), error.advice()), (address, Advice::GiveUp), "{error}");
    }
}

#[tokio::test]
async fn each_outcome_of_a_commit_has_its_own_type() {
    let coordinator = Coordinator::start().await;
    let client = client(&coordinator).await;
    let mut results = Vec::new();
    for outcome in [
        v1::Outcome::Committed,
        v1::Outcome::NothingToCommit,
        v1::Outcome::RolledBack,
        v1::Outcome::Heuristic,
    ] {
        let transaction = begun(&client, &coordinator, 30_000).await;
        let (result, request) = tokio::join!(transaction.commit(), coordinator.commit(outcome, "detail"));
        assert_eq!(request.gtrid, gtrid(1).to_string());
        assert_eq!((request.cluster, request.wait), (cluster().to_string(), v1::Wait::Applied.into()));
        results.push(result);
    }
    let (gtrid, detail) = (gtrid(1), "detail".to_owned());
    let [committed, nothing, rolled_back, heuristic] = results.try_into().unwrap();
    let committed = committed.unwrap();
    assert_eq!((committed.gtrid, committed.branches, committed.branches_pending), (gtrid, 2, 1));
    assert!(!committed.nothing_to_commit && nothing.unwrap().nothing_to_commit);
    let rolled_back = rolled_back.unwrap_err();
    assert_eq!(rolled_back, CommitError::RolledBack { gtrid, detail: detail.clone() });
    assert_eq!(rolled_back.advice(), Advice::Retry);
    let heuristic = heuristic.unwrap_err();
    assert_eq!(heuristic, CommitError::Heuristic { gtrid, detail });
    assert_eq!(heuristic.advice(), Advice::GiveUp);
}

#[tokio::test]
async fn a_commit_may_wait_for_the_decision_only() {
    let coordinator = Coordinator::start().await;
    let client = client(&coordinator).await;
    let transaction = begun(&client, &coordinator, 30_000).await;
    let commit = coordinator.commit(v1::Outcome::Committed, "");
    let (result, request) = tokio::join!(transaction.commit_when_decided(), commit);
    assert_eq!(request.wait, i32::from(v1::Wait::Decided));
    result.unwrap();
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_asked_again_and_never_rolled_back() {
    let coordinator = Coordinator::start().await;
    let client = client(&coordinator).await;
    let transaction = begun(&client, &coordinator, 30_000).await;
    let commit = tokio::spawn(transaction.commit());
    let Call::Commit(..) = coordinator.call().await else { panic!("another call") };
    let coordinator = Coordinator::start_at(coordinator.crash()).await;
    coordinator.commit(v1::Outcome::Committed, "").await;
    assert_eq!(soon("the commit", commit).await.unwrap().unwrap().gtrid, gtrid(1));
    nothing_was_sent_before(&client, &coordinator).await;
}

#[tokio::test]
async fn an_answer_that_is_none_yet_is_asked_again() {
    let coordinator = Coordinator::start().await;
    let client = client(&coordinator).await;
    let transaction = begun(&client, &coordinator, 30_000).await;
    let commit = tokio::spawn(transaction.commit());
    coordinator.commit(v1::Outcome::Undecided, "").await;
    coordinator.commit(v1::Outcome::Unknown, "the log cannot be read").await;
    coordinator.commit(v1::Outcome::Committed, "").await;
    soon("the commit", commit).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_commit_without_an_answer_is_unknown_and_names_the_transaction() {
    let coordinator = Coordinator::start().await;
    let client = impatient(&coordinator);
    let transaction = begun(&client, &coordinator, 100).await;
    let commit = tokio::spawn(transaction.commit());
    let Call::Commit(_, _unanswered) = coordinator.call().await else { panic!("another call") };
    let error = soon("the commit", commit).await.unwrap().unwrap_err();
    assert!(matches!(error, CommitError::Unknown { .. }), "{error:?}");
    assert_eq!(error.advice(), Advice::AskLater(gtrid(1)));
    assert!(error.to_string().contains(&gtrid(1).to_string()));
    nothing_was_sent_before(&client, &coordinator).await;
}

#[tokio::test]
async fn every_answer_to_a_commit_that_is_not_definite_is_unknown() {
    let coordinator = Coordinator::start().await;
    let client = impatient(&coordinator);
    for code in [
        Code::InvalidArgument,
        Code::NotFound,
        Code::FailedPrecondition,
        Code::ResourceExhausted,
        Code::DataLoss,
    ] {
        let transaction = begun(&client, &coordinator, 100).await;
        let answer = async {
            let Call::Commit(_, reply) = coordinator.call().await else { panic!("another call") };
            reply.send(Err(refusal(code, "NEWER_REASON"))).unwrap();
        };
        let error = tokio::join!(transaction.commit(), answer).0.unwrap_err();
        assert!(matches!(error, CommitError::Unknown { .. }), "{code:?}: {error:?}");
    }
    let transaction = begun(&client, &coordinator, 100).await;
    let answer = async {
        let Call::Commit(_, reply) = coordinator.call().await else { panic!("another call") };
        reply.send(Ok(v1::CommitResponse { outcome: 99, ..committed(v1::Outcome::Committed, "") })).unwrap();
    };
    let error = tokio::join!(transaction.commit(), answer).0.unwrap_err();
    assert!(matches!(error, CommitError::Unknown { .. }) && error.to_string().contains("99"), "{error:?}");
}

#[tokio::test]
async fn a_cancelled_commit_is_not_rolled_back() {
    let coordinator = Coordinator::start().await;
    let client = client(&coordinator).await;
    let transaction = begun(&client, &coordinator, 30_000).await;
    let commit = tokio::spawn(transaction.commit());
    let Call::Commit(_, unanswered) = coordinator.call().await else { panic!("another call") };
    commit.abort();
    assert!(commit.await.unwrap_err().is_cancelled());
    drop(unanswered);
    nothing_was_sent_before(&client, &coordinator).await;
}

#[tokio::test]
async fn a_commit_that_was_never_polled_was_never_sent_and_is_rolled_back() {
    let coordinator = Coordinator::start().await;
    let client = client(&coordinator).await;
    let transaction = begun(&client, &coordinator, 30_000).await;
    drop(transaction.commit());
    assert_eq!(coordinator.rollback().await.gtrid, gtrid(1).to_string());
}

#[tokio::test]
async fn a_dropped_transaction_is_rolled_back() {
    let coordinator = Coordinator::start().await;
    let client = client(&coordinator).await;
    drop(begun(&client, &coordinator, 30_000).await);
    let request = coordinator.rollback().await;
    assert_eq!((request.gtrid, request.cluster), (gtrid(1).to_string(), cluster().to_string()));
    assert_eq!(request.reason, "dropped by the application");
}

#[tokio::test]
async fn a_transaction_may_be_dropped_where_no_runtime_is() {
    let coordinator = Coordinator::start().await;
    let client = client(&coordinator).await;
    let transaction = begun(&client, &coordinator, 30_000).await;
    std::thread::spawn(move || drop(transaction)).join().unwrap();
    assert_eq!(coordinator.rollback().await.gtrid, gtrid(1).to_string());
}

#[test]
fn a_transaction_may_outlive_its_runtime() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let transaction = runtime.block_on(async {
        let coordinator = Coordinator::start().await;
        begun(&client(&coordinator).await, &coordinator, 30_000).await
    });
    drop(runtime);
    drop(transaction);
}

#[tokio::test]
async fn a_cancelled_rollback_is_sent_again() {
    let coordinator = Coordinator::start().await;
    let client = client(&coordinator).await;
    let transaction = begun(&client, &coordinator, 30_000).await;
    let rollback = tokio::spawn(transaction.rollback("first"));
    let Call::Rollback(request, _unanswered) = coordinator.call().await else { panic!("another call") };
    assert_eq!(request.reason, "first");
    rollback.abort();
    assert_eq!(coordinator.rollback().await.reason, "dropped by the application");
}

#[tokio::test]
async fn a_rollback_says_what_it_found() {
    let coordinator = Coordinator::start().await;
    let client = impatient(&coordinator);
    let cases: [(_, Is<RollbackError>, _); 3] = [
        (
            Err(refusal(Code::FailedPrecondition, "ALREADY_COMMITTED")),
            |e| matches!(e, RollbackError::AlreadyCommitted { .. }),
            Advice::GiveUp,
        ),
        (Ok(v1::Outcome::Heuristic), |e| matches!(e, RollbackError::Heuristic { .. }), Advice::GiveUp),
        (
            Ok(v1::Outcome::Unknown),
            |e| matches!(e, RollbackError::Unconfirmed { .. }),
            Advice::AskLater(gtrid(1)),
        ),
    ];
    for (answer, is, advice) in cases {
        let transaction = begun(&client, &coordinator, 30_000).await;
        let answered = async {
            let Call::Rollback(_, reply) = coordinator.call().await else { panic!("another call") };
            let response =
                |outcome: v1::Outcome| v1::RollbackResponse { outcome: outcome.into(), detail: "d".into() };
            reply.send(answer.map(response)).unwrap();
        };
        let error = tokio::join!(transaction.rollback("x"), answered).0.unwrap_err();
        assert!(is(&error) && error.advice() == advice, "{error:?}");
    }
}

#[tokio::test]
async fn a_long_reason_is_cut_at_a_character() {
    let coordinator = Coordinator::start().await;
    let client = client(&coordinator).await;
    let transaction = begun(&client, &coordinator, 30_000).await;
    let reason = "ä".repeat(200);
    let (result, request) = tokio::join!(transaction.rollback(&reason), coordinator.rollback());
    result.unwrap();
    assert_eq!(request.reason, "ä".repeat(128));
}

#[tokio::test]
async fn an_inquiry_names_the_cluster_once_it_is_known() {
    let coordinator = Coordinator::start().await;
    let client = impatient(&coordinator);
    let ask = async |outcome| {
        let (result, request) = tokio::join!(client.inquire(gtrid(2)), coordinator.inquire(outcome));
        (result.unwrap(), request.cluster)
    };
    assert_eq!(ask(v1::Outcome::Committed).await, (Outcome::Committed, String::new()));
    let transaction = begun(&client, &coordinator, 30_000).await;
    let (outcome, asked) = ask(v1::Outcome::RolledBack).await;
    assert_eq!((outcome, asked), (Outcome::RolledBack { detail: String::new() }, cluster().to_string()));
    tokio::join!(transaction.rollback("test"), coordinator.rollback()).0.unwrap();

    let answer = async {
        let Call::Inquire(_, reply) = coordinator.call().await else { panic!("another call") };
        reply.send(Err(refusal(Code::FailedPrecondition, "FOREIGN_CLUSTER"))).unwrap();
    };
    let error = tokio::join!(client.inquire(gtrid(2)), answer).0.unwrap_err();
    assert_eq!(error.advice(), Advice::GiveUp, "{error}");
}

#[tokio::test]
async fn the_closure_commits_what_succeeds() {
    let coordinator = Coordinator::start().await;
    let client = client(&coordinator).await;
    // Spawned: the future of a transaction has to be able to move between threads.
    let work = tokio::spawn(async move {
        let value = String::from("value");
        client
            .transaction("closure", async |tx| Ok::<_, std::io::Error>(format!("{value} {}", tx.gtrid())))
            .await
    });
    coordinator.begin(gtrid(1), 30_000).await;
    coordinator.commit(v1::Outcome::Committed, "").await;
    assert_eq!(soon("the work", work).await.unwrap().unwrap(), format!("value {}", gtrid(1)));
}

#[tokio::test]
async fn the_closure_rolls_back_what_fails() {
    let coordinator = Coordinator::start().await;
    let client = client(&coordinator).await;
    let work = client.transaction("closure", async |_| Err::<(), _>("too expensive"));
    let script = async {
        coordinator.begin(gtrid(1), 30_000).await;
        coordinator.rollback().await
    };
    let (result, _) = tokio::join!(work, script);
    let error = result.unwrap_err();
    assert!(matches!(error, TransactionError::Work("too expensive")) && error.advice() == Advice::GiveUp);
}

#[tokio::test]
async fn the_closure_hands_on_what_became_of_the_commit() {
    let coordinator = Coordinator::start().await;
    let client = client(&coordinator).await;
    let work = client.transaction("closure", async |_| Ok::<_, std::io::Error>(()));
    let script = async {
        coordinator.begin(gtrid(1), 30_000).await;
        coordinator.commit(v1::Outcome::RolledBack, "a branch voted rollback").await
    };
    let error = tokio::join!(work, script).0.unwrap_err();
    assert!(matches!(error, TransactionError::Commit(CommitError::RolledBack { .. })), "{error:?}");
    assert_eq!(error.advice(), Advice::Retry);
}

#[tokio::test]
async fn the_closure_rolls_back_what_panics_or_is_cancelled() {
    let coordinator = Coordinator::start().await;
    let client = client(&coordinator).await;
    let panicking = client.clone();
    let work = tokio::spawn(async move {
        panicking
            .transaction("panics", async |_| -> Result<(), std::io::Error> { panic!("on purpose") })
            .await
    });
    coordinator.begin(gtrid(1), 30_000).await;
    coordinator.rollback().await;
    assert!(work.await.unwrap_err().is_panic());

    let (started, starts) = tokio::sync::oneshot::channel();
    let work = tokio::spawn(async move {
        let hang = async move |_: &Transaction| {
            started.send(()).unwrap();
            std::future::pending::<Result<(), std::io::Error>>().await
        };
        client.transaction("hangs", hang).await
    });
    coordinator.begin(gtrid(1), 30_000).await;
    soon("the work", starts).await.unwrap();
    work.abort();
    coordinator.rollback().await;
}
