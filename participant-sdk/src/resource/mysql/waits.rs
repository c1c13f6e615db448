//! Which lock a branch waits for, for the words of an error.
//!
//! The server's error does not name the lock that was waited for in vain, and afterwards nobody knows: what InnoDB lists are the waits
//! of now. So it is looked up while the wait lasts, once, when half of the transaction's time is over: a wait that ends with
//! that error has lasted nearly as long as the transaction may (`lock_wait`), and is under way then. Most branches have ended
//! long before, and are never looked up.
//!
//! To read what InnoDB lists takes the privilege PROCESS, and MariaDB: MySQL lists it elsewhere. Without either, nothing is found.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::Row as _;
use sqlx::mysql::MySqlRow;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use super::connection::{Lease, OWN_ANSWER_TIMEOUT, OwnPool, text};
use super::sql;

/// Looks up waits, one at a time: however many branches wait, the connections of the resource's own are for their ends.
#[derive(Debug, Clone)]
pub(super) struct Waits {
    own: OwnPool,
    turn: Arc<Semaphore>,
}

/// Looks up what one session waits for, unless it is dropped before.
#[derive(Debug)]
pub(super) struct Watch {
    found: Arc<OnceLock<String>>,
    /// `None` where nothing can be run.
    task: Option<AbortHandle>,
}

impl Waits {
    pub(super) fn new(own: OwnPool) -> Self {
        Self { own, turn: Arc::new(Semaphore::new(1)) }
    }

    /// Looks up what the session waits for then.
    pub(super) fn watch(&self, session: u64, after: Duration) -> Watch {
        let found = Arc::new(OnceLock::new());
        let (waits, result) = (self.clone(), Arc::clone(&found));
        let look = async move {
            tokio::time::sleep(after).await;
            if let Some(lock) = waits.look(session).await {
                // Nobody else sets it.
                let _first = result.set(lock);
            }
        };
        Watch { found, task: Handle::try_current().ok().map(|runtime| runtime.spawn(look).abort_handle()) }
    }

    async fn look(&self, session: u64) -> Option<String> {
        let _turn = self.turn.acquire().await.expect("the semaphore is never closed");
        let mut lease = Lease::own(&self.own).await.ok()?;
        let reply = lease.run(sql::awaited(session), OWN_ANSWER_TIMEOUT).await;
        let reply = reply
            .inspect_err(|why| tracing::debug!(session, ?why, "what is waited for is not known"))
            .ok()?;
        words(reply.rows.first()?).ok()
    }
}

/// As PostgreSQL does, it names the place of a row and not what is in it: that is not for everyone's log.
fn words(row: &MySqlRow) -> sqlx::Result<String> {
    let (table, index, place) = (text(row, "object")?, text(row, "part")?, text(row, "place")?);
    let holder = match row.try_get::<i64, _>("holder")? {
        0 => "a prepared branch".to_owned(),
        session => format!("session {session}"),
    };
    Ok(match index.as_str() {
        "" => format!("a lock on the table {table}, held by {holder}"),
        _ => format!("a lock on a row of {table} (index {index}, {place}), held by {holder}"),
    })
}

impl Watch {
    /// What was found, if anything was.
    pub(super) fn found(&self) -> Option<&str> {
        self.found.get().map(String::as_str)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}
