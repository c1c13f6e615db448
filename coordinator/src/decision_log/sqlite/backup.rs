//! `lockstep backup`: a copy of the log as it was at one moment, while a coordinator runs or not.
//!
//! A backup is old as soon as it is made: what is decided afterwards is not in it. So the copy carries the mark of a log that is
//! *behind* (P8): a coordinator that is started on it presumes nothing and begins nothing, until `lockstep restore` has dealt with it. Nobody
//! can forget that step.
//!
//! The copy gets its name last, when all of it is on disk: a backup that was broken off is not taken for one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_proto::ClusterId;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};

use super::epochs;
use super::frozen::still;
use super::read;
use super::restore::cluster;
use super::transaction::Fault;
use crate::codes::Code;
use crate::decision_log::data_dir::{DataDir, DataDirError, FORMAT_VERSION, Held, NoLog};
use crate::decision_log::restore::{BEHIND, encode_behind};

/// How long to wait for the coordinator, which holds readers up only while it starts or ends.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// What the copy is called until it is whole.
const UNFINISHED: &str = "decisions.db.part";

/// What was copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackedUp {
    /// Where the copy is, absolute.
    pub dir: PathBuf,
    /// Whose log it is.
    pub cluster: ClusterId,
    /// The newest epoch in it.
    pub newest_epoch: u32,
    /// Transactions on record in it.
    pub transactions: u64,
    /// Bytes of the copy.
    pub bytes: u64,
    /// A coordinator had the log meanwhile.
    pub online: bool,
}

/// Why there is no backup. Nothing of one is left behind.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// There is no log.
    #[error(transparent)]
    NoLog(#[from] NoLog),
    /// A newer version wrote it.
    #[error(transparent)]
    Newer(DataDirError),
    /// The directory for the copy cannot be used.
    #[error("no backup was made: {0}")]
    Target(DataDirError),
    /// It could not be copied.
    #[error("no backup was made: {0}")]
    Failed(String),
}

impl BackupError {
    /// Its code: docs/errors has a page for it.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NoLog(error) => error.code(),
            Self::Newer(error) => error.code(),
            Self::Target(_) | Self::Failed(_) => Code::BackupFailed,
        }
    }
}

/// Copies the log in `from` into the directory `to`, which must not exist or be empty.
///
/// # Errors
/// [`BackupError`].
pub async fn back_up(from: &Path, to: &Path) -> Result<BackedUp, BackupError> {
    DataDir::expect_log(from)?;
    if let Some(found) = DataDir::format(from).filter(|format| *format > FORMAT_VERSION) {
        return Err(BackupError::Newer(DataDirError::Newer { dir: from.to_owned(), found }));
    }
    let to = std::path::absolute(to).map_err(|error| BackupError::Failed(error.to_string()))?;
    let made = DataDir::make_for_copy(&to).map_err(BackupError::Target)?;
    let copied = copy(from, &to).await;
    if copied.is_err() {
        remove(&to, made);
    }
    copied
}

/// As long as nobody has the log, nobody is let in; else the coordinator goes on, and its readers' rules hold.
fn hold(from: &Path) -> Result<Option<Held>, BackupError> {
    match DataDir::hold(from) {
        Ok(held) => Ok(Some(held)),
        Err(DataDirError::Locked { .. }) => Ok(None),
        Err(error) => Err(BackupError::Failed(error.to_string())),
    }
}

async fn copy(from: &Path, to: &Path) -> Result<BackedUp, BackupError> {
    let held = hold(from)?;
    let part = to.join(UNFINISHED);
    let text = part.to_str().ok_or_else(|| BackupError::Failed("its path is no UTF-8".to_owned()))?;
    let file = DataDir::log_file_in(from);
    let (options, _copy) = match &held {
        Some(_) => still(&file).map_err(|error| BackupError::Failed(error.to_string()))?,
        None => (SqliteConnectOptions::new().filename(&file).read_only(true), None),
    };
    let options = options.busy_timeout(BUSY_TIMEOUT).disable_statement_logging();
    let mut source = options.connect().await.map_err(failed)?;
    // One read transaction: whatever is committed meanwhile is not in it.
    sqlx::query("VACUUM INTO ?1").bind(text).execute(&mut source).await.map_err(failed)?;
    source.close().await.map_err(failed)?;
    let (cluster, newest_epoch, transactions) = finish(&part).await?;
    let bytes = durable(&part, to).map_err(|error| BackupError::Failed(error.to_string()))?;
    Ok(BackedUp { dir: to.to_owned(), cluster, newest_epoch, transactions, bytes, online: held.is_none() })
}

/// Checks the copy, and marks it as one that is behind.
async fn finish(part: &Path) -> Result<(ClusterId, u32, u64), BackupError> {
    let copy = SqliteConnectOptions::new().filename(part).journal_mode(SqliteJournalMode::Delete);
    let copy = copy.synchronous(SqliteSynchronous::Full).disable_statement_logging();
    let mut copy = copy.connect().await.map_err(failed)?;
    let check: String =
        sqlx::query_scalar("PRAGMA quick_check").fetch_one(&mut copy).await.map_err(failed)?;
    if check != "ok" {
        return Err(BackupError::Failed(format!("the decision log is damaged: {check}")));
    }
    let facts = facts(&mut copy).await.map_err(|fault| match fault {
        Fault::Fatal(why) | Fault::Refused(why) => BackupError::Failed(why),
    })?;
    copy.close().await.map_err(failed)?;
    Ok(facts)
}

async fn facts(copy: &mut SqliteConnection) -> Result<(ClusterId, u32, u64), Fault> {
    let cluster = cluster(copy).await?;
    epochs::set_mark(copy, BEHIND, &encode_behind()).await?;
    let (epoch, transactions): (u32, i64) = sqlx::query_as(
        "SELECT (SELECT coalesce(max(number), 0) FROM epochs), (SELECT count(*) FROM transactions)",
    )
    .fetch_one(copy)
    .await?;
    Ok((cluster, epoch, transactions.cast_unsigned()))
}

/// Has all of it on disk, and then gives it its name. How many bytes it has.
fn durable(part: &Path, to: &Path) -> std::io::Result<u64> {
    let file = File::open(part)?;
    file.sync_all()?;
    let bytes = file.metadata()?.len();
    DataDir::write_format(to).map_err(std::io::Error::other)?;
    fs::rename(part, DataDir::log_file_in(to))?;
    File::open(to)?.sync_all()?;
    if let Some(above) = to.parent() {
        File::open(above)?.sync_all()?;
    }
    Ok(bytes)
}

fn failed(error: sqlx::Error) -> BackupError {
    if read::is_full(&error) {
        return BackupError::Failed(format!(
            "there is no room for it ({error}): free some space, or name another disk"
        ));
    }
    BackupError::Failed(error.to_string())
}

/// What was begun of a copy. What cannot be removed is not taken for a backup: it has no log in it.
fn remove(to: &Path, made: bool) {
    if made {
        let _left = fs::remove_dir_all(to);
        return;
    }
    for entry in fs::read_dir(to).into_iter().flatten().flatten() {
        let _left = fs::remove_file(entry.path());
    }
}
