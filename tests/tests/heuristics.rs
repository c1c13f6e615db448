//! What a service does behind the SDK's back, end to end: nobody is told that all is well.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::time::Duration;

use lockstep::{CommitError, Outcome, Participant, Postgres};
use lockstep_tests::harness::coordinator::Coordinator;
use lockstep_tests::harness::postgres::fresh_database;
use lockstep_tests::harness::roles::Roles;
use sqlx::PgPool;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

/// P16: the other bank is rolled back, this one can't be. The client learns it, and it stays on record over a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_the_services_own_ends_as_a_heuristic_outcome() {
    let directory = TempDir::new().unwrap();
    let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove"));
    let mut coordinator = Coordinator::start(&roles, directory.path(), &[], None).unwrap();
    coordinator.expect_it_serves().unwrap();
    let url = coordinator.url();
    let client = lockstep::Client::connect(&url).await.unwrap();
    let (good, good_pool) = bank("good", &url).await;
    let (bad, bad_pool) = bank("bad", &url).await;

    let mut gtrids = Vec::new();
    for alone in [false, true] {
        let tx = client.begin("escape").start().await.unwrap();
        let gtrid = tx.gtrid();
        if !alone {
            let mut branch = good.join(&tx.context()).await.unwrap();
            sqlx::raw_sql("INSERT INTO kept VALUES (1)").execute(&mut *branch).await.unwrap();
            branch.finish().await.unwrap();
        }
        let mut branch = bad.join(&tx.context()).await.unwrap();
        sqlx::raw_sql("INSERT INTO kept VALUES (1); COMMIT").execute(&mut *branch).await.unwrap();
        branch.finish().await.unwrap();

        let error = tokio::time::timeout(PATIENCE, tx.commit()).await.unwrap().unwrap_err();
        assert!(matches!(error, CommitError::Heuristic { .. }), "{error:?}");
        assert!(error.to_string().contains("bad."), "it names the branch: {error}");
        gtrids.push(gtrid);
    }
    assert_eq!((rows(&good_pool).await, rows(&bad_pool).await), (0, 2));

    coordinator.process().kill().unwrap();
    coordinator.start_again(None).unwrap();
    coordinator.expect_it_serves().unwrap();
    for gtrid in gtrids {
        let after = client.inquire(gtrid).await.unwrap();
        assert!(matches!(after, Outcome::Heuristic { .. }), "{after:?}");
    }
}

async fn bank(name: &str, url: &str) -> (Participant<Postgres>, PgPool) {
    let pool = PgPool::connect(&fresh_database().url()).await.unwrap();
    sqlx::raw_sql("CREATE TABLE kept (v int)").execute(&pool).await.unwrap();
    let attaching = Participant::builder(name, Postgres::new(pool.clone())).coordinator(url).attach();
    (tokio::time::timeout(PATIENCE, attaching).await.unwrap().unwrap(), pool)
}

async fn rows(pool: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM kept").fetch_one(pool).await.unwrap()
}
