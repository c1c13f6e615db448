//! Operators' actions: written in one transaction with what they change, and read.

use lockstep_proto::Gtrid;
use sqlx::{PgConnection, PgPool};

use super::connect::{Failure, answer, run};
use super::epochs::Own;
use super::read::{PATIENCE, Row, damaged, end};
use super::upkeep::{Undone, begin, remember_within};
use super::writer::execute;
use crate::decision_log::audit::{AuditQuery, AuditRecord, Effect, Operation};
use crate::decision_log::{AppendError, ReadError, Recorded, rows};
use crate::protocol::record::EndRecord;

/// Writes an action and its effect. Its number, and the epoch's newest forced batch. The connection is of no use after an error.
pub(super) async fn operate(
    connection: &mut PgConnection,
    own: &Own,
    operation: &Operation,
) -> Result<(u64, u64), AppendError> {
    let (id, sequence) = write(connection, own, operation).await?;
    fail::fail_point!("log-shared-operate-before-commit");
    let committed = run(connection, PATIENCE, "COMMIT").await;
    fail::fail_point!("log-shared-operate-after-commit");
    match committed {
        Ok(_done) => Ok((id, sequence)),
        Err(failure @ Failure::Refused { .. }) => Err(failure.into()),
        Err(Failure::Lost(why)) => {
            Err(AppendError::Unknown(format!("{why}; `lockstep audit ls` says whether it is on record")))
        }
    }
}

async fn write(
    connection: &mut PgConnection,
    own: &Own,
    operation: &Operation,
) -> Result<(u64, u64), Undone> {
    begin(connection, own).await?;
    let id = record(connection, operation).await?;
    match &operation.effect {
        Effect::None => {}
        Effect::Acknowledge => acknowledge(connection, operation.gtrid, id).await?,
        Effect::Remember(known) => remember_within(connection, known).await?,
    }
    // A forced batch like any other: a log that was restored to before it is noticed (P8).
    let count = sqlx::query_scalar(
        "UPDATE lockstep_log.positions SET sequence = sequence + 1 WHERE epoch = $1 RETURNING sequence",
    )
    .bind(i64::from(own.epoch.get()));
    let sequence: Vec<i64> = answer(PATIENCE, count.fetch_all(connection)).await?;
    let sequence = sequence.first().ok_or_else(|| Undone::new("the epoch has no position"))?;
    Ok((id.cast_unsigned(), sequence.cast_unsigned()))
}

/// Writes the record alone, in a transaction that is under way. Its number.
pub(super) async fn record(connection: &mut PgConnection, operation: &Operation) -> Result<i64, Failure> {
    // One after the other, whichever node they are taken at: the numbers have no gaps.
    run(connection, PATIENCE, "LOCK TABLE lockstep_log.audit IN SHARE ROW EXCLUSIVE MODE").await?;
    let next = sqlx::query_scalar("SELECT coalesce(max(id), 0) + 1 FROM lockstep_log.audit");
    let next: Vec<i64> = answer(PATIENCE, next.fetch_all(&mut *connection)).await?;
    let id = next[0];
    let insert = sqlx::query("INSERT INTO lockstep_log.audit (id, gtrid, record) VALUES ($1, $2, $3)")
        .bind(id)
        .bind(operation.gtrid.map(|gtrid| gtrid.to_bytes().to_vec()))
        .bind(rows::encode_operation(id.cast_unsigned(), operation));
    answer(PATIENCE, insert.execute(connection)).await?;
    Ok(id)
}

async fn acknowledge(connection: &mut PgConnection, gtrid: Option<Gtrid>, id: i64) -> Result<(), Undone> {
    let gtrid = gtrid.ok_or_else(|| Undone::new("only a transaction's outcome can be acknowledged"))?;
    let note = sqlx::query(
        "INSERT INTO lockstep_log.acknowledged (gtrid, audit) \
         SELECT gtrid, $2 FROM lockstep_log.transactions WHERE gtrid = $1 AND heuristic ON CONFLICT DO NOTHING",
    )
    .bind(gtrid.to_bytes().to_vec())
    .bind(id);
    match execute(connection, PATIENCE, note).await? {
        1 => Ok(()),
        _none => Err(Undone::new(format!(
            "transaction {gtrid} has no heuristic outcome on record that is not acknowledged"
        ))),
    }
}

/// Actions, newest first.
pub(super) async fn audit(pool: &PgPool, query: &AuditQuery) -> Result<Vec<AuditRecord>, ReadError> {
    let statement = sqlx::query_as(
        "SELECT id, gtrid, record FROM lockstep_log.audit \
         WHERE ($1::bytea IS NULL OR gtrid = $1) AND ($2 = 0 OR id < $2) ORDER BY id DESC LIMIT $3",
    )
    .bind(query.of.map(|gtrid| gtrid.to_bytes().to_vec()))
    .bind(rows::column_ms(query.below))
    .bind(i64::from(query.limit));
    let found: Vec<(i64, Option<Vec<u8>>, Vec<u8>)> = answer(PATIENCE, statement.fetch_all(pool)).await?;
    let record = |(id, gtrid, record): (i64, Option<Vec<u8>>, Vec<u8>)| {
        let id = id.cast_unsigned();
        rows::decode_operation(id, gtrid.as_deref(), &record)
            .map(|operation| AuditRecord { id, operation })
            .map_err(|error| damaged(format_args!("audit {id}"), error))
    };
    found.into_iter().map(record).collect()
}

/// Heuristic outcomes that nobody has acknowledged, newest first.
pub(super) async fn open_heuristics(pool: &PgPool, limit: u32) -> Result<Vec<EndRecord>, ReadError> {
    let statement = sqlx::query_as(
        "SELECT gtrid, decision, ended_ms, ending FROM lockstep_log.transactions WHERE heuristic \
         AND gtrid NOT IN (SELECT gtrid FROM lockstep_log.acknowledged) ORDER BY gtrid DESC LIMIT $1",
    )
    .bind(i64::from(limit));
    let rows: Vec<Row> = answer(PATIENCE, statement.fetch_all(pool)).await?;
    rows.into_iter().map(end).collect()
}

/// Whether this transaction's heuristic outcome was acknowledged.
pub(super) async fn is_acknowledged(pool: &PgPool, gtrid: Gtrid) -> Result<bool, ReadError> {
    let statement = sqlx::query_scalar("SELECT 1 FROM lockstep_log.acknowledged WHERE gtrid = $1")
        .bind(gtrid.to_bytes().to_vec());
    let found: Vec<i32> = answer(PATIENCE, statement.fetch_all(pool)).await?;
    Ok(!found.is_empty())
}

/// Everything on record, in the order of the gtrids, from behind `after`.
pub(super) async fn walk(
    pool: &PgPool,
    after: Option<Gtrid>,
    limit: u32,
) -> Result<Vec<(Gtrid, Recorded)>, ReadError> {
    let statement = sqlx::query_as(
        "SELECT gtrid, decision, ended_ms, ending FROM lockstep_log.transactions \
         WHERE gtrid > $1 ORDER BY gtrid LIMIT $2",
    )
    .bind(after.map(|gtrid| gtrid.to_bytes().to_vec()).unwrap_or_default())
    .bind(i64::from(limit));
    let rows: Vec<Row> = answer(PATIENCE, statement.fetch_all(pool)).await?;
    rows.into_iter().map(Row::recorded).collect()
}
