//! Reading the log. Every answer comes from one statement, and so from one snapshot (P4, P7), of the primary.
//!
//! A row that is not what was written is an error that names it. It is never left out: absence means rolled back.

use std::collections::HashMap;
use std::time::Duration;

use lockstep_proto::{Epoch, Gtrid, LogPosition};
use sqlx::{PgConnection, PgExecutor, PgPool};

use super::connect::answer;
use super::epochs::{Own, Standing};
use crate::decision_log::restore::Marks;
use crate::decision_log::rows::{self, RowError};
use crate::decision_log::{EpochState, Epochs, KnownResourceManager, LogStatus, LookUp, ReadError, Recorded};
use crate::protocol::record::{DecisionRecord, EndRecord};

/// How long an answer is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn damaged(what: impl std::fmt::Display, error: RowError) -> ReadError {
    ReadError::Damaged(format!("the record of {what}: {error}"))
}

/// A gtrid from a row's key.
pub(super) fn gtrid(key: &[u8]) -> Result<Gtrid, ReadError> {
    Gtrid::from_bytes(key)
        .ok_or_else(|| ReadError::Damaged(format!("a transaction has the key {key:02x?}, which is no gtrid")))
}

/// A row of `transactions`.
#[derive(sqlx::FromRow)]
pub(super) struct Row {
    gtrid: Vec<u8>,
    decision: Option<Vec<u8>>,
    ended_ms: Option<i64>,
    ending: Option<Vec<u8>>,
}

impl Row {
    /// What it says, checked.
    pub(super) fn recorded(self) -> Result<(Gtrid, Recorded), ReadError> {
        let gtrid = gtrid(&self.gtrid)?;
        let recorded = recorded(gtrid, self.decision, self.ended_ms, self.ending);
        Ok((gtrid, recorded.map_err(|error| damaged(format_args!("transaction {gtrid}"), error))?))
    }
}

fn recorded(
    gtrid: Gtrid,
    decision: Option<Vec<u8>>,
    ended_ms: Option<i64>,
    ending: Option<Vec<u8>>,
) -> Result<Recorded, RowError> {
    let decision = decision.map(|record| rows::decode_decision(gtrid, &record)).transpose()?;
    match (decision, ended_ms, ending) {
        (None, None, None) => Ok(Recorded::Absent),
        (Some(decision), None, None) => Ok(Recorded::Decided(decision)),
        (decision, Some(ended_ms), Some(ending)) => {
            // Complete by itself: it was written without a look at the decision.
            let end = rows::decode_end(gtrid, ended_ms, &ending, None)?;
            Ok(Recorded::Ended(decision, end))
        }
        (_, None, Some(_)) | (_, Some(_), None) => Err(RowError::Malformed("end")),
    }
}

/// One row of [`look_up`].
#[derive(sqlx::FromRow)]
struct LookUpRow {
    decision: Option<Vec<u8>>,
    ended_ms: Option<i64>,
    ending: Option<Vec<u8>>,
    sealed: Option<bool>,
    horizon: Option<Vec<u8>>,
    behind: Option<Vec<u8>>,
    restored: Option<Vec<u8>>,
    in_recovery: bool,
}

/// What the log, opened under `own`, knows of each of these.
pub(super) async fn look_up(pool: &PgPool, own: Epoch, gtrids: &[Gtrid]) -> Result<Vec<LookUp>, ReadError> {
    let keys: Vec<Vec<u8>> = gtrids.iter().map(|gtrid| gtrid.to_bytes().to_vec()).collect();
    let epochs: Vec<i64> = gtrids.iter().map(|gtrid| i64::from(gtrid.epoch().get())).collect();
    let statement = sqlx::query_as(
        "SELECT t.decision, t.ended_ms, t.ending, e.sealed, \
             (SELECT record FROM lockstep_log.marks WHERE name = 'horizon') AS horizon, \
             (SELECT record FROM lockstep_log.marks WHERE name = 'behind') AS behind, \
             (SELECT record FROM lockstep_log.marks WHERE name = 'restored') AS restored, \
             pg_is_in_recovery() AS in_recovery \
         FROM unnest($1::bytea[], $2::bigint[]) WITH ORDINALITY AS asked (gtrid, epoch, place) \
         LEFT JOIN lockstep_log.transactions AS t ON t.gtrid = asked.gtrid \
         LEFT JOIN lockstep_log.epochs AS e ON e.number = asked.epoch ORDER BY asked.place",
    )
    .bind(keys)
    .bind(epochs);
    let found: Vec<LookUpRow> = answer(PATIENCE, statement.fetch_all(pool)).await?;
    assert_eq!(found.len(), gtrids.len(), "a left join has a row for each row on its left");
    gtrids.iter().zip(found).map(|(gtrid, row)| row.answer(*gtrid, own)).collect()
}

impl LookUpRow {
    fn answer(self, gtrid: Gtrid, own: Epoch) -> Result<LookUp, ReadError> {
        if self.in_recovery {
            return Err(ReadError::Unavailable("the server has become a standby".to_owned()));
        }
        let recorded = recorded(gtrid, self.decision, self.ended_ms, self.ending)
            .map_err(|error| damaged(format_args!("transaction {gtrid}"), error))?;
        let epoch = match self.sealed {
            None => EpochState::Unknown,
            Some(true) => EpochState::Sealed,
            Some(false) if gtrid.epoch() == own => EpochState::Own,
            Some(false) => EpochState::Live,
        };
        let below_horizon = gtrid.unix_ms() <= horizon(self.horizon)?;
        let marks = decode_marks(self.behind.as_deref(), self.restored.as_deref())?;
        let (epoch, below_horizon) = marks.weigh(&gtrid, epoch, below_horizon);
        Ok(LookUp { recorded, epoch, below_horizon })
    }
}

/// The horizon in a mark's record, which is made with the log.
pub(super) fn horizon(record: Option<Vec<u8>>) -> Result<u64, ReadError> {
    let record = record.ok_or_else(|| ReadError::Damaged("the horizon is missing".to_owned()))?;
    rows::decode_horizon(&record).map_err(|error| damaged("the horizon", error))
}

fn decode_marks(behind: Option<&[u8]>, restored: Option<&[u8]>) -> Result<Marks, ReadError> {
    Marks::decode(behind, restored).map_err(|error| damaged("a restore", error))
}

/// Of the log being behind, and of its restore.
type MarkRecords = (Option<Vec<u8>>, Option<Vec<u8>>);

/// What is noted of a restore.
pub(super) async fn marks(pool: &PgPool) -> Result<Marks, ReadError> {
    let statement = sqlx::query_as(
        "SELECT (SELECT record FROM lockstep_log.marks WHERE name = 'behind'), \
             (SELECT record FROM lockstep_log.marks WHERE name = 'restored')",
    );
    let found: Vec<MarkRecords> = answer(PATIENCE, statement.fetch_all(pool)).await?;
    let (behind, restored) = found.into_iter().next().expect("a SELECT without FROM has one row");
    decode_marks(behind.as_deref(), restored.as_deref())
}

/// Those of these transactions that have a row, and their decisions.
pub(super) async fn decisions(
    connection: &mut PgConnection,
    within: Duration,
    gtrids: &[Gtrid],
) -> Result<HashMap<Gtrid, Option<DecisionRecord>>, ReadError> {
    let keys: Vec<Vec<u8>> = gtrids.iter().map(|gtrid| gtrid.to_bytes().to_vec()).collect();
    let statement =
        sqlx::query_as("SELECT gtrid, decision FROM lockstep_log.transactions WHERE gtrid = ANY ($1)")
            .bind(keys);
    let found: Vec<(Vec<u8>, Option<Vec<u8>>)> = answer(within, statement.fetch_all(connection)).await?;
    let mut decisions = HashMap::with_capacity(found.len());
    for (key, record) in found {
        let gtrid = gtrid(&key)?;
        let decision = record.map(|record| rows::decode_decision(gtrid, &record)).transpose();
        let decision = decision.map_err(|error| damaged(format_args!("transaction {gtrid}"), error))?;
        decisions.insert(gtrid, decision);
    }
    Ok(decisions)
}

/// Whether the log has this position behind it.
pub(super) async fn reaches(pool: &PgPool, position: LogPosition) -> Result<bool, ReadError> {
    if marks(pool).await?.covers(position) {
        return Ok(true);
    }
    let statement = sqlx::query_scalar(
        "SELECT p.sequence FROM lockstep_log.epochs AS e JOIN lockstep_log.positions AS p ON p.epoch = e.number \
         WHERE e.number = $1 AND e.incarnation = $2",
    )
    .bind(i64::from(position.epoch.get()))
    .bind(position.incarnation.as_bytes().as_slice());
    let found: Vec<i64> = answer(PATIENCE, statement.fetch_all(pool)).await?;
    Ok(found.iter().any(|sequence| sequence.cast_unsigned() >= position.sequence))
}

/// Decisions of these epochs without an end, behind `after`.
pub(super) async fn unfinished(
    pool: &PgPool,
    epochs: &[Epoch],
    after: Option<Gtrid>,
    limit: u32,
) -> Result<Vec<DecisionRecord>, ReadError> {
    let numbers: Vec<i64> = epochs.iter().map(|epoch| i64::from(epoch.get())).collect();
    let statement = sqlx::query_as(
        "SELECT gtrid, decision, ended_ms, ending FROM lockstep_log.transactions \
         WHERE ended_ms IS NULL AND epoch = ANY ($1) AND gtrid > $2 ORDER BY gtrid LIMIT $3",
    )
    .bind(numbers)
    .bind(after.map(|gtrid| gtrid.to_bytes().to_vec()).unwrap_or_default())
    .bind(i64::from(limit));
    let rows: Vec<Row> = answer(PATIENCE, statement.fetch_all(pool)).await?;
    let decision = |row: Row| match row.recorded()? {
        (_, Recorded::Decided(decision)) => Ok(decision),
        (gtrid, Recorded::Absent | Recorded::Ended(..)) => {
            Err(ReadError::Damaged(format!("transaction {gtrid} has neither a decision nor an end")))
        }
    };
    rows.into_iter().map(decision).collect()
}

/// Ended transactions, newest first.
pub(super) async fn recently_ended(pool: &PgPool, limit: u32) -> Result<Vec<EndRecord>, ReadError> {
    let statement = sqlx::query_as(
        "SELECT gtrid, decision, ended_ms, ending FROM lockstep_log.transactions \
         WHERE ended_ms IS NOT NULL ORDER BY gtrid DESC LIMIT $1",
    )
    .bind(i64::from(limit));
    let rows: Vec<Row> = answer(PATIENCE, statement.fetch_all(pool)).await?;
    rows.into_iter().map(end).collect()
}

/// The end in a row that was selected because it has one.
pub(super) fn end(row: Row) -> Result<EndRecord, ReadError> {
    match row.recorded()? {
        (_, Recorded::Ended(_, end)) => Ok(end),
        (gtrid, Recorded::Absent | Recorded::Decided(_)) => {
            Err(ReadError::Damaged(format!("transaction {gtrid} has a time of its end, and no end")))
        }
    }
}

/// Every resource manager, by name.
pub(super) async fn resource_managers(
    executor: impl PgExecutor<'_>,
) -> Result<Vec<KnownResourceManager>, ReadError> {
    let statement = sqlx::query_as("SELECT name, record FROM lockstep_log.resource_managers ORDER BY name");
    let found: Vec<(String, Vec<u8>)> = answer(PATIENCE, statement.fetch_all(executor)).await?;
    let decode = |(name, record): (String, Vec<u8>)| {
        rows::decode_resource_manager(&name, &record)
            .map_err(|error| damaged(format_args!("resource manager {name:?}"), error))
    };
    found.into_iter().map(decode).collect()
}

/// The epochs that were given out, as long as the own one is unsealed.
pub(super) async fn epochs(pool: &PgPool, own: &Own) -> Result<Standing<Epochs>, ReadError> {
    let statement = sqlx::query_as(
        "SELECT min(number) FILTER (WHERE NOT sealed), max(number), \
             bool_or(sealed) FILTER (WHERE number = $1 AND incarnation = $2) FROM lockstep_log.epochs",
    )
    .bind(i64::from(own.epoch.get()))
    .bind(own.incarnation.as_bytes().as_slice());
    let rows: Vec<(Option<i64>, Option<i64>, Option<bool>)> =
        answer(PATIENCE, statement.fetch_all(pool)).await?;
    let (sealed_below, newest, sealed) = rows.into_iter().next().expect("an aggregate has one row");
    let known = |number: Option<i64>| number.and_then(super::epochs::epoch);
    Ok(match (sealed, known(sealed_below), known(newest)) {
        (Some(true), _, _) => Standing::Sealed,
        (Some(false), Some(sealed_below), Some(newest)) => {
            Standing::Unsealed(Epochs { sealed_below, newest })
        }
        (None, _, _) | (Some(false), _, _) => Standing::Gone,
    })
}

/// The earliest time of anything that is live, or will be, at another node; `None` if there is no other.
pub(super) async fn floor_of_others(
    executor: impl PgExecutor<'_>,
    own: Epoch,
) -> Result<Option<u64>, ReadError> {
    let statement = sqlx::query_scalar(
        "SELECT min(l.floor_ms) FROM lockstep_log.epochs AS e JOIN lockstep_log.leases AS l ON l.epoch = e.number \
         WHERE NOT e.sealed AND e.number <> $1",
    )
    .bind(i64::from(own.get()));
    let found: Vec<Option<i64>> = answer(PATIENCE, statement.fetch_all(executor)).await?;
    Ok(found.into_iter().flatten().min().map(i64::cast_unsigned))
}

/// The newest floor that any node has published, those whose epochs are sealed among them: what they told stays told.
pub(super) async fn newest_floor_ms(pool: &PgPool) -> Result<u64, ReadError> {
    let statement = sqlx::query_scalar("SELECT max(floor_ms) FROM lockstep_log.leases");
    let found: Vec<Option<i64>> = answer(PATIENCE, statement.fetch_all(pool)).await?;
    Ok(found.into_iter().flatten().max().map_or(0, i64::cast_unsigned))
}

/// Numbers for people.
pub(super) async fn facts(pool: &PgPool) -> Result<LogStatus, ReadError> {
    type Facts = (i64, i64, i64, i64, Option<Vec<u8>>);
    let statement = sqlx::query_as(
        "SELECT (SELECT count(*) FROM lockstep_log.transactions WHERE ended_ms IS NULL), \
             (SELECT count(*) FROM lockstep_log.transactions WHERE heuristic), \
             (SELECT count(*) FROM lockstep_log.acknowledged), \
             pg_total_relation_size('lockstep_log.transactions'), \
             (SELECT record FROM lockstep_log.marks WHERE name = 'horizon')",
    );
    let rows: Vec<Facts> = answer(PATIENCE, statement.fetch_all(pool)).await?;
    let row = rows.into_iter().next();
    let (unfinished, heuristic, acknowledged, bytes, record) =
        row.expect("a SELECT without FROM has one row");
    Ok(LogStatus {
        unfinished: unfinished.cast_unsigned(),
        heuristic: heuristic.cast_unsigned(),
        heuristic_open: heuristic.saturating_sub(acknowledged).cast_unsigned(),
        bytes: bytes.cast_unsigned(),
        horizon_ms: horizon(record)?,
        behind: false,
    })
}
