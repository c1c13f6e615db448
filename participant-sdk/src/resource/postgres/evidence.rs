//! The evidence table as a whole: its oldest row, the rows that may go, and the positions that must outlive them.

use std::time::Duration;

use fail::fail_point;
use lockstep_proto::museum::mutated;
use lockstep_proto::{ClusterId, Epoch, Gtrid, LogPosition, ResourceManagerName};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::connection::OwnPool;
use super::recovery::{read_on_primary, run, unreadable};
use super::sql;
use crate::resource::{BranchId, EvidenceRow, Fate, Unresolved};

/// The oldest transaction with a row of kind *branch* or *hazard*. Fences don't count: they say nothing that a pruned
/// record could contradict.
pub(super) async fn oldest(
    own: &OwnPool,
    name: &ResourceManagerName,
    cluster: ClusterId,
) -> Result<Option<Gtrid>, Unresolved> {
    let reply = read_on_primary(own, sql::oldest_evidence(name, cluster)).await?;
    reply.rows.get(1).map(|row| branch(row).map(|branch| branch.xid.gtrid)).transpose()
}

/// Rows that may go once they are judged: their deadline is `retention` ago, and so is the time when they were first noticed as old.
///
/// Whoever was told to commit a branch must find its evidence, however late the branch was committed: so a row is noticed first, and its
/// retention counts from then. Where a failover takes that back, it is noticed again.
pub(super) async fn old(
    own: &OwnPool,
    name: &ResourceManagerName,
    cluster: ClusterId,
    retention: Duration,
    limit: usize,
) -> Result<Vec<EvidenceRow>, Unresolved> {
    loop {
        let reply = run(own, sql::old_evidence(name, cluster, retention, limit)).await?;
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for row in &reply.rows {
            if row.try_get("noticed").map_err(unreadable)? || mutated("P19-old-when-first-seen") {
                let kind = row.try_get::<&str, _>("kind").map_err(unreadable)?;
                old.push(EvidenceRow {
                    branch: branch(row)?,
                    fate: fate_of(kind).ok_or_else(|| damaged(kind))?,
                });
            } else {
                new.push(branch(row)?);
            }
        }
        if new.is_empty() {
            return Ok(old);
        }
        run(own, sql::notice(&new)).await?;
        // A whole list of new ones may hide old ones behind it.
        if !old.is_empty() || new.len() < limit {
            return Ok(old);
        }
    }
}

pub(super) async fn forget(
    own: &OwnPool,
    name: &ResourceManagerName,
    branches: &[BranchId],
) -> Result<(), Unresolved> {
    if branches.is_empty() {
        return Ok(());
    }
    fail_point!("postgres-before-forget");
    run(own, sql::forget(name, branches)).await?;
    fail_point!("postgres-after-forget");
    Ok(())
}

/// What a row of this kind proves; `None` of a kind that there is not.
pub(super) fn fate_of(kind: &str) -> Option<Fate> {
    match kind {
        "branch" => Some(Fate::Committed),
        "fence" => Some(Fate::RolledBack),
        "hazard" => Some(Fate::Hazard),
        _ => None,
    }
}

/// The position in the columns `epoch`, `incarnation` and `sequence`.
pub(super) fn position(row: &PgRow) -> Result<LogPosition, Unresolved> {
    let epoch = row.try_get::<i64, _>("epoch").map_err(unreadable)?;
    let incarnation = row.try_get::<&str, _>("incarnation").map_err(unreadable)?;
    let sequence = row.try_get::<i64, _>("sequence").map_err(unreadable)?;
    let position = || {
        Some(LogPosition {
            epoch: Epoch::new(u32::try_from(epoch).ok()?)?,
            incarnation: incarnation.parse().ok()?,
            sequence: u64::try_from(sequence).ok()?,
        })
    };
    position().ok_or_else(|| damaged(&format!("{epoch}/{incarnation}/{sequence}")))
}

fn branch(row: &PgRow) -> Result<BranchId, Unresolved> {
    let xid = row.try_get::<&str, _>("xid").map_err(unreadable)?;
    xid.parse().map_err(|_malformed| damaged(xid))
}

pub(super) fn damaged(what: &str) -> Unresolved {
    Unresolved(format!("lockstep.evidence holds {what:?}, which Lockstep did not write"))
}
