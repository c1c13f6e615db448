//! Sessions of branches that were prepared a moment ago, so that the session that prepared a branch is the one that finishes it.
//!
//! MariaDB hands a prepared branch over to other sessions while its own one ends, and does so in two steps: first anybody may send XA
//! COMMIT or XA ROLLBACK for it, then InnoDB gives the transaction up. What comes in between is answered with OK, does nothing, and
//! takes the branch's name off the list: its transaction stays as it is, with its locks, and nobody can finish it before
//! the server is restarted (measured with 10.11: about one in 600 of the branches that were finished by another session at once).
//! In its own session it is finished with certainty.
//!
//! So a session is kept for a moment after its branch was prepared. Decisions usually come within milliseconds; one that does not
//! must not keep a connection, nor other instances from finishing the branch (P24). What they do about the gap, [`super::recovery`] says.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::connection::Lease;
use crate::resource::BranchId;

/// How long a session is kept.
pub(super) const KEPT_FOR: Duration = Duration::from_millis(500);

/// The sessions that this process keeps. Cheap to clone; they end with the last clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept(Arc<Mutex<HashMap<BranchId, Lease>>>);

impl Kept {
    /// A panic while it was locked would have come from the map itself.
    fn sessions(&self) -> MutexGuard<'_, HashMap<BranchId, Lease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the session that has just prepared this branch.
    pub(super) fn keep(&self, branch: &BranchId, lease: Lease) {
        let earlier = self.sessions().insert(branch.clone(), lease);
        assert!(earlier.is_none(), "a branch is prepared in one session: {branch}");
        let (weak, branch) = (Arc::downgrade(&self.0), branch.clone());
        tokio::spawn(async move {
            tokio::time::sleep(KEPT_FOR).await;
            let lease = weak.upgrade().and_then(|sessions| Self(sessions).take(&branch));
            if let Some(lease) = lease {
                lease.close().await;
            }
        });
    }

    /// The session that prepared this branch, if it is still kept. The caller closes it.
    pub(super) fn take(&self, branch: &BranchId) -> Option<Lease> {
        self.sessions().remove(branch)
    }
}
