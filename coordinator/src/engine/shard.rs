//! A shard: some of the transactions, with their deadlines, their waiting clients and the decisions they have to deliver.
//!
//! A deterministic state machine: [`Shard::step`] takes one input and a time, and returns what has to be done, in order. It knows
//! no clock, no randomness and no task. The tokio shell (`super::shell`) feeds it live; a simulator can do the same.
//! A transaction never leaves its shard, which follows from its gtrid's random bits ([`shard_of`]), so that one slow
//! transaction or participant holds nobody else up and no lock is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockstep_proto::{Bqual, Epoch, Gtrid, ResourceManagerName, Xid};

use super::delivery::{Deliveries, Monotonic, SessionId};
use super::input::{
    Acknowledgement, Answer, BranchView, Input, LogAnswer, Now, OutcomeAnswer, Output, Refusal, Summary,
    ToParticipant, TransactionView, Wait,
};
use crate::protocol::branch::BranchState;
use crate::protocol::event::{Applied, Effects, Event, Message, Rejected, Reply, Vote};
use crate::protocol::outcome::Outcome;
use crate::protocol::record::{About, DecisionRecord, LogWrite};
use crate::protocol::transaction::{State, Transaction};

/// The shard that a transaction lives in.
#[must_use]
pub fn shard_of(gtrid: &Gtrid, shards: usize) -> usize {
    let shards = u64::try_from(shards).expect("a shard count fits into 64 bits");
    usize::try_from(gtrid.spread() % shards).expect("below the shard count")
}

/// How long a refused end record waits before it is given to the log again.
const RECORD_AGAIN: Duration = Duration::from_secs(1);

/// What a shard has to know beforehand.
#[derive(Debug, Clone, Copy)]
pub struct ShardConfig {
    /// The epoch that its transactions begin in.
    pub epoch: Epoch,
    /// Transactions that may be live here at once.
    pub max_live: usize,
    /// How long an answer to a commit waits for the branches after the decision.
    pub apply_wait: Duration,
}

/// A reason to wake up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Deadline(Gtrid),
    Waiters(Gtrid),
    RecordAgain(Gtrid),
}

/// A live transaction and what belongs to it outside the protocol.
#[derive(Debug)]
struct Live<R> {
    transaction: Transaction,
    deadline: Option<Monotonic>,
    deadline_ms: u64,
    decided_ms: u64,
    waiters: Vec<(Wait, R)>,
    wait_until: Option<Monotonic>,
    /// Which session holds each branch.
    held_by: BTreeMap<Bqual, SessionId>,
}

/// One attached session, as a shard sees it.
#[derive(Debug)]
struct Session {
    resource_manager: ResourceManagerName,
    /// Branches that this session's instance holds open and that have not voted: they are lost with it.
    open: BTreeSet<Xid>,
}

/// Some of the transactions. `R`: how the shell answers.
#[derive(Debug)]
pub struct Shard<R> {
    config: ShardConfig,
    live: BTreeMap<Gtrid, Live<R>>,
    sessions: BTreeMap<SessionId, Session>,
    deliveries: Deliveries,
    timers: BTreeSet<(Monotonic, Timer)>,
    outputs: Vec<Output<R>>,
}

impl<R> Shard<R> {
    /// An empty one.
    #[must_use]
    pub fn new(config: ShardConfig) -> Self {
        Self {
            config,
            live: BTreeMap::new(),
            sessions: BTreeMap::new(),
            deliveries: Deliveries::default(),
            timers: BTreeSet::new(),
            outputs: Vec::new(),
        }
    }

    /// When [`Input::Tick`] is due though nothing else happened.
    #[must_use]
    pub fn next_timer(&self) -> Option<Monotonic> {
        let own = self.timers.first().map(|(at, _)| *at);
        [own, self.deliveries.next_timer()].into_iter().flatten().min()
    }

    /// Takes one input, and everything whose time has come, and says what has to be done, in order.
    #[must_use = "an output that is not carried out is a lost message or a lost decision"]
    pub fn step(&mut self, input: Input<R>, now: Now) -> Vec<Output<R>> {
        self.take(input, now);
        self.fire_timers(now);
        for due in self.deliveries.pump(now.monotonic) {
            let message = self.to_participant(due.xid, due.message, now.monotonic);
            self.outputs.push(Output::Send(due.session, message));
        }
        std::mem::take(&mut self.outputs)
    }

    fn take(&mut self, input: Input<R>, now: Now) {
        match input {
            Input::Begin { random, timeout, about, reply } => self.begin(random, timeout, about, reply, now),
            Input::Commit { gtrid, wait, reply } => self.ask(gtrid, Event::CommitRequested, wait, reply, now),
            Input::Rollback { gtrid, why, reply } => {
                self.ask(gtrid, Event::RollbackRequested(why), Wait::Decided, reply, now);
            }
            Input::Inquire { gtrid, reply } => self.inquire(gtrid, reply),
            Input::AskPrepared { xids, reply } => self.ask_prepared(&xids, reply),
            Input::List { limit, reply } => {
                let views = self.live.values().rev().take(limit).map(|live| self.view(live, now)).collect();
                self.outputs.push(Output::Reply(reply, Answer::Listing(views)));
            }
            Input::Find { prefix, limit, reply } => self.find(&prefix, limit, reply, now),
            Input::Summarize { reply } => self.summarize(reply),
            Input::Attached { session, resource_manager } => self.attached(session, resource_manager),
            Input::Detached { session } => self.detached(session, now),
            Input::Enlist { session, xid } => self.enlist(session, xid, now),
            Input::Vote { session, xid, vote } => self.vote(session, xid, vote, now),
            Input::Acknowledge { session, xid, acknowledgement } => {
                self.acknowledge(session, xid, acknowledgement, now);
            }
            Input::Log { gtrid, answer } => self.log_answered(gtrid, answer, now),
            Input::Recover(record) => self.recover(record, now),
            Input::Tick => {}
        }
    }

    // ---- clients ----

    fn begin(&mut self, random: [u8; 10], timeout: Duration, about: About, reply: R, now: Now) {
        if self.live.len() >= self.config.max_live {
            self.outputs.push(Output::Reply(reply, Answer::Full));
            return;
        }
        let gtrid = Gtrid::new(self.config.epoch, now.unix_ms, random);
        let deadline = now.monotonic + timeout;
        let timeout_ms = u64::try_from(timeout.as_millis()).expect("a timeout is at most a day");
        let live = Live {
            transaction: Transaction::new(gtrid, about),
            deadline: Some(deadline),
            deadline_ms: now.unix_ms + timeout_ms,
            decided_ms: 0,
            waiters: Vec::new(),
            wait_until: None,
            held_by: BTreeMap::new(),
        };
        let earlier = self.live.insert(gtrid, live);
        assert!(earlier.is_none(), "a gtrid is never given out twice: {gtrid}");
        self.timers.insert((deadline, Timer::Deadline(gtrid)));
        self.outputs.push(Output::Reply(reply, Answer::Begun(gtrid)));
    }

    /// A client asks for an end, and waits for the outcome.
    fn ask(&mut self, gtrid: Gtrid, event: Event, wait: Wait, reply: R, now: Now) {
        let Some(live) = self.live.get_mut(&gtrid) else {
            self.outputs.push(Output::Reply(reply, Answer::NotLive));
            return;
        };
        live.waiters.push((wait, reply));
        if live.wait_until.is_none() {
            let from = live.deadline.map_or(now.monotonic, |deadline| deadline.max(now.monotonic));
            self.wait_until(gtrid, from + self.config.apply_wait);
        }
        self.step_own(gtrid, event, now);
    }

    fn inquire(&mut self, gtrid: Gtrid, reply: R) {
        let answer =
            self.live.get(&gtrid).map_or(Answer::NotLive, |live| Answer::Outcome(known(&live.transaction)));
        self.outputs.push(Output::Reply(reply, answer));
    }

    fn ask_prepared(&mut self, xids: &[Xid], reply: R) {
        let answer = |xid: &Xid| Some(self.live.get(&xid.gtrid)?.transaction.answer_prepared(&xid.bqual));
        let answers = xids.iter().map(answer).collect();
        self.outputs.push(Output::Reply(reply, Answer::Prepared(answers)));
    }

    fn find(&mut self, prefix: &str, limit: usize, reply: R, now: Now) {
        let begins = |gtrid: &Gtrid| {
            let text = gtrid.to_string();
            text.starts_with(prefix) || text.split_once('.').is_some_and(|(_, hex)| hex.starts_with(prefix))
        };
        let found = self.live.iter().filter(|(gtrid, _)| begins(gtrid)).take(limit);
        let views = found.map(|(_, live)| self.view(live, now)).collect();
        self.outputs.push(Output::Reply(reply, Answer::Listing(views)));
    }

    fn summarize(&mut self, reply: R) {
        let undecided = self.live.values().filter(|live| is_undecided(&live.transaction)).count();
        let undelivered = self.live.len() - undecided;
        let oldest = self.live.keys().next().copied();
        let summary = Summary { live: self.live.len(), undecided, undelivered, oldest };
        self.outputs.push(Output::Reply(reply, Answer::Summary(summary)));
    }

    fn view(&self, live: &Live<R>, now: Now) -> TransactionView {
        let transaction = &live.transaction;
        let gtrid = transaction.gtrid();
        let branch = |branch: &crate::protocol::branch::Branch| {
            let xid = Xid { gtrid, bqual: branch.bqual.clone() };
            let delivery = self.deliveries.view(&xid, now.monotonic).unwrap_or_default();
            BranchView { bqual: branch.bqual.clone(), state: branch.state_name(), delivery }
        };
        TransactionView {
            gtrid,
            about: transaction.about().clone(),
            state: transaction.state().clone(),
            deadline_ms: if transaction.deadline_applies() { live.deadline_ms } else { 0 },
            decided_ms: live.decided_ms,
            branches: transaction.branches().iter().map(branch).collect(),
        }
    }

    // ---- participants ----

    fn attached(&mut self, session: SessionId, resource_manager: ResourceManagerName) {
        self.deliveries.attached(session, resource_manager.clone());
        let earlier = self.sessions.insert(session, Session { resource_manager, open: BTreeSet::new() });
        assert!(earlier.is_none(), "a session's number is never used twice: {session:?}");
    }

    fn detached(&mut self, session: SessionId, now: Now) {
        let Some(ended) = self.sessions.remove(&session) else {
            return;
        };
        self.deliveries.detached(session);
        for xid in ended.open {
            self.step_branch(&xid, Event::BranchLost(xid.bqual.clone()), now)
                .expect("an open branch can be lost");
        }
    }

    fn enlist(&mut self, session: SessionId, xid: Xid, now: Now) {
        let Some(from) = self.sessions.get(&session) else {
            return;
        };
        let refusal = if xid.bqual.resource_manager_str() != from.resource_manager.as_str() {
            Some(Refusal::ForeignBranch)
        } else if !self.live.contains_key(&xid.gtrid) {
            Some(Refusal::NotActive)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            self.outputs.push(Output::Send(session, ToParticipant::EnlistRefused(xid, refusal)));
            return;
        }
        let live = self.live.get_mut(&xid.gtrid).expect("seen above");
        let effects = live
            .transaction
            .step(Event::Enlist(xid.bqual.clone()), now.unix_ms)
            .expect("every state answers an enlist");
        // An enlist is answered to who asked, which need not be who holds a branch of that name.
        for (bqual, message) in &effects.messages {
            let xid = Xid { gtrid: xid.gtrid, bqual: bqual.clone() };
            if *message == Message::Enlisted {
                live.held_by.insert(bqual.clone(), session);
                self.sessions.get_mut(&session).expect("seen above").open.insert(xid.clone());
            }
            let message = self.to_participant(xid, *message, now.monotonic);
            self.outputs.push(Output::Send(session, message));
            break;
        }
    }

    fn vote(&mut self, session: SessionId, xid: Xid, vote: Vote, now: Now) {
        if let Err(why) = self.check_sender(session, &xid) {
            self.outputs.push(Output::Send(session, ToParticipant::Refused(xid, why)));
            return;
        }
        let Some(live) = self.live.get(&xid.gtrid) else {
            if vote == Vote::Commit {
                self.outputs.push(Output::StrayVote(session, xid));
            }
            return;
        };
        if live.held_by.get(&xid.bqual).is_some_and(|holder| *holder != session) {
            let why = "another instance holds this branch, and only that one may vote".to_owned();
            self.outputs.push(Output::Send(session, ToParticipant::Refused(xid, why)));
            return;
        }
        let event = Event::Voted(xid.bqual.clone(), vote);
        if let Err(rejected) = self.step_branch(&xid, event, now) {
            self.outputs.push(Output::Send(session, ToParticipant::Refused(xid, rejected.to_string())));
        }
    }

    fn acknowledge(&mut self, session: SessionId, xid: Xid, acknowledgement: Acknowledgement, now: Now) {
        if let Err(why) = self.check_sender(session, &xid) {
            self.outputs.push(Output::Send(session, ToParticipant::Refused(xid, why)));
            return;
        }
        match acknowledgement {
            Acknowledgement::NotYet(why) => self.deliveries.not_yet(&xid, &why, now.monotonic),
            Acknowledgement::Ended(applied) => self.branch_ended(session, xid, applied, now),
        }
    }

    fn branch_ended(&mut self, session: SessionId, xid: Xid, applied: Applied, now: Now) {
        if !self.live.contains_key(&xid.gtrid) {
            self.outputs.push(Output::StrayAcknowledgement(xid, applied));
            return;
        }
        let event = Event::Acknowledged(xid.bqual.clone(), applied);
        if let Err(rejected) = self.step_branch(&xid, event, now) {
            self.outputs.push(Output::Send(session, ToParticipant::Refused(xid, rejected.to_string())));
        }
    }

    /// A participant speaks only for the branches of its own resource manager.
    fn check_sender(&self, session: SessionId, xid: &Xid) -> Result<(), String> {
        let from = self.sessions.get(&session).ok_or("the session has ended")?;
        if xid.bqual.resource_manager_str() == from.resource_manager.as_str() {
            return Ok(());
        }
        Err(format!("this branch is not of {}", from.resource_manager))
    }

    // ---- the log ----

    fn log_answered(&mut self, gtrid: Gtrid, answer: LogAnswer, now: Now) {
        let event = match answer {
            LogAnswer::Forced => Event::LogForced,
            LogAnswer::Refused(why) => {
                self.record_again_later(gtrid, now);
                Event::LogRefused(why)
            }
            LogAnswer::Unknown(why) => Event::LogUnknown(why),
            LogAnswer::Found => Event::LogFound,
            LogAnswer::Absent => {
                self.record_again_later(gtrid, now);
                Event::LogAbsent
            }
        };
        assert!(self.live.contains_key(&gtrid), "a transaction stays until the log has answered: {gtrid}");
        self.step_own(gtrid, event, now);
    }

    fn record_again_later(&mut self, gtrid: Gtrid, now: Now) {
        let recording = |live: &Live<R>| matches!(live.transaction.state(), State::Recording(_));
        if self.live.get(&gtrid).is_some_and(recording) {
            self.timers.insert((now.monotonic + RECORD_AGAIN, Timer::RecordAgain(gtrid)));
        }
    }

    fn recover(&mut self, record: DecisionRecord, now: Now) {
        let gtrid = record.gtrid;
        let decided_ms = record.decided_ms;
        let (transaction, effects) = Transaction::recover(record, now.unix_ms);
        let live = Live {
            transaction,
            deadline: None,
            deadline_ms: 0,
            decided_ms,
            waiters: Vec::new(),
            wait_until: None,
            held_by: BTreeMap::new(),
        };
        let earlier = self.live.insert(gtrid, live);
        assert!(earlier.is_none(), "a decision is recovered once: {gtrid}");
        self.carry_out(gtrid, effects, now);
    }

    // ---- time ----

    fn fire_timers(&mut self, now: Now) {
        while let Some((at, timer)) = self.timers.first().copied() {
            if at > now.monotonic {
                return;
            }
            self.timers.pop_first();
            match timer {
                Timer::Deadline(gtrid) if self.live.contains_key(&gtrid) => {
                    self.step_own(gtrid, Event::DeadlinePassed, now);
                }
                Timer::RecordAgain(gtrid) if self.live.contains_key(&gtrid) => {
                    self.step_own(gtrid, Event::RecordAgain, now);
                }
                Timer::Waiters(gtrid) => self.waited_long_enough(gtrid),
                Timer::Deadline(_) | Timer::RecordAgain(_) => {}
            }
        }
    }

    fn wait_until(&mut self, gtrid: Gtrid, until: Monotonic) {
        let live = self.live.get_mut(&gtrid).expect("the caller has seen it");
        if let Some(earlier) = live.wait_until.replace(until) {
            self.timers.remove(&(earlier, Timer::Waiters(gtrid)));
        }
        self.timers.insert((until, Timer::Waiters(gtrid)));
    }

    /// Nobody waits longer: everyone is told what is known by now.
    fn waited_long_enough(&mut self, gtrid: Gtrid) {
        let Some(live) = self.live.get_mut(&gtrid) else {
            return;
        };
        live.wait_until = None;
        let answer = known(&live.transaction);
        for (_, reply) in live.waiters.drain(..) {
            self.outputs.push(Output::Reply(reply, Answer::Outcome(answer.clone())));
        }
    }

    // ---- running the protocol ----

    /// An event that fits every state: the coordinator's own, or the log's. Anything else is a bug, and no decision may
    /// be taken by a coordinator that has one.
    fn step_own(&mut self, gtrid: Gtrid, event: Event, now: Now) {
        let live = self.live.get_mut(&gtrid).expect("the caller has seen it");
        let effects = match live.transaction.step(event, now.unix_ms) {
            Ok(effects) => effects,
            Err(rejected) => panic!("transaction {gtrid}: {rejected}"),
        };
        self.carry_out(gtrid, effects, now);
    }

    /// An event about one branch, which may be the participant's fault.
    fn step_branch(&mut self, xid: &Xid, event: Event, now: Now) -> Result<(), Rejected> {
        let Some(live) = self.live.get_mut(&xid.gtrid) else {
            return Ok(());
        };
        let effects = live.transaction.step(event, now.unix_ms)?;
        let branch = live.transaction.branches().iter().find(|branch| branch.bqual == xid.bqual);
        let state = branch.map(|branch| branch.state);
        let holder = live.held_by.get(&xid.bqual).copied();
        self.follow_branch(xid, state, holder);
        self.carry_out(xid.gtrid, effects, now);
        Ok(())
    }

    /// Keeps what belongs to a branch outside the protocol in step with its state.
    fn follow_branch(&mut self, xid: &Xid, state: Option<BranchState>, holder: Option<SessionId>) {
        let (lost_with_its_session, ended) = match state {
            Some(BranchState::Enlisted | BranchState::Preparing | BranchState::ToldOpen) => (true, false),
            Some(BranchState::Prepared | BranchState::InDoubt | BranchState::Told) => (false, false),
            Some(BranchState::Ended(_)) | None => (false, true),
        };
        if !lost_with_its_session
            && let Some(session) = holder.and_then(|holder| self.sessions.get_mut(&holder))
        {
            session.open.remove(xid);
        }
        if ended {
            self.deliveries.remove(xid);
        }
    }

    /// Turns effects into outputs, in their order: durable, sent, answered.
    fn carry_out(&mut self, gtrid: Gtrid, effects: Effects, now: Now) {
        effects.assert_ordered();
        if let Some(write) = effects.log {
            if let LogWrite::ForceDecision(record) = &write {
                self.live.get_mut(&gtrid).expect("it is live").decided_ms = record.decided_ms;
            }
            self.outputs.push(Output::Log(write));
        }
        for (bqual, message) in effects.messages {
            self.send(Xid { gtrid, bqual }, message, now);
        }
        if let Some(reply) = effects.reply {
            self.answer(gtrid, &reply, now);
        }
        let over = matches!(self.live[&gtrid].transaction.state(), State::Ended(..));
        if over {
            self.forget(gtrid);
        }
    }

    fn send(&mut self, xid: Xid, message: Message, now: Now) {
        let holder = self.live[&xid.gtrid].held_by.get(&xid.bqual).copied();
        match message {
            Message::Commit | Message::Rollback | Message::CommitOnePhase => {
                self.deliveries.enqueue(xid, message, holder);
            }
            Message::Prepare | Message::Enlisted | Message::EnlistRefused(_) => {
                // Sent once: if the session is gone, the branch is lost, and that is an event of its own.
                let Some(holder) = holder else { return };
                let message = self.to_participant(xid, message, now.monotonic);
                self.outputs.push(Output::Send(holder, message));
            }
        }
    }

    fn to_participant(&self, xid: Xid, message: Message, now: Monotonic) -> ToParticipant {
        let deadline = self.live.get(&xid.gtrid).and_then(|live| live.deadline);
        let remaining = deadline.map_or(Duration::ZERO, |deadline| deadline.saturating_sub(now));
        match message {
            Message::Enlisted => ToParticipant::Enlisted(xid, remaining),
            Message::EnlistRefused(why) => ToParticipant::EnlistRefused(xid, Refusal::ByTransaction(why)),
            Message::Prepare => ToParticipant::Prepare(xid, remaining),
            Message::Commit => ToParticipant::Commit(xid),
            Message::Rollback => ToParticipant::Rollback(xid),
            Message::CommitOnePhase => ToParticipant::CommitOnePhase(xid, remaining),
        }
    }

    /// Answers whoever waits for no more than this.
    fn answer(&mut self, gtrid: Gtrid, reply: &Reply, now: Now) {
        let apply_wait = self.config.apply_wait;
        let live = self.live.get_mut(&gtrid).expect("it is live");
        let (outcome, detail, everyone) = match reply {
            // Nobody waits for a rollback to be applied: nothing that a client may do next depends on it.
            Reply::Decided(outcome, detail) => (*outcome, detail, *outcome != Outcome::Committed),
            Reply::Ended(outcome, detail) => (*outcome, detail, true),
        };
        let answer = OutcomeAnswer {
            outcome: Some(outcome),
            detail: detail.clone(),
            branches: live.transaction.branches().len(),
            pending: live.transaction.pending(),
        };
        let waiting = std::mem::take(&mut live.waiters);
        for (wait, reply) in waiting {
            if everyone || wait == Wait::Decided {
                self.outputs.push(Output::Reply(reply, Answer::Outcome(answer.clone())));
            } else {
                live.waiters.push((wait, reply));
            }
        }
        if !live.waiters.is_empty() {
            // A client that asks again and again does not put off the answer to the others.
            let until = now.monotonic + apply_wait;
            let until = live.wait_until.map_or(until, |earlier| earlier.min(until));
            self.wait_until(gtrid, until);
        }
    }

    fn forget(&mut self, gtrid: Gtrid) {
        let live = self.live.remove(&gtrid).expect("it is live");
        assert!(
            live.waiters.is_empty(),
            "whoever waits is answered before a transaction is forgotten: {gtrid}"
        );
        if let Some(deadline) = live.deadline {
            self.timers.remove(&(deadline, Timer::Deadline(gtrid)));
        }
        if let Some(until) = live.wait_until {
            self.timers.remove(&(until, Timer::Waiters(gtrid)));
        }
        for (bqual, holder) in live.held_by {
            let xid = Xid { gtrid, bqual };
            if let Some(session) = self.sessions.get_mut(&holder) {
                session.open.remove(&xid);
            }
            self.deliveries.remove(&xid);
        }
    }
}

/// Whether the outcome is still open, or may not be told yet.
fn is_undecided(transaction: &Transaction) -> bool {
    match transaction.state() {
        State::Active | State::Preparing | State::Deciding(_) | State::DecisionUnknown(_) => true,
        State::RollbackOnly(_)
        | State::Committing
        | State::CommittingOnePhase
        | State::RollingBack(_)
        | State::Recording(_)
        | State::Ended(..) => false,
    }
}

/// What may be told of a live transaction.
fn known(transaction: &Transaction) -> OutcomeAnswer {
    let (outcome, detail) = match transaction.state() {
        State::Active | State::Preparing => (None, "no decision yet".to_owned()),
        State::Deciding(_) => (None, "the decision is on its way to the log".to_owned()),
        State::DecisionUnknown(_) => (None, "whether the decision is in the log is not known yet".to_owned()),
        State::CommittingOnePhase => {
            (None, "its only branch commits by itself and has not answered yet".to_owned())
        }
        State::Recording(_) => (None, "a heuristic outcome is being recorded".to_owned()),
        State::Committing => (Some(Outcome::Committed), String::new()),
        State::RollbackOnly(why) | State::RollingBack(why) => (Some(Outcome::RolledBack), why.clone()),
        State::Ended(outcome, detail) => (Some(*outcome), detail.clone()),
    };
    let branches = transaction.branches().len();
    OutcomeAnswer { outcome, detail, branches, pending: transaction.pending() }
}
