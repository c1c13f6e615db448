//! Who may use a connection beside those of open branches, and who waits for one. Each coordinator that a participant is attached to has lanes
//! of its own.
//!
//! What waits is no task yet: after a restart of the coordinator thousands of branches that were found prepared are answered at once, and a
//! task for each of them would take several KiB of the service's memory while it waits.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Operations for branches that were not found prepared, at a time. More would not make a database faster.
const MOST_NEW: usize = 26;
/// The same for those that were: a new transaction's commit must not stand behind thousands of them.
///
/// Fewer than the eight connections that a database has for all of these, whichever coordinator has asked.
const MOST_FOUND: usize = 6;

/// Two lanes, each first come, first served. Neither waits for the other one, however long that is.
#[derive(Debug)]
pub(super) struct Lanes<T> {
    new: Lane<T>,
    found: Lane<T>,
}

#[derive(Debug)]
struct Lane<T> {
    slots: Arc<Semaphore>,
    waiting: VecDeque<T>,
}

/// The right to use a connection. Dropping it gives it back, from whichever task.
pub(super) type Slot = OwnedSemaphorePermit;

impl<T> Lanes<T> {
    pub(super) fn new() -> Self {
        Self { new: Lane::new(MOST_NEW), found: Lane::new(MOST_FOUND) }
    }

    /// Takes a place behind the others of its lane.
    pub(super) fn wait(&mut self, operation: T, was_found: bool) {
        let lane = if was_found { &mut self.found } else { &mut self.new };
        lane.waiting.push_back(operation);
    }

    /// The next one that may begin now. To be asked until there is none, whenever one waits or a slot came back.
    pub(super) fn next(&mut self) -> Option<(T, Slot)> {
        self.new.next().or_else(|| self.found.next())
    }

    /// How many have not begun.
    pub(super) fn waiting(&self) -> usize {
        self.new.waiting.len() + self.found.waiting.len()
    }
}

impl<T> Lane<T> {
    fn new(most: usize) -> Self {
        Self { slots: Arc::new(Semaphore::new(most)), waiting: VecDeque::new() }
    }

    fn next(&mut self) -> Option<(T, Slot)> {
        let slot = Arc::clone(&self.slots).try_acquire_owned().ok()?;
        self.waiting.pop_front().map(|operation| (operation, slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(lanes: &mut Lanes<usize>) -> Vec<(usize, Slot)> {
        std::iter::from_fn(|| lanes.next()).collect()
    }

    #[test]
    fn neither_lane_waits_for_the_other_one() {
        for found_first in [true, false] {
            let mut lanes = Lanes::new();
            (0..1000).for_each(|n| lanes.wait(n, found_first));
            let first = begun(&mut lanes);
            (1000..2000).for_each(|n| lanes.wait(n, !found_first));
            let second = begun(&mut lanes);
            let most = if found_first { [MOST_FOUND, MOST_NEW] } else { [MOST_NEW, MOST_FOUND] };
            assert_eq!([first.len(), second.len()], most);
            assert!(second.iter().all(|(n, _slot)| *n >= 1000));
            assert_eq!(lanes.waiting(), 2000 - MOST_FOUND - MOST_NEW);
        }
    }

    #[test]
    fn all_get_their_turn_in_the_order_in_which_they_came() {
        let mut lanes = Lanes::new();
        (0..1000).for_each(|n| lanes.wait(n, true));
        let mut ended = Vec::new();
        while lanes.waiting() > 0 {
            let begun = begun(&mut lanes);
            assert!((1..=MOST_FOUND).contains(&begun.len()), "{}", begun.len());
            ended.extend(begun.into_iter().map(|(n, _slot)| n));
        }
        assert_eq!(ended, (0..1000).collect::<Vec<_>>());
    }
}
