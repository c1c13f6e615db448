//! A resource manager that an operator retires at one node is retired at every node on the same log (P28).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::path::Path;
use std::time::Duration;

use lockstep::{Participant, Sqlite};
use lockstep_tests::harness::clock::wait_for;
use lockstep_tests::harness::coordinator::Coordinator;
use lockstep_tests::harness::postgres::fresh_database;
use lockstep_tests::harness::roles::Roles;
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};

const PATIENCE: Duration = Duration::from_secs(60);

fn node(dir: &Path, name: &str, log: &str) -> Coordinator {
    let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove"));
    let directory = dir.join(name);
    std::fs::create_dir_all(&directory).unwrap();
    let (node, log) = (format!("--node={name}"), format!("--log={log}"));
    let flags = [node.as_str(), &log, "--migrate-log"];
    let mut coordinator = Coordinator::start(&roles, &directory, &flags, None).unwrap();
    coordinator.expect_it_serves().unwrap();
    coordinator
}

async fn attach(pool: &SqlitePool, url: &str) -> Result<Participant<Sqlite>, String> {
    let attaching = Participant::builder("gone-db", Sqlite::new(pool.clone())).coordinator(url).attach();
    tokio::time::timeout(PATIENCE, attaching).await.unwrap().map_err(|error| error.to_string())
}

fn shown(node: &Coordinator) -> Option<serde_json::Value> {
    let ran = node.run(&["participants", "show", "gone-db", "--json"]).unwrap();
    let shown: serde_json::Value = serde_json::from_str(&ran.stdout).ok()?;
    Some(shown["participants"][0].clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whom_one_node_retires_every_node_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let database = fresh_database();
    let (a, b) = (node(dir.path(), "a", &database.url()), node(dir.path(), "b", &database.url()));
    let file = SqliteConnectOptions::new().filename(dir.path().join("gone.db")).create_if_missing(true);
    let pool = SqlitePool::connect_with(file.journal_mode(SqliteJournalMode::Wal)).await.unwrap();
    sqlx::raw_sql("CREATE TABLE kept (n INTEGER PRIMARY KEY)").execute(&pool).await.unwrap();

    // B serves it. A, which has never met it, retires it; it is not attached there.
    let served = attach(&pool, &b.url()).await.unwrap();
    wait_for("b to know it", PATIENCE, || Ok(shown(&b).filter(|one| one["down_since"].is_null()))).unwrap();
    let known = a.run(&["participants", "retire", "gone-db", "--dry-run"]).unwrap();
    assert_eq!(known.code, 3, "a has not met it: {known:?}");
    drop(served);
    let met = attach(&pool, &a.url()).await.unwrap();
    drop(met);
    let retire =
        ["participants", "retire", "gone-db", "--reason", "its disk is lost", "--confirm", "gone-db"];
    let retired = || Ok((a.run(&retire)?.code == 0).then_some(()));
    wait_for("its session at a to end", PATIENCE, retired).unwrap();

    wait_for("b to hear of it", PATIENCE, || Ok(shown(&b).filter(|one| one["retired"] == true))).unwrap();
    for node in [&a, &b] {
        let refused = attach(&pool, &node.url()).await.map(drop).unwrap_err();
        assert!(refused.contains("LS0507"), "{refused}");
    }
}
