//! Books in a database of a MariaDB server. XA branches are of the whole server, so a server has the books of one cell at a time.

use std::time::Duration;

use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::{AssertSqlSafe, Connection as _, Row as _};

use super::super::clock::now;
use super::super::{Failed, Result};

/// As for the other databases; a text that is a key has a length, and no constraint waits for the end.
const SCHEMA: &str = "CREATE TABLE accounts (number BIGINT PRIMARY KEY, balance BIGINT NOT NULL); \
     CREATE TABLE transfers (transfer VARCHAR(100) PRIMARY KEY, account BIGINT NOT NULL, amount BIGINT NOT NULL); \
     CREATE TABLE foreign_work (name VARCHAR(100)); \
     INSERT INTO accounts (number, balance) VALUES (0, 1000), (1, 1000), (2, 1000), (3, 1000)";

/// The format id of Lockstep, and one of nobody in particular.
const FORMATS: [u32; 2] = [0x6c6f_636b, 7];
/// How long a server may take to notice that whoever prepared a branch is gone; nobody else can finish it before.
const TO_NOTICE: Duration = Duration::from_secs(10);

/// A prepared branch: its format id, its gtrid, its bqual.
type Xid = (u32, String, String);

pub(super) async fn make(url: &str) -> Result<()> {
    execute(url, SCHEMA).await
}

pub(super) async fn execute(url: &str, sql: &str) -> Result<()> {
    let mut connection = connect(url).await?;
    run(&mut connection, sql).await?;
    connection.close().await.map_err(Failed::because(url))
}

/// Rows of a text and a number.
pub(super) async fn pairs(url: &str, sql: &str) -> Result<Vec<(String, i64)>> {
    let cannot = || Failed::because(format!("{url}: {sql}"));
    let mut connection = connect(url).await?;
    let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut connection).await.map_err(cannot())?;
    let pair = |row: &MySqlRow| Ok((row.try_get_unchecked(0)?, row.try_get_unchecked(1)?));
    rows.iter().map(pair).collect::<sqlx::Result<_>>().map_err(cannot())
}

/// Prepares these.
pub(super) async fn plant(url: &str, foreign: &[Xid]) -> Result<()> {
    for xid in foreign {
        let name = text(xid);
        let work = format!(
            "XA START {name}; INSERT INTO foreign_work VALUES ('planted'); XA END {name}; XA PREPARE {name}"
        );
        execute(url, &work).await?;
    }
    Ok(())
}

/// What is nobody's business of the bank of this name in this database.
pub(super) fn foreign(bank: &str, database: &str) -> Vec<Xid> {
    let [ours, theirs] = FORMATS;
    // The number of a database, behind its last `_`, tells those of a run apart.
    let number: u64 = database.rsplit('_').next().and_then(|digits| digits.parse().ok()).unwrap_or_default();
    vec![
        (theirs, format!("somebody-elses:{database}"), "b".to_owned()),
        (ours, "00000000:1.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f".to_owned(), format!("{bank}.{number:016x}")),
    ]
}

/// All that is prepared in the server.
pub(super) async fn prepared(url: &str) -> Result<Vec<Xid>> {
    let cannot = || Failed::because(format!("{url}: XA RECOVER"));
    let mut connection = connect(url).await?;
    let rows = sqlx::raw_sql("XA RECOVER").fetch_all(&mut connection).await.map_err(cannot())?;
    rows.iter().map(|row| xid(row).map_err(cannot())).collect()
}

fn xid(row: &MySqlRow) -> sqlx::Result<Xid> {
    let format: i64 = row.try_get("formatID")?;
    let length: i64 = row.try_get("gtrid_length")?;
    let data: &[u8] = row.try_get_unchecked("data")?;
    let (gtrid, bqual) = data.split_at(usize::try_from(length).unwrap_or_default().min(data.len()));
    let [gtrid, bqual] = [gtrid, bqual].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    Ok((u32::try_from(format).unwrap_or_default(), gtrid, bqual))
}

pub(super) fn text((format, gtrid, bqual): &Xid) -> String {
    format!("'{gtrid}','{bqual}',{format}")
}

/// Rolls back all that is prepared, and removes the database.
pub(super) async fn remove(url: &str, database: &str) -> Result<()> {
    let mut connection = connect(url).await?;
    let begun = now();
    for xid in prepared(url).await? {
        let sql = format!("XA ROLLBACK {}", text(&xid));
        while let Err(error) = run(&mut connection, &sql).await {
            if begun.elapsed() > TO_NOTICE {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    run(&mut connection, &format!("DROP DATABASE `{database}`")).await
}

async fn run(connection: &mut MySqlConnection, sql: &str) -> Result<()> {
    let ran = sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await;
    ran.map(drop).map_err(Failed::because(sql))
}

async fn connect(url: &str) -> Result<MySqlConnection> {
    MySqlConnection::connect(url).await.map_err(Failed::because(format!("no connection to {url}")))
}
