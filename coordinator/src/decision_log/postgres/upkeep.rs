//! Upkeep: removing what ended long ago, the horizon that remembers that something was removed (P7), and resource managers.
//!
//! Pruning is one transaction: it holds the own epoch's row, so that a node whose epoch was sealed prunes nothing, and the horizon's, so
//! that nodes prune one after the other; it takes the floors of every resource manager and every other node; deletes; and
//! raises the horizon.

use lockstep_proto::{Gtrid, ResourceManagerName};
use sqlx::{PgConnection, PgExecutor};

use super::connect::{Failure, answer, run};
use super::epochs::{self, Own};
use super::read::{self, PATIENCE, Row};
use super::writer::execute;
use crate::decision_log::pruning::{first_kept_ms, first_key_at};
use crate::decision_log::restore::{BEHIND, encode_behind};
use crate::decision_log::{AppendError, KnownResourceManager, PruneLimits, ReadError, rows};

/// A transaction of the log's own upkeep that was not done. The connection is of no use any more.
#[derive(Debug)]
pub(super) struct Undone(String);

impl Undone {
    /// Because of this.
    pub(super) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl From<Failure> for Undone {
    fn from(failure: Failure) -> Self {
        Self(failure.to_string())
    }
}

impl From<ReadError> for Undone {
    fn from(error: ReadError) -> Self {
        Self(error.to_string())
    }
}

impl From<Undone> for AppendError {
    fn from(undone: Undone) -> Self {
        Self::Refused(undone.0)
    }
}

/// Opens a transaction under the own epoch.
pub(super) async fn begin(connection: &mut PgConnection, own: &Own) -> Result<(), Undone> {
    run(connection, PATIENCE, "BEGIN").await?;
    if epochs::hold(connection, own).await? {
        return Ok(());
    }
    Err(Undone("the epoch was sealed, or a write is being looked for".to_owned()))
}

/// Prunes. How many rows went.
pub(super) async fn prune(
    connection: &mut PgConnection,
    own: &Own,
    limits: &PruneLimits,
) -> Result<u64, Undone> {
    // The horizon stays below what this node was before: one that starts meanwhile begins nothing below it.
    epochs::publish_floor(&mut *connection, own, limits.below.unix_ms()).await?;
    begin(connection, own).await?;
    // Rows and horizon come back together after a crash, or stay away together.
    run(connection, PATIENCE, "SET LOCAL synchronous_commit = off").await?;
    let horizon = sqlx::query_scalar("SELECT record FROM lockstep_log.marks WHERE name = $1 FOR UPDATE")
        .bind(rows::HORIZON);
    let horizon: Vec<Vec<u8>> = answer(PATIENCE, horizon.fetch_all(&mut *connection)).await?;
    let horizon = read::horizon(horizon.into_iter().next())?;
    let candidates = candidates(connection, own, limits).await?;
    let newest_ms = candidates.iter().map(Gtrid::unix_ms).max();
    let pruned = candidates.len() as u64;
    if let Some(newest_ms) = newest_ms {
        let keys: Vec<Vec<u8>> = candidates.iter().map(|gtrid| gtrid.to_bytes().to_vec()).collect();
        // That it was acknowledged stays in the audit.
        for table in [
            "DELETE FROM lockstep_log.acknowledged WHERE gtrid = ANY ($1)",
            "DELETE FROM lockstep_log.transactions WHERE gtrid = ANY ($1)",
        ] {
            execute(connection, PATIENCE, sqlx::query(table).bind(keys.clone())).await?;
        }
        let raise = sqlx::query("UPDATE lockstep_log.marks SET record = $2 WHERE name = $1")
            .bind(rows::HORIZON)
            .bind(rows::encode_horizon(horizon.max(newest_ms)));
        execute(connection, PATIENCE, raise).await?;
    }
    fail::fail_point!("log-shared-prune-before-commit");
    run(connection, PATIENCE, "COMMIT").await?;
    Ok(pruned)
}

/// Ended transactions that may go, oldest first. Each record is checked before it is given up: a damaged time must not pass for an
/// old one.
async fn candidates(
    connection: &mut PgConnection,
    own: &Own,
    limits: &PruneLimits,
) -> Result<Vec<Gtrid>, Undone> {
    let known = read::resource_managers(&mut *connection).await?;
    let Some(end_ms) = first_kept_ms(limits, &known) else { return Ok(Vec::new()) };
    let others = read::floor_of_others(&mut *connection, own.epoch).await?;
    let end_ms = others.map_or(end_ms, |floor| floor.min(end_ms));
    // A transaction that begins after the time asked for ended after it too, so that the walk stops there.
    let statement = sqlx::query_as(
        "SELECT gtrid, decision, ended_ms, ending FROM lockstep_log.transactions \
         WHERE gtrid < $1 AND ended_ms < $2 \
             AND (NOT heuristic OR gtrid IN (SELECT gtrid FROM lockstep_log.acknowledged)) ORDER BY gtrid LIMIT $3 FOR UPDATE",
    )
    .bind(first_key_at(end_ms))
    .bind(rows::column_ms(limits.ended_before_ms))
    .bind(i64::from(limits.limit));
    let found: Vec<Row> = answer(PATIENCE, statement.fetch_all(connection)).await?;
    found.into_iter().map(|row| Ok(row.recorded()?.0)).collect()
}

/// Notes that the log lacks what somebody has seen. Whoever says so need not hold an epoch: it is true for all of them.
pub(super) async fn note_behind(executor: impl PgExecutor<'_>) -> Result<(), Failure> {
    let note = sqlx::query(
        "INSERT INTO lockstep_log.marks (name, record) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
    )
    .bind(BEHIND)
    .bind(encode_behind());
    answer(PATIENCE, note.execute(executor)).await.map(drop)
}

/// The same by a node that has found it out by itself. Said in the log before its life ends, so that the next one, and every other node,
/// presumes nothing; if that fails, the participants will tell.
pub(super) async fn leave_word(executor: impl PgExecutor<'_>) {
    if let Err(error) = note_behind(executor).await {
        tracing::error!(%error, "that the decision log has lost something could not be noted in it");
    }
}

/// Writes what is new of a resource manager. Its identity is fixed, and the highest timeline stays.
pub(super) async fn remember(
    connection: &mut PgConnection,
    own: &Own,
    known: &KnownResourceManager,
) -> Result<(), Undone> {
    begin(connection, own).await?;
    remember_within(connection, known).await?;
    fail::fail_point!("log-shared-remember-before-commit");
    run(connection, PATIENCE, "COMMIT").await?;
    Ok(())
}

/// The log's own record with another floor.
pub(super) async fn remember_floor(
    connection: &mut PgConnection,
    own: &Own,
    name: &ResourceManagerName,
    floor: Gtrid,
) -> Result<(), Undone> {
    begin(connection, own).await?;
    let Some(known) = hold(connection, name).await? else {
        return Err(Undone(format!("{name} is not known")));
    };
    remember_within(connection, &KnownResourceManager { floor: Some(floor), ..known }).await?;
    run(connection, PATIENCE, "COMMIT").await?;
    Ok(())
}

/// A resource manager as the log has it, which nobody changes before this transaction ends.
async fn hold(
    connection: &mut PgConnection,
    name: &ResourceManagerName,
) -> Result<Option<KnownResourceManager>, Undone> {
    let before =
        sqlx::query_scalar("SELECT record FROM lockstep_log.resource_managers WHERE name = $1 FOR UPDATE")
            .bind(name.as_str());
    let before: Vec<Vec<u8>> = answer(PATIENCE, before.fetch_all(&mut *connection)).await?;
    let before = before.first().map(|record| rows::decode_resource_manager(name.as_str(), record));
    Ok(before.transpose().map_err(|error| read::damaged(format_args!("{name}"), error))?)
}

/// The same in a transaction that is open already.
pub(super) async fn remember_within(
    connection: &mut PgConnection,
    known: &KnownResourceManager,
) -> Result<(), Undone> {
    let before = hold(connection, &known.name).await?;
    let mut now = known.clone();
    if let Some(before) = &before {
        if before.identity != now.identity {
            let name = &now.name;
            return Err(Undone(format!("{name} is known under another identity ({})", before.identity)));
        }
        now.timeline = now.timeline.max(before.timeline);
        now.retired |= before.retired;
    }
    if before.as_ref() != Some(&now) {
        // Where two nodes meet a new one at once, the second finds a duplicate key, and its participant asks again.
        let write = match before {
            Some(_) => sqlx::query("UPDATE lockstep_log.resource_managers SET record = $2 WHERE name = $1"),
            None => sqlx::query("INSERT INTO lockstep_log.resource_managers (name, record) VALUES ($1, $2)"),
        };
        let write = write.bind(now.name.as_str()).bind(rows::encode_resource_manager(&now));
        execute(connection, PATIENCE, write).await?;
    }
    Ok(())
}
