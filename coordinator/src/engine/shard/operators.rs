//! What an operator does by hand with a decision that has not reached every branch.
//!
//! None of it can contradict the decision: a delivery is sent sooner, later, or given up. What was given up ends as abandoned, which
//! makes the transaction's outcome heuristic, and what its branch really did is found out if it is ever heard of again (P19, P28).

use lockstep_proto::{Bqual, Gtrid, ResourceManagerName, Xid};

use super::Shard;
use crate::engine::input::{Act, Answer, Now};
use crate::protocol::branch::BranchState;
use crate::protocol::event::Event;

impl<R> Shard<R> {
    pub(super) fn act(&mut self, gtrid: Gtrid, act: &Act, reply: R, now: Now) {
        if !self.live.contains_key(&gtrid) {
            self.reply(reply, Answer::NotLive);
            return;
        }
        let told = self.told(gtrid);
        let xid = |bqual: Bqual| Xid { gtrid, bqual };
        let acted = match act {
            Act::Retry => told.into_iter().filter(|bqual| self.deliveries.retry(&xid(bqual.clone()))).count(),
            Act::Pause => {
                self.live_mut(gtrid).paused = true;
                told.into_iter().filter(|bqual| self.deliveries.pause(&xid(bqual.clone()))).count()
            }
            Act::Resume => {
                self.live_mut(gtrid).paused = false;
                told.into_iter().filter(|bqual| self.deliveries.resume(&xid(bqual.clone()))).count()
            }
            Act::Abandon(name) => {
                let theirs = told.into_iter().filter(|bqual| bqual.resource_manager_str() == name.as_str());
                let theirs: Vec<Bqual> = theirs.collect();
                let count = theirs.len();
                theirs.into_iter().for_each(|bqual| self.abandon(&xid(bqual), now));
                count
            }
        };
        self.reply(reply, Answer::Acted(acted));
    }

    /// From now on nothing is delivered to this resource manager.
    pub(super) fn retire(&mut self, resource_manager: ResourceManagerName) {
        let gtrids: Vec<Gtrid> = self.live.keys().copied().collect();
        for gtrid in gtrids {
            let theirs = |bqual: &Bqual| bqual.resource_manager_str() == resource_manager.as_str();
            let told = self.told(gtrid).into_iter().filter(theirs);
            self.given_up.extend(told.map(|bqual| Xid { gtrid, bqual }));
        }
        self.retired.insert(resource_manager);
    }

    /// Ends what was to be told to a resource manager that is gone. Ending one transaction tells nothing to another, so this
    /// ends.
    pub(super) fn give_up(&mut self, now: Now) {
        for xid in std::mem::take(&mut self.given_up) {
            if self.live.contains_key(&xid.gtrid) {
                self.abandon(&xid, now);
            }
        }
        assert!(self.given_up.is_empty(), "giving a branch up tells no other one anything");
    }

    fn abandon(&mut self, xid: &Xid, now: Now) {
        let abandoned = Event::Abandoned(xid.bqual.clone());
        self.step_branch(xid, abandoned, now).expect("a branch that was told a decision may be given up");
    }

    /// The branches of a live transaction that were told a decision and have not acknowledged it.
    fn told(&self, gtrid: Gtrid) -> Vec<Bqual> {
        let branches = self.live[&gtrid].transaction.branches().iter();
        let told =
            branches.filter(|branch| matches!(branch.state, BranchState::Told | BranchState::ToldOpen));
        told.map(|branch| branch.bqual.clone()).collect()
    }
}
