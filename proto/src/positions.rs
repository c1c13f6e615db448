//! How far the decision log was seen to have come: a place in it for each epoch (protocol.md, P8).
//!
//! # Why one place is not enough
//!
//! Several epochs may be open at once, one for each node that shares the log, and each counts its own batches. That epoch 2 is known to
//! have come to 7 says nothing of epoch 1: a log that was put back to an older backup, or that has failed over to a standby, may
//! have all of 2's batches and lack the last ones of 1. So whoever carries out what a log has decided keeps the newest place
//! of *each* epoch, and reports all of them. The log is looked at for each; it is behind if it lacks any.
//!
//! # What is kept
//!
//! - A participant keeps the place that came with a decision before that decision's effect can be seen, and the one that came with a
//!   prepare as a part of the evidence. One row for each epoch, raised in the statement that kept the newest place alone before.
//! - What it has kept outlives the evidence that held it.
//! - The order is that of the batches of one epoch. Places of different epochs have none. Of two incarnations of an epoch the higher
//!   number stays: a log that takes a number a second time was behind, and knows it by then.
//!
//! # What need not be kept
//!
//! Every life of a coordinator is an epoch, so they would become many. A log that is put back is a log as it once was: if it has an
//! epoch at all, it has everything that was in the log when that one began. So what was seen of an epoch that was *sealed when a newer
//! one began* goes, in the transaction that keeps a place of the newer one. The coordinator says which these are when a
//! participant attaches, and only if it lacks nothing. What is left are the epochs that were open then, and later ones: about as many
//! as there are nodes.
//!
//! # What is told of another epoch's decision
//!
//! A message carries the place of the node that sends it. A node that delivers what another epoch decided, because it has adopted it or
//! was asked, forces a batch of its own after it has read that decision, unless the other epoch was sealed when its own began.
//! So its own place, too, is one that a log without the decision has not come to.

use std::collections::BTreeMap;

use crate::museum::mutated;
use crate::{Epoch, LogPosition};

/// The newest place of each epoch, as someone knows them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Positions(BTreeMap<Epoch, LogPosition>);

impl Positions {
    /// Nothing was seen.
    #[must_use]
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// The log has come to this place.
    pub fn see(&mut self, position: LogPosition) {
        if self.covers(&position) {
            return;
        }
        if mutated("P8-one-position-for-all-epochs") {
            if self.newest().is_some_and(|newest| newest.epoch > position.epoch) {
                return;
            }
            self.0.clear();
        }
        self.0.insert(position.epoch, position);
    }

    /// Whether this place, or a newer one of the same epoch, was seen.
    #[must_use]
    pub fn covers(&self, position: &LogPosition) -> bool {
        self.0.get(&position.epoch).is_some_and(|seen| seen.sequence >= position.sequence)
    }

    /// Lets go of what was seen of these epochs.
    pub fn forget(&mut self, epochs: &[Epoch]) {
        self.0.retain(|epoch, _| !epochs.contains(epoch));
    }

    /// The newest place of this epoch.
    #[must_use]
    pub fn of(&self, epoch: Epoch) -> Option<LogPosition> {
        self.0.get(&epoch).copied()
    }

    /// The newest place of the newest epoch.
    #[must_use]
    pub fn newest(&self) -> Option<LogPosition> {
        self.0.values().next_back().copied()
    }

    /// All of them, the oldest epoch first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &LogPosition> {
        self.0.values()
    }
}

impl Extend<LogPosition> for Positions {
    fn extend<I: IntoIterator<Item = LogPosition>>(&mut self, positions: I) {
        positions.into_iter().for_each(|position| self.see(position));
    }
}

impl FromIterator<LogPosition> for Positions {
    fn from_iter<I: IntoIterator<Item = LogPosition>>(positions: I) -> Self {
        let mut all = Self::new();
        all.extend(positions);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Incarnation;

    fn position(epoch: u32, sequence: u64) -> LogPosition {
        let incarnation = Incarnation::from_bytes([7; 16]);
        LogPosition { epoch: Epoch::new(epoch).unwrap(), incarnation, sequence }
    }

    fn seen(positions: &[(u32, u64)]) -> Positions {
        positions.iter().map(|(epoch, sequence)| position(*epoch, *sequence)).collect()
    }

    #[test]
    fn no_epoch_hides_another_one_in_whatever_order_they_are_seen() {
        for order in [[(1, 900), (2, 7)], [(2, 7), (1, 900)]] {
            let seen = seen(&order);
            assert_eq!(seen.iter().copied().collect::<Vec<_>>(), [position(1, 900), position(2, 7)]);
            assert_eq!(seen.newest(), Some(position(2, 7)));
        }
    }

    #[test]
    fn a_place_covers_the_older_ones_of_its_own_epoch_and_no_others() {
        let seen = seen(&[(2, 7)]);
        for (epoch, sequence, covered) in
            [(2, 0, true), (2, 7, true), (2, 8, false), (1, 0, false), (1, 900, false), (3, 0, false)]
        {
            assert_eq!(seen.covers(&position(epoch, sequence)), covered, "{epoch} {sequence}");
        }
    }

    #[test]
    fn within_an_epoch_the_newest_stays() {
        let mut seen = seen(&[(1, 5), (1, 9), (1, 6)]);
        assert_eq!(seen.iter().copied().collect::<Vec<_>>(), [position(1, 9)]);
        let again = LogPosition { incarnation: Incarnation::from_bytes([8; 16]), ..position(1, 2) };
        seen.see(again);
        assert_eq!(seen.newest(), Some(position(1, 9)), "the place that was lost is still reported");
    }

    #[test]
    fn only_what_is_named_is_forgotten() {
        let mut seen = seen(&[(1, 5), (2, 7), (3, 1)]);
        seen.forget(&[Epoch::new(1).unwrap(), Epoch::new(9).unwrap()]);
        assert_eq!(seen.iter().copied().collect::<Vec<_>>(), [position(2, 7), position(3, 1)]);
    }
}
