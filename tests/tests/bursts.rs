//! An application that asks for thousands of things at the same moment, over its one connection, while the coordinator does nothing: each call is
//! answered. HTTP/2 has limits to what may lie unread, and a peer that finds one exceeded closes the connection, with everything that is
//! under way on it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::time::Duration;

use futures::future::join_all;
use lockstep::{Client, Transaction};
use lockstep_tests::harness::coordinator::Coordinator;
use lockstep_tests::harness::roles::Roles;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

/// Eight times as many as HTTP/2's usual window has room for, by h2's count.
const CALLS: usize = 20_000;
/// How long the coordinator is stopped: the calls are on their way to it by then.
const STOPPED: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_mins(2);

/// What they are answered, when all are asked while the coordinator is stopped.
async fn together<T: Send + 'static>(
    coordinator: &mut Coordinator,
    calls: impl Iterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    coordinator.process().signal(Signal::STOP).unwrap();
    let calls: Vec<_> = calls.map(tokio::spawn).collect();
    sleep(STOPPED).await;
    coordinator.process().signal(Signal::CONT).unwrap();
    let answers = timeout(PATIENCE, join_all(calls)).await.expect("all are answered");
    answers.into_iter().map(Result::unwrap).collect()
}

#[tokio::test]
async fn thousands_of_calls_at_once_are_all_answered() {
    let directory = TempDir::new().unwrap();
    let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove"));
    let mut coordinator = Coordinator::start(&roles, directory.path(), &[], None).unwrap();
    coordinator.expect_it_serves().unwrap();
    let client = Client::connect(coordinator.url()).await.unwrap();
    // The connection is there.
    client.begin("first").start().await.unwrap().rollback("only looking").await.unwrap();

    let begun = together(&mut coordinator, (0..CALLS).map(|_| begin(client.clone()))).await;
    let commits = begun.into_iter().map(async |transaction| transaction.commit().await.unwrap());
    let outcomes = together(&mut coordinator, commits).await;
    assert!(outcomes.iter().all(|committed| committed.nothing_to_commit));
    // The client repeats what a broken connection leaves without an answer: then more are begun than it was told of.
    let metrics = reqwest::get(format!("{}/metrics", coordinator.url())).await.unwrap().text().await.unwrap();
    let started = format!("lockstep_transactions_started_total{{name=\"burst\"}} {CALLS}\n");
    assert!(metrics.contains(&started), "not {started}{metrics}");
}

async fn begin(client: Client) -> Transaction {
    client.begin("burst").timeout(PATIENCE).start().await.unwrap()
}
