//! What becomes of branches that are not open any more: prepared, decided, or not there.
//!
//! Each end of a branch is a sequence of durable effects:
//!
//! ```text
//! prepare    evidence row in the open transaction · journal entry · vote
//! commit     COMMIT · end mark · acknowledgement
//! rollback   end mark · ROLLBACK · fence row · acknowledgement
//! ```
//!
//! A crash loses the open transaction. So on the next attach: an entry and no evidence, the branch is prepared and is
//! written again; an entry and evidence, it has ended and only the mark is missing; no entry, there is nothing to do.
//! The end mark of a rollback comes before ROLLBACK: the other way round another writer could change a row between the two, and
//! after a crash right then the entry would no longer fit the database, though nobody needs it any more.

use std::sync::Arc;

use lockstep_proto::LogPosition;
use lockstep_proto::museum::mutated;
use tokio::time::Instant;

use super::branch::OpenBranch;
use super::connection::{self, begin_immediate, connect};
use super::evidence::{self, Kind, NewEvidence, position_bytes, unix_ms};
use super::slot::{Held, Misfit, Slot, Transaction};
use super::store::{OWN_WAIT, Store};
use super::turn::{Order, Turn};
use super::writer::Writer;
use super::{failed, hazard, unresolved};
use crate::resource::{BranchId, Fate, Unresolved, wall_clock};

/// A branch that is not prepared.
#[derive(Debug)]
pub(super) enum PrepareError {
    /// And never will be.
    No(String),
    /// Or perhaps is.
    Unresolved(Unresolved),
}

impl Store {
    /// Makes the entry of an open branch durable. The branch is prepared then.
    pub(super) async fn prepare(&self, open: OpenBranch, entry: Vec<u8>) -> Result<(), PrepareError> {
        let (branch, deadline_ms) = (open.branch().clone(), open.deadline_ms());
        let (writer, turn) = open.into_parts();
        let mut slot = Arc::clone(&self.slot).lock_owned().await;
        *slot = Slot::Unknown;
        fail::fail_point!("sqlite-prepare-journal");
        if let Err(error) = self.journal.write(entry).await {
            // It may be there all the same. It must not be found later: nobody has heard a vote.
            self.end_mark().await.map_err(PrepareError::Unresolved)?;
            writer.close().await;
            *slot = Slot::Free(None);
            return Err(PrepareError::No(format!("the journal {}: {error}", self.journal.path().display())));
        }
        fail::fail_point!("sqlite-prepare-done");
        *slot = Slot::prepared(branch, deadline_ms, Transaction::Original(writer), turn);
        Ok(())
    }

    /// Commits the branch if it is prepared; tells what became of it if it is not.
    pub(super) async fn commit(
        self: &Arc<Self>,
        branch: &BranchId,
        position: &LogPosition,
    ) -> Result<Fate, Unresolved> {
        let mut slot = self.known_slot().await.map_err(unresolved)?;
        match std::mem::replace(&mut *slot, Slot::Unknown) {
            Slot::Prepared(held) if held.branch == *branch => {
                let writer = self.commit_held(*held, position).await?;
                *slot = Slot::Free(writer);
                Ok(Fate::Committed)
            }
            Slot::Misfit(misfit) if misfit.branch == *branch => {
                self.give_up(*misfit, position).await?;
                *slot = Slot::Free(None);
                Ok(Fate::Hazard)
            }
            other @ (Slot::Unknown | Slot::Free(_) | Slot::Prepared(_) | Slot::Misfit(_)) => {
                *slot = other;
                drop(slot);
                self.settle(branch, position).await
            }
        }
    }

    async fn commit_held(
        &self,
        mut held: Held,
        position: &LogPosition,
    ) -> Result<Option<Writer>, Unresolved> {
        evidence::complete(held.transaction.connection(), &held.branch, position)
            .await
            .map_err(failed("the evidence of the branch"))?;
        fail::fail_point!("sqlite-commit-begun");
        held.transaction.commit().await.map_err(failed("COMMIT"))?;
        fail::fail_point!("sqlite-commit-committed");
        if !mutated("P27-acknowledged-before-the-end-mark") {
            self.end_mark().await?;
        }
        fail::fail_point!("sqlite-commit-ended");
        // The turn goes with `held`, when the writer is in the slot or closed.
        Ok(held.transaction.ended().await)
    }

    /// Rolls the branch back if it is prepared; fences it and tells what became of it if it is not.
    pub(super) async fn rollback(
        self: &Arc<Self>,
        branch: &BranchId,
        position: &LogPosition,
    ) -> Result<Fate, Unresolved> {
        let mut slot = self.known_slot().await.map_err(unresolved)?;
        match std::mem::replace(&mut *slot, Slot::Unknown) {
            Slot::Prepared(held) if held.branch == *branch => {
                fail::fail_point!("sqlite-rollback-begun");
                self.end_mark().await?;
                fail::fail_point!("sqlite-rollback-ended");
                let (deadline_ms, turn) = (held.deadline_ms, held.turn);
                let writer = held.transaction.roll_back().await;
                *slot = Slot::Free(writer);
                drop(slot);
                fail::fail_point!("sqlite-rollback-rolled-back");
                self.fence(branch, position, deadline_ms, turn).await
            }
            // It was never written again, so there is nothing to roll back.
            Slot::Misfit(misfit) if misfit.branch == *branch => {
                self.end_mark().await?;
                *slot = Slot::Free(None);
                drop(slot);
                self.fence(branch, position, misfit.entry.deadline_ms, misfit.turn).await
            }
            other @ (Slot::Unknown | Slot::Free(_) | Slot::Prepared(_) | Slot::Misfit(_)) => {
                *slot = other;
                drop(slot);
                self.settle(branch, position).await
            }
        }
    }

    /// What became of a branch that is not prepared: its evidence, or a fence that goes in now.
    async fn settle(self: &Arc<Self>, branch: &BranchId, position: &LogPosition) -> Result<Fate, Unresolved> {
        let on_record = evidence::kind_of(&mut *self.reader().await, branch).await;
        if let Some(kind) = on_record.map_err(failed("the evidence of the branch"))? {
            return Ok(kind.fate());
        }
        let deadline = Instant::now() + OWN_WAIT;
        let turn =
            self.enter(format!("a fence for {branch}"), Order::Urgent, deadline).await.map_err(unresolved)?;
        self.fence(branch, position, evidence::latest_deadline_ms(), turn).await
    }

    /// Puts a fence in, unless there is a row already.
    async fn fence(
        &self,
        branch: &BranchId,
        position: &LogPosition,
        deadline_ms: i64,
        turn: Turn,
    ) -> Result<Fate, Unresolved> {
        let position = position_bytes(position);
        let row = NewEvidence { branch, kind: Kind::Fence, position, deadline_ms };
        let fate = self.end_without_branch(&row, turn).await?;
        fail::fail_point!("sqlite-fence-written");
        Ok(fate)
    }

    /// Writes a row of a branch that did not commit with one of its own, unless there is one already.
    pub(super) async fn end_without_branch(
        &self,
        row: &NewEvidence<'_>,
        turn: Turn,
    ) -> Result<Fate, Unresolved> {
        let mut write = self.own_write(turn).await?;
        let there = evidence::insert(&mut write.writer.connection, row)
            .await
            .map_err(failed("the evidence of the branch"))?;
        self.finish(write).await?;
        Ok(there.unwrap_or(row.kind).fate())
    }

    /// Records that a branch which was to commit never will, and keeps what it changed for a person.
    async fn give_up(&self, misfit: Misfit, position: &LogPosition) -> Result<(), Unresolved> {
        let report = hazard::set_aside(&self.file, &misfit.entry, &misfit.reason)
            .map_err(|error| Unresolved(format!("keeping what the branch changed: {error}")))?;
        fail::fail_point!("sqlite-hazard-kept");
        let row = NewEvidence {
            branch: &misfit.branch,
            kind: Kind::Hazard,
            position: position_bytes(position),
            // The retention counts from now: whoever was told to commit it must find this.
            deadline_ms: misfit.entry.deadline_ms.max(unix_ms(wall_clock())),
        };
        let mut connection = connect(&connection::for_replay(&self.options)).await.map_err(unresolved)?;
        begin_immediate(&mut connection, Instant::now() + OWN_WAIT).await.map_err(unresolved)?;
        evidence::insert(&mut connection, &row).await.map_err(failed("recording the hazard"))?;
        connection::commit(&mut connection).await.map_err(failed("recording the hazard"))?;
        fail::fail_point!("sqlite-hazard-recorded");
        connection::close(connection).await;
        self.end_mark().await?;
        tracing::error!(gtrid = %misfit.branch.xid.gtrid, branch = %misfit.branch, report = %report.display(), "a branch that was to commit is lost; a person has to look");
        Ok(())
    }
}
