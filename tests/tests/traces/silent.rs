//! A collector that accepts and never answers: nobody waits for it, neither a commit nor, for long, the process' end.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use lockstep::{Client, Participant, Sqlite};
use lockstep_tests::harness::clock;
use lockstep_tests::harness::coordinator::Coordinator;
use lockstep_tests::harness::process::Reaped;
use lockstep_tests::harness::roles::Roles;
use sqlx::SqlitePool;
use tempfile::TempDir;

/// More than the queue of spans below has room for, many times over.
const TRANSACTIONS: usize = 300;
/// One answer that is waited for would take this long: the exporter's own patience.
const PATIENCE_OF_THE_EXPORTER: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_never_answers_slows_no_commit_and_holds_no_end_up() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("OTEL_EXPORTER_OTLP_ENDPOINT=http://{}", silent.local_addr().unwrap());
    let words = [
        "env",
        &endpoint,
        "OTEL_BSP_SCHEDULE_DELAY=10",
        "OTEL_BSP_MAX_QUEUE_SIZE=64",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE=16",
    ];
    let directory = TempDir::new().unwrap();
    let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove")).under(words.map(str::to_owned));
    let mut coordinator = Coordinator::start(&roles, directory.path(), &[], None).unwrap();
    coordinator.expect_it_serves().unwrap();
    let client = Client::connect(coordinator.url()).await.unwrap();
    let url = format!("sqlite:{}?mode=rwc", directory.path().join("ledger.db").display());
    let pool = SqlitePool::connect(&url).await.unwrap();
    sqlx::raw_sql("CREATE TABLE entries (v int)").execute(&pool).await.unwrap();
    let ledger = Participant::builder("ledger-db", Sqlite::new(pool))
        .coordinator(coordinator.url())
        .attach()
        .await
        .unwrap();

    let mut slowest = Duration::ZERO;
    for _ in 0..TRANSACTIONS {
        let began = clock::now();
        let tx = client.begin("transfer").start().await.unwrap();
        let mut branch = ledger.join(&tx.context()).await.unwrap();
        sqlx::raw_sql("INSERT INTO entries VALUES (1)").execute(&mut *branch).await.unwrap();
        branch.finish().await.unwrap();
        tx.commit().await.unwrap();
        slowest = slowest.max(since(began));
    }
    assert!(slowest < PATIENCE_OF_THE_EXPORTER / 2, "the slowest took {slowest:?}");

    let began = clock::now();
    assert_eq!(coordinator.stop().unwrap(), Reaped::Exit(0));
    let took = since(began);
    assert!(took < PATIENCE_OF_THE_EXPORTER * 8 / 10, "it took {took:?} to end");
    let log = std::fs::read_to_string(coordinator.log()).unwrap();
    assert!(log.contains("the last spans were not sent"), "{log}");
}

fn since(began: Instant) -> Duration {
    clock::now().saturating_duration_since(began)
}
