//! A shard: some of the transactions, with their deadlines, their waiting clients and the decisions they have to deliver.
//!
//! A deterministic state machine: [`Shard::step`] takes one input and a time, and returns what has to be done, in order. It knows
//! no clock, no randomness and no task. The tokio shell feeds it live; a simulator can do the same. A transaction never
//! leaves its shard, which follows from its gtrid's random bits ([`shard_of`]), so that one slow transaction or participant
//! holds nobody else up and no lock is needed.
//!
//! Here: transactions, the log's answers and time. `clients` has what applications and operators ask for, `participants` what
//! attached sessions say, `operators` what is done by hand, `waiters` who waits for an outcome.

mod clients;
mod operators;
mod participants;
#[cfg(feature = "simulation")]
pub mod seen;
mod waiters;
#[cfg(test)]
mod whole;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockstep_proto::museum::mutated;
use lockstep_proto::{Bqual, Epoch, Gtrid, ResourceManagerName, Xid};

use super::delivery::{Deliveries, Monotonic, SessionId};
use super::input::{Answer, Input, LogAnswer, Now, OutcomeAnswer, Output, ToParticipant, Wait};
use crate::protocol::branch::BranchState;
use crate::protocol::event::{Effects, Event, Message, Rejected, Reply};
use crate::protocol::outcome::Outcome;
use crate::protocol::record::{DecisionRecord, LogWrite};
use crate::protocol::transaction::{State, Transaction};
use waiters::Waiters;

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
    /// Transactions that may be live here at once. Recovered ones count, and are never turned away.
    pub max_live: usize,
    /// How long an answer to a commit waits for the branches after the decision.
    pub apply_wait: Duration,
    /// No transaction begins with an earlier time than this, milliseconds since 1970: what the log has pruned, and the floors that it
    /// believes, were below it (P7).
    pub begin_from_ms: u64,
}

/// A reason to wake up. Only of transactions that are live.
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
    /// `None` after a recovery: it means nothing any more.
    deadline: Option<Monotonic>,
    deadline_ms: u64,
    /// When the decision was given to the log; 0 without one.
    decided_ms: u64,
    /// Since when it is known to be decided, by the log or by presumed abort, in milliseconds since 1970.
    undelivered_since_ms: Option<u64>,
    waiters: Waiters<R>,
    /// When the timer for `waiters` is due.
    wait_until: Option<Monotonic>,
    /// When the timer for a refused end record is due.
    record_again: Option<Monotonic>,
    /// Which session enlisted each branch; none did of a recovered transaction.
    held_by: BTreeMap<Bqual, SessionId>,
    /// An operator holds its deliveries back.
    paused: bool,
}

impl<R> Live<R> {
    fn new(transaction: Transaction) -> Self {
        Self {
            transaction,
            deadline: None,
            deadline_ms: 0,
            decided_ms: 0,
            undelivered_since_ms: None,
            waiters: Waiters::default(),
            wait_until: None,
            record_again: None,
            held_by: BTreeMap::new(),
            paused: false,
        }
    }
}

/// One attached session, as a shard sees it.
#[derive(Debug)]
struct Session {
    resource_manager: ResourceManagerName,
    /// Branches that this session's instance holds open and that have not voted: they are lost with it.
    open: BTreeSet<Xid>,
}

/// What one step asks for, sorted into the order that effects have: durable, then sent, then answered.
#[derive(Debug)]
struct Outputs<R> {
    log: Vec<Output<R>>,
    sent: Vec<Output<R>>,
    answered: Vec<Output<R>>,
}

/// Some of the transactions. `R`: how the shell answers.
#[derive(Debug)]
pub struct Shard<R> {
    config: ShardConfig,
    live: BTreeMap<Gtrid, Live<R>>,
    sessions: BTreeMap<SessionId, Session>,
    deliveries: Deliveries,
    /// Resource managers that are gone for good (P28).
    retired: BTreeSet<ResourceManagerName>,
    /// Branches of theirs that were told a decision in this step: nobody will ever acknowledge it.
    given_up: Vec<Xid>,
    timers: BTreeSet<(Monotonic, Timer)>,
    outputs: Outputs<R>,
    /// The time of the next gtrid at the earliest. A clock that is set back must not begin anything below a floor that was given out:
    /// nothing would keep its record from being pruned.
    begins_from_ms: u64,
    #[cfg(feature = "simulation")]
    seen: seen::Seen,
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
            retired: BTreeSet::new(),
            given_up: Vec::new(),
            timers: BTreeSet::new(),
            outputs: Outputs { log: Vec::new(), sent: Vec::new(), answered: Vec::new() },
            begins_from_ms: config.begin_from_ms,
            #[cfg(feature = "simulation")]
            seen: seen::Seen::default(),
        }
    }

    /// Which transitions its transactions went through so far.
    #[cfg(feature = "simulation")]
    #[must_use]
    pub fn seen(&self) -> &seen::Seen {
        &self.seen
    }

    /// When [`Input::Tick`] is due though nothing else happened.
    #[must_use]
    pub fn next_timer(&self) -> Option<Monotonic> {
        let own = self.timers.first().map(|(at, _)| *at);
        [own, self.deliveries.next_timer()].into_iter().flatten().min()
    }

    /// Takes one input, and before it everything whose time has come, and says what has to be done, in order.
    #[must_use = "an output that is not carried out is a lost message or a lost decision"]
    pub fn step(&mut self, input: Input<R>, now: Now) -> Vec<Output<R>> {
        // First: a shard that is behind must not let a commit slip in after its deadline.
        self.fire_timers(now);
        self.take(input, now);
        self.give_up(now);
        for due in self.deliveries.pump(now.monotonic) {
            let message = self.to_participant(due.xid, due.message, now.monotonic);
            self.send(due.session, message);
        }
        let Outputs { log, sent, answered } = &mut self.outputs;
        let mut outputs = std::mem::take(log);
        outputs.append(sent);
        outputs.append(answered);
        outputs
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
            Input::List { limit, reply } => self.list(limit, reply, now),
            Input::Find { prefix, limit, reply } => self.find(&prefix, limit, reply, now),
            Input::Act { gtrid, act, reply } => self.act(gtrid, &act, reply, now),
            Input::Retire { resource_manager } => self.retire(resource_manager),
            Input::Summarize { reply } => self.summarize(reply, now),
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

    fn send(&mut self, session: SessionId, message: ToParticipant) {
        self.outputs.sent.push(Output::Send(session, message));
    }

    fn reply(&mut self, reply: R, answer: Answer) {
        self.outputs.answered.push(Output::Reply(reply, answer));
    }

    /// The caller has seen that it is live.
    fn live_mut(&mut self, gtrid: Gtrid) -> &mut Live<R> {
        self.live.get_mut(&gtrid).expect("a transaction is live until it has ended")
    }

    // ---- the log ----

    fn log_answered(&mut self, gtrid: Gtrid, answer: LogAnswer, now: Now) {
        let live = self.live.get_mut(&gtrid);
        let live = live.unwrap_or_else(|| panic!("a transaction stays until the log has answered: {gtrid}"));
        let recording = matches!(live.transaction.state(), State::Recording(_));
        let (event, written) = match answer {
            LogAnswer::Forced => (Event::LogForced, Some(true)),
            LogAnswer::Found => (Event::LogFound, Some(true)),
            LogAnswer::Refused(why) => (Event::LogRefused(why), Some(false)),
            LogAnswer::Absent => (Event::LogAbsent, Some(false)),
            LogAnswer::Unknown(why) => (Event::LogUnknown(why), None),
        };
        match (written, recording) {
            (Some(false), true) => self.record_again_later(gtrid, now),
            (Some(false), false) => live.decided_ms = 0,
            (Some(true) | None, _) => {}
        }
        self.step_own(gtrid, event, now);
    }

    fn record_again_later(&mut self, gtrid: Gtrid, now: Now) {
        let again = now.monotonic + RECORD_AGAIN;
        self.live_mut(gtrid).record_again = Some(again);
        self.timers.insert((again, Timer::RecordAgain(gtrid)));
    }

    fn recover(&mut self, record: DecisionRecord, now: Now) {
        if mutated("recovery-leaves-commits-to-others") {
            return;
        }
        let gtrid = record.gtrid;
        let decided_ms = record.decided_ms;
        let (transaction, effects) = Transaction::recover(record, now.unix_ms);
        let undelivered_since_ms = Some(decided_ms);
        let recovered = Live { decided_ms, undelivered_since_ms, ..Live::new(transaction) };
        let earlier = self.live.insert(gtrid, recovered);
        assert!(earlier.is_none(), "a decision is recovered once: {gtrid}");
        self.carry_out(gtrid, effects, now);
    }

    // ---- time ----

    fn fire_timers(&mut self, now: Now) {
        while self.timers.first().is_some_and(|(at, _)| *at <= now.monotonic) {
            let (_, timer) = self.timers.pop_first().expect("there is a first one");
            match timer {
                Timer::Deadline(gtrid) => self.step_own(gtrid, Event::DeadlinePassed, now),
                Timer::Waiters(gtrid) => self.waited_long_enough(gtrid, now),
                Timer::RecordAgain(gtrid) => self.step_own(gtrid, Event::RecordAgain, now),
            }
        }
    }

    /// Sets the timer for who waits longest already, or takes it away if nobody waits.
    fn set_wait_timer(&mut self, gtrid: Gtrid) {
        let live = self.live_mut(gtrid);
        let next = live.waiters.next();
        let earlier = std::mem::replace(&mut live.wait_until, next);
        if earlier == next {
            return;
        }
        if let Some(earlier) = earlier {
            self.timers.remove(&(earlier, Timer::Waiters(gtrid)));
        }
        if let Some(next) = next {
            self.timers.insert((next, Timer::Waiters(gtrid)));
        }
    }

    // ---- running the protocol ----

    /// An event that fits every state: the coordinator's own, or the log's. Anything else is a bug, and no decision may
    /// be taken by a coordinator that has one.
    fn step_own(&mut self, gtrid: Gtrid, event: Event, now: Now) {
        #[cfg(feature = "simulation")]
        self.seen.note(self.live[&gtrid].transaction.state(), &event);
        match self.live_mut(gtrid).transaction.step(event, now.unix_ms) {
            Ok(effects) => self.carry_out(gtrid, effects, now),
            Err(rejected) => panic!("transaction {gtrid}: {rejected}"),
        }
    }

    /// An event about one branch of a live transaction, which may be the participant's fault.
    fn step_branch(&mut self, xid: &Xid, event: Event, now: Now) -> Result<(), Rejected> {
        #[cfg(feature = "simulation")]
        self.seen.note(self.live[&xid.gtrid].transaction.state(), &event);
        let live = self.live_mut(xid.gtrid);
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

    fn carry_out(&mut self, gtrid: Gtrid, effects: Effects, now: Now) {
        effects.assert_ordered();
        if let Some(write) = effects.log {
            if let LogWrite::ForceDecision(record) = &write {
                self.live_mut(gtrid).decided_ms = record.decided_ms;
            }
            self.outputs.log.push(Output::Log(write));
        }
        for (bqual, message) in effects.messages {
            self.tell(Xid { gtrid, bqual }, message, now);
        }
        if let Some(reply) = effects.reply {
            self.answer(gtrid, &reply, now);
        }
        let live = self.live_mut(gtrid);
        if let State::Ended(..) = live.transaction.state() {
            self.forget(gtrid);
        } else if !clients::is_undecided(&live.transaction) {
            live.undelivered_since_ms.get_or_insert(now.unix_ms);
        }
    }

    fn tell(&mut self, xid: Xid, message: Message, now: Now) {
        let live = &self.live[&xid.gtrid];
        let (holder, paused) = (live.held_by.get(&xid.bqual).copied(), live.paused);
        match message {
            Message::Commit | Message::Rollback | Message::CommitOnePhase => {
                if self.retired.contains(&xid.bqual.resource_manager()) {
                    self.given_up.push(xid);
                    return;
                }
                self.deliveries.enqueue(xid.clone(), message, holder);
                if paused {
                    self.deliveries.pause(&xid);
                }
            }
            Message::Prepare => {
                // Sent once: if the session is gone, the branch is lost, and that is an event of its own.
                let holder = holder.expect("a branch that is asked to prepare was enlisted by a session");
                let message = self.to_participant(xid, message, now.monotonic);
                self.send(holder, message);
            }
            Message::Enlisted | Message::EnlistRefused(_) => {
                unreachable!("an enlist is answered where it is taken")
            }
        }
    }

    fn to_participant(&self, xid: Xid, message: Message, now: Monotonic) -> ToParticipant {
        let deadline = self.live.get(&xid.gtrid).and_then(|live| live.deadline);
        let remaining = deadline.map_or(Duration::ZERO, |deadline| deadline.saturating_sub(now));
        match message {
            Message::Enlisted => ToParticipant::Enlisted(xid, remaining),
            Message::EnlistRefused(why) => {
                ToParticipant::EnlistRefused(xid, super::input::Refusal::ByTransaction(why))
            }
            Message::Prepare => ToParticipant::Prepare(xid, remaining),
            Message::Commit => ToParticipant::Commit(xid),
            Message::Rollback => ToParticipant::Rollback(xid),
            Message::CommitOnePhase => ToParticipant::CommitOnePhase(xid, remaining),
        }
    }

    /// Answers whoever waits for no more than this.
    fn answer(&mut self, gtrid: Gtrid, reply: &Reply, now: Now) {
        let longest = now.monotonic + self.config.apply_wait;
        let live = self.live_mut(gtrid);
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
        let answered = live.waiters.take_satisfied(everyone);
        live.waiters.wait_at_most_until(longest);
        for reply in answered {
            self.reply(reply, Answer::Outcome(answer.clone()));
        }
        self.set_wait_timer(gtrid);
    }

    fn forget(&mut self, gtrid: Gtrid) {
        let live = self.live.remove(&gtrid).expect("it is live");
        assert!(
            live.waiters.is_empty(),
            "whoever waits is answered before a transaction is forgotten: {gtrid}"
        );
        let timers = [
            (live.deadline, Timer::Deadline(gtrid)),
            (live.wait_until, Timer::Waiters(gtrid)),
            (live.record_again, Timer::RecordAgain(gtrid)),
        ];
        for (at, timer) in timers {
            if let Some(at) = at {
                self.timers.remove(&(at, timer));
            }
        }
        for (bqual, holder) in live.held_by {
            if let Some(session) = self.sessions.get_mut(&holder) {
                session.open.remove(&Xid { gtrid, bqual });
            }
        }
    }
}
