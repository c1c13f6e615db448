//! What is known of the journal, and what a prepared branch holds.

use sqlx::SqliteConnection;

use super::connection;
use super::entry::Entry;
use super::turn::Turn;
use super::writer::Writer;
use crate::resource::BranchId;

/// What is known of the journal.
#[derive(Debug)]
pub(super) enum Slot {
    /// It has to be read again, with the evidence.
    Unknown,
    /// It has no entry. Perhaps a writer that is open and idle.
    Free(Option<Writer>),
    /// Its entry is a prepared branch, whose transaction is open.
    Prepared(Box<Held>),
    /// Its entry is a prepared branch that could not be written again.
    Misfit(Box<Misfit>),
}

/// A prepared branch.
#[derive(Debug)]
pub(super) struct Held {
    pub branch: BranchId,
    pub deadline_ms: i64,
    pub transaction: Transaction,
    pub turn: Turn,
}

/// The transaction of a prepared branch.
#[derive(Debug)]
pub(super) enum Transaction {
    /// The one that the handler worked in.
    Original(Writer),
    /// One that was written from the journal.
    Replayed(SqliteConnection),
}

/// A prepared branch that does not fit the database any more. Nobody writes through the SDK until it is decided: what
/// it changed would otherwise be changed by others too, and a person could not tell any more what it had been.
#[derive(Debug)]
pub(super) struct Misfit {
    pub branch: BranchId,
    pub entry: Entry,
    pub reason: String,
    pub turn: Turn,
}

impl Transaction {
    /// The transaction's connection.
    pub(super) fn connection(&mut self) -> &mut SqliteConnection {
        match self {
            Self::Original(writer) => &mut writer.connection,
            Self::Replayed(connection) => connection,
        }
    }

    /// Commits. After an error the outcome is unknown.
    pub(super) async fn commit(&mut self) -> Result<(), sqlx::Error> {
        match self {
            Self::Original(writer) => writer.commit().await,
            Self::Replayed(connection) => connection::commit(connection).await,
        }
    }

    /// Rolls back; the writer, if it can be used again.
    pub(super) async fn roll_back(mut self) -> Option<Writer> {
        match connection::rollback(self.connection()).await {
            Ok(()) => self.ended().await,
            Err(error) => {
                tracing::warn!(%error, "ROLLBACK failed: the connection is closed instead");
                match self {
                    Self::Original(writer) => writer.close().await,
                    Self::Replayed(connection) => connection::close(connection).await,
                }
                None
            }
        }
    }

    /// The writer, if it can be used again.
    pub(super) async fn ended(self) -> Option<Writer> {
        match self {
            Self::Original(writer) => Some(writer),
            // It was opened for this one branch, without foreign keys and capture.
            Self::Replayed(connection) => {
                connection::close(connection).await;
                None
            }
        }
    }
}

impl Slot {
    /// A prepared branch, which has the turn from now on.
    pub(super) fn prepared(branch: BranchId, deadline_ms: i64, transaction: Transaction, turn: Turn) -> Self {
        turn.rename(format!("the prepared branch {branch}"));
        Self::Prepared(Box::new(Held { branch, deadline_ms, transaction, turn }))
    }

    /// The branch that the journal has.
    pub(super) fn branch(&self) -> Option<&BranchId> {
        match self {
            Self::Unknown | Self::Free(_) => None,
            Self::Prepared(held) => Some(&held.branch),
            Self::Misfit(misfit) => Some(&misfit.branch),
        }
    }
}
