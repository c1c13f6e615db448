//! The lines of docs/services.md that explain an error, as they stand there: compiled, and run against real databases.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::time::Duration;

use lockstep::{Client, Participant, Postgres};
use lockstep_tests::harness::coordinator::Coordinator;
use lockstep_tests::harness::postgres::fresh_database;
use lockstep_tests::harness::roles::Roles;
use sqlx::PgPool;
use tempfile::TempDir;

/// docs/services.md, the block behind the marker `<!-- explain -->`.
mod explain {
    include!(concat!(env!("OUT_DIR"), "/explain.rs"));

    /// What the page calls `reserve` is private to whoever copies it.
    pub(super) async fn call(stock: &Participant<Postgres>, context: &Context) -> Result<(), String> {
        reserve(stock, context).await.map_err(|error| error.to_string())
    }
}

const PATIENCE: Duration = Duration::from_secs(30);
/// Of the transaction that waits.
const TIMEOUT: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn the_lines_in_the_docs_say_which_lock_was_waited_for_and_until_when() {
    let directory = TempDir::new().unwrap();
    let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove"));
    let mut lockstep = Coordinator::start(&roles, directory.path(), &[], None).unwrap();
    lockstep.expect_it_serves().unwrap();
    let database = fresh_database();
    database.psql("CREATE TABLE items (name text, free int); INSERT INTO items VALUES ('chair', 10)");
    let postgres = Postgres::new(PgPool::connect(&database.url()).await.unwrap());
    let attaching = Participant::builder("stock-db", postgres).coordinator(lockstep.url()).attach();
    let stock = tokio::time::timeout(PATIENCE, attaching).await.expect("it attaches").unwrap();
    let client = Client::connect(lockstep.url()).await.unwrap();

    let first = client.begin("order").timeout(PATIENCE * 2).start().await.unwrap();
    explain::call(&stock, &first.context()).await.unwrap();
    let second = client.begin("order").timeout(TIMEOUT).start().await.unwrap();
    let error = explain::call(&stock, &second.context()).await.unwrap_err();
    let place =
        "waited in stock-db for a lock (while updating tuple (0,1) in relation \"items\"), and gave up 0.";
    let parts = [&second.gtrid().to_string(), place, "s before its deadline", "another transaction has it"];
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    assert_eq!(first.commit().await.unwrap().branches, 1);
}
