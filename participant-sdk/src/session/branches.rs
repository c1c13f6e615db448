//! The table of branches: joins, messages, deadlines, and the end of a session.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use lockstep_proto::{Bqual, ClusterId, Gtrid, Xid};

use super::message::ToCoordinator;
use super::{
    Closing, Done, Effect, HandlerId, MAX_BRANCHES_KNOWN, MAX_ENDED_BRANCHES, MAX_OPEN_BRANCHES,
    MAX_WAITING_HANDLERS, Phase, Session,
};
use crate::branch::{Action, Branch, Doom, End, Event, State, Then};
use crate::error::{FinishError, JoinError};
use crate::resource::BranchId;

/// A branch, and what the session keeps beside it.
#[derive(Debug)]
pub(super) struct Entry {
    branch: Branch,
    cluster: ClusterId,
    /// When it is rolled back unless it is prepared by then. Only while it is open.
    deadline: Option<Duration>,
    /// The handler that has the connection, waits for it, or had it last.
    handler: Option<HandlerId>,
    /// The store could not begin it, and waiting does not mend that.
    unfit: bool,
    /// It is in the list of ended branches.
    remembered: bool,
}

impl Entry {
    fn absent(cluster: ClusterId) -> Self {
        Self {
            branch: Branch::absent(),
            cluster,
            deadline: None,
            handler: None,
            unfit: false,
            remembered: false,
        }
    }

    /// Whether a connection is open for it, or may be.
    fn holds(&self) -> bool {
        self.branch.is_open() || matches!(self.branch.state(), State::Doomed { .. })
    }

    /// Whether something is still to happen to it here.
    fn is_unsettled(&self) -> bool {
        !matches!(self.branch.state(), State::Absent | State::Ended(_))
    }
}

/// A handler that waits until another one of the same transaction has finished.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) handler: HandlerId,
    pub(super) gtrid: Gtrid,
    pub(super) deadline: Duration,
}

impl Session {
    pub(super) fn join(
        &mut self,
        now: Duration,
        handler: HandlerId,
        cluster: ClusterId,
        gtrid: Gtrid,
        deadline: Duration,
        random: u64,
    ) {
        if let Err(error) = self.may_join(now, cluster, gtrid, deadline) {
            self.effects.push(Effect::RefuseJoin(handler, error));
            return;
        }
        if let Some(voted) = self.voted_early.get(&gtrid)
            && !self.open.contains_key(&gtrid)
        {
            let error = too_late(gtrid, self.branches[voted].branch.state(), true);
            self.effects.push(Effect::RefuseJoin(handler, error));
            return;
        }
        if let Some(xid) = self.open.get(&gtrid).cloned() {
            self.waiting.push_back(Waiting { handler, gtrid, deadline });
            self.serve_waiting(now, &xid);
            return;
        }
        let xid = Xid { gtrid, bqual: Bqual::new(&self.name, random) };
        let entry = Entry { deadline: Some(deadline), handler: Some(handler), ..Entry::absent(cluster) };
        let used = self.branches.insert(xid.clone(), entry);
        assert!(used.is_none(), "64 random bits name a branch once");
        self.open.insert(gtrid, xid.clone());
        self.deadlines.insert((deadline, xid.clone()));
        self.step(now, &xid, Event::Joined(deadline.saturating_sub(now)));
    }

    fn may_join(
        &mut self,
        now: Duration,
        cluster: ClusterId,
        gtrid: Gtrid,
        deadline: Duration,
    ) -> Result<(), JoinError> {
        if self.detach_by.is_some() || self.is_detached() {
            return Err(JoinError::Detaching { gtrid });
        }
        let ours = match &self.phase {
            Phase::Attached { welcome, .. } => welcome.cluster,
            Phase::Away | Phase::Greeting(_) | Phase::Binding(..) | Phase::Detached => {
                return Err(JoinError::NotAttached { gtrid });
            }
        };
        if ours != cluster {
            return Err(JoinError::ForeignCluster { gtrid, theirs: cluster, ours });
        }
        if deadline <= now {
            return Err(JoinError::Expired { gtrid });
        }
        let full = if self.open.contains_key(&gtrid) {
            self.waiting.len() >= MAX_WAITING_HANDLERS
        } else {
            self.holding >= MAX_OPEN_BRANCHES || self.branches.len() >= MAX_BRANCHES_KNOWN
        };
        if full {
            return Err(JoinError::TooManyBranches { gtrid });
        }
        if self.open.contains_key(&gtrid) { Ok(()) } else { self.admit(now, gtrid) }
    }

    /// The transactions of which a branch is not over here.
    #[must_use]
    pub fn unsettled(&self) -> BTreeSet<Gtrid> {
        let unsettled = self.branches.iter().filter(|(_, entry)| entry.is_unsettled());
        unsettled.map(|(xid, _)| xid.gtrid).collect()
    }

    /// Whether this process knows the branch, in whatever state.
    pub(super) fn knows(&self, xid: &Xid) -> bool {
        self.branches.contains_key(xid)
    }

    pub(super) fn finished(&mut self, now: Duration, xid: &Xid, handler: HandlerId, votes: bool) {
        let then = match &self.phase {
            Phase::Attached { welcome, .. } if votes => Then::Vote(welcome.position),
            // Without a session the branch is doomed already, and nothing follows.
            Phase::Attached { .. }
            | Phase::Away
            | Phase::Greeting(_)
            | Phase::Binding(..)
            | Phase::Detached => Then::StayOpen,
        };
        let holder = self.branches.get(xid).and_then(|entry| entry.handler);
        assert_eq!(holder, Some(handler), "a connection comes back from the handler that has it");
        if votes {
            self.voted_early.insert(xid.gtrid, xid.clone());
        }
        self.step(now, xid, Event::Finished(then));
    }

    pub(super) fn handler_gone(&mut self, now: Duration, xid: &Xid, handler: HandlerId) {
        // A handler that had finished, and whose branch another one has continued or the session has forgotten.
        if self.branches.get(xid).and_then(|entry| entry.handler) == Some(handler) {
            self.step(now, xid, Event::HandlerGone);
        }
    }

    pub(super) fn done(&mut self, now: Duration, xid: &Xid, done: Done) {
        let entry = self.branches.get_mut(xid).expect("a branch whose operation runs is not forgotten");
        let event = match done {
            Done::Begun => Event::Begun,
            Done::NotBegun { detail, unfit } => {
                entry.unfit = unfit;
                Event::NotBegun(detail)
            }
            Done::Discarded => Event::Discarded,
            Done::Prepared(result) => Event::PrepareDone(result),
            Done::Found(result) => Event::Found(result),
            Done::Resolved(result) => Event::Resolved(result),
        };
        let unresolved =
            matches!(event, Event::PrepareDone(Err(_)) | Event::Found(Err(_)) | Event::Resolved(Err(_)));
        if unresolved {
            self.reports.store_may_be_lost(now);
        }
        self.step(now, xid, event);
    }

    /// The branches that are prepared here, as far as this process knows.
    pub(super) fn prepared_here(&self) -> BTreeSet<Xid> {
        let is_prepared = |entry: &Entry| matches!(entry.branch.state(), State::Prepared);
        self.branches.iter().filter(|(_, entry)| is_prepared(entry)).map(|(xid, _)| xid.clone()).collect()
    }

    /// The branch was prepared when a listing began, and is not in it: another instance has ended it. Remembered any longer, it
    /// would hold a slot for ever that is free.
    pub(super) fn not_listed(&mut self, now: Duration, xid: &Xid) {
        // Unless its decision has come meanwhile.
        let entry = self.branches.get(xid);
        if entry.is_some_and(|entry| matches!(entry.branch.state(), State::Prepared)) {
            self.step(now, xid, Event::Found(Ok(false)));
        }
    }

    pub(super) fn ask_again(&mut self, now: Duration, xid: &Xid) {
        if self.branches.contains_key(xid) {
            self.step(now, xid, Event::AskAgain);
        }
    }

    /// The store answers again: what waits to ask it need not wait longer.
    pub(super) fn ask_again_now(&mut self, now: Duration) {
        let waits = |entry: &Entry| matches!(entry.branch.state(), State::Undoing { waiting: true, .. });
        let waiting = self.branches.iter().filter(|(_, entry)| waits(entry)).map(|(xid, _)| xid.clone());
        for xid in waiting.collect::<Vec<_>>() {
            self.step(now, &xid, Event::AskAgain);
        }
    }

    /// A message of the coordinator about a branch, which this process may never have heard of.
    pub(super) fn told(&mut self, now: Duration, xid: &Xid, event: Event) {
        let Phase::Attached { welcome, .. } = &self.phase else {
            return; // An earlier message of the same frame has ended the session.
        };
        // Another resource manager's branches are never touched (P18), whatever the message says.
        if xid.bqual.resource_manager_str() != self.name.as_str() {
            let text = format!("a message about {xid} was ignored: it belongs to another resource manager");
            self.warn_of(xid.gtrid, text);
            return;
        }
        if !self.branches.contains_key(xid) {
            if self.branches.len() >= MAX_BRANCHES_KNOWN {
                let why = "the coordinator named more branches than this participant can follow at a time";
                self.close(Closing::Broken(why.to_owned()));
                return;
            }
            self.branches.insert(xid.clone(), Entry::absent(welcome.cluster));
            self.admission.is_followed_here(xid);
        }
        self.step(now, xid, event);
    }

    /// The coordinator's word on the deadline counts, if it is the sooner one.
    pub(super) fn shorten_deadline(&mut self, now: Duration, xid: &Xid, remaining: Duration) {
        let Some(entry) = self.branches.get_mut(xid) else { return };
        let Some(deadline) = entry.deadline else { return };
        if now + remaining < deadline {
            entry.deadline = Some(now + remaining);
            self.deadlines.remove(&(deadline, xid.clone()));
            self.deadlines.insert((now + remaining, xid.clone()));
        }
    }

    pub(super) fn pass_deadlines(&mut self, now: Duration) {
        while let Some((deadline, xid)) = self.deadlines.first().cloned()
            && deadline <= now
        {
            self.deadlines.pop_first();
            self.branches.get_mut(&xid).expect("deadlines are of known branches").deadline = None;
            self.step(now, &xid, Event::DeadlinePassed);
        }
        self.refuse_waiting(
            |waiting| waiting.deadline <= now,
            |waiting| JoinError::Expired { gtrid: waiting.gtrid },
        );
    }

    pub(super) fn lose_branches(&mut self) {
        self.refuse_waiting(|_| true, |waiting| JoinError::NotAttached { gtrid: waiting.gtrid });
        let over = |entry: &Entry| matches!(entry.branch.state(), State::Ended(_));
        let living = self.branches.iter().filter(|(_, entry)| !over(entry)).map(|(xid, _)| xid.clone());
        for xid in living.collect::<Vec<_>>() {
            // The time means nothing: nobody waits any more.
            self.step(Duration::ZERO, &xid, Event::SessionLost);
        }
    }

    /// One step of a branch, its actions, and what follows for those who wait for it.
    fn step(&mut self, now: Duration, xid: &Xid, event: Event) {
        let entry = self.branches.get_mut(xid).expect("only known branches are stepped");
        let joining = matches!(entry.branch.state(), State::Opening(_));
        let before = (usize::from(entry.holds()), usize::from(entry.is_unsettled()));
        #[cfg(feature = "simulation")]
        self.seen.note(entry.branch.state(), &event);
        let not_known = matches!(event, Event::Resolved(Err(_)));
        let actions = match entry.branch.step(event) {
            Ok(actions) => actions,
            Err(impossible) => panic!("branch {xid}: {impossible}"),
        };
        self.holding = self.holding + usize::from(entry.holds()) - before.0;
        self.unsettled = self.unsettled + usize::from(entry.is_unsettled()) - before.1;
        if not_known && matches!(entry.branch.state(), State::Absent) {
            self.admission.is_left_as_it_was(xid);
        }
        for action in actions {
            self.act(xid, action, joining);
        }
        self.settle(now, xid);
    }

    fn act(&mut self, xid: &Xid, action: Action, joining: bool) {
        let entry = &self.branches[xid];
        let handler = entry.handler;
        let the_handler = || handler.expect("a handler waits");
        match action {
            Action::Run(operation) => {
                let branch = BranchId { cluster: entry.cluster, xid: xid.clone() };
                self.effects.push(Effect::Run(branch, operation));
            }
            Action::Enlist => self.send(ToCoordinator::Enlist(xid.clone())),
            Action::Vote(vote) => self.send(ToCoordinator::Vote(xid.clone(), vote)),
            Action::Acknowledge(applied) => self.send(ToCoordinator::Acknowledge(xid.clone(), applied)),
            Action::Hand => self.effects.push(Effect::Hand(the_handler(), xid.clone())),
            Action::Answer(Err(why)) if joining => {
                let error = join_error(xid.gtrid, &why, entry.unfit);
                self.effects.push(Effect::RefuseJoin(the_handler(), error));
            }
            Action::Answer(result) => {
                let result = result.map_err(|why| finish_error(xid.gtrid, &why));
                self.effects.push(Effect::AnswerFinish(the_handler(), result));
            }
            Action::AskLater(failed) => self.effects.push(Effect::AskLater(xid.clone(), failed)),
        }
    }

    fn settle(&mut self, now: Duration, xid: &Xid) {
        let entry = &self.branches[xid];
        if entry.branch.is_open() {
            self.serve_waiting(now, xid);
            return;
        }
        let (state, deadline) = (entry.branch.state().clone(), entry.deadline);
        if let Some(deadline) = deadline {
            self.deadlines.remove(&(deadline, xid.clone()));
            self.branches.get_mut(xid).expect("seen above").deadline = None;
        }
        if self.open.get(&xid.gtrid) == Some(xid) {
            self.open.remove(&xid.gtrid);
            let error = too_late(xid.gtrid, &state, self.voted_early.contains_key(&xid.gtrid));
            self.refuse_waiting(|waiting| waiting.gtrid == xid.gtrid, |_| error.clone());
        }
        match state {
            State::Absent => self.forget_branch(xid),
            State::Ended(_) => self.remember_ended(xid),
            State::Opening(_)
            | State::Open(_)
            | State::Doomed { .. }
            | State::Finding { .. }
            | State::Preparing { .. }
            | State::Prepared
            | State::CommittingOnePhase(_)
            | State::Applying
            | State::Undoing { .. } => {}
        }
    }

    /// Gives an idle branch to the handler that has waited longest for it.
    fn serve_waiting(&mut self, now: Duration, xid: &Xid) {
        let entry = self.branches.get_mut(xid).expect("open branches are known");
        if !entry.branch.is_idle() {
            return;
        }
        let Some(next) = self.waiting.iter().position(|waiting| waiting.gtrid == xid.gtrid) else { return };
        let waiting = self.waiting.remove(next).expect("found at this place");
        entry.handler = Some(waiting.handler);
        self.step(now, xid, Event::Joined(waiting.deadline.saturating_sub(now)));
    }

    fn refuse_waiting(&mut self, which: impl Fn(&Waiting) -> bool, error: impl Fn(&Waiting) -> JoinError) {
        let (refused, kept) =
            std::mem::take(&mut self.waiting).into_iter().partition(|waiting| which(waiting));
        self.waiting = kept;
        for waiting in VecDeque::into_iter(refused) {
            self.effects.push(Effect::RefuseJoin(waiting.handler, error(&waiting)));
        }
    }

    /// Keeps the newest ended branches. One that goes is no loss: the store answers for it.
    fn remember_ended(&mut self, xid: &Xid) {
        let entry = self.branches.get_mut(xid).expect("ended branches are known");
        if !std::mem::replace(&mut entry.remembered, true) {
            self.ended.push_back(xid.clone());
        }
        if self.ended.len() <= MAX_ENDED_BRANCHES {
            return;
        }
        let Some(oldest) = self.ended.pop_front() else { return };
        let Some(entry) = self.branches.get_mut(&oldest) else { return };
        entry.remembered = false;
        // One that a decision has woken again comes back to the list when it ends again.
        if matches!(entry.branch.state(), State::Ended(_)) {
            self.forget_branch(&oldest);
        }
    }

    fn forget_branch(&mut self, xid: &Xid) {
        self.branches.remove(xid);
        if self.voted_early.get(&xid.gtrid) == Some(xid) {
            self.voted_early.remove(&xid.gtrid);
        }
    }
}

fn join_error(gtrid: Gtrid, why: &Doom, unfit: bool) -> JoinError {
    let detail = why.to_string();
    match why {
        Doom::NotBegun(detail) if unfit => JoinError::StoreUnfit { gtrid, detail: detail.clone() },
        Doom::NotBegun(detail) => JoinError::StoreUnavailable { gtrid, detail: detail.clone() },
        Doom::Refused(refusal) if refusal.rollback_only => JoinError::RolledBack { gtrid, detail },
        Doom::Refused(refusal) => JoinError::Refused { gtrid, detail: refusal.detail.clone() },
        Doom::DeadlinePassed => JoinError::Expired { gtrid },
        Doom::HandlerRunning
        | Doom::HandlerGone
        | Doom::Decided
        | Doom::CommitWithoutVote
        | Doom::SessionLost
        | Doom::NotPrepared(_)
        | Doom::EndedByService(_) => JoinError::RolledBack { gtrid, detail },
    }
}

fn finish_error(gtrid: Gtrid, why: &Doom) -> FinishError {
    match why {
        Doom::Refused(refusal) if !refusal.rollback_only => {
            FinishError::Refused { gtrid, detail: refusal.detail.clone() }
        }
        Doom::EndedByService(why) => FinishError::Hazard { gtrid, detail: why.clone() },
        Doom::Refused(_)
        | Doom::HandlerRunning
        | Doom::HandlerGone
        | Doom::Decided
        | Doom::CommitWithoutVote
        | Doom::SessionLost
        | Doom::DeadlinePassed
        | Doom::NotBegun(_)
        | Doom::NotPrepared(_) => FinishError::RolledBack { gtrid, detail: why.to_string() },
    }
}

/// For a handler that waited for a branch which is not open any more, or comes after it. `early`: it voted unasked.
fn too_late(gtrid: Gtrid, state: &State, early: bool) -> JoinError {
    match state {
        State::Doomed { why, .. } | State::Ended(End::NeverPrepared(why)) => {
            JoinError::RolledBack { gtrid, detail: why.to_string() }
        }
        State::Ended(End::Refused(why)) if early => {
            JoinError::RolledBack { gtrid, detail: Doom::NotPrepared(why.clone()).to_string() }
        }
        State::Undoing { why, .. } if early => JoinError::RolledBack { gtrid, detail: why.clone() },
        State::Absent
        | State::Opening(_)
        | State::Open(_)
        | State::Finding { .. }
        | State::Preparing { .. }
        | State::Prepared
        | State::CommittingOnePhase(_)
        | State::Applying
        | State::Undoing { .. }
        | State::Ended(End::Refused(_) | End::ReadOnly | End::Proved(_)) => {
            if early {
                JoinError::Voted { gtrid }
            } else {
                JoinError::Refused { gtrid, detail: "commit was requested already".to_owned() }
            }
        }
    }
}
