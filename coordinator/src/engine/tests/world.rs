//! A tiny world around one shard: databases with evidence, sessions that break, messages that are lost, doubled and overtake
//! each other, a decision log that refuses or does not know, crashes, and an administrator who ends prepared branches by hand.
//!
//! It checks on every step what has to hold on every step; [`World::heal`] then stops all faults and checks that everything ends.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockstep_proto::{Bqual, Epoch, Gtrid, Xid};

use crate::engine::delivery::SessionId;
use crate::engine::input::{Acknowledgement, Answer, Input, LogAnswer, Now, Output, ToParticipant, Wait};
use crate::engine::shard::{Shard, ShardConfig};
use crate::protocol::event::{Applied, Vote};
use crate::protocol::outcome::Outcome;
use crate::protocol::presumption::{
    EpochState, Judgement, Known, LookUp, PreparedFate, Recorded, conclude, judge, late_end, prepared_fate,
};
use crate::protocol::record::{About, DecisionKind, DecisionRecord, EndRecord, LogWrite};
use crate::protocol::tests::names::resource_manager;
use crate::protocol::transaction::PreparedAnswer;

pub(super) const RESOURCE_MANAGERS: [&str; 3] = ["a", "b", "c"];

/// What a database has of a branch: nothing, if it is not in the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Local {
    /// An open transaction in the instance that has this session.
    Open(SessionId),
    Prepared,
    /// With its evidence.
    Committed,
    /// With a fence.
    RolledBack,
    ReadOnly,
}

/// On its way between a participant and the shard.
#[derive(Debug, Clone)]
enum Flight {
    ToShard(SessionId, FromParticipant),
    ToParticipant(SessionId, ToParticipant),
}

#[derive(Debug, Clone)]
enum FromParticipant {
    Enlist(Xid),
    Vote(Xid, Vote),
    Acknowledge(Xid, Acknowledgement),
}

/// A forced write that was not answered for good.
#[derive(Debug)]
struct Writing {
    write: LogWrite,
    /// Answered with "unknown"; whether it is there.
    unknown: Option<bool>,
}

/// What a client asked for.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Begin,
    Outcome(Gtrid),
    /// A participant's listing of what is prepared, over its session.
    Prepared(SessionId),
    Summary,
}

/// How a fault is chosen among those there are.
pub(super) type Choice = u8;

pub(super) struct World {
    shard: Shard<u64>,
    now: Duration,
    epoch: u32,
    begun: Vec<Gtrid>,
    branches: BTreeMap<Xid, Local>,
    /// Branches that an administrator ended.
    by_hand: BTreeSet<Xid>,
    /// Branches that the shard said are enlisted.
    enlisted: BTreeMap<Gtrid, BTreeSet<Bqual>>,
    sessions: BTreeMap<SessionId, &'static str>,
    flights: Vec<Flight>,
    /// Sent over sessions that have ended since.
    stale: Vec<(SessionId, FromParticipant)>,
    writing: Vec<Writing>,
    lazy: Vec<EndRecord>,
    decisions: BTreeMap<Gtrid, DecisionRecord>,
    ends: BTreeMap<Gtrid, EndRecord>,
    asked: BTreeMap<u64, Asked>,
    told: BTreeMap<Gtrid, BTreeSet<&'static str>>,
    counter: u64,
    /// What has happened, how often.
    seen: BTreeMap<&'static str, usize>,
    /// A participant that is being healed votes commit and does what it is told.
    healing: bool,
}

fn config(epoch: u32) -> ShardConfig {
    let epoch = Epoch::new(epoch).unwrap();
    ShardConfig { epoch, max_live: 6, apply_wait: Duration::from_secs(10) }
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            shard: Shard::new(config(1)),
            now: Duration::ZERO,
            epoch: 1,
            begun: Vec::new(),
            branches: BTreeMap::new(),
            by_hand: BTreeSet::new(),
            enlisted: BTreeMap::new(),
            sessions: BTreeMap::new(),
            flights: Vec::new(),
            stale: Vec::new(),
            writing: Vec::new(),
            lazy: Vec::new(),
            decisions: BTreeMap::new(),
            ends: BTreeMap::new(),
            asked: BTreeMap::new(),
            told: BTreeMap::new(),
            counter: 0,
            seen: BTreeMap::new(),
            healing: false,
        }
    }

    fn note(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    pub(super) fn seen(&self) -> &BTreeMap<&'static str, usize> {
        &self.seen
    }

    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn ask(&mut self, asked: Asked) -> u64 {
        let client = self.next();
        self.asked.insert(client, asked);
        client
    }

    // ---- what happens ----

    pub(super) fn begin(&mut self, timeout: Duration) {
        let reply = self.ask(Asked::Begin);
        let mut random = [0; 10];
        random[2..].copy_from_slice(&self.counter.to_be_bytes());
        self.step(Input::Begin { random, timeout, about: About::default(), reply });
    }

    /// One of the newest, since the others are likely to be over; the newest of all for the last choice.
    fn transaction(&self, choice: Choice) -> Option<Gtrid> {
        let newest = self.begun.iter().rev().take(4).copied().collect::<Vec<_>>();
        pick(&newest, Choice::MAX - choice).copied()
    }

    pub(super) fn enlist(&mut self, transaction: Choice, session: Choice) {
        let sessions: Vec<_> = self.sessions.keys().copied().collect();
        let (Some(gtrid), Some(session)) = (self.transaction(transaction), pick(&sessions, session)) else {
            return;
        };
        let number = self.next();
        let bqual = Bqual::new(&resource_manager(self.sessions[session]), number);
        let xid = Xid { gtrid, bqual };
        self.branches.insert(xid.clone(), Local::Open(*session));
        self.flights.push(Flight::ToShard(*session, FromParticipant::Enlist(xid)));
    }

    pub(super) fn commit(&mut self, transaction: Choice, wait: Wait) {
        let Some(gtrid) = self.transaction(transaction) else { return };
        let reply = self.ask(Asked::Outcome(gtrid));
        self.step(Input::Commit { gtrid, wait, reply });
    }

    pub(super) fn rollback(&mut self, transaction: Choice) {
        let Some(gtrid) = self.transaction(transaction) else { return };
        let reply = self.ask(Asked::Outcome(gtrid));
        self.step(Input::Rollback { gtrid, why: "changed my mind".into(), reply });
    }

    pub(super) fn inquire(&mut self, transaction: Choice) {
        let Some(gtrid) = self.transaction(transaction) else { return };
        let reply = self.ask(Asked::Outcome(gtrid));
        self.step(Input::Inquire { gtrid, reply });
    }

    /// A branch votes before it is asked.
    pub(super) fn vote_early(&mut self, branch: Choice, how: Choice) {
        let open = self.branches.iter().filter_map(|(xid, local)| match local {
            Local::Open(session) => Some((xid.clone(), *session)),
            Local::Prepared | Local::Committed | Local::RolledBack | Local::ReadOnly => None,
        });
        let open: Vec<_> = open.collect();
        if let Some((xid, session)) = pick(&open, branch) {
            self.prepare(*session, xid.clone(), how);
        }
    }

    /// Something arrives, not necessarily what was sent first; once more, if `twice`.
    pub(super) fn deliver(&mut self, flight: Choice, twice: bool, how: Choice) {
        if self.flights.is_empty() {
            return;
        }
        let index = usize::from(flight) % self.flights.len();
        let flight = if twice { self.flights[index].clone() } else { self.flights.remove(index) };
        self.arrive(flight, how);
    }

    /// What was sent last arrives first.
    pub(super) fn deliver_last(&mut self) {
        if let Some(flight) = self.flights.pop() {
            self.arrive(flight, 0);
        }
    }

    fn arrive(&mut self, flight: Flight, how: Choice) {
        match flight {
            Flight::ToShard(session, message) => self.give_to_shard(session, message),
            Flight::ToParticipant(session, message) => self.give_to_participant(session, message, how),
        }
    }

    fn give_to_shard(&mut self, session: SessionId, message: FromParticipant) {
        self.step(match message {
            FromParticipant::Enlist(xid) => Input::Enlist { session, xid },
            FromParticipant::Vote(xid, vote) => Input::Vote { session, xid, vote },
            FromParticipant::Acknowledge(xid, acknowledgement) => {
                Input::Acknowledge { session, xid, acknowledgement }
            }
        });
    }

    pub(super) fn lose(&mut self, flight: Choice) {
        if !self.flights.is_empty() {
            self.flights.remove(usize::from(flight) % self.flights.len());
        }
    }

    /// What an ended session had sent arrives after all.
    pub(super) fn deliver_stale(&mut self, choice: Choice) {
        if !self.stale.is_empty() {
            let (session, message) = self.stale.remove(usize::from(choice) % self.stale.len());
            self.give_to_shard(session, message);
        }
    }

    /// Another session's word about a branch, or a word about a branch that never was.
    pub(super) fn confuse(&mut self, session: Choice, branch: Choice, how: Choice) {
        let sessions: Vec<_> = self.sessions.keys().copied().collect();
        let branches: Vec<_> = self.branches.keys().cloned().collect();
        let (Some(session), Some(xid)) = (pick(&sessions, session), pick(&branches, branch)) else { return };
        let mut xid = xid.clone();
        if self.sessions[session] == xid.bqual.resource_manager_str() {
            xid.bqual = nobodys(&xid);
        }
        let (votes, ends) = (votes(), applied());
        self.give_to_shard(
            *session,
            match how % 2 {
                0 => FromParticipant::Vote(xid, pick(&votes, how / 2).unwrap().clone()),
                _ => {
                    FromParticipant::Acknowledge(xid, Acknowledgement::Ended(*pick(&ends, how / 2).unwrap()))
                }
            },
        );
    }

    pub(super) fn attach(&mut self, resource_manager: Choice) {
        let name = *pick(&RESOURCE_MANAGERS, resource_manager).unwrap();
        let session = SessionId(self.next());
        self.sessions.insert(session, name);
        self.step(Input::Attached { session, resource_manager: name.parse().unwrap() });
        self.list(session);
    }

    /// A participant lists what it has prepared (P20).
    pub(super) fn list_again(&mut self, session: Choice) {
        let sessions: Vec<_> = self.sessions.keys().copied().collect();
        if let Some(session) = pick(&sessions, session) {
            self.list(*session);
        }
    }

    fn list(&mut self, session: SessionId) {
        let name = self.sessions[&session];
        let prepared = self
            .branches
            .iter()
            .filter(|(xid, local)| **local == Local::Prepared && xid.bqual.resource_manager_str() == name);
        let xids: Vec<Xid> = prepared.map(|(xid, _)| xid.clone()).collect();
        let reply = self.ask(Asked::Prepared(session));
        self.step_with(Input::AskPrepared { xids: xids.clone(), reply }, &xids);
    }

    /// A session breaks: its participant rolls back what it had open there.
    pub(super) fn break_session(&mut self, session: Choice) {
        let sessions: Vec<_> = self.sessions.keys().copied().collect();
        if let Some(session) = pick(&sessions, session) {
            self.end_session(*session);
            self.step(Input::Detached { session: *session });
        }
    }

    fn end_session(&mut self, session: SessionId) {
        self.sessions.remove(&session);
        self.branches.retain(|_, local| *local != Local::Open(session));
        for flight in std::mem::take(&mut self.flights) {
            match flight {
                Flight::ToShard(over, message) if over == session => self.stale.push((over, message)),
                Flight::ToParticipant(over, _) if over == session => {}
                other @ (Flight::ToShard(..) | Flight::ToParticipant(..)) => self.flights.push(other),
            }
        }
    }

    pub(super) fn wait(&mut self, duration: Duration) {
        let until = self.now + duration;
        while let Some(due) = self.shard.next_timer().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.step(Input::Tick);
        }
        self.now = until;
    }

    /// Time passes, and the shell is too busy to notice.
    pub(super) fn stall(&mut self, duration: Duration) {
        self.now += duration;
    }

    /// An administrator ends a prepared branch.
    pub(super) fn by_hand(&mut self, branch: Choice, commit: bool) {
        let prepared = self.branches.iter().filter(|(_, local)| **local == Local::Prepared);
        let prepared: Vec<_> = prepared.map(|(xid, _)| xid.clone()).collect();
        let Some(xid) = pick(&prepared, branch) else { return };
        self.by_hand.insert(xid.clone());
        if commit {
            self.branches.insert(xid.clone(), Local::Committed);
        } else {
            // No fence: only the SDK puts one in, when it is asked.
            self.branches.remove(xid);
        }
    }

    // ---- the log ----

    pub(super) fn answer_write(&mut self, choice: Choice, how: Choice) {
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

    fn is_durable(&mut self, write: LogWrite) {
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

    pub(super) fn write_lazily(&mut self) {
        for end in std::mem::take(&mut self.lazy) {
            self.is_durable(LogWrite::LazyEnd(end));
        }
    }

    /// The coordinator dies and comes back. Whether a write that was under way is there, `luck` says.
    pub(super) fn crash(&mut self, luck: Choice) {
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

    fn look_up(&self, gtrid: Gtrid) -> LookUp {
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
    fn may_be_decided(&self, gtrid: Gtrid, kind: DecisionKind) -> bool {
        let writing = self.writing.iter().any(|writing| match &writing.write {
            LogWrite::ForceDecision(decision) => decision.gtrid == gtrid && decision.kind == kind,
            LogWrite::ForceEnd(_) | LogWrite::LazyEnd(_) => false,
        });
        writing || self.decided(gtrid, kind).is_some()
    }

    fn decided(&self, gtrid: Gtrid, kind: DecisionKind) -> Option<&DecisionRecord> {
        self.decisions.get(&gtrid).filter(|decision| decision.kind == kind)
    }

    // ---- the shard's outputs ----

    fn step(&mut self, input: Input<u64>) {
        self.step_with(input, &[]);
    }

    /// `xids`: what was asked about, for an answer that comes at once.
    fn step_with(&mut self, input: Input<u64>, xids: &[Xid]) {
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

    fn take(&mut self, output: Output<u64>, xids: &[Xid]) {
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

    fn submit(&mut self, write: LogWrite) {
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

    fn commit_needs_all_votes(&self, decision: &DecisionRecord) {
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

    fn sent(&mut self, session: SessionId, message: ToParticipant) {
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
    fn send_fate(&mut self, session: SessionId, xid: &Xid) {
        let message = match prepared_fate(&self.look_up(xid.gtrid), false, &xid.bqual) {
            PreparedFate::Commit => ToParticipant::Commit(xid.clone()),
            PreparedFate::Rollback => ToParticipant::Rollback(xid.clone()),
            PreparedFate::Unknown(_) => return,
        };
        self.flights.push(Flight::ToParticipant(session, message));
    }

    fn compare(&mut self, xid: &Xid, applied: Applied) {
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

    fn record_heuristic(&mut self, xid: &Xid, applied: Applied) {
        self.note("late heuristic");
        let end = late_end(&self.look_up(xid.gtrid), xid, applied, 1);
        self.ends.insert(xid.gtrid, end);
    }

    fn answered(&mut self, client: u64, answer: Answer, xids: &[Xid]) {
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

    fn prepared_told(&mut self, session: SessionId, xid: &Xid, answer: Option<PreparedAnswer>) {
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
    fn told(&mut self, gtrid: Gtrid, outcome: Option<Outcome>) {
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

    fn touched_by_hand(&self, gtrid: Gtrid) -> bool {
        self.by_hand.iter().any(|xid| xid.gtrid == gtrid)
    }

    /// No branch has committed without a decision that names it, and none that a commit names has rolled back, but by hand.
    fn agreement(&self) {
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

    // ---- the participants ----

    fn reply(&mut self, session: SessionId, message: FromParticipant) {
        self.flights.push(Flight::ToShard(session, message));
    }

    fn acknowledge(&mut self, session: SessionId, xid: Xid, applied: Applied) {
        self.reply(session, FromParticipant::Acknowledge(xid, Acknowledgement::Ended(applied)));
    }

    fn give_to_participant(&mut self, session: SessionId, message: ToParticipant, how: Choice) {
        match message {
            ToParticipant::Enlisted(..) | ToParticipant::Refused(..) => {}
            ToParticipant::EnlistRefused(xid, _) => {
                if self.branches.get(&xid) == Some(&Local::Open(session)) {
                    self.branches.remove(&xid);
                }
            }
            ToParticipant::Prepare(xid, _) => self.prepare(session, xid, how),
            ToParticipant::Commit(xid) => self.apply(session, xid, Some(Local::Prepared), how),
            ToParticipant::CommitOnePhase(xid, _) => {
                // Its own open transaction, or else what was prepared.
                let open = self.branches.get(&xid) == Some(&Local::Open(session));
                let from = if open { Local::Open(session) } else { Local::Prepared };
                self.apply(session, xid, Some(from), how);
            }
            ToParticipant::Rollback(xid) => self.apply(session, xid, None, how),
        }
    }

    fn prepare(&mut self, session: SessionId, xid: Xid, how: Choice) {
        let open = Some(&Local::Open(session));
        let vote = match self.branches.get(&xid) {
            Some(Local::Prepared) => Vote::Commit,
            Some(Local::ReadOnly) => Vote::ReadOnly,
            local if local == open => pick(&votes(), if self.healing { 0 } else { how }).unwrap().clone(),
            // Committed by hand before it could vote again, or gone.
            Some(Local::Open(_) | Local::Committed | Local::RolledBack) | None => return,
        };
        match vote {
            Vote::Commit => self.branches.insert(xid.clone(), Local::Prepared),
            Vote::ReadOnly => self.branches.insert(xid.clone(), Local::ReadOnly),
            Vote::Rollback(_) => self.branches.remove(&xid),
        };
        self.reply(session, FromParticipant::Vote(xid, vote));
    }

    /// Commits what stands at `from`, or rolls back; tells what became of it if it is over; and puts a fence in if there is
    /// nothing (P15).
    fn apply(&mut self, session: SessionId, xid: Xid, from: Option<Local>, how: Choice) {
        if how % 4 == 3 && !self.healing {
            let why = "the database is restarting".to_owned();
            self.reply(session, FromParticipant::Acknowledge(xid, Acknowledgement::NotYet(why)));
            return;
        }
        let local = self.branches.get(&xid).copied();
        let commits = local == Some(Local::Committed) || (from.is_some() && local == from);
        let (local, applied) = if commits {
            (Local::Committed, Applied::Committed)
        } else {
            (Local::RolledBack, Applied::RolledBack)
        };
        self.branches.insert(xid.clone(), local);
        self.acknowledge(session, xid, applied);
    }

    // ---- the end of all faults ----

    /// Stops all faults, and asserts that everything ends.
    pub(super) fn heal(&mut self) {
        self.healing = true;
        for number in 0..RESOURCE_MANAGERS.len() {
            self.attach(Choice::try_from(number).unwrap());
        }
        for _ in 0..100 {
            while !self.flights.is_empty() || !self.writing.is_empty() {
                while !self.flights.is_empty() {
                    let first = self.flights.remove(0);
                    self.arrive(first, 0);
                }
                self.answer_write(0, 7);
            }
            self.write_lazily();
            for session in self.sessions.keys().copied().collect::<Vec<_>>() {
                self.list(session);
            }
            if self.flights.is_empty() && self.shard.next_timer().is_none() {
                return self.all_has_ended();
            }
            self.wait(Duration::from_secs(5));
        }
        panic!("termination_after_healing: {:?}", self.shard);
    }

    fn all_has_ended(&mut self) {
        let reply = self.ask(Asked::Summary);
        self.step(Input::Summarize { reply });
        assert!(self.shard.is_idle(), "nothing is left of what has ended: {:?}", self.shard);
        assert!(self.asked.is_empty(), "everyone was answered: {:?}", self.asked);
        for (xid, local) in &self.branches {
            assert_ne!(*local, Local::Prepared, "no_orphan_left: {xid}");
        }
        for decision in self.decisions.values() {
            assert!(self.ends.contains_key(&decision.gtrid), "every decision has its end: {decision:?}");
        }
        self.reconcile();
        self.heuristics_recorded();
    }

    /// Participants show their evidence before they prune it (P19).
    fn reconcile(&mut self) {
        for (xid, local) in self.branches.clone() {
            match local {
                Local::Committed => self.compare(&xid, Applied::Committed),
                Local::RolledBack => self.compare(&xid, Applied::RolledBack),
                Local::Open(_) | Local::Prepared | Local::ReadOnly => {}
            }
        }
    }

    /// `heuristics_recorded`: what was done by hand against the decision is on record.
    fn heuristics_recorded(&self) {
        for xid in &self.by_hand {
            let look_up = self.look_up(xid.gtrid);
            let committed = self.branches.get(xid) == Some(&Local::Committed);
            let one_phase = self.decided(xid.gtrid, DecisionKind::OnePhaseIntent).is_some();
            let end = look_up.recorded.end().map(|end| end.outcome);
            assert!(
                committed == look_up.recorded.names(&xid.bqual)
                    || one_phase
                    || matches!(end, Some(Outcome::Heuristic(_))),
                "heuristics_recorded: {xid} was ended by hand against the decision: {look_up:?}"
            );
        }
    }
}

fn pick<T>(from: &[T], choice: Choice) -> Option<&T> {
    if from.is_empty() { None } else { from.get(usize::from(choice) % from.len()) }
}

/// A branch of the same resource manager that never was.
fn nobodys(xid: &Xid) -> Bqual {
    Bqual::new(&xid.bqual.resource_manager(), u64::MAX)
}

fn votes() -> [Vote; 12] {
    std::array::from_fn(|number| match number {
        3 | 7 => Vote::ReadOnly,
        11 => Vote::Rollback("out of stock".into()),
        _ => Vote::Commit,
    })
}

fn applied() -> [Applied; 3] {
    [Applied::Committed, Applied::RolledBack, Applied::Hazard]
}

fn gtrid_of(write: &LogWrite) -> Gtrid {
    match write {
        LogWrite::ForceDecision(decision) => decision.gtrid,
        LogWrite::ForceEnd(end) | LogWrite::LazyEnd(end) => end.gtrid,
    }
}
