//! The evidence table as a whole: its oldest row, the rows that may go, and the positions that must outlive them.

use std::time::Duration;

use fail::fail_point;
use lockstep_proto::museum::mutated;
use lockstep_proto::{ClusterId, Epoch, Gtrid, LogPosition, Positions, ResourceManagerName};
use sqlx::mysql::MySqlRow;
use sqlx::{Row as _, SqlStr};

use super::connection::{OWN_ANSWER_TIMEOUT, OwnPool, text};
use super::recovery::{lease, on_primary, run, unreadable, unresolved};
use super::sql::Schema;
use crate::resource::{BranchId, EvidenceRow, Fate, Unresolved};

/// The oldest transaction with a row of kind *branch* or *hazard*. Fences don't count: they say nothing that a pruned
/// record could contradict.
pub(super) async fn oldest(
    own: &OwnPool,
    schema: &Schema,
    name: &ResourceManagerName,
    cluster: ClusterId,
) -> Result<Option<Gtrid>, Unresolved> {
    let reply = run(own, schema.oldest_evidence(name, cluster)).await?;
    on_primary(&reply)?;
    reply.rows.get(1).map(|row| branch(row).map(|branch| branch.xid.gtrid)).transpose()
}

/// Rows that may go once they are judged: their deadline is `retention` ago, and so is the time when they were first noticed as old.
///
/// Whoever was told to commit a branch must find its evidence, however late the branch was committed: so a row is noticed first, and its
/// retention counts from then. Where a failover takes that back, it is noticed again.
pub(super) async fn old(
    own: &OwnPool,
    schema: &Schema,
    name: &ResourceManagerName,
    cluster: ClusterId,
    retention: Duration,
    limit: usize,
) -> Result<Vec<EvidenceRow>, Unresolved> {
    loop {
        let reply = run(own, schema.old_evidence(name, cluster, retention, limit)).await?;
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for row in &reply.rows {
            let noticed = row.try_get::<i64, _>("noticed").map_err(unreadable)? == 1;
            if noticed || mutated("P19-old-when-first-seen") {
                let kind = text(row, "kind").map_err(unreadable)?;
                old.push(EvidenceRow {
                    branch: branch(row)?,
                    fate: fate_of(&kind).ok_or_else(|| damaged(&kind))?,
                });
            } else {
                new.push(branch(row)?);
            }
        }
        if new.is_empty() {
            return Ok(old);
        }
        let mut lease = lease(own).await?;
        lease.run_transaction(schema.notice(&new), OWN_ANSWER_TIMEOUT).await.map_err(unresolved)?;
        // A whole list of new ones may hide old ones behind it.
        if !old.is_empty() || new.len() < limit {
            return Ok(old);
        }
    }
}

pub(super) async fn forget(
    own: &OwnPool,
    schema: &Schema,
    name: &ResourceManagerName,
    branches: &[BranchId],
) -> Result<(), Unresolved> {
    if branches.is_empty() {
        return Ok(());
    }
    let mut lease = lease(own).await?;
    let reply = lease.run(schema.positions_of(branches), OWN_ANSWER_TIMEOUT).await.map_err(unresolved)?;
    if reply.rows.is_empty() {
        return Ok(()); // None of them is there any more.
    }
    let newest = reply.rows.iter().map(position).collect::<Result<Positions, _>>()?;
    fail_point!("mysql-before-forget");
    let sql = schema.forget(name, branches, &newest);
    lease.run_transaction(sql, OWN_ANSWER_TIMEOUT).await.map_err(unresolved)?;
    fail_point!("mysql-after-forget");
    Ok(())
}

/// Runs what lets go of positions: a transaction.
pub(super) async fn settle(own: &OwnPool, sql: SqlStr) -> Result<(), Unresolved> {
    lease(own).await?.run_transaction(sql, OWN_ANSWER_TIMEOUT).await.map(drop).map_err(unresolved)
}

/// The kind of a row that a branch has written itself.
pub(super) const BRANCH: &str = "branch";

/// What a row of this kind proves; `None` of a kind that there is not.
pub(super) fn fate_of(kind: &str) -> Option<Fate> {
    match kind {
        BRANCH => Some(Fate::Committed),
        "fence" => Some(Fate::RolledBack),
        "hazard" => Some(Fate::Hazard),
        _ => None,
    }
}

/// The position in the columns `epoch`, `incarnation` and `sequence`.
pub(super) fn position(row: &MySqlRow) -> Result<LogPosition, Unresolved> {
    let epoch = row.try_get::<i64, _>("epoch").map_err(unreadable)?;
    let incarnation = text(row, "incarnation").map_err(unreadable)?;
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

fn branch(row: &MySqlRow) -> Result<BranchId, Unresolved> {
    let xid = text(row, "xid").map_err(unreadable)?;
    xid.parse().map_err(|_malformed| damaged(&xid))
}

pub(super) fn damaged(what: &str) -> Unresolved {
    Unresolved(format!("lockstep_evidence holds {what:?}, which Lockstep did not write"))
}
