//! The only places where a transaction's state changes, and what each change asks for.

use lockstep_proto::{Bqual, limits};

use super::{State, Transaction};
use crate::protocol::branch::{Branch, BranchState};
use crate::protocol::event::{Effects, EnlistRefusal, Message, Reply};
use crate::protocol::outcome::{BranchEnd, Heuristic, Outcome};
use crate::protocol::record::{DecisionKind, DecisionRecord, EndRecord, LogWrite};

impl Transaction {
    pub(super) fn become_preparing(&mut self) -> Effects {
        self.state = State::Preparing;
        let mut effects = Effects::none();
        for branch in self.branches.iter_mut().filter(|branch| branch.state == BranchState::Enlisted) {
            branch.state = BranchState::Preparing;
            effects.messages.push((branch.bqual.clone(), Message::Prepare));
        }
        effects
    }

    pub(super) fn become_deciding(&mut self, kind: DecisionKind, now_ms: u64) -> Effects {
        self.assert_decidable(kind);
        self.state = State::Deciding(kind);
        let wanted = self.branches.iter().filter(|branch| !branch.is_read_only());
        let record = DecisionRecord {
            gtrid: self.gtrid,
            kind,
            branches: wanted.map(|branch| branch.bqual.clone()).collect(),
            decided_ms: now_ms,
            about: self.about.clone(),
        };
        Effects { log: Some(LogWrite::ForceDecision(record)), ..Effects::none() }
    }

    /// The invariants `commit_needs_all_votes` and, in one phase, that there is nobody else to ask.
    fn assert_decidable(&self, kind: DecisionKind) {
        let mut wanted = self.branches.iter().filter(|branch| !branch.is_read_only());
        match kind {
            DecisionKind::Commit => {
                let all = wanted.all(|branch| branch.state == BranchState::Prepared);
                assert!(all, "commit is decided only when every branch voted commit or read-only: {self:?}");
            }
            DecisionKind::OnePhaseIntent => {
                let alone =
                    wanted.clone().count() == 1 && wanted.all(|branch| branch.state == BranchState::Enlisted);
                assert!(alone, "one phase is only for a single branch that has not voted: {self:?}");
            }
        }
    }

    pub(super) fn become_decision_unknown(&mut self, kind: DecisionKind) -> Effects {
        self.state = State::DecisionUnknown(kind);
        Effects::none()
    }

    pub(super) fn become_committing(&mut self) -> Effects {
        self.state = State::Committing;
        let mut effects = reply(Reply::Decided(Outcome::Committed, String::new()));
        for branch in self.branches.iter_mut().filter(|branch| branch.ended().is_none()) {
            assert_eq!(
                branch.state,
                BranchState::Prepared,
                "a commit goes only to branches that voted commit"
            );
            branch.state = BranchState::Told;
            effects.messages.push((branch.bqual.clone(), Message::Commit));
        }
        effects
    }

    pub(super) fn become_committing_one_phase(&mut self, now_ms: u64) -> Effects {
        self.state = State::CommittingOnePhase;
        let mut effects = Effects::none();
        for branch in self.branches.iter_mut().filter(|branch| branch.ended().is_none()) {
            branch.state = BranchState::Told;
            effects.messages.push((branch.bqual.clone(), Message::CommitOnePhase));
        }
        if effects.messages.is_empty() {
            // The branch ended by a vote that crossed the intent.
            return self.end_one_phase(now_ms);
        }
        effects
    }

    /// Tells every branch that may still hold anything to roll back.
    fn tell_rollback(&mut self) -> Vec<(Bqual, Message)> {
        let mut messages = Vec::new();
        for branch in &mut self.branches {
            branch.state = match branch.state {
                BranchState::Enlisted => BranchState::ToldOpen,
                BranchState::Preparing | BranchState::Prepared | BranchState::InDoubt => BranchState::Told,
                BranchState::ToldOpen | BranchState::Told | BranchState::Ended(_) => continue,
            };
            messages.push((branch.bqual.clone(), Message::Rollback));
        }
        messages
    }

    pub(super) fn become_rollback_only(&mut self, why: String) -> Effects {
        self.state = State::RollbackOnly(why);
        Effects { messages: self.tell_rollback(), ..Effects::none() }
    }

    pub(super) fn become_rolling_back(&mut self, why: String, now_ms: u64) -> Effects {
        let messages = self.tell_rollback();
        self.state = State::RollingBack(why.clone());
        let mut effects = self.end_if_all_ended(Outcome::RolledBack, why.clone(), now_ms);
        if effects.reply.is_none() && effects.log.is_none() {
            effects.reply = Some(Reply::Decided(Outcome::RolledBack, why));
        }
        effects.messages = messages;
        effects
    }

    pub(super) fn become_recording(&mut self, heuristic: Heuristic, now_ms: u64) -> Effects {
        let branches =
            self.branches.iter().filter_map(|branch| Some(format!("{} {:?}", branch.bqual, branch.ended()?)));
        let detail = format!("branches ended differently: {}", branches.collect::<Vec<_>>().join(", "));
        let record = self.end_record(Outcome::Heuristic(heuristic), detail, now_ms);
        self.state = State::Recording(record.clone());
        Effects { log: Some(LogWrite::ForceEnd(record)), ..Effects::none() }
    }

    pub(super) fn become_ended(&mut self, outcome: Outcome, detail: String) -> Effects {
        assert_eq!(self.pending(), 0, "a transaction ends only when every branch has: {self:?}");
        self.state = State::Ended(outcome, detail.clone());
        reply(Reply::Ended(outcome, detail))
    }

    // ---- the end ----

    /// Ends the transaction once its last branch has.
    pub(super) fn end_if_all_ended(&mut self, decided: Outcome, detail: String, now_ms: u64) -> Effects {
        if self.pending() > 0 {
            return Effects::none();
        }
        match self.heuristic(decided) {
            Some(heuristic) => self.become_recording(heuristic, now_ms),
            None => {
                let record = self.end_record(decided, detail.clone(), now_ms);
                let mut effects = self.become_ended(decided, detail);
                effects.log = Some(LogWrite::LazyEnd(record));
                effects
            }
        }
    }

    /// The one branch of a one-phase commit has ended, and its end is the transaction's outcome (P10).
    pub(super) fn end_one_phase(&mut self, now_ms: u64) -> Effects {
        let end = self.branches.iter().filter(|branch| !branch.is_read_only()).find_map(Branch::ended);
        let (outcome, detail) = match end {
            Some(BranchEnd::Committed) => (Outcome::Committed, String::new()),
            Some(BranchEnd::Hazard) => return self.become_recording(Heuristic::Hazard, now_ms),
            Some(BranchEnd::RolledBack | BranchEnd::Lost) => {
                (Outcome::RolledBack, "its only branch could not commit in one phase".to_owned())
            }
            Some(BranchEnd::ReadOnly) => unreachable!("read-only branches are filtered out"),
            None if self.pending() > 0 => return Effects::none(),
            None => (Outcome::NothingToCommit, String::new()),
        };
        self.end_if_all_ended(outcome, detail, now_ms)
    }

    /// How the branches differ from the decision, if any does.
    fn heuristic(&self, decided: Outcome) -> Option<Heuristic> {
        let ended = |end| self.branches.iter().any(|branch| branch.state == BranchState::Ended(end));
        let committed = ended(BranchEnd::Committed);
        let rolled_back = ended(BranchEnd::RolledBack) || ended(BranchEnd::Lost);
        match decided {
            _ if committed && rolled_back => Some(Heuristic::Mixed),
            _ if ended(BranchEnd::Hazard) => Some(Heuristic::Hazard),
            Outcome::Committed if rolled_back => Some(Heuristic::Rollback),
            Outcome::RolledBack if committed => Some(Heuristic::Commit),
            Outcome::Committed
            | Outcome::RolledBack
            | Outcome::NothingToCommit
            | Outcome::Heuristic(_)
            | Outcome::Unknown => None,
        }
    }

    fn end_record(&self, outcome: Outcome, detail: String, now_ms: u64) -> EndRecord {
        let branches =
            self.branches.iter().filter_map(|branch| Some((branch.bqual.clone(), branch.ended()?)));
        EndRecord {
            gtrid: self.gtrid,
            outcome,
            detail: limits::cut(&detail, limits::MAX_DETAIL_BYTES).to_owned(),
            branches: branches.collect(),
            ended_ms: now_ms,
            about: self.about.clone(),
        }
    }
}

pub(super) fn reply(reply: Reply) -> Effects {
    Effects { reply: Some(reply), ..Effects::none() }
}

pub(super) fn refuse(bqual: Bqual, why: EnlistRefusal) -> Effects {
    Effects { messages: vec![(bqual, Message::EnlistRefused(why))], ..Effects::none() }
}
