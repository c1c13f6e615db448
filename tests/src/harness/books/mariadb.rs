//! Books in a database of a MariaDB server. Branches there are the whole server's, so whose they are follows from their names.

use std::time::Duration;

use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::{AssertSqlSafe, Connection as _, Row as _};

use super::OPENING_BALANCE;
use crate::harness::clock::now;
use crate::harness::{Failed, Result};

/// How long sessions of dead banks may last.
const PATIENCE: Duration = Duration::from_secs(20);
const GLANCE: Duration = Duration::from_millis(10);

/// What the SDK gives to its branches as their format.
const FORMAT: i64 = 1_819_239_275;

/// A row without its `reasons` is refused at once: what a bank that swallows this error has in its branch can't be prepared.
const SCHEMA: &[&str] = &[
    "CREATE TABLE accounts (number BIGINT PRIMARY KEY, balance BIGINT NOT NULL)",
    "CREATE TABLE transfers (transfer VARCHAR(64) PRIMARY KEY, account BIGINT NOT NULL, amount BIGINT NOT NULL)",
    "CREATE TABLE reasons (number BIGINT PRIMARY KEY)",
    "CREATE TABLE refusals (reason BIGINT NOT NULL, FOREIGN KEY (reason) REFERENCES reasons (number))",
    "CREATE TABLE foreign_work (name VARCHAR(200))",
];

/// Sets the books up in an empty database.
pub(super) async fn set_up(url: &str) -> Result<()> {
    let mut connection = connect(url).await?;
    for statement in SCHEMA {
        execute(&mut connection, statement).await?;
    }
    for number in 0..super::ACCOUNTS {
        let sql = format!("INSERT INTO accounts (number, balance) VALUES ({number}, {OPENING_BALANCE})");
        execute(&mut connection, &sql).await?;
    }
    Ok(())
}

/// The branches of ours that are prepared for `bank`, by the cluster that its database belongs to. A name is what XA statements
/// take.
pub(super) async fn prepared(url: &str, bank: &str) -> Result<Vec<String>> {
    let mut connection = connect(url).await?;
    let unreadable = || Failed::because(format!("{url}: the cluster of {bank}"));
    // Without the table it has never attached.
    let tables = "SELECT count(*) FROM information_schema.tables \
                  WHERE table_schema = DATABASE() AND table_name = 'lockstep_identity'";
    if number(&mut connection, tables).await? == 0 {
        return Ok(Vec::new());
    }
    let cluster = "SELECT cluster FROM lockstep_identity WHERE cluster IS NOT NULL";
    let cluster: Option<String> =
        sqlx::query_scalar(cluster).fetch_optional(&mut connection).await.map_err(unreadable())?;
    let Some(cluster) = cluster else { return Ok(Vec::new()) };
    let ours = format!("'{cluster}:");
    let (bank, format) = (format!("','{bank}."), format!("',{FORMAT}"));
    let is_ours = |name: &String| name.starts_with(&ours) && name.contains(&bank) && name.ends_with(&format);
    Ok(all_prepared(&mut connection).await?.into_iter().filter(is_ours).collect())
}

/// Prepares these names.
pub(super) async fn plant(url: &str, names: &[String]) -> Result<()> {
    for name in names {
        let quoted = name.replace('\'', "''");
        let work = format!("INSERT INTO foreign_work VALUES ('{quoted}')");
        run(url, &format!("XA START {name}; {work}; XA END {name}; XA PREPARE {name}")).await?;
    }
    Ok(())
}

/// Those of these names that are not prepared.
pub(super) async fn missing(url: &str, names: Vec<String>) -> Result<Vec<String>> {
    let all = all_prepared(&mut connect(url).await?).await?;
    Ok(names.into_iter().filter(|name| !all.contains(name)).collect())
}

/// Runs statements, and ends the session: nobody else can do anything with what it has prepared before that.
pub(super) async fn run(url: &str, sql: &str) -> Result<()> {
    let mut connection = connect(url).await?;
    execute(&mut connection, sql).await?;
    connection.close().await.map_err(Failed::because("the session does not end"))
}

/// Removes the database, and rolls back the branches that would keep it: what was planted, and ours.
pub(super) async fn remove(url: &str, bank: &str) -> Result<()> {
    let mut connection = connect(url).await?;
    // A bank that was killed may have sent XA PREPARE, and the server is not there yet.
    let sessions = "SELECT count(*) FROM information_schema.processlist \
                    WHERE db = DATABASE() AND id <> CONNECTION_ID()";
    let deadline = now() + PATIENCE;
    while number(&mut connection, sessions).await? > 0 && now() < deadline {
        tokio::time::sleep(GLANCE).await;
    }
    for name in foreign_names(url, bank).into_iter().chain(prepared(url, bank).await?) {
        execute(&mut connection, &format!("XA ROLLBACK {name}")).await?;
    }
    let database = database(url);
    execute(&mut connection, &format!("DROP DATABASE `{database}`")).await
}

/// What is planted: a branch of another product, and one of another cluster of Lockstep for a resource manager of this name.
/// Names are of the whole server, so each database has its own.
pub(super) fn foreign_names(url: &str, bank: &str) -> Vec<String> {
    let database = database(url);
    // The number of a database, behind its last `_`, tells the two of a cell and all of a run apart.
    let number: u64 = database.rsplit('_').next().and_then(|digits| digits.parse().ok()).unwrap_or_default();
    vec![
        format!("'somebody-elses','{database}',1"),
        format!("'00000000:1.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f','{bank}.{number:016x}',{FORMAT}"),
    ]
}

/// Rows of a text and a number. `sql` as for the other databases.
pub(super) async fn pairs(url: &str, sql: &str) -> Result<Vec<(String, i64)>> {
    let sql = sql.replace("AS TEXT)", "AS CHAR)").replace("AS BIGINT)", "AS SIGNED)");
    let cannot = || Failed::because(format!("{url}: {sql}"));
    let mut connection = connect(url).await?;
    let rows = sqlx::query(AssertSqlSafe(sql.clone())).fetch_all(&mut connection).await.map_err(cannot())?;
    let pair = |row: &MySqlRow| Ok((row.try_get(0)?, row.try_get(1)?));
    rows.iter().map(pair).collect::<sqlx::Result<_>>().map_err(cannot())
}

async fn number(connection: &mut MySqlConnection, sql: &'static str) -> Result<i64> {
    sqlx::query_scalar(sql).fetch_one(connection).await.map_err(Failed::because(sql))
}

async fn all_prepared(connection: &mut MySqlConnection) -> Result<Vec<String>> {
    let cannot = || Failed::because("prepared branches can't be listed");
    let rows = sqlx::raw_sql("XA RECOVER").fetch_all(connection).await.map_err(cannot())?;
    let name = |row: &MySqlRow| -> sqlx::Result<String> {
        let data: &[u8] = row.try_get_unchecked("data")?;
        let length: i64 = row.try_get("gtrid_length")?;
        let format: i64 = row.try_get("formatID")?;
        let (gtrid, bqual) = data.split_at(usize::try_from(length).unwrap_or(0));
        let (gtrid, bqual) = (String::from_utf8_lossy(gtrid), String::from_utf8_lossy(bqual));
        Ok(format!("'{gtrid}','{bqual}',{format}"))
    };
    rows.iter().map(name).collect::<sqlx::Result<_>>().map_err(cannot())
}

fn database(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or_default()
}

async fn connect(url: &str) -> Result<MySqlConnection> {
    MySqlConnection::connect(url).await.map_err(Failed::because(format!("no connection to {url}")))
}

async fn execute(connection: &mut MySqlConnection, sql: &str) -> Result<()> {
    let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await;
    done.map(drop).map_err(Failed::because(sql))
}
