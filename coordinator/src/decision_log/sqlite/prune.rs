//! Removing what ended long ago, and the horizon that remembers that something was removed.
//!
//! Candidates are looked for beside the writer, in a snapshot of their own: the search walks over rows that may not go
//! yet, and forces must not wait for it. What it found is deleted by key, in a short transaction that takes the limits
//! again, since a resource manager may have attached meanwhile, and raises the horizon (P7).

use lockstep_proto::Gtrid;
use lockstep_proto::museum::mutated;
use sqlx::{SqliteConnection, SqlitePool};

use super::epochs;
use super::hex::{Hex, json};
use super::read::{self, Row};
use super::transaction::Fault;
use crate::decision_log::pruning::{first_kept_ms, first_key_at};
use crate::decision_log::rows;
use crate::decision_log::{PruneLimits, ReadError};

/// Ended transactions that the limits let go, oldest first. Each record is checked before it is given up: a damaged time
/// must not pass for an old one.
pub(super) async fn candidates(readers: &SqlitePool, limits: &PruneLimits) -> Result<Vec<Gtrid>, ReadError> {
    let known = read::resource_managers(readers).await?;
    let Some(end_ms) = first_kept_ms(limits, &known) else {
        return Ok(Vec::new());
    };
    // A transaction that begins after the time asked for ended after it too, so that the walk stops there.
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT gtrid, decision, ended_ms, ending FROM transactions \
         WHERE gtrid < ?1 AND ended_ms < ?2 \
             AND (heuristic IS NULL OR gtrid IN (SELECT gtrid FROM acknowledged)) ORDER BY gtrid LIMIT ?3",
    )
    .bind(first_key_at(end_ms))
    .bind(rows::column_ms(limits.ended_before_ms))
    .bind(limits.limit)
    .fetch_all(readers)
    .await
    .map_err(read::error)?;
    rows.into_iter().map(|row| Ok(row.recorded()?.0)).collect()
}

/// Deletes those of the candidates that may still go, and raises the horizon above them. How many went.
pub(super) async fn delete(
    connection: &mut SqliteConnection,
    candidates: &[Gtrid],
    limits: &PruneLimits,
) -> Result<u64, Fault> {
    let known = read::resource_managers(&mut *connection).await?;
    let Some(end_ms) = first_kept_ms(limits, &known) else {
        return Ok(0);
    };
    let gone: Vec<&Gtrid> = candidates.iter().filter(|gtrid| gtrid.unix_ms() < end_ms).collect();
    let Some(newest_ms) = gone.iter().map(|gtrid| gtrid.unix_ms()).max() else {
        return Ok(0);
    };
    let keys = json(gone.iter().map(|gtrid| Hex::of(gtrid.to_bytes())));
    let done = sqlx::query(
        "DELETE FROM transactions WHERE ended_ms IS NOT NULL \
         AND gtrid IN (SELECT unhex(value) FROM json_each(?1))",
    )
    .bind(&keys)
    .execute(&mut *connection)
    .await?;
    // That it was acknowledged stays in the audit.
    sqlx::query("DELETE FROM acknowledged WHERE gtrid IN (SELECT unhex(value) FROM json_each(?1))")
        .bind(&keys)
        .execute(&mut *connection)
        .await?;
    if mutated("P7-the-horizon-stays-behind") {
        return Ok(done.rows_affected());
    }
    let horizon = epochs::mark(connection, rows::HORIZON).await?;
    let horizon = read::horizon(horizon)?;
    sqlx::query("UPDATE marks SET record = ?2 WHERE name = ?1")
        .bind(rows::HORIZON)
        .bind(rows::encode_horizon(horizon.max(newest_ms)))
        .execute(connection)
        .await?;
    Ok(done.rows_affected())
}
