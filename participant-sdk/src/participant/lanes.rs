//! Who may use a connection beside those of open branches, and who waits for one.
//!
//! What waits is no task yet: after a restart of the coordinator thousands of branches that were found prepared are answered at once, and a
//! task for each of them would take several KiB of the service's memory while it waits.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Operations that may need a connection beside those of open branches, at a time. More would not make a database faster.
const MAX_CONCURRENT: usize = 32;
/// How many of these may be for branches that were found prepared: a new transaction's commit must not stand behind thousands of them.
///
/// Fewer than the eight connections that a database has for all of these.
const MAX_FOUND: usize = 6;

/// Two lanes, each first come, first served: what is for new branches, and before what is for those that were found prepared.
#[derive(Debug)]
pub(super) struct Lanes<T> {
    all: Arc<Semaphore>,
    found: Arc<Semaphore>,
    waiting: VecDeque<T>,
    waiting_found: VecDeque<T>,
}

/// The right to use a connection. Dropping it gives it back, from whichever task.
#[derive(Debug)]
pub(super) struct Slot {
    _found: Option<OwnedSemaphorePermit>,
    _one: OwnedSemaphorePermit,
}

impl<T> Lanes<T> {
    pub(super) fn new() -> Self {
        Self {
            all: Arc::new(Semaphore::new(MAX_CONCURRENT)),
            found: Arc::new(Semaphore::new(MAX_FOUND)),
            waiting: VecDeque::new(),
            waiting_found: VecDeque::new(),
        }
    }

    /// Takes a place behind the others.
    pub(super) fn wait(&mut self, operation: T, was_found: bool) {
        let lane = if was_found { &mut self.waiting_found } else { &mut self.waiting };
        lane.push_back(operation);
    }

    /// The next one that may begin now. To be asked again until there is none, whenever one waits or a slot came back.
    pub(super) fn next(&mut self) -> Option<(T, Slot)> {
        if let Some(slot) = self.slot(false, !self.waiting.is_empty()) {
            return self.waiting.pop_front().map(|operation| (operation, slot));
        }
        let slot = self.slot(true, !self.waiting_found.is_empty())?;
        self.waiting_found.pop_front().map(|operation| (operation, slot))
    }

    fn slot(&self, was_found: bool, is_wanted: bool) -> Option<Slot> {
        if !is_wanted {
            return None;
        }
        let take = |slots: &Arc<Semaphore>| Arc::clone(slots).try_acquire_owned().ok();
        let found = if was_found { Some(take(&self.found)?) } else { None };
        Some(Slot { _found: found, _one: take(&self.all)? })
    }

    /// How many have not begun.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len() + self.waiting_found.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(lanes: &mut Lanes<usize>) -> Vec<(usize, Slot)> {
        std::iter::from_fn(|| lanes.next()).collect()
    }

    #[test]
    fn what_was_found_leaves_room_for_what_is_new() {
        let mut lanes = Lanes::new();
        (0..1000).for_each(|n| lanes.wait(n, true));
        let mut found = begun(&mut lanes);
        assert_eq!(found.len(), MAX_FOUND);
        (1000..2000).for_each(|n| lanes.wait(n, false));
        let mut new = begun(&mut lanes);
        assert_eq!(new.len(), MAX_CONCURRENT - MAX_FOUND);
        assert_eq!(lanes.waiting(), 2000 - MAX_CONCURRENT);

        // Each goes first that came first, the new ones before the others.
        drop(found.remove(0));
        assert_eq!(begun(&mut lanes).into_iter().map(|(n, _slot)| n).next(), Some(1000 + new.len()));
        drop(new.drain(..));
        assert!(begun(&mut lanes).iter().all(|(n, _slot)| *n >= 1000), "the new ones take what is free");
    }

    #[test]
    fn all_get_their_turn_in_the_order_in_which_they_came() {
        let mut lanes = Lanes::new();
        (0..1000).for_each(|n| lanes.wait(n, true));
        let mut ended = Vec::new();
        while lanes.waiting() > 0 {
            let begun = begun(&mut lanes);
            assert!((1..=MAX_FOUND).contains(&begun.len()), "{}", begun.len());
            ended.extend(begun.into_iter().map(|(n, _slot)| n));
        }
        assert_eq!(ended, (0..1000).collect::<Vec<_>>());
    }
}
