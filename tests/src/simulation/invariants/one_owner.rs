//! `one_owner`: no decision is written under a sealed epoch, nor by anyone but the epoch that the transaction belongs to.
//!
//! The fence of P1. Looked at when a decision becomes visible in the log.

use lockstep_coordinator::protocol::record::DecisionRecord;

use crate::simulation::history::number_of;
use crate::simulation::world::World;

const NAME: &str = "one_owner";

impl World {
    pub(super) fn one_owner(&mut self, decision: &DecisionRecord) {
        let newest = self.log.position().epoch;
        let writer = self.node.as_ref().map(|node| node.position.epoch);
        let epoch = decision.gtrid.epoch();
        // `None`: it was on the disk when its coordinator ended.
        if epoch != newest || writer.is_some_and(|writer| writer != epoch) {
            let what = format!("decided under epoch {newest} by {writer:?}, and it belongs to epoch {epoch}");
            self.violate(NAME, Some(number_of(&decision.gtrid)), what);
        }
    }
}
