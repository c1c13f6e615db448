//! Admission: a branch that could not be prepared is refused before it is begun, while its caller can still do without it.
//!
//! A prepared branch takes a slot of the store, an open one a connection. What this process holds is counted here, exactly and
//! at once: every open branch may have to be prepared. What others hold only the store knows, and is asked when a branch is
//! joined and the last answer has grown old; nobody waits for that answer.
//!
//! Only new branches are refused. Whatever ends one (prepare, commit, rollback, a listing) never looks at these numbers.

use std::collections::BTreeSet;
use std::time::Duration;

use lockstep_proto::{Gtrid, Xid};

use super::{Effect, Session};
use crate::error::JoinError;
use crate::resource::{Room, Unresolved};

/// How old an answer may be before the store is asked again: others take and free slots meanwhile.
const FRESH: Duration = Duration::from_secs(1);
/// The same after a refusal: whoever is refused tries again soon, and should find what has become free.
const FRESH_WHEN_FULL: Duration = Duration::from_millis(50);

/// Branches that may wait for one connection: whoever comes last waits as long as so many transactions take, one after the
/// other. More would find their time over, and keep others from being refused early.
const WAITING_FOR_A_CONNECTION: usize = 4;

/// What is known of the store's room.
#[derive(Debug, Default)]
pub(super) struct Admission {
    limits: Option<Limits>,
    as_of: Duration,
    /// The store is being asked.
    asked: bool,
}

/// The store's limits, for this process.
#[derive(Debug)]
struct Limits {
    slots: usize,
    /// Slots that others than this resource manager hold.
    taken_by_others: usize,
    /// Branches of this resource manager that are prepared, and that this process does not count itself.
    elsewhere: BTreeSet<Xid>,
    connections: usize,
}

impl Admission {
    /// This process has been told about a branch, and counts it itself from now on.
    pub(super) fn is_followed_here(&mut self, xid: &Xid) {
        if let Some(limits) = &mut self.limits {
            limits.elsewhere.remove(xid);
        }
    }

    /// The store could not say what became of it, and this process lets go of it: it may be prepared as before.
    pub(super) fn is_left_as_it_was(&mut self, xid: &Xid) {
        if let Some(limits) = &mut self.limits {
            limits.elsewhere.insert(xid.clone());
        }
    }
}

impl Session {
    pub(super) fn room_found(&mut self, now: Duration, result: Result<Option<Room>, Unresolved>) {
        self.admission.asked = false;
        self.admission.as_of = now;
        // A store that can't be asked now says so when the branch is begun; the last answer is the best there is.
        let Ok(room) = result else { return };
        self.admission.limits = room.map(|room| {
            // One that has ended here since the store was asked is no longer taken; one that is being prepared is counted
            // as open.
            let prepared = room.prepared.into_iter().map(|branch| branch.xid);
            Limits {
                slots: room.slots,
                taken_by_others: room.prepared_by_others,
                elsewhere: prepared.filter(|xid| !self.knows(xid)).collect(),
                connections: room.connections,
            }
        });
    }

    /// Whether the store has room for one branch more.
    pub(super) fn admit(&mut self, now: Duration, gtrid: Gtrid) -> Result<(), JoinError> {
        let Some(limits) = &self.admission.limits else { return Ok(()) };
        let refusal = self.no_room(limits);
        let fresh = if refusal.is_some() { FRESH_WHEN_FULL } else { FRESH };
        if !self.admission.asked && now >= self.admission.as_of + fresh {
            self.admission.asked = true;
            self.effects.push(Effect::FindRoom);
        }
        refusal.map_or(Ok(()), |detail| Err(JoinError::NoRoom { gtrid, detail }))
    }

    fn no_room(&self, limits: &Limits) -> Option<String> {
        let Limits { slots, taken_by_others, elsewhere, connections } = limits;
        let (slots, connections) = (*slots, *connections);
        let taken_by_others = taken_by_others + elsewhere.len();
        if self.unsettled + taken_by_others >= slots {
            return Some(format!(
                "of its {slots} slots for prepared branches, {} belong to open and prepared branches of this process, and \
                 {taken_by_others} to others",
                self.unsettled
            ));
        }
        (self.holding >= connections.saturating_mul(1 + WAITING_FOR_A_CONNECTION)).then(|| {
            format!(
                "open branches have all {connections} connections of the pool, and {} more wait for one",
                self.holding - connections
            )
        })
    }
}
