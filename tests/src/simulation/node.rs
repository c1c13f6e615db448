//! The coordinator's process: the shell around the real shards, as `engine/shell.rs`, `sessions/` and `rpc/` are it live. It carries
//! effects out in their order, and may be killed between any two of them.

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep::branch::Decision;
use lockstep::branch::Refusal as ToldRefusal;
use lockstep::session::message::{FromCoordinator, Hello, ToCoordinator, Welcome};
use lockstep::session::{Closing, message};
use lockstep_coordinator::decision_log::KnownResourceManager;
use lockstep_coordinator::engine::delivery::SessionId;
use lockstep_coordinator::engine::input::{
    Acknowledgement, Answer, Input, Now, Output, Refusal, Summary, ToParticipant,
};
use lockstep_coordinator::engine::shard::{Shard, ShardConfig, shard_of};
use lockstep_coordinator::protocol::event::{Applied, EnlistRefusal, Vote};
use lockstep_coordinator::sessions::attach;
use lockstep_proto::limits::PROTOCOL_VERSION;
use lockstep_proto::{Gtrid, LogPosition, ResourceManagerName};

use super::faults::Kind;
use super::happening::Happening;
use super::network::number;
use super::node_log::Writer;
use super::node_questions::Question;
use super::queue::Time;
use super::trace::say;
use super::world::{MILLI, World};

/// Where a shard's answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyTo {
    /// To an attempt of a client.
    Client(u32, u32),
    /// To the shell itself, which waits for it.
    Here,
    /// An operator, whose request is not followed up.
    Nobody,
}

/// One life of the coordinator.
#[derive(Debug)]
pub struct Node {
    /// Which one.
    pub life: u32,
    started: Time,
    /// The newest forced batch, as it is told to participants.
    pub position: LogPosition,
    /// The transactions.
    pub shards: Vec<Shard<ReplyTo>>,
    /// When each shard wants to be woken, and the first of these.
    pub wakes: Vec<Time>,
    /// See `wakes`.
    pub wake: Time,
    /// What stands between the shards and the log.
    pub writer: Writer,
    /// The sessions, and what was live when each one's last complete listing was noted (P7).
    pub sessions: BTreeMap<usize, Option<Gtrid>>,
    /// Resource managers whose floor the log has still to be told.
    pub floors: BTreeMap<ResourceManagerName, Gtrid>,
    /// The horizon, as admission knows it.
    pub horizon_ms: u64,
    /// The last answer to the shell itself.
    here: Option<Answer>,
}

impl World {
    pub(super) fn is_alive(&self, life: u32) -> bool {
        self.node.as_ref().is_some_and(|node| node.life == life)
    }

    /// Opens the log under a new epoch, and gives every unfinished decision to its shard, before anyone is served.
    pub(super) fn node_starts(&mut self) {
        if self.node.is_some() {
            return;
        }
        self.lives += 1;
        let mut incarnation = [0; 16];
        incarnation[..8].copy_from_slice(&self.rng.bits().to_be_bytes());
        let position = self.log.open(incarnation);
        say!(self, None, "coordinator starts, epoch {}", position.epoch);
        let config = ShardConfig {
            epoch: position.epoch,
            max_live: self.style.max_live,
            apply_wait: Duration::from_micros(self.style.apply_wait),
            begin_from_ms: self.log.newest_floor_ms().max(self.log.horizon_ms + 1),
        };
        self.node = Some(Node {
            life: self.lives,
            started: self.now,
            position,
            shards: (0..self.style.shards).map(|_| Shard::new(config)).collect(),
            wakes: vec![Time::MAX; self.style.shards],
            wake: Time::MAX,
            writer: Writer::default(),
            sessions: BTreeMap::new(),
            floors: BTreeMap::new(),
            horizon_ms: self.log.horizon_ms,
            here: None,
        });
        for record in self.log.unfinished() {
            self.reached.recovered(record.kind);
            let shard = self.shard_of(&record.gtrid);
            self.give(shard, Input::Recover(record));
        }
        let every = (self.style.retention / 10).max(100 * MILLI);
        self.plan(every, Happening::Prunes(self.lives));
    }

    pub(super) fn shard_of(&self, gtrid: &Gtrid) -> usize {
        shard_of(gtrid, self.style.shards)
    }

    /// Kills the coordinator. `power`: with its machine, so that what was not synced is gone.
    pub(super) fn kill_node(&mut self, power: bool) {
        let Some(node) = self.node.take() else { return };
        say!(self, None, "coordinator {}", if power { "loses power" } else { "is killed" });
        self.reached.shards_seen(&node.shards);
        self.abandon_write(node.writer, power);
        for link in node.sessions.into_keys() {
            self.links[link].up_at_node = false;
            self.end_soon_at_participant(link);
        }
        let down = self.rng.between(5 * MILLI, 200 * MILLI);
        self.plan(down, Happening::NodeStarts);
    }

    // ---- the shards ----

    /// Gives a shard an input, and carries out what it asks for.
    pub(super) fn give(&mut self, shard: usize, input: Input<ReplyTo>) {
        let unix_ms = self.unix_ms();
        let Some(node) = &mut self.node else { return };
        let now = Now { monotonic: Duration::from_micros(self.now - node.started), unix_ms };
        let outputs = node.shards[shard].step(input, now);
        let wake = node.shards[shard].next_timer().map_or(Time::MAX, |at| micros_up(at) + node.started);
        node.wakes[shard] = wake;
        node.wake = node.wakes.iter().copied().min().unwrap_or(Time::MAX);
        for output in outputs {
            if self.strikes_rarely(Kind::CoordinatorCrash) {
                return self.kill_node(false);
            }
            self.carry_out(shard, output);
            if self.node.is_none() {
                return;
            }
        }
    }

    /// Asks a shard something that it answers at once.
    pub(super) fn ask(&mut self, shard: usize, input: Input<ReplyTo>) -> Option<Answer> {
        self.give(shard, input);
        self.node.as_mut()?.here.take()
    }

    /// Sums over all shards.
    pub(super) fn summary(&mut self) -> Option<Summary> {
        let mut sum = Summary { begins_from_ms: u64::MAX, ..Summary::default() };
        for shard in 0..self.style.shards {
            let Some(Answer::Summary(part)) = self.ask(shard, Input::Summarize { reply: ReplyTo::Here })
            else {
                return None;
            };
            sum.live += part.live;
            sum.oldest = [sum.oldest, part.oldest].into_iter().flatten().min();
            sum.begins_from_ms = sum.begins_from_ms.min(part.begins_from_ms);
        }
        Some(sum)
    }

    /// No live transaction is older than this, and none that begins later will be.
    pub(super) fn live_floor(&mut self) -> Option<Gtrid> {
        let sum = self.summary()?;
        Some(sum.floor(self.log.position().epoch))
    }

    fn carry_out(&mut self, shard: usize, output: Output<ReplyTo>) {
        match output {
            Output::Log(write) => self.submit(shard, write),
            Output::Send(session, message) => self.send_shard_message(session, message),
            Output::Reply(ReplyTo::Client(client, attempt), answer) => {
                self.answer_client(client, attempt, answer);
            }
            Output::Reply(ReplyTo::Here, answer) => {
                if let Some(node) = &mut self.node {
                    node.here = Some(answer);
                }
            }
            Output::Reply(ReplyTo::Nobody, _) => {}
            Output::StrayVote(session, xid) => {
                self.reached.note("stray vote");
                self.report_arrives(session_link(session), vec![xid]);
            }
            Output::StrayAcknowledgement(xid, applied) => {
                self.reached.note("stray acknowledgement");
                self.look_up_later(Question::Stray(xid, applied));
            }
        }
    }

    fn send_shard_message(&mut self, session: SessionId, message: ToParticipant) {
        let Some(node) = &self.node else { return };
        let link = session_link(session);
        let position = node.position;
        self.before_sending(&message);
        if !self.links[link].up_at_node {
            return;
        }
        let message = told(message, position);
        self.send_down(link, message);
    }

    // ---- sessions ----

    pub(super) fn hello_arrives(&mut self, link: usize, hello: Hello) {
        if self.node.is_none()
            || self.links[link].life != self.lives
            || self.is_cut(self.links[link].instance)
        {
            return self.end_soon_at_participant(link);
        }
        let known = self.log.known(&hello.name);
        let hello = attach::Hello {
            resource_manager: hello.name,
            identity: hello.identity,
            instance: hello.instance,
            cluster: hello.cluster,
            seen: hello.seen,
            location: hello.location,
            timeline: hello.timeline,
            clock_ms: self.unix_ms(),
        };
        match attach::compare(&hello, known) {
            Err(why) => {
                self.reached.note("hello refused");
                let latency = self.latency();
                self.plan(latency, Happening::EndsAtParticipant(link, Closing::Broken(why.to_string())));
            }
            Ok(next) => self.admit(link, &hello, next),
        }
    }

    fn admit(&mut self, link: usize, hello: &attach::Hello, next: KnownResourceManager) {
        if self.log.known(&next.name) != Some(&next) {
            self.log.remember(next);
        }
        if let Some(seen) = hello.seen.iter().find(|seen| !self.log.reaches(**seen)) {
            let what = format!("a participant has seen {seen:?}, and the log has not come so far");
            return self.violate("durable_before_sent", None, what);
        }
        let Some(node) = &mut self.node else { return };
        let instance = self.links[link].instance;
        let links = &self.links;
        let own = |earlier: &&usize| links[**earlier].instance == instance;
        let earlier: Vec<usize> = node.sessions.keys().filter(own).copied().collect();
        node.sessions.insert(link, None);
        let position = node.position;
        self.links[link].up_at_node = true;
        for earlier in earlier {
            self.plan(0, Happening::EndsAtNode(earlier));
        }
        say!(self, None, "instance {instance} attaches over link {link}");
        let welcome = Welcome {
            protocol_version: PROTOCOL_VERSION,
            cluster: self.log.cluster,
            position,
            retention: Duration::from_micros(self.style.retention),
            sealed_below: position.epoch.get(),
            newest_epoch: position.epoch.get(),
            report_interval: Duration::from_micros(self.style.report_interval),
            // All earlier ones are sealed when one is taken.
            settled: hello
                .seen
                .iter()
                .map(|seen| seen.epoch)
                .filter(|epoch| *epoch < position.epoch)
                .collect(),
        };
        self.send_down(link, FromCoordinator::Welcome(welcome));
        for shard in 0..self.style.shards {
            let resource_manager = hello.resource_manager.clone();
            self.give(shard, Input::Attached { session: session(link), resource_manager });
        }
    }

    pub(super) fn ends_at_node(&mut self, link: usize) {
        if !std::mem::replace(&mut self.links[link].up_at_node, false) {
            return;
        }
        say!(self, None, "link {link} is over at the coordinator");
        if let Some(node) = &mut self.node {
            node.sessions.remove(&link);
        }
        self.end_soon_at_participant(link);
        for shard in 0..self.style.shards {
            self.give(shard, Input::Detached { session: session(link) });
        }
    }

    pub(super) fn heard_by_node(&mut self, link: usize, message: ToCoordinator) {
        say!(self, about(&message), "coordinator hears over link {link}: {message:?}");
        let session = session(link);
        match message {
            ToCoordinator::Hello(_) => unreachable!("a hello opens a stream"),
            ToCoordinator::Enlist(xid) => {
                self.give(self.shard_of(&xid.gtrid), Input::Enlist { session, xid })
            }
            ToCoordinator::Vote(xid, vote) => {
                let vote = heard_vote(vote);
                self.give(self.shard_of(&xid.gtrid), Input::Vote { session, xid, vote });
            }
            ToCoordinator::Acknowledge(xid, applied) => {
                let acknowledgement = heard(applied);
                self.give(self.shard_of(&xid.gtrid), Input::Acknowledge { session, xid, acknowledgement });
            }
            ToCoordinator::Report { prepared, oldest_held, complete, .. } => {
                if complete {
                    self.note_floor(link, oldest_held);
                }
                self.report_arrives(link, prepared);
            }
            ToCoordinator::Reconcile(rows) => self.reconcile_arrives(link, rows),
            // Nobody looks in a simulation.
            ToCoordinator::Inspection(..) => {}
        }
    }
}

fn about(message: &ToCoordinator) -> Option<u32> {
    match message {
        ToCoordinator::Enlist(xid) | ToCoordinator::Vote(xid, _) | ToCoordinator::Acknowledge(xid, _) => {
            number(Some(xid))
        }
        ToCoordinator::Hello(_)
        | ToCoordinator::Report { .. }
        | ToCoordinator::Reconcile(_)
        | ToCoordinator::Inspection(..) => None,
    }
}

pub(super) const fn session(link: usize) -> SessionId {
    SessionId(link as u64)
}

pub(super) fn session_link(session: SessionId) -> usize {
    usize::try_from(session.0).expect("a session's number is its link's")
}

/// Rounded up: a machine that is woken too early would be woken again at once.
pub(super) fn micros_up(duration: Duration) -> Time {
    u64::try_from(duration.as_nanos().div_ceil(1000)).unwrap_or(Time::MAX / 2)
}

fn heard_vote(vote: lockstep::branch::Vote) -> Vote {
    use lockstep::branch::Vote as Said;
    match vote {
        Said::Commit => Vote::Commit,
        Said::Rollback(why) => Vote::Rollback(why),
        Said::ReadOnly => Vote::ReadOnly,
        Said::Hazard(why) => Vote::Hazard(why),
    }
}

fn heard(applied: lockstep::branch::Applied) -> Acknowledgement {
    use lockstep::branch::Applied as Said;
    match applied {
        Said::Committed => Acknowledgement::Ended(Applied::Committed),
        Said::RolledBack => Acknowledgement::Ended(Applied::RolledBack),
        Said::Hazard => Acknowledgement::Ended(Applied::Hazard),
        Said::NotYet(why) => Acknowledgement::NotYet(why),
    }
}

/// A shard's message as the participant reads it.
fn told(told: ToParticipant, position: LogPosition) -> FromCoordinator {
    match told {
        ToParticipant::Enlisted(xid, remaining) => FromCoordinator::Enlisted(xid, remaining),
        ToParticipant::EnlistRefused(xid, why) => FromCoordinator::EnlistRefused(xid, refusal(why)),
        ToParticipant::Prepare(xid, _) => FromCoordinator::Prepare(xid, position),
        ToParticipant::Commit(xid) => FromCoordinator::Decide(xid, Decision::Commit, position),
        ToParticipant::Rollback(xid) => FromCoordinator::Decide(xid, Decision::Rollback, position),
        ToParticipant::CommitOnePhase(xid, _) => FromCoordinator::CommitOnePhase(xid, position),
        ToParticipant::Refused(xid, why) => FromCoordinator::Refused(xid, why),
    }
}

fn refusal(why: Refusal) -> ToldRefusal {
    let rollback_only = why == Refusal::ByTransaction(EnlistRefusal::RollbackOnly);
    ToldRefusal { rollback_only, detail: String::new() }
}

/// An answer of the engine as the participant reads it.
pub(super) fn told_fate(
    answer: lockstep_coordinator::engine::inquiry::BranchAnswer,
) -> message::BranchAnswer {
    use lockstep_coordinator::engine::inquiry::BranchAnswer as Said;
    match answer {
        Said::Commit => message::BranchAnswer::Commit,
        Said::Rollback => message::BranchAnswer::Rollback,
        Said::StillRunning => message::BranchAnswer::StillRunning,
        Said::Unknown(why) => message::BranchAnswer::Unknown(why.to_owned()),
    }
}
