//! What the server of a shared log writes ahead for a commit, by kind of record: images of whole pages are left out, because how many there
//! are depends on when the last checkpoint was.

use std::time::Duration;

use lockstep_tests::harness::postgres::PostgresServer;
use lockstep_tests::harness::roles::Roles;
use lockstep_tests::harness::{Failed, Result};
use serde::Serialize;

use crate::alone::Alone;
use crate::meter::count;

/// The database of the log.
const LOG: &str = "log";
/// A kind with fewer bytes for each commit is counted with the others like it.
const LEAST_BYTES: f64 = 1.0;

/// One kind of record.
#[derive(Debug, Clone, Serialize)]
pub struct Records {
    /// As the server names it.
    pub kind: String,
    /// For each commit.
    pub number: f64,
    /// For each commit.
    pub bytes: f64,
}

/// Measures commits of two branches, of 64 clients. Most bytes first.
///
/// # Errors
/// If something does not run.
pub fn of_commits(roles: &Roles, measure: Duration) -> Result<Vec<Records>> {
    let server = PostgresServer::start_with(&[])?;
    server.create_database(LOG)?;
    // Since PostgreSQL 15.
    server.psql(LOG, "CREATE EXTENSION pg_walinspect")?;
    let alone = Alone::set_with(roles, &[&format!("--log={}", server.url(LOG)), "--migrate-log"])?;
    let place = || server.psql(LOG, "SELECT pg_current_wal_flush_lsn()");
    let before = place()?;
    let all = alone.run(64, 2, 0, measure)?.seen.all;
    let written = format!(
        "SELECT \"resource_manager/record_type\", count, record_size FROM pg_get_wal_stats('{before}', '{}', true) \
         WHERE count > 0 ORDER BY record_size DESC",
        place()?
    );
    let mut kinds = Vec::new();
    let mut others = Records { kind: "others".to_owned(), number: 0.0, bytes: 0.0 };
    for line in server.psql(LOG, &written)?.lines() {
        let records = records(line, count(all))?;
        if records.bytes >= LEAST_BYTES {
            kinds.push(records);
        } else {
            others.number += records.number;
            others.bytes += records.bytes;
        }
    }
    kinds.push(others);
    Ok(kinds)
}

/// A line of three fields.
fn records(line: &str, commits: f64) -> Result<Records> {
    let mut fields = line.split('|');
    let kind = fields.next().unwrap_or_default();
    let mut each = || {
        let all = fields.next().unwrap_or_default().parse::<f64>();
        all.map(|all| all / commits).map_err(Failed::because("the write-ahead log"))
    };
    Ok(Records { kind: kind.to_owned(), number: each()?, bytes: each()? })
}
