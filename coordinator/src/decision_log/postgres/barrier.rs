//! What is read leaves this node only behind a write that was acknowledged (P3).
//!
//! A record is visible on the primary before a synchronous standby has it. A node that acts on it then commits a branch, and if
//! the primary is lost at that moment, the standby that takes over has no record, and another branch is presumed rolled back. The
//! server acknowledges writes in the order of its log: a write that was begun after the read, and is acknowledged, has everything
//! with it that the read has seen. It has to change a row: a write that touches nothing waits for nothing.
//!
//! One write serves every read that was done before it began.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockstep_proto::Epoch;
use lockstep_proto::museum::mutated;
use sqlx::PgPool;
use sqlx::postgres::PgConnection;
use tokio::sync::Mutex;

use super::connect::{Failure, answer};
use super::read::PATIENCE;
use crate::decision_log::ReadError;

/// Writes for many readers at once.
#[derive(Debug)]
pub(super) struct Barrier {
    epoch: Epoch,
    /// Reads that have asked for a write.
    asked: AtomicU64,
    /// Of those, how many one has been acknowledged for.
    passed: Mutex<u64>,
}

impl Barrier {
    /// Over the row of this epoch.
    pub(super) fn new(epoch: Epoch) -> Self {
        Self { epoch, asked: AtomicU64::new(0), passed: Mutex::new(0) }
    }

    /// Returns when a write that was begun after this call has been acknowledged.
    pub(super) async fn pass(&self, pool: &PgPool) -> Result<(), ReadError> {
        if mutated("P3-reads-without-a-write") {
            return Ok(());
        }
        let ticket = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut passed = self.passed.lock().await;
        if *passed >= ticket {
            return Ok(());
        }
        let serves = self.asked.load(Ordering::SeqCst);
        let mut connection = answer(PATIENCE, pool.acquire()).await?;
        pass_on(&mut connection, PATIENCE, self.epoch).await?;
        *passed = serves;
        Ok(())
    }
}

/// The write itself.
pub(super) async fn pass_on(
    connection: &mut PgConnection,
    within: Duration,
    epoch: Epoch,
) -> Result<(), ReadError> {
    let statement = sqlx::query("UPDATE lockstep_log.barriers SET passed = passed + 1 WHERE epoch = $1")
        .bind(i64::from(epoch.get()));
    let done = answer(within, statement.execute(connection)).await?;
    match done.rows_affected() {
        1 => Ok(()),
        // Then it has waited for nothing.
        _none => Err(Failure::Lost(format!("epoch {epoch} has no row to write to")).into()),
    }
}
