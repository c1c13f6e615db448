//! The one connection that writes what is forced, and what is done when it breaks in the middle of a write (P2).
//!
//! A write whose answer did not come may have been done, or may be done later: by a server process that has not even read it
//! yet. So before anything else is concluded or written, the epoch's generation is raised on a new connection. That waits for
//! whatever holds the epoch's row, and from then on no write of the old generation finds it. Only then is the batch looked for,
//! in a snapshot of its own: it is there, or it never will be.
//!
//! As long as the server cannot be reached, this waits: nobody is told anything meanwhile, and nothing is concluded. Where the row is held, the
//! server itself breaks the waiting off before this process does: else each attempt would leave a process of the server behind that waits.

use std::time::Duration;

use lockstep_proto::{Gtrid, LogPosition};
use sqlx::PgConnection;
use tokio::time::Instant;

use super::append::{Appended, Changes, MISFIT, SECOND_DECISION, append, contradiction};
use super::connect::{ConnectFailure, Connector, Failure, answer};
use super::epochs::{self, Own, Standing};
use super::{barrier, read, upkeep};
use crate::decision_log::{AppendError, ReadError};

/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(100);

/// One connection, made again when it is needed and broken. Lent out and given back only in a known state: whoever is
/// cancelled in between leaves none behind.
#[derive(Debug)]
pub(super) struct Line {
    connector: Connector,
    connection: Option<PgConnection>,
}

impl Line {
    /// A line that is connected at its first use.
    pub(super) fn new(connector: Connector) -> Self {
        Self { connector, connection: None }
    }

    /// The connection.
    pub(super) async fn lend(&mut self) -> Result<PgConnection, ConnectFailure> {
        match self.connection.take() {
            Some(connection) => Ok(connection),
            None => self.connector.connect().await,
        }
    }

    /// Takes it back: outside of a transaction, with nothing under way.
    pub(super) fn give_back(&mut self, connection: PgConnection) {
        self.connection = Some(connection);
    }

    /// Says goodbye to the server.
    pub(super) async fn close(&mut self) {
        use sqlx::Connection as _;
        if let Some(connection) = self.connection.take()
            && let Err(error) = connection.close().await
        {
            tracing::debug!(%error, "a connection to the decision log was not closed cleanly");
        }
    }
}

/// Why a batch was not written.
#[derive(Debug)]
pub(super) enum WriteError {
    /// Nothing of it was written, and nothing will be.
    Refused(String),
    /// The own epoch is sealed. Whether it was written before that, the log tells whoever asks now.
    Sealed,
    /// The log holds something else than this process believes.
    Contradiction(String),
}

/// Writes under the own epoch.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) line: Line,
    pub(super) own: Own,
    /// How long an answer to a write is waited for before its result counts as unknown.
    patience: Duration,
    /// A write was begun whose end is not known: nothing is written before the generation was raised.
    unsettled: bool,
}

impl Writer {
    /// A writer under this epoch.
    pub(super) fn new(line: Line, own: Own, patience: Duration) -> Self {
        Self { line, own, patience, unsettled: false }
    }

    /// Writes all of it or nothing, however often the connection breaks.
    pub(super) async fn write(
        &mut self,
        mut changes: Changes,
        forced: bool,
    ) -> Result<LogPosition, WriteError> {
        let mut sent = false;
        let begun = Instant::now();
        loop {
            let mut connection = match self.line.lend().await {
                Ok(connection) => connection,
                // Nothing of it was ever sent: whoever waits need not wait for the server.
                Err(error) if !sent && begun.elapsed() >= self.patience => {
                    return Err(WriteError::Refused(format!("the decision log cannot be reached: {error}")));
                }
                Err(error) => {
                    tracing::warn!(%error, "the decision log cannot be reached; trying again");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            if self.unsettled {
                match self.settle(&mut connection, &changes, sent).await {
                    Ok(Settled::Sealed) => return Err(WriteError::Sealed),
                    Ok(Settled::TailLost) => {
                        return Err(lost_tail(&mut connection, self.own.sequence).await);
                    }
                    Ok(Settled::Gone) => {
                        return Err(lost(&mut connection, epochs::gone(self.own.epoch)).await);
                    }
                    Ok(Settled::Written) => {
                        self.line.give_back(connection);
                        return Ok(self.own.position());
                    }
                    Ok(Settled::Absent) => {}
                    Err(error) => {
                        tracing::warn!(%error, "a write to the decision log is still unknown; asking again");
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                }
            }
            self.unsettled = true;
            sent = true;
            let appended = append(&mut connection, self.patience, &self.own, &changes, forced).await;
            match appended {
                Ok(Appended::Written(sequence)) => {
                    let before = self.own.sequence;
                    if sequence < before + u64::from(forced) {
                        return Err(lost_tail(&mut connection, before).await);
                    }
                    self.own.sequence = sequence;
                    self.settled(connection);
                    return Ok(self.own.position());
                }
                Ok(Appended::Misfit(gtrid)) => {
                    self.settled(connection);
                    return Err(WriteError::Contradiction(contradiction(gtrid, MISFIT).0));
                }
                // Sealed, or a new generation that this process has asked for and did not hear of.
                Ok(Appended::Fenced) => self.line.give_back(connection),
                Err(failure) if failure.is(Failure::DUPLICATE_KEY) => {
                    leave_out_what_is_there(&mut connection, self.patience, &mut changes).await?;
                    self.settled(connection);
                }
                Err(failure @ Failure::Refused { .. }) => {
                    self.settled(connection);
                    return Err(WriteError::Refused(failure.to_string()));
                }
                Err(Failure::Lost(why)) => {
                    tracing::warn!(why, "whether the decision log has a batch is unknown: it is looked for");
                }
            }
        }
    }

    fn settled(&mut self, connection: PgConnection) {
        self.unsettled = false;
        self.line.give_back(connection);
    }

    /// Puts an end to whatever is under way, and looks whether the log has the batch then. `sent`: the batch itself may be
    /// what was under way.
    async fn settle(
        &mut self,
        connection: &mut PgConnection,
        changes: &Changes,
        sent: bool,
    ) -> Result<Settled, ReadError> {
        let own = match epochs::fence(connection, self.patience, &self.own).await? {
            Standing::Unsealed(own) => own,
            Standing::Sealed => return Ok(Settled::Sealed),
            Standing::Gone => return Ok(Settled::Gone),
        };
        if own.sequence < self.own.sequence {
            return Ok(Settled::TailLost);
        }
        self.own = own;
        let written = sent && is_on_record(connection, self.patience, changes).await?;
        if written {
            // What was read leaves this node only behind a write (P3).
            barrier::pass_on(connection, self.patience, self.own.epoch).await?;
        }
        self.unsettled = false;
        Ok(if written { Settled::Written } else { Settled::Absent })
    }
}

enum Settled {
    Written,
    Absent,
    Sealed,
    TailLost,
    Gone,
}

/// The log has fewer batches of this epoch than were acknowledged (P8).
async fn lost_tail(connection: &mut PgConnection, acknowledged: u64) -> WriteError {
    lost(connection, tail_lost(acknowledged)).await
}

/// What a node says when the log lacks batches of its epoch.
pub(super) fn tail_lost(acknowledged: u64) -> String {
    format!(
        "the decision log lacks batches that it had acknowledged (up to number {acknowledged}): its server has failed over to a \
         standby that did not have them, or was restored from a backup. Stop every coordinator and run `lockstep restore`"
    )
}

/// The log is on another server by now, or was put back (P8).
async fn lost(connection: &mut PgConnection, why: String) -> WriteError {
    upkeep::leave_word(&mut *connection).await;
    WriteError::Contradiction(why)
}

/// Whether the log has every decision of these. Ends alone may be written again without harm.
async fn is_on_record(
    connection: &mut PgConnection,
    patience: Duration,
    changes: &Changes,
) -> Result<bool, ReadError> {
    let gtrids: Vec<Gtrid> = changes.decided().map(|decision| decision.gtrid).collect();
    let there = read::decisions(connection, patience, &gtrids).await?;
    let all = changes.decided().all(|decision| there.get(&decision.gtrid) == Some(&Some(decision.clone())));
    Ok(all && !gtrids.is_empty())
}

/// Takes out what is on record already as it is to be written.
async fn leave_out_what_is_there(
    connection: &mut PgConnection,
    patience: Duration,
    changes: &mut Changes,
) -> Result<(), WriteError> {
    let wanted: Vec<_> = changes.decided().cloned().collect();
    let gtrids: Vec<Gtrid> = wanted.iter().map(|decision| decision.gtrid).collect();
    let there = read::decisions(connection, patience, &gtrids).await.map_err(|error| match error {
        ReadError::Unavailable(why) => WriteError::Refused(why),
        ReadError::Damaged(why) => WriteError::Contradiction(why),
    })?;
    if there.is_empty() {
        return Err(WriteError::Refused("a decision was there and is gone again".to_owned()));
    }
    for decision in wanted {
        match there.get(&decision.gtrid) {
            None => {}
            Some(Some(same)) if *same == decision => changes.forget_decision(&decision.gtrid),
            Some(_other) => {
                return Err(WriteError::Contradiction(contradiction(decision.gtrid, SECOND_DECISION).0));
            }
        }
    }
    Ok(())
}

impl From<Failure> for AppendError {
    fn from(failure: Failure) -> Self {
        Self::Refused(failure.to_string())
    }
}

/// Runs a statement of a transaction on the writer's connection.
pub(super) async fn execute(
    connection: &mut PgConnection,
    patience: Duration,
    statement: sqlx::query::Query<'_, sqlx::Postgres, sqlx::postgres::PgArguments>,
) -> Result<u64, Failure> {
    answer(patience, statement.execute(connection)).await.map(|done| done.rows_affected())
}
