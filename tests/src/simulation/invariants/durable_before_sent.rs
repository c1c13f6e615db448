//! `durable_before_sent`: no commit message leaves before its decision is durable, and names the branch.
//!
//! Mohan, Lindsay, Obermarck, "Transaction Management in the R* Distributed Database Management System", ACM TODS 11(4), 1986, section 2. Looked
//! at when a message leaves; that no participant has ever seen more of the log than there is, when it attaches (P8).

use lockstep_coordinator::protocol::record::DecisionKind;
use lockstep_proto::Xid;

use crate::simulation::history::{branch_number, number_of};
use crate::simulation::world::World;

const NAME: &str = "durable_before_sent";

impl World {
    pub(super) fn is_one_phase(&self, xid: &Xid) -> bool {
        let decided = self.history.named(branch_number(&xid.bqual));
        decided.is_some_and(|decided| decided.kind == DecisionKind::OnePhaseIntent)
    }

    pub(super) fn durable_before_sent(&mut self, xid: &Xid, one_phase: bool) {
        let kind = if one_phase { DecisionKind::OnePhaseIntent } else { DecisionKind::Commit };
        let decided = self.history.named(branch_number(&xid.bqual));
        let named = decided.is_some_and(|decided| decided.kind == kind);
        // What was pruned was durable.
        let durable = self.log.decision(&xid.gtrid).is_none() || self.log.is_decision_durable(&xid.gtrid);
        if !named || !durable {
            let what =
                format!("{xid} is told to commit, named by a decision: {named}, which is durable: {durable}");
            self.violate(NAME, Some(number_of(&xid.gtrid)), what);
        }
    }
}
