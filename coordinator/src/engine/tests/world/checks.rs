//! What the shard asks for, and what has to hold of it.

use std::collections::BTreeSet;

use lockstep_proto::{Gtrid, Xid};

use super::{Asked, Flight, Local, World, Writing, gtrid_of, nobodys};
use crate::engine::delivery::SessionId;
use crate::engine::input::{Answer, Input, Now, Output, ToParticipant};
use crate::protocol::event::Applied;
use crate::protocol::outcome::Outcome;
use crate::protocol::presumption::{
    Judgement, Known, PreparedFate, conclude, judge, late_end, prepared_fate,
};
use crate::protocol::record::{DecisionKind, DecisionRecord, EndRecord, LogWrite};
use crate::protocol::transaction::PreparedAnswer;

impl World {
    pub(super) fn step(&mut self, input: Input<u64>) {
        self.step_with(input, &[]);
    }

    /// `xids`: what was asked about, for an answer that comes at once.
    pub(super) fn step_with(&mut self, input: Input<u64>, xids: &[Xid]) {
        let unix_ms = 1_000 + u64::try_from(self.now.as_millis()).unwrap();
        let mut last = 0;
        for output in self.shard.step(input, Now { monotonic: self.now, unix_ms }) {
            let rank = match output {
                Output::Log(_) => 0,
                Output::Send(..) | Output::StrayVote(..) | Output::StrayAcknowledgement(..) => 1,
                Output::Reply(..) => 2,
            };
            assert!(rank >= last, "outputs come in their order: durable, sent, answered");
            last = rank;
            self.take(output, xids);
        }
        self.shard.assert_whole();
        self.agreement();
    }

    pub(super) fn take(&mut self, output: Output<u64>, xids: &[Xid]) {
        match output {
            Output::Log(write @ LogWrite::LazyEnd(_)) => {
                let LogWrite::LazyEnd(end) = write else { unreachable!() };
                self.lazy.push(end);
            }
            Output::Log(write) => self.submit(write),
            Output::Send(session, message) => self.sent(session, message),
            Output::StrayVote(session, xid) => self.send_fate(session, &xid),
            Output::StrayAcknowledgement(xid, applied) => self.compare(&xid, applied),
            Output::Reply(client, answer) => self.answered(client, answer, xids),
        }
    }

    pub(super) fn submit(&mut self, write: LogWrite) {
        let gtrid = gtrid_of(&write);
        assert!(
            self.writing.iter().all(|writing| gtrid_of(&writing.write) != gtrid),
            "a transaction has one write under way: {write:?}"
        );
        match &write {
            LogWrite::ForceDecision(decision) if decision.kind == DecisionKind::Commit => {
                self.commit_needs_all_votes(decision);
                self.note("force commit");
            }
            LogWrite::ForceDecision(_) => self.note("force intent"),
            LogWrite::ForceEnd(_) | LogWrite::LazyEnd(_) => self.note("force heuristic end"),
        }
        self.writing.push(Writing { write, unknown: None });
    }

    pub(super) fn commit_needs_all_votes(&self, decision: &DecisionRecord) {
        for bqual in &self.enlisted[&decision.gtrid] {
            let xid = Xid { gtrid: decision.gtrid, bqual: bqual.clone() };
            let voted = match self.branches.get(&xid) {
                Some(Local::Prepared) => decision.branches.contains(bqual),
                Some(Local::ReadOnly) => !decision.branches.contains(bqual),
                Some(Local::Open(_) | Local::Committed | Local::RolledBack) | None => false,
            };
            assert!(
                voted || self.by_hand.contains(&xid),
                "commit_needs_all_votes: {xid} did not vote commit"
            );
        }
    }

    pub(super) fn sent(&mut self, session: SessionId, message: ToParticipant) {
        self.note(match &message {
            ToParticipant::Enlisted(..) => "send enlisted",
            ToParticipant::EnlistRefused(..) => "send enlist refused",
            ToParticipant::Prepare(..) => "send prepare",
            ToParticipant::Commit(_) => "send commit",
            ToParticipant::Rollback(_) => "send rollback",
            ToParticipant::CommitOnePhase(..) => "send commit one phase",
            ToParticipant::Refused(..) => "send refused",
        });
        match &message {
            ToParticipant::Enlisted(xid, _) => {
                self.enlisted.entry(xid.gtrid).or_default().insert(xid.bqual.clone());
            }
            ToParticipant::Commit(xid) => {
                let decided = self.decided(xid.gtrid, DecisionKind::Commit);
                let named = decided.is_some_and(|decision| decision.branches.contains(&xid.bqual));
                assert!(named, "durable_before_sent: {xid} is told to commit");
            }
            ToParticipant::CommitOnePhase(xid, _) => {
                let decided = self.decided(xid.gtrid, DecisionKind::OnePhaseIntent);
                let named = decided.is_some_and(|decision| decision.branches.contains(&xid.bqual));
                assert!(named, "durable_before_sent: {xid} is told to commit in one phase");
            }
            ToParticipant::Rollback(xid) => {
                let kinds = [DecisionKind::Commit, DecisionKind::OnePhaseIntent];
                let decided = kinds.into_iter().any(|kind| self.may_be_decided(xid.gtrid, kind));
                assert!(!decided, "stability: {xid} is told to roll back, and may be decided to commit");
            }
            ToParticipant::EnlistRefused(..) | ToParticipant::Prepare(..) | ToParticipant::Refused(..) => {}
        }
        if self.sessions.contains_key(&session) {
            self.flights.push(Flight::ToParticipant(session, message));
        }
    }

    /// What the log says to a prepared branch whose transaction is not live.
    pub(super) fn send_fate(&mut self, session: SessionId, xid: &Xid) {
        let message = match prepared_fate(&self.look_up(xid.gtrid), false, &xid.bqual) {
            PreparedFate::Commit => ToParticipant::Commit(xid.clone()),
            PreparedFate::Rollback => ToParticipant::Rollback(xid.clone()),
            PreparedFate::StillRunning | PreparedFate::Unknown(_) => return,
        };
        self.flights.push(Flight::ToParticipant(session, message));
    }

    pub(super) fn compare(&mut self, xid: &Xid, applied: Applied) {
        if xid.bqual == nobodys(xid) {
            // A lie of `confuse`: nothing is known to be true about it.
            return;
        }
        match judge(&self.look_up(xid.gtrid), false, &xid.bqual, applied) {
            Judgement::Agrees | Judgement::Open => {}
            Judgement::Differs => {
                assert!(
                    self.by_hand.contains(xid),
                    "agreement: {xid} is {applied}, against the record, and nobody did it by hand"
                );
                self.record_heuristic(xid, applied);
            }
        }
    }

    pub(super) fn record_heuristic(&mut self, xid: &Xid, applied: Applied) {
        self.note("late heuristic");
        let end = late_end(&self.look_up(xid.gtrid), xid, applied, 1);
        self.ends.insert(xid.gtrid, end);
    }

    pub(super) fn answered(&mut self, client: u64, answer: Answer, xids: &[Xid]) {
        let asked = self.asked.remove(&client);
        let asked = asked.unwrap_or_else(|| panic!("{client} is answered once: {answer:?}"));
        match (asked, answer) {
            (Asked::Begin, Answer::Begun(gtrid)) => {
                self.enlisted.insert(gtrid, BTreeSet::new());
                self.begun.push(gtrid);
            }
            (Asked::Begin, Answer::Full) => {}
            (Asked::Outcome(gtrid), Answer::Outcome(told)) => self.told(gtrid, told.outcome),
            (Asked::Outcome(gtrid), Answer::NotLive) => {
                let outcome = match conclude(&self.look_up(gtrid), false) {
                    Known::Ended(outcome, _) => Some(outcome),
                    Known::Committing => Some(Outcome::Committed),
                    Known::PresumedRolledBack => Some(Outcome::RolledBack),
                    Known::OnePhase => None,
                    Known::Elsewhere => panic!("there is no other coordinator"),
                    Known::Unknown(why) => panic!("this log knows everything: {why}"),
                };
                self.told(gtrid, outcome);
            }
            (Asked::Prepared(session), Answer::Prepared(answers)) => {
                for (xid, answer) in xids.iter().zip(answers) {
                    self.prepared_told(session, xid, answer);
                }
            }
            (Asked::Summary, Answer::Summary(summary)) => assert_eq!(summary.live, 0, "everything has ended"),
            (asked, answer) => panic!("{asked:?} is not answered with {answer:?}"),
        }
    }

    pub(super) fn prepared_told(&mut self, session: SessionId, xid: &Xid, answer: Option<PreparedAnswer>) {
        let message = match answer {
            None => return self.send_fate(session, xid),
            Some(PreparedAnswer::StillRunning) => return,
            Some(PreparedAnswer::Commit) => {
                let named = self.decisions.get(&xid.gtrid);
                let named = named.is_some_and(|decision| decision.branches.contains(&xid.bqual));
                assert!(named, "durable_before_sent: {xid}, prepared, is told to commit");
                ToParticipant::Commit(xid.clone())
            }
            Some(PreparedAnswer::Rollback) => {
                let named = self.look_up(xid.gtrid).recorded.names(&xid.bqual);
                assert!(!named, "stability: {xid}, prepared and named by the decision, is told to roll back");
                ToParticipant::Rollback(xid.clone())
            }
        };
        self.flights.push(Flight::ToParticipant(session, message));
    }

    /// `reply_matches_log`, or for one phase the evidence.
    pub(super) fn told(&mut self, gtrid: Gtrid, outcome: Option<Outcome>) {
        let one_phase = self.decided(gtrid, DecisionKind::OnePhaseIntent).cloned();
        let evidence = one_phase.as_ref().and_then(|intent| {
            let xid = Xid { gtrid, bqual: intent.branches[0].clone() };
            self.branches.get(&xid).copied()
        });
        let heuristic =
            |end: Option<&EndRecord>| end.is_some_and(|end| matches!(end.outcome, Outcome::Heuristic(_)));
        let (word, holds) = match outcome {
            None => return,
            Some(Outcome::Committed) => {
                let proved = evidence == Some(Local::Committed);
                ("committed", self.decided(gtrid, DecisionKind::Commit).is_some() || proved)
            }
            Some(Outcome::RolledBack) => {
                let decided = self.may_be_decided(gtrid, DecisionKind::Commit);
                ("rolled back", !decided && evidence != Some(Local::Committed))
            }
            Some(Outcome::NothingToCommit) => {
                ("nothing to commit", !self.may_be_decided(gtrid, DecisionKind::Commit))
            }
            Some(Outcome::Heuristic(_)) => ("heuristic", heuristic(self.ends.get(&gtrid))),
            Some(Outcome::Unknown) => ("unknown", false),
        };
        assert!(holds || self.touched_by_hand(gtrid), "reply_matches_log: {gtrid} is told to be {word}");
        self.note(word);
        let told = self.told.entry(gtrid).or_default();
        told.insert(word);
        let both = told.contains("committed") && told.contains("rolled back");
        assert!(!both, "stability: {gtrid} was told to be committed and rolled back");
    }

    pub(super) fn touched_by_hand(&self, gtrid: Gtrid) -> bool {
        self.by_hand.iter().any(|xid| xid.gtrid == gtrid)
    }

    /// No branch has committed without a decision that names it, and none that a commit names has rolled back, but by hand.
    pub(super) fn agreement(&self) {
        for (xid, local) in &self.branches {
            let decision = self.decisions.get(&xid.gtrid);
            let named = decision.is_some_and(|decision| decision.branches.contains(&xid.bqual));
            let commit = decision.is_some_and(|decision| decision.kind == DecisionKind::Commit);
            let agrees = match local {
                Local::Committed => named,
                Local::RolledBack => !(named && commit),
                Local::Open(_) | Local::Prepared | Local::ReadOnly => true,
            };
            assert!(agrees || self.by_hand.contains(xid), "agreement: {xid} is {local:?}, {decision:?}");
        }
    }
}
