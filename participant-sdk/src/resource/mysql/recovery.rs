//! Finishing branches that are prepared, and finding out about those that are not.
//!
//! Always in this order: finish the prepared branch; where there is none, look whether it is listed; where it is not, put a
//! fence in; what keeps the fence out is the evidence. "Unknown XID" alone says nothing: it is said of branches that
//! are committed, rolled back and never were, and of one that is prepared while the session that prepared it is still
//! there.
//!
//! Nor does "OK" say anything to another session than the one that prepared the branch ([`super::kept`]). So while that one is kept
//! it finishes its branch. Otherwise the branch's user lock tells whether it is still there; once the lock is free the server needs
//! another moment, which nothing shows, and is given one. What came of it is then read in the evidence, and if nothing did,
//! nothing is acknowledged: the branch is prepared until the server is restarted, and is finished then.
//!
//! Nothing is concluded on a replica that takes no writes.

use std::time::Duration;

use fail::fail_point;
use lockstep_proto::limits::MAX_TIMEOUT;
use lockstep_proto::museum::mutated;
use lockstep_proto::{ClusterId, LogPosition, ResourceManagerName, Xid};
use sqlx::mysql::MySqlRow;
use sqlx::{Row as _, SqlStr};

use super::connection::{Failure, Lease, OWN_ANSWER_TIMEOUT, OwnPool, Reply, text};
use super::evidence;
use super::kept::{KEPT_FOR, Kept};
use super::refusal::{DUPLICATE_KEY, UNKNOWN_XID, words_for_finishing};
use super::sql::{self, Schema};
use crate::resource::newest::{Newest, Turn};
use crate::resource::{BranchId, Fate, Unresolved};

/// How long a row is kept whose branch's deadline is not known: once for the longest time that the branch may have left, and
/// once for one that was begun as late as it could be.
const LONGEST_LIFETIME: Duration = MAX_TIMEOUT.saturating_mul(2);
/// How long to wait between two looks at a branch whose session is still there: the server ends it some
/// milliseconds after its client has gone.
const GLANCE: Duration = Duration::from_millis(10);
/// How often to look before asking again later: longer than another instance keeps that session, which may be of a process that
/// is stopped.
const GLANCES: u128 = 20 + KEPT_FOR.as_millis() / GLANCE.as_millis();
/// What the server is given to end a session of which it has let the user lock go.
const SESSION_ENDS_WITHIN: Duration = Duration::from_millis(10);

/// Keeps the places of decisions: of each one before it is carried out (P8).
#[derive(Clone, Copy)]
pub(super) struct Keeper<'a> {
    pub(super) schema: &'a Schema,
    pub(super) name: &'a ResourceManagerName,
    pub(super) newest: &'a Newest,
}

impl Keeper<'_> {
    /// Makes the position durable, unless the connections that are open know that it is.
    async fn keep(self, own: &OwnPool, position: &LogPosition) -> Result<(), Unresolved> {
        let Some(turn) = self.newest.turn(position).await else { return Ok(()) };
        self.write(&mut lease(own).await?, turn).await
    }

    /// The same, in the server that this connection is to.
    async fn keep_behind(self, lease: &mut Lease, position: &LogPosition) -> Result<(), Unresolved> {
        let Some(turn) = self.newest.turn(position).await else { return Ok(()) };
        self.write(lease, turn).await
    }

    async fn write(self, lease: &mut Lease, turn: Turn<'_>) -> Result<(), Unresolved> {
        let keep = self.schema.keep_position(self.name, turn.place());
        lease.run(keep, OWN_ANSWER_TIMEOUT).await.map_err(unresolved)?;
        turn.written();
        Ok(())
    }
}

/// XA COMMIT; else as [`fence`] finds. The decision's position is kept before.
pub(super) async fn commit(
    own: &OwnPool,
    kept: &Kept,
    keeper: Keeper<'_>,
    branch: &BranchId,
    position: &LogPosition,
) -> Result<Fate, Unresolved> {
    keeper.keep(own, position).await?;
    fail_point!("mysql-before-commit-prepared");
    let mut elsewhere = None;
    let is_done = finish_where_prepared(kept, branch, sql::commit).await || {
        let lease = elsewhere.insert(lease(own).await?);
        // Once more, behind the lease: it may be to a server that took the other one's place meanwhile, and has the branch and not the
        // position.
        keeper.keep_behind(lease, position).await?;
        finish_elsewhere(lease, branch, sql::commit, keeper.schema.kind(branch), true).await?
    };
    fail_point!("mysql-after-commit-prepared");
    match elsewhere.filter(|_| !is_done) {
        Some(lease) => fence(lease, keeper.schema, branch, position).await,
        None => Ok(Fate::Committed),
    }
}

/// XA ROLLBACK; else as [`fence`] finds.
pub(super) async fn rollback(
    own: &OwnPool,
    kept: &Kept,
    schema: &Schema,
    branch: &BranchId,
    position: &LogPosition,
) -> Result<Fate, Unresolved> {
    fail_point!("mysql-before-rollback-prepared");
    let mut elsewhere = None;
    let is_done = finish_where_prepared(kept, branch, sql::rollback).await || {
        let lease = elsewhere.insert(lease(own).await?);
        let evidence = schema.kind_even_if_uncommitted(branch);
        finish_elsewhere(lease, branch, sql::rollback, evidence, false).await?
    };
    fail_point!("mysql-after-rollback-prepared");
    match elsewhere.filter(|_| !is_done) {
        Some(lease) => fence(lease, schema, branch, position).await,
        None => Ok(Fate::RolledBack),
    }
}

/// Whether the branch was finished in the session that prepared it. `false`: that is not kept any more, or did not do it.
async fn finish_where_prepared(kept: &Kept, branch: &BranchId, statement: fn(&BranchId) -> SqlStr) -> bool {
    let Some(mut lease) = kept.take(branch) else { return false };
    let answer = lease.run(statement(branch), OWN_ANSWER_TIMEOUT).await;
    lease.close().await;
    if let Err(failure) = &answer {
        tracing::warn!(gtrid = %branch.xid.gtrid, %branch, ?failure, "the session that prepared a branch did not finish it; another one tries");
    }
    answer.is_ok()
}

/// Whether the branch was finished in another session than the one that prepared it; `false` if it is not among the prepared ones.
/// `evidence` asks for the branch's own evidence, which has to be there afterwards, or not.
async fn finish_elsewhere(
    lease: &mut Lease,
    branch: &BranchId,
    statement: fn(&BranchId) -> SqlStr,
    evidence: SqlStr,
    is_there_then: bool,
) -> Result<bool, Unresolved> {
    if !finish(lease, branch, statement).await? {
        return Ok(false);
    }
    let reply = lease.run(evidence, OWN_ANSWER_TIMEOUT).await.map_err(unresolved)?;
    let kind = reply.rows.first().map(|row| text(row, "kind")).transpose().map_err(unreadable)?;
    if (kind.as_deref() == Some(evidence::BRANCH)) == is_there_then {
        return Ok(true);
    }
    let why = format!(
        "the server answered {} with OK and did not do it, which MariaDB does when the session that prepared a branch is just \
         ending; {branch} stays prepared, with its locks, and is not listed: restart the database server, and it is finished then",
        statement(branch).as_str()
    );
    tracing::error!("{why}");
    Err(Unresolved(why))
}

/// Whether the prepared branch was finished; `false` if it is not among the prepared ones.
async fn finish(
    lease: &mut Lease,
    branch: &BranchId,
    statement: fn(&BranchId) -> SqlStr,
) -> Result<bool, Unresolved> {
    let mut was_there = false;
    for _ in 0..GLANCES {
        let reply = lease.run(sql::session_is_there(branch), OWN_ANSWER_TIMEOUT).await.map_err(unresolved)?;
        if is_there(&reply)? {
            was_there = true;
            tokio::time::sleep(GLANCE).await;
            continue;
        }
        if std::mem::take(&mut was_there) {
            tokio::time::sleep(SESSION_ENDS_WITHIN).await;
        }
        match lease.run(statement(branch), OWN_ANSWER_TIMEOUT).await {
            Ok(_) => return Ok(true),
            Err(Failure::Refused(error)) if error.number() == UNKNOWN_XID => {
                if mutated("P24-unknown-xid-is-done") {
                    return Ok(true);
                }
            }
            Err(failure) => return Err(unresolved(failure)),
        }
        let reply = lease.run(sql::prepared(), OWN_ANSWER_TIMEOUT).await.map_err(unresolved)?;
        if !listed(&reply)?.contains(branch) {
            return Ok(false);
        }
        tokio::time::sleep(GLANCE).await;
    }
    Err(Unresolved(format!(
        "{branch} is prepared, or is being prepared, in a session that is still there, so that nobody else may finish it"
    )))
}

fn is_there(reply: &Reply) -> Result<bool, Unresolved> {
    let row = reply.rows.first();
    let row =
        row.ok_or_else(|| Unresolved("the database did not say whether a session is there".to_owned()))?;
    row.try_get::<i64, _>("is_there").map(|is_there| is_there != 0).map_err(unreadable)
}

/// Makes sure that a branch that is not prepared can't commit any more, or finds that it has.
///
/// A branch that is still being prepared or committed holds the key: the fence waits for it a moment, and then
/// it is not known. So does one that became prepared since [`finish`] looked.
async fn fence(
    mut lease: Lease,
    schema: &Schema,
    branch: &BranchId,
    position: &LogPosition,
) -> Result<Fate, Unresolved> {
    fail_point!("mysql-before-fence");
    match lease.run(schema.fence(branch, position, LONGEST_LIFETIME), OWN_ANSWER_TIMEOUT).await {
        Ok(_) => {
            fail_point!("mysql-after-fence");
            return Ok(Fate::RolledBack);
        }
        // In a statement of its own, whose snapshot has what kept the fence out (P15).
        Err(Failure::Refused(error)) if error.number() == DUPLICATE_KEY => {}
        Err(failure) => return Err(unresolved(failure)),
    }
    let reply = lease.run(schema.kind(branch), OWN_ANSWER_TIMEOUT).await.map_err(unresolved)?;
    let kind = reply.rows.first().map(|row| text(row, "kind")).transpose().map_err(unreadable)?;
    // Pruned between the two statements.
    let gone = || Unresolved(format!("the evidence of {branch} has just gone"));
    let kind = kind.ok_or_else(gone)?;
    evidence::fate_of(&kind).ok_or_else(|| evidence::damaged(&kind))
}

/// Keeps for good that a branch can be brought to neither end: whoever asks about it later is answered from this row.
pub(super) async fn record_hazard(
    own: &OwnPool,
    schema: &Schema,
    branch: &BranchId,
    position: &LogPosition,
) -> Result<(), Unresolved> {
    run(own, schema.hazard(branch, position, LONGEST_LIFETIME)).await.map(drop)
}

/// The branches of this resource manager that are prepared.
pub(super) async fn prepared(
    own: &OwnPool,
    cluster: ClusterId,
    name: &ResourceManagerName,
) -> Result<Vec<Xid>, Unresolved> {
    let reply = run(own, sql::prepared()).await?;
    let is_ours = |branch: &BranchId| {
        let is_named = branch.xid.bqual.resource_manager_str() == name.as_str();
        branch.cluster == cluster && (is_named || mutated("P18-lists-the-neighbours-branches"))
    };
    Ok(listed(&reply)?.into_iter().filter(is_ours).map(|branch| branch.xid).collect())
}

/// All branches of any of our clusters that [`sql::prepared`] lists. Whatever else is prepared is somebody else's.
pub(super) fn listed(reply: &Reply) -> Result<Vec<BranchId>, Unresolved> {
    on_primary(reply)?;
    let branch = |row: &MySqlRow| -> Result<Option<BranchId>, Unresolved> {
        let number = |column| row.try_get::<i64, _>(column).map_err(unreadable);
        let data: &[u8] = row.try_get_unchecked("data").map_err(unreadable)?;
        let text = sql::branch_of(number("formatID")?, number("gtrid_length")?, data);
        Ok(text.and_then(|text| text.parse().ok()))
    };
    reply.rows[1..].iter().filter_map(|row| branch(row).transpose()).collect()
}

/// Refuses an answer whose first row says that the server takes no writes. What a replica lacks proves nothing.
pub(super) fn on_primary(reply: &Reply) -> Result<(), Unresolved> {
    match reply.rows.first().map(|row| row.try_get::<i64, _>("read_only")) {
        Some(Ok(0)) => Ok(()),
        Some(Ok(_)) => Err(Unresolved("the server is read-only, as a replica is: it can't tell".to_owned())),
        Some(Err(error)) => Err(unreadable(error)),
        None => Err(Unresolved("the database did not say whether it is read-only".to_owned())),
    }
}

/// Runs statements on a connection of the resource's own.
pub(super) async fn run(own: &OwnPool, sql: SqlStr) -> Result<Reply, Unresolved> {
    lease(own).await?.run(sql, OWN_ANSWER_TIMEOUT).await.map_err(unresolved)
}

pub(super) async fn lease(own: &OwnPool) -> Result<Lease, Unresolved> {
    Lease::own(own).await.map_err(Unresolved)
}

pub(super) fn unresolved(failure: Failure) -> Unresolved {
    Unresolved(match failure {
        Failure::Refused(error) => words_for_finishing(&error),
        Failure::Lost(why) => why,
    })
}

pub(super) fn unreadable(error: sqlx::Error) -> Unresolved {
    Unresolved(format!("the database answered something unreadable: {error}"))
}
