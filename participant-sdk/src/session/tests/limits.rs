//! The limits: each is an error of its own for whoever meets it, and nothing grows past it.

use super::*;
use crate::error::Advice;
use lockstep_proto::Bqual;

fn attached() -> Session {
    let mut session = session();
    session.handle(Duration::ZERO, Event::Dialled(attachment(1, Some(cluster(None)), Positions::new())));
    session.handle(Duration::ZERO, Event::Received(FromCoordinator::Welcome(welcome(2))));
    session
}

fn gtrid(number: usize) -> Gtrid {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&u64::try_from(number).unwrap().to_be_bytes());
    Gtrid::new(Epoch::new(2).unwrap(), 0, random)
}

fn join(session: &mut Session, handler: usize, transaction: usize) -> Vec<Effect> {
    let handler = u64::try_from(handler).unwrap();
    let deadline = Duration::from_secs(30);
    let (cluster, gtrid) = (cluster(None), gtrid(transaction));
    session.handle(Duration::ZERO, Event::Join { handler, cluster, gtrid, deadline, random: handler })
}

fn is_refused(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| {
        matches!(effect, Effect::RefuseJoin(_, error @ JoinError::TooManyBranches { .. }) if error.advice() == Advice::Retry)
    })
}

#[test]
fn no_more_branches_are_opened_than_may_be_and_an_ended_one_makes_room() {
    let mut session = attached();
    for number in 0..MAX_OPEN_BRANCHES {
        assert!(!is_refused(&join(&mut session, number, number)));
    }
    assert!(is_refused(&join(&mut session, MAX_OPEN_BRANCHES, MAX_OPEN_BRANCHES)));

    // Doomed is not enough: its connection is still there.
    let xid = Xid { gtrid: gtrid(0), bqual: Bqual::new(&"bank".parse().unwrap(), 0) };
    session.handle(Duration::ZERO, Event::Done(xid.clone(), Done::Begun));
    session.handle(Duration::ZERO, Event::HandlerGone(xid.clone(), 0));
    assert!(is_refused(&join(&mut session, MAX_OPEN_BRANCHES + 1, MAX_OPEN_BRANCHES)));
    session.handle(Duration::ZERO, Event::Done(xid, Done::Discarded));
    assert!(!is_refused(&join(&mut session, MAX_OPEN_BRANCHES + 2, MAX_OPEN_BRANCHES)));
}

#[test]
fn no_more_handlers_wait_for_a_branch_than_may() {
    let mut session = attached();
    for handler in 0..=MAX_WAITING_HANDLERS {
        assert!(!is_refused(&join(&mut session, handler, 0)));
    }
    assert!(is_refused(&join(&mut session, MAX_WAITING_HANDLERS + 1, 0)));
}

#[test]
fn a_coordinator_that_names_too_many_branches_loses_its_session() {
    let mut session = attached();
    let decide = |number| {
        let xid = Xid { gtrid: gtrid(number), bqual: Bqual::new(&"bank".parse().unwrap(), 1) };
        Event::Received(FromCoordinator::Decide(xid, Decision::Commit, position(2)))
    };
    for number in 0..MAX_BRANCHES_KNOWN {
        let effects = session.handle(Duration::ZERO, decide(number));
        assert!(matches!(effects[..], [Effect::Run(..)]), "{number}: {effects:?}");
    }
    let effects = session.handle(Duration::ZERO, decide(MAX_BRANCHES_KNOWN));
    assert!(matches!(effects[..], [Effect::Close(Closing::Broken(_))]), "{effects:?}");
}

#[test]
fn ended_branches_are_forgotten_from_the_oldest_on() {
    let mut session = attached();
    let xid = |number| Xid { gtrid: gtrid(number), bqual: Bqual::new(&"bank".parse().unwrap(), 1) };
    let rollback =
        |number| Event::Received(FromCoordinator::Decide(xid(number), Decision::Rollback, position(2)));
    for number in 0..MAX_ENDED_BRANCHES * 2 {
        session.handle(Duration::ZERO, rollback(number));
        session.handle(Duration::ZERO, Event::Done(xid(number), Done::Resolved(Ok(Fate::RolledBack))));
        // One that ends again and again takes one place.
        session.handle(Duration::ZERO, rollback(0));
        session.handle(Duration::ZERO, Event::Done(xid(0), Done::Resolved(Ok(Fate::RolledBack))));
    }
    assert!(session.branches.len() <= MAX_ENDED_BRANCHES + 1, "{}", session.branches.len());
    assert!(session.ended.len() <= MAX_ENDED_BRANCHES, "{}", session.ended.len());
}

#[test]
fn a_long_listing_comes_in_reports_of_1024_and_the_last_one_counts() {
    let mut session = attached();
    let xid = |number| Xid { gtrid: gtrid(number), bqual: Bqual::new(&"bank".parse().unwrap(), 1) };
    let prepared: Vec<_> = (0..2049).map(xid).collect();
    let listing = Listing { attachment: None, prepared: prepared.clone(), oldest_evidence: None };
    let effects = session.handle(Duration::ZERO, Event::Listed(session.number, Ok(listing)));
    let mut reports = Vec::new();
    for effect in &effects {
        if let Effect::Send(ToCoordinator::Report { prepared, oldest_held, complete, listing }) = effect {
            reports.push((prepared.len(), *oldest_held, *complete, *listing));
        }
    }
    assert_eq!(reports, [(1024, None, false, 1), (1024, None, false, 1), (1, Some(gtrid(0)), true, 1)]);
}

#[test]
fn a_report_interval_is_neither_a_loop_nor_never() {
    for (asked, kept) in [(0, 1), (u64::MAX, 3600)] {
        let mut session = session();
        let report_interval = Duration::from_secs(asked);
        session.handle(Duration::ZERO, Event::Dialled(attachment(1, Some(cluster(None)), Positions::new())));
        let welcome = Welcome { report_interval, ..welcome(2) };
        session.handle(Duration::ZERO, Event::Received(FromCoordinator::Welcome(welcome)));
        let listing = Listing { attachment: None, prepared: Vec::new(), oldest_evidence: None };
        session.handle(Duration::ZERO, Event::Listed(1, Ok(listing)));
        assert_eq!(session.next_wake(), Some(Duration::from_secs(kept)));
    }
}

fn room(slots: usize, prepared: &[Xid], prepared_by_others: usize) -> Event {
    let cluster = cluster(None);
    let prepared = prepared.iter().map(|xid| BranchId { cluster, xid: xid.clone() }).collect();
    Event::Room(Ok(Some(Room { slots, prepared, prepared_by_others, connections: 2 })))
}

fn has_no_room(effects: &[Effect]) -> bool {
    let touched = effects.iter().any(|effect| matches!(effect, Effect::Send(_) | Effect::Run(..)));
    let refused = effects.iter().any(|effect| {
        matches!(effect, Effect::RefuseJoin(_, error @ JoinError::NoRoom { .. }) if error.advice() == Advice::Retry)
    });
    assert!(!(touched && refused), "a refused branch is neither begun nor enlisted: {effects:?}");
    refused
}

fn xid(number: usize) -> Xid {
    let random = u64::try_from(number).unwrap();
    Xid { gtrid: gtrid(number), bqual: Bqual::new(&"bank".parse().unwrap(), random) }
}

#[test]
fn without_a_slot_a_branch_is_refused_until_one_has_ended() {
    let mut session = attached();
    let at = Duration::ZERO;
    session.handle(at, room(3, &[], 1));
    assert!(!has_no_room(&join(&mut session, 0, 0)));
    assert!(!has_no_room(&join(&mut session, 1, 1)));
    assert!(has_no_room(&join(&mut session, 2, 2)));
    // One that is open already may be continued.
    assert!(!has_no_room(&join(&mut session, 3, 1)));
    // Prepared, it still has its slot.
    prepare(&mut session);
    assert!(has_no_room(&join(&mut session, 4, 4)));
    let commit = FromCoordinator::Decide(xid(0), crate::branch::Decision::Commit, position(2));
    session.handle(at, Event::Received(commit));
    assert!(has_no_room(&join(&mut session, 5, 5)), "it is being committed");
    session.handle(at, Event::Done(xid(0), Done::Resolved(Ok(Fate::Committed))));
    assert!(!has_no_room(&join(&mut session, 6, 6)));
}

/// Prepares the branch of a transaction that handler 0 has joined.
fn prepare(session: &mut Session) {
    let at = Duration::ZERO;
    session.handle(at, Event::Done(xid(0), Done::Begun));
    session.handle(at, Event::Received(FromCoordinator::Enlisted(xid(0), Duration::from_secs(30))));
    session.handle(at, Event::Finished { xid: xid(0), handler: 0, votes: false });
    session.handle(at, Event::Received(FromCoordinator::Prepare(xid(0), position(2))));
    session.handle(at, Event::Done(xid(0), Done::Prepared(Ok(Prepared::Yes))));
}

/// What the store says in the listing that was begun last.
fn listed(session: &mut Session, prepared: &[Xid]) {
    let listing = Listing { attachment: None, prepared: prepared.to_vec(), oldest_evidence: None };
    session.handle(Duration::ZERO, Event::Listed(session.number, Ok(listing)));
}

#[test]
fn a_prepared_branch_that_another_instance_has_ended_takes_no_slot() {
    let mut session = attached();
    session.handle(Duration::ZERO, room(1, &[], 0));
    assert!(!has_no_room(&join(&mut session, 0, 0)));
    prepare(&mut session);
    // This listing, the first, was begun before it was prepared: that it is not in it says nothing.
    listed(&mut session, &[]);
    assert!(has_no_room(&join(&mut session, 1, 1)));
    // Its session is lost, and another instance may be told what becomes of it.
    session.handle(Duration::ZERO, Event::Disconnected);
    session.handle(Duration::ZERO, Event::Dialled(attachment(1, Some(cluster(None)), Positions::new())));
    session.handle(Duration::ZERO, Event::Received(FromCoordinator::Welcome(welcome(2))));
    assert!(has_no_room(&join(&mut session, 2, 2)));
    listed(&mut session, &[xid(0)]);
    assert!(has_no_room(&join(&mut session, 3, 3)), "it is still prepared");
    let due = session.next_wake().expect("the next listing has its time");
    session.handle(due, Event::Tick);
    listed(&mut session, &[]);
    assert!(!session.knows(&xid(0)));
    assert!(!has_no_room(&join(&mut session, 4, 4)));
}

/// The store lists what this process counts itself, too: it must not count twice, nor forget what another instance holds.
#[test]
fn what_is_listed_is_counted_once() {
    let mut session = attached();
    session.handle(Duration::ZERO, room(2, &[], 0));
    assert!(!has_no_room(&join(&mut session, 0, 0)));
    session.handle(Duration::ZERO, room(2, &[xid(0)], 0));
    assert!(!has_no_room(&join(&mut session, 1, 1)));
    session.handle(Duration::ZERO, room(3, &[xid(0), xid(77)], 0));
    assert!(has_no_room(&join(&mut session, 2, 2)), "another instance has prepared one");
    // From before a crash: this process is told to commit it, and counts it itself from then on.
    session.handle(Duration::ZERO, room(4, &[xid(0), xid(77)], 0));
    let commit = FromCoordinator::Decide(xid(77), crate::branch::Decision::Commit, position(2));
    session.handle(Duration::ZERO, Event::Received(commit));
    // It can't be reached now: that frees nothing.
    session.handle(Duration::ZERO, Event::Done(xid(77), Done::Resolved(Err(Unresolved("away".to_owned())))));
    assert!(!session.knows(&xid(77)));
    assert!(!has_no_room(&join(&mut session, 3, 3)), "three of four are taken");
    assert!(has_no_room(&join(&mut session, 4, 4)));
}

#[test]
fn without_a_connection_or_a_place_to_wait_for_one_a_branch_is_refused() {
    let mut session = attached();
    session.handle(Duration::ZERO, room(1000, &[], 0));
    for number in 0..10 {
        assert!(!has_no_room(&join(&mut session, number, number)), "2 have connections, 8 wait");
    }
    assert!(has_no_room(&join(&mut session, 10, 10)));
}

#[test]
fn the_store_is_asked_again_when_its_answer_is_old_and_by_one_at_a_time() {
    let mut session = attached();
    let asks = |session: &mut Session, at: u64, number: usize| {
        let (handler, deadline) = (u64::try_from(number).unwrap(), Duration::from_secs(60));
        let (cluster, gtrid) = (cluster(None), gtrid(number));
        let join = Event::Join { handler, cluster, gtrid, deadline, random: handler };
        session.handle(Duration::from_millis(at), join).contains(&Effect::FindRoom)
    };
    session.handle(Duration::ZERO, room(1, &[], 0));
    assert!(!asks(&mut session, 999, 0), "it is fresh");
    assert!(asks(&mut session, 1000, 1), "and full: sooner");
    assert!(!asks(&mut session, 5000, 2), "it is being asked");
    session.handle(Duration::from_millis(5000), Event::Room(Err(unresolved())));
    assert!(!asks(&mut session, 5049, 3));
    assert!(asks(&mut session, 5050, 4), "it did not answer");
    session.handle(Duration::from_millis(5060), room(100, &[], 0));
    assert!(!asks(&mut session, 5070, 5), "there is room: a second is fresh");
    session.handle(Duration::from_millis(5080), Event::Room(Ok(None)));
    assert!(!asks(&mut session, 50_000, 6), "it has no limits to be asked for");
}
