//! A database server that takes another one's place between the writing of a decision's place and the commit of its branch, and has the branch
//! and not the place: it is written there too before the branch is committed (protocol.md, P8). A test of its own, because the crash
//! point holds for the whole process.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockstep::resource::mysql::MySql;
use lockstep::resource::{BranchId, Fate, Prepared, Resource as _};
use lockstep_proto::{Bqual, ClusterId, Epoch, Gtrid, Incarnation, LogPosition, ResourceManagerName, Xid};
use lockstep_tests::harness::mariadb::MariaDbServer;
use sqlx::MySqlPool;

const KEPT: &str = "SELECT coalesce(max(sequence), 0) FROM lockstep_positions";
/// Longer than a connection that has just been used is taken for one that is still there.
const A_WHILE: Duration = Duration::from_millis(1500);

fn position(sequence: u64) -> LogPosition {
    let epoch = Epoch::new(1).unwrap();
    LogPosition { epoch, incarnation: Incarnation::from_bytes([7; 16]), sequence }
}

/// What a failover looks like from here: the place is gone, and so is every connection.
fn lose_the_place(server: &MariaDbServer) {
    server.sql("ours", "DELETE FROM lockstep_positions").unwrap();
    let others = "SELECT id FROM information_schema.processlist WHERE id <> connection_id() AND db = 'ours'";
    for id in server.sql("ours", others).unwrap().split_whitespace() {
        // It may end by itself meanwhile.
        drop(server.sql("ours", &format!("KILL {id}")));
    }
    std::thread::sleep(A_WHILE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_a_failover_took_along_is_written_before_the_commit() {
    let server = Arc::new(MariaDbServer::start().unwrap_or_else(|error| panic!("{error}")));
    server.create_database("ours").unwrap();
    server.sql("ours", "CREATE TABLE work (n int)").unwrap();
    let name: ResourceManagerName = "orders-db".parse().unwrap();
    let resource = MySql::new(MySqlPool::connect_lazy(&server.url("ours")).unwrap());
    resource.attach(&name).await.unwrap();
    let gtrid = Gtrid::new(Epoch::new(1).unwrap(), 1, rand::random());
    let branch =
        BranchId { cluster: ClusterId::from_random(7), xid: Xid { gtrid, bqual: Bqual::new(&name, 1) } };
    let mut open = resource.begin(&branch, Duration::from_secs(60)).await.unwrap();
    sqlx::raw_sql("INSERT INTO work VALUES (1)").execute(MySql::connection(&mut open)).await.unwrap();
    assert_eq!(resource.prepare(&branch, open, &position(1)).await, Ok(Prepared::Yes));

    let (kept_before, losing) = (Arc::new(Mutex::new(None)), Arc::clone(&server));
    let seen = Arc::clone(&kept_before);
    fail::cfg_callback("mysql-before-commit-prepared", move || {
        let mut seen = seen.lock().unwrap();
        if seen.is_none() {
            *seen = Some(losing.sql("ours", KEPT).unwrap());
            tokio::task::block_in_place(|| lose_the_place(&losing));
        }
    })
    .unwrap();
    assert_eq!(resource.commit(&branch, &position(9)).await, Ok(Fate::Committed), "it was not asked twice");
    assert_eq!(kept_before.lock().unwrap().as_deref(), Some("9"), "it was written, and then lost");
    assert_eq!(server.sql("ours", KEPT).unwrap(), "9");
    assert_eq!(server.sql("ours", "SELECT count(*) FROM work").unwrap(), "1");
}
