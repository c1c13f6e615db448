//! The invariants of docs/verification.md, one file each: what it says, where it comes from, and where it is looked at.
//!
//! They compare what was really done ([`super::history`]) with what the log shows and what anyone was told. Nothing that the code under
//! test believes of itself counts here. This module says at which moment which of them is looked at.

mod agreement;
mod commit_needs_all_votes;
mod commit_when_no_failure;
mod durable_before_sent;
mod heuristics_recorded;
mod no_orphan_left;
mod nothing_foreign_touched;
mod one_owner;
mod reply_matches_log;
mod stability;
mod termination_after_healing;

use lockstep::branch::Vote;
use lockstep::session::message::ToCoordinator;
use lockstep_coordinator::engine::input::ToParticipant;
use lockstep_coordinator::engine::inquiry::BranchAnswer;
use lockstep_coordinator::protocol::outcome::Outcome;
use lockstep_coordinator::protocol::record::{DecisionRecord, EndRecord, LogWrite};
use lockstep_proto::{Gtrid, Xid};

use super::history::{branch_number, number_of};
use super::trace::say;
use super::world::World;

/// All of them, by their names.
pub const INVARIANTS: [&str; 11] = [
    "agreement",
    "stability",
    "commit_needs_all_votes",
    "commit_when_no_failure",
    "termination_after_healing",
    "durable_before_sent",
    "no_orphan_left",
    "reply_matches_log",
    "one_owner",
    "nothing_foreign_touched",
    "heuristics_recorded",
];

impl World {
    /// A shard hands a write over.
    pub(super) fn before_writing(&mut self, write: &LogWrite) {
        match write {
            LogWrite::ForceDecision(decision) => {
                say!(self, Some(number_of(&decision.gtrid)), "coordinator decides: {decision:?}");
                self.commit_needs_all_votes(decision);
                self.history.of(&decision.gtrid).deciding = Some(decision.kind);
            }
            LogWrite::ForceEnd(end) | LogWrite::LazyEnd(end) => {
                say!(
                    self,
                    Some(number_of(&end.gtrid)),
                    "coordinator ends it: {:?} {:?}",
                    end.outcome,
                    end.branches
                );
            }
        }
    }

    /// A decision becomes visible in the log.
    pub(super) fn before_decision_is_visible(&mut self, decision: &DecisionRecord) {
        say!(self, Some(number_of(&decision.gtrid)), "log shows the decision {:?}", decision.kind);
        self.one_owner(decision);
        self.stability_of_decision(decision);
    }

    /// A heuristic outcome becomes visible in the log.
    pub(super) fn before_heuristic_is_recorded(&mut self, end: &EndRecord) {
        self.agreement_of_heuristic(end);
    }

    /// A shard's message leaves.
    pub(super) fn before_sending(&mut self, message: &ToParticipant) {
        match message {
            ToParticipant::Enlisted(xid, _) => {
                let branch = branch_number(&xid.bqual);
                let enlisted = &mut self.history.of(&xid.gtrid).enlisted;
                if !enlisted.contains(&branch) {
                    enlisted.push(branch);
                }
            }
            ToParticipant::Commit(xid) => self.durable_before_sent(xid, false),
            ToParticipant::CommitOnePhase(xid, _) => self.durable_before_sent(xid, true),
            ToParticipant::Rollback(xid) => self.stability_of_rollback(xid),
            ToParticipant::EnlistRefused(..) | ToParticipant::Prepare(..) | ToParticipant::Refused(..) => {}
        }
    }

    /// A prepared branch is told its outcome, by its shard (`live`) or from the log.
    pub(super) fn before_answering_prepared(&mut self, xid: &Xid, answer: BranchAnswer, live: bool) {
        match (answer, live) {
            (BranchAnswer::Commit, _) => {
                let one_phase = self.is_one_phase(xid);
                self.durable_before_sent(xid, one_phase);
            }
            (BranchAnswer::Rollback, _) => {
                self.reached.note(if live { "prepared, told to roll back" } else { "presumed rolled back" });
                self.stability_of_rollback(xid);
            }
            (BranchAnswer::StillRunning, _) => self.reached.note("prepared, still running"),
            (BranchAnswer::Unknown(_), _) => self.reached.note("prepared, outcome unknown"),
        }
    }

    /// A client is told an outcome.
    pub(super) fn before_telling_client(&mut self, gtrid: Gtrid, outcome: Option<Outcome>) {
        say!(self, Some(number_of(&gtrid)), "coordinator answers {outcome:?}");
        self.reply_matches_log(gtrid, outcome);
    }

    /// A participant speaks.
    pub(super) fn before_participant_says(&mut self, message: &ToCoordinator) {
        match message {
            ToCoordinator::Vote(xid, Vote::Commit) => self.vote_is_true(xid),
            ToCoordinator::Acknowledge(xid, applied) => self.acknowledgement_is_true(xid, applied),
            ToCoordinator::Vote(_, Vote::Rollback(_) | Vote::ReadOnly | Vote::Hazard(_))
            | ToCoordinator::Hello(_)
            | ToCoordinator::Enlist(_)
            | ToCoordinator::Report { .. }
            | ToCoordinator::Reconcile(_)
            | ToCoordinator::Inspection(..) => {}
        }
    }

    /// A store has done something with a branch.
    pub(super) fn branch_holds(&mut self, branch: u32) {
        self.agreement(branch);
    }

    /// Faults have stopped, and all has come to rest.
    pub(super) fn all_has_ended(&mut self) {
        self.nothing_foreign_touched();
        self.heuristics_recorded();
        self.agreement_at_the_end();
        self.commit_when_no_failure();
        self.every_decision_has_ended();
    }
}
