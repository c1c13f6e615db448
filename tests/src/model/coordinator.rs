//! The coordinators' processes, with the real transaction, and what they read from the log.

use std::sync::Arc;

use lockstep::branch::{Applied as SaidApplied, Vote as SaidVote};
use lockstep_coordinator::engine::handle::recorded_outcome;
use lockstep_coordinator::protocol::branch::BranchState;
use lockstep_coordinator::protocol::event::{Applied, Effects, Event, Message, Reply, Vote};
use lockstep_coordinator::protocol::outcome::Outcome;
use lockstep_coordinator::protocol::presumption::{PreparedFate, Recorded, prepared_fate};
use lockstep_coordinator::protocol::record::LogWrite;
use lockstep_coordinator::protocol::transaction::{PreparedAnswer, State, Transaction};

use super::log::MAX_EPOCHS;
use super::world::{Down, Link, Node, Record, Up, World, Writing, bqual, number_of};

impl World {
    pub(super) fn node(&mut self, node: usize) -> Option<&mut Node> {
        self.nodes[node].as_mut().map(Arc::make_mut)
    }

    /// Gives an event to the live transaction and carries its effects out. Whether it took it.
    pub(super) fn step(&mut self, node: usize, event: Event) -> bool {
        let Some(transaction) = self.node(node).and_then(|node| node.transaction.as_mut()) else {
            return false;
        };
        let Ok(effects) = transaction.step(event, 0) else { return false };
        self.carry_out(node, effects);
        true
    }

    fn carry_out(&mut self, number: usize, effects: Effects) {
        let Some(node) = self.node(number) else { return };
        match effects.log {
            Some(LogWrite::LazyEnd(end)) => node.lazy = Some(end),
            Some(write) => node.writing = Some(Writing::OnItsWay(write.into())),
            None => {}
        }
        let over = node.transaction.as_ref().is_some_and(|live| matches!(live.state(), State::Ended(..)));
        if over {
            node.transaction = None;
        }
        for (bqual, message) in effects.messages {
            self.send(number, number_of(&bqual), message);
        }
        match effects.reply {
            Some(Reply::Decided(outcome, _) | Reply::Ended(outcome, _)) => self.tell(Some(outcome)),
            None => {}
        }
    }

    fn send(&mut self, node: usize, participant: usize, message: Message) {
        let message = match message {
            Message::Enlisted | Message::EnlistRefused(_) => return,
            Message::Prepare => Down::Prepare,
            Message::Commit => Down::Commit,
            Message::Rollback => Down::Rollback,
            Message::CommitOnePhase => Down::CommitOnePhase,
        };
        self.told.commit_sent |= matches!(message, Down::Commit | Down::CommitOnePhase);
        self.told.rollback_sent |= message == Down::Rollback;
        if self.participants[participant].session == Some(node) {
            self.participant(participant).down.insert(message);
        }
    }

    /// The application hears this, if it has asked.
    fn tell(&mut self, outcome: Option<Outcome>) {
        if self.told.asked.is_none() {
            return;
        }
        match outcome {
            Some(Outcome::Committed) => self.told.committed = true,
            Some(Outcome::RolledBack) => self.told.rolled_back = true,
            Some(Outcome::NothingToCommit | Outcome::Heuristic(_)) => self.told.other = true,
            Some(Outcome::Unknown) | None => {}
        }
    }

    // ---- the application ----

    pub(super) fn asks_to_end(&mut self, node: usize, commit: bool) {
        self.told.asked = Some(commit);
        let event = if commit { Event::CommitRequested } else { Event::RollbackRequested(String::new()) };
        self.step(node, event);
    }

    /// The application asks for the outcome: the shard first, and then the log.
    pub(super) fn inquires(&mut self, number: usize) {
        let Some(node) = self.node(number) else { return };
        let Some(transaction) = &node.transaction else {
            node.looking_up_outcome = true;
            return;
        };
        let outcome = transaction.outcome().ok().map(|(outcome, _)| outcome);
        self.tell(outcome);
    }

    pub(super) fn looks_up_outcome(&mut self, number: usize) {
        let Some(node) = self.node(number) else { return };
        node.looking_up_outcome = false;
        let (epoch, on_its_way) = (node.epoch, node.lazy.as_ref().map(|end| end.outcome));
        let outcome = on_its_way.or_else(|| recorded_outcome(&self.log.look_up(epoch), false).outcome);
        self.tell(outcome);
    }

    // ---- participants ----

    pub(super) fn hears_from(&mut self, number: usize, participant: usize, message: Up) {
        let name = bqual(participant);
        let Some(node) = self.node(number) else { return };
        match message {
            Up::Report => self.listed(number, participant),
            Up::Vote(vote) => {
                let may = node.holds[participant];
                let event = Event::Voted(name, heard_vote(vote));
                if may {
                    self.step(number, event);
                } else if node.transaction.is_none() && matches!(event, Event::Voted(_, Vote::Commit)) {
                    self.listed(number, participant);
                }
            }
            Up::Acknowledge(applied) => {
                if let Some(applied) = heard(&applied) {
                    self.step(number, Event::Acknowledged(name, applied));
                }
            }
        }
    }

    /// A participant lists its branch as prepared: the live transaction answers, or else the log is asked.
    fn listed(&mut self, number: usize, participant: usize) {
        let Some(node) = self.node(number) else { return };
        let Some(transaction) = &node.transaction else {
            node.looking_up[participant] = true;
            return;
        };
        match transaction.answer_prepared(&bqual(participant)) {
            PreparedAnswer::Commit => self.send(number, participant, Message::Commit),
            PreparedAnswer::Rollback => self.send(number, participant, Message::Rollback),
            PreparedAnswer::StillRunning => {}
        }
    }

    pub(super) fn looks_up(&mut self, number: usize, participant: usize) {
        let Some(node) = self.node(number) else { return };
        node.looking_up[participant] = false;
        let epoch = node.epoch;
        match prepared_fate(&self.log.look_up(epoch), false, &bqual(participant)) {
            PreparedFate::Commit => self.send(number, participant, Message::Commit),
            PreparedFate::Rollback => self.send(number, participant, Message::Rollback),
            PreparedFate::StillRunning | PreparedFate::Unknown(_) => {}
        }
    }

    /// A coordinator notices that a session is over: what was still on its way over it is gone, and so is a branch that had not voted.
    pub(super) fn notice(&mut self, number: usize, participant: usize) {
        let Some(node) = self.node(number) else { return };
        if node.links[participant] != Link::Broken {
            return;
        }
        node.links[participant] = Link::None;
        let lost = std::mem::take(&mut node.holds[participant]);
        node.looking_up[participant] = false;
        if self.participants[participant].session.is_none() {
            self.participant(participant).up.clear();
        }
        if lost {
            self.step(number, Event::BranchLost(bqual(participant)));
        }
    }

    /// What is not acknowledged is told again.
    pub(super) fn tells_again(&mut self, number: usize, participant: usize) {
        if let Some(message) = self.to_tell_again(number, participant) {
            self.participant(participant).down.insert(message);
        }
    }

    /// What this coordinator would tell a branch again, and is not on its way.
    #[must_use]
    pub(super) fn to_tell_again(&self, number: usize, participant: usize) -> Option<Down> {
        let node = self.nodes[number].as_ref()?;
        let transaction = node.transaction.as_ref()?;
        let name = bqual(participant);
        let branch = transaction.branches().iter().find(|branch| branch.bqual == name)?;
        let awaited = matches!(branch.state, BranchState::Told | BranchState::ToldOpen);
        let message = match transaction.state() {
            State::Committing => Down::Commit,
            State::CommittingOnePhase => Down::CommitOnePhase,
            State::RollingBack(_) | State::RollbackOnly(_) => Down::Rollback,
            State::Active
            | State::Preparing
            | State::Deciding(_)
            | State::DecisionUnknown(_)
            | State::Recording(_)
            | State::Ended(..) => return None,
        };
        let there = &self.participants[participant];
        let sent = there.down.contains(&message) || there.running.is_some() || !there.up.is_empty();
        (awaited && there.session == Some(number) && !sent).then_some(message)
    }

    // ---- the log ----

    /// The write on its way arrives, if the epoch is still its node's to write under; `heard`: and is answered.
    pub(super) fn writes(&mut self, number: usize, heard: bool) {
        let Some(node) = self.node(number) else { return };
        let Some(Writing::OnItsWay(record)) = node.writing.take() else { return };
        let epoch = node.epoch;
        if self.log.is_sealed(epoch) {
            // Somebody else decides now: nothing that this process believes counts any more.
            return self.node_dies(number);
        }
        self.record(&record);
        if heard {
            self.step_log(number, Event::LogForced);
        } else {
            self.is_unknown(number, record, false);
        }
    }

    /// The connection broke before the write was read: it may still arrive.
    pub(super) fn write_is_in_limbo(&mut self, number: usize) {
        let Some(node) = self.node(number) else { return };
        let Some(Writing::OnItsWay(record)) = node.writing.take() else { return };
        self.is_unknown(number, record, true);
    }

    fn is_unknown(&mut self, number: usize, record: Record, limbo: bool) {
        if let Some(node) = self.node(number) {
            node.writing = Some(Writing::Unknown { record, limbo, fenced: false });
        }
        self.step_log(number, Event::LogUnknown(String::new()));
    }

    pub(super) fn write_is_refused(&mut self, number: usize) {
        let Some(node) = self.node(number) else { return };
        node.writing = None;
        self.step_log(number, Event::LogRefused(String::new()));
    }

    /// What was in limbo arrives after all.
    pub(super) fn limbo_arrives(&mut self, number: usize) {
        let Some(node) = self.node(number) else { return };
        let epoch = node.epoch;
        let Some(Writing::Unknown { record, limbo, .. }) = &mut node.writing else { return };
        *limbo = false;
        let record = record.clone();
        if !self.log.is_sealed(epoch) {
            self.record(&record);
        }
    }

    /// What a dead coordinator had sent to the log arrives, if its epoch is not sealed.
    pub(super) fn stray_arrives(&mut self) {
        let Some((epoch, record)) = self.stray.take() else { return };
        if !self.log.is_sealed(epoch) {
            self.record(&record);
        }
    }

    /// The node moves its generation: what has not arrived by now never will (P2).
    pub(super) fn fences(&mut self, number: usize) {
        let Some(node) = self.node(number) else { return };
        if let Some(Writing::Unknown { limbo, fenced, .. }) = &mut node.writing {
            (*limbo, *fenced) = (false, true);
        }
    }

    /// And then it reads.
    pub(super) fn reads_behind_fence(&mut self, number: usize) {
        let Some(node) = self.node(number) else { return };
        let Some(Writing::Unknown { record, .. }) = node.writing.take() else { return };
        let there = match &record {
            Record::Decision(_) => self.log.decision.is_some(),
            Record::End(_) => self.log.end.is_some(),
        };
        self.step_log(number, if there { Event::LogFound } else { Event::LogAbsent });
    }

    /// What the log answers always fits what it was given.
    fn step_log(&mut self, number: usize, answer: Event) {
        if !self.step(number, answer) {
            self.broken = Some("a transaction refuses the log's answer");
        }
    }

    fn record(&mut self, record: &Record) {
        match record {
            Record::Decision(decision) => {
                if self.log.decision.as_ref().is_some_and(|earlier| earlier != decision)
                    || self.log.end.is_some()
                {
                    self.broken = Some("a decision is written where another one, or an end, stands");
                }
                self.log.decision = Some(decision.clone());
            }
            Record::End(end) => self.log.end = Some(end.clone()),
        }
    }

    pub(super) fn lazy_arrives(&mut self, number: usize) {
        let Some(node) = self.node(number) else { return };
        let (end, epoch) = (node.lazy.take(), node.epoch);
        if self.log.is_sealed(epoch) {
            return self.node_dies(number);
        }
        // An end that is there stays: this one was written by who did not know of it.
        if self.log.end.is_none() {
            self.log.end = end;
        }
    }

    // ---- lives ----

    /// The process is gone. What it had sent to the log may still arrive.
    pub(super) fn node_dies(&mut self, number: usize) {
        let Some(node) = self.nodes[number].take() else { return };
        match &node.writing {
            Some(Writing::OnItsWay(record) | Writing::Unknown { record, limbo: true, .. }) => {
                self.stray = Some((node.epoch, record.clone()));
            }
            Some(Writing::Unknown { .. }) | None => {}
        }
        for participant in 0..self.participants.len() {
            if self.participants[participant].session == Some(number) {
                self.session_ends(participant);
            }
        }
    }

    pub(super) fn node_starts(&mut self, number: usize) {
        if self.log.epochs == MAX_EPOCHS {
            self.broken = Some("more epochs than a world may have: its bounds are too wide");
            return;
        }
        self.log.epochs += 1;
        let node = Node::new(self.log.epochs, self.participants.len(), Link::None);
        self.nodes[number] = Some(Arc::new(node));
    }

    /// A node seals another epoch; what that has left is its own from now on, and read afterwards (P5).
    pub(super) fn seals(&mut self, number: usize, epoch: u8) {
        self.log.seal(epoch);
        if let Some(node) = self.node(number) {
            node.adopting = true;
        }
    }

    pub(super) fn adopts(&mut self, number: usize) {
        let Some(node) = self.node(number) else { return };
        node.adopting = false;
        if node.transaction.is_some() {
            return; // It is its own, or was adopted before.
        }
        let epoch = node.epoch;
        if let Recorded::Decided(decision) = self.log.look_up(epoch).recorded {
            let (transaction, effects) = Transaction::recover(decision, 0);
            if let Some(node) = self.node(number) {
                node.transaction = Some(transaction);
            }
            self.carry_out(number, effects);
        }
    }
}

fn heard_vote(vote: SaidVote) -> Vote {
    match vote {
        SaidVote::Commit => Vote::Commit,
        SaidVote::Rollback(why) => Vote::Rollback(why),
        SaidVote::ReadOnly => Vote::ReadOnly,
        SaidVote::Hazard(why) => Vote::Hazard(why),
    }
}

fn heard(applied: &SaidApplied) -> Option<Applied> {
    match applied {
        SaidApplied::Committed => Some(Applied::Committed),
        SaidApplied::RolledBack => Some(Applied::RolledBack),
        SaidApplied::Hazard => Some(Applied::Hazard),
        SaidApplied::NotYet(_) => None,
    }
}
