//! One SQLite transaction, and what a failure in it means.
//!
//! The line is the COMMIT. An error before it, followed by a rollback that is known to have worked, wrote nothing:
//! [`AppendError::Refused`]. An error of the COMMIT itself proves nothing: the frames may be in the write-ahead log, with
//! an fsync that failed, and be read as committed after the next start (participants.md, row 5). That is
//! [`AppendError::Unknown`], and so is every contradiction between the log and what this process believes of it, since the
//! belief is then worth nothing. After an unknown write nothing is written or read any more: the process has to end and
//! begin again from what is really there (P6).

use lockstep_proto::museum::mutated;
use sqlx::SqliteConnection;
use tokio::sync::SetOnce;

use super::read::{code, is_damage};
use crate::decision_log::AppendError;

/// Why the statements of a transaction were not carried through.
#[derive(Debug)]
pub(super) enum Fault {
    /// Not now, or not this. The log is as it was.
    Refused(String),
    /// The log contradicts this process, or is damaged.
    Fatal(String),
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        const SQLITE_IOERR: i32 = 10;
        // A disk that fails while a force is prepared is not asked to commit the next one (P6).
        if is_damage(&error) || code(&error) == Some(SQLITE_IOERR) {
            Self::Fatal(error.to_string())
        } else {
            Self::Refused(error.to_string())
        }
    }
}

/// Why the log can no longer be trusted by this process, once that is so. The first reason stays.
#[derive(Debug, Default)]
pub(super) struct Broken(SetOnce<String>);

impl Broken {
    /// From now on everything is refused as unknown.
    pub(super) fn set(&self, reason: &str) -> AppendError {
        // Only the first reason counts: the others follow from it.
        let _earlier = self.0.set(reason.to_owned());
        AppendError::Unknown(reason.to_owned())
    }

    /// The reason, if there is one.
    pub(super) fn reason(&self) -> Option<&str> {
        if mutated("P6-goes-on-after-a-failed-write") {
            return None;
        }
        self.0.get().map(String::as_str)
    }

    /// Waits until there is a reason.
    pub(super) async fn wait(&self) -> String {
        let reason = self.0.wait().await;
        match self.reason() {
            Some(_) => reason.clone(),
            None => std::future::pending().await,
        }
    }
}

/// An open transaction that holds the write lock. Dropped without [`Tx::finish`], it breaks the log: whoever dropped it may
/// have done so during the COMMIT.
pub(super) struct Tx<'a> {
    connection: &'a mut SqliteConnection,
    broken: &'a Broken,
    finished: bool,
}

impl<'a> Tx<'a> {
    /// Begins, and takes the write lock at once, so that no later statement has to.
    pub(super) async fn begin(
        connection: &'a mut SqliteConnection,
        broken: &'a Broken,
    ) -> Result<Self, AppendError> {
        if let Some(reason) = broken.reason() {
            return Err(AppendError::Unknown(reason.to_owned()));
        }
        let mut tx = Self { connection, broken, finished: false };
        match execute(tx.connection, "BEGIN IMMEDIATE").await {
            Ok(()) => Ok(tx),
            Err(error) => Err(tx.undo(error.to_string()).await),
        }
    }

    /// What the statements run on.
    pub(super) fn connection(&mut self) -> &mut SqliteConnection {
        self.connection
    }

    /// Commits if the work was done, else rolls back.
    pub(super) async fn finish<T>(mut self, work: Result<T, Fault>) -> Result<T, AppendError> {
        let done = match work {
            Ok(done) => done,
            Err(Fault::Refused(reason)) => return Err(self.undo(reason).await),
            Err(Fault::Fatal(reason)) => {
                let unknown = self.broken.set(&reason);
                // Nothing hangs on whether this works: the process ends either way.
                let _ = execute(self.connection, "ROLLBACK").await;
                self.finished = true;
                return Err(unknown);
            }
        };
        let committed = execute(self.connection, "COMMIT").await;
        self.finished = true;
        match committed {
            Ok(()) => Ok(done),
            Err(error) => Err(self.broken.set(&format!("the commit failed: {error}"))),
        }
    }

    /// Rolls back, and makes sure of it.
    async fn undo(&mut self, reason: String) -> AppendError {
        let undone = match execute(self.connection, "ROLLBACK").await {
            Ok(()) => Ok(()),
            // SQLite rolls back by itself after some errors, and then ROLLBACK fails. A BEGIN that works proves that no
            // transaction was open.
            Err(_nothing_to_roll_back) => self.prove_idle().await,
        };
        self.finished = true;
        match undone {
            Ok(()) => AppendError::Refused(reason),
            Err(error) => self.broken.set(&format!("{reason}; then the rollback failed: {error}")),
        }
    }

    async fn prove_idle(&mut self) -> Result<(), sqlx::Error> {
        execute(self.connection, "BEGIN").await?;
        execute(self.connection, "ROLLBACK").await
    }
}

impl Drop for Tx<'_> {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.broken.set("a write was given up halfway");
        }
    }
}

/// A statement without parameters and results.
pub(super) async fn execute(
    connection: &mut SqliteConnection,
    statement: &'static str,
) -> Result<(), sqlx::Error> {
    sqlx::query(statement).execute(connection).await.map(|_done| ())
}
