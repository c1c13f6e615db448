//! What the database says of branches to a person who looks.

use lockstep_proto::{ClusterId, Gtrid, ResourceManagerName};
use sqlx::postgres::PgRow;
use sqlx::{Row as _, SqlSafeStr as _};

use super::connection::OwnPool;
use super::evidence::fate_of;
use super::recovery::{read_on_primary, run, unreadable};
use super::sql;
use crate::doctor::postgres::snapshot::BLOCKED;
use crate::resource::inspection::{Blocked, Found, Inspected, Inspection};
use crate::resource::{BranchId, Unresolved};

/// First what is prepared, then the evidence: a branch that ends in between is in at least one of the two.
pub(super) async fn inspect(
    own: &OwnPool,
    name: &ResourceManagerName,
    cluster: ClusterId,
    gtrid: Option<Gtrid>,
) -> Result<Inspection, Unresolved> {
    let reply = read_on_primary(own, sql::inspect_prepared(gtrid)).await?;
    let mut branches = Vec::new();
    for row in &reply.rows[1..] {
        let gid: &str = row.try_get("gid").map_err(unreadable)?;
        let Some(branch) = ours(gid, name) else { continue };
        branches.push(Inspected { branch, found: Found::Prepared, at_ms: at_ms(row)? });
    }
    if let Some(gtrid) = gtrid {
        let reply = run(own, sql::inspect_evidence(name, cluster, gtrid)).await?;
        for row in &reply.rows {
            branches.push(evidence(row)?);
        }
    }
    let blocked = match run(own, BLOCKED.into_sql_str()).await {
        Ok(reply) => reply.rows.iter().map(blocked).collect::<Result<_, _>>().map_err(|error| error.0),
        Err(unresolved) => Err(unresolved.0),
    };
    Ok(Inspection { branches, blocked })
}

fn ours(gid: &str, name: &ResourceManagerName) -> Option<BranchId> {
    let branch = sql::branch_of(gid)?.parse::<BranchId>().ok()?;
    (branch.xid.bqual.resource_manager_str() == name.as_str()).then_some(branch)
}

fn at_ms(row: &PgRow) -> Result<u64, Unresolved> {
    let at_ms: i64 = row.try_get("at_ms").map_err(unreadable)?;
    Ok(u64::try_from(at_ms).unwrap_or_default())
}

fn evidence(row: &PgRow) -> Result<Inspected, Unresolved> {
    let xid: &str = row.try_get("xid").map_err(unreadable)?;
    let kind: &str = row.try_get("kind").map_err(unreadable)?;
    let damaged =
        || Unresolved(format!("lockstep.evidence holds {xid:?} {kind:?}, which Lockstep did not write"));
    let branch = xid.parse().map_err(|_malformed| damaged())?;
    let fate = fate_of(kind).ok_or_else(damaged)?;
    Ok(Inspected { branch, found: Found::Ended(fate), at_ms: at_ms(row)? })
}

fn blocked(row: &PgRow) -> Result<Blocked, Unresolved> {
    let millis = |column| {
        // Not set in the first moment of a wait.
        let ms: Option<i64> = row.try_get(column).map_err(unreadable)?;
        Ok(u64::try_from(ms.unwrap_or_default()).unwrap_or_default())
    };
    let pid: i32 = row.try_get("pid").map_err(unreadable)?;
    let gid: &str = row.try_get("gid").map_err(unreadable)?;
    Ok(Blocked {
        session: u64::try_from(pid).unwrap_or_default(),
        waiting_ms: millis("since_ms")?,
        statement_ms: millis("statement_ms")?,
        object: row.try_get("object").map_err(unreadable)?,
        held_by: sql::branch_of(gid).and_then(|text| text.parse().ok()),
    })
}
