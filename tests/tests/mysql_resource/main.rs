//! MariaDB as a participant, against real servers: how it really behaves in two-phase commit, and each rule of
//! protocol.md that follows from that, by the resource itself, without a coordinator.
//!
//! Most tests have a database of their own on one shared server; those that break a server make one.

#![allow(clippy::unwrap_used, reason = "a test panics where something is not as it should be")]

mod attaching;
mod evidence;
mod one_phase;
mod open;
mod preparing;
mod recovering;
mod server_faults;

use std::future::Future;
use std::time::Duration;

use lockstep::resource::mysql::{MySql, OpenBranch};
use lockstep::resource::{Attachment, BranchId, Fate, Prepared, Resource as _, Unresolved};
use lockstep_proto::{
    Bqual, ClusterId, Epoch, Gtrid, Incarnation, LogPosition, Positions, ResourceManagerName, Xid,
};
use lockstep_tests::harness::mariadb::{Database, MariaDbServer, fresh_database};
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::{AssertSqlSafe, MySqlConnection, MySqlPool};

/// Long enough for any test that does not wait for a deadline.
const LONG: Duration = Duration::from_secs(60);
const NAME: &str = "orders-db";

/// A participant in a database with one table: `account (id, amount)`, 100 in each of 1 to 10.
struct Site {
    resource: MySql,
    pool: MySqlPool,
    attachment: Attachment,
    cluster: ClusterId,
    database: Option<Database>,
}

impl Site {
    async fn new() -> Self {
        let database = fresh_database();
        let site = Self::at(&database.url(), 5).await;
        Self { database: Some(database), ..site }
    }

    /// In any database, through a pool of `connections`.
    async fn at(url: &str, connections: u32) -> Self {
        let site = Self::attached(url, connections, ClusterId::from_random(rand::random())).await;
        sqlx::raw_sql(
            "CREATE TABLE IF NOT EXISTS account (id int PRIMARY KEY, amount int NOT NULL); \
             INSERT IGNORE INTO account SELECT seq, 100 FROM seq_1_to_10",
        )
        .execute(&site.pool)
        .await
        .unwrap();
        site
    }

    /// In a database that has the table.
    async fn attached(url: &str, connections: u32, cluster: ClusterId) -> Self {
        let pool = pool(url, connections);
        let resource = MySql::new(pool.clone());
        let attachment = resource.attach(&name(NAME)).await.unwrap();
        Self { resource, pool, attachment, cluster, database: None }
    }

    /// Another instance of the same participant.
    async fn other_instance(&self) -> Self {
        Self::attached(&self.url(), 5, self.cluster).await
    }

    fn url(&self) -> String {
        self.database.as_ref().expect("a site on the shared server").url()
    }

    fn branch(&self) -> BranchId {
        branch_of(self.cluster, &name(NAME))
    }

    /// Opens a branch and takes 1 from account `id` in it.
    async fn written(&self, id: i32) -> (BranchId, OpenBranch) {
        let branch = self.branch();
        let mut open = self.resource.begin(&branch, LONG).await.unwrap();
        run(&mut open, &take_from(id)).await.unwrap();
        (branch, open)
    }

    async fn prepare(&self, branch: &BranchId, open: OpenBranch) -> Prepared {
        self.resource.prepare(branch, open, &position(1)).await.unwrap()
    }

    /// A branch that is prepared and has taken 1 from account `id`.
    async fn prepared(&self, id: i32) -> BranchId {
        let (branch, open) = self.written(id).await;
        assert_eq!(self.prepare(&branch, open).await, Prepared::Yes);
        branch
    }

    /// One that has taken 1 from account `id` for good.
    async fn prepared_and_committed(&self, id: i32) -> BranchId {
        let branch = self.prepared(id).await;
        assert_eq!(self.commit(&branch).await, Ok(Fate::Committed));
        branch
    }

    async fn commit(&self, branch: &BranchId) -> Result<Fate, Unresolved> {
        self.resource.commit(branch, &position(2)).await
    }

    async fn rollback(&self, branch: &BranchId) -> Result<Fate, Unresolved> {
        self.resource.rollback(branch, &position(2)).await
    }

    async fn amount(&self, id: i32) -> i32 {
        sqlx::query_scalar("SELECT amount FROM account WHERE id = ?")
            .bind(id)
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }

    /// No branch of this site is left, in no server-wide list.
    async fn assert_nothing_is_prepared(&self) {
        assert_eq!(self.resource.prepared(self.cluster, &name(NAME)).await.unwrap(), []);
        let ours = self.cluster.to_string();
        assert!(!listed(&self.pool).await.iter().any(|data| data.starts_with(&ours)));
    }

    async fn evidence(&self, branch: &BranchId) -> Option<String> {
        sqlx::query_scalar("SELECT kind FROM lockstep_evidence WHERE xid = ?")
            .bind(branch.to_string())
            .fetch_optional(&self.pool)
            .await
            .unwrap()
    }

    async fn scalar<T>(&self, sql: &'static str) -> T
    where
        T: Send + Unpin + sqlx::Type<sqlx::MySql> + for<'a> sqlx::Decode<'a, sqlx::MySql>,
    {
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap()
    }
}

fn pool(url: &str, connections: u32) -> MySqlPool {
    let options: MySqlConnectOptions = url.parse().unwrap();
    MySqlPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(20))
        .connect_lazy_with(options)
}

fn take_from(id: i32) -> String {
    format!("UPDATE account SET amount = amount - 1 WHERE id = {id}")
}

/// Runs statements as a handler would.
async fn run(open: &mut OpenBranch, sql: &str) -> sqlx::Result<()> {
    let connection: &mut MySqlConnection = MySql::connection(open);
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(drop)
}

/// What XA calls a branch.
fn xid_of(branch: &BranchId) -> String {
    format!("'{}:{}','{}',1819239275", branch.cluster, branch.xid.gtrid, branch.xid.bqual)
}

/// The user lock that a branch's session holds from its evidence on.
fn user_lock(branch: &BranchId) -> String {
    let name = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, branch.to_string().as_bytes());
    format!("lockstep-{}", name.simple())
}

/// The user lock that a branch's session holds from its begin on.
fn open_lock(branch: &BranchId) -> String {
    format!("{}-open", user_lock(branch))
}

/// The session that holds a user lock.
async fn holder(pool: &MySqlPool, lock: &str) -> Option<i64> {
    let sql = "SELECT CAST(IS_USED_LOCK(?) AS SIGNED)";
    sqlx::query_scalar(sql).bind(lock).fetch_one(pool).await.unwrap()
}

/// Everything that the server lists as prepared: global id and branch, without what is between them.
async fn listed(pool: &MySqlPool) -> Vec<String> {
    let rows = sqlx::raw_sql("XA RECOVER").fetch_all(pool).await.unwrap();
    let data = |row: &sqlx::mysql::MySqlRow| {
        String::from_utf8_lossy(sqlx::Row::try_get_unchecked::<&[u8], _>(row, "data").unwrap()).into_owned()
    };
    rows.iter().map(data).collect()
}

/// A row is free to be locked by anyone.
async fn is_free(pool: &MySqlPool, id: i32) -> bool {
    let sql = format!("SELECT 1 FROM account WHERE id = {id} FOR UPDATE NOWAIT");
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.is_ok()
}

/// The server's session of a branch.
async fn session_of(open: &mut OpenBranch) -> i64 {
    own_session(MySql::connection(open)).await
}

/// The server's number for the session of this connection.
async fn own_session(connection: &mut MySqlConnection) -> i64 {
    sqlx::query_scalar("SELECT CAST(CONNECTION_ID() AS SIGNED)").fetch_one(connection).await.unwrap()
}

fn name(text: &str) -> ResourceManagerName {
    text.parse().unwrap()
}

fn branch_of(cluster: ClusterId, name: &ResourceManagerName) -> BranchId {
    branch_begun(cluster, name, 1, lockstep_tests::harness::clock::unix_micros() / 1000)
}

fn branch_begun(cluster: ClusterId, name: &ResourceManagerName, epoch: u32, unix_ms: u64) -> BranchId {
    let gtrid = Gtrid::new(Epoch::new(epoch).unwrap(), unix_ms, rand::random());
    BranchId { cluster, xid: Xid { gtrid, bqual: Bqual::new(name, rand::random()) } }
}

fn position(sequence: u64) -> LogPosition {
    position_in(1, sequence)
}

/// What an attachment says that was seen.
fn seen<const N: usize>(positions: [LogPosition; N]) -> Positions {
    positions.into_iter().collect()
}

fn position_in(epoch: u32, sequence: u64) -> LogPosition {
    LogPosition { epoch: Epoch::new(epoch).unwrap(), incarnation: Incarnation::from_bytes([7; 16]), sequence }
}

/// The reason of a refused branch.
fn reason(prepared: Prepared) -> String {
    match prepared {
        Prepared::No(reason) => reason,
        Prepared::Yes | Prepared::ReadOnly | Prepared::Hazard(_) => {
            panic!("{prepared:?}, and it should have been refused")
        }
    }
}

/// Waits until `condition` holds.
async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting)
        .await
        .unwrap_or_else(|_| panic!("waited too long: {what}"));
}

/// Asks until there is an answer, as a participant does.
async fn resolved<F: Future<Output = Result<Fate, Unresolved>>>(mut ask: impl FnMut() -> F) -> Fate {
    let asking = async {
        loop {
            match ask().await {
                Ok(fate) => return fate,
                Err(Unresolved(_why)) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asking).await.expect("it stays unresolved")
}

/// Whether a session of the server is still there.
async fn is_running(pool: &MySqlPool, session: i64) -> bool {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM information_schema.processlist WHERE id = ?")
        .bind(session)
        .fetch_one(pool)
        .await
        .unwrap();
    count > 0
}

/// A server of the test's own.
fn server(settings: &[(&str, &str)]) -> MariaDbServer {
    MariaDbServer::start_with(settings).unwrap_or_else(|error| panic!("{error}"))
}
