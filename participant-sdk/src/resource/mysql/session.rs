//! The server's session of a branch, which can be ended from another connection.
//!
//! A server that waits for a lock, or works, for a client that is gone notices that only when it is done. So a handler
//! that was cancelled in the middle of a statement would keep its locks until the deadline.

use sqlx::Row as _;
use tokio::runtime::Handle;

use super::connection::{Failure, Lease, OWN_ANSWER_TIMEOUT, OwnPool, Reply};
use super::refusal::NO_SUCH_SESSION;
use super::sql;
use crate::resource::BranchId;

/// Which session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Session {
    /// The server's number for it. A server that was restarted counts anew.
    pub(super) id: u64,
    /// When the branch had begun in it: the server's clock, in microseconds since 1970.
    pub(super) begun_micros: i64,
}

impl Session {
    /// `None` also if the session could not be marked: whoever holds the branch's lock instead would be killed.
    pub(super) fn of(reply: &Reply) -> Option<Self> {
        let is_marked: i64 = reply.rows.iter().find_map(|row| row.try_get("is_marked").ok())?;
        if is_marked != 1 {
            return None;
        }
        let id = reply.rows.iter().find_map(|row| row.try_get("session").ok())?;
        let begun_micros = reply.rows.iter().find_map(|row| row.try_get("now").ok())?;
        Some(Self { id, begun_micros })
    }
}

/// Kills the session of an open branch when it is dropped, unless it was disarmed.
#[derive(Debug)]
pub(super) struct KillOnDrop {
    own: OwnPool,
    /// `None`: disarmed.
    branch: Option<BranchId>,
}

impl KillOnDrop {
    pub(super) fn new(own: OwnPool, branch: BranchId) -> Self {
        Self { own, branch: Some(branch) }
    }

    pub(super) fn disarm(&mut self) {
        self.branch = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let Some(branch) = self.branch.take() else { return };
        // Outside of a runtime nothing can be sent, and the deadline ends the session.
        let Ok(runtime) = Handle::try_current() else { return };
        let own = self.own.clone();
        runtime.spawn(async move { kill(&own, &branch).await });
    }
}

async fn kill(own: &OwnPool, branch: &BranchId) {
    let answer = match Lease::own(own).await {
        Ok(mut lease) => lease.run(sql::kill(branch), OWN_ANSWER_TIMEOUT).await,
        Err(why) => Err(Failure::Lost(why)),
    };
    match answer {
        Ok(_) => tracing::debug!(%branch, "killed the session of a branch that nobody waits for"),
        // It has ended by itself, which is as good.
        Err(Failure::Refused(error)) if error.number() == NO_SUCH_SESSION => {}
        Err(failure) => tracing::warn!(
            gtrid = %branch.xid.gtrid, %branch, ?failure,
            "the session of a branch that nobody waits for was not killed; if the server works for it still, it keeps its locks until the branch's deadline"
        ),
    }
}
