//! A log as it lies there: read while no coordinator has it, and without changing a byte of its directory.
//!
//! SQLite writes beside a database that it only reads: the index of a write-ahead log. So a log without one is opened as
//! *immutable*, which writes nothing; one that was left with one by a crash is copied, and the copy is read. Nothing is migrated: what a
//! newer version wrote is shown as far as this one understands it, and it is said that this is not all.

use std::fs;
use std::path::{Path, PathBuf};

use lockstep_proto::{ClusterId, Gtrid};
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use tempfile::TempDir;

use super::open::SCHEMA;
use super::read::{self, Row};
use super::{audit, find};
use crate::codes::Code;
use crate::decision_log::audit::{AuditQuery, AuditRecord};
use crate::decision_log::data_dir::{DataDir, DataDirError, FORMAT_VERSION, Held, NoLog};
use crate::decision_log::restore::Marks;
use crate::decision_log::rows;
use crate::decision_log::{KnownResourceManager, ReadError, Recorded};

/// Why a log was not looked at.
#[derive(Debug, thiserror::Error)]
pub enum FrozenError {
    /// There is none.
    #[error(transparent)]
    NoLog(#[from] NoLog),
    /// A coordinator has it, or it cannot be read.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// SQLite cannot read it.
    #[error("cannot read the decision log {}: {why}", file.display())]
    Unreadable {
        /// The database.
        file: PathBuf,
        /// What SQLite said.
        why: ReadError,
    },
}

impl FrozenError {
    /// Its code: docs/errors has a page for it.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NoLog(error) => error.code(),
            Self::DataDir(error) => error.code(),
            Self::Unreadable { why, .. } => why.code(),
        }
    }
}

/// What a look at the whole log tells. What could not be read is `None`, and said among the problems.
#[derive(Debug, Default)]
pub struct Look {
    /// The format of its directory.
    pub format: Option<u32>,
    /// Its newest migration.
    pub schema: Option<i64>,
    /// A newer version wrote it: there may be more than is shown.
    pub newer: bool,
    /// The cluster.
    pub cluster: Option<ClusterId>,
    /// The newest epoch.
    pub newest_epoch: Option<u32>,
    /// Epochs that are not sealed: that of the last life.
    pub open_epochs: Vec<u32>,
    /// The time of the newest transaction ever pruned, milliseconds since 1970; 0 if there is none.
    pub horizon_ms: Option<u64>,
    /// What is noted of a restore.
    pub restored: Option<Marks>,
    /// All transactions on record.
    pub transactions: Option<u64>,
    /// Those without an end.
    pub unfinished: Option<u64>,
    /// Those with a heuristic outcome.
    pub heuristic: Option<u64>,
    /// Those of them that nobody has acknowledged.
    pub heuristic_open: Option<u64>,
    /// What operators did.
    pub actions: Option<u64>,
    /// Resource managers.
    pub resource_managers: Vec<KnownResourceManager>,
    /// What could not be read, a sentence each.
    pub problems: Vec<String>,
}

/// A log that no coordinator has, as long as this is there.
pub struct FrozenLog {
    dir: PathBuf,
    readers: SqlitePool,
    /// Removed behind the connections.
    _copy: Option<TempDir>,
    _held: Held,
}

impl FrozenLog {
    /// Holds the log in this directory.
    ///
    /// # Errors
    /// [`FrozenError`]. Nothing was changed in any case.
    pub async fn open(dir: &Path) -> Result<Self, FrozenError> {
        let dir = std::path::absolute(dir).unwrap_or_else(|_no_current_directory| dir.to_owned());
        DataDir::expect_log(&dir)?;
        let held = DataDir::hold(&dir)?;
        let file = DataDir::log_file_in(&dir);
        let (options, copy) = still(&file)?;
        let pool = SqlitePoolOptions::new().max_connections(1).test_before_acquire(false);
        let readers = pool.connect_with(options).await;
        let readers = readers.map_err(|error| FrozenError::Unreadable { file, why: read::error(error) })?;
        Ok(Self { dir, readers, _copy: copy, _held: held })
    }

    /// Where it is.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        DataDir::log_file_in(&self.dir)
    }

    /// Looks at the whole of it.
    pub async fn look(&self) -> Look {
        let mut look = Look { format: DataDir::format(&self.dir), ..Look::default() };
        look.schema = self.number("SELECT max(version) FROM _sqlx_migrations", &mut look.problems).await;
        let known = SCHEMA.iter().map(|migration| migration.version).max();
        look.newer = look.format.is_some_and(|format| format > FORMAT_VERSION) || look.schema > known;
        let problems = &mut look.problems;
        look.transactions = self.count("SELECT count(*) FROM transactions", problems).await;
        look.unfinished =
            self.count("SELECT count(*) FROM transactions WHERE ended_ms IS NULL", problems).await;
        look.heuristic = self.count("SELECT count(*) FROM transactions WHERE heuristic = 1", problems).await;
        let open = "SELECT count(*) FROM transactions \
                    WHERE heuristic = 1 AND gtrid NOT IN (SELECT gtrid FROM acknowledged)";
        look.heuristic_open = self.count(open, problems).await;
        look.actions = self.count("SELECT count(*) FROM audit", problems).await;
        self.look_at_marks(&mut look).await;
        self.look_at_epochs(&mut look).await;
        match read::resource_managers(&self.readers).await {
            Ok(known) => look.resource_managers = known,
            Err(error) => look.problems.push(error.to_string()),
        }
        look
    }

    async fn look_at_marks(&self, look: &mut Look) {
        let cluster = self.mark(rows::CLUSTER, &mut look.problems).await;
        match cluster.map(|record| rows::decode_cluster(&record)) {
            Some(Ok(cluster)) => look.cluster = Some(cluster),
            Some(Err(error)) => look.problems.push(format!("the cluster id: {error}")),
            None => look.problems.push("the cluster id is missing".to_owned()),
        }
        let horizon = self.mark(rows::HORIZON, &mut look.problems).await;
        match horizon.map(|record| rows::decode_horizon(&record)) {
            Some(Ok(unix_ms)) => look.horizon_ms = Some(unix_ms),
            Some(Err(error)) => look.problems.push(format!("the horizon: {error}")),
            None => look.problems.push("the horizon is missing".to_owned()),
        }
        match read::marks(&self.readers).await {
            Ok(marks) => look.restored = Some(marks),
            Err(error) => look.problems.push(error.to_string()),
        }
    }

    async fn look_at_epochs(&self, look: &mut Look) {
        let found = sqlx::query_as("SELECT number, record FROM epochs ORDER BY number");
        let found: Vec<(u32, Vec<u8>)> = match found.fetch_all(&self.readers).await {
            Ok(found) => found,
            Err(error) => return look.problems.push(read::error(error).to_string()),
        };
        look.newest_epoch = found.last().map(|(number, _)| *number);
        for (number, record) in found {
            match rows::decode_epoch(number, &record) {
                Ok(row) if row.sealed => {}
                Ok(_open) => look.open_epochs.push(number),
                Err(error) => look.problems.push(format!("epoch {number}: {error}")),
            }
        }
    }

    async fn mark(&self, name: &str, problems: &mut Vec<String>) -> Option<Vec<u8>> {
        let record = sqlx::query_scalar("SELECT record FROM marks WHERE name = ?1").bind(name);
        match record.fetch_optional(&self.readers).await {
            Ok(record) => record,
            Err(error) => {
                problems.push(read::error(error).to_string());
                None
            }
        }
    }

    async fn count(&self, sql: &'static str, problems: &mut Vec<String>) -> Option<u64> {
        self.number(sql, problems).await.map(i64::cast_unsigned)
    }

    async fn number(&self, sql: &'static str, problems: &mut Vec<String>) -> Option<i64> {
        match sqlx::query_scalar(sql).fetch_one(&self.readers).await {
            Ok(number) => number,
            Err(error) => {
                problems.push(read::error(error).to_string());
                None
            }
        }
    }

    /// Transactions, newest first, at most `limit`: what is not over, or everything. A record that cannot be read is a sentence in the
    /// second list.
    ///
    /// # Errors
    /// If SQLite cannot read them at all.
    pub async fn transactions(
        &self,
        all: bool,
        limit: u32,
    ) -> Result<(Vec<Recorded>, Vec<String>), ReadError> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT gtrid, decision, ended_ms, ending FROM transactions \
             WHERE ?1 OR ended_ms IS NULL OR (heuristic = 1 AND gtrid NOT IN (SELECT gtrid FROM acknowledged)) \
             ORDER BY gtrid DESC LIMIT ?2",
        )
        .bind(all)
        .bind(limit)
        .fetch_all(&self.readers)
        .await
        .map_err(read::error)?;
        let (mut found, mut problems) = (Vec::new(), Vec::new());
        for row in rows {
            match row.recorded() {
                Ok((_, recorded)) => found.push(recorded),
                Err(error) => problems.push(error.to_string()),
            }
        }
        Ok((found, problems))
    }

    /// Transactions that begin so, oldest first, at most `limit`.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn find(&self, prefix: &str, limit: u32) -> Result<Vec<Gtrid>, ReadError> {
        find::find(&self.readers, prefix, limit).await
    }

    /// The record of one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn transaction(&self, gtrid: Gtrid) -> Result<Recorded, ReadError> {
        let row: Option<Row> =
            sqlx::query_as("SELECT gtrid, decision, ended_ms, ending FROM transactions WHERE gtrid = ?1")
                .bind(gtrid.to_bytes().to_vec())
                .fetch_optional(&self.readers)
                .await
                .map_err(read::error)?;
        row.map_or(Ok(Recorded::Absent), |row| row.recorded().map(|(_, recorded)| recorded))
    }

    /// Whether this transaction's heuristic outcome was acknowledged.
    ///
    /// # Errors
    /// If that cannot be read.
    pub async fn is_acknowledged(&self, gtrid: Gtrid) -> Result<bool, ReadError> {
        audit::is_acknowledged(&self.readers, gtrid).await
    }

    /// What operators did, newest first.
    ///
    /// # Errors
    /// If that cannot be read.
    pub async fn audit(&self, of: Option<Gtrid>, limit: u32) -> Result<Vec<AuditRecord>, ReadError> {
        audit::audit(&self.readers, &AuditQuery { of, below: 0, limit }).await
    }
}

/// How to open a log that nobody has without writing beside it; and the copy that is opened instead, if a crash has left something.
pub(super) fn still(file: &Path) -> Result<(SqliteConnectOptions, Option<TempDir>), DataDirError> {
    let wal = with_suffix(file, "-wal");
    if !wal.metadata().is_ok_and(|wal| wal.len() > 0) {
        return Ok((SqliteConnectOptions::new().filename(file).immutable(true).read_only(true), None));
    }
    let failed = |source| DataDirError::Io { doing: "copy", path: file.to_owned(), source };
    let copy = TempDir::new().map_err(failed)?;
    let copied = DataDir::log_file_in(copy.path());
    fs::copy(file, &copied).map_err(failed)?;
    fs::copy(&wal, with_suffix(&copied, "-wal")).map_err(failed)?;
    Ok((SqliteConnectOptions::new().filename(copied), Some(copy)))
}

fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
