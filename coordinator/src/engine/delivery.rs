//! Delivering decisions: to each resource manager in its own queue, until each is acknowledged.
//!
//! A queue sends at most [`WINDOW`] decisions ahead of their acknowledgements, so that ten thousand in-doubt branches after a
//! restart do not flood a participant. What cannot be delivered waits with a capped, jittered backoff, or for the resource manager to
//! attach, and never stands behind another resource manager's. Pure: time comes in as an argument, and the jitter follows from the
//! branch's name, so that a run repeats exactly.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use lockstep_proto::{ResourceManagerName, Xid};

use crate::protocol::event::Message;

/// One attached stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Time since the coordinator started. Never the wall clock.
pub type Monotonic = Duration;

/// Decisions that a resource manager may have unacknowledged from one shard: enough to keep it busy over a round trip,
/// few enough to be handled within [`PATIENCE`] by one that needs 10 ms for each.
pub const WINDOW: usize = 512;
/// A decision that nobody acknowledged for so long is sent again: a participant may repeat the work, its evidence tells it
/// that it has done it.
pub const PATIENCE: Duration = Duration::from_secs(15);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the ready queue.
    Ready,
    /// Sent over this session, to be sent again at this time.
    InFlight(SessionId, Monotonic),
    /// Failed; to be tried again at this time.
    BackingOff(Monotonic),
}

#[derive(Debug, Clone)]
struct Delivery {
    message: Message,
    /// The instance that holds the branch open, and finishes it fastest.
    preferred: Option<SessionId>,
    attempts: u32,
    last_error: String,
    place: Place,
}

/// What people see of a delivery.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeliveryView {
    /// How often it was sent.
    pub attempts: u32,
    /// Until it is sent again, if that is planned.
    pub next_in: Option<Duration>,
    /// What stood in the way the last time; empty if nothing did.
    pub last_error: String,
}

/// One resource manager's queue.
#[derive(Debug, Default)]
struct Queue {
    sessions: Vec<SessionId>,
    deliveries: BTreeMap<Xid, Delivery>,
    ready: VecDeque<Xid>,
    timers: BTreeSet<(Monotonic, Xid)>,
    in_flight: usize,
    next_session: usize,
}

/// A decision that is to be sent now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// Over this session.
    pub session: SessionId,
    /// About this branch.
    pub xid: Xid,
    /// What it is told.
    pub message: Message,
}

/// All queues of one shard.
#[derive(Debug, Default)]
pub struct Deliveries {
    queues: BTreeMap<ResourceManagerName, Queue>,
}

impl Deliveries {
    /// A new decision to deliver. It goes out with the next [`Deliveries::pump`].
    pub fn enqueue(&mut self, xid: Xid, message: Message, preferred: Option<SessionId>) {
        let queue = self.queues.entry(xid.bqual.resource_manager()).or_default();
        // A rollback may follow an earlier message of the same branch; the newest one counts.
        queue.remove(&xid);
        let delivery =
            Delivery { message, preferred, attempts: 0, last_error: String::new(), place: Place::Ready };
        queue.ready.push_back(xid.clone());
        queue.deliveries.insert(xid, delivery);
    }

    /// A session of this resource manager attached: everything that waited for one may go.
    pub fn attached(&mut self, session: SessionId, resource_manager: ResourceManagerName) {
        let queue = self.queues.entry(resource_manager).or_default();
        queue.sessions.push(session);
        let waiting: Vec<Xid> = queue.timers.iter().map(|(_, xid)| xid.clone()).collect();
        for xid in waiting {
            if let Some(Place::BackingOff(_)) = queue.deliveries.get(&xid).map(|delivery| delivery.place) {
                queue.make_ready(&xid);
            }
        }
    }

    /// A session ended: what it had in flight may have arrived or not, and is sent again over another one.
    pub fn detached(&mut self, session: SessionId) {
        for queue in self.queues.values_mut() {
            queue.sessions.retain(|other| *other != session);
            let over_it =
                |delivery: &Delivery| matches!(delivery.place, Place::InFlight(over, _) if over == session);
            let unsure: Vec<Xid> = queue
                .deliveries
                .iter()
                .filter(|(_, delivery)| over_it(delivery))
                .map(|(xid, _)| xid.clone())
                .collect();
            for xid in unsure {
                queue.fail(&xid, "the session broke before it was acknowledged");
                queue.make_ready(&xid);
            }
        }
        self.queues.retain(|_, queue| !queue.is_idle());
    }

    /// The branch has ended: nothing is left to deliver to it.
    pub fn remove(&mut self, xid: &Xid) {
        let name = xid.bqual.resource_manager();
        if let Some(queue) = self.queues.get_mut(&name) {
            queue.remove(xid);
            if queue.is_idle() {
                self.queues.remove(&name);
            }
        }
    }

    /// The participant cannot do it now, and says why. It is sent again after a backoff.
    pub fn not_yet(&mut self, xid: &Xid, why: &str, now: Monotonic) {
        let Some(queue) = self.queues.get_mut(&xid.bqual.resource_manager()) else {
            return;
        };
        let Some(Place::InFlight(..)) = queue.deliveries.get(xid).map(|delivery| delivery.place) else {
            return;
        };
        queue.fail(xid, why);
        let attempts = queue.deliveries[xid].attempts;
        queue.place(xid, Place::BackingOff(now + backoff(xid, attempts)));
    }

    /// When [`Deliveries::pump`] has to be called again though nothing else happened.
    #[must_use]
    pub fn next_timer(&self) -> Option<Monotonic> {
        self.queues.values().filter_map(|queue| queue.timers.first().map(|(at, _)| *at)).min()
    }

    /// Everything that may be sent now.
    #[must_use = "what is returned counts as sent"]
    pub fn pump(&mut self, now: Monotonic) -> Vec<Due> {
        let mut due = Vec::new();
        for queue in self.queues.values_mut() {
            queue.wake(now);
            queue.send(now, &mut due);
        }
        due
    }

    /// What people see of the delivery to this branch, if there is one.
    #[must_use]
    pub fn view(&self, xid: &Xid, now: Monotonic) -> Option<DeliveryView> {
        let queue = self.queues.get(&xid.bqual.resource_manager())?;
        let delivery = queue.deliveries.get(xid)?;
        let next_in = match delivery.place {
            Place::Ready => None,
            Place::InFlight(_, at) | Place::BackingOff(at) => Some(at.saturating_sub(now)),
        };
        let waits = queue.sessions.is_empty() && delivery.place == Place::Ready;
        let last_error = if waits { "no instance attached".to_owned() } else { delivery.last_error.clone() };
        Some(DeliveryView { attempts: delivery.attempts, next_in, last_error })
    }

    /// How many decisions are not acknowledged.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queues.values().map(|queue| queue.deliveries.len()).sum()
    }

    /// Whether every decision is acknowledged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Queue {
    fn is_idle(&self) -> bool {
        self.sessions.is_empty() && self.deliveries.is_empty()
    }

    /// Moves a delivery, keeping the timers and the window right.
    fn place(&mut self, xid: &Xid, to: Place) {
        let Some(delivery) = self.deliveries.get_mut(xid) else {
            return;
        };
        match delivery.place {
            Place::Ready => {}
            Place::InFlight(_, at) => {
                self.in_flight -= 1;
                self.timers.remove(&(at, xid.clone()));
            }
            Place::BackingOff(at) => {
                self.timers.remove(&(at, xid.clone()));
            }
        }
        match to {
            Place::Ready => self.ready.push_back(xid.clone()),
            Place::InFlight(_, at) => {
                self.in_flight += 1;
                self.timers.insert((at, xid.clone()));
            }
            Place::BackingOff(at) => {
                self.timers.insert((at, xid.clone()));
            }
        }
        delivery.place = to;
    }

    fn make_ready(&mut self, xid: &Xid) {
        self.place(xid, Place::Ready);
    }

    fn fail(&mut self, xid: &Xid, why: &str) {
        if let Some(delivery) = self.deliveries.get_mut(xid) {
            why.clone_into(&mut delivery.last_error);
        }
    }

    fn remove(&mut self, xid: &Xid) {
        match self.deliveries.get(xid).map(|delivery| delivery.place) {
            // A name left in the ready queue does no harm: `send` passes over it, and searching for it would cost more.
            None | Some(Place::Ready) => {}
            Some(Place::InFlight(_, at)) => {
                self.in_flight -= 1;
                self.timers.remove(&(at, xid.clone()));
            }
            Some(Place::BackingOff(at)) => {
                self.timers.remove(&(at, xid.clone()));
            }
        }
        self.deliveries.remove(xid);
    }

    /// Makes everything ready whose time has come.
    fn wake(&mut self, now: Monotonic) {
        while let Some((at, xid)) = self.timers.first().cloned() {
            if at > now {
                return;
            }
            if let Some(Place::InFlight(..)) = self.deliveries.get(&xid).map(|delivery| delivery.place) {
                self.fail(&xid, "it was not acknowledged in time");
            }
            self.make_ready(&xid);
        }
    }

    fn send(&mut self, now: Monotonic, due: &mut Vec<Due>) {
        while self.in_flight < WINDOW && !self.sessions.is_empty() {
            let Some(xid) = self.ready.pop_front() else { return };
            let is_ready = self.deliveries.get(&xid).is_some_and(|delivery| delivery.place == Place::Ready);
            if !is_ready {
                continue;
            }
            let session = self.choose_session(&xid);
            let Some(delivery) = self.deliveries.get_mut(&xid) else {
                continue;
            };
            delivery.attempts += 1;
            let message = delivery.message;
            self.place(&xid, Place::InFlight(session, now + PATIENCE));
            due.push(Due { session, xid, message });
        }
    }

    /// The instance that has the branch, or else each in turn.
    fn choose_session(&mut self, xid: &Xid) -> SessionId {
        let preferred = self.deliveries.get(xid).and_then(|delivery| delivery.preferred);
        if let Some(preferred) = preferred.filter(|session| self.sessions.contains(session)) {
            return preferred;
        }
        self.next_session = (self.next_session + 1) % self.sessions.len();
        self.sessions[self.next_session]
    }
}

/// Doubles from [`FIRST_BACKOFF`] to [`LONGEST_BACKOFF`], and takes between half and all of it: branches that failed
/// together do not come back together.
fn backoff(xid: &Xid, attempts: u32) -> Duration {
    let doubled = FIRST_BACKOFF.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(LONGEST_BACKOFF);
    let mut hasher = DefaultHasher::new();
    (xid, attempts).hash(&mut hasher);
    let share = u32::try_from(hasher.finish() % 1024).expect("below 1024");
    doubled / 2 + (doubled / 2) * share / 1024
}
