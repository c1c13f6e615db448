//! `stability`: a decision, once durable, never changes; and nobody was ever told otherwise.
//!
//! AC2 in Bernstein, Hadzilacos, Goodman, 1987, chapter 7: "a process cannot reverse its decision after it has reached one". Looked at
//! when a decision becomes visible in the log, when a branch is told to roll back, and whenever a client is told an outcome.

use lockstep_coordinator::protocol::record::{DecisionKind, DecisionRecord};
use lockstep_proto::{Gtrid, Xid};

use crate::simulation::history::{Local, branch_number, number_of};
use crate::simulation::world::World;

const NAME: &str = "stability";

impl World {
    pub(super) fn stability_of_decision(&mut self, decision: &DecisionRecord) {
        let facts = self.history.of(&decision.gtrid);
        let refuted = decision.kind == DecisionKind::Commit && facts.told_rolled_back;
        if refuted {
            let what = "its commit is decided after a client was told that it is rolled back";
            self.violate(NAME, Some(number_of(&decision.gtrid)), what);
        }
    }

    /// A branch is told to roll back: no decision names it, and none is on its way to the log. An intent decides nothing by itself: where
    /// somebody's hand has rolled back its branch, which had voted early, that vote may still come, and is answered with what became of it.
    pub(super) fn stability_of_rollback(&mut self, xid: &Xid) {
        let branch = branch_number(&xid.bqual);
        let kind = self.history.named(branch).map(|decided| decided.kind);
        let of_branch = self.history.branch(xid);
        let undone_by_hand = of_branch.by_hand && of_branch.local == Local::RolledBack;
        let named = match kind {
            Some(DecisionKind::Commit) => true,
            Some(DecisionKind::OnePhaseIntent) => !undone_by_hand,
            None => false,
        };
        let facts = self.history.of(&xid.gtrid);
        let deciding = facts.deciding.is_some();
        if named || deciding {
            let what =
                format!("{xid} is told to roll back, and is, or may be, named by a decision to commit");
            self.violate(NAME, Some(number_of(&xid.gtrid)), what);
        }
    }

    /// The outcomes that clients were told are one.
    pub(super) fn stability_of_replies(&mut self, gtrid: &Gtrid) {
        let facts = self.history.of(gtrid);
        if facts.told_committed && facts.told_rolled_back {
            let what = "clients were told that it is committed, and that it is rolled back";
            self.violate(NAME, Some(number_of(gtrid)), what);
        }
    }
}
