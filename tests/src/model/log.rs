//! The decision log: epochs, their seals, one decision and one end. A decision is written only under an unsealed epoch and the generation
//! that its node knows, in one step (P1); what a write of unknown result left on its way is void once the generation has moved (P2).

use lockstep_coordinator::protocol::presumption::{EpochState, LookUp, Recorded};
use lockstep_coordinator::protocol::record::{DecisionRecord, EndRecord};

/// Epochs that a world can have: every start takes one.
pub const MAX_EPOCHS: u8 = 6;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Log {
    /// Epochs that were given out: 1 up to this.
    pub epochs: u8,
    /// One bit for each sealed epoch.
    pub sealed: u8,
    /// What is decided.
    pub decision: Option<DecisionRecord>,
    /// How it ended.
    pub end: Option<EndRecord>,
}

impl Log {
    /// Whether this epoch is over.
    #[must_use]
    pub const fn is_sealed(&self, epoch: u8) -> bool {
        self.sealed & (1 << epoch) != 0
    }

    /// Seals an epoch.
    pub const fn seal(&mut self, epoch: u8) {
        self.sealed |= 1 << epoch;
    }

    /// What a node of this epoch finds of the transaction, all in one snapshot. It began in epoch 1.
    #[must_use]
    pub fn look_up(&self, reader: u8) -> LookUp {
        let recorded = match (&self.decision, &self.end) {
            (None, None) => Recorded::Absent,
            (Some(decision), None) => Recorded::Decided(decision.clone()),
            (decision, Some(end)) => Recorded::Ended(decision.clone(), end.clone()),
        };
        let epoch = if reader == 1 {
            EpochState::Own
        } else if self.is_sealed(1) {
            EpochState::Sealed
        } else {
            EpochState::Live
        };
        LookUp { recorded, epoch, below_horizon: false }
    }
}
