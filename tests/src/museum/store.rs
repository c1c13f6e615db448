//! A real SQLite database under the contract of every store ([`lockstep::testing`]): what a bug in its evidence would break.

use std::path::PathBuf;

use lockstep::resource::sqlite::Sqlite;
use lockstep::testing::{Rule, Subject, contract_of};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};
use tempfile::TempDir;

/// The first of these rules that a new database does not keep. They are those for which no other process is needed.
pub async fn first_broken(rules: &[Rule]) -> Option<Rule> {
    let report = contract_of(Files::new(), rules).await;
    report.broken().next()
}

/// Databases in a directory of their own.
struct Files {
    dir: TempDir,
    made: std::sync::atomic::AtomicU32,
}

impl Files {
    fn new() -> Self {
        let dir = TempDir::new().expect("a directory for databases");
        Self { dir, made: std::sync::atomic::AtomicU32::new(0) }
    }
}

async fn connect(address: &str) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(address).create_if_missing(true);
    options.connect().await.expect("a database can be opened")
}

fn words<T>(result: sqlx::Result<T>) -> Result<(), String> {
    result.map(drop).map_err(|error| error.to_string())
}

impl Subject for Files {
    type Resource = Sqlite;

    async fn create(&self) -> String {
        let number = self.made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path: PathBuf = self.dir.path().join(format!("{number}.db"));
        let address = path.to_str().expect("a temporary directory has a name in letters").to_owned();
        let mut connection = connect(&address).await;
        let table = sqlx::raw_sql("PRAGMA journal_mode = WAL; CREATE TABLE work (key text PRIMARY KEY)");
        table.execute(&mut connection).await.expect("a table can be made");
        connection.close().await.expect("the connection is closed");
        address
    }

    async fn open(&self, address: &str) -> Sqlite {
        let options = SqliteConnectOptions::new().filename(address);
        Sqlite::new(SqlitePoolOptions::new().max_connections(2).connect_lazy_with(options))
    }

    async fn write(&self, connection: &mut SqliteConnection, key: &str) -> Result<(), String> {
        words(sqlx::query("INSERT INTO work (key) VALUES (?1)").bind(key).execute(connection).await)
    }

    async fn read(&self, connection: &mut SqliteConnection) -> Result<(), String> {
        words(sqlx::query("SELECT count(*) FROM work").execute(connection).await)
    }

    async fn is_there(&self, _resource: &Sqlite, address: &str, key: &str) -> bool {
        let mut connection = connect(address).await;
        let count = sqlx::query_scalar("SELECT count(*) FROM work WHERE key = ?1").bind(key);
        let count: i64 = count.fetch_one(&mut connection).await.expect("the table can be read");
        connection.close().await.expect("the connection is closed");
        count == 1
    }

    /// A file has one writer.
    fn branches_at_a_time(&self) -> usize {
        1
    }
}
