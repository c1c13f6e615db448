//! This node among the others on the log: it keeps its own lease, seals and adopts what others have left (P5), and gives its lease up when it goes.

use std::sync::atomic::Ordering;
use std::time::Duration;

use lockstep_proto::Epoch;
use sqlx::PgConnection;

use super::connect::Failure;
use super::epochs::{self, Expired, NodeAddress, Renewal, Sealed, Standing};
use super::{PostgresLog, durability, open_line, upkeep, writer};
use crate::decision_log::{AppendError, ReadError};

/// Attempts to renew a lease before it has run out, if the first one gets no answer.
const ATTEMPTS: u32 = 3;
/// No renewal takes longer on a server that is well.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks at who keeps a row from being sealed.
const LOOK: Duration = Duration::from_millis(100);
/// How long closing may take: whoever waits for it is about to end, and the server finds out by itself who is gone.
const TO_RELEASE: Duration = Duration::from_secs(3);
const GOODBYE: Duration = Duration::from_secs(2);

/// How long an answer to a renewal is waited for: so that another connection still comes in time.
pub(super) fn patience(lease: Duration) -> Duration {
    (lease / ATTEMPTS).clamp(LEAST_PATIENCE, epochs::PATIENCE)
}

impl PostgresLog {
    /// Renews the lease, and publishes what prunes of other nodes stay below (P7). Who shares the log, as far as they have said where
    /// they are reached: at most [`lockstep_proto::limits::MAX_NODES`].
    ///
    /// # Errors
    /// [`AppendError::Sealed`] if another node has taken over: this life is over. [`AppendError::Unknown`] if the log has lost this epoch or
    /// batches of it, or its server was told that it may lose what it acknowledges: the process has to end. [`AppendError::Refused`] if the server did not answer in
    /// time: try again, on another connection.
    pub async fn renew(&self, renewal: Renewal) -> Result<Vec<NodeAddress>, AppendError> {
        let patience = patience(self.lease);
        let mut guard = self.keeper.lock().await;
        self.goes_on()?;
        let keeper = open_line(&mut guard)?;
        let connected = tokio::time::timeout(patience, keeper.lend()).await;
        // Read before the log is asked: what was acknowledged by now, it has to have.
        let acknowledged = self.sequence.load(Ordering::Acquire);
        let late = |_elapsed| Failure::Lost(format!("no connection within {patience:?}"));
        let mut connection = connected.map_err(late)?.map_err(Failure::from)?;
        match epochs::renew(&mut connection, patience, &self.start, self.lease, renewal).await? {
            Standing::Unsealed(renewed) if renewed.sequence < acknowledged => {
                upkeep::leave_word(&mut connection).await;
                Err(self.end(AppendError::Unknown(writer::tail_lost(acknowledged))))
            }
            Standing::Unsealed(renewed) => {
                keeper.give_back(connection);
                durability::judge(renewed.settings, self.connector.accepted())
                    .map_err(|unfit| self.end(AppendError::Unknown(unfit.to_string())))?;
                Ok(renewed.nodes)
            }
            Standing::Sealed => Err(self.end_sealed()),
            Standing::Gone => Err(self.end_gone(&mut connection).await),
        }
    }

    /// Seals and adopts every epoch whose lease has run out. Every epoch that this node owns then, its own not among
    /// them: their unfinished decisions are this node's to deliver.
    ///
    /// # Errors
    /// [`ReadError`]: try again.
    pub async fn take_over(&self) -> Result<Vec<Epoch>, ReadError> {
        self.seal_and_adopt(true).await
    }

    /// The same, but only of epochs whose node has given its lease up, or that an earlier life of this node left.
    ///
    /// # Errors
    /// As [`PostgresLog::take_over`].
    pub async fn take_over_what_was_given_up(&self) -> Result<Vec<Epoch>, ReadError> {
        self.seal_and_adopt(false).await
    }

    async fn seal_and_adopt(&self, run_out: bool) -> Result<Vec<Epoch>, ReadError> {
        let mut guard = self.sealer.lock().await;
        let sealer = open_line(&mut guard)?;
        let mut connection = sealer.lend().await?;
        let succeeds = self.succeeds.as_deref();
        for expired in epochs::expired(&mut connection, &self.start, run_out, succeeds).await? {
            let sealed = match epochs::seal(&mut connection, &self.start, &expired).await {
                Err(failure) if failure.is(Failure::LOCK_NOT_AVAILABLE) => {
                    self.seal_what_is_held(&mut connection, &expired).await
                }
                sealed => sealed,
            };
            match sealed {
                Ok(Sealed::Now) => {
                    tracing::warn!(epoch = %expired.epoch, "its node is gone: sealed, and adopted");
                }
                Ok(Sealed::Before | Sealed::OwnIsOver) => {}
                Err(failure) if failure.is(Failure::LOCK_NOT_AVAILABLE) => {
                    tracing::warn!(epoch = %expired.epoch, "its row is held: sealing is tried again");
                }
                Err(failure) => return Err(failure.into()),
            }
        }
        let owned = epochs::owned(&mut connection, &self.start).await?;
        sealer.give_back(connection);
        Ok(owned)
    }

    /// Tries to seal an epoch once more, and ends whoever holds its row meanwhile: only as long as somebody waits for it does the server tell who
    /// that is.
    async fn seal_what_is_held(
        &self,
        connection: &mut PgConnection,
        expired: &Expired,
    ) -> Result<Sealed, Failure> {
        let sealer = epochs::process(connection).await?;
        let mut beside = self.connector.connect().await?;
        let sealing = epochs::seal(connection, &self.start, expired);
        tokio::pin!(sealing);
        // The seal is carried through, whatever comes of the looks.
        tokio::select! {
            sealed = &mut sealing => return sealed,
            failed = end_holders(&mut beside, expired, sealer) => {
                tracing::warn!(%failed, epoch = %expired.epoch, "who keeps it from being sealed is not known");
            }
        }
        sealing.await
    }

    pub(super) async fn close_now(&self) {
        let late = |_elapsed| Err(Failure::Lost(format!("no answer within {TO_RELEASE:?}")));
        if let Err(error) = tokio::time::timeout(TO_RELEASE, self.release()).await.unwrap_or_else(late) {
            tracing::warn!(%error, "the lease was not given up: another node takes over when it has run out");
        }
        let sealer = async {
            if let Some(mut sealer) = self.sealer.lock().await.take() {
                sealer.close().await;
            }
        };
        let writer = async {
            if let Some(mut writer) = self.writer.lock().await.take() {
                writer.line.close().await;
            }
        };
        let goodbye = futures::future::join3(self.readers.close(), sealer, writer);
        if tokio::time::timeout(GOODBYE, goodbye).await.is_err() {
            tracing::warn!("connections to the decision log do not answer, and are left");
        }
    }

    async fn release(&self) -> Result<(), Failure> {
        let Some(mut keeper) = self.keeper.lock().await.take() else { return Ok(()) };
        let mut connection = keeper.lend().await?;
        epochs::release(&mut connection, &self.start).await?;
        keeper.give_back(connection);
        keeper.close().await;
        Ok(())
    }
}

/// Ends whoever keeps `sealer`, a server's process, from sealing this epoch, as long as it waits. Why it could not go on.
async fn end_holders(connection: &mut PgConnection, expired: &Expired, sealer: i32) -> Failure {
    loop {
        tokio::time::sleep(LOOK).await;
        match epochs::end_sessions(connection, expired, sealer).await {
            Ok(0) => {}
            Ok(ended) => {
                tracing::warn!(epoch = %expired.epoch, ended, "sessions kept it from being sealed: ended");
            }
            Err(failure) => return failure,
        }
    }
}
