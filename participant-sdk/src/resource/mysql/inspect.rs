//! What the database says of branches to a person who looks.

use lockstep_proto::{ClusterId, Gtrid, ResourceManagerName};
use sqlx::mysql::MySqlRow;
use sqlx::{Row as _, SqlSafeStr as _};

use super::connection::{OwnPool, text};
use super::evidence::fate_of;
use super::recovery::{listed, run, unreadable};
use super::sql::{self, Schema};
use crate::resource::inspection::{Blocked, Found, Inspected, Inspection, MOST};
use crate::resource::{BranchId, Unresolved};

/// First what is prepared, then the evidence: a branch that ends in between is in at least one of the two. XA does not say since
/// when a branch is prepared.
pub(super) async fn inspect(
    own: &OwnPool,
    schema: &Schema,
    name: &ResourceManagerName,
    cluster: ClusterId,
    gtrid: Option<Gtrid>,
) -> Result<Inspection, Unresolved> {
    let prepared = listed(&run(own, sql::prepared()).await?)?;
    let wanted = |branch: &&BranchId| {
        branch.xid.bqual.resource_manager_str() == name.as_str()
            && gtrid.is_none_or(|gtrid| branch.xid.gtrid == gtrid)
    };
    let found = |branch: &BranchId| Inspected { branch: branch.clone(), found: Found::Prepared, at_ms: 0 };
    let mut branches: Vec<_> = prepared.iter().filter(wanted).take(MOST).map(found).collect();
    if let Some(gtrid) = gtrid {
        let reply = run(own, schema.inspect_evidence(name, cluster, gtrid)).await?;
        for row in &reply.rows {
            branches.push(evidence(row)?);
        }
    }
    let blocked = blocked(own, &prepared).await;
    Ok(Inspection { branches, blocked })
}

fn evidence(row: &MySqlRow) -> Result<Inspected, Unresolved> {
    let xid = text(row, "xid").map_err(unreadable)?;
    let kind = text(row, "kind").map_err(unreadable)?;
    let at_ms: i64 = row.try_get("at_ms").map_err(unreadable)?;
    let damaged =
        || Unresolved(format!("lockstep_evidence holds {xid:?} {kind:?}, which Lockstep did not write"));
    let branch = xid.parse().map_err(|_malformed| damaged())?;
    let fate = fate_of(&kind).ok_or_else(damaged)?;
    Ok(Inspected { branch, found: Found::Ended(fate), at_ms: u64::try_from(at_ms).unwrap_or_default() })
}

/// The server names the transaction that is waited for by a number of its own, which XA RECOVER does not tell: only where one branch is
/// prepared in the whole server is it known which one that is.
async fn blocked(own: &OwnPool, prepared: &[BranchId]) -> Result<Vec<Blocked>, String> {
    let version = run(own, sql::VERSION.into_sql_str()).await.map_err(|error| error.0)?;
    let version = version.rows.first().map(|row| text(row, "version")).transpose();
    let is_mariadb = version.map_err(|error| error.to_string())?.is_some_and(|text| text.contains("MariaDB"));
    let question = if is_mariadb { sql::BLOCKED_IN_MARIADB } else { sql::BLOCKED_IN_MYSQL };
    let reply = run(own, question.into_sql_str())
        .await
        .map_err(|error| format!("{} (the service's user needs PROCESS to see it)", error.0))?;
    let held_by = match prepared {
        [only] => Some(only.clone()),
        _several => None,
    };
    let blocked = |row: &MySqlRow| {
        let number = |column| -> sqlx::Result<u64> {
            let number: Option<i64> = row.try_get(column)?;
            Ok(u64::try_from(number.unwrap_or_default()).unwrap_or_default())
        };
        Ok(Blocked {
            session: number("session")?,
            waiting_ms: number("seconds")?.saturating_mul(1000),
            statement_ms: number("statement_ms")?,
            object: text(row, "object")?,
            held_by: held_by.clone(),
        })
    };
    reply.rows.iter().map(blocked).collect::<sqlx::Result<_>>().map_err(|error| error.to_string())
}
