//! The tokio shell around the shards: feeds events in, carries effects out, decides nothing.
//!
//! One task per shard. Three kinds of channel end there, and their limits keep it from ever waiting in a circle:
//! - *mail* (bounded): clients, sessions and recovery wait when a shard has more than it can take;
//! - *log answers* (unbounded, but each live transaction has at most one write under way): the log's writer must never wait for
//!   a shard that waits for the log;
//! - *outboxes* (bounded, never waited for): a participant that does not read loses its session, nobody else's.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_proto::{ResourceManagerName, TraceParent, Xid};
use tokio::sync::{mpsc, oneshot};

use super::clock::Clock;
use super::delivery::SessionId;
use super::input::{Answer, Input, LogAnswer, OutcomeAnswer, Output, ToParticipant};
use super::shard::Shard;
use crate::decision_log::AppendError;
use crate::decision_log::group_commit::{LogDone, LogWriter};
use crate::protocol::event::Applied;
use crate::sessions::outbox::Outbox;
use crate::telemetry::Onlookers;
use crate::telemetry::traces::OpenSpan;

/// Where a shard's answer goes.
pub type ReplyTo = oneshot::Sender<Answer>;

/// Inputs that may wait in front of a shard before its senders do.
const MAILBOX: usize = 4096;
/// Inputs that a shard takes before it looks at the log's answers again.
const TAKE: usize = 256;

/// What reaches a shard's task.
#[derive(Debug)]
pub enum Mail {
    /// For the shard.
    Input(Input<ReplyTo>),
    /// The same, of a transaction that begins, and its span.
    Begins(Input<ReplyTo>, OpenSpan),
    /// A session attached; this is where it is written to.
    Attached(SessionId, ResourceManagerName, Outbox),
}

/// A branch that ended so, of a transaction that is not live: to be compared with the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StrayAcknowledgement {
    /// Which branch.
    pub xid: Xid,
    /// How it ended.
    pub applied: Applied,
}

/// One shard's task and what it writes to.
pub struct ShardTask {
    number: usize,
    shard: Shard<ReplyTo>,
    clock: Clock,
    mail: mpsc::Receiver<Mail>,
    log_answers: mpsc::UnboundedReceiver<Vec<LogDone>>,
    log: LogWriter,
    strays: mpsc::Sender<StrayAcknowledgement>,
    outboxes: BTreeMap<SessionId, Outbox>,
    onlookers: Onlookers,
}

/// The sending ends of one shard's channels.
#[derive(Debug, Clone)]
pub struct ShardHandle {
    mail: mpsc::Sender<Mail>,
}

/// The engine is gone: the process is ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator is shutting down")]
pub struct Stopped;

impl ShardHandle {
    /// Waits for room and hands it over.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn send(&self, mail: Mail) -> Result<(), Stopped> {
        self.mail.send(mail).await.map_err(|_closed| Stopped)
    }

    /// Hands an input over and waits for its answer.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn ask(&self, input: impl FnOnce(ReplyTo) -> Input<ReplyTo>) -> Result<Answer, Stopped> {
        self.ask_by(|reply| Mail::Input(input(reply))).await
    }

    /// Hands mail over that asks for an answer, and waits for it.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn ask_by(&self, mail: impl FnOnce(ReplyTo) -> Mail) -> Result<Answer, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.send(mail(reply)).await?;
        answer.await.map_err(|_dropped| Stopped)
    }
}

impl ShardTask {
    /// The task of shard `number`, yet to [`ShardTask::run`], and how to reach it.
    #[must_use]
    pub fn new(
        number: usize,
        shard: Shard<ReplyTo>,
        clock: Clock,
        log: LogWriter,
        log_answers: mpsc::UnboundedReceiver<Vec<LogDone>>,
        strays: mpsc::Sender<StrayAcknowledgement>,
        onlookers: Onlookers,
    ) -> (Self, ShardHandle) {
        let (sender, mail) = mpsc::channel(MAILBOX);
        let outboxes = BTreeMap::new();
        let task = Self { number, shard, clock, mail, log_answers, log, strays, outboxes, onlookers };
        (task, ShardHandle { mail: sender })
    }

    /// Runs until every [`ShardHandle`] is dropped.
    pub async fn run(mut self) {
        let mut taken = Vec::with_capacity(TAKE);
        loop {
            let timer = self.shard.next_timer().map(|at| self.clock.instant(at));
            tokio::select! {
                biased;
                Some(answers) = self.log_answers.recv() => {
                    for done in answers {
                        if let Some(traces) = &mut self.onlookers.traces {
                            traces.log_done(&done);
                        }
                        let (gtrid, answer) = (done.gtrid, log_answer(done));
                        self.step(Input::Log { gtrid, answer }).await;
                    }
                }
                count = self.mail.recv_many(&mut taken, TAKE) => {
                    if count == 0 {
                        return;
                    }
                    for mail in taken.drain(..) {
                        self.take(mail).await;
                    }
                }
                () = sleep_until(timer) => self.step(Input::Tick).await,
            }
        }
    }

    async fn take(&mut self, mail: Mail) {
        match mail {
            Mail::Attached(session, resource_manager, outbox) => {
                self.outboxes.insert(session, outbox);
                self.step(Input::Attached { session, resource_manager }).await;
            }
            Mail::Input(Input::Detached { session }) => {
                self.outboxes.remove(&session);
                self.step(Input::Detached { session }).await;
            }
            Mail::Begins(input, span) => {
                if let Some(traces) = &mut self.onlookers.traces {
                    traces.begins(span);
                }
                self.step(input).await;
            }
            Mail::Input(input) => self.step(input).await,
        }
    }

    async fn step(&mut self, input: Input<ReplyTo>) {
        let now = self.clock.now();
        self.onlookers.goes_in(&input, now.monotonic);
        for output in self.shard.step(input, now) {
            let trace = self.onlookers.comes_out(&output, now.monotonic);
            self.carry_out(output, trace).await;
        }
    }

    async fn carry_out(&mut self, output: Output<ReplyTo>, trace: Option<TraceParent>) {
        match output {
            Output::Log(write) => {
                // The writer stops only when the log is broken, and then the process ends. Nothing may follow from this write.
                if self.log.submit(self.number, write).await.is_err() {
                    std::future::pending().await
                }
            }
            Output::Send(session, message) => {
                crash_before_sending(&message);
                if let Some(outbox) = self.outboxes.get(&session) {
                    outbox.send(message, trace);
                }
            }
            Output::Reply(reply, answer) => {
                crash_before_answering(&answer);
                // Whoever asked may have gone; the answer stays true, and they can ask again.
                let _gone = reply.send(answer);
            }
            Output::StrayVote(session, xid) => {
                if let Some(outbox) = self.outboxes.get(&session) {
                    outbox.inquire(xid);
                }
            }
            Output::StrayAcknowledgement(xid, applied) => {
                // The receiver ends only with the process.
                let _stopped = self.strays.send(StrayAcknowledgement { xid, applied }).await;
            }
        }
    }
}

/// Crash points: what is to be said is decided, and durable where it has to be, and nobody has heard it.
fn crash_before_sending(message: &ToParticipant) {
    match message {
        ToParticipant::Prepare(..) => fail::fail_point!("coordinator-before-prepare"),
        ToParticipant::Commit(_) | ToParticipant::Rollback(_) => {
            fail::fail_point!("coordinator-before-decide")
        }
        ToParticipant::CommitOnePhase(..) => fail::fail_point!("coordinator-before-commit-one-phase"),
        ToParticipant::Enlisted(..) | ToParticipant::EnlistRefused(..) | ToParticipant::Refused(..) => {}
    }
}

/// The same for clients.
fn crash_before_answering(answer: &Answer) {
    match answer {
        Answer::Outcome(OutcomeAnswer { outcome: Some(_), .. }) => {
            fail::fail_point!("coordinator-before-answer");
        }
        Answer::Outcome(OutcomeAnswer { outcome: None, .. })
        | Answer::Begun(_)
        | Answer::Full
        | Answer::NotLive
        | Answer::Prepared(_)
        | Answer::Listing(_)
        | Answer::Acted(_)
        | Answer::Summary(_) => {}
    }
}

fn log_answer(done: LogDone) -> LogAnswer {
    match done.result {
        Ok(_position) => LogAnswer::Forced,
        Err(AppendError::Refused(why)) => LogAnswer::Refused(why),
        Err(AppendError::Unknown(why) | AppendError::Sealed(why)) => LogAnswer::Unknown(why),
    }
}

/// Sleeps until then, or for ever.
async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// All shards, for whoever has to reach one of them or each.
#[derive(Debug, Clone)]
pub struct Shards(Arc<[ShardHandle]>);

impl Shards {
    /// In the order of their numbers.
    #[must_use]
    pub fn new(handles: Vec<ShardHandle>) -> Self {
        assert!(!handles.is_empty(), "there is at least one shard");
        Self(handles.into())
    }

    /// The one that this transaction lives in.
    #[must_use]
    pub fn of(&self, gtrid: &lockstep_proto::Gtrid) -> &ShardHandle {
        &self.0[super::shard::shard_of(gtrid, self.0.len())]
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &ShardHandle> {
        self.0.iter()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }
}
