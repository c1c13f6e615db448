//! The transition table: one function per state, one arm per event.

use lockstep_proto::museum::mutated;
use lockstep_proto::{Bqual, limits};

use super::transitions::{refuse, reply};
use super::{State, Stepped, Transaction};
use crate::protocol::branch::{Branch, BranchState};
use crate::protocol::event::{Effects, EnlistRefusal, Event, Message, Reply};
use crate::protocol::outcome::{BranchEnd, Decision, Outcome};
use crate::protocol::record::{DecisionKind, LogWrite};

impl Transaction {
    pub(super) fn step_active(&mut self, event: Event, now_ms: u64) -> Stepped {
        match event {
            Event::Enlist(bqual) => Ok(self.enlist(bqual)),
            Event::CommitRequested => Ok(self.request_commit(now_ms)),
            Event::RollbackRequested(why) => Ok(self.become_rolling_back(&why, now_ms)),
            Event::DeadlinePassed => {
                Ok(self.become_rolling_back("its deadline passed before commit was requested", now_ms))
            }
            Event::Voted(bqual, vote) => {
                let refused = self.record_vote(&bqual, vote)?;
                Ok(refused.map_or_else(Effects::none, |why| self.become_rollback_only(&why)))
            }
            Event::BranchLost(bqual) => {
                let lost = self.lose(&bqual)?;
                Ok(lost.map_or_else(Effects::none, |why| self.become_rollback_only(&why)))
            }
            Event::Acknowledged(..) | Event::Abandoned(_) => self.reject(event, "no decision was sent"),
            Event::LogForced
            | Event::LogRefused(_)
            | Event::LogUnknown(_)
            | Event::LogFound
            | Event::LogAbsent
            | Event::RecordAgain => self.reject(event, "nothing was given to the log"),
        }
    }

    pub(super) fn step_rollback_only(&mut self, event: Event, now_ms: u64) -> Stepped {
        let State::RollbackOnly(why) = &self.state else { unreachable!("called in this state only") };
        let why = why.clone();
        match event {
            Event::Enlist(bqual) => Ok(refuse(bqual, EnlistRefusal::RollbackOnly)),
            // The application has now asked, or will not ask in time: what is left is only to hear from the branches.
            Event::CommitRequested | Event::RollbackRequested(_) | Event::DeadlinePassed => {
                Ok(self.become_rolling_back(&why, now_ms))
            }
            Event::Voted(bqual, vote) => {
                self.vote_after_rollback(&bqual, &vote)?;
                Ok(Effects::none())
            }
            Event::BranchLost(bqual) => {
                let _told_already = self.lose(&bqual)?;
                Ok(Effects::none())
            }
            Event::Acknowledged(bqual, applied) => {
                self.acknowledge(&bqual, applied)?;
                Ok(Effects::none())
            }
            Event::Abandoned(bqual) => {
                self.abandon(&bqual)?;
                Ok(Effects::none())
            }
            Event::LogForced
            | Event::LogRefused(_)
            | Event::LogUnknown(_)
            | Event::LogFound
            | Event::LogAbsent
            | Event::RecordAgain => self.reject(event, "nothing was given to the log"),
        }
    }

    pub(super) fn step_preparing(&mut self, event: Event, now_ms: u64) -> Stepped {
        match event {
            Event::Enlist(bqual) => Ok(refuse(bqual, EnlistRefusal::CommitRequested)),
            Event::CommitRequested => Ok(Effects::none()),
            Event::RollbackRequested(why) => Ok(self.become_rolling_back(&why, now_ms)),
            Event::DeadlinePassed if mutated("AC3-silence-is-a-vote") => {
                Ok(self.become_deciding(DecisionKind::Commit, now_ms))
            }
            Event::DeadlinePassed => {
                let missing = self.branches.iter().filter(|branch| branch.awaits_vote());
                let names: Vec<_> = missing.map(|branch| branch.bqual.as_str()).collect();
                let why = format!("its deadline passed before these branches voted: {}", names.join(", "));
                Ok(self.become_rolling_back(&why, now_ms))
            }
            Event::Voted(bqual, vote) => match self.record_vote(&bqual, vote)? {
                Some(why) => Ok(self.become_rolling_back(&why, now_ms)),
                None if self.branches.iter().any(Branch::awaits_vote)
                    && !mutated("AC3-first-vote-decides") =>
                {
                    Ok(Effects::none())
                }
                None => Ok(self.decide_by_votes(now_ms)),
            },
            Event::BranchLost(bqual) => {
                let lost = self.lose(&bqual)?;
                Ok(lost.map_or_else(Effects::none, |why| self.become_rolling_back(&why, now_ms)))
            }
            Event::Acknowledged(..) | Event::Abandoned(_) => self.reject(event, "no decision was sent"),
            Event::LogForced
            | Event::LogRefused(_)
            | Event::LogUnknown(_)
            | Event::LogFound
            | Event::LogAbsent
            | Event::RecordAgain => self.reject(event, "nothing was given to the log"),
        }
    }

    pub(super) fn step_deciding(&mut self, event: Event, kind: DecisionKind, now_ms: u64) -> Stepped {
        match event {
            Event::LogForced => Ok(self.decision_is_durable(kind, now_ms)),
            Event::LogRefused(why) => {
                Ok(self.become_rolling_back(&format!("the decision log refused the decision: {why}"), now_ms))
            }
            Event::LogUnknown(_) if mutated("P2-unknown-is-written") => {
                Ok(self.decision_is_durable(kind, now_ms))
            }
            Event::LogUnknown(_) if mutated("P2-unknown-is-absent") => {
                Ok(self.become_rolling_back("the decision log did not answer", now_ms))
            }
            Event::LogUnknown(_) => Ok(self.become_decision_unknown(kind)),
            Event::LogFound | Event::LogAbsent => self.reject(event, "the log's answer is not unknown"),
            Event::Enlist(_)
            | Event::CommitRequested
            | Event::RollbackRequested(_)
            | Event::DeadlinePassed
            | Event::Voted(..)
            | Event::BranchLost(_)
            | Event::Acknowledged(..)
            | Event::Abandoned(_)
            | Event::RecordAgain => self.while_the_log_writes(event),
        }
    }

    pub(super) fn step_decision_unknown(&mut self, event: Event, kind: DecisionKind, now_ms: u64) -> Stepped {
        match event {
            Event::LogAbsent if mutated("P2-absent-is-found") => Ok(self.decision_is_durable(kind, now_ms)),
            Event::LogFound if !mutated("P2-found-is-absent") => Ok(self.decision_is_durable(kind, now_ms)),
            Event::LogFound | Event::LogAbsent => {
                Ok(self.become_rolling_back("the decision did not reach the decision log", now_ms))
            }
            Event::LogForced | Event::LogRefused(_) | Event::LogUnknown(_) => {
                self.reject(event, "only reading the log behind the fence ends this")
            }
            Event::Enlist(_)
            | Event::CommitRequested
            | Event::RollbackRequested(_)
            | Event::DeadlinePassed
            | Event::Voted(..)
            | Event::BranchLost(_)
            | Event::Acknowledged(..)
            | Event::Abandoned(_)
            | Event::RecordAgain => self.while_the_log_writes(event),
        }
    }

    /// What everyone but the log may do between a decision's way to the log and the log's answer: nothing ends the
    /// transaction meanwhile. A vote that crosses a one-phase intent is kept for later.
    fn while_the_log_writes(&mut self, event: Event) -> Stepped {
        match event {
            Event::Enlist(bqual) => Ok(refuse(bqual, EnlistRefusal::CommitRequested)),
            Event::RollbackRequested(_) if mutated("AC2-rollback-overtakes-the-log") => {
                Ok(self.become_rolling_back("it was asked for", 0))
            }
            // Too late to change anything: whoever asked waits for the outcome.
            Event::CommitRequested | Event::RollbackRequested(_) | Event::DeadlinePassed => {
                Ok(Effects::none())
            }
            Event::BranchLost(bqual) => {
                self.doubt(&bqual)?;
                Ok(Effects::none())
            }
            Event::Voted(bqual, vote) => {
                // In one phase the branch has not voted yet; whatever it says decides nothing before the log has answered.
                let _why = self.record_vote(&bqual, vote)?;
                Ok(Effects::none())
            }
            Event::Acknowledged(..) | Event::Abandoned(_) => self.reject(event, "no decision was sent"),
            Event::RecordAgain => self.reject(event, "no end was given to the log"),
            Event::LogForced
            | Event::LogRefused(_)
            | Event::LogUnknown(_)
            | Event::LogFound
            | Event::LogAbsent => self.reject(event, "the log's answers are handled by the state itself"),
        }
    }

    pub(super) fn step_committing(&mut self, event: Event, now_ms: u64) -> Stepped {
        match event {
            Event::Acknowledged(bqual, applied) => {
                self.acknowledge(&bqual, applied)?;
                Ok(self.end_if_all_ended(Decision::Commit, "", now_ms))
            }
            Event::Abandoned(bqual) => {
                self.abandon(&bqual)?;
                Ok(self.end_if_all_ended(Decision::Commit, "", now_ms))
            }
            Event::Voted(bqual, vote) => {
                self.vote_after_commit(&bqual, &vote)?;
                Ok(Effects::none())
            }
            Event::RollbackRequested(why) if mutated("AC2-rollback-after-commit") => {
                Ok(self.become_rolling_back(&why, now_ms))
            }
            // A rollback comes too late: whoever asks for it is told the outcome.
            Event::CommitRequested | Event::RollbackRequested(_) => Ok(self.tell_decision()),
            Event::Enlist(bqual) => Ok(refuse(bqual, EnlistRefusal::CommitRequested)),
            Event::DeadlinePassed => Ok(Effects::none()),
            Event::BranchLost(bqual) => self.too_late_for(&bqual),
            Event::LogForced
            | Event::LogRefused(_)
            | Event::LogUnknown(_)
            | Event::LogFound
            | Event::LogAbsent
            | Event::RecordAgain => self.reject(event, "the decision is durable already"),
        }
    }

    pub(super) fn step_committing_one_phase(&mut self, event: Event, now_ms: u64) -> Stepped {
        match event {
            Event::Acknowledged(bqual, applied) => {
                self.acknowledge(&bqual, applied)?;
                Ok(self.end_one_phase(now_ms))
            }
            Event::Abandoned(bqual) => {
                self.abandon(&bqual)?;
                Ok(self.end_one_phase(now_ms))
            }
            Event::Voted(bqual, vote) => {
                self.vote_after_one_phase(&bqual, &vote)?;
                Ok(self.end_one_phase(now_ms))
            }
            Event::Enlist(bqual) => Ok(refuse(bqual, EnlistRefusal::CommitRequested)),
            Event::RollbackRequested(why) if mutated("P10-rollback-ends-an-intent") => {
                Ok(self.become_rolling_back(&why, now_ms))
            }
            Event::BranchLost(bqual) if mutated("P10-session-ends-an-intent") => {
                self.branch_mut(&bqual).state = BranchState::Ended(BranchEnd::Lost);
                Ok(self.end_one_phase(now_ms))
            }
            // Only evidence ends it: whoever asked waits (P10).
            Event::CommitRequested | Event::RollbackRequested(_) | Event::DeadlinePassed => {
                Ok(Effects::none())
            }
            Event::BranchLost(bqual) => self.too_late_for(&bqual),
            Event::LogForced
            | Event::LogRefused(_)
            | Event::LogUnknown(_)
            | Event::LogFound
            | Event::LogAbsent
            | Event::RecordAgain => self.reject(event, "the intent is durable already"),
        }
    }

    pub(super) fn step_rolling_back(&mut self, event: Event, now_ms: u64) -> Stepped {
        let State::RollingBack(why) = &self.state else { unreachable!("called in this state only") };
        let why = why.clone();
        match event {
            Event::Acknowledged(bqual, applied) => {
                self.acknowledge(&bqual, applied)?;
                Ok(self.end_if_all_ended(Decision::Rollback, &why, now_ms))
            }
            Event::Abandoned(bqual) => {
                self.abandon(&bqual)?;
                Ok(self.end_if_all_ended(Decision::Rollback, &why, now_ms))
            }
            Event::BranchLost(bqual) => {
                let _told_already = self.lose(&bqual)?;
                Ok(self.end_if_all_ended(Decision::Rollback, &why, now_ms))
            }
            Event::Voted(bqual, vote) => {
                self.vote_after_rollback(&bqual, &vote)?;
                Ok(self.end_if_all_ended(Decision::Rollback, &why, now_ms))
            }
            Event::CommitRequested | Event::RollbackRequested(_) => Ok(self.tell_decision()),
            Event::Enlist(bqual) => Ok(refuse(bqual, EnlistRefusal::RollbackOnly)),
            Event::DeadlinePassed => Ok(Effects::none()),
            Event::LogForced
            | Event::LogRefused(_)
            | Event::LogUnknown(_)
            | Event::LogFound
            | Event::LogAbsent
            | Event::RecordAgain => self.reject(event, "nothing was given to the log"),
        }
    }

    pub(super) fn step_recording(&mut self, event: Event) -> Stepped {
        let State::Recording(record) = &self.state else { unreachable!("called in this state only") };
        match event {
            Event::LogForced | Event::LogFound => {
                let (outcome, detail) = (record.outcome, record.detail.clone());
                Ok(self.become_ended(outcome, detail))
            }
            // Everything waits for the record: nobody forgets a heuristic outcome that is not written down.
            Event::LogRefused(_) | Event::LogUnknown(_) | Event::LogAbsent => Ok(Effects::none()),
            Event::RecordAgain => {
                Ok(Effects { log: Some(LogWrite::ForceEnd(record.clone())), ..Effects::none() })
            }
            Event::Enlist(bqual) => Ok(refuse(bqual, EnlistRefusal::Ended)),
            Event::CommitRequested | Event::RollbackRequested(_) | Event::DeadlinePassed => {
                Ok(Effects::none())
            }
            Event::BranchLost(bqual) | Event::Voted(bqual, _) => self.too_late_for(&bqual),
            Event::Acknowledged(bqual, applied) => {
                self.acknowledge_again(&bqual, applied)?;
                Ok(Effects::none())
            }
            Event::Abandoned(_) => self.reject(event, "every branch has ended"),
        }
    }

    pub(super) fn step_ended(&mut self, event: Event) -> Stepped {
        let State::Ended(outcome, detail) = &self.state else { unreachable!("called in this state only") };
        match event {
            Event::Enlist(bqual) => Ok(refuse(bqual, EnlistRefusal::Ended)),
            Event::CommitRequested | Event::RollbackRequested(_) => {
                Ok(reply(Reply::Ended(*outcome, detail.clone())))
            }
            Event::DeadlinePassed => Ok(Effects::none()),
            Event::BranchLost(bqual) | Event::Voted(bqual, _) => self.too_late_for(&bqual),
            Event::Acknowledged(bqual, applied) => {
                self.acknowledge_again(&bqual, applied)?;
                Ok(Effects::none())
            }
            Event::Abandoned(_) => self.reject(event, "every branch has ended"),
            Event::LogForced
            | Event::LogRefused(_)
            | Event::LogUnknown(_)
            | Event::LogFound
            | Event::LogAbsent
            | Event::RecordAgain => self.reject(event, "nothing is on its way to the log"),
        }
    }

    // ---- what the states share ----

    /// Nothing that happens to this branch in this way changes anything any more.
    fn too_late_for(&self, bqual: &Bqual) -> Stepped {
        self.known(bqual)?;
        Ok(Effects::none())
    }

    fn enlist(&mut self, bqual: Bqual) -> Effects {
        if self.branch(&bqual).is_some() {
            return refuse(bqual, EnlistRefusal::DuplicateBranch);
        }
        if self.branches.len() >= limits::MAX_BRANCHES {
            return refuse(bqual, EnlistRefusal::TooManyBranches);
        }
        self.branches.push(Branch::enlisted(bqual.clone()));
        Effects { messages: vec![(bqual, Message::Enlisted)], ..Effects::none() }
    }

    /// Commit was requested: who has not voted yet is asked, unless nobody or only one branch is left.
    fn request_commit(&mut self, now_ms: u64) -> Effects {
        let mut open = self.branches.iter().filter(|branch| branch.awaits_vote());
        let (first, second) = (open.next(), open.next());
        let others_left = self.branches.iter().all(|branch| branch.awaits_vote() || branch.is_read_only());
        match (first, second) {
            (None, _) => self.decide_by_votes(now_ms),
            (Some(_), None) if others_left && mutated("P10-no-intent") => {
                self.become_committing_one_phase(now_ms)
            }
            (Some(_), None) if others_left => self.become_deciding(DecisionKind::OnePhaseIntent, now_ms),
            (Some(_), _) => self.become_preparing(),
        }
    }

    /// Every branch has voted, none of them rollback.
    fn decide_by_votes(&mut self, now_ms: u64) -> Effects {
        if self.branches.iter().all(Branch::is_read_only) {
            if mutated("P11-nothing-is-a-commit") {
                return self.become_ended(Outcome::Committed, String::new());
            }
            return self.become_ended(Outcome::NothingToCommit, String::new());
        }
        self.become_deciding(DecisionKind::Commit, now_ms)
    }

    fn decision_is_durable(&mut self, kind: DecisionKind, now_ms: u64) -> Effects {
        match kind {
            DecisionKind::Commit => self.become_committing(),
            DecisionKind::OnePhaseIntent => self.become_committing_one_phase(now_ms),
        }
    }
}
