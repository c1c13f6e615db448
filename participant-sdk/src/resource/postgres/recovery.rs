//! Finishing branches that are prepared, and finding out about those that are not.
//!
//! Always in this order: finish the prepared transaction; where there is none, put a fence in; what keeps the
//! fence out is the evidence. "There is no such prepared transaction" alone says nothing: it is
//! said of branches that are committed, rolled back, and never were.
//!
//! Nothing is concluded on a standby: it refuses COMMIT PREPARED and the fence, and the listing asks.

use std::time::Duration;

use fail::fail_point;
use lockstep_proto::limits::MAX_TIMEOUT;
use lockstep_proto::{ClusterId, LogPosition, ResourceManagerName, Xid};
use sqlx::postgres::PgRow;
use sqlx::{Row as _, SqlSafeStr as _, SqlStr};

use super::connection::{Failure, Lease, OWN_ANSWER_TIMEOUT, OwnPool, Reply};
use super::evidence;
use super::refusal::{UNDEFINED_OBJECT, words_for_finishing};
use super::schema::Callable;
use super::sql::{self, Form};
use crate::resource::newest::Newest;
use crate::resource::{BranchId, Fate, Room, Unresolved};

/// How long a row is kept whose branch's deadline is not known: once for the longest time that the branch may have left, and
/// once for one that was begun as late as it could be.
const LONGEST_LIFETIME: Duration = MAX_TIMEOUT.saturating_mul(2);

/// COMMIT PREPARED; else as [`fence`] finds. The decision's position is written on the same connection before.
pub(super) async fn commit(
    own: &OwnPool,
    name: &ResourceManagerName,
    newest: &Newest,
    branch: &BranchId,
    position: &LogPosition,
    functions: &Callable,
) -> Result<Fate, Unresolved> {
    let mut lease = lease(own).await?;
    // Behind the lease: a connection that is opened later may be to a server that has lost what is not durable yet.
    if let Some(turn) = newest.turn(position).await {
        keep_position(&mut lease, name, turn.place(), functions).await?;
        turn.written();
    }
    fail_point!("postgres-before-commit-prepared");
    let is_done = finish(&mut lease, sql::commit_prepared(branch)).await?;
    fail_point!("postgres-after-commit-prepared");
    if is_done {
        return Ok(Fate::Committed);
    }
    fence(lease, branch, position).await
}

async fn keep_position(
    lease: &mut Lease,
    name: &ResourceManagerName,
    place: &LogPosition,
    functions: &Callable,
) -> Result<(), Unresolved> {
    let form = functions.form();
    let mut answer = lease.run(sql::keep_position(name, place, form), OWN_ANSWER_TIMEOUT).await;
    if let Err(Failure::Refused(error)) = &answer
        && functions.give_up_if_gone(form, error)
    {
        let statement = sql::keep_position(name, place, Form::Statements);
        answer = lease.run(statement, OWN_ANSWER_TIMEOUT).await;
    }
    answer.map(drop).map_err(unresolved)
}

/// ROLLBACK PREPARED; else as [`fence`] finds.
pub(super) async fn rollback(
    own: &OwnPool,
    branch: &BranchId,
    position: &LogPosition,
) -> Result<Fate, Unresolved> {
    let mut lease = lease(own).await?;
    fail_point!("postgres-before-rollback-prepared");
    let is_done = finish(&mut lease, sql::rollback_prepared(branch)).await?;
    fail_point!("postgres-after-rollback-prepared");
    if is_done {
        return Ok(Fate::RolledBack);
    }
    fence(lease, branch, position).await
}

/// Whether the prepared transaction was finished; `false` if there is none.
async fn finish(lease: &mut Lease, sql: SqlStr) -> Result<bool, Unresolved> {
    match lease.run(sql, OWN_ANSWER_TIMEOUT).await {
        Ok(_) => Ok(true),
        Err(Failure::Refused(error)) if error.code() == UNDEFINED_OBJECT => Ok(false),
        Err(failure) => Err(unresolved(failure)),
    }
}

/// Makes sure that a branch that is not prepared can't commit any more, or finds that it has.
///
/// A branch that is still being prepared or committed holds the key: the fence waits for it a moment, and then
/// it is not known. So does one that became prepared since [`finish`] looked.
async fn fence(mut lease: Lease, branch: &BranchId, position: &LogPosition) -> Result<Fate, Unresolved> {
    fail_point!("postgres-before-fence");
    let fence = sql::fence(branch, position, LONGEST_LIFETIME);
    let reply = lease.run(fence, OWN_ANSWER_TIMEOUT).await.map_err(unresolved)?;
    fail_point!("postgres-after-fence");
    // Pruned between the two statements.
    let gone = || Unresolved(format!("the evidence of {branch} has just gone"));
    let kind = reply.rows.first().ok_or_else(gone)?.try_get::<&str, _>("kind").map_err(unreadable)?;
    evidence::fate_of(kind).ok_or_else(|| evidence::damaged(kind))
}

/// Keeps for good that a branch can be brought to neither end: whoever asks about it later is answered from this row.
pub(super) async fn record_hazard(
    own: &OwnPool,
    branch: &BranchId,
    position: &LogPosition,
) -> Result<(), Unresolved> {
    run(own, sql::hazard(branch, position, LONGEST_LIFETIME)).await.map(drop)
}

/// The branches that are prepared in this database.
pub(super) async fn prepared(
    own: &OwnPool,
    cluster: ClusterId,
    name: &ResourceManagerName,
) -> Result<Vec<Xid>, Unresolved> {
    let reply = read_on_primary(own, sql::prepared(cluster)).await?;
    Ok(reply.rows[1..].iter().filter_map(|row| names(row, cluster, name)).collect())
}

/// The branch that a listed prepared transaction is, if it is one of `cluster` and of this resource manager.
/// Whatever else is prepared in this database is somebody else's.
pub(super) fn names(row: &PgRow, cluster: ClusterId, name: &ResourceManagerName) -> Option<Xid> {
    let gid = row.try_get::<&str, _>("gid").ok()?;
    let branch = sql::branch_of(gid)?.parse::<BranchId>().ok()?;
    let is_ours = branch.cluster == cluster && branch.xid.bqual.resource_manager_str() == name.as_str();
    is_ours.then_some(branch.xid)
}

/// Runs statements of which the first says whether the server is a standby. What a standby lacks proves nothing.
pub(super) async fn read_on_primary(own: &OwnPool, sql: SqlStr) -> Result<Reply, Unresolved> {
    let reply = run(own, sql).await?;
    let in_recovery = reply.rows.first().map(|row| row.try_get::<bool, _>("in_recovery"));
    match in_recovery {
        Some(Ok(false)) => Ok(reply),
        Some(Ok(true)) => Err(Unresolved("the server is a standby in recovery: it can't tell".to_owned())),
        Some(Err(error)) => Err(unreadable(error)),
        None => Err(Unresolved("PostgreSQL did not say whether it is a standby".to_owned())),
    }
}

/// The slots of the server, and who has them. A standby lists none and prepares none: it says so elsewhere.
pub(super) async fn room(
    own: &OwnPool,
    name: &ResourceManagerName,
    connections: usize,
) -> Result<Room, Unresolved> {
    let reply = run(own, sql::ROOM.into_sql_str()).await?;
    let (first, listed) = reply.rows.split_first().ok_or_else(|| Unresolved("no answer".to_owned()))?;
    let slots: i64 = first.try_get("slots").map_err(unreadable)?;
    let mut prepared = Vec::new();
    for row in listed {
        let gid: &str = row.try_get("gid").map_err(unreadable)?;
        let here: bool = row.try_get("here").map_err(unreadable)?;
        let branch = sql::branch_of(gid).filter(|_| here).and_then(|text| text.parse::<BranchId>().ok());
        prepared.extend(branch.filter(|branch| branch.xid.bqual.resource_manager_str() == name.as_str()));
    }
    Ok(Room {
        slots: usize::try_from(slots).unwrap_or_default(),
        prepared_by_others: listed.len() - prepared.len(),
        prepared,
        connections,
    })
}

/// Runs statements on a connection of the resource's own.
pub(super) async fn run(own: &OwnPool, sql: SqlStr) -> Result<Reply, Unresolved> {
    lease(own).await?.run(sql, OWN_ANSWER_TIMEOUT).await.map_err(unresolved)
}

async fn lease(own: &OwnPool) -> Result<Lease, Unresolved> {
    Lease::own(own).await.map_err(Unresolved)
}

fn unresolved(failure: Failure) -> Unresolved {
    Unresolved(match failure {
        Failure::Refused(error) => words_for_finishing(&error),
        Failure::Lost(why) => why,
    })
}

pub(super) fn unreadable(error: sqlx::Error) -> Unresolved {
    Unresolved(format!("PostgreSQL answered something unreadable: {error}"))
}
