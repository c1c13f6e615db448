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
/// The same for those that were. A database has eight connections for all of these, whichever coordinator has asked, and for what takes no
/// slot: one is left for an operator's question, should the others hang.
const MOST_FOUND: usize = 7;
/// The same beside new ones: a new transaction's commit must not stand behind thousands of them.
const MOST_FOUND_BESIDE_NEW: usize = 4;
/// So many found ones have to begin, with no new one under way, before they take what is left free for new ones. Those come singly, and
/// each would find every connection taken if they took it at once.
const UNDISTURBED: usize = 64;

/// Two lanes, each first come, first served. Neither waits for the other one, however long that is.
#[derive(Debug)]
pub(super) struct Lanes<T> {
    new: Lane<T>,
    found: Lane<T>,
    /// Found ones that have begun since a new one was under way.
    undisturbed: usize,
}

#[derive(Debug)]
struct Lane<T> {
    slots: Arc<Semaphore>,
    most: usize,
    waiting: VecDeque<T>,
}

/// The right to use a connection. Dropping it gives it back, from whichever task.
pub(super) type Slot = OwnedSemaphorePermit;

impl<T> Lanes<T> {
    pub(super) fn new() -> Self {
        Self { new: Lane::new(MOST_NEW), found: Lane::new(MOST_FOUND), undisturbed: 0 }
    }

    /// Takes a place behind the others of its lane.
    pub(super) fn wait(&mut self, operation: T, was_found: bool) {
        let lane = if was_found { &mut self.found } else { &mut self.new };
        lane.waiting.push_back(operation);
    }

    /// The next one that may begin now. To be asked until there is none, whenever one waits or a slot came back.
    pub(super) fn next(&mut self) -> Option<(T, Slot)> {
        let new = self.new.next();
        if self.new.under_way() > 0 {
            self.undisturbed = 0;
        }
        new.or_else(|| self.next_found())
    }

    fn next_found(&mut self) -> Option<(T, Slot)> {
        let most = if self.undisturbed < UNDISTURBED { MOST_FOUND_BESIDE_NEW } else { MOST_FOUND };
        let next = if self.found.under_way() < most { self.found.next() } else { None };
        self.undisturbed += usize::from(next.is_some());
        next
    }

    /// Whether one that was found prepared waits or is under way.
    pub(super) fn has_found(&self) -> bool {
        !self.found.waiting.is_empty() || self.found.under_way() > 0
    }

    /// How many have not begun.
    pub(super) fn waiting(&self) -> usize {
        self.new.waiting.len() + self.found.waiting.len()
    }
}

impl<T> Lane<T> {
    fn new(most: usize) -> Self {
        Self { slots: Arc::new(Semaphore::new(most)), most, waiting: VecDeque::new() }
    }

    /// How many have a slot.
    fn under_way(&self) -> usize {
        self.most - self.slots.available_permits()
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
            let most = if found_first {
                [MOST_FOUND_BESIDE_NEW, MOST_NEW]
            } else {
                [MOST_NEW, MOST_FOUND_BESIDE_NEW]
            };
            assert_eq!([first.len(), second.len()], most);
            assert!(second.iter().all(|(n, _slot)| *n >= 1000));
            assert_eq!(lanes.waiting(), 2000 - MOST_FOUND_BESIDE_NEW - MOST_NEW);
        }
    }

    #[test]
    fn found_ones_take_what_is_left_for_new_ones_when_there_are_none_for_a_while() {
        let mut lanes = Lanes::new();
        (0..1000).for_each(|n| lanes.wait(n, true));
        let mut under_way = VecDeque::from(begun(&mut lanes));
        for _ in MOST_FOUND_BESIDE_NEW..UNDISTURBED {
            assert_eq!(under_way.len(), MOST_FOUND_BESIDE_NEW);
            under_way.pop_front();
            under_way.extend(begun(&mut lanes));
        }
        under_way.extend(begun(&mut lanes));
        assert_eq!(under_way.len(), MOST_FOUND);

        lanes.wait(1000, false);
        let new = begun(&mut lanes);
        assert_eq!(new.len(), 1);
        under_way.pop_front();
        drop(new);
        assert!(begun(&mut lanes).is_empty(), "the next new one may come at once");
    }

    #[test]
    fn it_is_known_whether_found_ones_are_left() {
        let mut lanes = Lanes::new();
        lanes.wait(0, false);
        let new = begun(&mut lanes);
        assert!(new.len() == 1 && !lanes.has_found());
        lanes.wait(1, true);
        assert!(lanes.has_found(), "it waits");
        let found = begun(&mut lanes);
        assert!(found.len() == 1 && lanes.has_found(), "it is under way");
        drop(found);
        assert!(!lanes.has_found());
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
