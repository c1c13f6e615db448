//! One participant's side of its sessions with a coordinator: a pure state machine, (state, event, now) → effects.
//!
//! It knows which branches this process holds, hands their connections from handler to machine and back, checks whom it has
//! attached to, and lists what is prepared. What happens to one branch is [`crate::branch`]'s matter. It waits for nothing and
//! reads no clock: `now` is the time since an arbitrary moment, and [`Session::next_wake`] says when it wants to be woken.
//! `participant/driver.rs` is the shell around it.
//!
//! - `greeting`: hello, welcome, and what is refused (P8, P19, P21).
//! - `branches`: the table of branches, joins and messages.
//! - `room`: refusing branches that the store has no room for, before they are begun.
//! - `reports`: listing prepared branches (P20) and pruning evidence (P19).
//!
//! **A session that breaks rolls back what is not prepared**, on both sides. What is prepared stays and is found again by
//! listing. No message outlives its session: what is to be sent while there is none is dropped, because the coordinator
//! sends every decision again, counts no vote of an old session, and takes an enlist for lost.

mod branches;
mod greeting;
pub mod message;
mod reports;
mod room;
#[cfg(feature = "simulation")]
pub mod seen;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use lockstep_proto::{ClusterId, Epoch, Gtrid, InstanceId, LogPosition, ResourceManagerName, Xid};

use crate::branch::Operation;
use crate::error::{FinishError, JoinError};
use crate::resource::{Attachment, BranchId, EvidenceRow, Fate, Prepared, Room, Unresolved};
use branches::{Entry, Waiting};
use message::{FromCoordinator, ToCoordinator, Welcome};
use reports::Reports;
use room::Admission;

/// Local transactions that may be open at a time, each with a connection of its own: far more than a database has
/// connections to give, far fewer than a process can hold.
pub const MAX_OPEN_BRANCHES: usize = 1024;
/// Handlers that may wait for a branch that another handler works in.
pub const MAX_WAITING_HANDLERS: usize = 1024;
/// Branches that this process may know, prepared ones included: a store with more in doubt than that answers no better for
/// being told of all of them at once.
pub const MAX_BRANCHES_KNOWN: usize = 65_536;
/// Ended branches that are remembered, so that a late or repeated message about them costs no question to the store.
pub const MAX_ENDED_BRANCHES: usize = 4096;

/// A handler's number: one call of `join`.
pub type HandlerId = u64;

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// A stream is being opened, and the store has just said this of itself.
    Dialled(Attachment),
    /// A message came in.
    Received(FromCoordinator),
    /// Another session of this participant was told that these epochs are sealed.
    Sealed(Vec<u32>),
    /// The stream is over.
    Disconnected,
    /// The cluster is stored, for the session of that number, or could not be.
    Bound(u64, Result<(), Unresolved>),
    /// A handler wants to work in a transaction.
    Join {
        /// Its number.
        handler: HandlerId,
        /// The cluster in its context.
        cluster: ClusterId,
        /// The transaction.
        gtrid: Gtrid,
        /// When the transaction ends, on the clock of `now`.
        deadline: Duration,
        /// For the name of a new branch: bits that were never used before.
        random: u64,
    },
    /// A handler has done its work, and the shell has its connection.
    Finished {
        /// The branch.
        xid: Xid,
        /// The handler's number.
        handler: HandlerId,
        /// Whether the branch votes now, without being asked.
        votes: bool,
    },
    /// A handler is gone, and the shell has its connection back, unless the session had it already.
    HandlerGone(Xid, HandlerId),
    /// An operation of the store has ended.
    Done(Xid, Done),
    /// The wait of an [`Effect::AskLater`] is over.
    AskAgain(Xid),
    /// The store was listed, for the session of that number.
    Listed(u64, Result<Listing, Unresolved>),
    /// How much room the store has, or that it could not be asked.
    Room(Result<Option<Room>, Unresolved>),
    /// The store's old evidence, for the session of that number.
    OldEvidence(u64, Result<Vec<EvidenceRow>, Unresolved>),
    /// Evidence rows are deleted, or could not be.
    Forgotten(u64, Result<(), Unresolved>),
    /// Time has passed.
    Tick,
    /// The participant is to go away: at once when every branch it holds has ended, and then in any case.
    Detach(Duration),
}

/// How an operation of the store ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// The local transaction is open, and the shell has its connection.
    Begun,
    /// It is not.
    NotBegun {
        /// What the store said.
        detail: String,
        /// Whether waiting does not mend it.
        unfit: bool,
    },
    /// The local transaction is gone.
    Discarded,
    /// What came of preparing.
    Prepared(Result<Prepared, Unresolved>),
    /// Whether it is prepared.
    Found(Result<bool, Unresolved>),
    /// What the branch has become.
    Resolved(Result<Fate, Unresolved>),
}

/// What the store holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// What the store says of itself now, where it was asked again.
    pub attachment: Option<Attachment>,
    /// The prepared branches.
    pub prepared: Vec<Xid>,
    /// The oldest evidence. Read after the prepared branches: what commits in between is in at least one of the two (P7).
    pub oldest_evidence: Option<Gtrid>,
}

/// Something that has to be done, in this order.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send it with the next frame.
    Send(ToCoordinator),
    /// Have the store do this, and bring [`Event::Done`].
    Run(BranchId, Operation),
    /// Give the branch's connection to this handler. If it is gone, that is [`Event::HandlerGone`].
    Hand(HandlerId, Xid),
    /// Tell this handler that it gets none.
    RefuseJoin(HandlerId, JoinError),
    /// Tell this handler how its branch stands.
    AnswerFinish(HandlerId, Result<(), FinishError>),
    /// Bring [`Event::AskAgain`] after a wait that grows with the number of failed attempts.
    AskLater(Xid, u32),
    /// Store the cluster, see that it is the one that is stored then, and bring [`Event::Bound`] with this number. Nothing is
    /// read from the stream before.
    Bind(u64, ClusterId),
    /// List the store, and bring [`Event::Listed`] with this number.
    List {
        /// The session's number.
        session: u64,
        /// The cluster whose branches are listed.
        cluster: ClusterId,
        /// The store may have been lost meanwhile: attach to it again first.
        again: bool,
    },
    /// Ask how much room the store has, and bring [`Event::Room`].
    FindRoom,
    /// Look for evidence that is old enough, and bring [`Event::OldEvidence`] with this number.
    FindOldEvidence {
        /// The session's number.
        session: u64,
        /// The cluster.
        cluster: ClusterId,
        /// How old.
        retention: Duration,
        /// At most so many rows.
        limit: usize,
    },
    /// Delete these rows, and bring [`Event::Forgotten`] with this number.
    Forget(u64, Vec<BranchId>),
    /// Keep this log position, and let go of what was seen of these epochs. If that fails, it is said again with the next welcome.
    Settle(LogPosition, Vec<Epoch>),
    /// The greeting is done: the cluster, and the coordinator's epoch.
    Attached(ClusterId, Epoch),
    /// Tell the other sessions of this participant that these epochs are sealed.
    Sealed(Vec<u32>),
    /// End the stream.
    Close(Closing),
    /// Something a person should read in the log, and the transaction that it is about, if it is about one.
    Warn(Option<Gtrid>, String),
}

/// Why a session is ended from this side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closing {
    /// The two sides do not fit together, and waiting does not mend it.
    Refused(String),
    /// A new session may do better.
    Broken(String),
    /// The participant was told to go.
    Detached,
}

/// How far the conversation is.
#[derive(Debug)]
enum Phase {
    /// No stream.
    Away,
    /// Hello is sent.
    Greeting(Attachment),
    /// The welcome fits, and the store is being bound to the cluster.
    Binding(Attachment, Welcome),
    /// Attached. The welcome's position is the newest that the coordinator has told since.
    Attached { attachment: Attachment, welcome: Welcome },
    /// Told to go, and gone.
    Detached,
}

/// A participant's state.
#[derive(Debug)]
pub struct Session {
    name: ResourceManagerName,
    instance: InstanceId,
    phase: Phase,
    /// Counts streams, so that what was asked of the store for one is not used for the next.
    number: u64,
    /// The newest epoch that any coordinator has named: a log that has not come so far has lost something (P8).
    newest_epoch: u32,
    /// Every epoch below this one is sealed: no command of a session with one of them is taken (P19).
    sealed_below: u32,
    branches: BTreeMap<Xid, Entry>,
    /// The branch of each transaction that a further handler may continue.
    open: BTreeMap<Gtrid, Xid>,
    /// The branch of each transaction that has voted early here, or tried to: no further handler may work in it.
    voted_early: BTreeMap<Gtrid, Xid>,
    /// Branches that have a connection: open and doomed ones.
    holding: usize,
    /// Branches that have not ended, prepared ones included.
    unsettled: usize,
    deadlines: BTreeSet<(Duration, Xid)>,
    waiting: VecDeque<Waiting>,
    /// The oldest first.
    ended: VecDeque<Xid>,
    reports: Reports,
    admission: Admission,
    detach_by: Option<Duration>,
    effects: Vec<Effect>,
    #[cfg(feature = "simulation")]
    seen: seen::Seen,
}

impl Session {
    /// A participant that has not attached yet.
    #[must_use]
    pub fn new(name: ResourceManagerName, instance: InstanceId) -> Self {
        Self {
            name,
            instance,
            phase: Phase::Away,
            number: 0,
            newest_epoch: 0,
            sealed_below: 0,
            branches: BTreeMap::new(),
            open: BTreeMap::new(),
            voted_early: BTreeMap::new(),
            holding: 0,
            unsettled: 0,
            deadlines: BTreeSet::new(),
            waiting: VecDeque::new(),
            ended: VecDeque::new(),
            reports: Reports::default(),
            admission: Admission::default(),
            detach_by: None,
            effects: Vec::new(),
            #[cfg(feature = "simulation")]
            seen: seen::Seen::default(),
        }
    }

    /// Which transitions its branches went through so far.
    #[cfg(feature = "simulation")]
    #[must_use]
    pub fn seen(&self) -> &seen::Seen {
        &self.seen
    }

    /// Takes one event and says what has to be done.
    ///
    /// # Panics
    /// If the event cannot happen: a fault of the shell, and nothing after it could be trusted.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        match event {
            Event::Dialled(attachment) => self.greet(attachment),
            Event::Received(message) => self.receive(now, message),
            Event::Sealed(epochs) => self.end_if_sealed(&epochs),
            Event::Disconnected => self.disconnect(),
            Event::Bound(session, result) => self.bound(now, session, result),
            Event::Join { handler, cluster, gtrid, deadline, random } => {
                self.join(now, handler, cluster, gtrid, deadline, random);
            }
            Event::Finished { xid, handler, votes } => self.finished(now, &xid, handler, votes),
            Event::HandlerGone(xid, handler) => self.handler_gone(now, &xid, handler),
            Event::Done(xid, done) => self.done(now, &xid, done),
            Event::AskAgain(xid) => self.ask_again(now, &xid),
            Event::Listed(session, result) => self.listed(now, session, result),
            Event::Room(result) => self.room_found(now, result),
            Event::OldEvidence(session, result) => self.old_evidence(session, result),
            Event::Forgotten(session, result) => self.forgotten(session, &result),
            Event::Tick => {}
            Event::Detach(by) => self.detach(by),
        }
        self.tick(now);
        std::mem::take(&mut self.effects)
    }

    /// When [`Event::Tick`] is wanted next.
    #[must_use]
    pub fn next_wake(&self) -> Option<Duration> {
        let deadline = self.deadlines.first().map(|(deadline, _)| *deadline);
        let waiting = self.waiting.iter().map(|waiting| waiting.deadline).min();
        let listing =
            matches!(self.phase, Phase::Attached { .. }).then(|| self.reports.next_wake()).flatten();
        [deadline, waiting, listing, self.detach_by].into_iter().flatten().min()
    }

    /// Whether the greeting waits for the store, so that nothing may be read from the stream.
    #[must_use]
    pub const fn is_binding(&self) -> bool {
        matches!(self.phase, Phase::Binding(..))
    }

    /// Whether the participant was told to go and is gone.
    #[must_use]
    pub const fn is_detached(&self) -> bool {
        matches!(self.phase, Phase::Detached)
    }

    fn tick(&mut self, now: Duration) {
        self.pass_deadlines(now);
        self.list_if_due(now);
        if let Some(by) = self.detach_by
            && !self.is_detached()
            && (self.unsettled == 0 || by <= now)
        {
            self.close(Closing::Detached);
        }
    }

    fn detach(&mut self, by: Duration) {
        self.detach_by = Some(self.detach_by.map_or(by, |earlier| earlier.min(by)));
        for waiting in std::mem::take(&mut self.waiting) {
            let error = JoinError::Detaching { gtrid: waiting.gtrid };
            self.effects.push(Effect::RefuseJoin(waiting.handler, error));
        }
    }

    /// Ends the stream from this side. What is not prepared goes with it.
    fn close(&mut self, why: Closing) {
        let detached = why == Closing::Detached;
        self.effects.push(Effect::Close(why));
        self.disconnect();
        if detached {
            self.phase = Phase::Detached;
            self.detach_by = None;
        }
    }

    fn disconnect(&mut self) {
        if self.is_detached() {
            return;
        }
        self.phase = Phase::Away;
        self.reports.stop();
        self.lose_branches();
    }

    fn send(&mut self, message: ToCoordinator) {
        match self.phase {
            Phase::Attached { .. } => self.effects.push(Effect::Send(message)),
            // It belongs to a session that is over.
            Phase::Away | Phase::Greeting(_) | Phase::Binding(..) | Phase::Detached => {}
        }
    }

    fn receive(&mut self, now: Duration, message: FromCoordinator) {
        match (&self.phase, message) {
            (Phase::Greeting(_), FromCoordinator::Welcome(welcome)) => self.welcomed(now, welcome),
            (Phase::Attached { .. }, FromCoordinator::Welcome(_)) => {
                self.close(Closing::Broken("the coordinator sent a second welcome".to_owned()));
            }
            (Phase::Attached { .. }, message) => self.message(now, message),
            (Phase::Greeting(_) | Phase::Binding(..), _) => {
                self.close(Closing::Broken("the coordinator's first message is no welcome".to_owned()));
            }
            // Read from a stream that was already given up.
            (Phase::Away | Phase::Detached, _) => {}
        }
    }

    fn message(&mut self, now: Duration, message: FromCoordinator) {
        use crate::branch::{Decision, Event as E};
        match message {
            FromCoordinator::Welcome(_) => unreachable!("taken before"),
            // Answered beside the session.
            FromCoordinator::Inspect(..) | FromCoordinator::Nodes(_) => {}
            FromCoordinator::Enlisted(xid, remaining) => {
                self.shorten_deadline(now, &xid, remaining);
                self.told(now, &xid, E::Enlisted);
            }
            FromCoordinator::EnlistRefused(xid, why) => self.told(now, &xid, E::EnlistRefused(why)),
            FromCoordinator::Prepare(xid, position) => {
                self.learn(position);
                self.told(now, &xid, E::Prepare(position));
            }
            FromCoordinator::Decide(xid, decision, position) => {
                self.learn(position);
                self.told(now, &xid, E::Decide(decision, position));
            }
            FromCoordinator::CommitOnePhase(xid, position) => {
                self.learn(position);
                self.told(now, &xid, E::CommitOnePhase(position));
            }
            FromCoordinator::ReportAnswer(answers, position) => {
                self.learn(position);
                for (xid, answer) in answers {
                    match answer {
                        message::BranchAnswer::Commit => {
                            self.told(now, &xid, E::Decide(Decision::Commit, position));
                        }
                        message::BranchAnswer::Rollback => {
                            self.told(now, &xid, E::Decide(Decision::Rollback, position));
                        }
                        // It is listed again with the next report, and asked for again (P20).
                        message::BranchAnswer::StillRunning => {}
                        message::BranchAnswer::Unknown(why) => self.warn_of(
                            xid.gtrid,
                            format!(
                                "branch {xid} stays prepared, the coordinator cannot tell its outcome: {why}"
                            ),
                        ),
                    }
                }
            }
            FromCoordinator::ReconcileAnswer(forget) => self.reconciled(forget),
            FromCoordinator::Refused(xid, why) => {
                self.warn_of(xid.gtrid, format!("the coordinator did not act on {xid}: {why}"))
            }
            FromCoordinator::Sealed(epochs) => self.sealed(now, &epochs),
            // It begins nothing new. What it has begun may still be joined, prepared and decided until the stream ends.
            FromCoordinator::Drain => self.warn("the coordinator is going away".to_owned()),
        }
    }

    /// Nobody sends a position along with an early vote's order: it keeps the newest that is known here (P8).
    fn learn(&mut self, position: LogPosition) {
        if let Phase::Attached { welcome, .. } = &mut self.phase {
            let known = &mut welcome.position;
            if (known.epoch, known.incarnation) == (position.epoch, position.incarnation) {
                known.sequence = known.sequence.max(position.sequence);
            }
        }
    }

    fn warn(&mut self, text: String) {
        self.effects.push(Effect::Warn(None, text));
    }

    fn warn_of(&mut self, gtrid: Gtrid, text: String) {
        self.effects.push(Effect::Warn(Some(gtrid), text));
    }
}
