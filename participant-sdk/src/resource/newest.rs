//! The newest place in the decision log that a database knows of (protocol.md, P8).
//!
//! A decision is newer than the branch's evidence: that was written when the branch was prepared, and nobody can change what is
//! prepared. So the place of the decision is kept beside it, in the row of the identity, before the branch is committed.
//! Otherwise a log that was restored without its last decisions would look complete to every participant that carried
//! them out, and the branches that still wait for them would be presumed rolled back.

use std::sync::{Mutex, MutexGuard, PoisonError};

use lockstep_proto::LogPosition;

/// What this process was told, and what of it is durable.
#[derive(Debug, Default)]
pub(super) struct Newest(Mutex<Positions>);

#[derive(Debug, Default)]
struct Positions {
    told: Option<LogPosition>,
    kept: Option<LogPosition>,
}

/// The order of positions. Incarnations have none: an epoch has one.
fn order(position: &LogPosition) -> (u32, u64) {
    (position.epoch.get(), position.sequence)
}

fn newer(a: Option<LogPosition>, b: Option<LogPosition>) -> Option<LogPosition> {
    a.into_iter().chain(b).max_by_key(order)
}

impl Newest {
    /// Attached: the database has this, and maybe less than it had before, such as after a failover. The newest of all.
    pub(super) fn found(&self, seen: Option<LogPosition>) -> Option<LogPosition> {
        let mut positions = self.lock();
        positions.kept = seen;
        positions.told = newer(positions.told, seen);
        positions.told
    }

    pub(super) fn told(&self, position: &LogPosition) {
        let mut positions = self.lock();
        positions.told = newer(positions.told, Some(*position));
    }

    /// It is durable in the database.
    pub(super) fn kept(&self, position: &LogPosition) {
        let mut positions = self.lock();
        positions.kept = newer(positions.kept, Some(*position));
    }

    /// Whether it, or a newer one, is known to be durable in the database.
    pub(super) fn is_kept(&self, position: &LogPosition) -> bool {
        self.lock().kept.is_some_and(|kept| order(&kept) >= order(position))
    }

    fn lock(&self) -> MutexGuard<'_, Positions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use lockstep_proto::{Epoch, Incarnation};

    use super::*;

    fn position(epoch: u32, sequence: u64) -> LogPosition {
        let incarnation = Incarnation::from_bytes([7; 16]);
        LogPosition { epoch: Epoch::new(epoch).unwrap(), incarnation, sequence }
    }

    #[test]
    fn what_a_database_has_lost_is_not_taken_for_kept_and_not_forgotten() {
        let newest = Newest::default();
        assert_eq!(newest.found(None), None);
        newest.told(&position(2, 7));
        assert!(!newest.is_kept(&position(2, 7)), "it was only told");
        newest.kept(&position(2, 7));
        newest.kept(&position(1, 900));
        assert!(newest.is_kept(&position(2, 7)) && newest.is_kept(&position(1, 900)));
        assert!(!newest.is_kept(&position(2, 8)));
        // A standby was promoted that had not got it yet.
        assert_eq!(newest.found(Some(position(2, 6))), Some(position(2, 7)));
        assert!(newest.is_kept(&position(2, 6)) && !newest.is_kept(&position(2, 7)));
    }
}
