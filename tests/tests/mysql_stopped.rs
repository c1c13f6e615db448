//! A process that is stopped in the middle of preparing a branch in MariaDB: the server goes on without it, soon, though the
//! transaction's deadline is far away (P19, P24).
//!
//! In a program of its own: a crash point that waits does so for everyone in its process.

#![allow(clippy::unwrap_used, reason = "a test panics where something is not as it should be")]

use std::time::Duration;

use lockstep::resource::mysql::MySql;
use lockstep::resource::{BranchId, Fate, Prepared, Resource as _, Unresolved};
use lockstep_proto::{Bqual, ClusterId, Epoch, Gtrid, Incarnation, LogPosition, ResourceManagerName, Xid};
use lockstep_tests::harness::mariadb::MariaDbServer;
use sqlx::MySqlPool;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

const POSITION: fn() -> LogPosition = || LogPosition {
    epoch: Epoch::new(1).unwrap(),
    incarnation: Incarnation::from_bytes([7; 16]),
    sequence: 1,
};
/// How long the process is stopped: longer than the server waits.
const STOPPED: Duration = Duration::from_secs(15);
const FAR: Duration = Duration::from_secs(600);

async fn instance(url: &str, name: &ResourceManagerName) -> MySql {
    let resource = MySql::new(MySqlPool::connect_lazy(url).unwrap());
    resource.attach(name).await.unwrap();
    resource
}

/// Prepares a branch that writes, and is stopped at this crash point.
async fn stopped_at(
    point: &'static str,
    url: &str,
    branch: &BranchId,
    name: &ResourceManagerName,
) -> JoinHandle<Result<Prepared, Unresolved>> {
    let (reached, at_the_point) = std::sync::mpsc::channel();
    // The first time only, and without taking the point away again, which would wait for whoever is at it.
    let reached = std::sync::Mutex::new(Some(reached));
    fail::cfg_callback(point, move || {
        let first = reached.lock().unwrap().take();
        if let Some(reached) = first {
            reached.send(()).unwrap();
            std::thread::sleep(STOPPED);
        }
    })
    .unwrap();
    let (url, branch, name) = (url.to_owned(), branch.clone(), name.clone());
    // A runtime of its own, like the process that it stands for: the wait would keep one that is shared from its work.
    let preparing = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let resource = instance(&url, &name).await;
            let mut open = resource.begin(&branch, FAR).await.unwrap();
            sqlx::raw_sql("INSERT INTO work VALUES (1)").execute(MySql::connection(&mut open)).await.unwrap();
            resource.prepare(&branch, open, &POSITION()).await
        })
    });
    tokio::task::spawn_blocking(move || at_the_point.recv().unwrap()).await.unwrap();
    preparing
}

/// Asks until there is an answer, and how long that took.
async fn resolved<F: Future<Output = Result<Fate, Unresolved>>>(
    mut ask: impl FnMut() -> F,
) -> (Fate, Duration) {
    let begun = Instant::now();
    let asking = async {
        loop {
            match ask().await {
                Ok(fate) => return fate,
                Err(Unresolved(_why)) => sleep(Duration::from_millis(50)).await,
            }
        }
    };
    (timeout(FAR / 10, asking).await.expect("it stays unresolved"), begun.elapsed())
}

#[tokio::test]
async fn the_server_waits_neither_long_for_a_prepare_nor_for_the_end_of_a_session() {
    let server = MariaDbServer::start().unwrap_or_else(|error| panic!("{error}"));
    server.create_database("ours").unwrap();
    server.sql("ours", "CREATE TABLE work (n int)").unwrap();
    let url = server.url("ours");
    let name: ResourceManagerName = "orders-db".parse().unwrap();
    let cluster = ClusterId::from_random(rand::random());
    let branch = |number: u64| BranchId {
        cluster,
        xid: Xid {
            gtrid: Gtrid::new(Epoch::new(1).unwrap(), 1, rand::random()),
            bqual: Bqual::new(&name, number),
        },
    };
    let other = instance(&url, &name).await;

    // The evidence is written, and XA PREPARE is still to come. It comes too late.
    let before = branch(1);
    let preparing = stopped_at("mysql-before-prepare", &url, &before, &name).await;
    assert!(other.rollback(&before, &POSITION()).await.is_err(), "it may still be prepared");
    let (fate, took) = resolved(async || other.rollback(&before, &POSITION()).await).await;
    assert!(fate == Fate::RolledBack && took < STOPPED, "{fate:?} after {took:?}");
    assert!(preparing.await.unwrap().is_err(), "its session is gone");
    assert_eq!(other.commit(&before, &POSITION()).await, Ok(Fate::RolledBack));

    // It is prepared, and its session is still to be closed.
    let after = branch(2);
    let preparing = stopped_at("mysql-after-prepare", &url, &after, &name).await;
    assert_eq!(other.prepared(cluster, &name).await.unwrap(), vec![after.xid.clone()]);
    let early = other.commit(&after, &POSITION()).await;
    assert!(early.as_ref().is_err_and(|why| why.0.contains("still there")), "{early:?}");
    let (fate, took) = resolved(async || other.commit(&after, &POSITION()).await).await;
    assert!(fate == Fate::Committed && took < STOPPED, "{fate:?} after {took:?}");
    assert_eq!(preparing.await.unwrap(), Ok(Prepared::Yes));
    assert_eq!(server.sql("ours", "SELECT count(*) FROM work").unwrap(), "1");
}
