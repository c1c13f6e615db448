//! The README's lines to join, as they stand there: compiled, and run against a real `lockstep serve`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::sync::OnceLock;
use std::time::Duration;

use axum::http::StatusCode;
use lockstep_tests::harness::coordinator::Coordinator;
use lockstep_tests::harness::roles::Roles;
use sqlx::SqlitePool;
use sqlx::sqlite::SqliteConnectOptions;
use tempfile::TempDir;
use tokio::net::TcpListener;

/// README.md, between the marker `<!-- join -->` and the end of the block behind it. Only the coordinator's address is another
/// one (build.rs).
#[allow(clippy::map_err_ignore, reason = "the README's words, short as they have to be")]
mod join {
    include!(concat!(env!("OUT_DIR"), "/join.rs"));

    /// What the README calls `service` is private to whoever copies it.
    pub(super) async fn start(pool: sqlx::SqlitePool) -> Router {
        service(pool).await.expect("it attaches")
    }
}

/// The lines themselves, to be counted.
const LINES: &str = include_str!(concat!(env!("OUT_DIR"), "/join.rs"));
const PATIENCE: Duration = Duration::from_secs(30);

static COORDINATOR: OnceLock<String> = OnceLock::new();

/// Where the README says `"http://127.0.0.1:7420"`.
fn coordinator() -> &'static str {
    COORDINATOR.get().expect("it was started before")
}

#[test]
fn joining_takes_at_most_twenty_lines() {
    let lines = LINES.lines().filter(|line| !line.trim().is_empty()).count();
    assert!(lines <= 20, "{lines} lines");
    assert!(!LINES.contains("commit("), "a branch has no commit");
}

/// The table that the README's SQL works on.
async fn stock(directory: &TempDir) -> SqlitePool {
    let options =
        SqliteConnectOptions::new().filename(directory.path().join("stock.db")).create_if_missing(true);
    let pool = SqlitePool::connect_with(options).await.unwrap();
    sqlx::query("CREATE TABLE items (name TEXT PRIMARY KEY, free INTEGER NOT NULL)")
        .execute(&pool)
        .await
        .unwrap();
    sqlx::query("INSERT INTO items VALUES ('chair', 10)").execute(&pool).await.unwrap();
    pool
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lines_in_the_readme_join_a_service_to_a_real_coordinator() {
    let directory = TempDir::new().unwrap();
    let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove"));
    let mut lockstep = Coordinator::start(&roles, directory.path(), &[], None).unwrap();
    lockstep.expect_it_serves().unwrap();
    COORDINATOR.set(lockstep.url()).unwrap();

    let pool = stock(&directory).await;
    let free =
        async || sqlx::query_scalar::<_, i64>("SELECT free FROM items").fetch_one(&pool).await.unwrap();
    let router = tokio::time::timeout(PATIENCE, join::start(pool.clone())).await.expect("it attaches");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/reserve", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });

    let client = lockstep::Client::connect(lockstep.url()).await.unwrap();
    let http = reqwest::Client::new();
    let reserve = async |context: lockstep::Context| {
        let request = http.post(&url).header(lockstep::CONTEXT_HEADER, context.to_string());
        request.send().await.unwrap().status()
    };
    let tx = client.begin("order").start().await.unwrap();
    assert_eq!(reserve(tx.context()).await, StatusCode::OK);
    assert_eq!(free().await, 10, "nothing is to be seen before the commit");
    let committed = tx.commit().await.unwrap();
    assert_eq!((committed.branches, committed.branches_pending), (1, 0));
    assert_eq!(free().await, 9);

    let tx = client.begin("order").start().await.unwrap();
    assert_eq!(reserve(tx.context()).await, StatusCode::OK);
    tx.rollback("changed my mind").await.unwrap();
    assert_eq!(free().await, 9);

    assert_eq!(
        http.post(&url).send().await.unwrap().status(),
        StatusCode::BAD_REQUEST,
        "outside of a transaction"
    );
    assert_eq!(free().await, 9);
}
