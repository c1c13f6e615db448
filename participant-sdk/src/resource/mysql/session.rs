//! The server's session of a branch, which can be ended from another connection.
//!
//! A server that waits for a lock, or works, for a client that is gone notices that only when it is done. So a handler
//! that was cancelled in the middle of a statement would keep its locks until the deadline.

use sqlx::Row as _;
use tokio::runtime::Handle;

use super::connection::{Lease, OWN_ANSWER_TIMEOUT, OwnPool, Reply};
use super::sql;

/// Which session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Session {
    /// The server's number for it. A server that was restarted counts anew.
    pub(super) id: u64,
    /// When the branch had begun in it: the server's clock, in microseconds since 1970.
    pub(super) begun_micros: i64,
}

impl Session {
    pub(super) fn of(reply: &Reply) -> Option<Self> {
        let id = reply.rows.iter().find_map(|row| row.try_get("session").ok())?;
        Some(Self { id, begun_micros: now(reply)? })
    }
}

fn now(reply: &Reply) -> Option<i64> {
    reply.rows.iter().find_map(|row| row.try_get("now").ok())
}

/// Kills a session when it is dropped, unless it was disarmed.
#[derive(Debug)]
pub(super) struct KillOnDrop {
    own: OwnPool,
    /// `None`: disarmed.
    session: Option<Session>,
}

impl KillOnDrop {
    pub(super) fn new(own: OwnPool, session: Session) -> Self {
        Self { own, session: Some(session) }
    }

    pub(super) fn disarm(&mut self) {
        self.session = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        // Outside of a runtime nothing can be sent, and the deadline ends the session.
        let Ok(runtime) = Handle::try_current() else { return };
        let own = self.own.clone();
        runtime.spawn(async move { kill(&own, session).await });
    }
}

/// Kills it, if it is certainly still that one: the server has been up since before the branch began, and it gives no
/// number twice. A session that ended by itself is as good.
async fn kill(own: &OwnPool, session: Session) {
    let Ok(mut lease) = Lease::own(own).await else { return };
    let Ok(reply) = lease.run(sql::uptime(), OWN_ANSWER_TIMEOUT).await else { return };
    let (Some(uptime), Some(now)) = (reply.number("Uptime"), now(&reply)) else { return };
    let age = u64::try_from(now.saturating_sub(session.begun_micros)).unwrap_or(u64::MAX) / 1_000_000;
    if uptime > age && lease.run(sql::kill(session.id), OWN_ANSWER_TIMEOUT).await.is_ok() {
        tracing::debug!(session = session.id, "killed the session of a branch that nobody waits for");
    }
}
