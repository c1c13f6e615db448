//! `heuristics_recorded`: a branch that was ended by hand against the decision is on record, and was never counted as done.
//!
//! Looked at at the end, when all evidence has been compared (P19).

use lockstep_coordinator::protocol::record::DecisionKind;

use crate::simulation::history::Local;
use crate::simulation::world::World;

const NAME: &str = "heuristics_recorded";

impl World {
    pub(super) fn heuristics_recorded(&mut self) {
        for branch in 0..self.history.branches.len() {
            let number = u32::try_from(branch).expect("branches are numbered with 32 bits");
            let facts = &self.history.branches[branch];
            if !facts.by_hand {
                continue;
            }
            let transaction = facts.transaction;
            let decided = self.history.named(number).map(|decided| decided.kind);
            let as_decided = match facts.local {
                Local::Committed => decided.is_some(),
                Local::RolledBack => decided != Some(DecisionKind::Commit),
                Local::Hazard => false,
                Local::None | Local::Open | Local::Prepared | Local::ReadOnly => true,
            };
            if !as_decided && !self.history.transactions[transaction as usize].heuristic {
                let what =
                    format!("branch {branch} is {:?} by hand, the decision was {decided:?}", facts.local);
                self.violate(NAME, Some(transaction), what);
            }
        }
    }
}
