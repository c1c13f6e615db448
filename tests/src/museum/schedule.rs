//! Schedules on real databases, files and connections, for rules that only one kind of database can break, for the decision log in PostgreSQL, and
//! for the application's client.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lockstep::Client;
use lockstep::resource::mysql::MySql;
use lockstep::resource::postgres::Postgres;
use lockstep::resource::sqlite::Sqlite;
use lockstep::resource::{BranchId, Fate, Prepared, Resource as _, ResourceError};
use lockstep_coordinator::decision_log::DecisionLog as _;
use lockstep_coordinator::decision_log::postgres::{Accepted, Options, PostgresLog};
use lockstep_coordinator::engine::clock::unix_ms;
use lockstep_proto::v1;
use lockstep_proto::v1::coordinator_service_server::{CoordinatorService, CoordinatorServiceServer};
use lockstep_proto::{Bqual, ClusterId, Epoch, Gtrid, Incarnation, LogPosition, ResourceManagerName, Xid};
use sqlx::mysql::MySqlPoolOptions;
use sqlx::postgres::{PgListener, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, MySqlConnection, MySqlPool,
    PgConnection, PgPool, SqliteConnection,
};
use tempfile::TempDir;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::harness::mariadb;
use crate::harness::postgres::{self, PostgresServer};

/// Longer than anything takes that has an end.
const LONG: Duration = Duration::from_secs(60);
/// What does not come within this does not come.
const SHORT: Duration = Duration::from_millis(500);

/// A schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// PostgreSQL: a replicated log is read, and nothing written behind the read arrives (P3): `stability`.
    ReadWithoutWrite,
    /// An application gives up waiting for its commit (P13): `reply_matches_log`.
    CancelledCommit,
    /// PostgreSQL: a service ends its branch's transaction and begins one of its own (P16): `agreement`.
    OwnTransaction,
    /// MariaDB: a branch is to be prepared after another instance has fenced it (P18): `agreement`.
    RefusedEvidence,
    /// MariaDB: two resource managers on one server (P18): `nothing_foreign_touched`.
    Neighbour,
    /// PostgreSQL: a late commit, and a question about old evidence right behind it (P19): `heuristics_recorded`.
    LateCommit,
    /// PostgreSQL: a server that loses pages with its power (P22): `durable_before_sent`.
    TornPages,
    /// PostgreSQL: a branch that has only notified (P23): `agreement`.
    Notification,
    /// MariaDB: a branch whose session is still there is ended by another one (P24): `agreement`.
    SessionStillThere,
    /// SQLite: two instances of one file (P25): `one_owner`.
    TwoInstances,
    /// SQLite: a row is changed while nobody holds the branch that has changed it (P26): `heuristics_recorded`.
    ChangedInBetween,
    /// SQLite: the journal comes back after its evidence has gone (P27): `agreement`.
    JournalComesBack,
}

/// All of them.
pub const SCHEDULES: [Schedule; 12] = [
    Schedule::ReadWithoutWrite,
    Schedule::CancelledCommit,
    Schedule::OwnTransaction,
    Schedule::RefusedEvidence,
    Schedule::Neighbour,
    Schedule::LateCommit,
    Schedule::TornPages,
    Schedule::Notification,
    Schedule::SessionStillThere,
    Schedule::TwoInstances,
    Schedule::ChangedInBetween,
    Schedule::JournalComesBack,
];

impl Schedule {
    /// The invariant that it would break.
    #[must_use]
    pub const fn invariant(self) -> &'static str {
        match self {
            Self::ReadWithoutWrite => "stability",
            Self::CancelledCommit => "reply_matches_log",
            Self::OwnTransaction
            | Self::RefusedEvidence
            | Self::Notification
            | Self::SessionStillThere
            | Self::JournalComesBack => "agreement",
            Self::Neighbour => "nothing_foreign_touched",
            Self::LateCommit | Self::ChangedInBetween => "heuristics_recorded",
            Self::TornPages => "durable_before_sent",
            Self::TwoInstances => "one_owner",
        }
    }

    /// Whether it ends as it has to.
    ///
    /// # Panics
    /// If a database cannot be had, or does not do what no bug is about.
    pub async fn ends_well(self) -> bool {
        match self {
            Self::ReadWithoutWrite => read_waits_for_a_write().await,
            Self::CancelledCommit => cancelled_commit_is_left_alone().await,
            Self::OwnTransaction => own_transaction_is_not_prepared().await,
            Self::RefusedEvidence => refused_evidence_is_not_prepared().await,
            Self::Neighbour => neighbours_branch_is_not_listed().await,
            Self::LateCommit => late_evidence_is_kept().await,
            Self::TornPages => torn_pages_are_refused().await,
            Self::Notification => notification_is_not_published().await,
            Self::SessionStillThere => prepared_is_not_taken_for_done().await,
            Self::TwoInstances => second_instance_is_refused().await,
            Self::ChangedInBetween => change_in_between_is_told().await,
            Self::JournalComesBack => committed_branch_stays_away().await,
        }
    }
}

fn name(text: &str) -> ResourceManagerName {
    text.parse().expect("a name")
}

fn cluster() -> ClusterId {
    ClusterId::from_random(7)
}

fn branch_of(resource_manager: &str) -> BranchId {
    let gtrid = Gtrid::new(Epoch::new(1).expect("not 0"), unix_ms(), rand::random());
    let bqual = Bqual::new(&name(resource_manager), rand::random());
    BranchId { cluster: cluster(), xid: Xid { gtrid, bqual } }
}

fn position() -> LogPosition {
    let (epoch, incarnation) = (Epoch::new(1).expect("not 0"), Incarnation::from_bytes([1; 16]));
    LogPosition { epoch, incarnation, sequence: 1 }
}

const TABLE: &str =
    "CREATE TABLE account (id int PRIMARY KEY, amount int NOT NULL); INSERT INTO account VALUES (1, 100)";
const TAKE: &str = "UPDATE account SET amount = amount - 1 WHERE id = 1";
const AMOUNT: &str = "SELECT amount FROM account WHERE id = 1";

// ---- the decision log in PostgreSQL ----

/// Whatever keeps the write behind the read waiting, as a standby that is away would, keeps the answer waiting.
async fn read_waits_for_a_write() -> bool {
    let database = fresh(postgres::fresh_database).await;
    let options = Options {
        url: database.url(),
        migrate: true,
        accepted: Accepted::default(),
        node: "node".to_owned(),
        address: None,
        succeeds: false,
        lease: LONG,
        patience: LONG,
        now_ms: unix_ms(),
    };
    let (log, _) = PostgresLog::open(&options).await.expect("a log can be opened");
    let mut holder = PgConnection::connect(&database.url()).await.expect("a connection");
    let hold = "BEGIN; SELECT * FROM lockstep_log.barriers FOR UPDATE";
    holder.execute(hold).await.expect("the row can be held");
    let gtrid = Gtrid::new(log.position().epoch, unix_ms(), [1; 10]);
    tokio::time::timeout(SHORT, log.look_up(&[gtrid])).await.is_err()
}

// ---- the application's client ----

/// A coordinator that begins transactions, never answers a commit, and notes who rolls back.
#[derive(Debug, Clone, Default)]
struct Silent {
    commits: Arc<AtomicU32>,
    rollbacks: Arc<AtomicU32>,
}

#[tonic::async_trait]
impl CoordinatorService for Silent {
    async fn begin(&self, _: Request<v1::BeginRequest>) -> Result<Response<v1::BeginResponse>, Status> {
        let gtrid = branch_of("bank").xid.gtrid.to_string();
        let timeout_ms = 60_000;
        Ok(Response::new(v1::BeginResponse {
            gtrid,
            cluster: cluster().to_string(),
            timeout_ms,
            ..Default::default()
        }))
    }

    async fn commit(&self, _: Request<v1::CommitRequest>) -> Result<Response<v1::CommitResponse>, Status> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        std::future::pending().await
    }

    async fn rollback(
        &self,
        _: Request<v1::RollbackRequest>,
    ) -> Result<Response<v1::RollbackResponse>, Status> {
        self.rollbacks.fetch_add(1, Ordering::SeqCst);
        let outcome = v1::Outcome::RolledBack.into();
        Ok(Response::new(v1::RollbackResponse { outcome, detail: String::new() }))
    }

    async fn inquire(&self, _: Request<v1::InquireRequest>) -> Result<Response<v1::InquireResponse>, Status> {
        Err(Status::unavailable("it says nothing"))
    }

    async fn list_nodes(
        &self,
        _: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        Ok(Response::new(v1::ListNodesResponse { epoch: 1, nodes: Vec::new() }))
    }
}

/// The coordinator may be committing: a rollback behind the commit would turn "committed" into a guess.
async fn cancelled_commit_is_left_alone() -> bool {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let coordinator = Silent::default();
    let service = CoordinatorServiceServer::new(coordinator.clone());
    let server = tonic::transport::Server::builder().add_service(service);
    let served = tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    let client = Client::connect(format!("http://{address}")).await.expect("it listens");
    let transaction = client.begin("a cancelled commit").start().await.expect("it begins");
    let commit = tokio::spawn(transaction.commit());
    let give_up = tokio::time::Instant::now() + LONG;
    while coordinator.commits.load(Ordering::SeqCst) == 0 {
        assert!(tokio::time::Instant::now() < give_up, "the commit never came");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    commit.abort();
    tokio::time::sleep(SHORT).await;
    served.abort();
    coordinator.rollbacks.load(Ordering::SeqCst) == 0
}

// ---- PostgreSQL ----

/// A database with an account of 100 in it.
struct PostgresSite {
    resource: Postgres,
    pool: PgPool,
}

/// Starting a server waits; that is no matter of the runtime's.
async fn fresh<T: Send + 'static>(make: fn() -> T) -> T {
    tokio::task::spawn_blocking(make).await.expect("a database can be made")
}

impl PostgresSite {
    async fn new() -> Self {
        let url = fresh(postgres::fresh_database).await.url();
        let pool = PgPoolOptions::new().max_connections(5).connect(&url).await.expect("a connection");
        pool.execute(TABLE).await.expect("a table can be made");
        let resource = Postgres::new(pool.clone());
        resource.attach(&name("bank")).await.expect("the server is fit");
        Self { resource, pool }
    }

    async fn amount(&self) -> i32 {
        sqlx::query_scalar(AMOUNT).fetch_one(&self.pool).await.expect("the account is there")
    }
}

async fn own_transaction_is_not_prepared() -> bool {
    let site = PostgresSite::new().await;
    let branch = branch_of("bank");
    let mut open = site.resource.begin(&branch, LONG).await.expect("a branch can begin");
    let work = format!("{TAKE}; COMMIT; BEGIN; {TAKE}");
    Postgres::connection(&mut open).execute(AssertSqlSafe(work)).await.expect("a service may do so");
    let vote = site.resource.prepare(&branch, open, &position()).await;
    if vote != Ok(Prepared::Yes) {
        return true;
    }
    let fate = site.resource.rollback(&branch, &position()).await;
    // What was answered, and what is there.
    !(fate == Ok(Fate::RolledBack) && site.amount().await == 99)
}

/// The coordinator is away for longer than the deadline and the retention. Of two instances that are told to commit, the second finds what the
/// first has done, though the first looks for old evidence in between.
async fn late_evidence_is_kept() -> bool {
    let site = PostgresSite::new().await;
    let branch = branch_of("bank");
    let mut open = site.resource.begin(&branch, LONG).await.expect("a branch can begin");
    Postgres::connection(&mut open).execute(TAKE).await.expect("it can work");
    let vote = site.resource.prepare(&branch, open, &position()).await;
    assert_eq!(vote, Ok(Prepared::Yes), "nothing is wrong with it");
    assert_eq!(site.resource.commit(&branch, &position()).await, Ok(Fate::Committed), "it is prepared");
    let long_ago = "UPDATE lockstep.evidence SET deadline = now() - interval '10 hours'";
    site.pool.execute(long_ago).await.expect("time can be told to have passed");
    let retention = Duration::from_secs(3600);
    let old = site.resource.old_evidence(cluster(), retention, 10).await.expect("the server answers");
    let old: Vec<BranchId> = old.into_iter().map(|row| row.branch).collect();
    site.resource.forget(&old).await.expect("the server answers");
    site.resource.commit(&branch, &position()).await == Ok(Fate::Committed)
}

async fn torn_pages_are_refused() -> bool {
    let server = || PostgresServer::start_with(&[("full_page_writes", "off")]);
    let server = fresh(server).await.expect("a server can be started");
    let url = server.url("postgres");
    let pool = PgPoolOptions::new().connect(&url).await.expect("a connection");
    let attached = Postgres::new(pool).attach(&name("bank")).await;
    tokio::task::spawn_blocking(move || drop(server)).await.expect("a server can be stopped");
    matches!(attached, Err(ResourceError::Unfit(_)))
}

async fn notification_is_not_published() -> bool {
    let site = PostgresSite::new().await;
    let mut listener = PgListener::connect_with(&site.pool).await.expect("a connection");
    listener.listen("news").await.expect("anybody may listen");
    let branch = branch_of("bank");
    let mut open = site.resource.begin(&branch, LONG).await.expect("a branch can begin");
    let work = "SELECT * FROM account; NOTIFY news, 'too early'";
    Postgres::connection(&mut open).execute(work).await.expect("it can work");
    let vote = site.resource.prepare(&branch, open, &position()).await;
    assert_eq!(vote, Ok(Prepared::ReadOnly), "it has written nothing");
    site.pool.execute("NOTIFY news, 'the next one'").await.expect("anybody may notify");
    listener.recv().await.expect("something was published").payload() == "the next one"
}

// ---- MariaDB ----

/// A database with an account of 100 in it.
struct MariaDbSite {
    resource: MySql,
    pool: MySqlPool,
    url: String,
}

impl MariaDbSite {
    async fn new() -> Self {
        let url = fresh(mariadb::fresh_database).await.url();
        let pool = MySqlPoolOptions::new().max_connections(5).connect(&url).await.expect("a connection");
        for statement in TABLE.split("; ") {
            pool.execute(statement).await.expect("a table can be made");
        }
        let resource = attached(&pool, "bank").await;
        Self { resource, pool, url }
    }
}

async fn attached(pool: &MySqlPool, resource_manager: &str) -> MySql {
    let resource = MySql::new(pool.clone());
    resource.attach(&name(resource_manager)).await.expect("the server is fit");
    resource
}

async fn refused_evidence_is_not_prepared() -> bool {
    let site = MariaDbSite::new().await;
    let other = attached(&site.pool, "bank").await;
    let branch = branch_of("bank");
    let mut open = site.resource.begin(&branch, LONG).await.expect("a branch can begin");
    MySql::connection(&mut open).execute(TAKE).await.expect("it can work");
    // The coordinator gave up, and another instance was told: nothing is prepared, and nothing ever will be.
    let fate = other.rollback(&branch, &position()).await;
    assert_eq!(fate, Ok(Fate::RolledBack), "nobody else can have it");
    site.resource.prepare(&branch, open, &position()).await != Ok(Prepared::Yes)
}

async fn neighbours_branch_is_not_listed() -> bool {
    let site = MariaDbSite::new().await;
    let neighbour = attached(&site.pool, "shop").await;
    let branch = branch_of("shop");
    let mut open = neighbour.begin(&branch, LONG).await.expect("a branch can begin");
    MySql::connection(&mut open).execute(TAKE).await.expect("it can work");
    let vote = neighbour.prepare(&branch, open, &position()).await;
    assert_eq!(vote, Ok(Prepared::Yes), "nothing is wrong with it");
    let listed = site.resource.prepared(cluster(), &name("bank")).await.expect("the server answers");
    let fate = neighbour.rollback(&branch, &position()).await;
    assert_eq!(fate, Ok(Fate::RolledBack), "it is its own");
    !listed.contains(&branch.xid)
}

/// A process that is stopped behind XA PREPARE keeps its branch from everybody, and the server says "unknown" of it.
async fn prepared_is_not_taken_for_done() -> bool {
    let site = MariaDbSite::new().await;
    let branch = branch_of("bank");
    let mut preparer = MySqlConnection::connect(&site.url).await.expect("a connection");
    let BranchId { cluster, xid } = &branch;
    let xid = format!("'{cluster}:{}','{}',1819239275", xid.gtrid, xid.bqual);
    let prepare = format!("XA START {xid}; {TAKE}; XA END {xid}; XA PREPARE {xid}");
    preparer.execute(AssertSqlSafe(prepare)).await.expect("it can be prepared");
    let told = site.resource.rollback(&branch, &position()).await;
    let by_hand = format!("XA COMMIT {xid}");
    let could_commit = preparer.execute(AssertSqlSafe(by_hand)).await.is_ok();
    !(told == Ok(Fate::RolledBack) && could_commit)
}

// ---- SQLite ----

/// A file with an account of 100 in it.
struct SqliteSite {
    directory: TempDir,
}

impl SqliteSite {
    async fn new() -> Self {
        let site = Self { directory: TempDir::new().expect("a directory") };
        let mut connection = site.connect().await;
        connection.execute(TABLE).await.expect("a table can be made");
        connection.close().await.expect("the connection is closed");
        site
    }

    fn options(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new().filename(self.directory.path().join("bank.db")).create_if_missing(true)
    }

    async fn connect(&self) -> SqliteConnection {
        self.options().connect().await.expect("the file can be opened")
    }

    fn instance(&self) -> Sqlite {
        Sqlite::new(SqlitePoolOptions::new().max_connections(2).connect_lazy_with(self.options()))
    }

    async fn attached(&self) -> Sqlite {
        let resource = self.instance();
        let give_up = tokio::time::Instant::now() + LONG;
        // The one before it lets its lock go when its last connection is closed.
        while let Err(error) = resource.attach(&name("bank")).await {
            assert!(tokio::time::Instant::now() < give_up, "{error}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        resource
    }

    /// A branch that has taken 1 is prepared.
    async fn prepared(&self, resource: &Sqlite) -> BranchId {
        let branch = branch_of("bank");
        let mut open = resource.begin(&branch, LONG).await.expect("a branch can begin");
        Sqlite::connection(&mut open).execute(TAKE).await.expect("it can work");
        let vote = resource.prepare(&branch, open, &position()).await;
        assert_eq!(vote, Ok(Prepared::Yes), "nothing is wrong with it");
        branch
    }
}

async fn second_instance_is_refused() -> bool {
    let site = SqliteSite::new().await;
    let _first = site.attached().await;
    site.instance().attach(&name("bank")).await.is_err()
}

async fn change_in_between_is_told() -> bool {
    let site = SqliteSite::new().await;
    let resource = site.attached().await;
    let branch = site.prepared(&resource).await;
    drop(resource);
    let give_up = tokio::time::Instant::now() + LONG;
    let mut connection = site.connect().await;
    while let Err(error) = connection.execute("UPDATE account SET amount = 7 WHERE id = 1").await {
        assert!(tokio::time::Instant::now() < give_up, "{error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    connection.close().await.expect("the connection is closed");
    let resource = site.attached().await;
    resource.commit(&branch, &position()).await == Ok(Fate::Hazard)
}

async fn committed_branch_stays_away() -> bool {
    let site = SqliteSite::new().await;
    let resource = site.attached().await;
    let branch = site.prepared(&resource).await;
    assert_eq!(resource.commit(&branch, &position()).await, Ok(Fate::Committed), "it is prepared");
    resource.forget(&[branch]).await.expect("evidence may go");
    drop(resource);
    let resource = site.attached().await;
    resource.prepared(cluster(), &name("bank")).await.expect("the file can be read").is_empty()
}
