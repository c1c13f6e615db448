//! Opening the log. The order is the point:
//!
//! 1. the directory's lock and format version: nobody else writes, and we understand what is there;
//! 2. durability: WAL and `synchronous` are set, and read back, since SQLite ignores what it cannot do;
//! 3. the schema, migrated if it is older, refused if it is newer;
//! 4. one forced transaction that seals all earlier epochs and takes a new one;
//! 5. a truncating checkpoint, which makes durable whatever step 4 and recovery have read (P6).
//!
//! Only then is there a log to read from or to write to. A crash between any two of them leaves a log that opens again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_proto::{ClusterId, LogPosition};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, SqliteConnection};

use super::epochs::{self, Taken};
use super::transaction::{Broken, Fault, Tx};
use super::{SqliteLog, Writers, checkpoint, read};
use crate::codes::Code;
use crate::decision_log::data_dir::{DEFAULT_MIN_FREE_BYTES, DataDir, DataDirError};
use crate::decision_log::{AppendError, ReadError};

pub(super) static SCHEMA: Migrator = sqlx::migrate!("../migrations/sqlite");

/// How long a write waits for another program that holds SQLite's write lock, such as a person's `sqlite3`. The log's own
/// connections never hold each other up.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections for reading: one for a long look by a person, and one for the engine beside it.
const READERS: u32 = 2;

/// How to open the log.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Bytes that must be free in the file system of the directory.
    pub min_free_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { min_free_bytes: DEFAULT_MIN_FREE_BYTES }
    }
}

/// What opening found and did: for the banner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The data directory, absolute.
    pub dir: PathBuf,
    /// The log is new, and so is its cluster id.
    pub created: bool,
    /// The cluster.
    pub cluster: ClusterId,
    /// The epoch that was taken; no batch is forced under it yet.
    pub position: LogPosition,
    /// Earlier epochs that were not sealed yet: the one before this; none in a new log.
    pub sealed_epochs: usize,
    /// Decisions without an end, for recovery to deliver.
    pub unfinished: u64,
    /// The time of the newest transaction ever pruned, milliseconds since 1970; 0 if there is none.
    pub horizon_ms: u64,
    /// How a forced write is made durable, as SQLite confirmed it.
    pub durability: &'static str,
}

/// Why the log was not opened, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A newer version has changed the schema.
    #[error(
        "the decision log {file} has schema {found}, which this version does not know: start the newer version that wrote it"
    )]
    NewerSchema {
        /// The database.
        file: PathBuf,
        /// The first unknown migration.
        found: i64,
    },
    /// The schema is of no version at all.
    #[error("the decision log {file} has a schema of its own ({source}): restore it from a backup")]
    UnknownSchema {
        /// The database.
        file: PathBuf,
        /// What does not fit.
        source: MigrateError,
    },
    /// Something that was read is not what was written.
    #[error(
        "the decision log {file} is damaged ({what}): check the disk, then restore the log from a backup"
    )]
    Damaged {
        /// The database.
        file: PathBuf,
        /// What.
        what: String,
    },
    /// SQLite does not write durably here.
    #[error(
        "the decision log {file} cannot be written durably: SQLite set {setting} to {found} where {needed} is needed; use a local file system"
    )]
    NotDurable {
        /// The database.
        file: PathBuf,
        /// The pragma.
        setting: &'static str,
        /// Its value.
        found: String,
        /// What it has to be.
        needed: &'static str,
    },
    /// The truncating checkpoint did not succeed.
    #[error(
        "what is in the decision log {file} could not be made durable ({what}): check the disk and that no other program has the file open, then start again"
    )]
    NotCheckpointed {
        /// The database.
        file: PathBuf,
        /// Why.
        what: String,
    },
    /// There is no room for what opening has to write.
    #[error("there is no room for the decision log {file} ({source}): free some space, or raise the quota")]
    NoRoom {
        /// The database.
        file: PathBuf,
        /// What SQLite said.
        source: sqlx::Error,
    },
    /// A statement failed.
    #[error("cannot {doing} the decision log {file}: {source}")]
    Sqlite {
        /// What was tried.
        doing: &'static str,
        /// The database.
        file: PathBuf,
        /// What SQLite said.
        source: sqlx::Error,
    },
    /// A new epoch could not be taken.
    #[error("cannot take a new epoch in the decision log {file}: {source}")]
    NoEpoch {
        /// The database.
        file: PathBuf,
        /// What failed.
        source: AppendError,
    },
}

impl OpenError {
    /// Its code: docs/errors has a page for it.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::DataDir(error) => error.code(),
            Self::NewerSchema { .. } => Code::NewerLog,
            Self::UnknownSchema { .. } | Self::Damaged { .. } => Code::LogDamaged,
            Self::NotDurable { .. } | Self::NotCheckpointed { .. } => Code::NotDurable,
            Self::NoRoom { .. } => Code::NoRoom,
            Self::Sqlite { .. } | Self::NoEpoch { .. } => Code::CannotOpenLog,
        }
    }
}

/// Opens connections to one database, and says what went wrong with it.
pub(super) struct Opening {
    pub(super) file: PathBuf,
}

impl SqliteLog {
    /// Opens the log in this directory under a new epoch, making both if they are missing, and sealing all earlier epochs.
    /// At start only: it works on files without leaving the thread.
    ///
    /// # Errors
    /// [`OpenError`]. The directory is free again then.
    pub async fn open(dir: &Path, options: Options) -> Result<(Self, Opened), OpenError> {
        let dir = DataDir::open(dir, options.min_free_bytes)?;
        let opening = Opening { file: dir.log_file() };
        let mut forced = opening.connect(SqliteSynchronous::Full).await?;
        opening.migrate(&mut forced).await?;
        dir.sync().map_err(|source| DataDirError::Io {
            doing: "make durable the names in",
            path: dir.path().to_owned(),
            source,
        })?;
        fail::fail_point!("log-open-before-seal");
        let taken = opening.take_epoch(&mut forced).await?;
        fail::fail_point!("log-open-after-seal");
        checkpoint::truncate(&mut forced)
            .await
            .map_err(|what| OpenError::NotCheckpointed { file: opening.file.clone(), what })?;
        fail::fail_point!("log-open-after-checkpoint");

        let lazy = opening.connect(SqliteSynchronous::Normal).await?;
        let checkpoints = opening.connect(SqliteSynchronous::Full).await?;
        let readers = opening.readers().await?;
        let facts = read::facts(&readers).await;
        let facts = facts.map_err(|error| opening.read_error(&error))?;
        let opened = Opened {
            dir: dir.path().to_owned(),
            created: taken.created,
            cluster: taken.cluster,
            position: taken.own.position(),
            sealed_epochs: taken.sealed,
            unfinished: facts.unfinished,
            horizon_ms: facts.horizon_ms,
            durability: "SQLite, WAL, synchronous=FULL",
        };
        let writers = Writers { forced, lazy, own: taken.own, grown_bytes: 0 };
        Ok((Self::new(dir, taken.cluster, writers, checkpoints, readers), opened))
    }
}

impl Opening {
    fn options(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(&self.file)
            .busy_timeout(BUSY_TIMEOUT)
            // Without it, fsync on macOS does not reach the disk.
            .pragma("fullfsync", "on")
            .pragma("checkpoint_fullfsync", "on")
            .disable_statement_logging()
    }

    /// A connection that writes, and whose settings are what was asked for.
    pub(super) async fn connect(
        &self,
        synchronous: SqliteSynchronous,
    ) -> Result<SqliteConnection, OpenError> {
        let needed = match synchronous {
            SqliteSynchronous::Full => "2",
            SqliteSynchronous::Normal => "1",
            SqliteSynchronous::Off | SqliteSynchronous::Extra => {
                unreachable!("the log is written with FULL or NORMAL")
            }
        };
        let options = self
            .options()
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(synchronous)
            .pragma("wal_autocheckpoint", "0");
        let mut connection = options.connect().await.map_err(|error| self.error("open", error))?;
        let read = |error| self.error("read the settings of", error);
        let journal_mode: String =
            sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut connection).await.map_err(read)?;
        let level: i64 =
            sqlx::query_scalar("PRAGMA synchronous").fetch_one(&mut connection).await.map_err(read)?;
        let automatic: i64 =
            sqlx::query_scalar("PRAGMA wal_autocheckpoint").fetch_one(&mut connection).await.map_err(read)?;
        for (setting, found, needed) in [
            ("journal_mode", journal_mode, "wal"),
            ("synchronous", level.to_string(), needed),
            ("wal_autocheckpoint", automatic.to_string(), "0"),
        ] {
            if found != needed {
                return Err(OpenError::NotDurable { file: self.file.clone(), setting, found, needed });
            }
        }
        Ok(connection)
    }

    async fn readers(&self) -> Result<sqlx::SqlitePool, OpenError> {
        SqlitePoolOptions::new()
            .max_connections(READERS)
            .min_connections(READERS)
            .max_lifetime(None)
            .idle_timeout(None)
            .test_before_acquire(false)
            .connect_with(self.options().read_only(true))
            .await
            .map_err(|error| self.error("open", error))
    }

    pub(super) async fn migrate(&self, connection: &mut SqliteConnection) -> Result<(), OpenError> {
        let Err(error) = SCHEMA.run(connection).await else { return Ok(()) };
        let file = self.file.clone();
        // The enum is not ours, and open: what is neither of these says that the migrations were tampered with.
        if let MigrateError::VersionMissing(found) = error {
            return Err(OpenError::NewerSchema { file, found });
        }
        if let MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) = error {
            return Err(self.error("migrate the schema of", source));
        }
        Err(OpenError::UnknownSchema { file, source: error })
    }

    async fn take_epoch(&self, connection: &mut SqliteConnection) -> Result<Taken, OpenError> {
        let failed = |source| OpenError::NoEpoch { file: self.file.clone(), source };
        let broken = Broken::default();
        let mut tx = Tx::begin(connection, &broken).await.map_err(failed)?;
        match epochs::take(tx.connection()).await {
            // The connection, and with it the transaction, ends with the error.
            Err(Fault::Fatal(what)) => Err(OpenError::Damaged { file: self.file.clone(), what }),
            taken => tx.finish(taken).await.map_err(failed),
        }
    }

    /// What a fault of a transaction outside of an open log says.
    pub(super) fn fault(&self, fault: Fault) -> OpenError {
        let file = self.file.clone();
        match fault {
            Fault::Fatal(what) => OpenError::Damaged { file, what },
            Fault::Refused(why) => OpenError::NoEpoch { file, source: AppendError::Refused(why) },
        }
    }

    fn error(&self, doing: &'static str, source: sqlx::Error) -> OpenError {
        if read::is_damage(&source) {
            return OpenError::Damaged { file: self.file.clone(), what: source.to_string() };
        }
        if read::is_full(&source) {
            return OpenError::NoRoom { file: self.file.clone(), source };
        }
        OpenError::Sqlite { doing, file: self.file.clone(), source }
    }

    fn read_error(&self, error: &ReadError) -> OpenError {
        OpenError::Damaged { file: self.file.clone(), what: error.to_string() }
    }
}
