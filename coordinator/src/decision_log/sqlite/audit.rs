//! Operators' actions: written in one forced transaction with what they change, and read.

use lockstep_proto::Gtrid;
use sqlx::{SqliteConnection, SqlitePool};

use super::read::{self, Row, error};
use super::transaction::Fault;
use super::{epochs, remember_within};
use crate::decision_log::audit::{AuditQuery, AuditRecord, Effect, Operation};
use crate::decision_log::sqlite::epochs::OwnEpoch;
use crate::decision_log::{ReadError, Recorded, rows};
use crate::protocol::record::EndRecord;

/// Writes an action and its effect. Its number, and the own epoch's row as it is then.
pub(super) async fn operate(
    connection: &mut SqliteConnection,
    operation: &Operation,
    own: &OwnEpoch,
) -> Result<(u64, OwnEpoch), Fault> {
    // A forced batch like any other: a log that was restored to before it is noticed (P8).
    let own = epochs::advance(connection, own).await?;
    let id = record(connection, operation).await?;
    match &operation.effect {
        Effect::None => {}
        Effect::Acknowledge => acknowledge(connection, operation.gtrid, id).await?,
        Effect::Remember(known) => remember_within(connection, known).await?,
    }
    Ok((id, own))
}

/// Writes the record alone. Its number.
pub(super) async fn record(connection: &mut SqliteConnection, operation: &Operation) -> Result<u64, Fault> {
    let id: i64 =
        sqlx::query_scalar("SELECT coalesce(max(id), 0) + 1 FROM audit").fetch_one(&mut *connection).await?;
    let id = id.cast_unsigned();
    sqlx::query("INSERT INTO audit (id, gtrid, record) VALUES (?1, ?2, ?3)")
        .bind(id.cast_signed())
        .bind(operation.gtrid.map(|gtrid| gtrid.to_bytes().to_vec()))
        .bind(rows::encode_operation(id, operation))
        .execute(connection)
        .await?;
    Ok(id)
}

async fn acknowledge(connection: &mut SqliteConnection, gtrid: Option<Gtrid>, id: u64) -> Result<(), Fault> {
    let Some(gtrid) = gtrid else {
        return Err(Fault::Refused("only a transaction's outcome can be acknowledged".to_owned()));
    };
    let done = sqlx::query(
        "INSERT INTO acknowledged (gtrid, audit) \
         SELECT gtrid, ?2 FROM transactions WHERE gtrid = ?1 AND heuristic = 1 ON CONFLICT DO NOTHING",
    )
    .bind(gtrid.to_bytes().to_vec())
    .bind(id.cast_signed())
    .execute(connection)
    .await?;
    match done.rows_affected() {
        1 => Ok(()),
        _none => Err(Fault::Refused(format!(
            "transaction {gtrid} has no heuristic outcome on record that is not acknowledged"
        ))),
    }
}

/// Actions, newest first.
pub(super) async fn audit(readers: &SqlitePool, query: &AuditQuery) -> Result<Vec<AuditRecord>, ReadError> {
    let found: Vec<(i64, Option<Vec<u8>>, Vec<u8>)> = sqlx::query_as(
        "SELECT id, gtrid, record FROM audit WHERE (?1 IS NULL OR gtrid = ?1) AND (?2 = 0 OR id < ?2) \
         ORDER BY id DESC LIMIT ?3",
    )
    .bind(query.of.map(|gtrid| gtrid.to_bytes().to_vec()))
    .bind(rows::column_ms(query.below))
    .bind(query.limit)
    .fetch_all(readers)
    .await
    .map_err(error)?;
    let record = |(id, gtrid, record): (i64, Option<Vec<u8>>, Vec<u8>)| {
        let id = id.cast_unsigned();
        rows::decode_operation(id, gtrid.as_deref(), &record)
            .map(|operation| AuditRecord { id, operation })
            .map_err(|error| ReadError::Damaged(format!("audit record {id}: {error}")))
    };
    found.into_iter().map(record).collect()
}

/// Heuristic outcomes that nobody has acknowledged, newest first.
pub(super) async fn open_heuristics(readers: &SqlitePool, limit: u32) -> Result<Vec<EndRecord>, ReadError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT gtrid, decision, ended_ms, ending FROM transactions \
         WHERE heuristic = 1 AND gtrid NOT IN (SELECT gtrid FROM acknowledged) ORDER BY gtrid DESC LIMIT ?1",
    )
    .bind(limit)
    .fetch_all(readers)
    .await
    .map_err(error)?;
    rows.into_iter().map(read::end).collect()
}

/// Whether this transaction's heuristic outcome was acknowledged.
pub(super) async fn is_acknowledged(readers: &SqlitePool, gtrid: Gtrid) -> Result<bool, ReadError> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM acknowledged WHERE gtrid = ?1)")
        .bind(gtrid.to_bytes().to_vec())
        .fetch_one(readers)
        .await
        .map_err(error)
}

/// Everything on record, in the order of the gtrids, from behind `after`.
pub(super) async fn walk(
    readers: &SqlitePool,
    after: Option<Gtrid>,
    limit: u32,
) -> Result<Vec<(Gtrid, Recorded)>, ReadError> {
    let after = after.map(|gtrid| gtrid.to_bytes().to_vec()).unwrap_or_default();
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT gtrid, decision, ended_ms, ending FROM transactions WHERE gtrid > ?1 ORDER BY gtrid LIMIT ?2",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(readers)
    .await
    .map_err(error)?;
    rows.into_iter().map(Row::recorded).collect()
}
