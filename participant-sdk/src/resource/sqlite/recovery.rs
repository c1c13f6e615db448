//! After a crash, or a step whose end is not known: what the journal and the evidence say, and what follows from it.

use std::sync::Arc;

use lockstep_proto::ResourceManagerId;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteConnectOptions;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use super::connection::{self, begin_immediate, connect, unavailable};
use super::entry::{Entry, Malformed};
use super::evidence::{self, Kind, NewEvidence};
use super::journal::{Found, Journal};
use super::replay::{ReplayError, replay};
use super::slot::{Misfit, Slot, Transaction};
use super::store::{OWN_WAIT, Store};
use super::turn::Turn;
use crate::resource::ResourceError;

impl Store {
    /// Recovery in a task of its own: a caller that goes away must not leave half of it behind.
    pub(super) async fn recover_apart(
        self: &Arc<Self>,
        mut slot: OwnedMutexGuard<Slot>,
        turn: Turn,
    ) -> Result<(), ResourceError> {
        let store = Arc::clone(self);
        super::in_own_task(async move {
            *slot = store.recover(turn).await?;
            Ok(())
        })
        .await
    }

    /// Reads the journal and the evidence, and does what they ask for.
    async fn recover(&self, turn: Turn) -> Result<Slot, ResourceError> {
        turn.rename("recovery".into());
        let mut connection = connect(&connection::for_replay(&self.options)).await?;
        connection::checkpoint(&mut connection).await?;
        begin_immediate(&mut connection, Instant::now() + OWN_WAIT).await?;
        let entry = match self.journal.read()? {
            Found::Entry(bytes) => Entry::decode(&bytes).map_err(|error| self.unreadable(&error))?,
            found @ (Found::Nothing | Found::Torn) => {
                connection::close(connection).await;
                if found == Found::Torn {
                    tracing::warn!(journal = %self.journal.path().display(), "an entry was not completed: that branch was never prepared");
                    self.end_mark().await.map_err(|error| ResourceError::Unavailable(error.0))?;
                }
                return Ok(Slot::Free(None));
            }
        };
        let kind =
            evidence::kind_of(&mut connection, &entry.branch).await.map_err(unavailable("the evidence"))?;
        if let Some(kind) = kind {
            tracing::info!(gtrid = %entry.branch.xid.gtrid, branch = %entry.branch, ?kind, "a branch had ended, and its end mark was missing");
            connection::close(connection).await;
            fail::fail_point!("sqlite-recovery-ended");
            self.end_mark().await.map_err(|error| ResourceError::Unavailable(error.0))?;
            return Ok(Slot::Free(None));
        }
        self.bring_back(connection, entry, turn).await
    }

    fn unreadable(&self, error: &Malformed) -> ResourceError {
        ResourceError::Unfit(format!("{}: {error}", self.journal.path().display()))
    }

    /// Writes the entry's branch again and holds it.
    async fn bring_back(
        &self,
        mut connection: SqliteConnection,
        entry: Entry,
        turn: Turn,
    ) -> Result<Slot, ResourceError> {
        fail::fail_point!("sqlite-replay-begun");
        let written = async {
            replay(&mut connection, &entry).await?;
            let row = NewEvidence {
                branch: &entry.branch,
                kind: Kind::Branch,
                position: entry.position,
                deadline_ms: entry.deadline_ms,
            };
            evidence::insert(&mut connection, &row).await?;
            Ok(())
        };
        match written.await {
            Ok(()) => {}
            Err(ReplayError::Failed(why)) => {
                return Err(ResourceError::Unavailable(format!(
                    "the prepared branch {} cannot be written again now: {why}",
                    entry.branch
                )));
            }
            Err(ReplayError::Misfit(reason)) => {
                connection::close(connection).await;
                tracing::error!(gtrid = %entry.branch.xid.gtrid, branch = %entry.branch, %reason, "a prepared branch does not fit the database any more");
                turn.rename(format!(
                    "the prepared branch {} cannot be written again ({reason}) and waits for its decision; it",
                    entry.branch
                ));
                let branch = entry.branch.clone();
                return Ok(Slot::Misfit(Box::new(Misfit { branch, entry, reason, turn })));
            }
        }
        fail::fail_point!("sqlite-replay-written");
        tracing::info!(gtrid = %entry.branch.xid.gtrid, branch = %entry.branch, "a prepared branch was written again and waits for its decision");
        let transaction = Transaction::Replayed(connection);
        Ok(Slot::prepared(entry.branch, entry.deadline_ms, transaction, turn))
    }
}

/// The database's identity; made, with the SDK's tables, at the first attach.
pub(super) async fn identify(
    options: &SqliteConnectOptions,
    journal: &Journal,
) -> Result<ResourceManagerId, ResourceError> {
    let mut connection = connect(&connection::for_replay(options)).await?;
    begin_immediate(&mut connection, Instant::now() + OWN_WAIT).await?;
    let known = evidence::identity(&mut connection).await?;
    if let Found::Entry(bytes) = journal.read()? {
        let entry = Entry::decode(&bytes).map_err(|error| ResourceError::Unfit(error.to_string()))?;
        if known != Some(entry.identity) {
            return Err(ResourceError::Unfit(format!(
                "the journal {} holds the prepared branch {} of another database: put the two files that belong together in \
                 one place",
                journal.path().display(),
                entry.branch
            )));
        }
    }
    if let Some(identity) = known {
        connection::close(connection).await;
        return Ok(identity);
    }
    let failed = || unavailable("making the SDK's tables");
    let identity = evidence::create(&mut connection).await.map_err(failed())?;
    fail::fail_point!("sqlite-attach-tables");
    connection::commit(&mut connection).await.map_err(failed())?;
    connection::close(connection).await;
    Ok(identity)
}
