//! `commit_needs_all_votes`: commit is decided only when every enlisted branch has voted commit or read-only, and a vote for commit is the vote
//! of a branch that is prepared.
//!
//! AC3 in Bernstein, Hadzilacos, Goodman, 1987, chapter 7. One phase needs no vote, and nobody else who wrote (P10). Looked at when a shard
//! decides, and when a participant votes.

use lockstep_coordinator::protocol::record::{DecisionKind, DecisionRecord};
use lockstep_proto::Xid;

use crate::simulation::history::{Local, branch_number, number_of};
use crate::simulation::world::World;

const NAME: &str = "commit_needs_all_votes";

impl World {
    pub(super) fn commit_needs_all_votes(&mut self, decision: &DecisionRecord) {
        let named: Vec<u32> = decision.branches.iter().map(branch_number).collect();
        let enlisted = self.history.of(&decision.gtrid).enlisted.clone();
        for branch in &enlisted {
            let facts = &self.history.branches[*branch as usize];
            let fits = match (named.contains(branch), decision.kind) {
                (true, DecisionKind::Commit) => facts.voted_commit,
                (true, DecisionKind::OnePhaseIntent) => true,
                (false, DecisionKind::Commit | DecisionKind::OnePhaseIntent) => {
                    facts.local == Local::ReadOnly
                }
            };
            if !fits {
                let what = format!("branch {branch} has not voted for {decision:?}");
                self.violate(NAME, Some(number_of(&decision.gtrid)), what);
            }
        }
        if named.iter().any(|branch| !enlisted.contains(branch)) {
            let what = format!("{decision:?} names a branch that is not enlisted");
            self.violate(NAME, Some(number_of(&decision.gtrid)), what);
        }
    }

    pub(super) fn vote_is_true(&mut self, xid: &Xid) {
        let facts = self.history.branch(xid);
        facts.voted_commit = true;
        if !facts.was_prepared {
            let what = format!("{xid} votes commit, and was never prepared");
            self.violate(NAME, Some(number_of(&xid.gtrid)), what);
        }
    }
}
