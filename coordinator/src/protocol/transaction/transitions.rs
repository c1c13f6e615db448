//! The only places where a transaction's state changes, and what each change asks for.

use lockstep_proto::museum::mutated;
use lockstep_proto::{Bqual, limits};

use super::{State, Transaction};
use crate::protocol::branch::{Branch, BranchState};
use crate::protocol::event::{Effects, EnlistRefusal, Message, Reply};
use crate::protocol::outcome::{BranchEnd, Decision, Heuristic, Outcome};
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
        if mutated("AC3-first-vote-decides") || mutated("AC3-silence-is-a-vote") {
            return; // What is behind this assertion has to find it too.
        }
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
        let mut effects = self.tell_decision();
        for branch in self.branches.iter_mut().filter(|branch| branch.ended().is_none()) {
            assert!(
                branch.state == BranchState::Prepared
                    || mutated("AC3-first-vote-decides")
                    || mutated("AC3-silence-is-a-vote"),
                "a commit goes only to branches that voted commit: {branch:?}"
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

    /// Tells the decision to who asked for it, if it may be told.
    pub(super) fn tell_decision(&self) -> Effects {
        self.outcome().map_or_else(
            |_not_yet| Effects::none(),
            |(outcome, why)| reply(Reply::Decided(outcome, why.to_owned())),
        )
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

    pub(super) fn become_rollback_only(&mut self, why: &str) -> Effects {
        self.state = State::RollbackOnly(detail(why));
        Effects { messages: self.tell_rollback(), ..Effects::none() }
    }

    pub(super) fn become_rolling_back(&mut self, why: &str, now_ms: u64) -> Effects {
        let why = detail(why);
        let messages = self.tell_rollback();
        self.state = State::RollingBack(why.clone());
        let mut effects = self.end_if_all_ended(Decision::Rollback, &why, now_ms);
        if self.pending() > 0 {
            effects = self.tell_decision();
        }
        effects.messages = messages;
        effects
    }

    fn become_recording(
        &mut self,
        decision: Decision,
        heuristic: Heuristic,
        why: &str,
        now_ms: u64,
    ) -> Effects {
        let differs = |end: BranchEnd| match (decision, end) {
            (Decision::Commit, BranchEnd::RolledBack | BranchEnd::Lost)
            | (Decision::Rollback, BranchEnd::Committed)
            | (Decision::Commit | Decision::Rollback, BranchEnd::Hazard | BranchEnd::Abandoned) => true,
            (Decision::Commit, BranchEnd::Committed)
            | (Decision::Rollback, BranchEnd::RolledBack | BranchEnd::Lost)
            | (Decision::Commit | Decision::Rollback, BranchEnd::ReadOnly) => false,
        };
        let ended = self.branches.iter().filter_map(|branch| Some((&branch.bqual, branch.ended()?)));
        let others =
            ended.filter(|(_, end)| differs(*end)).map(|(bqual, end)| format!("{bqual} {}", end.name()));
        let others = others.collect::<Vec<_>>().join(", ");
        let because = if why.is_empty() { String::new() } else { format!(" ({why})") };
        let decision = match decision {
            Decision::Commit => "commit",
            Decision::Rollback => "rollback",
        };
        let why =
            format!("the decision was {decision}{because}, but these branches ended otherwise: {others}");
        let record = self.end_record(Outcome::Heuristic(heuristic), &why, now_ms);
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
    pub(super) fn end_if_all_ended(&mut self, decision: Decision, why: &str, now_ms: u64) -> Effects {
        if self.pending() > 0 {
            return Effects::none();
        }
        let heuristic =
            Heuristic::of(decision, &self.ends()).filter(|_| !mutated("heuristic-is-taken-for-done"));
        match (heuristic, decision) {
            (Some(heuristic), _) => self.become_recording(decision, heuristic, why, now_ms),
            (None, Decision::Commit) => self.end_on_record(Outcome::Committed, "", now_ms),
            (None, Decision::Rollback) => self.end_on_record(Outcome::RolledBack, why, now_ms),
        }
    }

    /// In one phase the one branch's end is the transaction's outcome (P10), so that only a hazard, or a branch that was given up, can be heuristic.
    pub(super) fn end_one_phase(&mut self, now_ms: u64) -> Effects {
        let mut wrote = self.branches.iter().filter(|branch| !branch.is_read_only());
        match wrote.next().map(Branch::ended) {
            Some(None) => Effects::none(),
            Some(Some(BranchEnd::Committed | BranchEnd::ReadOnly | BranchEnd::Hazard)) => {
                self.end_if_all_ended(Decision::Commit, "", now_ms)
            }
            Some(Some(BranchEnd::Abandoned)) => {
                let why = "in one phase: whether its only branch did is unknown";
                self.end_if_all_ended(Decision::Commit, why, now_ms)
            }
            Some(Some(BranchEnd::RolledBack | BranchEnd::Lost)) => {
                let why = "its only branch could not commit in one phase";
                self.end_if_all_ended(Decision::Rollback, why, now_ms)
            }
            None => self.end_on_record(Outcome::NothingToCommit, "", now_ms),
        }
    }

    fn end_on_record(&mut self, outcome: Outcome, why: &str, now_ms: u64) -> Effects {
        let record = self.end_record(outcome, why, now_ms);
        let mut effects = self.become_ended(outcome, why.to_owned());
        effects.log = Some(LogWrite::LazyEnd(record));
        effects
    }

    fn end_record(&self, outcome: Outcome, why: &str, now_ms: u64) -> EndRecord {
        let branches =
            self.branches.iter().filter_map(|branch| Some((branch.bqual.clone(), branch.ended()?)));
        EndRecord {
            gtrid: self.gtrid,
            outcome,
            detail: detail(why),
            branches: branches.collect(),
            ended_ms: now_ms,
            about: self.about.clone(),
        }
    }
}

/// A reason as it is kept and told: of bounded length, however many branches it names.
fn detail(why: &str) -> String {
    limits::cut(why, limits::MAX_DETAIL_BYTES).to_owned()
}

pub(super) fn reply(reply: Reply) -> Effects {
    Effects { reply: Some(reply), ..Effects::none() }
}

pub(super) fn refuse(bqual: Bqual, why: EnlistRefusal) -> Effects {
    Effects { messages: vec![(bqual, Message::EnlistRefused(why))], ..Effects::none() }
}
