//! The ends of an open branch: prepared, read-only, committed in one phase, refused.

use std::sync::Arc;

use lockstep_proto::LogPosition;

use super::branch::{OpenBranch, Refused};
use super::capture::{CaptureError, Changes};
use super::connection::{self, is_constraint};
use super::decided::PrepareError;
use super::entry::Entry;
use super::evidence::{Kind, NewEvidence, position_bytes, unix_ms};
use super::foreign_keys;
use super::journal::MAX_ENTRY_BYTES;
use super::store::Store;
use crate::resource::{Fate, Prepared, Unresolved, wall_clock};

/// What an open branch turned out to be.
enum Work {
    /// Nothing is different.
    Nothing,
    /// This has to be in the journal.
    Entry(Vec<u8>),
}

/// Prepares a branch.
pub(super) async fn prepare(
    store: &Arc<Store>,
    mut open: OpenBranch,
    position: &LogPosition,
) -> Result<Prepared, Unresolved> {
    match work_of(store, &mut open, position).await {
        Ok(Work::Nothing) => {
            end_read_only(store, open).await;
            Ok(Prepared::ReadOnly)
        }
        Ok(Work::Entry(entry)) => match store.prepare(open, entry).await {
            Ok(()) => Ok(Prepared::Yes),
            Err(PrepareError::No(why)) => Ok(Prepared::No(why)),
            Err(PrepareError::Unresolved(error)) => Err(error),
        },
        Err(refused) => refuse(store, open, position, refused).await,
    }
}

/// Takes the branch back from its handler, and writes its evidence into its transaction if it has changed something.
async fn work_of(store: &Arc<Store>, open: &mut OpenBranch, position: &LogPosition) -> Result<Work, Refused> {
    open.take_back().await?;
    let may_defer = open.defers_keys();
    let mut reader = store.reader().await;
    let changes = open.changes(&mut reader).await?;
    if changes.is_empty() {
        return Ok(Work::Nothing);
    }
    let violated =
        foreign_keys::violated(open.connection(), &mut reader, &changes.touched, may_defer).await?;
    drop(reader);
    if let Some(why) = violated {
        return Err(Refused::No(why));
    }
    let position = position_bytes(position);
    let entry = entry_of(store, open, changes, position).encode();
    if entry.len() > MAX_ENTRY_BYTES {
        return Err(CaptureError::TooLarge.into());
    }
    open.insert_evidence(position).await?;
    Ok(Work::Entry(entry))
}

fn entry_of(store: &Store, open: &OpenBranch, changes: Changes, position: [u8; 28]) -> Entry {
    Entry {
        branch: open.branch().clone(),
        identity: store.identity,
        deadline_ms: open.deadline_ms(),
        prepared_ms: unix_ms(wall_clock()),
        position,
        tables: changes.tables,
        sequences: changes.sequences,
    }
}

async fn end_read_only(store: &Store, open: OpenBranch) {
    let (mut writer, _turn) = open.into_parts();
    match connection::rollback(&mut writer.connection).await {
        Ok(()) => store.put_back(writer).await,
        Err(error) => {
            tracing::warn!(%error, "ROLLBACK failed: the connection is closed instead");
            writer.close().await;
        }
    }
}

async fn refuse(
    store: &Store,
    open: OpenBranch,
    position: &LogPosition,
    refused: Refused,
) -> Result<Prepared, Unresolved> {
    let branch = open.branch().clone();
    match refused {
        Refused::Hazard(why) => {
            record_hazard(store, open, position, &why).await;
            Ok(Prepared::Hazard(why))
        }
        Refused::No(why) => {
            open.close().await;
            Ok(Prepared::No(why))
        }
        Refused::Ended(kind) => {
            open.close().await;
            match kind {
                Kind::Fence => Ok(Prepared::No("it was rolled back before it was prepared".into())),
                Kind::Branch | Kind::Hazard => Err(Unresolved(format!(
                    "the branch {branch} has ended before, and its evidence says {kind:?}"
                ))),
            }
        }
    }
}

/// Rolls back what is left of the branch, and keeps for good that it can be brought to neither end.
async fn record_hazard(store: &Store, open: OpenBranch, position: &LogPosition, why: &str) {
    let (branch, deadline_ms) = (open.branch().clone(), open.deadline_ms());
    tracing::error!(gtrid = %branch.xid.gtrid, %branch, "{why}");
    let (writer, turn) = open.into_parts();
    writer.close().await;
    let row =
        NewEvidence { branch: &branch, kind: Kind::Hazard, position: position_bytes(position), deadline_ms };
    if let Err(unresolved) = store.end_without_branch(&row, turn).await {
        tracing::error!(gtrid = %branch.xid.gtrid, %branch, "the evidence of this hazard could not be written: {unresolved}");
    }
}

/// Commits a branch that was not prepared.
pub(super) async fn commit_one_phase(
    store: &Arc<Store>,
    mut open: OpenBranch,
    position: &LogPosition,
) -> Result<Fate, Unresolved> {
    let branch = open.branch().clone();
    match ready_to_commit(&mut open, position).await {
        Ok(()) => {}
        Err(Refused::Hazard(why)) => {
            record_hazard(store, open, position, &why).await;
            return Ok(Fate::Hazard);
        }
        Err(Refused::Ended(kind)) => {
            open.close().await;
            return Ok(kind.fate());
        }
        Err(Refused::No(why)) => {
            open.close().await;
            tracing::warn!(gtrid = %branch.xid.gtrid, %branch, %why, "a branch was rolled back instead of committed in one phase");
            return Ok(Fate::RolledBack);
        }
    }
    fail::fail_point!("sqlite-one-phase-begun");
    let (mut writer, _turn) = open.into_parts();
    match store.commit_writer(&mut writer).await {
        Ok(()) => {
            fail::fail_point!("sqlite-one-phase-committed");
            store.put_back(writer).await;
            Ok(Fate::Committed)
        }
        // A deferred foreign key: SQLite has looked at it before it wrote anything.
        Err(error) if is_constraint(&error) => {
            writer.close().await;
            tracing::warn!(gtrid = %branch.xid.gtrid, %branch, %error, "a branch was rolled back instead of committed in one phase");
            Ok(Fate::RolledBack)
        }
        Err(error) => {
            writer.close().await;
            Err(Unresolved(format!("whether the branch {branch} is committed is unknown: {error}")))
        }
    }
}

async fn ready_to_commit(open: &mut OpenBranch, position: &LogPosition) -> Result<(), Refused> {
    open.take_back().await?;
    open.clear().await?;
    open.insert_evidence(position_bytes(position)).await
}

impl From<CaptureError> for Refused {
    fn from(error: CaptureError) -> Self {
        Self::No(error.to_string())
    }
}
