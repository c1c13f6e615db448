//! What waits to be written to one participant.

use lockstep_proto::{TraceParent, Xid, limits, v1};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::decision_log::group_commit::LogWriter;
use crate::engine::input::{Refusal, ToParticipant};
use crate::protocol::event::EnlistRefusal;
use crate::telemetry::metrics::StreamMetrics;

/// Messages that may wait for a participant to read them. Full means that it does not: a delivery window of every shard and
/// a prepare for each of tens of thousands of transactions fit.
const OUTBOX: usize = 65_536;
/// Votes of transactions that are not live, waiting for the log to be asked. Beyond that they are left to the participant's next
/// listing.
const INQUIRIES: usize = 1024;

/// One message on its way out.
#[derive(Debug, Clone)]
pub enum Outgoing {
    /// From a shard, and the span that it is part of.
    Shard(ToParticipant, Option<TraceParent>),
    /// An answer to a report or a reconciliation, or a drain: complete but for the log position.
    Answer(v1::coordinator_message::Kind),
}

/// The sending end: cheap to clone, never waits.
#[derive(Debug, Clone)]
pub struct Outbox {
    messages: mpsc::Sender<Outgoing>,
    inquiries: mpsc::Sender<Xid>,
    overflow: CancellationToken,
}

/// The receiving ends.
#[derive(Debug)]
pub struct OutboxReceivers {
    /// To be written, in order.
    pub messages: mpsc::Receiver<Outgoing>,
    /// To be asked of the log.
    pub inquiries: mpsc::Receiver<Xid>,
}

impl Outbox {
    /// A new one. `overflow` is cancelled when the participant does not read.
    #[must_use]
    pub fn new(overflow: CancellationToken) -> (Self, OutboxReceivers) {
        let (messages, receiver) = mpsc::channel(OUTBOX);
        let (inquiries, inquiry_receiver) = mpsc::channel(INQUIRIES);
        let receivers = OutboxReceivers { messages: receiver, inquiries: inquiry_receiver };
        (Self { messages, inquiries, overflow }, receivers)
    }

    /// Puts a shard's message in, or ends the session: a message that is left out would be a lost prepare or decision, and a
    /// session's end is what recovers those.
    pub fn send(&self, message: ToParticipant, trace: Option<TraceParent>) {
        self.put(Outgoing::Shard(message, trace));
    }

    /// Puts an answer in, or ends the session.
    pub fn answer(&self, kind: v1::coordinator_message::Kind) {
        self.put(Outgoing::Answer(kind));
    }

    fn put(&self, message: Outgoing) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.messages.try_send(message) {
            self.overflow.cancel();
        }
    }

    /// Has the log asked about a branch that voted commit, if there is room.
    pub fn inquire(&self, xid: Xid) {
        // Left out, it comes again with the participant's next listing of its prepared branches.
        let _full = self.inquiries.try_send(xid);
    }
}

/// The frames of one session: each carries everything that was waiting when it was made, and the newest log position (P8).
pub fn frames(
    mut messages: mpsc::Receiver<Outgoing>,
    log: LogWriter,
    metrics: StreamMetrics,
) -> impl futures::Stream<Item = v1::CoordinatorFrame> {
    let mut waiting = Vec::with_capacity(limits::MAX_FRAME_MESSAGES);
    futures::stream::poll_fn(move |context| {
        messages.poll_recv_many(context, &mut waiting, limits::MAX_FRAME_MESSAGES).map(|count| {
            if count == 0 {
                return None;
            }
            metrics.sent(count);
            let position = v1::LogPosition::from(&log.position());
            let messages = waiting.drain(..).map(|message| to_wire(message, &position)).collect();
            Some(v1::CoordinatorFrame { messages })
        })
    })
}

fn to_wire(message: Outgoing, position: &v1::LogPosition) -> v1::CoordinatorMessage {
    use v1::coordinator_message::Kind;
    let mut traceparent = String::new();
    let kind = match message {
        Outgoing::Answer(Kind::ReportAnswer(mut answer)) => {
            answer.position = Some(position.clone());
            Kind::ReportAnswer(answer)
        }
        Outgoing::Answer(kind) => kind,
        Outgoing::Shard(message, trace) => {
            traceparent = trace.map_or(traceparent, |trace| trace.to_string());
            shard_message(message, position)
        }
    };
    v1::CoordinatorMessage { kind: Some(kind), traceparent }
}

fn shard_message(message: ToParticipant, position: &v1::LogPosition) -> v1::coordinator_message::Kind {
    use v1::coordinator_message::Kind;
    let position = Some(position.clone());
    match message {
        ToParticipant::Enlisted(xid, remaining) => {
            Kind::Enlisted(v1::Enlisted { xid: Some((&xid).into()), remaining_ms: millis(remaining) })
        }
        ToParticipant::EnlistRefused(xid, why) => {
            let (reason, detail) = refusal(why);
            let (xid, detail) = (Some((&xid).into()), detail.to_owned());
            Kind::EnlistRefused(v1::EnlistRefused { xid, reason: reason.into(), detail })
        }
        ToParticipant::Prepare(xid, remaining) => {
            Kind::Prepare(v1::Prepare { xid: Some((&xid).into()), position, remaining_ms: millis(remaining) })
        }
        ToParticipant::Commit(xid) => {
            let decision = v1::Decision::Commit.into();
            Kind::Decide(v1::Decide { xid: Some((&xid).into()), decision, position })
        }
        ToParticipant::Rollback(xid) => {
            let decision = v1::Decision::Rollback.into();
            Kind::Decide(v1::Decide { xid: Some((&xid).into()), decision, position })
        }
        ToParticipant::CommitOnePhase(xid, remaining) => Kind::CommitOnePhase(v1::CommitOnePhase {
            xid: Some((&xid).into()),
            position,
            remaining_ms: millis(remaining),
        }),
        ToParticipant::Refused(xid, detail) => {
            let detail = limits::cut(&detail, limits::MAX_DETAIL_BYTES).to_owned();
            Kind::Refused(v1::Refused { xid: Some((&xid).into()), detail })
        }
    }
}

fn refusal(why: Refusal) -> (v1::EnlistRefusal, &'static str) {
    match why {
        Refusal::NotActive => (
            v1::EnlistRefusal::NotActive,
            "no such transaction is running here: it ended, its deadline passed, or its coordinator was restarted",
        ),
        Refusal::ForeignBranch => {
            (v1::EnlistRefusal::BadBranch, "the branch does not name the resource manager of this session")
        }
        Refusal::ByTransaction(why) => match why {
            EnlistRefusal::CommitRequested => (
                v1::EnlistRefusal::CommitRequested,
                "commit was requested already: enlisting ends there, so every service has to answer before the commit",
            ),
            EnlistRefusal::RollbackOnly => {
                (v1::EnlistRefusal::RollbackOnly, "the transaction is being rolled back")
            }
            EnlistRefusal::TooManyBranches => {
                (v1::EnlistRefusal::TooManyBranches, "a transaction has at most 256 branches")
            }
            EnlistRefusal::DuplicateBranch => {
                (v1::EnlistRefusal::BadBranch, "a branch of this name is enlisted already")
            }
            EnlistRefusal::Ended => (v1::EnlistRefusal::NotActive, "the transaction has ended"),
        },
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
