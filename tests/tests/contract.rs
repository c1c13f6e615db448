//! The databases keep every rule of `lockstep::Resource`: the contract kit on real servers and real files. The reservation ledger
//! does so in its own tests.

#![allow(clippy::unwrap_used, reason = "a test panics where something is not as it should be")]

use std::sync::Mutex;

use lockstep::resource::BranchId;
use lockstep::resource::mysql::MySql;
use lockstep::resource::postgres::Postgres;
use lockstep::resource::sqlite::Sqlite;
use lockstep::testing::{Subject, contract};
use lockstep_tests::harness::{mariadb, postgres};
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, MySqlConnection, PgConnection, SqliteConnection,
};
use tempfile::TempDir;

const TABLE: &str = "CREATE TABLE work (key text PRIMARY KEY)";
const WRITE: &str = "INSERT INTO work (key) VALUES ($1)";
const READ: &str = "SELECT count(*) FROM work";
const LOOK: &str = "SELECT count(*) FROM work WHERE key = $1";

fn words<T>(result: sqlx::Result<T>) -> Result<(), String> {
    result.map(drop).map_err(|error| error.to_string())
}

/// Databases on the shared server.
#[derive(Default)]
struct OnPostgres {
    databases: Mutex<Vec<postgres::Database>>,
}

impl Subject for OnPostgres {
    type Resource = Postgres;

    async fn create(&self) -> String {
        let database = tokio::task::spawn_blocking(postgres::fresh_database).await.unwrap();
        let url = database.url();
        let mut connection = PgConnection::connect(&url).await.unwrap();
        sqlx::raw_sql(TABLE).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        self.databases.lock().unwrap().push(database);
        url
    }

    async fn open(&self, address: &str) -> Postgres {
        let options: PgConnectOptions = address.parse().unwrap();
        Postgres::new(PgPoolOptions::new().max_connections(5).connect_lazy_with(options))
    }

    async fn write(&self, connection: &mut PgConnection, key: &str) -> Result<(), String> {
        words(sqlx::query(WRITE).bind(key).execute(connection).await)
    }

    async fn read(&self, connection: &mut PgConnection) -> Result<(), String> {
        words(sqlx::query(READ).execute(connection).await)
    }

    /// Plain autocommit afterwards.
    async fn commit_by_itself(&self, connection: &mut PgConnection, _branch: &BranchId) -> bool {
        sqlx::raw_sql("COMMIT").execute(connection).await.unwrap();
        true
    }

    /// The whole transaction has failed, and PREPARE TRANSACTION would say nothing of it.
    async fn fail_silently(&self, connection: &mut PgConnection, key: &str) -> bool {
        self.write(connection, key).await.unwrap_err();
        true
    }

    async fn is_there(&self, _resource: &Postgres, address: &str, key: &str) -> bool {
        let mut connection = PgConnection::connect(address).await.unwrap();
        let count: i64 = sqlx::query_scalar(LOOK).bind(key).fetch_one(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        count == 1
    }
}

/// Databases on the shared MariaDB server.
#[derive(Default)]
struct OnMariaDb {
    databases: Mutex<Vec<mariadb::Database>>,
}

impl Subject for OnMariaDb {
    type Resource = MySql;

    async fn create(&self) -> String {
        let database = tokio::task::spawn_blocking(mariadb::fresh_database).await.unwrap();
        let url = database.url();
        let mut connection = MySqlConnection::connect(&url).await.unwrap();
        let sql = "CREATE TABLE work (name varchar(64) PRIMARY KEY)";
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        self.databases.lock().unwrap().push(database);
        url
    }

    async fn open(&self, address: &str) -> MySql {
        let options: MySqlConnectOptions = address.parse().unwrap();
        MySql::new(MySqlPoolOptions::new().max_connections(5).connect_lazy_with(options))
    }

    async fn write(&self, connection: &mut MySqlConnection, key: &str) -> Result<(), String> {
        words(sqlx::query("INSERT INTO work (name) VALUES (?)").bind(key).execute(connection).await)
    }

    async fn read(&self, connection: &mut MySqlConnection) -> Result<(), String> {
        words(sqlx::query(READ).execute(connection).await)
    }

    /// The server refuses COMMIT, and not XA statements.
    async fn commit_by_itself(&self, connection: &mut MySqlConnection, branch: &BranchId) -> bool {
        let BranchId { cluster, xid } = branch;
        let xid = format!("'{cluster}:{}','{}',1819239275", xid.gtrid, xid.bqual);
        let sql = AssertSqlSafe(format!("XA END {xid}; XA COMMIT {xid} ONE PHASE"));
        sqlx::raw_sql(sql).execute(connection).await.unwrap();
        true
    }

    /// One statement was undone, and XA PREPARE would prepare the others.
    async fn fail_silently(&self, connection: &mut MySqlConnection, key: &str) -> bool {
        self.write(connection, key).await.unwrap_err();
        true
    }

    async fn is_there(&self, _resource: &MySql, address: &str, key: &str) -> bool {
        let mut connection = MySqlConnection::connect(address).await.unwrap();
        let look = sqlx::query_scalar("SELECT count(*) FROM work WHERE name = ?");
        let count: i64 = look.bind(key).fetch_one(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        count == 1
    }
}

/// Files in temporary directories.
#[derive(Default)]
struct OnSqlite {
    directories: Mutex<Vec<TempDir>>,
}

impl Subject for OnSqlite {
    type Resource = Sqlite;

    async fn create(&self) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("work.db").to_str().unwrap().to_owned();
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut connection = options.connect().await.unwrap();
        sqlx::raw_sql(TABLE).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        self.directories.lock().unwrap().push(directory);
        path
    }

    async fn open(&self, address: &str) -> Sqlite {
        let options = SqliteConnectOptions::new().filename(address);
        Sqlite::new(SqlitePoolOptions::new().max_connections(2).connect_lazy_with(options))
    }

    async fn write(&self, connection: &mut SqliteConnection, key: &str) -> Result<(), String> {
        words(sqlx::query(WRITE).bind(key).execute(connection).await)
    }

    async fn read(&self, connection: &mut SqliteConnection) -> Result<(), String> {
        words(sqlx::query(READ).execute(connection).await)
    }

    /// Past the hook that keeps a service from doing so.
    async fn commit_by_itself(&self, connection: &mut SqliteConnection, _branch: &BranchId) -> bool {
        connection.lock_handle().await.unwrap().set_commit_hook(|| true);
        sqlx::raw_sql("COMMIT; BEGIN").execute(connection).await.unwrap();
        true
    }

    /// The whole transaction is gone, and what follows would be another one.
    async fn fail_silently(&self, connection: &mut SqliteConnection, key: &str) -> bool {
        let again = sqlx::query("INSERT OR ROLLBACK INTO work (key) VALUES ($1)").bind(key);
        again.execute(connection).await.unwrap_err();
        true
    }

    async fn is_there(&self, _resource: &Sqlite, address: &str, key: &str) -> bool {
        let mut connection = SqliteConnectOptions::new().filename(address).connect().await.unwrap();
        let count: i64 = sqlx::query_scalar(LOOK).bind(key).fetch_one(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        count == 1
    }

    /// A file has one writer.
    fn branches_at_a_time(&self) -> usize {
        1
    }
}

#[tokio::test]
async fn postgres_keeps_the_contract() {
    contract(OnPostgres::default()).await.assert_kept();
}

#[tokio::test]
async fn mariadb_keeps_the_contract() {
    contract(OnMariaDb::default()).await.assert_kept();
}

#[tokio::test]
async fn sqlite_keeps_the_contract() {
    contract(OnSqlite::default()).await.assert_kept();
}
