//! `reply_matches_log`: what a client was told is what the log says, or in one phase the evidence. Unknown is allowed, wrong is not.
//!
//! The promise that everything else is for. Looked at when an answer leaves the coordinator.

use lockstep_coordinator::protocol::outcome::Outcome;
use lockstep_coordinator::protocol::record::DecisionKind;
use lockstep_proto::Gtrid;

use crate::simulation::history::{Local, number_of};
use crate::simulation::world::World;

const NAME: &str = "reply_matches_log";

impl World {
    pub(super) fn reply_matches_log(&mut self, gtrid: Gtrid, outcome: Option<Outcome>) {
        let facts = self.history.of(&gtrid).clone();
        let decided = facts.decision.as_ref().map(|decided| decided.kind);
        let may_commit =
            decided == Some(DecisionKind::Commit) || facts.deciding == Some(DecisionKind::Commit);
        let one_phase =
            facts.decision.as_ref().filter(|decided| decided.kind == DecisionKind::OnePhaseIntent);
        let evidence = one_phase.map(|intent| self.history.branches[intent.branches[0] as usize].local);
        let holds = match outcome {
            None | Some(Outcome::Unknown) => return,
            Some(Outcome::Committed) => match one_phase {
                // One that had voted early, and whose commit a failover has undone, is committed again.
                Some(intent) => {
                    let undone = self.history.branches[intent.branches[0] as usize].undone;
                    evidence == Some(Local::Committed) || undone
                }
                None => decided == Some(DecisionKind::Commit) && self.log_keeps(&gtrid),
            },
            Some(Outcome::RolledBack) => !may_commit && evidence != Some(Local::Committed),
            Some(Outcome::NothingToCommit) => !may_commit,
            Some(Outcome::Heuristic(_)) => facts.heuristic,
        };
        if !holds && !self.history.touched_by_hand(&facts) {
            let what = format!("a client is told {outcome:?}; decision {decided:?}, evidence {evidence:?}");
            self.violate(NAME, Some(number_of(&gtrid)), what);
        }
        let told = self.history.of(&gtrid);
        told.told_committed |= outcome == Some(Outcome::Committed);
        told.told_rolled_back |= outcome == Some(Outcome::RolledBack);
        self.stability_of_replies(&gtrid);
        self.reached.outcome(outcome);
    }

    /// The decision would survive a loss of power, or has been pruned since.
    fn log_keeps(&self, gtrid: &Gtrid) -> bool {
        self.log.decision(gtrid).is_none() || self.log.is_decision_durable(gtrid)
    }
}
