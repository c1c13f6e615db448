//! The newest places in the decision log that a database knows of, one for each epoch (protocol.md, P8; [`lockstep_proto::positions`]).
//!
//! A decision is newer than the branch's evidence: that was written when the branch was prepared, and nobody can change what is
//! prepared. So the place of the decision is kept beside it, in a row for its epoch, before the branch is committed.
//! Otherwise a log that was restored without its last decisions would look complete to every participant that carried
//! them out, and the branches that still wait for them would be presumed rolled back.

use std::sync::{Mutex, MutexGuard, PoisonError};

use lockstep_proto::{Epoch, LogPosition, Positions};

/// What this process was told, and what of it is durable.
#[derive(Debug, Default)]
pub(super) struct Newest(Mutex<Places>);

#[derive(Debug, Default)]
struct Places {
    told: Positions,
    kept: Positions,
}

impl Newest {
    /// Attached: the database has these, and maybe less than it had before, such as after a failover. The newest of all.
    pub(super) fn found(&self, seen: Positions) -> Positions {
        let mut places = self.lock();
        places.told.extend(seen.iter().copied());
        places.kept = seen;
        places.told.clone()
    }

    pub(super) fn told(&self, position: &LogPosition) {
        self.lock().told.see(*position);
    }

    /// It is durable in the database.
    pub(super) fn kept(&self, position: &LogPosition) {
        self.lock().kept.see(*position);
    }

    /// Whether it, or a newer one of its epoch, is known to be durable in the database.
    pub(super) fn is_kept(&self, position: &LogPosition) -> bool {
        self.lock().kept.covers(position)
    }

    /// The database has let go of what was seen of these epochs.
    pub(super) fn settled(&self, epochs: &[Epoch]) {
        let mut places = self.lock();
        places.told.forget(epochs);
        places.kept.forget(epochs);
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use lockstep_proto::Incarnation;

    use super::*;

    fn position(epoch: u32, sequence: u64) -> LogPosition {
        let incarnation = Incarnation::from_bytes([7; 16]);
        LogPosition { epoch: Epoch::new(epoch).unwrap(), incarnation, sequence }
    }

    #[test]
    fn what_a_database_has_lost_is_not_taken_for_kept_and_not_forgotten() {
        let newest = Newest::default();
        assert_eq!(newest.found(Positions::new()), Positions::new());
        newest.told(&position(2, 7));
        assert!(!newest.is_kept(&position(2, 7)), "it was only told");
        newest.kept(&position(2, 7));
        assert!(newest.is_kept(&position(2, 7)) && !newest.is_kept(&position(2, 8)));
        assert!(!newest.is_kept(&position(1, 1)), "another epoch's says nothing of it");
        newest.kept(&position(1, 900));
        assert!(newest.is_kept(&position(2, 7)) && newest.is_kept(&position(1, 900)));
        // A standby was promoted that had not got it yet.
        let found = newest.found([position(2, 6)].into_iter().collect());
        assert_eq!(found, [position(2, 7)].into_iter().collect());
        assert!(newest.is_kept(&position(2, 6)) && !newest.is_kept(&position(2, 7)));
        assert!(!newest.is_kept(&position(1, 900)));
    }

    #[test]
    fn what_is_settled_is_not_reported_any_more() {
        let newest = Newest::default();
        newest.told(&position(1, 900));
        newest.told(&position(2, 7));
        newest.settled(&[Epoch::new(1).unwrap()]);
        assert_eq!(newest.found(Positions::new()), [position(2, 7)].into_iter().collect());
    }
}
