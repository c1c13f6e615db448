//! The end of all faults.

use std::time::Duration;

use super::{Asked, Choice, Local, RESOURCE_MANAGERS, World};
use crate::engine::input::Input;
use crate::protocol::event::Applied;
use crate::protocol::outcome::Outcome;
use crate::protocol::record::DecisionKind;

impl World {
    pub(in crate::engine::tests) fn heal(&mut self) {
        self.healing = true;
        for number in 0..RESOURCE_MANAGERS.len() {
            self.attach(Choice::try_from(number).unwrap());
        }
        for _ in 0..100 {
            while !self.flights.is_empty() || !self.writing.is_empty() {
                while !self.flights.is_empty() {
                    let first = self.flights.remove(0);
                    self.arrive(first, 0);
                }
                self.answer_write(0, 7);
            }
            self.write_lazily();
            for session in self.sessions.keys().copied().collect::<Vec<_>>() {
                self.list(session);
            }
            if self.flights.is_empty() && self.shard.next_timer().is_none() {
                return self.all_has_ended();
            }
            self.wait(Duration::from_secs(5));
        }
        panic!("termination_after_healing: {:?}", self.shard);
    }

    pub(super) fn all_has_ended(&mut self) {
        let reply = self.ask(Asked::Summary);
        self.step(Input::Summarize { reply });
        assert!(self.shard.is_idle(), "nothing is left of what has ended: {:?}", self.shard);
        assert!(self.asked.is_empty(), "everyone was answered: {:?}", self.asked);
        for (xid, local) in &self.branches {
            assert_ne!(*local, Local::Prepared, "no_orphan_left: {xid}");
        }
        for decision in self.decisions.values() {
            assert!(self.ends.contains_key(&decision.gtrid), "every decision has its end: {decision:?}");
        }
        self.reconcile();
        self.heuristics_recorded();
    }

    /// Participants show their evidence before they prune it (P19).
    pub(super) fn reconcile(&mut self) {
        for (xid, local) in self.branches.clone() {
            match local {
                Local::Committed => self.compare(&xid, Applied::Committed),
                Local::RolledBack => self.compare(&xid, Applied::RolledBack),
                Local::Open(_) | Local::Prepared | Local::ReadOnly => {}
            }
        }
    }

    /// `heuristics_recorded`: what was done by hand against the decision is on record.
    pub(super) fn heuristics_recorded(&self) {
        for xid in &self.by_hand {
            let look_up = self.look_up(xid.gtrid);
            let committed = self.branches.get(xid) == Some(&Local::Committed);
            let one_phase = self.decided(xid.gtrid, DecisionKind::OnePhaseIntent).is_some();
            let end = look_up.recorded.end().map(|end| end.outcome);
            assert!(
                committed == look_up.recorded.names(&xid.bqual)
                    || one_phase
                    || matches!(end, Some(Outcome::Heuristic(_))),
                "heuristics_recorded: {xid} was ended by hand against the decision: {look_up:?}"
            );
        }
    }
}
