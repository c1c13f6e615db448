//! What attached sessions tell a shard: that they come and go, enlist, vote and acknowledge.
//!
//! Nothing in here trusts a participant: what does not fit is refused, and nothing changes.

use std::collections::BTreeSet;

use lockstep_proto::museum::mutated;
use lockstep_proto::{ResourceManagerName, Xid};

use super::{Session, Shard};
use crate::engine::delivery::SessionId;
use crate::engine::input::{Acknowledgement, Now, Output, Refusal, ToParticipant};
use crate::protocol::event::{Applied, Event, Message, Vote};

impl<R> Shard<R> {
    pub(super) fn attached(&mut self, session: SessionId, resource_manager: ResourceManagerName) {
        self.deliveries.attached(session, resource_manager.clone());
        let earlier = self.sessions.insert(session, Session { resource_manager, open: BTreeSet::new() });
        assert!(earlier.is_none(), "a session's number is never used twice: {session:?}");
    }

    pub(super) fn detached(&mut self, session: SessionId, now: Now) {
        let Some(ended) = self.sessions.remove(&session) else { return };
        self.deliveries.detached(session);
        for xid in ended.open {
            // The loss of one branch may have ended the transaction, and with it the others.
            if self.live.contains_key(&xid.gtrid) {
                let lost = Event::BranchLost(xid.bqual.clone());
                self.step_branch(&xid, lost, now).expect("a branch that is open can be lost");
            }
        }
    }

    pub(super) fn enlist(&mut self, session: SessionId, xid: Xid, now: Now) {
        let Some(from) = self.sessions.get_mut(&session) else { return };
        if xid.bqual.resource_manager_str() != from.resource_manager.as_str() {
            self.send(session, ToParticipant::EnlistRefused(xid, Refusal::ForeignBranch));
            return;
        }
        let Some(live) = self.live.get_mut(&xid.gtrid) else {
            self.send(session, ToParticipant::EnlistRefused(xid, Refusal::NotActive));
            return;
        };
        let event = Event::Enlist(xid.bqual.clone());
        #[cfg(feature = "simulation")]
        self.seen.note(live.transaction.state(), &event);
        let effects = live.transaction.step(event, now.unix_ms);
        let messages = effects.expect("every state answers an enlist").messages;
        let (_, message) = messages.into_iter().next().expect("every state answers an enlist");
        if message == Message::Enlisted {
            live.held_by.insert(xid.bqual.clone(), session);
            from.open.insert(xid.clone());
        }
        // To who asked, which need not be who holds a branch of that name.
        let message = self.to_participant(xid, message, now.monotonic);
        self.send(session, message);
    }

    pub(super) fn vote(&mut self, session: SessionId, xid: Xid, vote: Vote, now: Now) {
        if !self.may_speak_for(session, &xid) {
            return;
        }
        let Some(live) = self.live.get(&xid.gtrid) else {
            match vote {
                Vote::Commit => self.outputs.sent.push(Output::StrayVote(session, xid)),
                // The outcome may have been told already: it is put on record beside that.
                Vote::Hazard(_) => self.outputs.sent.push(Output::StrayAcknowledgement(xid, Applied::Hazard)),
                Vote::Rollback(_) | Vote::ReadOnly => {}
            }
            return;
        };
        // Anyone else's word would end a branch that somebody holds open, or that only evidence may end (P10, P12).
        if live.held_by.get(&xid.bqual) != Some(&session) && !mutated("anyone-votes") {
            let why = "this session has not enlisted the branch, and only who has may vote for it".to_owned();
            self.send(session, ToParticipant::Refused(xid, why));
            return;
        }
        let event = Event::Voted(xid.bqual.clone(), vote);
        self.step_for(session, xid, event, now);
    }

    pub(super) fn acknowledge(
        &mut self,
        session: SessionId,
        xid: Xid,
        acknowledgement: Acknowledgement,
        now: Now,
    ) {
        if !self.may_speak_for(session, &xid) {
            return;
        }
        match acknowledgement {
            Acknowledgement::NotYet(why) => self.deliveries.not_yet(&xid, &why, now.monotonic),
            Acknowledgement::Ended(applied) => self.branch_ended(session, xid, applied, now),
        }
    }

    /// Any instance of the resource manager may have ended a prepared branch (P24).
    fn branch_ended(&mut self, session: SessionId, xid: Xid, applied: Applied, now: Now) {
        if !self.live.contains_key(&xid.gtrid) {
            self.outputs.sent.push(Output::StrayAcknowledgement(xid, applied));
            return;
        }
        let event = Event::Acknowledged(xid.bqual.clone(), applied);
        self.step_for(session, xid, event, now);
    }

    /// What does not fit is the participant's fault, and it is told.
    fn step_for(&mut self, session: SessionId, xid: Xid, event: Event, now: Now) {
        if let Err(rejected) = self.step_branch(&xid, event, now) {
            self.send(session, ToParticipant::Refused(xid, rejected.to_string()));
        }
    }

    /// A participant speaks only for the branches of its own resource manager, and only while it is attached: of a session that has
    /// ended nobody is there to be answered.
    fn may_speak_for(&mut self, session: SessionId, xid: &Xid) -> bool {
        let Some(from) = self.sessions.get(&session) else { return false };
        if xid.bqual.resource_manager_str() == from.resource_manager.as_str() {
            return true;
        }
        let why = format!("this branch is not of {}", from.resource_manager);
        self.send(session, ToParticipant::Refused(xid.clone(), why));
        false
    }
}
