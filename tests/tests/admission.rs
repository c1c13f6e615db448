//! Admission: a branch that the database has no room for is refused at join, before anything is begun; nothing that was
//! admitted fails at prepare for want of a slot.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::time::Duration;

use futures::future::join_all;
use lockstep::{Advice, Client, JoinError, Participant, Postgres, Transaction};
use lockstep_tests::harness::coordinator::Coordinator;
use lockstep_tests::harness::postgres::{PostgresServer, fresh_database};
use lockstep_tests::harness::process::Reaped;
use lockstep_tests::harness::roles::Roles;
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// A coordinator, `orders` on a server with few slots, and `stock` on another one.
struct World {
    client: Client,
    orders: Participant<Postgres>,
    stock: Participant<Postgres>,
    pool: PgPool,
    server: PostgresServer,
    coordinator: Coordinator,
    _directory: TempDir,
}

impl World {
    async fn with(slots: &str, connections: u32) -> Self {
        let server = PostgresServer::start_with(&[("max_prepared_transactions", slots)]).unwrap();
        let directory = TempDir::new().unwrap();
        let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove"));
        let mut coordinator = Coordinator::start(&roles, directory.path(), &[], None).unwrap();
        coordinator.expect_it_serves().unwrap();
        let url = server.url("postgres");
        let pool = PgPool::connect(&url).await.unwrap();
        sqlx::raw_sql("CREATE TABLE work (n int)").execute(&pool).await.unwrap();
        let elsewhere = fresh_database();
        elsewhere.psql("CREATE TABLE work (n int)");
        let attach = async |name: &str, url: &str| {
            let pool = PgPoolOptions::new().max_connections(connections).connect(url).await.unwrap();
            let builder = Participant::builder(name, Postgres::new(pool)).coordinator(coordinator.url());
            tokio::time::timeout(PATIENCE, builder.attach()).await.expect("it attaches").unwrap()
        };
        Self {
            client: Client::connect(coordinator.url()).await.unwrap(),
            orders: attach("orders-db", &url).await,
            stock: attach("stock-db", &elsewhere.url()).await,
            pool,
            server,
            coordinator,
            _directory: directory,
        }
    }

    async fn begin(&self) -> Transaction {
        self.client.begin("work").timeout(Duration::from_secs(60)).start().await.unwrap()
    }

    /// Writes one row in a branch of `participant`.
    async fn work(participant: &Participant<Postgres>, tx: &Transaction) -> Result<(), JoinError> {
        let mut branch = participant.join(&tx.context()).await?;
        sqlx::raw_sql("INSERT INTO work VALUES (1)").execute(&mut *branch).await.unwrap();
        branch.finish().await.unwrap();
        Ok(())
    }

    async fn rows(&self) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM work").fetch_one(&self.pool).await.unwrap()
    }
}

fn is_refused_early(result: Result<(), JoinError>) -> String {
    match result {
        Err(error @ JoinError::NoRoom { .. }) if error.advice() == Advice::Retry => error.to_string(),
        other => panic!("{other:?}, and there was no room"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_slot_join_is_refused_and_after_a_commit_it_works_again() {
    let world = World::with("2", 3).await;
    let (first, second) = (world.begin().await, world.begin().await);
    World::work(&world.orders, &first).await.unwrap();
    World::work(&world.orders, &second).await.unwrap();
    let third = world.begin().await;
    let why = is_refused_early(World::work(&world.orders, &third).await);
    assert!(why.contains("of its 2 slots") && why.contains("2 belong to open"), "{why}");
    // A branch that is open is continued, whatever is full.
    World::work(&world.orders, &first).await.unwrap();
    first.commit().await.unwrap();
    // The coordinator never heard of the refused branch: the same transaction goes on.
    World::work(&world.orders, &third).await.unwrap();
    third.commit().await.unwrap();
    second.rollback("changed my mind").await.unwrap();
    assert_eq!(world.rows().await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_others_have_taken_count_and_are_noticed_when_they_are_free() {
    let world = World::with("2", 3).await;
    for gid in ["a", "b"] {
        let sql = format!("BEGIN; INSERT INTO work VALUES (9); PREPARE TRANSACTION '{gid}'");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&world.pool).await.unwrap();
    }
    // What is known is a second old at most: a join that finds it older has the server asked, and a later one is refused.
    let refused = async {
        loop {
            let tx = world.begin().await;
            let result = World::work(&world.orders, &tx).await;
            tx.rollback("only looking").await.unwrap();
            // Until then, branches that are still being rolled back may take both slots.
            if result.is_err() && is_refused_early(result).contains("0 belong to open and prepared branches")
            {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("it is noticed");
    world.server.psql("postgres", "ROLLBACK PREPARED 'a'").unwrap();
    let tx = world.begin().await;
    let admitted = async {
        while World::work(&world.orders, &tx).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, admitted).await.expect("it is noticed");
    tx.commit().await.unwrap();
    world.server.psql("postgres", "ROLLBACK PREPARED 'b'").unwrap();
    assert_eq!(world.rows().await, 1);
}

/// A branch that this process prepared and somebody else has ended, unheard of here: its slot is free, and it must not be counted for
/// ever. (Another instance does the same when it is told the decision.)
#[tokio::test(flavor = "multi_thread")]
async fn a_branch_that_was_prepared_here_and_ended_elsewhere_takes_no_slot() {
    let mut world = World::with("2", 3).await;
    let voted = world.begin().await;
    let mut branch = world.orders.join(&voted.vote()).await.unwrap();
    sqlx::raw_sql("INSERT INTO work VALUES (1)").execute(&mut *branch).await.unwrap();
    branch.finish().await.unwrap();
    let gid = world.server.psql("postgres", "SELECT gid FROM pg_prepared_xacts").unwrap();
    world.server.psql("postgres", &format!("ROLLBACK PREPARED '{gid}'")).unwrap();
    // Whoever has begun it forgets it, and nobody lists it any more: no decision about it comes here.
    assert_eq!(world.coordinator.process().kill().unwrap(), Reaped::KILLED);
    world.coordinator.start_again(None).unwrap();
    world.coordinator.expect_it_serves().unwrap();

    let both_slots = async {
        loop {
            let (first, second) = (world.begin().await, world.begin().await);
            let worked = [
                World::work(&world.orders, &first).await.is_ok(),
                World::work(&world.orders, &second).await.is_ok(),
            ];
            for tx in [first, second] {
                // What the coordinator has rolled back itself is as good.
                drop(tx.rollback("only looking").await);
            }
            if worked == [true, true] {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, both_slots).await.expect("its slot is free for others");
}

/// Two participants, so that branches are prepared, and not committed in one phase. The other one's server has slots for
/// all.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_transactions_on_few_slots_commit_or_are_refused_at_join() {
    let world = World::with("5", 6).await;
    let run = |_number: usize| async {
        let tx = world.begin().await;
        for participant in [&world.orders, &world.stock] {
            if let Err(error) = World::work(participant, &tx).await {
                assert!(matches!(error, JoinError::NoRoom { .. }), "{error}");
                assert_eq!(error.advice(), Advice::Retry);
                tx.rollback("no room").await.unwrap();
                return false;
            }
        }
        tx.commit().await.unwrap_or_else(|error| panic!("admitted, and then: {error}"));
        true
    };
    let outcomes = tokio::time::timeout(PATIENCE, join_all((0..100).map(run))).await.expect("all end");
    let committed = outcomes.iter().filter(|committed| **committed).count();
    assert!(committed > 0 && committed < 100, "{committed} of 100 have committed");
    assert_eq!(world.rows().await, i64::try_from(committed).unwrap());
    assert!(!world.server.log().contains("maximum number of prepared transactions reached"));
    assert_eq!(world.server.psql("postgres", "SELECT count(*) FROM pg_prepared_xacts").unwrap(), "0");
    // What was refused is served when it comes again.
    assert!(run(100).await);
}
