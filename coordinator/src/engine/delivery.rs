//! Delivering decisions: to each resource manager in its own queue, until each is acknowledged.
//!
//! A decision that is durable must arrive, whatever breaks on the way; so a delivery leaves its queue only when its branch has
//! ended. Until then it is in exactly one of four places, of which an operator alone uses *paused*:
//!
//! ```text
//!               a session has room                 acknowledged
//!   ready ───────────────────────────▶ in flight ───────────────▶ gone
//!     ▲                                 │     │
//!     ├── no answer in time, or the ────┘     │ "not yet"
//!     │   session broke                       ▼
//!     └──────── its time has come ─────── backing off
//!               or an instance attached
//!
//!   any of them ── pause ──▶ paused ── resume ──▶ ready
//! ```
//!
//! A queue sends at most [`WINDOW`] decisions ahead of their acknowledgements, so that ten thousand in-doubt branches after a
//! restart do not flood a participant. Nor do they hold up what is new: what is ready stands in two lanes that take turns, and what is
//! left over takes no more than half of the window. What cannot be delivered waits with a capped, jittered backoff, or for the resource
//! manager to attach, and never stands behind another resource manager's. Pure: time comes in as an argument, and the jitter
//! follows from the branch's name, so that a run repeats exactly.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockstep_proto::museum::mutated;
use lockstep_proto::{ResourceManagerName, Xid};

use crate::protocol::event::Message;

/// One attached stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Time since the coordinator started. Never the wall clock.
pub type Monotonic = Duration;

/// Decisions that a resource manager may have unacknowledged from one shard: enough to keep it busy over a round trip (a participant
/// does 32 things at once), few enough that a new one behind them does not wait long.
pub const WINDOW: usize = 64;
/// How many of these may be left over: one that its participant can't carry out keeps its place until its time is over, and many of them must
/// leave places for what is new.
pub const LEFT_OVER_WINDOW: usize = WINDOW / 2;
/// A decision that nobody acknowledged for so long is sent again: a participant may repeat the work, its evidence tells it
/// that it has done it. Twice as long each time, up to [`LONGEST_PATIENCE`]: what is slow already must not be given the same work
/// again and again.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// The longest time without an answer.
pub const LONGEST_PATIENCE: Duration = Duration::from_secs(120);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Its number among those of its lane.
    Ready(u64),
    /// Sent over this session, to be sent again at this time.
    InFlight(SessionId, Monotonic),
    /// Failed; to be tried again at this time.
    BackingOff(Monotonic),
    /// Held back by an operator.
    Paused,
}

#[derive(Debug, Clone)]
struct Delivery {
    message: Message,
    lane: Lane,
    /// The instance that holds the branch, and finishes it fastest.
    preferred: Option<SessionId>,
    /// Where it was sent the last time.
    sent_over: Option<SessionId>,
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

type Timers = BTreeSet<(Monotonic, Xid)>;

/// Where a delivery stands among those that are ready. While there is something in both lanes, they take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    /// The instance that has the branch is told for the first time.
    New,
    /// Left over by a restart, or by an attempt that led to nothing.
    LeftOver,
}

/// What is ready in each lane, in the order in which it became so.
#[derive(Debug, Default, PartialEq, Eq)]
struct Lanes {
    new: BTreeMap<u64, Xid>,
    left_over: BTreeMap<u64, Xid>,
}

impl Lanes {
    const fn of(&mut self, lane: Lane) -> &mut BTreeMap<u64, Xid> {
        match lane {
            Lane::New => &mut self.new,
            Lane::LeftOver => &mut self.left_over,
        }
    }
}

/// All queues of one shard.
#[derive(Debug, Default)]
pub struct Deliveries {
    queues: BTreeMap<ResourceManagerName, Queue>,
    sessions: BTreeMap<SessionId, ResourceManagerName>,
    /// When something in flight, or backing off, is ready again.
    timers: Timers,
    /// Queues that may have something to send since the last pump: a shard takes very many inputs, and most concern none.
    touched: BTreeSet<ResourceManagerName>,
}

/// One resource manager's queue. Each delivery is in the index of the place where it is, and in no other.
#[derive(Debug, Default)]
struct Queue {
    sessions: Vec<SessionId>,
    next_session: usize,
    deliveries: BTreeMap<Xid, Delivery>,
    ready: Lanes,
    /// The last number that was given out to what became ready.
    last_number: u64,
    /// Whose turn it is not.
    last_was_new: bool,
    in_flight: BTreeSet<(SessionId, Xid)>,
    /// How many of those in flight are of the lane of what is left over.
    left_over_in_flight: usize,
    backing_off: BTreeSet<Xid>,
    paused: BTreeSet<Xid>,
}

impl Deliveries {
    /// A new decision to deliver. It goes out with the next [`Deliveries::pump`]. A message that is still being delivered to
    /// the same branch is replaced.
    pub fn enqueue(&mut self, xid: Xid, message: Message, preferred: Option<SessionId>) {
        let name = xid.bqual.resource_manager();
        let queue = self.queues.entry(name.clone()).or_default();
        queue.remove(&xid, &mut self.timers);
        queue.add(xid, message, preferred);
        self.touched.insert(name);
    }

    /// A session of this resource manager attached: everything that waited for one may go, also what failed elsewhere.
    pub fn attached(&mut self, session: SessionId, resource_manager: ResourceManagerName) {
        self.sessions.insert(session, resource_manager.clone());
        let queue = self.queues.entry(resource_manager.clone()).or_default();
        queue.sessions.push(session);
        for xid in queue.backing_off.clone() {
            queue.make_ready(&xid, &mut self.timers);
        }
        self.touched.insert(resource_manager);
    }

    /// A session ended: what it had in flight may have arrived or not, and is sent again over another one.
    pub fn detached(&mut self, session: SessionId) {
        let Some(name) = self.sessions.remove(&session) else { return };
        let queue = self.queues.get_mut(&name).expect("an attached resource manager has a queue");
        queue.sessions.retain(|other| *other != session);
        for xid in queue.in_flight_over(session) {
            queue.note_error(&xid, "the session broke before it was acknowledged");
            queue.make_ready(&xid, &mut self.timers);
        }
        // Whoever is told now has to find the branch first.
        for xid in queue.new_for(session) {
            queue.make_ready(&xid, &mut self.timers);
        }
        self.touched.insert(name.clone());
        self.remove_if_idle(&name);
    }

    /// The branch has ended: nothing is left to deliver to it.
    pub fn remove(&mut self, xid: &Xid) {
        let name = xid.bqual.resource_manager();
        let Some(queue) = self.queues.get_mut(&name) else { return };
        if queue.remove(xid, &mut self.timers) {
            self.touched.insert(name.clone());
            self.remove_if_idle(&name);
        }
    }

    fn remove_if_idle(&mut self, name: &ResourceManagerName) {
        let idle = |queue: &Queue| queue.sessions.is_empty() && queue.deliveries.is_empty();
        if self.queues.get(name).is_some_and(idle) {
            self.queues.remove(name);
        }
    }

    /// The participant cannot do it now, and says why. It is sent again after a backoff. Nothing happens unless it is in
    /// flight: the answer came late.
    pub fn not_yet(&mut self, xid: &Xid, why: &str, now: Monotonic) {
        let name = xid.bqual.resource_manager();
        let Some(queue) = self.queues.get_mut(&name) else { return };
        let Some(delivery) = queue.deliveries.get(xid) else { return };
        if let Place::InFlight(..) = delivery.place {
            let again = now + backoff(xid, delivery.attempts);
            queue.note_error(xid, why);
            queue.back_off(xid, again, &mut self.timers);
            self.touched.insert(name);
        }
    }

    /// Makes it ready, whatever it was waiting for, unless it is paused: it goes out as soon as there is a place in the window for what is
    /// left over. Whether there is a delivery to send.
    pub fn retry(&mut self, xid: &Xid) -> bool {
        self.move_to_ready(xid, |place| place != Place::Paused)
    }

    /// Holds it back until [`Deliveries::resume`]. One that is in flight may have arrived; its acknowledgement is still taken.
    /// Whether there is a delivery to hold back.
    pub fn pause(&mut self, xid: &Xid) -> bool {
        let name = xid.bqual.resource_manager();
        let Some(queue) = self.queues.get_mut(&name) else { return false };
        if !queue.deliveries.contains_key(xid) {
            return false;
        }
        queue.pause(xid, &mut self.timers);
        // It may have made room in the window.
        self.touched.insert(name);
        true
    }

    /// Makes what was held back ready, as [`Deliveries::retry`] does. Whether it was.
    pub fn resume(&mut self, xid: &Xid) -> bool {
        self.move_to_ready(xid, |place| place == Place::Paused)
    }

    fn move_to_ready(&mut self, xid: &Xid, from: impl Fn(Place) -> bool) -> bool {
        let name = xid.bqual.resource_manager();
        let Some(queue) = self.queues.get_mut(&name) else { return false };
        if !queue.deliveries.get(xid).is_some_and(|delivery| from(delivery.place)) {
            return false;
        }
        queue.make_ready(xid, &mut self.timers);
        self.touched.insert(name);
        true
    }

    /// When [`Deliveries::pump`] has to be called again though nothing else happened.
    #[must_use]
    pub fn next_timer(&self) -> Option<Monotonic> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Everything that may be sent now.
    #[must_use = "what is returned counts as sent"]
    pub fn pump(&mut self, now: Monotonic) -> Vec<Due> {
        self.wake(now);
        let mut due = Vec::new();
        for name in std::mem::take(&mut self.touched) {
            if let Some(queue) = self.queues.get_mut(&name) {
                queue.send(now, &mut self.timers, &mut due);
            }
        }
        due
    }

    /// Makes everything ready whose time has come.
    fn wake(&mut self, now: Monotonic) {
        while self.timers.first().is_some_and(|(at, _)| *at <= now) {
            let (_, xid) = self.timers.pop_first().expect("there is a first one");
            let name = xid.bqual.resource_manager();
            let queue = self.queues.get_mut(&name).expect("a timer is of a delivery");
            if let Place::InFlight(..) = queue.deliveries[&xid].place {
                queue.note_error(&xid, "it was not acknowledged in time");
            }
            queue.make_ready(&xid, &mut self.timers);
            self.touched.insert(name);
        }
    }

    /// What people see of the delivery to this branch, if there is one.
    #[must_use]
    pub fn view(&self, xid: &Xid, now: Monotonic) -> Option<DeliveryView> {
        let queue = self.queues.get(&xid.bqual.resource_manager())?;
        let delivery = queue.deliveries.get(xid)?;
        let (next_in, waits) = match delivery.place {
            Place::Ready(_) => (None, queue.sessions.is_empty()),
            Place::InFlight(_, at) | Place::BackingOff(at) => (Some(at.saturating_sub(now)), false),
            Place::Paused => (None, false),
        };
        let last_error = if waits { "no instance attached" } else { &delivery.last_error };
        Some(DeliveryView { attempts: delivery.attempts, next_in, last_error: last_error.to_owned() })
    }

    /// How many decisions are not acknowledged.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queues.values().map(|queue| queue.deliveries.len()).sum()
    }

    /// How many decisions each resource manager that ever had one has not acknowledged.
    pub fn depths(&self) -> impl Iterator<Item = (&ResourceManagerName, usize)> {
        self.queues.iter().map(|(name, queue)| (name, queue.deliveries.len()))
    }

    /// Whether every decision is acknowledged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queues.values().all(|queue| queue.deliveries.is_empty())
    }
}

impl Queue {
    fn add(&mut self, xid: Xid, message: Message, preferred: Option<SessionId>) {
        let is_new = preferred.is_some_and(|session| self.sessions.contains(&session));
        let lane = if is_new { Lane::New } else { Lane::LeftOver };
        let place = self.stand_last(lane, &xid);
        let (sent_over, attempts, last_error) = (None, 0, String::new());
        self.deliveries
            .insert(xid, Delivery { message, lane, preferred, sent_over, attempts, last_error, place });
    }

    /// Whether it was there.
    fn remove(&mut self, xid: &Xid, timers: &mut Timers) -> bool {
        self.leave_place(xid, timers);
        self.deliveries.remove(xid).is_some()
    }

    /// Takes a delivery out of the index of the place where it is.
    fn leave_place(&mut self, xid: &Xid, timers: &mut Timers) {
        let Some(delivery) = self.deliveries.get(xid) else { return };
        match delivery.place {
            Place::Ready(number) => {
                self.ready.of(delivery.lane).remove(&number);
            }
            Place::InFlight(session, at) => {
                self.left_over_in_flight -= usize::from(delivery.lane == Lane::LeftOver);
                self.in_flight.remove(&(session, xid.clone()));
                timers.remove(&(at, xid.clone()));
            }
            Place::BackingOff(at) => {
                self.backing_off.remove(xid);
                timers.remove(&(at, xid.clone()));
            }
            Place::Paused => {
                self.paused.remove(xid);
            }
        }
    }

    fn arrive(&mut self, xid: &Xid, place: Place) {
        self.deliveries.get_mut(xid).expect("only what is here moves").place = place;
    }

    /// To the end of what is ready, so that what keeps failing does not stand before the rest.
    fn make_ready(&mut self, xid: &Xid, timers: &mut Timers) {
        self.leave_place(xid, timers);
        let place = self.stand_last(Lane::LeftOver, xid);
        self.deliveries.get_mut(xid).expect("only what is here moves").lane = Lane::LeftOver;
        self.arrive(xid, place);
    }

    /// Puts it at the end of the lane.
    fn stand_last(&mut self, lane: Lane, xid: &Xid) -> Place {
        self.last_number += 1;
        self.ready.of(lane).insert(self.last_number, xid.clone());
        Place::Ready(self.last_number)
    }

    fn back_off(&mut self, xid: &Xid, until: Monotonic, timers: &mut Timers) {
        self.leave_place(xid, timers);
        self.backing_off.insert(xid.clone());
        timers.insert((until, xid.clone()));
        self.arrive(xid, Place::BackingOff(until));
    }

    fn pause(&mut self, xid: &Xid, timers: &mut Timers) {
        self.leave_place(xid, timers);
        self.paused.insert(xid.clone());
        self.arrive(xid, Place::Paused);
    }

    fn put_in_flight(&mut self, xid: &Xid, session: SessionId, until: Monotonic, timers: &mut Timers) {
        self.leave_place(xid, timers);
        self.left_over_in_flight += usize::from(self.deliveries[xid].lane == Lane::LeftOver);
        self.in_flight.insert((session, xid.clone()));
        timers.insert((until, xid.clone()));
        self.arrive(xid, Place::InFlight(session, until));
    }

    fn in_flight_over(&self, session: SessionId) -> Vec<Xid> {
        let over_it = self.in_flight.iter().filter(|(over, _)| *over == session);
        over_it.map(|(_, xid)| xid.clone()).collect()
    }

    fn new_for(&self, session: SessionId) -> Vec<Xid> {
        let is_for = |xid: &&Xid| self.deliveries[*xid].preferred == Some(session);
        self.ready.new.values().filter(is_for).cloned().collect()
    }

    fn note_error(&mut self, xid: &Xid, why: &str) {
        let delivery = self.deliveries.get_mut(xid).expect("only what is here fails");
        why.clone_into(&mut delivery.last_error);
    }

    fn send(&mut self, now: Monotonic, timers: &mut Timers, due: &mut Vec<Due>) {
        while self.in_flight.len() < WINDOW && !self.sessions.is_empty() {
            let Some((lane, xid)) = self.next_ready() else { return };
            self.last_was_new = lane == Lane::New;
            let session = self.choose_session(&xid);
            let delivery = self.deliveries.get_mut(&xid).expect("what is ready is here");
            delivery.attempts = delivery.attempts.saturating_add(1);
            delivery.sent_over = Some(session);
            let patience = if mutated("a-decision-is-sent-once") {
                Duration::MAX / 4
            } else {
                patience(delivery.attempts)
            };
            let (message, until) = (delivery.message, now + patience);
            self.put_in_flight(&xid, session, until, timers);
            due.push(Due { session, xid, message });
        }
    }

    /// The first of the lane whose turn it is; of the other one if there is nothing in it that may be sent.
    fn next_ready(&self) -> Option<(Lane, Xid)> {
        let new = self.ready.new.first_key_value().map(|(_, xid)| (Lane::New, xid));
        let has_room = self.left_over_in_flight < LEFT_OVER_WINDOW;
        let left_over = self.ready.left_over.first_key_value().filter(|_| has_room);
        let left_over = left_over.map(|(_, xid)| (Lane::LeftOver, xid));
        let next = if self.last_was_new { left_over.or(new) } else { new.or(left_over) };
        next.map(|(lane, xid)| (lane, xid.clone()))
    }

    /// The first time the instance that has the branch. After a failure another one, each in turn: that one may be cut off from
    /// its database while the others are not.
    fn choose_session(&mut self, xid: &Xid) -> SessionId {
        let delivery = &self.deliveries[xid];
        if let Some(preferred) = delivery.preferred
            && delivery.sent_over.is_none()
            && self.sessions.contains(&preferred)
        {
            return preferred;
        }
        let failed = delivery.sent_over;
        let next = self.next_in_turn();
        if Some(next) == failed { self.next_in_turn() } else { next }
    }

    fn next_in_turn(&mut self) -> SessionId {
        self.next_session = (self.next_session + 1) % self.sessions.len();
        self.sessions[self.next_session]
    }
}

/// `first`, doubled with each attempt after the first one, up to `longest`.
fn doubled(first: Duration, longest: Duration, attempts: u32) -> Duration {
    first.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(longest)
}

fn patience(attempts: u32) -> Duration {
    doubled(PATIENCE, LONGEST_PATIENCE, attempts)
}

/// Between half and all of the doubled time: branches that failed together do not come back together.
fn backoff(xid: &Xid, attempts: u32) -> Duration {
    let longest = doubled(FIRST_BACKOFF, LONGEST_BACKOFF, attempts);
    // FNV-1a, and a multiplication that brings the last bytes to the top. The standard library's hash may change with its version,
    // and with it every recorded run.
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let hash = xid.bqual.as_str().bytes().fold(xid.gtrid.spread() ^ u64::from(attempts), fold);
    let spread = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let share = u32::try_from(spread >> 54).expect("10 bits");
    longest / 2 + (longest / 2) * share / 1024
}

#[cfg(test)]
impl Deliveries {
    /// Asserts that every delivery is in exactly the indexes of its place, and nothing else is in any.
    pub(super) fn assert_whole(&self) {
        let mut timers = Timers::new();
        for (name, queue) in &self.queues {
            let mut places = (Lanes::default(), BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
            for (xid, delivery) in &queue.deliveries {
                assert_eq!(
                    xid.bqual.resource_manager(),
                    *name,
                    "a delivery is in its resource manager's queue"
                );
                match delivery.place {
                    Place::Ready(number) => {
                        assert!(places.0.of(delivery.lane).insert(number, xid.clone()).is_none());
                    }
                    Place::InFlight(session, at) => {
                        assert!(queue.sessions.contains(&session), "what is in flight is so over a session");
                        places.1.insert((session, xid.clone()));
                        timers.insert((at, xid.clone()));
                    }
                    Place::BackingOff(at) => {
                        places.2.insert(xid.clone());
                        timers.insert((at, xid.clone()));
                    }
                    Place::Paused => {
                        places.3.insert(xid.clone());
                    }
                }
            }
            assert_eq!(
                (&queue.ready, &queue.in_flight, &queue.backing_off, &queue.paused),
                (&places.0, &places.1, &places.2, &places.3)
            );
            assert!(queue.in_flight.len() <= WINDOW, "no more than a window is in flight");
            let is_left_over = |(_, xid): &&(SessionId, Xid)| queue.deliveries[xid].lane == Lane::LeftOver;
            assert_eq!(queue.left_over_in_flight, queue.in_flight.iter().filter(is_left_over).count());
            assert!(queue.left_over_in_flight <= LEFT_OVER_WINDOW, "no more than half of it is left over");
            let idle_for_nothing =
                queue.next_ready().is_some() && !queue.sessions.is_empty() && queue.in_flight.len() < WINDOW;
            assert!(!idle_for_nothing, "after a pump whatever may be sent is sent");
            assert!(!queue.sessions.is_empty() || !queue.deliveries.is_empty(), "an idle queue goes");
        }
        assert_eq!(self.timers, timers, "a timer for everything that waits, and no other");
    }

    /// The branches that something is delivered to.
    pub(super) fn xids(&self) -> impl Iterator<Item = &Xid> {
        self.queues.values().flat_map(|queue| queue.deliveries.keys())
    }
}
