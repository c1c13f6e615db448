//! Reading the log. Every answer comes from one statement, and so from one snapshot (P4, P7), on connections beside the
//! writer's: a reader sees what was committed, and waits for no force.
//!
//! A row that is not what was written is an error that names it. It is never left out: absence means rolled back.

use lockstep_proto::{Epoch, Gtrid, LogPosition, ResourceManagerName};
use sqlx::{SqliteExecutor, SqlitePool};

use super::hex::{Hex, json};
use super::transaction::Fault;
use crate::decision_log::restore::Marks;
use crate::decision_log::rows::{self, RowError};
use crate::decision_log::{EpochState, KnownResourceManager, LogStatus, LookUp, ReadError, Recorded};
use crate::protocol::record::{DecisionRecord, EndRecord};

/// What SQLite's error says about the log.
pub(super) fn error(error: sqlx::Error) -> ReadError {
    if is_damage(&error) {
        ReadError::Damaged(error.to_string())
    } else {
        ReadError::Unavailable(error.to_string())
    }
}

/// SQLite found the file itself to be no database, or an inconsistent one.
pub(super) fn is_damage(error: &sqlx::Error) -> bool {
    const SQLITE_CORRUPT: i32 = 11;
    const SQLITE_NOTADB: i32 = 26;
    matches!(code(error), Some(SQLITE_CORRUPT | SQLITE_NOTADB))
}

/// There is no room left for what was to be written.
pub(super) fn is_full(error: &sqlx::Error) -> bool {
    const SQLITE_FULL: i32 = 13;
    code(error) == Some(SQLITE_FULL)
}

/// SQLite's result code, without what extends it.
pub(super) fn code(error: &sqlx::Error) -> Option<i32> {
    let extended: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(extended & 0xff)
}

fn damaged(what: impl std::fmt::Display, error: RowError) -> ReadError {
    ReadError::Damaged(format!("the record of {what}: {error}"))
}

/// In a transaction that writes, an unreadable row is met while something hangs on it.
impl From<ReadError> for Fault {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Unavailable(_) => Self::Refused(error.to_string()),
            ReadError::Damaged(_) => Self::Fatal(error.to_string()),
        }
    }
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
        let gtrid = Gtrid::from_bytes(&self.gtrid).ok_or_else(|| {
            let hex = serde_json::json!(Hex::of(&self.gtrid));
            ReadError::Damaged(format!("a transaction has the key {hex}, which is no gtrid"))
        })?;
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
            let end = rows::decode_end(gtrid, ended_ms, &ending, decision.as_ref())?;
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
    epoch: Option<Vec<u8>>,
    horizon: Option<Vec<u8>>,
    behind: Option<Vec<u8>>,
    restored: Option<Vec<u8>>,
}

/// What the log, opened under `own`, knows of each of these.
pub(super) async fn look_up(
    readers: &SqlitePool,
    own: Epoch,
    gtrids: &[Gtrid],
) -> Result<Vec<LookUp>, ReadError> {
    let keys = json(gtrids.iter().map(|gtrid| (Hex::of(gtrid.to_bytes()), gtrid.epoch().get())));
    let found: Vec<LookUpRow> = sqlx::query_as(
        "SELECT t.decision, t.ended_ms, t.ending, e.record AS epoch, \
             (SELECT record FROM marks WHERE name = 'horizon') AS horizon, \
             (SELECT record FROM marks WHERE name = 'behind') AS behind, \
             (SELECT record FROM marks WHERE name = 'restored') AS restored \
         FROM json_each(?1) AS asked \
         LEFT JOIN transactions AS t ON t.gtrid = unhex(asked.value ->> 0) \
         LEFT JOIN epochs AS e ON e.number = asked.value ->> 1 \
         ORDER BY asked.key",
    )
    .bind(keys)
    .fetch_all(readers)
    .await
    .map_err(error)?;
    assert_eq!(found.len(), gtrids.len(), "a left join has a row for each row on its left");
    gtrids.iter().zip(found).map(|(gtrid, row)| row.answer(*gtrid, own)).collect()
}

impl LookUpRow {
    fn answer(self, gtrid: Gtrid, own: Epoch) -> Result<LookUp, ReadError> {
        let recorded = recorded(gtrid, self.decision, self.ended_ms, self.ending)
            .map_err(|error| damaged(format_args!("transaction {gtrid}"), error))?;
        let epoch = gtrid.epoch();
        let epoch_row = self.epoch.map(|record| rows::decode_epoch(epoch.get(), &record)).transpose();
        let epoch = match epoch_row.map_err(|error| damaged(format_args!("epoch {epoch}"), error))? {
            None => EpochState::Unknown,
            Some(row) if row.sealed => EpochState::Sealed,
            Some(_) if epoch == own => EpochState::Own,
            Some(_) => EpochState::Live,
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

/// What is noted of a restore.
pub(super) async fn marks(readers: &SqlitePool) -> Result<Marks, ReadError> {
    let found: (Option<Vec<u8>>, Option<Vec<u8>>) = sqlx::query_as(
        "SELECT (SELECT record FROM marks WHERE name = 'behind'), (SELECT record FROM marks WHERE name = 'restored')",
    )
    .fetch_one(readers)
    .await
    .map_err(error)?;
    decode_marks(found.0.as_deref(), found.1.as_deref())
}

/// Whether the log has this position behind it.
pub(super) async fn reaches(readers: &SqlitePool, position: LogPosition) -> Result<bool, ReadError> {
    if marks(readers).await?.covers(position) {
        return Ok(true);
    }
    let number = position.epoch.get();
    let record: Option<Vec<u8>> = sqlx::query_scalar("SELECT record FROM epochs WHERE number = ?1")
        .bind(number)
        .fetch_optional(readers)
        .await
        .map_err(error)?;
    let Some(record) = record else { return Ok(false) };
    let row = rows::decode_epoch(number, &record);
    let row = row.map_err(|error| damaged(format_args!("epoch {number}"), error))?;
    Ok(row.incarnation == position.incarnation && row.sequence >= position.sequence)
}

/// Decisions without an end behind `after`.
pub(super) async fn unfinished(
    readers: &SqlitePool,
    after: Option<Gtrid>,
    limit: u32,
) -> Result<Vec<DecisionRecord>, ReadError> {
    let after = after.map(|gtrid| gtrid.to_bytes().to_vec()).unwrap_or_default();
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT gtrid, decision, ended_ms, ending FROM transactions \
         WHERE ended_ms IS NULL AND gtrid > ?1 ORDER BY gtrid LIMIT ?2",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(readers)
    .await
    .map_err(error)?;
    let decision = |row: Row| match row.recorded()? {
        (_, Recorded::Decided(decision)) => Ok(decision),
        (gtrid, Recorded::Absent | Recorded::Ended(..)) => {
            Err(ReadError::Damaged(format!("transaction {gtrid} has neither a decision nor an end")))
        }
    };
    rows.into_iter().map(decision).collect()
}

/// Ended transactions, newest first.
pub(super) async fn recently_ended(readers: &SqlitePool, limit: u32) -> Result<Vec<EndRecord>, ReadError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT gtrid, decision, ended_ms, ending FROM transactions \
         WHERE ended_ms IS NOT NULL ORDER BY gtrid DESC LIMIT ?1",
    )
    .bind(limit)
    .fetch_all(readers)
    .await
    .map_err(error)?;
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
    executor: impl SqliteExecutor<'_>,
) -> Result<Vec<KnownResourceManager>, ReadError> {
    let found: Vec<(String, Vec<u8>)> =
        sqlx::query_as("SELECT name, record FROM resource_managers ORDER BY name")
            .fetch_all(executor)
            .await
            .map_err(error)?;
    let decode = |(name, record): (String, Vec<u8>)| {
        rows::decode_resource_manager(&name, &record)
            .map_err(|error| damaged(format_args!("resource manager {name:?}"), error))
    };
    found.into_iter().map(decode).collect()
}

/// The resource manager of this name.
pub(super) async fn resource_manager(
    executor: impl SqliteExecutor<'_>,
    name: &ResourceManagerName,
) -> Result<Option<KnownResourceManager>, ReadError> {
    let record: Option<Vec<u8>> = sqlx::query_scalar("SELECT record FROM resource_managers WHERE name = ?1")
        .bind(name.as_str())
        .fetch_optional(executor)
        .await
        .map_err(error)?;
    record
        .map(|record| rows::decode_resource_manager(name.as_str(), &record))
        .transpose()
        .map_err(|error| damaged(format_args!("resource manager {name}"), error))
}

/// Numbers, without the bytes on disk. Counts small indexes only.
pub(super) async fn facts(readers: &SqlitePool) -> Result<LogStatus, ReadError> {
    let (unfinished, heuristic, acknowledged, record): (i64, i64, i64, Option<Vec<u8>>) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM transactions WHERE ended_ms IS NULL), \
             (SELECT count(*) FROM transactions WHERE heuristic = 1), \
             (SELECT count(*) FROM acknowledged), \
             (SELECT record FROM marks WHERE name = 'horizon')",
    )
    .fetch_one(readers)
    .await
    .map_err(error)?;
    let heuristic = heuristic.cast_unsigned();
    Ok(LogStatus {
        unfinished: unfinished.cast_unsigned(),
        heuristic,
        heuristic_open: heuristic.saturating_sub(acknowledged.cast_unsigned()),
        bytes: 0,
        horizon_ms: horizon(record)?,
        behind: false,
    })
}
