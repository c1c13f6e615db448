//! Measures one shard's transactions from outside: what goes in, and what comes out.
//!
//! It sees each input before the shard does, and each output before it is carried out. What it keeps of a transaction goes with the end
//! record, which every transaction leaves exactly when it ends; a record that the log refused is asked for again, and counts once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use lockstep_proto::{Bqual, Gtrid, Xid};

use super::metrics::{Attempt, Metrics, Operation, Phase};
use crate::engine::delivery::Monotonic;
use crate::engine::input::{Acknowledgement, Answer, Input, LogAnswer, Output, ToParticipant};
use crate::protocol::record::{EndRecord, LogWrite};

/// What is known of a live transaction.
#[derive(Debug)]
struct Marks {
    /// `None`: in an earlier life.
    begun: Option<Monotonic>,
    phase: Phase,
    since: Monotonic,
    /// What branches were asked for and have not answered, since when.
    asked: Vec<(Bqual, Operation, Monotonic)>,
}

/// The stopwatch of one shard.
#[derive(Debug)]
pub struct Stopwatch {
    metrics: Arc<Metrics>,
    live: HashMap<Gtrid, Marks>,
}

impl Stopwatch {
    /// It measures into these.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, live: HashMap::new() }
    }

    /// The shard is about to take this.
    pub fn goes_in<R>(&mut self, input: &Input<R>, now: Monotonic) {
        match input {
            Input::Commit { gtrid, .. } => self.enter(gtrid, Phase::Work, Phase::Prepare, now),
            Input::Log { gtrid, answer: LogAnswer::Forced | LogAnswer::Found } => {
                self.enter(gtrid, Phase::Log, Phase::Apply, now);
            }
            Input::Vote { xid, .. } => self.answered(xid, |operation| operation == Operation::Prepare, now),
            Input::Acknowledge { xid, acknowledgement, .. } => {
                let attempt = match acknowledgement {
                    Acknowledgement::Ended(_) => Attempt::Acknowledged,
                    Acknowledgement::NotYet(_) => Attempt::NotYet,
                };
                self.metrics.attempt(attempt, xid.bqual.resource_manager_str());
                if attempt == Attempt::Acknowledged {
                    self.answered(xid, |operation| operation != Operation::Prepare, now);
                }
            }
            Input::Recover(record) => {
                let marks = Marks { begun: None, phase: Phase::Apply, since: now, asked: Vec::new() };
                self.live.insert(record.gtrid, marks);
            }
            Input::Begin { .. }
            | Input::Rollback { .. }
            | Input::Inquire { .. }
            | Input::AskPrepared { .. }
            | Input::List { .. }
            | Input::Find { .. }
            | Input::Summarize { .. }
            | Input::Attached { .. }
            | Input::Detached { .. }
            | Input::Enlist { .. }
            | Input::Log {
                answer: LogAnswer::Refused(_) | LogAnswer::Unknown(_) | LogAnswer::Absent, ..
            }
            | Input::Tick => {}
        }
    }

    /// The shell is about to carry this out.
    pub fn comes_out<R>(&mut self, output: &Output<R>, now: Monotonic) {
        match output {
            Output::Reply(_, Answer::Begun(gtrid)) => {
                let marks = Marks { begun: Some(now), phase: Phase::Work, since: now, asked: Vec::new() };
                self.live.insert(*gtrid, marks);
            }
            Output::Log(LogWrite::ForceDecision(record)) => {
                self.enter(&record.gtrid, Phase::Prepare, Phase::Log, now);
            }
            Output::Log(LogWrite::ForceEnd(end) | LogWrite::LazyEnd(end)) => self.ended(end, now),
            Output::Send(_, message) => self.sent(message, now),
            Output::Reply(..) | Output::StrayVote(..) | Output::StrayAcknowledgement(..) => {}
        }
    }

    /// It comes from one phase into another: what came doubled or late changes nothing.
    fn enter(&mut self, gtrid: &Gtrid, from: Phase, to: Phase, now: Monotonic) {
        let Some(marks) = self.live.get_mut(gtrid) else { return };
        if marks.phase == from {
            self.metrics.phase(from, now.saturating_sub(marks.since));
            (marks.phase, marks.since) = (to, now);
        }
    }

    fn sent(&mut self, message: &ToParticipant, now: Monotonic) {
        let (xid, operation) = match message {
            ToParticipant::Prepare(xid, _) => (xid, Operation::Prepare),
            ToParticipant::Commit(xid) => (xid, Operation::Commit),
            ToParticipant::Rollback(xid) => (xid, Operation::Rollback),
            ToParticipant::CommitOnePhase(xid, _) => (xid, Operation::CommitOnePhase),
            ToParticipant::Enlisted(..) | ToParticipant::EnlistRefused(..) | ToParticipant::Refused(..) => {
                return;
            }
        };
        if operation != Operation::Prepare {
            self.metrics.attempt(Attempt::Sent, xid.bqual.resource_manager_str());
        }
        let Some(marks) = self.live.get_mut(&xid.gtrid) else { return };
        // What is sent again is measured from the first time.
        if !marks.asked.iter().any(|(bqual, asked, _)| *bqual == xid.bqual && *asked == operation) {
            marks.asked.push((xid.bqual.clone(), operation, now));
        }
    }

    fn answered(&mut self, xid: &Xid, which: impl Fn(Operation) -> bool, now: Monotonic) {
        let Some(marks) = self.live.get_mut(&xid.gtrid) else { return };
        let asked =
            marks.asked.iter().position(|(bqual, operation, _)| *bqual == xid.bqual && which(*operation));
        if let Some(index) = asked {
            let (bqual, operation, since) = marks.asked.swap_remove(index);
            self.metrics.branch(operation, bqual.resource_manager_str(), now.saturating_sub(since));
        }
    }

    fn ended(&mut self, end: &EndRecord, now: Monotonic) {
        let Some(marks) = self.live.remove(&end.gtrid) else { return };
        self.metrics.phase(marks.phase, now.saturating_sub(marks.since));
        let lasted: Option<Duration> = marks.begun.map(|begun| now.saturating_sub(begun));
        self.metrics.completed(&end.about.name, end.outcome, lasted);
    }
}
