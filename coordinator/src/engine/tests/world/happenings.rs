//! What happens: work, and faults.

use std::time::Duration;

use lockstep_proto::{Bqual, Gtrid, Xid};

use super::{
    Asked, Choice, Flight, FromParticipant, Local, RESOURCE_MANAGERS, World, applied, nobodys, pick, votes,
};
use crate::engine::delivery::SessionId;
use crate::engine::input::{Acknowledgement, Input, Wait};
use crate::protocol::record::About;
use crate::protocol::tests::names::resource_manager;

impl World {
    pub(in crate::engine::tests) fn begin(&mut self, timeout: Duration) {
        let reply = self.ask(Asked::Begin);
        let mut random = [0; 10];
        random[2..].copy_from_slice(&self.counter.to_be_bytes());
        self.step(Input::Begin { random, timeout, about: About::default(), reply });
    }

    /// One of the newest, since the others are likely to be over; the newest of all for the last choice.
    pub(super) fn transaction(&self, choice: Choice) -> Option<Gtrid> {
        let newest = self.begun.iter().rev().take(4).copied().collect::<Vec<_>>();
        pick(&newest, Choice::MAX - choice).copied()
    }

    pub(in crate::engine::tests) fn enlist(&mut self, transaction: Choice, session: Choice) {
        let sessions: Vec<_> = self.sessions.keys().copied().collect();
        let (Some(gtrid), Some(session)) = (self.transaction(transaction), pick(&sessions, session)) else {
            return;
        };
        let number = self.next();
        let bqual = Bqual::new(&resource_manager(self.sessions[session]), number);
        let xid = Xid { gtrid, bqual };
        self.branches.insert(xid.clone(), Local::Open(*session));
        self.enlisted_over.insert(xid.clone(), *session);
        self.flights.push(Flight::ToShard(*session, FromParticipant::Enlist(xid)));
    }

    pub(in crate::engine::tests) fn commit(&mut self, transaction: Choice, wait: Wait) {
        let Some(gtrid) = self.transaction(transaction) else { return };
        let reply = self.ask(Asked::Outcome(gtrid));
        self.step(Input::Commit { gtrid, wait, reply });
    }

    pub(in crate::engine::tests) fn rollback(&mut self, transaction: Choice) {
        let Some(gtrid) = self.transaction(transaction) else { return };
        let reply = self.ask(Asked::Outcome(gtrid));
        self.step(Input::Rollback { gtrid, why: "changed my mind".into(), reply });
    }

    pub(in crate::engine::tests) fn inquire(&mut self, transaction: Choice) {
        let Some(gtrid) = self.transaction(transaction) else { return };
        let reply = self.ask(Asked::Outcome(gtrid));
        self.step(Input::Inquire { gtrid, reply });
    }

    /// A branch votes before it is asked.
    pub(in crate::engine::tests) fn vote_early(&mut self, branch: Choice, how: Choice) {
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
    pub(in crate::engine::tests) fn deliver(&mut self, flight: Choice, twice: bool, how: Choice) {
        if self.flights.is_empty() {
            return;
        }
        let index = usize::from(flight) % self.flights.len();
        let flight = if twice { self.flights[index].clone() } else { self.flights.remove(index) };
        self.arrive(flight, how);
    }

    /// What was sent last arrives first.
    pub(in crate::engine::tests) fn deliver_last(&mut self) {
        if let Some(flight) = self.flights.pop() {
            self.arrive(flight, 0);
        }
    }

    pub(super) fn arrive(&mut self, flight: Flight, how: Choice) {
        match flight {
            Flight::ToShard(session, message) => self.give_to_shard(session, message),
            Flight::ToParticipant(session, message) => self.give_to_participant(session, message, how),
        }
    }

    pub(super) fn give_to_shard(&mut self, session: SessionId, message: FromParticipant) {
        self.step(match message {
            FromParticipant::Enlist(xid) => Input::Enlist { session, xid },
            FromParticipant::Vote(xid, vote) => Input::Vote { session, xid, vote },
            FromParticipant::Acknowledge(xid, acknowledgement) => {
                Input::Acknowledge { session, xid, acknowledgement }
            }
        });
    }

    pub(in crate::engine::tests) fn lose(&mut self, flight: Choice) {
        if !self.flights.is_empty() {
            self.flights.remove(usize::from(flight) % self.flights.len());
        }
    }

    /// What an ended session had sent arrives after all.
    pub(in crate::engine::tests) fn deliver_stale(&mut self, choice: Choice) {
        if !self.stale.is_empty() {
            let (session, message) = self.stale.remove(usize::from(choice) % self.stale.len());
            self.give_to_shard(session, message);
        }
    }

    /// Another session's word about a branch, or a word about a branch that never was. Only an acknowledgement of its own
    /// resource manager must be believed, and nobody lies about that here.
    pub(in crate::engine::tests) fn confuse(&mut self, session: Choice, branch: Choice, how: Choice) {
        let sessions: Vec<_> = self.sessions.keys().copied().collect();
        let branches: Vec<_> = self.branches.keys().cloned().collect();
        let (Some(session), Some(xid)) = (pick(&sessions, session), pick(&branches, branch)) else { return };
        let own = self.sessions[session] == xid.bqual.resource_manager_str();
        let message = if how.is_multiple_of(2) && self.enlisted_over.get(xid) != Some(session) {
            let vote = pick(&votes(), how / 2).unwrap().clone();
            FromParticipant::Vote(xid.clone(), vote)
        } else {
            let xid = if own { Xid { gtrid: xid.gtrid, bqual: nobodys(xid) } } else { xid.clone() };
            let applied = *pick(&applied(), how / 2).unwrap();
            FromParticipant::Acknowledge(xid, Acknowledgement::Ended(applied))
        };
        self.give_to_shard(*session, message);
    }

    pub(in crate::engine::tests) fn attach(&mut self, resource_manager: Choice) {
        let name = *pick(&RESOURCE_MANAGERS, resource_manager).unwrap();
        let session = SessionId(self.next());
        self.sessions.insert(session, name);
        self.step(Input::Attached { session, resource_manager: name.parse().unwrap() });
        self.list(session);
    }

    /// A participant lists what it has prepared (P20).
    pub(in crate::engine::tests) fn list_again(&mut self, session: Choice) {
        let sessions: Vec<_> = self.sessions.keys().copied().collect();
        if let Some(session) = pick(&sessions, session) {
            self.list(*session);
        }
    }

    pub(super) fn list(&mut self, session: SessionId) {
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
    pub(in crate::engine::tests) fn break_session(&mut self, session: Choice) {
        let sessions: Vec<_> = self.sessions.keys().copied().collect();
        if let Some(session) = pick(&sessions, session) {
            self.end_session(*session);
            self.step(Input::Detached { session: *session });
        }
    }

    pub(super) fn end_session(&mut self, session: SessionId) {
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

    pub(in crate::engine::tests) fn wait(&mut self, duration: Duration) {
        let until = self.now + duration;
        while let Some(due) = self.shard.next_timer().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.step(Input::Tick);
        }
        self.now = until;
    }

    /// Time passes, and the shell is too busy to notice.
    pub(in crate::engine::tests) fn stall(&mut self, duration: Duration) {
        self.now += duration;
    }

    /// An administrator ends a prepared branch.
    pub(in crate::engine::tests) fn by_hand(&mut self, branch: Choice, commit: bool) {
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
}
