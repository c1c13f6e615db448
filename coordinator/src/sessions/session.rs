//! One stream's life, from its welcome to its end.

use std::sync::Arc;
use std::time::Duration;

use lockstep_proto::wire::{self, WireError};
use lockstep_proto::{Gtrid, ResourceManagerName, Xid, limits, v1};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use crate::engine::delivery::SessionId;
use crate::engine::handle::{Engine, EngineError};
use crate::engine::input::Input;
use crate::engine::inquiry::{self, BranchAnswer};
use crate::engine::shell::{Mail, Stopped};
use crate::protocol::event::Applied;

use super::inspections::Inspections;
use super::outbox::Outbox;
use super::registry::Registry;
use super::said::{self, Report, Said};

/// Reports and reconciliations that may wait to be answered before the stream is read on.
const QUESTIONS: usize = 16;

/// What every session needs.
#[derive(Clone)]
pub struct Shared {
    /// Where events go.
    pub engine: Engine,
    /// Who is attached.
    pub registry: Registry,
    /// What people want to know of their databases.
    pub inspections: Inspections,
    /// Told to participants.
    pub terms: Arc<Terms>,
    /// Cancelled when nothing is begun any more, because this process is to end.
    pub draining: CancellationToken,
    /// Cancelled when the process ends: every stream ends then.
    pub shutdown: CancellationToken,
}

impl Shared {
    /// Tells every shard, before anything is recovered, which resource managers are gone for good (P28).
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn retire_again(&self, retired: &[ResourceManagerName]) -> Result<(), Stopped> {
        for name in retired {
            let mail = || Mail::Input(Input::Retire { resource_manager: name.clone() });
            self.engine.broadcast(mail).await?;
        }
        Ok(())
    }

    /// Begins nothing new from now on, by which it is not ready either, and tells the participants. By a signal or an operator;
    /// a second time changes nothing.
    pub fn start_draining(&self) {
        self.engine.start_draining();
        self.draining.cancel();
        self.registry.each_outbox(|outbox| {
            outbox.answer(v1::coordinator_message::Kind::Drain(v1::Drain {}));
        });
    }
}

/// What participants are told in the welcome.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// How long ended records are kept.
    pub retention: Duration,
    /// How often a participant lists its prepared branches.
    pub report_interval: Duration,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionEnd {
    /// The participant closed the stream.
    #[error("the participant closed the stream")]
    Closed,
    /// The stream broke.
    #[error("the stream broke: {0}")]
    Broken(#[from] tonic::Status),
    /// It sent something that means nothing.
    #[error("the participant sent a malformed message: {0}")]
    Malformed(#[from] WireError),
    /// It sent more messages in a frame than may be.
    #[error("a frame carried {0} messages, and 1,024 are allowed")]
    FrameTooLong(usize),
    /// It said hello again.
    #[error("the participant said hello twice")]
    SecondHello,
    /// A new session of the same instance took its place, the participant did not read, or the coordinator stops.
    #[error("superseded by a newer session of the same instance, too slow to read, or the coordinator stops")]
    Stopped,
    /// The engine is gone.
    #[error(transparent)]
    Engine(#[from] Stopped),
}

impl SessionEnd {
    /// The participant's own fault, and which status tells it.
    #[must_use]
    pub fn fault(&self) -> Option<tonic::Status> {
        match self {
            Self::Malformed(_) | Self::FrameTooLong(_) | Self::SecondHello => {
                Some(tonic::Status::invalid_argument(self.to_string()))
            }
            Self::Closed | Self::Broken(_) | Self::Stopped | Self::Engine(_) => None,
        }
    }
}

/// Something that a participant asked, to be answered from the shards and the log.
enum Question {
    Report(Report),
    Reconcile(Vec<(Xid, Applied)>),
}

/// One attached session.
pub struct Session {
    /// Its number.
    pub id: SessionId,
    /// What it serves.
    pub resource_manager: ResourceManagerName,
    /// What it is written to.
    pub outbox: Outbox,
    /// Ends it.
    pub stop: CancellationToken,
    /// What every session needs.
    pub shared: Shared,
}

impl Session {
    /// Attaches to every shard, reads until the stream ends, and detaches from every shard.
    pub async fn run(
        self,
        stream: Streaming<v1::ParticipantFrame>,
        strays: mpsc::Receiver<Xid>,
    ) -> SessionEnd {
        let attached = || Mail::Attached(self.id, self.resource_manager.clone(), self.outbox.clone());
        if let Err(stopped) = self.shared.engine.broadcast(attached).await {
            return stopped.into();
        }
        let (questions, waiting) = mpsc::channel(QUESTIONS);
        let answers = answer_questions(
            self.shared.clone(),
            self.resource_manager.clone(),
            self.outbox.clone(),
            waiting,
        );
        let answerer = tokio::spawn(answers);
        let stray_answerer =
            tokio::spawn(answer_strays(self.shared.engine.clone(), self.outbox.clone(), strays));
        let end = tokio::select! {
            end = self.read(stream, questions) => end,
            () = self.stop.cancelled() => SessionEnd::Stopped,
            () = self.shared.shutdown.cancelled() => SessionEnd::Stopped,
        };
        answerer.abort();
        stray_answerer.abort();
        self.shared.registry.leave(self.id);
        let detached = || Mail::Input(Input::Detached { session: self.id });
        // The shards end only with the process.
        let _stopped = self.shared.engine.broadcast(detached).await;
        end
    }

    async fn read(
        &self,
        mut stream: Streaming<v1::ParticipantFrame>,
        questions: mpsc::Sender<Question>,
    ) -> SessionEnd {
        loop {
            let frame = match stream.message().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return SessionEnd::Closed,
                Err(status) => return status.into(),
            };
            if frame.messages.len() > limits::MAX_FRAME_MESSAGES {
                return SessionEnd::FrameTooLong(frame.messages.len());
            }
            self.shared.engine.metrics().streams.received(frame.messages.len());
            for message in frame.messages {
                if let Err(end) = self.take(message, &questions).await {
                    return end;
                }
            }
        }
    }

    async fn take(
        &self,
        message: v1::ParticipantMessage,
        questions: &mpsc::Sender<Question>,
    ) -> Result<(), SessionEnd> {
        let session = self.id;
        let kind = wire::required(message.kind, "kind")?;
        crash_when_received(&kind);
        match said::from_wire(kind, &self.resource_manager)? {
            Said::Enlist(xid) => self.to_shard(xid, |xid| Input::Enlist { session, xid }).await,
            Said::Vote(xid, vote) => self.to_shard(xid, |xid| Input::Vote { session, xid, vote }).await,
            Said::Acknowledge(xid, acknowledgement) => {
                self.to_shard(xid, |xid| Input::Acknowledge { session, xid, acknowledgement }).await
            }
            Said::Report(report) => self.ask(questions, Question::Report(report)).await,
            Said::Reconcile(rows) => self.ask(questions, Question::Reconcile(rows)).await,
            Said::Inspection(inspection) => {
                self.shared.inspections.answered(&self.resource_manager, inspection);
                Ok(())
            }
        }
    }

    async fn to_shard(
        &self,
        xid: Xid,
        input: impl FnOnce(Xid) -> Input<crate::engine::shell::ReplyTo>,
    ) -> Result<(), SessionEnd> {
        let shard = self.shared.engine.shards().of(&xid.gtrid);
        Ok(shard.send(Mail::Input(input(xid))).await?)
    }

    async fn ask(&self, questions: &mpsc::Sender<Question>, question: Question) -> Result<(), SessionEnd> {
        questions.send(question).await.map_err(|_gone| SessionEnd::Stopped)
    }
}

/// Crash points: a participant has done what it says here, and nobody else knows.
fn crash_when_received(kind: &v1::participant_message::Kind) {
    use v1::participant_message::Kind;
    match kind {
        Kind::Enlist(_) => fail::fail_point!("coordinator-enlist-received"),
        Kind::Vote(_) => fail::fail_point!("coordinator-vote-received"),
        Kind::Acknowledge(_) => fail::fail_point!("coordinator-acknowledge-received"),
        Kind::Report(_) => fail::fail_point!("coordinator-report-received"),
        Kind::Hello(_) | Kind::Reconcile(_) | Kind::Inspection(_) => {}
    }
}

/// Answers a session's questions, one after the other.
async fn answer_questions(
    shared: Shared,
    name: ResourceManagerName,
    outbox: Outbox,
    mut questions: mpsc::Receiver<Question>,
) {
    use v1::coordinator_message::Kind;
    // What was live when the listing that is now complete had not begun yet: a branch of it may have moved past the listing
    // (P7). Known from the second complete listing on.
    let mut floor_before: Option<Gtrid> = None;
    while let Some(question) = questions.recv().await {
        let answered = match question {
            Question::Report(report) => {
                if let Some(oldest_held) = report.complete {
                    floor_before = note_floor(&shared, &name, oldest_held, floor_before).await;
                }
                let complete = report.complete.is_some();
                let answered = answer_report(&shared.engine, report.listing, &report.prepared).await;
                answered.map(|(answer, orphans)| {
                    shared.registry.note_orphans(&name, orphans, complete);
                    Kind::ReportAnswer(answer)
                })
            }
            Question::Reconcile(rows) => inquiry::reconcile(&shared.engine, &rows).await.map(|forget| {
                Kind::ReconcileAnswer(v1::ReconcileAnswer { forget: forget.iter().map(Into::into).collect() })
            }),
        };
        match answered {
            Ok(kind) => outbox.answer(kind),
            Err(error) => {
                tracing::warn!(resource_manager = %name, %error, "a report is left unanswered; it comes again")
            }
        }
    }
}

/// Notes what the listing says of this resource manager's floor. What is live now, for the next listing.
async fn note_floor(
    shared: &Shared,
    name: &ResourceManagerName,
    oldest_held: Option<Gtrid>,
    before: Option<Gtrid>,
) -> Option<Gtrid> {
    if let Some(before) = before {
        let floor = oldest_held.map_or(before, |oldest| oldest.min(before));
        shared.registry.set_floor(name, floor);
    }
    shared.engine.floor().await.ok()
}

/// The answer, and the branches among these that the log can say nothing about.
async fn answer_report(
    engine: &Engine,
    listing: u64,
    xids: &[Xid],
) -> Result<(v1::ReportAnswer, Vec<(Xid, &'static str)>), EngineError> {
    let told = inquiry::answer_prepared(engine, xids).await?;
    let mut orphans = Vec::new();
    let mut answers = Vec::with_capacity(xids.len());
    for (xid, answer) in xids.iter().zip(told) {
        let (answer, detail) = match answer {
            BranchAnswer::Commit => (v1::BranchAnswer::Commit, ""),
            BranchAnswer::Rollback => (v1::BranchAnswer::Rollback, ""),
            BranchAnswer::StillRunning => (v1::BranchAnswer::StillRunning, ""),
            BranchAnswer::Unknown(why) => {
                orphans.push((xid.clone(), why));
                (v1::BranchAnswer::Unknown, why)
            }
        };
        let (xid, detail) = (Some(xid.into()), detail.to_owned());
        answers.push(v1::report_answer::Answer { xid, answer: answer.into(), detail });
    }
    Ok((v1::ReportAnswer { answers, position: None, listing }, orphans))
}

/// Answers votes of transactions that are not live, as if the participant had listed the branch.
async fn answer_strays(engine: Engine, outbox: Outbox, mut strays: mpsc::Receiver<Xid>) {
    const AT_ONCE: usize = 256;
    let mut xids = Vec::with_capacity(AT_ONCE);
    while strays.recv_many(&mut xids, AT_ONCE).await > 0 {
        if let Ok((answer, _orphans)) = answer_report(&engine, 0, &xids).await {
            outbox.answer(v1::coordinator_message::Kind::ReportAnswer(answer));
        }
        xids.clear();
    }
}
