//! The newest places in the decision log that a database knows of, one for each epoch (protocol.md, P8; [`lockstep_proto::positions`]).
//!
//! A decision is newer than the branch's evidence: that was written when the branch was prepared, and nobody can change what is
//! prepared. So the place of the decision is kept beside it, in a row for its epoch, before the branch is committed.
//! Otherwise a log that was restored without its last decisions would look complete to every participant that carried
//! them out, and the branches that still wait for them would be presumed rolled back.
//!
//! Decisions come in batches, and so do their commits: one write of the newest place that was told serves all that wait for it
//! ([`Newest::turn`]).

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_proto::{Epoch, LogPosition, Positions};

/// How long anybody waits for somebody else's write, whose connection may be cut off.
const PATIENCE: Duration = Duration::from_millis(100);

/// What this process was told, and what of it is in the database.
#[derive(Debug, Default)]
pub(super) struct Newest {
    places: Mutex<Places>,
    turns: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Places {
    told: Positions,
    /// Written to the server that the open connections are to, and durable with the next commit on it at the latest. What was only *read* there is
    /// not among it: another instance may have written it a moment ago, and the server may crash before it is durable.
    written: Positions,
    /// How often a connection was opened.
    connections: u64,
}

/// A place that is to be written now. While there is one, others wait a moment.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    newest: &'a Newest,
    place: LogPosition,
    connections: u64,
    _turn: Option<tokio::sync::MutexGuard<'a, ()>>,
}

impl Newest {
    /// Attached: the database has these, and maybe less than it had before, such as after a failover. The newest of all.
    pub(super) fn found(&self, seen: Positions) -> Positions {
        let mut places = self.lock();
        places.told.extend(seen.iter().copied());
        places.written = Positions::new();
        places.told.clone()
    }

    pub(super) fn told(&self, position: &LogPosition) {
        self.lock().told.see(*position);
    }

    /// A connection was opened, maybe to a server that has crashed since, and has lost what was written and not yet durable, or to a standby that
    /// was promoted and never had what was. Has to be called before that connection is used.
    pub(super) fn connected(&self) {
        let mut places = self.lock();
        places.connections += 1;
        places.written = Positions::new();
    }

    /// Waits until it is known whether this place, which was told, has to be written before its decision is carried out on a connection
    /// that the caller already has. `None`: it, or a newer one of its epoch, has been.
    pub(super) async fn turn(&self, position: &LogPosition) -> Option<Turn<'_>> {
        if self.lock().written.covers(position) {
            return None;
        }
        let turn = tokio::time::timeout(PATIENCE, self.turns.lock()).await.ok();
        let places = self.lock();
        if places.written.covers(position) {
            return None;
        }
        // What was told of an epoch that is settled since is gone.
        let newest = places.told.of(position.epoch).filter(|told| told.sequence > position.sequence);
        let place = newest.unwrap_or(*position);
        Some(Turn { newest: self, place, connections: places.connections, _turn: turn })
    }

    /// The database has let go of what was seen of these epochs.
    pub(super) fn settled(&self, epochs: &[Epoch]) {
        let mut places = self.lock();
        places.told.forget(epochs);
        places.written.forget(epochs);
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// What to write: the newest place of the epoch that was told.
    pub(super) const fn place(&self) -> &LogPosition {
        &self.place
    }

    /// The server has it, and makes it durable with the next commit at the latest.
    pub(super) fn written(self) {
        let mut places = self.newest.lock();
        // A connection was opened meanwhile: this may have been written by a server that was gone before.
        if places.connections == self.connections {
            places.written.see(self.place);
        }
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

    async fn has_to_write(newest: &Newest, position: LogPosition) -> bool {
        newest.turn(&position).await.is_some()
    }

    async fn write(newest: &Newest, position: LogPosition) {
        newest.told(&position);
        if let Some(turn) = newest.turn(&position).await {
            turn.written();
        }
    }

    #[tokio::test]
    async fn what_a_database_has_lost_is_not_forgotten_and_what_it_shows_is_not_taken_for_durable() {
        let newest = Newest::default();
        assert_eq!(newest.found(Positions::new()), Positions::new());
        newest.told(&position(2, 7));
        assert!(has_to_write(&newest, position(2, 7)).await, "it was only told");
        write(&newest, position(2, 7)).await;
        assert!(!has_to_write(&newest, position(2, 7)).await && has_to_write(&newest, position(2, 8)).await);
        assert!(has_to_write(&newest, position(1, 1)).await, "another epoch's says nothing of it");
        write(&newest, position(1, 900)).await;
        assert!(
            !has_to_write(&newest, position(2, 7)).await && !has_to_write(&newest, position(1, 900)).await
        );
        // A standby was promoted that had not got it yet; and what it shows may not be durable either.
        let found = newest.found([position(2, 6)].into_iter().collect());
        assert_eq!(found, [position(1, 900), position(2, 7)].into_iter().collect());
        assert!(has_to_write(&newest, position(2, 7)).await && has_to_write(&newest, position(2, 6)).await);
        assert!(has_to_write(&newest, position(1, 900)).await);
    }

    #[tokio::test]
    async fn one_write_serves_all_that_wait() {
        let newest = Newest::default();
        newest.told(&position(1, 3));
        newest.told(&position(1, 5));
        let turn = newest.turn(&position(1, 3)).await.unwrap();
        assert_eq!(turn.place(), &position(1, 5), "the newest that was told");
        let fifth = position(1, 5);
        let mut second = Box::pin(newest.turn(&fifth));
        assert!(futures::poll!(&mut second).is_pending(), "one at a time");
        turn.written();
        assert!(second.await.is_none());
        assert!(has_to_write(&newest, position(1, 6)).await);
    }

    #[tokio::test]
    async fn nobody_waits_long_for_another_ones_write() {
        let newest = Newest::default();
        let _cut_off = newest.turn(&position(1, 3)).await;
        assert!(has_to_write(&newest, position(1, 3)).await);
    }

    #[tokio::test]
    async fn who_could_not_write_leaves_it_to_the_next() {
        let newest = Newest::default();
        newest.told(&position(1, 3));
        drop(newest.turn(&position(1, 3)).await);
        assert!(has_to_write(&newest, position(1, 3)).await);
    }

    #[tokio::test]
    async fn what_is_not_durable_is_written_again_once_the_server_may_be_another() {
        let newest = Newest::default();
        newest.told(&position(1, 3));
        newest.turn(&position(1, 3)).await.unwrap().written();
        assert!(!has_to_write(&newest, position(1, 3)).await);
        newest.connected();
        let turn = newest.turn(&position(1, 3)).await.unwrap();
        newest.connected();
        turn.written();
        assert!(
            has_to_write(&newest, position(1, 3)).await,
            "it was written before the last connection was opened"
        );
        write(&newest, position(1, 3)).await;
        assert!(!has_to_write(&newest, position(1, 3)).await);
        newest.connected();
        assert!(has_to_write(&newest, position(1, 3)).await, "the server may be a standby that never had it");
        write(&newest, position(1, 4)).await;
        newest.found([position(1, 4)].into_iter().collect());
        assert!(has_to_write(&newest, position(1, 4)).await, "it is there, and maybe not durable");
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
