//! A branch while it is open: begun, prepared, committed in one phase, or given up.
//!
//! To prepare takes two round trips. The first writes the evidence and asks what happened in the branch. Only when
//! its OK was read does the second one end the work and prepare it (P18): XA PREPARE succeeds as well where the
//! evidence was refused, and where a statement of the handler failed and its error was swallowed. So until then a
//! branch is certainly not prepared, whatever happens to the connection.
//!
//! What the server can tell of a branch is in its session's counters ([`Counters`]): whether a statement was undone,
//! whether anything was written, whether XA statements were sent that are not ours.

use std::time::Duration;

use fail::fail_point;
use lockstep_proto::LogPosition;
use lockstep_proto::museum::mutated;
use sqlx::mysql::MySqlDatabaseError;
use sqlx::{MySqlPool, Row as _, SqlStr};
use tokio::time::Instant;

use super::connection::{Failure, Lease, OwnPool, Reply};
use super::kept::Kept;
use super::recovery;
use super::refusal::{NOT_TRIED, WORK_OUTSIDE, words};
use super::session::{KillOnDrop, Session};
use super::sql::{self, Schema};
use super::waits::{Waits, Watch};
use crate::resource::{BranchId, Fate, Prepared, ResourceError, Unresolved, lock_wait};

/// How long after the deadline the server may still end what runs in a branch, and take a prepare that was on
/// its way.
const GRACE: Duration = Duration::from_secs(1);
/// How long to wait beyond that for the answer of a server that waits for its disk or its replicas.
const ANSWER_GRACE: Duration = Duration::from_secs(10);
/// How long the server waits for XA PREPARE once it has the evidence, and for the session's end behind that. One
/// round trip, and much more for a machine that is busy with other things.
const PAUSE: Duration = Duration::from_secs(5);
/// How long an orderly rollback may take before the session is killed instead.
const ROLLBACK_TIMEOUT: Duration = Duration::from_secs(1);

/// The local transaction of a branch, and the connection that it is on. Dropped, it is rolled back by closing
/// that.
#[derive(Debug)]
pub struct OpenBranch {
    // Closed first when this is dropped: killing is for a server that has not noticed.
    pub(super) lease: Lease,
    killer: KillOnDrop,
    /// Finds out what the branch waits for, if it waits for long.
    pub(super) watch: Watch,
    branch: BranchId,
    /// As they were when the branch began.
    counters: Counters,
    /// The last moment at which the server takes the evidence: by its clock, in microseconds since 1970.
    deadline_micros: i64,
    /// When waiting for an answer ends.
    answer_by: Instant,
}

impl OpenBranch {
    async fn run(&mut self, sql: SqlStr) -> Result<Reply, Failure> {
        let within = self.answer_by.saturating_duration_since(Instant::now());
        self.lease.run(sql, within).await
    }

    /// For a branch that has ended, or may have: others find out about it only when this session is gone.
    async fn close(mut self) {
        self.killer.disarm();
        self.lease.close().await;
    }

    /// Rolls back a branch that is not prepared. If the server is busy with a statement of it, its session is killed: it
    /// would not notice that nobody is there any more before that statement's end.
    pub(super) async fn roll_back(mut self) {
        let rolling_back = async {
            // Refused if the branch is rollback-only or ended already; it can be rolled back all the same.
            let end = self.lease.run(sql::end(&self.branch), ROLLBACK_TIMEOUT).await;
            if matches!(end, Err(Failure::Lost(_))) {
                return false;
            }
            self.lease.run(sql::rollback(&self.branch), ROLLBACK_TIMEOUT).await.is_ok()
        };
        if rolling_back.await {
            self.close().await;
        }
    }
}

/// What the server has counted in a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counters {
    /// XA START and XA END, also refused ones.
    xa: (u64, u64),
    /// XA COMMIT, likewise.
    commits: u64,
    /// Statements that an engine has undone because they failed: duplicate keys, locks that were waited for in vain,
    /// statements that were cut off. Rolling back to a savepoint is none.
    undone: u64,
    /// Rows written, changed and deleted, also where nothing came of it.
    rows: u64,
}

impl Counters {
    fn of(reply: &Reply) -> Option<Self> {
        let number = |name| reply.number(name);
        Some(Self {
            xa: (number("Com_xa_start")?, number("Com_xa_end")?),
            commits: number("Com_xa_commit")?,
            undone: number("Handler_rollback")?,
            rows: Self::rows_of(reply)?,
        })
    }

    fn rows_of(reply: &Reply) -> Option<u64> {
        let number = |name| reply.number(name);
        Some(number("Handler_write")? + number("Handler_update")? + number("Handler_delete")?)
    }
}

/// Begins a branch on a connection of the service's pool.
pub(super) async fn begin(
    pool: &MySqlPool,
    own: &OwnPool,
    waits: &Waits,
    branch: &BranchId,
    remaining: Duration,
) -> Result<OpenBranch, ResourceError> {
    let deadline = Instant::now() + remaining;
    // A connection that comes at the last moment is of no use to a handler that still has its work to do.
    let mut lease = Lease::of_service(pool, remaining / 2).await.map_err(ResourceError::Unavailable)?;
    let left = deadline.saturating_duration_since(Instant::now());
    let lifetime = left + GRACE;
    let limits = sql::Limits { lock_wait: lock_wait(left), activity: lifetime };
    lease.begin(sql::begin(branch, limits), left).await.map_err(cannot_begin)?;
    let left = deadline.saturating_duration_since(Instant::now());
    let reply = lease.run(sql::session(branch), left).await.map_err(cannot_begin)?;
    let unreadable = || {
        ResourceError::Unavailable(
            "the database does not say what session this is, or gives it no user lock".to_owned(),
        )
    };
    let session = Session::of(&reply).ok_or_else(unreadable)?;
    let counters = Counters::of(&reply).ok_or_else(unreadable)?;
    // The server counts from its XA START. Were this process stopped in between, a branch could live long after
    // its deadline and commit when nobody expects it (P19).
    if Instant::now() >= deadline {
        return Err(ResourceError::Unavailable("the deadline passed while the branch was begun".to_owned()));
    }
    fail_point!("mysql-after-begin");
    let lifetime = i64::try_from(lifetime.as_micros()).unwrap_or(i64::MAX);
    Ok(OpenBranch {
        lease,
        killer: KillOnDrop::new(own.clone(), branch.clone()),
        watch: waits.watch(session.id, left / 2),
        branch: branch.clone(),
        counters,
        deadline_micros: session.begun_micros.saturating_add(lifetime),
        answer_by: deadline + GRACE + ANSWER_GRACE,
    })
}

fn cannot_begin(failure: Failure) -> ResourceError {
    ResourceError::Unavailable(match failure {
        Failure::Refused(error) if error.number() == WORK_OUTSIDE => {
            "the connection came out of the service's pool with a transaction still open (somebody sent BEGIN and \
             dropped it); it was closed"
                .to_owned()
        }
        Failure::Refused(error) => {
            format!("the database refused to begin: {} ({})", error.message(), error.number())
        }
        Failure::Lost(why) => why,
    })
}

/// Whether the server has counted a row that was written. If it can't be asked, yes: preparing finds out what is wrong.
pub(super) async fn has_written(open: &mut OpenBranch) -> bool {
    match open.run(sql::rows_written()).await {
        Ok(reply) => Counters::rows_of(&reply) != Some(open.counters.rows),
        Err(_) => true,
    }
}

/// What the first round trip found.
enum Readiness {
    /// The evidence is in, and all that has to be true for the branch to commit is true.
    Ready,
    /// The same, but there is nothing to commit.
    NothingWritten,
    /// The branch must not commit, and why. It can't: nothing that could prepare or commit it was sent.
    Unfit(String),
    /// The service has committed something itself, and why that is all that is known (P16).
    Committed(String),
}

/// A table was changed that can't be rolled back.
const NOT_TRANSACTIONAL: u64 = 1196;

async fn write_evidence(
    open: &mut OpenBranch,
    schema: &Schema,
    position: &LogPosition,
    in_one_phase: bool,
) -> Readiness {
    fail_point!("mysql-before-evidence");
    let sql = schema.write_evidence(&open.branch, position, open.deadline_micros, PAUSE, in_one_phase);
    let reply = match open.run(sql).await {
        Ok(reply) => reply,
        Err(Failure::Refused(_)) if mutated("P18-prepares-without-evidence") => return Readiness::Ready,
        Err(Failure::Refused(error)) => return why_refused(open, &error).await,
        Err(Failure::Lost(why)) => return Readiness::Unfit(format!("the branch was not prepared: {why}")),
    };
    let Some(now) = Counters::of(&reply) else {
        return Readiness::Unfit("the database does not say what happened in the branch".to_owned());
    };
    let before = open.counters;
    if let Some(why_not) = now.ended_since(before).or_else(|| now.failed_since(before)) {
        return why_not;
    }
    if reply
        .rows
        .iter()
        .any(|row| row.try_get_unchecked::<u64, _>("Code").is_ok_and(|code| code == NOT_TRANSACTIONAL))
    {
        return Readiness::Unfit(
            "the branch made a temporary table, or changed a table that can't be rolled back (its engine is not InnoDB): what \
             was changed there stays"
                .to_owned(),
        );
    }
    if now.rows == before.rows { Readiness::NothingWritten } else { Readiness::Ready }
}

impl Counters {
    /// Why a branch must not commit that its service has ended itself.
    fn ended_since(self, before: Self) -> Option<Readiness> {
        // Without XA END nothing can have been committed.
        if self.xa == before.xa {
            return None;
        }
        let ended = "the service ended the branch's local transaction itself (XA statements on the branch's connection)";
        if self.commits == before.commits {
            return Some(Readiness::Unfit(ended.to_owned()));
        }
        Some(Readiness::Committed(format!(
            "{ended}: what it committed stays committed, what it did afterwards is rolled back"
        )))
    }

    /// Why a branch must not commit of which a statement was undone.
    fn failed_since(self, before: Self) -> Option<Readiness> {
        (self.undone != before.undone).then(|| {
            Readiness::Unfit(
                "a statement of this branch had failed before, and the service did not say so; it has to return the \
                 error, or to use a statement that does not fail, such as INSERT … ON DUPLICATE KEY UPDATE"
                    .to_owned(),
            )
        })
    }
}

/// The evidence was refused; that may follow from what happened in the branch before.
async fn why_refused(open: &mut OpenBranch, error: &MySqlDatabaseError) -> Readiness {
    let before = open.counters;
    let counted = open.run(sql::counters()).await.ok().and_then(|reply| Counters::of(&reply));
    let ended = counted.and_then(|now| now.ended_since(before));
    // The refusal itself counts as a statement that was undone, unless the server did not even try.
    let failed = || counted.filter(|_| NOT_TRIED.contains(&error.number()))?.failed_since(before);
    ended.or_else(failed).unwrap_or_else(|| Readiness::Unfit(words(error)))
}

/// Keeps that this branch can be brought to neither end.
async fn record_hazard(own: &OwnPool, schema: &Schema, branch: &BranchId, position: &LogPosition, why: &str) {
    tracing::error!(gtrid = %branch.xid.gtrid, %branch, "{why}");
    if let Err(unresolved) = recovery::record_hazard(own, schema, branch, position).await {
        tracing::error!(gtrid = %branch.xid.gtrid, %branch, "the evidence of this hazard could not be written: {unresolved}");
    }
}

pub(super) async fn prepare(
    own: &OwnPool,
    kept: &Kept,
    branch: &BranchId,
    mut open: OpenBranch,
    schema: &Schema,
    position: &LogPosition,
) -> Result<Prepared, Unresolved> {
    match write_evidence(&mut open, schema, position, false).await {
        Readiness::Ready => {}
        Readiness::NothingWritten => {
            open.roll_back().await;
            return Ok(Prepared::ReadOnly);
        }
        Readiness::Unfit(why) => {
            open.roll_back().await;
            return Ok(Prepared::No(why));
        }
        Readiness::Committed(why) => {
            open.roll_back().await;
            record_hazard(own, schema, branch, position, &why).await;
            return Ok(Prepared::Hazard(why));
        }
    }
    fail_point!("mysql-before-prepare");
    // From here on it may be prepared, and whatever happens it is left alone.
    open.killer.disarm();
    let answer = open.run(sql::prepare(branch)).await;
    fail_point!("mysql-after-prepare");
    match answer {
        Ok(_) => {
            kept.keep(branch, open.lease);
            Ok(Prepared::Yes)
        }
        Err(Failure::Lost(why)) => {
            Err(Unresolved(format!("whether the branch is prepared is not known: {why}")))
        }
        Err(Failure::Refused(error)) => {
            let why = words(&error);
            match open.run(sql::rollback(branch)).await {
                Ok(_) => {
                    open.close().await;
                    Ok(Prepared::No(why))
                }
                Err(_) => Err(Unresolved(format!(
                    "the database refused the prepare, and may have prepared all the same: {why}"
                ))),
            }
        }
    }
}

pub(super) async fn commit_one_phase(
    own: &OwnPool,
    branch: &BranchId,
    mut open: OpenBranch,
    schema: &Schema,
    position: &LogPosition,
) -> Result<Fate, Unresolved> {
    match write_evidence(&mut open, schema, position, true).await {
        // Its evidence is what the client is answered from.
        Readiness::Ready | Readiness::NothingWritten => {}
        Readiness::Unfit(why) => {
            tracing::warn!(gtrid = %branch.xid.gtrid, %branch, "the branch is rolled back instead of committed: {why}");
            open.roll_back().await;
            return Ok(Fate::RolledBack);
        }
        Readiness::Committed(why) => {
            open.roll_back().await;
            record_hazard(own, schema, branch, position, &why).await;
            return Ok(Fate::Hazard);
        }
    }
    fail_point!("mysql-before-commit-one-phase");
    open.killer.disarm();
    let answer = open.run(sql::commit_one_phase(branch)).await;
    fail_point!("mysql-after-commit-one-phase");
    match answer {
        Ok(_) => {
            open.close().await;
            Ok(Fate::Committed)
        }
        Err(Failure::Lost(why)) => {
            Err(Unresolved(format!("whether the branch is committed is not known: {why}")))
        }
        // The evidence tells, as soon as this session is gone.
        Err(Failure::Refused(error)) => {
            let why = words(&error);
            open.close().await;
            Err(Unresolved(format!(
                "the database refused the commit, and may have committed all the same: {why}"
            )))
        }
    }
}
