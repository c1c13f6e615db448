//! The decision log, and the coordinator's crash.

use lockstep_proto::Gtrid;

use super::{Choice, World, config, gtrid_of};
use crate::engine::input::{Input, LogAnswer};
use crate::engine::shard::Shard;
use crate::protocol::presumption::{EpochState, LookUp, Recorded};
use crate::protocol::record::{DecisionKind, DecisionRecord, LogWrite};

impl World {
    pub(in crate::engine::tests) fn answer_write(&mut self, choice: Choice, how: Choice) {
        if self.writing.is_empty() {
            return;
        }
        let index = usize::from(choice) % self.writing.len();
        let gtrid = gtrid_of(&self.writing[index].write);
        let answer = match (self.writing[index].unknown, how % 8) {
            (None, 0 | 1) => {
                self.writing.remove(index);
                self.note("log refused");
                LogAnswer::Refused("the disk is full".into())
            }
            (None, 2 | 3) => {
                let there = how % 8 == 2;
                self.writing[index].unknown = Some(there);
                if there {
                    let write = self.writing[index].write.clone();
                    self.is_durable(write);
                }
                LogAnswer::Unknown("the connection broke".into())
            }
            (None, _) => {
                let written = self.writing.remove(index);
                self.is_durable(written.write);
                LogAnswer::Forced
            }
            (Some(there), _) => {
                self.writing.remove(index);
                self.note(if there { "log found" } else { "log absent" });
                if there { LogAnswer::Found } else { LogAnswer::Absent }
            }
        };
        self.step(Input::Log { gtrid, answer });
    }

    pub(super) fn is_durable(&mut self, write: LogWrite) {
        match write {
            LogWrite::ForceDecision(decision) => {
                let told = self.told.get(&decision.gtrid);
                let refuted = decision.kind == DecisionKind::Commit
                    && told.is_some_and(|told| told.contains("rolled back"));
                assert!(!refuted, "stability: {} was told to be rolled back", decision.gtrid);
                let earlier = self.decisions.insert(decision.gtrid, decision);
                assert!(earlier.is_none(), "stability: a transaction is decided once: {earlier:?}");
            }
            LogWrite::ForceEnd(end) | LogWrite::LazyEnd(end) => {
                self.ends.insert(end.gtrid, end);
            }
        }
    }

    pub(in crate::engine::tests) fn write_lazily(&mut self) {
        for end in std::mem::take(&mut self.lazy) {
            self.is_durable(LogWrite::LazyEnd(end));
        }
    }

    /// The coordinator dies and comes back. Whether a write that was under way is there, `luck` says.
    pub(in crate::engine::tests) fn crash(&mut self, luck: Choice) {
        for (index, writing) in std::mem::take(&mut self.writing).into_iter().enumerate() {
            let there = luck >> (index % 8) & 1 == 1;
            if writing.unknown.is_none() && there {
                self.is_durable(writing.write);
            }
        }
        if luck < 128 {
            self.write_lazily();
        }
        self.lazy.clear();
        for session in self.sessions.keys().copied().collect::<Vec<_>>() {
            self.end_session(session);
        }
        self.stale.clear();
        self.asked.clear();
        self.epoch += 1;
        self.shard = Shard::new(config(self.epoch));
        let unfinished = self.decisions.values().filter(|decision| !self.ends.contains_key(&decision.gtrid));
        for decision in unfinished.cloned().collect::<Vec<_>>() {
            self.note(match decision.kind {
                DecisionKind::Commit => "recover commit",
                DecisionKind::OnePhaseIntent => "recover intent",
            });
            self.step(Input::Recover(decision));
        }
    }

    pub(super) fn look_up(&self, gtrid: Gtrid) -> LookUp {
        let decision = self.decisions.get(&gtrid).cloned();
        let recorded = match (decision, self.ends.get(&gtrid).cloned()) {
            (None, None) => Recorded::Absent,
            (Some(decision), None) => Recorded::Decided(decision),
            (decision, Some(end)) => Recorded::Ended(decision, end),
        };
        let own = gtrid.epoch().get() == self.epoch;
        let epoch = if own { EpochState::Own } else { EpochState::Sealed };
        LookUp { recorded, epoch, below_horizon: false }
    }

    /// Whether a decision of this kind is durable, or may be.
    pub(super) fn may_be_decided(&self, gtrid: Gtrid, kind: DecisionKind) -> bool {
        let writing = self.writing.iter().any(|writing| match &writing.write {
            LogWrite::ForceDecision(decision) => decision.gtrid == gtrid && decision.kind == kind,
            LogWrite::ForceEnd(_) | LogWrite::LazyEnd(_) => false,
        });
        writing || self.decided(gtrid, kind).is_some()
    }

    pub(super) fn decided(&self, gtrid: Gtrid, kind: DecisionKind) -> Option<&DecisionRecord> {
        self.decisions.get(&gtrid).filter(|decision| decision.kind == kind)
    }
}
