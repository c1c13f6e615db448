//! An application that asks for thousands of things at the same moment, over its one connection, while the coordinator does nothing for a
//! while, or its answers come late: the connection lasts. HTTP/2 has limits to what may lie unread and to what may be given up, and a peer that finds one
//! exceeded closes the connection, with everything that is under way on it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use lockstep::{Client, Transaction};
use lockstep_tests::harness::coordinator::Coordinator;
use lockstep_tests::harness::roles::Roles;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Eight times as many as HTTP/2's usual window has room for, by h2's count.
const CALLS: usize = 20_000;
/// Twice as many as it bears errors of streams, and a hundred times as many as it bears resets of what was not looked at.
const GIVEN_UP: usize = 2_000;
/// How long the coordinator does nothing: what is on its way is there by then.
const STOPPED: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_mins(2);

/// A coordinator, and a client that reaches it by a relay.
struct World {
    client: Client,
    relay: Relay,
    coordinator: Coordinator,
    _directory: TempDir,
}

impl World {
    async fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove"));
        let mut coordinator = Coordinator::start(&roles, directory.path(), &[], None).unwrap();
        coordinator.expect_it_serves().unwrap();
        let relay = Relay::to(coordinator.port()).await;
        let client =
            Client::builder(format!("http://127.0.0.1:{}", relay.port)).patience(PATIENCE).connect().unwrap();
        let world = Self { client, relay, coordinator, _directory: directory };
        world.expect_the_first_connection().await;
        world
    }

    /// One transaction, begun and rolled back.
    async fn expect_the_first_connection(&self) {
        begin(self.client.clone()).await.rollback("only looking").await.unwrap();
        assert_eq!(self.relay.connections.load(Ordering::SeqCst), 1, "connections");
    }

    fn stop(&mut self) {
        self.coordinator.process().stop().unwrap();
    }

    fn go_on(&mut self) {
        self.coordinator.process().signal(Signal::CONT).unwrap();
    }

    async fn started(&self) -> usize {
        let metrics =
            reqwest::get(format!("{}/metrics", self.coordinator.url())).await.unwrap().text().await.unwrap();
        let started = |line: &str| {
            line.strip_prefix("lockstep_transactions_started_total{name=\"burst\"} ")?.parse().ok()
        };
        metrics.lines().find_map(started).unwrap()
    }

    fn many_begins(&self, calls: usize) -> Vec<JoinHandle<Transaction>> {
        (0..calls).map(|_| tokio::spawn(begin(self.client.clone()))).collect()
    }
}

/// Passes on what client and coordinator say, or keeps back what the coordinator says.
struct Relay {
    port: u16,
    connections: Arc<AtomicUsize>,
    answers_pass: watch::Sender<bool>,
}

impl Relay {
    async fn to(coordinator: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Self {
            port: listener.local_addr().unwrap().port(),
            connections: Arc::default(),
            answers_pass: watch::Sender::new(true),
        };
        let (connections, answers_pass) = (relay.connections.clone(), relay.answers_pass.clone());
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                connections.fetch_add(1, Ordering::SeqCst);
                let coordinator = TcpStream::connect(("127.0.0.1", coordinator)).await.unwrap();
                tokio::spawn(pass_on(client, coordinator, answers_pass.subscribe()));
            }
        });
        relay
    }
}

/// Until one of the two closes the connection.
async fn pass_on(mut client: TcpStream, mut coordinator: TcpStream, mut answers_pass: watch::Receiver<bool>) {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_coordinator, mut to_coordinator) = coordinator.split();
    let back = async {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let read = from_coordinator.read(&mut buffer).await?;
            if read == 0 || answers_pass.wait_for(|pass| *pass).await.is_err() {
                return Ok(());
            }
            to_client.write_all(&buffer[..read]).await?;
        }
    };
    let ended: std::io::Result<()> = tokio::select! {
        ended = back => ended,
        ended = tokio::io::copy(&mut from_client, &mut to_coordinator) => ended.map(drop),
    };
    // The client or the test notices.
    drop(ended);
}

async fn begin(client: Client) -> Transaction {
    client.begin("burst").timeout(PATIENCE).start().await.unwrap()
}

async fn all<T>(calls: Vec<JoinHandle<T>>) -> Vec<T> {
    let answers = timeout(PATIENCE, join_all(calls)).await.expect("all are answered");
    answers.into_iter().map(Result::unwrap).collect()
}

#[tokio::test]
async fn thousands_of_calls_at_once_are_answered_over_the_connection_that_is_there() {
    let mut world = World::new().await;
    world.stop();
    let begins = world.many_begins(CALLS);
    sleep(STOPPED).await;
    world.go_on();
    let begun = all(begins).await;
    world.expect_the_first_connection().await;

    world.stop();
    let commit = async |transaction: Transaction| transaction.commit().await.unwrap();
    let commits = begun.into_iter().map(commit).map(tokio::spawn).collect();
    sleep(STOPPED).await;
    world.go_on();
    assert!(all(commits).await.iter().all(|committed| committed.nothing_to_commit));
    world.expect_the_first_connection().await;
}

#[tokio::test]
async fn calls_that_are_given_up_before_the_coordinator_looks_at_them_do_not_break_the_connection() {
    let mut world = World::new().await;
    world.stop();
    let begins = world.many_begins(GIVEN_UP);
    sleep(STOPPED).await;
    begins.iter().for_each(JoinHandle::abort);
    // The resets have to be on their way too.
    sleep(STOPPED).await;
    world.go_on();
    world.expect_the_first_connection().await;
}

#[tokio::test]
async fn answers_to_calls_that_were_given_up_do_not_break_the_connection() {
    let world = World::new().await;
    let before = world.started().await;
    world.relay.answers_pass.send_replace(false);
    let begins = world.many_begins(GIVEN_UP);
    timeout(PATIENCE, async {
        while world.started().await < before + GIVEN_UP {
            sleep(STOPPED / 20).await;
        }
    })
    .await
    .expect("all are begun");
    begins.iter().for_each(JoinHandle::abort);
    // A client remembers for a second what it has given up, the last 50.
    sleep(STOPPED).await;
    world.relay.answers_pass.send_replace(true);
    world.expect_the_first_connection().await;
}
