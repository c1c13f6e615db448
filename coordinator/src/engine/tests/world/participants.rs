//! The participants and their databases.

use lockstep_proto::Xid;

use super::{Choice, Flight, FromParticipant, Local, World, pick, votes};
use crate::engine::delivery::SessionId;
use crate::engine::input::{Acknowledgement, ToParticipant};
use crate::protocol::event::{Applied, Vote};

impl World {
    pub(super) fn reply(&mut self, session: SessionId, message: FromParticipant) {
        self.flights.push(Flight::ToShard(session, message));
    }

    pub(super) fn acknowledge(&mut self, session: SessionId, xid: Xid, applied: Applied) {
        self.reply(session, FromParticipant::Acknowledge(xid, Acknowledgement::Ended(applied)));
    }

    pub(super) fn give_to_participant(&mut self, session: SessionId, message: ToParticipant, how: Choice) {
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

    pub(super) fn prepare(&mut self, session: SessionId, xid: Xid, how: Choice) {
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
            Vote::Hazard(_) => unreachable!("no service of this world commits by itself"),
        };
        self.reply(session, FromParticipant::Vote(xid, vote));
    }

    /// Commits what stands at `from`, or rolls back; tells what became of it if it is over; and puts a fence in if there is
    /// nothing (P15).
    pub(super) fn apply(&mut self, session: SessionId, xid: Xid, from: Option<Local>, how: Choice) {
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
}
