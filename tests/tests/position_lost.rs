//! The place of a decision is written without waiting for the disk, for all commits of a batch at once (protocol.md, P8): a server that crashes
//! before one of them has forced it takes it along, and whoever commits afterwards has to write it again. A test of its own, because the
//! crash point holds for the whole process.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::sync::Arc;
use std::time::Duration;

use lockstep::resource::postgres::Postgres;
use lockstep::resource::{BranchId, Fate, Prepared, Resource as _};
use lockstep_proto::{Bqual, ClusterId, Epoch, Gtrid, Incarnation, LogPosition, ResourceManagerName, Xid};
use lockstep_tests::harness::clock::unix_micros;
use lockstep_tests::harness::postgres::PostgresServer;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

/// Nothing is written to the disk but what a commit forces.
const SETTINGS: &[(&str, &str)] =
    &[("wal_writer_delay", "10s"), ("wal_writer_flush_after", "1GB"), ("autovacuum", "off")];
const KEPT: &str = "SELECT coalesce(max(sequence), 0) FROM lockstep.positions";
const LONG: Duration = Duration::from_secs(60);

fn position(sequence: u64) -> LogPosition {
    let epoch = Epoch::new(1).unwrap();
    LogPosition { epoch, incarnation: Incarnation::from_bytes([7; 16]), sequence }
}

struct Site {
    resource: Postgres,
    cluster: ClusterId,
    name: ResourceManagerName,
}

impl Site {
    async fn prepared(&self, number: u64) -> BranchId {
        let gtrid = Gtrid::new(Epoch::new(1).unwrap(), unix_micros() / 1000, [7; 10]);
        let xid = Xid { gtrid, bqual: Bqual::new(&self.name, number) };
        let branch = BranchId { cluster: self.cluster, xid };
        let mut open = self.resource.begin(&branch, LONG).await.unwrap();
        let write = sqlx::query("INSERT INTO written VALUES (1)");
        write.execute(Postgres::connection(&mut open)).await.unwrap();
        let prepared = self.resource.prepare(&branch, open, &position(1)).await.unwrap();
        assert_eq!(prepared, Prepared::Yes);
        branch
    }

    async fn commit(&self, branch: &BranchId, sequence: u64) -> Fate {
        // A connection that the server has left is noticed once, and asked for again.
        for _ in 0..20 {
            match self.resource.commit(branch, &position(sequence)).await {
                Ok(fate) => return fate,
                Err(why) => println!("{why:?}"),
            }
        }
        panic!("never committed");
    }
}

/// Ends what commits at the crash point, as a panic of its task does: the place is written, the branch still prepared.
async fn write_the_place_and_die(resource: Postgres, branch: BranchId, sequence: u64) -> Postgres {
    let resource = Arc::new(resource);
    fail::cfg("postgres-before-commit-prepared", "panic").unwrap();
    let mut died = false;
    // A connection that the server has left is noticed once.
    for _ in 0..20 {
        let (dying, branch) = (Arc::clone(&resource), branch.clone());
        let ended =
            tokio::spawn(async move { dying.commit(&branch, &position(sequence)).await.is_ok() }).await;
        died = ended.is_err_and(|ended| ended.is_panic());
        if died {
            break;
        }
    }
    assert!(died, "it never came to the crash point");
    fail::remove("postgres-before-commit-prepared");
    Arc::into_inner(resource).unwrap()
}

#[tokio::test]
async fn a_place_that_a_crash_took_along_is_written_again() {
    let mut server = PostgresServer::start_with(SETTINGS).unwrap();
    server.create_database("bank").unwrap();
    server.psql("bank", "CREATE TABLE written (n int)").unwrap();
    let pool: PgPool = PgPoolOptions::new().connect(&server.url("bank")).await.unwrap();
    let name: ResourceManagerName = "bank".parse().unwrap();
    let resource = Postgres::new(pool);
    resource.attach(&name).await.unwrap();
    let mut site = Site { resource, cluster: ClusterId::from_random(7), name };
    let (first, second, third) = (site.prepared(1).await, site.prepared(2).await, site.prepared(3).await);

    assert_eq!(site.commit(&first, 2).await, Fate::Committed);
    assert_eq!(server.psql("bank", KEPT).unwrap(), "2");
    site.resource = write_the_place_and_die(site.resource, second.clone(), 3).await;
    assert_eq!(server.psql("bank", KEPT).unwrap(), "3", "it is written");
    // Whoever looks at it now sees it, and does not know how long it will be there.
    site.resource.attach(&site.name).await.unwrap();
    server.kill().unwrap();
    server.restart().unwrap();
    assert_eq!(server.psql("bank", KEPT).unwrap(), "2", "and was not durable: otherwise this shows nothing");

    assert_eq!(site.commit(&second, 3).await, Fate::Committed);
    assert_eq!(server.psql("bank", KEPT).unwrap(), "3");
    server.kill().unwrap();
    server.restart().unwrap();
    assert_eq!(server.psql("bank", KEPT).unwrap(), "3", "the commit has made it durable");

    // The other way round: what one has written serves the next, and the commit of the next makes it durable.
    site.resource = write_the_place_and_die(site.resource, third.clone(), 9).await;
    assert_eq!(site.commit(&third, 8).await, Fate::Committed);
    server.kill().unwrap();
    server.restart().unwrap();
    assert_eq!(server.psql("bank", KEPT).unwrap(), "9");
}
