//! `agreement`: no two branches of a transaction end differently, but by somebody's hand.
//!
//! AC1 in Bernstein, Hadzilacos, Goodman, 1987, chapter 7; `TCConsistent` in appendix A.1 of Gray and Lamport, "Consensus on Transaction Commit",
//! 2006. Looked at whenever a store has done something with a branch, since a decision is all that two branches have in
//! common: a branch commits only if a decision names it, and rolls back only if no commit decision does. And once more over all branches at
//! the end.

use lockstep::branch::Applied;
use lockstep_coordinator::protocol::record::{DecisionKind, EndRecord};
use lockstep_proto::Xid;

use crate::simulation::history::{Decided, Local, branch_number, number_of};
use crate::simulation::world::World;

const NAME: &str = "agreement";

impl World {
    pub(super) fn agreement(&mut self, branch: u32) {
        let facts = &self.history.branches[branch as usize];
        let (local, transaction) = (facts.local, facts.transaction);
        let decision = self.history.named(branch).map(|decided| decided.kind);
        let agrees = match local {
            Local::Committed => decision.is_some(),
            Local::RolledBack => decision != Some(DecisionKind::Commit),
            Local::None | Local::Open | Local::Prepared | Local::ReadOnly | Local::Hazard => true,
        };
        if !agrees && !facts.by_hand {
            let what =
                format!("branch {branch} is {local:?}, and the decision that names it is {decision:?}");
            self.violate(NAME, Some(transaction), what);
        }
    }

    /// A heuristic outcome is on record only where somebody laid hands on a branch.
    pub(super) fn agreement_of_heuristic(&mut self, end: &EndRecord) {
        let number = number_of(&end.gtrid);
        // A branch need not be one that the coordinator has enlisted.
        let by_hand = |branch: &&crate::simulation::history::BranchFacts| {
            branch.transaction == number && branch.by_hand
        };
        if !self.history.branches.iter().any(|branch| by_hand(&branch)) {
            let what = format!("{end:?} is to be recorded, and nobody laid hands on it");
            self.violate(NAME, Some(number), what);
        }
    }

    /// What a participant acknowledges has really come to be.
    pub(super) fn acknowledgement_is_true(&mut self, xid: &Xid, applied: &Applied) {
        let facts = &self.history.branches[branch_number(&xid.bqual) as usize];
        let fits = match applied {
            Applied::Committed => facts.local == Local::Committed || facts.undone,
            Applied::RolledBack => facts.local != Local::Committed && facts.local != Local::Prepared,
            Applied::Hazard => facts.local == Local::Hazard,
            Applied::NotYet(_) => true,
        };
        if !fits && !facts.by_hand {
            let what = format!("{xid} is {:?}, and is acknowledged as {applied:?}", facts.local);
            self.violate(NAME, Some(number_of(&xid.gtrid)), what);
        }
    }

    pub(super) fn agreement_at_the_end(&mut self) {
        for branch in 0..self.history.branches.len() {
            self.agreement(u32::try_from(branch).expect("branches are numbered with 32 bits"));
        }
        for number in 0..self.history.transactions.len() {
            let facts = &self.history.transactions[number];
            let mut committed = 0;
            let mut gone = 0;
            for branch in &facts.enlisted {
                let branch = &self.history.branches[*branch as usize];
                match branch.local {
                    Local::Committed if !branch.by_hand => committed += 1,
                    Local::RolledBack | Local::None | Local::Open | Local::Prepared if !branch.by_hand => {
                        gone += 1
                    }
                    Local::Committed
                    | Local::RolledBack
                    | Local::None
                    | Local::Open
                    | Local::Prepared
                    | Local::ReadOnly
                    | Local::Hazard => {}
                }
            }
            let decision = facts.decision.as_ref().map(|Decided { kind, .. }| *kind);
            if committed > 0 && gone > 0 {
                let what =
                    format!("{committed} branches have committed and {gone} have not; decision {decision:?}");
                self.violate(NAME, u32::try_from(number).ok(), what);
            }
        }
    }
}
