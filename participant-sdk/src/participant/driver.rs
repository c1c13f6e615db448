//! The shell around a [`Session`]: feeds it what happens, carries out what it asks for, and keeps a stream up.
//!
//! One task owns everything here. It never waits for the store: every operation is a task of its own. What comes in
//! from outside is bounded: joins by their channel, what handlers give back by the branches that may be open, operations by
//! the branches that may be known, messages to send by [`super::stream`].

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_proto::{Epoch, InstanceId, ResourceManagerName, TraceParent, Xid, v1};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tonic::Status;
use tonic::transport::Channel;

use super::Branch;
use super::link::{Attempts, Link, judged};
use super::operations::Operations;
use super::stream::{self, GREETING_TIMEOUT, Incoming, Outgoing, Overflow, Urgency};
use crate::branch::Operation;
use crate::clock;
use crate::context::Context;
use crate::error::{AttachError, FinishError, JoinError};
use crate::resource::{Attachment, EvidenceRow, Inspection, Resource, ResourceError, Room, Unresolved};
use crate::session::message::{FromCoordinator, NodeAddress, ToCoordinator};
use crate::session::{Closing, Done, Effect, Event, HandlerId, Listing, Session};
use crate::traces::Parents;

/// Waits between questions to a store that did not answer.
const FIRST_QUESTION: Duration = Duration::from_millis(100);
const LONGEST_QUESTION: Duration = Duration::from_secs(10);
/// How long running operations may still take when the participant is going away.
const LAST_OPERATIONS: Duration = Duration::from_secs(5);
/// What is taken before what it led to is written: what has happened together goes into one frame, and not into one each.
const TOGETHER: usize = 64;
/// Joins that may wait to be looked at.
pub(super) const JOINS: usize = 1024;

/// A handler's wish to work in a transaction.
#[derive(Debug)]
pub(super) struct Join<R: Resource> {
    pub(super) context: Context,
    pub(super) reply: oneshot::Sender<Result<Branch<R>, JoinError>>,
    /// For the branch, to come back by.
    pub(super) releases: mpsc::UnboundedSender<Release<R>>,
}

/// What comes back from handlers.
#[derive(Debug)]
pub(super) enum Release<R: Resource> {
    /// Done.
    Finished {
        xid: Xid,
        handler: HandlerId,
        open: R::Open,
        /// Whether it votes early.
        votes: bool,
        reply: oneshot::Sender<Result<(), FinishError>>,
    },
    /// Gone without having finished, with the connection unless it was given back already.
    Gone(Xid, HandlerId, Option<R::Open>),
    /// Go away within so long, and say when.
    Detach(Duration, oneshot::Sender<()>),
}

/// What the store said of itself, and how much room it has, if it could be asked.
type AttachedStore = (Attachment, Result<Option<Room>, Unresolved>);

/// What tasks report.
#[derive(Debug)]
pub(super) enum Report<R: Resource> {
    StoreAttached(Result<AttachedStore, ResourceError>),
    Dialled(Result<Incoming, Status>),
    Bound(u64, Result<(), Unresolved>),
    Done(Xid, Done, Option<R::Open>),
    Listed(u64, Result<Listing, Unresolved>),
    Room(Result<Option<Room>, Unresolved>),
    OldEvidence(u64, Result<Vec<EvidenceRow>, Unresolved>),
    Forgotten(u64, Result<(), Unresolved>),
    Settled(Result<(), Unresolved>),
    Inspected(u64, Result<Inspection, Unresolved>),
    AskAgain(Xid),
}

/// Something that the loop woke for.
enum Woken<R: Resource> {
    Join(Option<Join<R>>),
    Release(Release<R>),
    Report(Report<R>),
    Frame(Result<Option<v1::CoordinatorFrame>, Status>),
    Sealed(Vec<u32>),
    Writable,
    Time,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Driver<R: Resource> {
    name: ResourceManagerName,
    session: Session,
    started: Instant,
    channel: Channel,
    link: Link,
    attempts: Attempts,
    operations: Operations<R>,
    opens: HashMap<Xid, R::Open>,
    traces: Parents,
    /// The one that is being taken, and those that have come up meanwhile.
    events: VecDeque<Event>,
    next_handler: HandlerId,
    joiners: HashMap<HandlerId, Join<R>>,
    finishers: HashMap<HandlerId, oneshot::Sender<Result<(), FinishError>>>,
    joins: mpsc::Receiver<Join<R>>,
    releases: mpsc::UnboundedReceiver<Release<R>>,
    reports: mpsc::UnboundedReceiver<Report<R>>,
    report_sender: mpsc::UnboundedSender<Report<R>>,
    first: Option<oneshot::Sender<Result<(), AttachError>>>,
    attached: watch::Sender<Option<Epoch>>,
    /// Who shares the coordinator's log.
    told: watch::Sender<Vec<NodeAddress>>,
    /// What any session of this participant was told of sealed epochs, its own words among them.
    seals: broadcast::Sender<Vec<u32>>,
    told_seals: broadcast::Receiver<Vec<u32>>,
    /// Dropped when all is done.
    detachers: Vec<oneshot::Sender<()>>,
}

/// What a driver is made of.
#[derive(Debug)]
pub(super) struct Parts<R: Resource> {
    pub(super) name: ResourceManagerName,
    /// Shared by the drivers of all coordinators.
    pub(super) resource: Arc<R>,
    pub(super) channel: Channel,
    pub(super) joins: mpsc::Receiver<Join<R>>,
    pub(super) releases: mpsc::UnboundedReceiver<Release<R>>,
    pub(super) first: oneshot::Sender<Result<(), AttachError>>,
    /// The epoch of the coordinator that it is attached to.
    pub(super) attached: watch::Sender<Option<Epoch>>,
    pub(super) told: watch::Sender<Vec<NodeAddress>>,
    pub(super) seals: broadcast::Sender<Vec<u32>>,
}

impl<R: Resource> Driver<R> {
    pub(super) fn new(parts: Parts<R>) -> Self {
        let (report_sender, reports) = mpsc::unbounded_channel();
        let started = clock::now();
        let instance = InstanceId::from_bytes(clock::random_bytes());
        Self {
            session: Session::new(parts.name.clone(), instance),
            started,
            channel: parts.channel,
            link: Link::Waiting(started),
            attempts: Attempts::default(),
            operations: Operations::new(parts.name.clone(), parts.resource, report_sender.clone()),
            name: parts.name,
            opens: HashMap::new(),
            traces: Parents::default(),
            events: VecDeque::new(),
            next_handler: 0,
            joiners: HashMap::new(),
            finishers: HashMap::new(),
            joins: parts.joins,
            releases: parts.releases,
            reports,
            report_sender,
            first: Some(parts.first),
            attached: parts.attached,
            told: parts.told,
            told_seals: parts.seals.subscribe(),
            seals: parts.seals,
            detachers: Vec::new(),
        }
    }

    /// Runs until the participant is detached and what was started is done.
    pub(super) async fn run(mut self) {
        while !self.session.is_detached() {
            let woken = self.next().await;
            self.take(woken);
            self.take_what_else_is_there();
            self.link.write();
        }
        self.joins.close();
        std::mem::replace(&mut self.link, Link::Closed).hear_out().await;
        let last = tokio::time::Instant::from(clock::now() + LAST_OPERATIONS);
        while self.operations.under_way() > 0 {
            match tokio::time::timeout_at(last, self.reports.recv()).await {
                Ok(Some(report)) => self.report(report),
                Ok(None) | Err(_) => break,
            }
        }
    }

    async fn next(&mut self) -> Woken<R> {
        let session = self.session.next_wake().map(|wake| self.started + wake);
        let wake = [session, self.link.wake()].into_iter().flatten().min();
        let reads = !self.session.is_binding();
        tokio::select! {
            join = self.joins.recv() => Woken::Join(join),
            Some(release) = self.releases.recv() => Woken::Release(release),
            Some(report) = self.reports.recv() => Woken::Report(report),
            frame = self.link.next(reads) => frame.map_or(Woken::Writable, Woken::Frame),
            Ok(epochs) = self.told_seals.recv() => Woken::Sealed(epochs),
            () = sleep_until(wake) => Woken::Time,
        }
    }

    fn take_what_else_is_there(&mut self) {
        for _ in 0..TOGETHER {
            // What comes after that is not for the session.
            if self.session.is_detached() {
                return;
            }
            let woken = if let Ok(report) = self.reports.try_recv() {
                Woken::Report(report)
            } else if let Ok(release) = self.releases.try_recv() {
                Woken::Release(release)
            } else if let Ok(join) = self.joins.try_recv() {
                Woken::Join(Some(join))
            } else {
                return;
            };
            self.take(woken);
        }
    }

    fn take(&mut self, woken: Woken<R>) {
        match woken {
            Woken::Join(Some(join)) => self.join(join),
            // Every handle is gone.
            Woken::Join(None) => self.tell(Event::Detach(self.now())),
            Woken::Release(release) => self.release(release),
            Woken::Report(report) => self.report(report),
            Woken::Frame(frame) => self.frame(frame),
            Woken::Sealed(epochs) => self.tell(Event::Sealed(epochs)),
            Woken::Writable => {}
            Woken::Time => self.time(),
        }
    }

    fn now(&self) -> Duration {
        clock::now().saturating_duration_since(self.started)
    }

    // ---- what comes in ----

    fn join(&mut self, join: Join<R>) {
        let handler = self.next_handler;
        self.next_handler += 1;
        let context = join.context;
        self.joiners.insert(handler, join);
        if let Some(trace) = context.trace() {
            self.traces.note(context.gtrid(), trace, || self.session.unsettled());
        }
        self.tell(Event::Join {
            handler,
            cluster: context.cluster(),
            gtrid: context.gtrid(),
            deadline: context.deadline().saturating_duration_since(self.started),
            random: clock::random_bits(),
        });
    }

    fn release(&mut self, release: Release<R>) {
        match release {
            Release::Finished { xid, handler, open, votes, reply } => {
                self.opens.insert(xid.clone(), open);
                self.finishers.insert(handler, reply);
                self.tell(Event::Finished { xid, handler, votes });
            }
            Release::Gone(xid, handler, open) => {
                self.finishers.remove(&handler);
                if let Some(open) = open {
                    self.opens.insert(xid.clone(), open);
                }
                self.tell(Event::HandlerGone(xid, handler));
            }
            Release::Detach(grace, done) => {
                self.detachers.push(done);
                self.tell(Event::Detach(self.now() + grace));
            }
        }
    }

    fn report(&mut self, report: Report<R>) {
        match &report {
            Report::Dialled(_) | Report::AskAgain(_) => {}
            Report::StoreAttached(_)
            | Report::Bound(..)
            | Report::Done(..)
            | Report::Listed(..)
            | Report::Room(_)
            | Report::OldEvidence(..)
            | Report::Forgotten(..)
            | Report::Settled(_)
            | Report::Inspected(..) => self.operations.ended(),
        }
        match report {
            Report::StoreAttached(result) => self.store_attached(result),
            Report::Dialled(result) => self.dialled(result),
            Report::Bound(session, result) => self.tell(Event::Bound(session, result)),
            Report::Done(xid, done, open) => {
                if let Some(open) = open {
                    self.opens.insert(xid.clone(), open);
                }
                self.tell(Event::Done(xid, done));
            }
            Report::Listed(session, result) => {
                if let Ok(listing) = &result {
                    self.operations.listed(&listing.prepared);
                }
                self.tell(Event::Listed(session, result));
            }
            Report::Room(result) => self.tell(Event::Room(result)),
            Report::OldEvidence(session, result) => self.tell(Event::OldEvidence(session, result)),
            Report::Forgotten(session, result) => self.tell(Event::Forgotten(session, result)),
            Report::Settled(Ok(())) => {}
            Report::Settled(Err(why)) => {
                tracing::debug!(name = %self.name, "what was seen of sealed epochs is still kept: {why}");
            }
            // The stream that it was asked over may be gone: then nobody waits for the answer.
            Report::Inspected(question, result) => {
                if let Link::Up(_) = &self.link {
                    self.send(ToCoordinator::Inspection(question, result.map_err(|why| why.0)));
                }
            }
            Report::AskAgain(xid) => self.tell(Event::AskAgain(xid)),
        }
    }

    fn frame(&mut self, frame: Result<Option<v1::CoordinatorFrame>, Status>) {
        match frame {
            Ok(Some(frame)) => match stream::messages(frame) {
                Ok(messages) => {
                    messages.into_iter().for_each(|(message, trace)| self.message(message, trace))
                }
                Err(why) => self.lost(Closing::Broken(why)),
            },
            Ok(None) => self.lost(Closing::Broken("the coordinator ended the stream".to_owned())),
            Err(status) => self.lost(judged(&status)),
        }
    }

    fn message(&mut self, message: FromCoordinator, trace: Option<TraceParent>) {
        if let (Some(xid), Some(trace)) = (message.xid(), trace) {
            self.traces.note(xid.gtrid, trace, || self.session.unsettled());
        }
        match &message {
            FromCoordinator::Enlisted(..) => fail::fail_point!("sdk-after-enlist"),
            FromCoordinator::Prepare(..) => fail::fail_point!("sdk-prepare-received"),
            FromCoordinator::Decide(..) => fail::fail_point!("sdk-decision-received"),
            FromCoordinator::CommitOnePhase(..) => fail::fail_point!("sdk-commit-one-phase-received"),
            FromCoordinator::ReportAnswer(..) => fail::fail_point!("sdk-report-answered"),
            FromCoordinator::Welcome(_)
            | FromCoordinator::EnlistRefused(..)
            | FromCoordinator::ReconcileAnswer(_)
            | FromCoordinator::Refused(..)
            | FromCoordinator::Sealed(_)
            | FromCoordinator::Drain => {}
            FromCoordinator::Nodes(nodes) => {
                self.told.send_replace(nodes.clone());
                return;
            }
            FromCoordinator::Inspect(question, cluster, gtrid) => {
                return self.operations.inspect(*question, *cluster, *gtrid);
            }
        }
        self.tell(Event::Received(message));
    }

    fn time(&mut self) {
        self.tell(Event::Tick);
        let now = clock::now();
        match &self.link {
            Link::Waiting(until) if *until <= now => {
                self.link = Link::Store;
                self.operations.attach();
            }
            Link::Up(up) if up.welcome_by.is_some_and(|by| by <= now) => {
                self.lost(Closing::Broken("the coordinator did not welcome us in time".to_owned()));
            }
            Link::Waiting(_)
            | Link::Store
            | Link::Dialling(_)
            | Link::Up(_)
            | Link::Ending(_)
            | Link::Closed => {}
        }
    }

    // ---- the stream ----

    fn store_attached(&mut self, result: Result<AttachedStore, ResourceError>) {
        if !matches!(self.link, Link::Store) {
            return; // The participant was detached meanwhile.
        }
        match result {
            Ok((attachment, room)) => {
                self.tell(Event::Room(room));
                let (outgoing, frames) = Outgoing::new();
                self.link = Link::Dialling(outgoing);
                self.tell(Event::Dialled(attachment));
                self.link.write();
                let (channel, reports) = (self.channel.clone(), self.report_sender.clone());
                tokio::spawn(async move {
                    let _gone = reports.send(Report::Dialled(stream::dial(channel, frames).await));
                });
            }
            Err(ResourceError::Unfit(why)) => {
                self.refuse_first(AttachError::Unfit(why.clone()));
                self.wait(&Closing::Refused(why));
            }
            Err(ResourceError::Unavailable(why)) => self.wait(&Closing::Broken(why)),
        }
    }

    fn dialled(&mut self, result: Result<Incoming, Status>) {
        if !matches!(self.link, Link::Dialling(_)) {
            return; // The participant was detached meanwhile.
        }
        match result {
            Ok(incoming) => self.link.answered(incoming, clock::now() + GREETING_TIMEOUT),
            Err(status) => self.lost(judged(&status)),
        }
    }

    /// The stream is over, by the coordinator's doing or the network's.
    fn lost(&mut self, why: Closing) {
        self.down(&why);
        self.tell(Event::Disconnected);
    }

    /// Ends the stream from our side, and plans the next one.
    fn down(&mut self, why: &Closing) {
        self.attached.send_replace(None);
        if let Closing::Refused(detail) = why {
            let name = self.name.to_string();
            self.refuse_first(AttachError::Refused { name, detail: detail.clone() });
        }
        self.wait(why);
    }

    fn wait(&mut self, why: &Closing) {
        let (name, wait) = (&self.name, self.attempts.wait(&self.link, why));
        match why {
            Closing::Refused(why) => tracing::error!(%name, ?wait, "attaching is refused: {why}"),
            Closing::Broken(why) => tracing::warn!(%name, ?wait, "not attached: {why}"),
            Closing::Detached => return self.link.end(),
        }
        self.link = Link::Waiting(clock::now() + wait);
    }

    /// Whoever waits for the first attach is told, and the participant ends: its handle was never given out.
    fn refuse_first(&mut self, error: AttachError) {
        // Nobody waits for it any more where another coordinator has attached this participant: then it is tried again.
        if let Some(first) = self.first.take_if(|first| !first.is_closed()) {
            let _gone = first.send(Err(error));
            self.tell(Event::Detach(self.now()));
        }
    }

    // ---- what the session asks for ----

    /// Has the session take an event, and carries out what it asks for. An event that comes up on the way is taken after
    /// that, so that no effect overtakes one of an earlier event.
    fn tell(&mut self, event: Event) {
        self.events.push_back(event);
        if self.events.len() > 1 {
            return;
        }
        while let Some(event) = self.events.front_mut() {
            let event = std::mem::replace(event, Event::Tick);
            let effects = self.session.handle(self.now(), event);
            effects.into_iter().for_each(|effect| self.carry_out(effect));
            self.events.pop_front();
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Send(message) => self.send(message),
            Effect::Run(branch, operation) => {
                let open = match operation {
                    Operation::Discard | Operation::Prepare(_) | Operation::CommitOnePhase(_) => {
                        Some(self.opens.remove(&branch.xid).expect("the connection is here"))
                    }
                    Operation::Begin(_)
                    | Operation::Find
                    | Operation::Commit(_)
                    | Operation::Rollback(_)
                    | Operation::Prove(_) => None,
                };
                let trace = self.traces.of(&branch.xid.gtrid);
                self.operations.run(branch, operation, open, trace);
            }
            Effect::Hand(handler, xid) => self.hand(handler, xid),
            Effect::RefuseJoin(handler, error) => {
                let join = self.joiners.remove(&handler).expect("whoever joins waits for the answer");
                let _gone = join.reply.send(Err(error));
            }
            Effect::AnswerFinish(handler, result) => {
                // Without one, the handler is gone, and has said so or will.
                if let Some(reply) = self.finishers.remove(&handler) {
                    let _gone = reply.send(result);
                }
            }
            Effect::AskLater(xid, failed) => self.ask_later(xid, failed),
            Effect::Bind(session, cluster) => self.operations.bind(session, cluster),
            Effect::Settle(position, epochs) => self.operations.settle(position, epochs),
            Effect::List { session, cluster, again } => self.operations.list(session, cluster, again),
            Effect::FindRoom => self.operations.find_room(),
            Effect::FindOldEvidence { session, cluster, retention, limit } => {
                self.operations.find_old_evidence(session, cluster, retention, limit);
            }
            Effect::Forget(session, branches) => self.operations.forget(session, branches),
            Effect::Sealed(epochs) => {
                // Somebody hears it: this driver itself.
                let _heard = self.seals.send(epochs);
            }
            Effect::Attached(cluster, epoch) => {
                tracing::info!(name = %self.name, %cluster, %epoch, "attached");
                if let Link::Up(up) = &mut self.link {
                    up.welcome_by = None;
                }
                self.attached.send_replace(Some(epoch));
                if let Some(first) = self.first.take() {
                    let _gone = first.send(Ok(()));
                }
            }
            Effect::Close(why) => self.down(&why),
            Effect::Warn(gtrid, text) => {
                tracing::warn!(name = %self.name, gtrid = gtrid.map(tracing::field::display), "{text}");
            }
        }
    }

    fn send(&mut self, message: ToCoordinator) {
        match &message {
            ToCoordinator::Enlist(_) => fail::fail_point!("sdk-before-enlist"),
            ToCoordinator::Vote(..) => fail::fail_point!("sdk-before-vote"),
            ToCoordinator::Acknowledge(..) => fail::fail_point!("sdk-before-acknowledge"),
            ToCoordinator::Report { .. } => fail::fail_point!("sdk-before-report"),
            ToCoordinator::Hello(_) | ToCoordinator::Reconcile(_) | ToCoordinator::Inspection(..) => {}
        }
        let urgency = match &message {
            ToCoordinator::Acknowledge(xid, _) if self.operations.is_one_of_many_found(xid) => {
                Urgency::Together
            }
            ToCoordinator::Acknowledge(..)
            | ToCoordinator::Enlist(_)
            | ToCoordinator::Vote(..)
            | ToCoordinator::Report { .. }
            | ToCoordinator::Hello(_)
            | ToCoordinator::Reconcile(_)
            | ToCoordinator::Inspection(..) => Urgency::Now,
        };
        if let Err(Overflow) = self.link.push(message, urgency) {
            // Its loss is told to the session behind the effects of this step.
            self.lost(Closing::Broken("the coordinator does not read what is sent to it".to_owned()));
        }
    }

    fn hand(&mut self, handler: HandlerId, xid: Xid) {
        let open = self.opens.remove(&xid).expect("the connection is here");
        let join = self.joiners.remove(&handler).expect("whoever joins waits for the branch");
        let branch = Branch::new(xid, handler, open, &join.context, join.releases);
        // A handler that is gone drops the branch, which comes back by its own drop.
        let _gone = join.reply.send(Ok(branch));
    }

    fn ask_later(&self, xid: Xid, failed: u32) {
        let wait = clock::backoff(failed, FIRST_QUESTION, LONGEST_QUESTION);
        let reports = self.report_sender.clone();
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let _gone = reports.send(Report::AskAgain(xid));
        });
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake.into()).await,
        None => std::future::pending().await,
    }
}
