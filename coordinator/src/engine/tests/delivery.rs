//! Delivery queues by themselves: fairness, and random use.

use std::collections::BTreeSet;
use std::time::Duration;

use lockstep_proto::{Bqual, Epoch, Gtrid, Xid};
use proptest::prelude::*;

use crate::engine::delivery::{Deliveries, LEFT_OVER_WINDOW, PATIENCE, SessionId, WINDOW};
use crate::protocol::event::Message;
use crate::protocol::tests::names::resource_manager;

fn xid(name: &str, number: u64) -> Xid {
    let gtrid = Gtrid::new(Epoch::new(1).unwrap(), number, [1; 10]);
    Xid { gtrid, bqual: Bqual::new(&resource_manager(name), number) }
}

/// A participant that acknowledges nothing: what is stuck goes behind what has not been sent yet.
#[test]
fn what_is_stuck_does_not_stand_before_the_rest() {
    let mut deliveries = Deliveries::default();
    let session = SessionId(1);
    deliveries.attached(session, resource_manager("a"));
    let all = u64::try_from(WINDOW + LEFT_OVER_WINDOW).unwrap();
    for number in 0..all {
        deliveries.enqueue(xid("a", number), Message::Commit, Some(session));
    }
    let first: BTreeSet<Xid> = deliveries.pump(Duration::ZERO).into_iter().map(|due| due.xid).collect();
    assert_eq!(first.len(), WINDOW);
    assert!(deliveries.pump(PATIENCE / 2).is_empty(), "the window is full");
    let second: BTreeSet<Xid> = deliveries.pump(PATIENCE).into_iter().map(|due| due.xid).collect();
    assert_eq!(second.len(), WINDOW);
    assert_eq!(
        first.union(&second).count(),
        WINDOW + LEFT_OVER_WINDOW,
        "everything was sent before anything twice over"
    );
}

/// Many that fail at the same moment do not come back at the same moment.
#[test]
fn backoff_is_spread() {
    let mut deliveries = Deliveries::default();
    let session = SessionId(1);
    deliveries.attached(session, resource_manager("a"));
    let all = u64::try_from(WINDOW).unwrap();
    for number in 0..all {
        deliveries.enqueue(xid("a", number), Message::Commit, Some(session));
    }
    assert_eq!(deliveries.pump(Duration::ZERO).len(), WINDOW);
    for number in 0..all {
        deliveries.not_yet(&xid("a", number), "the database is restarting", Duration::ZERO);
    }
    let delays =
        (0..all).map(|number| deliveries.view(&xid("a", number), Duration::ZERO).unwrap().next_in.unwrap());
    let delays: BTreeSet<Duration> = delays.collect();
    let (shortest, longest) = (*delays.first().unwrap(), *delays.last().unwrap());
    assert!(shortest >= Duration::from_millis(50) && longest <= Duration::from_millis(100), "{delays:?}");
    assert!(delays.len() > WINDOW * 3 / 4 && longest - shortest > Duration::from_millis(40), "{delays:?}");
}

/// Left over, and stuck for as long as anybody waits: half of the window stays for what is new, and what is new is not slowed down.
#[test]
fn what_is_left_over_and_stuck_leaves_places_for_what_is_new() {
    let mut deliveries = Deliveries::default();
    let stuck = u64::try_from(3 * WINDOW).unwrap();
    for number in 0..stuck {
        deliveries.enqueue(xid("a", number), Message::Commit, None);
    }
    let session = SessionId(1);
    deliveries.attached(session, resource_manager("a"));
    assert_eq!(deliveries.pump(Duration::ZERO).len(), LEFT_OVER_WINDOW);
    for number in stuck..stuck + 1_000 {
        deliveries.enqueue(xid("a", number), Message::Commit, Some(session));
        let sent = deliveries.pump(Duration::ZERO);
        assert_eq!(sent.iter().map(|due| &due.xid).collect::<Vec<_>>(), [&xid("a", number)]);
        deliveries.remove(&xid("a", number));
    }
}

/// What was new for an instance that is gone is left over for the one that comes: it takes no more than half of the window there.
#[test]
fn what_was_new_for_an_instance_that_is_gone_is_left_over() {
    let mut deliveries = Deliveries::default();
    let (gone, session) = (SessionId(1), SessionId(2));
    deliveries.attached(gone, resource_manager("a"));
    let waiting = u64::try_from(4 * WINDOW).unwrap();
    for number in 0..waiting {
        deliveries.enqueue(xid("a", number), Message::Commit, Some(gone));
    }
    assert_eq!(deliveries.pump(Duration::ZERO).len(), WINDOW);
    deliveries.detached(gone);
    deliveries.attached(session, resource_manager("a"));
    assert_eq!(deliveries.pump(Duration::ZERO).len(), LEFT_OVER_WINDOW);
    deliveries.enqueue(xid("a", waiting), Message::Commit, Some(session));
    assert_eq!(deliveries.pump(Duration::ZERO).len(), 1);
}

/// Acknowledged before they were sent, because a listing was answered: those behind them have not waited for nothing, nor what is new.
#[test]
fn what_is_answered_otherwise_leaves_no_gap() {
    let mut deliveries = Deliveries::default();
    let left_over = u64::try_from(4 * WINDOW).unwrap();
    for number in 0..left_over {
        deliveries.enqueue(xid("a", number), Message::Commit, None);
    }
    for number in 0..left_over - u64::try_from(WINDOW).unwrap() {
        deliveries.remove(&xid("a", number));
    }
    let session = SessionId(1);
    deliveries.attached(session, resource_manager("a"));
    for number in left_over..2 * left_over {
        deliveries.enqueue(xid("a", number), Message::Commit, Some(session));
    }
    let sent = deliveries.pump(Duration::ZERO);
    let new = sent.iter().filter(|due| due.xid.gtrid >= xid("a", left_over).gtrid).count();
    assert_eq!((sent.len(), new), (WINDOW, WINDOW / 2));
}

/// Thousands that were left over by a restart, and new ones: while there are both, each of them gets every other place, and none waits for
/// the end of the others.
#[test]
fn what_is_new_takes_turns_with_what_was_left_over() {
    const LEFT_OVER: u64 = 10_000;
    let mut deliveries = Deliveries::default();
    for number in 0..LEFT_OVER {
        deliveries.enqueue(xid("a", number), Message::Commit, None);
    }
    let session = SessionId(1);
    deliveries.attached(session, resource_manager("a"));
    let mut sent = deliveries.pump(Duration::ZERO);
    let mut newest = LEFT_OVER;
    for _round in 0..50 {
        for _ in 0..2 * WINDOW {
            deliveries.enqueue(xid("a", newest), Message::Commit, Some(session));
            newest += 1;
        }
        for due in &sent {
            deliveries.remove(&due.xid);
        }
        sent = deliveries.pump(Duration::ZERO);
        let new = sent.iter().filter(|due| due.xid.gtrid >= xid("a", LEFT_OVER).gtrid).count();
        assert_eq!((sent.len(), new), (WINDOW, WINDOW / 2));
    }
    // What comes alone after the others had nothing for long has saved no turns up.
    let mut alone = Deliveries::default();
    alone.attached(session, resource_manager("a"));
    for number in 0..LEFT_OVER {
        alone.enqueue(xid("a", number), Message::Commit, Some(session));
        assert_eq!(alone.pump(Duration::ZERO).len(), 1);
        alone.remove(&xid("a", number));
    }
    for number in 0..u64::try_from(WINDOW).unwrap() {
        alone.enqueue(xid("a", number), Message::Commit, Some(session));
        alone.enqueue(xid("a", LEFT_OVER + number), Message::Commit, None);
    }
    let sent = alone.pump(Duration::ZERO);
    let new = sent.iter().filter(|due| due.xid.gtrid < xid("a", LEFT_OVER).gtrid).count();
    assert_eq!((sent.len(), new), (WINDOW, WINDOW / 2));
}

#[derive(Debug, Clone, Copy)]
enum Use {
    Enqueue(u64, Option<u64>),
    Attached(u64),
    Detached(u64),
    Remove(u64),
    NotYet(u64),
    Pump(u16),
}

fn uses() -> impl Strategy<Value = Use> {
    // Even branches and sessions are of one resource manager, odd ones of another.
    prop_oneof![
        6 => (0..40u64, proptest::option::of(0..6u64)).prop_map(|(xid, session)| Use::Enqueue(xid, session)),
        2 => (0..6u64).prop_map(Use::Attached),
        2 => (0..6u64).prop_map(Use::Detached),
        4 => (0..40u64).prop_map(Use::Remove),
        4 => (0..40u64).prop_map(Use::NotYet),
        4 => (0..20_000u16).prop_map(Use::Pump),
    ]
}

fn of(number: u64) -> &'static str {
    if number.is_multiple_of(2) { "a" } else { "b" }
}

proptest! {
    /// Whatever is done in whatever order, each delivery is in one place, nothing goes to who is not attached, and each goes only to
    /// its own resource manager.
    #[test]
    fn queues_stay_whole(uses in proptest::collection::vec(uses(), 0..200)) {
        let mut deliveries = Deliveries::default();
        let (mut now, mut next) = (Duration::ZERO, 100);
        let mut attached = [None; 6];
        for one in uses {
            match one {
                Use::Enqueue(number, session) => {
                    let preferred = session.and_then(|session| attached[usize::try_from(session).unwrap()]);
                    deliveries.enqueue(xid(of(number), number), Message::Commit, preferred);
                }
                Use::Attached(slot) => {
                    let place = &mut attached[usize::try_from(slot).unwrap()];
                    if place.is_none() {
                        next += 2;
                        let session = SessionId(next + slot % 2);
                        *place = Some(session);
                        deliveries.attached(session, resource_manager(of(slot)));
                    }
                }
                Use::Detached(slot) => {
                    if let Some(session) = attached[usize::try_from(slot).unwrap()].take() {
                        deliveries.detached(session);
                    }
                }
                Use::Remove(number) => deliveries.remove(&xid(of(number), number)),
                Use::NotYet(number) => deliveries.not_yet(&xid(of(number), number), "busy", now),
                Use::Pump(millis) => now += Duration::from_millis(millis.into()),
            }
            for due in deliveries.pump(now) {
                prop_assert!(attached.contains(&Some(due.session)), "{due:?} goes to nobody");
                prop_assert_eq!(due.xid.bqual.resource_manager_str(), of(due.session.0));
            }
            deliveries.assert_whole();
            prop_assert!(deliveries.next_timer().is_none_or(|at| at > now), "what is due was done");
        }
    }
}
