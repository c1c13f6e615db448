//! A branch while it is open: begun, prepared, committed in one phase, or given up.
//!
//! Each of these is one round trip. What it answers is proved in the same round trip: a branch counts as
//! prepared when its session shows that it was, as committed when its evidence row is read. (`PREPARE TRANSACTION` and
//! `COMMIT` succeed in a failed transaction too, and roll back; sqlx shows no difference.)
//!
//! Every statement that the server refuses leaves nothing behind, and a branch is turned down with the reason.
//! Where the refusal could have come from PREPARE or COMMIT itself, PostgreSQL is asked once more on the same
//! connection, after which nothing of this branch can still be under way.

use std::time::Duration;

use fail::fail_point;
use lockstep_proto::LogPosition;
use lockstep_proto::museum::mutated;
use sqlx::postgres::PgDatabaseError;
use sqlx::{PgPool, Row as _, SqlStr};
use tokio::time::Instant;

use super::connection::{Failure, Lease, OwnPool, Reply};
use super::recovery;
use super::refusal::{IN_FAILED_TRANSACTION, Refusal, words};
use super::schema::Callable;
use super::sql::{self, Form};
use crate::resource::{BranchId, Fate, Prepared, ResourceError, Unresolved, lock_wait};

/// How long after the deadline the server may still end what runs in a branch, and take a prepare that was on
/// its way.
const GRACE: Duration = Duration::from_secs(1);
/// How long to wait beyond that for the answer of a server that waits for its disk or its standbys.
const ANSWER_GRACE: Duration = Duration::from_secs(10);

/// The local transaction of a branch, and the connection that it is on. Dropped, it is rolled back by closing
/// that.
#[derive(Debug)]
pub struct OpenBranch {
    pub(super) lease: Lease,
    /// From the server's BEGIN to the last moment at which it takes a prepare or a commit.
    lifetime: Duration,
    /// When waiting for an answer ends.
    answer_by: Instant,
}

impl OpenBranch {
    fn time_for_an_answer(&self) -> Duration {
        self.answer_by.saturating_duration_since(Instant::now())
    }
}

/// Begins a branch on a connection of the service's pool.
pub(super) async fn begin(
    pool: &PgPool,
    branch: &BranchId,
    remaining: Duration,
    watch_client: bool,
) -> Result<OpenBranch, ResourceError> {
    let deadline = Instant::now() + remaining;
    // A connection that comes at the last moment is of no use to a handler that still has its work to do.
    let mut lease = Lease::of_service(pool, remaining / 2).await.map_err(ResourceError::Unavailable)?;
    let left = deadline.saturating_duration_since(Instant::now());
    let lifetime = left + GRACE;
    let limits = sql::Limits { lock_wait: lock_wait(left), activity: lifetime, watch_client };
    lease.begin(sql::begin(branch, limits), left).await.map_err(cannot_begin)?;
    // The server counts from its BEGIN. Were this process stopped in between, a branch could live long after
    // its deadline and commit when nobody expects it (P19).
    if Instant::now() >= deadline {
        return Err(ResourceError::Unavailable("the deadline passed while the branch was begun".to_owned()));
    }
    fail_point!("postgres-after-begin");
    Ok(OpenBranch { lease, lifetime, answer_by: deadline + GRACE + ANSWER_GRACE })
}

fn cannot_begin(failure: Failure) -> ResourceError {
    ResourceError::Unavailable(match failure {
        Failure::Refused(error) if error.code() == "25001" => {
            "the connection came out of the service's pool with a transaction still open (somebody sent BEGIN and \
             dropped it); it was closed"
                .to_owned()
        }
        Failure::Refused(error) => format!("PostgreSQL refused to begin: {} ({})", error.message(), error.code()),
        Failure::Lost(why) => why,
    })
}

/// The same question as the evidence row of a prepare answers, which refuses a branch without an xid.
pub(super) async fn has_written(open: &mut OpenBranch) -> bool {
    let time = open.time_for_an_answer();
    match open.lease.run(sql::has_written(), time).await {
        Ok(reply) => reply.rows.iter().any(|row| row.try_get("written").unwrap_or(true)),
        Err(Failure::Refused(_) | Failure::Lost(_)) => true,
    }
}

pub(super) async fn prepare(
    own: &OwnPool,
    branch: &BranchId,
    mut open: OpenBranch,
    position: &LogPosition,
    functions: &Callable,
) -> Result<Prepared, Unresolved> {
    fail_point!("postgres-before-prepare");
    if mutated("P23-read-only-is-committed") && !has_written(&mut open).await {
        let time = open.time_for_an_answer();
        drop(open.lease.run(SqlStr::from_static("COMMIT"), time).await);
        return Ok(Prepared::ReadOnly);
    }
    let form = functions.form();
    let sql = sql::prepare(branch, position, open.lifetime, form);
    let answer = open.lease.run(sql, open.time_for_an_answer()).await;
    notice_what_is_gone(functions, form, &answer);
    fail_point!("postgres-after-prepare");
    match answer {
        Ok(reply) if is_prepared(&reply, branch) => {
            open.lease.roll_back_and_give_back();
            Ok(Prepared::Yes)
        }
        Ok(_) => Err(Unresolved("PostgreSQL took the prepare and does not show that it did it".to_owned())),
        Err(Failure::Lost(why)) => {
            Err(Unresolved(format!("whether the branch is prepared is not known: {why}")))
        }
        Err(Failure::Refused(error)) if Refusal::of(&error) == Refusal::EndedByService => {
            let hazard = committed_by_service(own, branch, open, position).await;
            Ok(hazard.map_or_else(|| Prepared::No(words(&error)), Prepared::Hazard))
        }
        Err(Failure::Refused(error)) => not_prepared(branch, open, &error).await,
    }
}

async fn not_prepared(
    branch: &BranchId,
    mut open: OpenBranch,
    error: &PgDatabaseError,
) -> Result<Prepared, Unresolved> {
    let no = Ok(Prepared::No(words(error)));
    match Refusal::of(error) {
        Refusal::ReadOnly => {
            open.lease.roll_back_and_give_back();
            return Ok(Prepared::ReadOnly);
        }
        Refusal::TooLate | Refusal::Fenced => {
            open.lease.roll_back_and_give_back();
            return no;
        }
        Refusal::EndedByService | Refusal::Other => {}
    }
    let listed = open.lease.run(sql::prepared_after_all(branch), open.time_for_an_answer()).await;
    if refused_before_the_end(&listed) || is_not_listed(&listed) {
        open.lease.roll_back_and_give_back();
        return no;
    }
    Err(Unresolved(format!(
        "PostgreSQL refused the prepare, and may have prepared all the same: {}",
        words(error)
    )))
}

/// Why a branch whose service has ended its local transaction is a hazard; `None` if that was a ROLLBACK, after which nothing
/// is left of it. Whether the connection is inside of a transaction now is the service's secret: it is closed.
async fn committed_by_service(
    own: &OwnPool,
    branch: &BranchId,
    mut open: OpenBranch,
    position: &LogPosition,
) -> Option<String> {
    let answer = open.lease.run(sql::was_committed(branch), open.time_for_an_answer()).await;
    let why = match answer {
        Ok(reply) if was_committed(&reply) == Some(false) => return None,
        Ok(_) => "the service committed the branch's local transaction itself (a COMMIT on the branch's connection): what \
                  it committed stays committed, what it did afterwards is rolled back"
            .to_owned(),
        // A person has to look, rather than nobody.
        Err(Failure::Refused(error)) => format!("{NOT_KNOWN}: {}", words(&error)),
        Err(Failure::Lost(why)) => format!("{NOT_KNOWN}: {why}"),
    };
    tracing::error!(gtrid = %branch.xid.gtrid, %branch, "{why}");
    if let Err(unresolved) = recovery::record_hazard(own, branch, position).await {
        tracing::error!(gtrid = %branch.xid.gtrid, %branch, "the evidence of this hazard could not be written: {unresolved}");
    }
    Some(why)
}

const NOT_KNOWN: &str = "the service ended the branch's local transaction itself, and whether by COMMIT or by ROLLBACK is not known";

pub(super) async fn commit_one_phase(
    own: &OwnPool,
    branch: &BranchId,
    mut open: OpenBranch,
    position: &LogPosition,
    functions: &Callable,
) -> Result<Fate, Unresolved> {
    fail_point!("postgres-before-commit-one-phase");
    let form = functions.form();
    let sql = sql::commit_one_phase(branch, position, open.lifetime, form);
    let answer = open.lease.run(sql, open.time_for_an_answer()).await;
    notice_what_is_gone(functions, form, &answer);
    fail_point!("postgres-after-commit-one-phase");
    match answer {
        Ok(reply) if has_evidence(&reply) => {
            open.lease.roll_back_and_give_back();
            Ok(Fate::Committed)
        }
        Ok(_) => Err(Unresolved("PostgreSQL took the commit and shows no evidence of it".to_owned())),
        Err(Failure::Lost(why)) => {
            Err(Unresolved(format!("whether the branch is committed is not known: {why}")))
        }
        Err(Failure::Refused(error)) if Refusal::of(&error) == Refusal::EndedByService => {
            let hazard = committed_by_service(own, branch, open, position).await;
            Ok(hazard.map_or(Fate::RolledBack, |_why| Fate::Hazard))
        }
        Err(Failure::Refused(error)) => not_committed(branch, open, &error).await,
    }
}

async fn not_committed(
    branch: &BranchId,
    mut open: OpenBranch,
    error: &PgDatabaseError,
) -> Result<Fate, Unresolved> {
    tracing::warn!(gtrid = %branch.xid.gtrid, %branch, "the branch is rolled back instead of committed: {}", words(error));
    match Refusal::of(error) {
        Refusal::TooLate | Refusal::Fenced => {
            open.lease.roll_back_and_give_back();
            return Ok(Fate::RolledBack);
        }
        // Not of a commit: its evidence has an xid in any case.
        Refusal::ReadOnly | Refusal::EndedByService | Refusal::Other => {}
    }
    let written = open.lease.run(sql::committed_after_all(branch), open.time_for_an_answer()).await;
    if refused_before_the_end(&written) || matches!(&written, Ok(reply) if !has_evidence(reply)) {
        open.lease.roll_back_and_give_back();
        return Ok(Fate::RolledBack);
    }
    Err(Unresolved(format!(
        "PostgreSQL refused the commit, and may have committed all the same: {}",
        words(error)
    )))
}

/// What is refused because a function is gone stays refused: its transaction has failed with it. Those behind it need not be.
fn notice_what_is_gone(functions: &Callable, form: Form, answer: &Result<Reply, Failure>) {
    if let Err(Failure::Refused(error)) = answer {
        let _this_one_is_turned_down = functions.give_up_if_gone(form, error);
    }
}

pub(super) async fn discard(open: OpenBranch) {
    open.lease.try_to_roll_back().await;
}

/// The session is in a failed transaction: PREPARE and COMMIT, which end the transaction, were never reached.
fn refused_before_the_end(answer: &Result<Reply, Failure>) -> bool {
    matches!(answer, Err(Failure::Refused(error)) if error.code() == IN_FAILED_TRANSACTION)
}

fn is_not_listed(answer: &Result<Reply, Failure>) -> bool {
    matches!(answer, Ok(reply) if is_listed(reply) == Some(false))
}

fn is_prepared(reply: &Reply, branch: &BranchId) -> bool {
    let shown = reply.rows.iter().find_map(|row| row.try_get::<&str, _>(sql::PREPARED).ok());
    shown.is_some_and(|shown| shown == branch.to_string())
}

/// `None`: the reply does not say.
fn is_listed(reply: &Reply) -> Option<bool> {
    reply.rows.iter().find_map(|row| row.try_get::<i64, _>("listed").ok()).map(|count| count == 1)
}

/// `None`: the reply does not say.
fn was_committed(reply: &Reply) -> Option<bool> {
    reply
        .rows
        .iter()
        .find_map(|row| row.try_get::<Option<bool>, _>("was_committed").ok())
        .map(|is| is == Some(true))
}

fn has_evidence(reply: &Reply) -> bool {
    reply.rows.iter().any(|row| row.try_get::<&str, _>("kind").is_ok_and(|kind| kind == "branch"))
}
