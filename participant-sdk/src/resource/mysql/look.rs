//! What `lockstep doctor` finds in a server, without taking part: nothing is made and nothing is changed.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use sqlx::mysql::{MySqlConnectOptions, MySqlDatabaseError, MySqlRow};
use sqlx::{ConnectOptions as _, MySqlConnection, Row as _, SqlSafeStr as _, SqlStr};

use super::attach::Place;
use super::connection::text;
use super::refusal::{ACCESS_DENIED, NO_SUCH_TABLE, RECOVER_DENIED};
use super::sql::{self, Schema};
use crate::doctor::mysql::server::Server;
use crate::doctor::mysql::{Blocked, Identity, Prepared, Snapshot, judge};
use crate::doctor::{Disk, Finding, Severity};
use crate::resource::{BranchId, wall_clock};

/// How long the server may work for one question, and wait for a lock: none of them needs one that others hold for long.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Looks. The error says what stood in the way, without the URL.
pub(crate) async fn look(options: MySqlConnectOptions) -> Result<Snapshot, String> {
    let is_here = matches!(options.get_host(), "localhost" | "127.0.0.1" | "::1");
    let mut connection = options.connect().await.map_err(|error| error.to_string())?;
    let snapshot = read(&mut connection, is_here).await;
    // Nothing depends on an orderly end.
    drop(sqlx::Connection::close(connection).await);
    snapshot.map_err(|error| format!("a question was not answered: {error}"))
}

async fn read(connection: &mut MySqlConnection, is_here: bool) -> sqlx::Result<Snapshot> {
    let set_up = sql::set_up_own_connection(QUESTION_TIMEOUT, QUESTION_TIMEOUT);
    sqlx::raw_sql(set_up).execute(&mut *connection).await?;
    let rows = ask(connection, sql::SETTINGS.into_sql_str()).await?;
    let shown = rows.iter().map(|row| Ok((text(row, "Variable_name")?, text(row, "Value")?)));
    let settings = shown.collect::<sqlx::Result<BTreeMap<_, _>>>()?;
    let data = settings.get("datadir").cloned().unwrap_or_default();
    let is_mariadb = settings.get("version").is_some_and(|version| version.contains("MariaDB"));
    let rows = ask(connection, sql::PLACE.into_sql_str()).await?;
    let place = rows.first().map(Place::of).transpose()?.flatten().ok_or(sqlx::Error::RowNotFound)?;
    let (tables, can_read) = tables(connection, &place).await?;
    let identities = if can_read { Some(identities(connection, &place.schema).await?) } else { None };
    let names = ask(connection, sql::OTHER_ENGINES.into_sql_str()).await?;
    let asked = unix_ms();
    let clock: i64 = the_number(&ask(connection, sql::CLOCK.into_sql_str()).await?, "now")?;
    let answered = unix_ms();
    Ok(Snapshot {
        tables,
        identities,
        other_engines: names.iter().map(|row| text(row, "name")).collect::<sqlx::Result<_>>()?,
        prepared: prepared(connection, &place).await?,
        blocked: blocked(connection, is_mariadb).await?,
        clock: (clock - asked.midpoint(answered), (answered - asked) / 2),
        // A port of this machine may be forwarded to another one: what is no data directory here is not looked at.
        disk: (is_here && Path::new(&data).join("ibdata1").exists())
            .then(|| Disk::of(Path::new(&data)))
            .flatten(),
        server: Server::of(settings),
        user: place.user,
    })
}

/// What attaching would find, and whether the identities can be read.
async fn tables(connection: &mut MySqlConnection, place: &Place) -> sqlx::Result<(Vec<Finding>, bool)> {
    // Nothing of it changes anything.
    let refused = match ask(connection, place.schema.try_tables()).await {
        Ok(_) => {
            let rows = ask(connection, Schema::engines().into_sql_str()).await?;
            let engines = rows.iter().map(|row| text(row, "engine")).collect::<sqlx::Result<Vec<_>>>()?;
            return Ok((vec![judge::engines(&engines)], true));
        }
        Err(error) => number(&error).ok_or(error)?,
    };
    if refused == NO_SUCH_TABLE {
        let what = "the tables lockstep_evidence, lockstep_identity and lockstep_positions are not all there yet: the next attach makes those \
                    that are missing";
        return Ok((vec![Finding::new("tables", Severity::Note, what)], false));
    }
    Ok((vec![place.tables_forbidden("may not use the tables of Lockstep")], false))
}

async fn identities(connection: &mut MySqlConnection, schema: &Schema) -> sqlx::Result<Vec<Identity>> {
    let identity = |row: &MySqlRow| {
        Ok(Identity {
            name: text(row, "resource_manager")?,
            format: row.try_get("format")?,
            identity: text(row, "identity")?,
            cluster: text(row, "cluster")?,
        })
    };
    ask(connection, schema.identities()).await?.iter().map(identity).collect()
}

async fn prepared(
    connection: &mut MySqlConnection,
    place: &Place,
) -> sqlx::Result<Result<Prepared, Finding>> {
    let rows = match ask(connection, sql::RECOVER.into_sql_str()).await {
        Ok(rows) => rows,
        Err(error) if number(&error).is_some_and(|number| number == RECOVER_DENIED || is_denied(number)) => {
            return Ok(Err(judge::recover_denied(&place.user, "XA RECOVER is refused")));
        }
        Err(error) => return Err(error),
    };
    let now = u64::try_from(unix_ms()).unwrap_or_default();
    let mut found = Prepared::default();
    for row in &rows {
        let data: &[u8] = row.try_get_unchecked("data")?;
        let name = sql::branch_of(row.try_get("formatID")?, row.try_get("gtrid_length")?, data);
        match name.and_then(|name| name.parse::<BranchId>().ok()) {
            Some(branch) => {
                let age = Duration::from_millis(now.saturating_sub(branch.xid.gtrid.unix_ms()));
                found.branches.push((branch, age));
            }
            None => found.foreign += 1,
        }
    }
    Ok(Ok(found))
}

async fn blocked(connection: &mut MySqlConnection, is_mariadb: bool) -> sqlx::Result<Option<Vec<Blocked>>> {
    let question = if is_mariadb { sql::BLOCKED_IN_MARIADB } else { sql::BLOCKED_IN_MYSQL };
    let rows = match ask(connection, question.into_sql_str()).await {
        Ok(rows) => rows,
        Err(error) if number(&error).is_some_and(is_denied) => return Ok(None),
        Err(error) => return Err(error),
    };
    let blocked = |row: &MySqlRow| {
        let seconds: Option<i64> = row.try_get("seconds")?;
        Ok(Blocked {
            session: row.try_get("session")?,
            object: text(row, "object")?,
            since: Duration::from_secs(seconds.unwrap_or_default().try_into().unwrap_or_default()),
        })
    };
    rows.iter().map(blocked).collect::<sqlx::Result<Vec<_>>>().map(Some)
}

async fn ask(connection: &mut MySqlConnection, sql: SqlStr) -> sqlx::Result<Vec<MySqlRow>> {
    sqlx::raw_sql(sql).fetch_all(connection).await
}

fn the_number(rows: &[MySqlRow], column: &str) -> sqlx::Result<i64> {
    rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(column)
}

fn is_denied(number: u16) -> bool {
    ACCESS_DENIED.contains(&number)
}

fn number(error: &sqlx::Error) -> Option<u16> {
    error.as_database_error()?.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number)
}

fn unix_ms() -> i64 {
    let since = wall_clock().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
