//! The operator's commands and signals against a real coordinator: what `commands.rs` and `serve.rs` script, met for real.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

mod common;

use std::process::Stdio;
use std::time::Duration;

use common::{Ran, lockstep, run};
use lockstep_proto::v1;
use lockstep_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr};
use tonic::transport::{Channel, Endpoint};

/// Nothing here takes that long; what would hang fails instead.
const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it does not take that long")
}

/// A coordinator that serves.
struct Coordinator {
    child: Child,
    url: String,
    log: Lines<BufReader<ChildStderr>>,
    dir: TempDir,
}

impl Coordinator {
    async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        // Longer than any test: a drain ends when everything has, or by a second signal.
        let mut command = lockstep(dir.path(), &["serve", "--listen=127.0.0.1:0", "--drain-timeout=1h"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut banner = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = loop {
            let line = soon(banner.next_line()).await.unwrap().expect("it goes on until it serves");
            if let Some(url) = line.strip_prefix("lockstep listening on ") {
                break url.to_owned();
            }
        };
        Self { child, url, log, dir }
    }

    async fn client(&self) -> CoordinatorServiceClient<Channel> {
        let endpoint = Endpoint::from_shared(self.url.clone()).unwrap();
        CoordinatorServiceClient::new(endpoint.connect().await.unwrap())
    }

    async fn begin(&self, name: &str) -> String {
        let request = v1::BeginRequest { name: name.into(), timeout_ms: 3_600_000, ..Default::default() };
        self.client().await.begin(request).await.unwrap().into_inner().gtrid
    }

    async fn ask(&self, args: &[&str]) -> Ran {
        let mut command = lockstep(self.dir.path(), args);
        command.env("LOCKSTEP_SERVER", &self.url);
        soon(run(command)).await
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok());
        kill_process(Pid::from_raw(pid.expect("it runs")).expect("it is no group"), signal).unwrap();
    }

    /// Waits until it has logged this.
    async fn logged(&mut self, what: &str) {
        let found = async {
            while let Some(line) = self.log.next_line().await.unwrap() {
                if line.contains(what) {
                    return true;
                }
            }
            false
        };
        assert!(soon(found).await, "it never logged {what}");
    }

    async fn exit_code(&mut self) -> Option<i32> {
        soon(self.child.wait()).await.unwrap().code()
    }
}

#[tokio::test]
async fn a_transaction_is_listed_shown_and_waited_for() {
    let coordinator = Coordinator::start().await;
    let gtrid = coordinator.begin("transfer").await;

    let ran = coordinator.ask(&["tx", "ls"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
    let row: Vec<&str> = ran.stdout.lines().nth(1).expect("one row").split_whitespace().collect();
    assert_eq!((row[1], row.last()), ("active", Some(&"transfer")), "{ran:?}");

    // What the list shows of an id is enough to ask for it, and so are its hex digits alone.
    let (epoch, hex) = gtrid.split_once('.').unwrap();
    for id in [row[0], &hex[..20], &gtrid] {
        let ran = coordinator.ask(&["tx", "show", id, "--json"]).await;
        let json: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(json["transaction"]["gtrid"], gtrid, "{id}: {ran:?}");
    }
    let ran = coordinator.ask(&["status"]).await;
    assert!(ran.stdout.contains(&format!("epoch {epoch}")), "{ran:?}");
    assert!(ran.stdout.contains("in flight     1"), "{ran:?}");

    let ran = coordinator.ask(&["tx", "wait", row[0], "--timeout=2s"]).await;
    assert_eq!(ran.code, 7, "{ran:?}");
    assert!(ran.stdout.starts_with("undecided"), "{ran:?}");
    let rollback =
        v1::RollbackRequest { gtrid: gtrid.clone(), reason: "a test".into(), ..Default::default() };
    let mut client = coordinator.client().await;
    let wait = ["tx", "wait", &gtrid, "--timeout=60s"];
    let (waited, rolled_back) = tokio::join!(coordinator.ask(&wait), client.rollback(rollback));
    rolled_back.unwrap();
    assert_eq!(waited.code, 5, "{waited:?}");
    assert!(waited.stdout.starts_with("rolled-back"), "{waited:?}");
}

#[tokio::test]
async fn a_prefix_of_two_transactions_names_both() {
    let coordinator = Coordinator::start().await;
    let first = coordinator.begin("one").await;
    let second = coordinator.begin("two").await;
    let common = first.bytes().zip(second.bytes()).take_while(|(a, b)| a == b).count();
    let ran = coordinator.ask(&["tx", "show", &first[..common]]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{ran:?}");
    assert!(ran.stderr.contains(&first) && ran.stderr.contains(&second), "{ran:?}");
    let ran = coordinator.ask(&["tx", "show", &first[..=common]]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[tokio::test]
async fn another_clusters_transaction_is_refused_and_an_unknown_epoch_is_unknown() {
    let coordinator = Coordinator::start().await;
    let mine = coordinator.begin("mine").await;
    let ran = coordinator.ask(&["tx", "wait", &mine, "--cluster=00000000", "--timeout=60s"]).await;
    assert_eq!(ran.code, 4, "{ran:?}");
    let (_, hex) = mine.split_once('.').unwrap();
    let ran = coordinator.ask(&["tx", "wait", &format!("4000000000.{hex}"), "--timeout=2s"]).await;
    assert_eq!(ran.code, 8, "{ran:?}");
}

#[tokio::test]
async fn a_drain_waits_for_what_is_unfinished_and_ends_with_it() {
    let mut coordinator = Coordinator::start().await;
    let gtrid = coordinator.begin("unfinished").await;
    coordinator.signal(Signal::TERM);
    coordinator.logged("draining").await;
    let rollback = v1::RollbackRequest { gtrid, ..Default::default() };
    coordinator.client().await.rollback(rollback).await.unwrap();
    assert_eq!(coordinator.exit_code().await, Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_a_drain_at_once() {
    let mut coordinator = Coordinator::start().await;
    coordinator.begin("unfinished").await;
    coordinator.signal(Signal::TERM);
    coordinator.logged("draining").await;
    coordinator.signal(Signal::INT);
    coordinator.logged("]: SIGINT while draining: ended at once").await;
    assert_eq!(coordinator.exit_code().await, Some(1));
}

#[tokio::test]
async fn a_data_directory_in_use_is_told_in_one_message_with_what_to_do() {
    let coordinator = Coordinator::start().await;
    let ran = coordinator.ask(&["serve", "--listen=127.0.0.1:0"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{ran:?}");
    let told: Vec<&str> = ran.stderr.lines().filter(|line| line.starts_with("error[LS0102]: ")).collect();
    assert_eq!(told.len(), 1, "{ran:?}");
    assert!(told[0].contains("lockstep-data") && told[0].contains("in use"), "{ran:?}");
}
