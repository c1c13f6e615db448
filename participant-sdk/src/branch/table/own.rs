//! Until it votes: the branch can be rolled back here, without asking anyone.

use lockstep_proto::museum::mutated;

use super::super::{
    Action, Applied, Decision, Doom, End, Enlist, Event, Handler, Held, Operation, Owed, State, Then, Vote,
};
use super::{
    Stepped, Tell, apply, commit_one_phase, impossible, prepare, prove, roll_back_now, to, vote_early,
};

pub(super) fn absent(event: Event) -> Stepped {
    match event {
        // The enlist goes out while the store opens the transaction: one round trip hides behind the other.
        Event::Joined(remaining) => {
            to(State::Opening(Enlist::Asked), [Action::Enlist, Action::Run(Operation::Begin(remaining))])
        }
        Event::Prepare(_) => to(State::Finding { owed: Owed::Nothing }, [Action::Run(Operation::Find)]),
        Event::Decide(decision, position) => apply(decision, position),
        Event::CommitOnePhase(position) => prove(position),
        // About a branch of an earlier life of this process, or one that ended long ago.
        Event::Enlisted | Event::EnlistRefused(_) | Event::AskAgain => to(State::Absent, []),
        Event::Finished(_)
        | Event::HandlerGone
        | Event::DeadlinePassed
        | Event::SessionLost
        | Event::Begun
        | Event::NotBegun(_)
        | Event::Discarded
        | Event::PrepareDone(_)
        | Event::Found(_)
        | Event::Resolved(_) => impossible(State::Absent, event),
    }
}

pub(super) fn opening(enlist: Enlist, event: Event) -> Stepped {
    let doom = |why: Doom, owed, vote: Option<Doom>| {
        let answer = Action::Answer(Err(why.clone()));
        let vote = vote.map(|why| Action::Vote(Vote::Rollback(why.to_string())));
        to(State::Doomed { why, held: Held::ByBegin, owed }, [answer].into_iter().chain(vote))
    };
    match event {
        Event::Begun => to(State::Open(Handler::Busy(enlist)), [Action::Hand]),
        Event::NotBegun(detail) => {
            let why = Doom::NotBegun(detail);
            let vote = Action::Vote(Vote::Rollback(why.to_string()));
            to(State::Ended(End::NeverPrepared(why.clone())), [Action::Answer(Err(why)), vote])
        }
        Event::Enlisted => to(State::Opening(Enlist::Taken), []),
        Event::EnlistRefused(detail) => match enlist {
            Enlist::Asked => doom(Doom::Refused(detail), Owed::Nothing, None),
            Enlist::Taken => to(State::Opening(enlist), []),
        },
        Event::Prepare(_) => doom(Doom::HandlerRunning, Owed::Nothing, Some(Doom::HandlerRunning)),
        Event::Decide(Decision::Rollback, position) => doom(Doom::Decided, Owed::Rollback(position), None),
        Event::Decide(Decision::Commit, position) => {
            doom(Doom::CommitWithoutVote, Owed::Commit(position), None)
        }
        Event::CommitOnePhase(position) => doom(Doom::HandlerRunning, Owed::OnePhase(position), None),
        Event::DeadlinePassed => doom(Doom::DeadlinePassed, Owed::Nothing, Some(Doom::DeadlinePassed)),
        Event::SessionLost => doom(Doom::SessionLost, Owed::Nothing, None),
        Event::Joined(_)
        | Event::Finished(_)
        | Event::HandlerGone
        | Event::AskAgain
        | Event::Discarded
        | Event::PrepareDone(_)
        | Event::Found(_)
        | Event::Resolved(_) => impossible(State::Opening(enlist), event),
    }
}

/// A handler works. Whatever dooms the branch now, the connection stays with the handler until it lets go (P17), and the
/// handler learns it when it finishes.
pub(super) fn busy(enlist: Enlist, event: Event) -> Stepped {
    let doom = |why: Doom, owed, vote: bool| {
        let vote = vote.then(|| Action::Vote(Vote::Rollback(why.to_string())));
        to(State::Doomed { why, held: Held::ByHandler, owed }, vote)
    };
    match event {
        Event::Finished(then) => match enlist {
            Enlist::Asked => to(State::Open(Handler::Finishing(then)), []),
            Enlist::Taken => done(then),
        },
        Event::HandlerGone => roll_back_now(Doom::HandlerGone, Owed::Nothing, Tell::Coordinator),
        Event::Enlisted => to(State::Open(Handler::Busy(Enlist::Taken)), []),
        Event::EnlistRefused(detail) => match enlist {
            Enlist::Asked => doom(Doom::Refused(detail), Owed::Nothing, false),
            // A refusal after the acceptance is of an enlist that arrived twice.
            Enlist::Taken => to(State::Open(Handler::Busy(enlist)), []),
        },
        Event::Prepare(_) => doom(Doom::HandlerRunning, Owed::Nothing, true),
        Event::Decide(Decision::Rollback, position) => doom(Doom::Decided, Owed::Rollback(position), false),
        Event::Decide(Decision::Commit, position) => {
            doom(Doom::CommitWithoutVote, Owed::Commit(position), false)
        }
        Event::CommitOnePhase(position) => doom(Doom::HandlerRunning, Owed::OnePhase(position), false),
        Event::DeadlinePassed if mutated("P17-ends-what-a-handler-holds") => {
            roll_back_now(Doom::DeadlinePassed, Owed::Nothing, Tell::Coordinator)
        }
        Event::DeadlinePassed => doom(Doom::DeadlinePassed, Owed::Nothing, true),
        Event::SessionLost => doom(Doom::SessionLost, Owed::Nothing, false),
        Event::Joined(_)
        | Event::AskAgain
        | Event::Begun
        | Event::NotBegun(_)
        | Event::Discarded
        | Event::PrepareDone(_)
        | Event::Found(_)
        | Event::Resolved(_) => impossible(State::Open(Handler::Busy(enlist)), event),
    }
}

/// The handler is done, and the coordinator knows the branch.
fn done(then: Then) -> Stepped {
    match then {
        Then::StayOpen => to(State::Open(Handler::Idle), [Action::Answer(Ok(()))]),
        Then::Vote(position) => vote_early(position),
    }
}

/// The handler is done and waits for the enlist's acknowledgement.
pub(super) fn finishing(then: Then, event: Event) -> Stepped {
    match event {
        Event::Enlisted => done(then),
        Event::EnlistRefused(detail) => roll_back_now(Doom::Refused(detail), Owed::Nothing, Tell::Handler),
        // Nobody would ask for these if the branch were not enlisted: its acknowledgement is late.
        Event::Prepare(position) => prepare(position, Some(Action::Answer(Ok(())))),
        Event::CommitOnePhase(position) => commit_one_phase(position, Some(Action::Answer(Ok(())))),
        Event::Decide(Decision::Rollback, position) => {
            roll_back_now(Doom::Decided, Owed::Rollback(position), Tell::Handler)
        }
        Event::Decide(Decision::Commit, position) => {
            roll_back_now(Doom::CommitWithoutVote, Owed::Commit(position), Tell::Handler)
        }
        Event::HandlerGone => roll_back_now(Doom::HandlerGone, Owed::Nothing, Tell::Coordinator),
        Event::DeadlinePassed => roll_back_now(Doom::DeadlinePassed, Owed::Nothing, Tell::Both),
        Event::SessionLost => roll_back_now(Doom::SessionLost, Owed::Nothing, Tell::Handler),
        Event::Joined(_)
        | Event::Finished(_)
        | Event::AskAgain
        | Event::Begun
        | Event::NotBegun(_)
        | Event::Discarded
        | Event::PrepareDone(_)
        | Event::Found(_)
        | Event::Resolved(_) => impossible(State::Open(Handler::Finishing(then)), event),
    }
}

/// The work is done, the coordinator knows, and nobody holds the connection.
pub(super) fn idle(event: Event) -> Stepped {
    match event {
        Event::Joined(_) => to(State::Open(Handler::Busy(Enlist::Taken)), [Action::Hand]),
        Event::Prepare(position) => prepare(position, None),
        Event::CommitOnePhase(position) => commit_one_phase(position, None),
        Event::Decide(Decision::Rollback, position) => {
            roll_back_now(Doom::Decided, Owed::Rollback(position), Tell::Nobody)
        }
        Event::Decide(Decision::Commit, position) => {
            roll_back_now(Doom::CommitWithoutVote, Owed::Commit(position), Tell::Nobody)
        }
        // It was cancelled before it heard that it had finished: its caller hears an error.
        Event::HandlerGone => roll_back_now(Doom::HandlerGone, Owed::Nothing, Tell::Coordinator),
        Event::DeadlinePassed => roll_back_now(Doom::DeadlinePassed, Owed::Nothing, Tell::Coordinator),
        Event::SessionLost => roll_back_now(Doom::SessionLost, Owed::Nothing, Tell::Nobody),
        Event::Enlisted | Event::EnlistRefused(_) => to(State::Open(Handler::Idle), []),
        Event::Finished(_)
        | Event::AskAgain
        | Event::Begun
        | Event::NotBegun(_)
        | Event::Discarded
        | Event::PrepareDone(_)
        | Event::Found(_)
        | Event::Resolved(_) => impossible(State::Open(Handler::Idle), event),
    }
}

pub(super) fn doomed(why: &Doom, held: Held, owed: Owed, event: Event) -> Stepped {
    let stay = |held, owed| State::Doomed { why: why.clone(), held, owed };
    match event {
        Event::Begun if held == Held::ByBegin => {
            to(stay(Held::ByDiscard, owed), [Action::Run(Operation::Discard)])
        }
        Event::NotBegun(_) if held == Held::ByBegin => over(why, owed),
        Event::Finished(_) if held == Held::ByHandler => to(
            stay(Held::ByDiscard, owed),
            [Action::Answer(Err(why.clone())), Action::Run(Operation::Discard)],
        ),
        Event::HandlerGone if held == Held::ByHandler => {
            to(stay(Held::ByDiscard, owed), [Action::Run(Operation::Discard)])
        }
        // It was told, and did not listen any more.
        Event::HandlerGone if held == Held::ByDiscard => to(stay(held, owed), []),
        Event::Discarded if held == Held::ByDiscard => over(why, owed),
        Event::Prepare(_) => to(stay(held, owed), [Action::Vote(Vote::Rollback(why.to_string()))]),
        Event::Decide(Decision::Rollback, position) => to(stay(held, owed.and(Owed::Rollback(position))), []),
        Event::Decide(Decision::Commit, position) => to(stay(held, owed.and(Owed::Commit(position))), []),
        Event::CommitOnePhase(position) => to(stay(held, owed.and(Owed::OnePhase(position))), []),
        Event::Enlisted | Event::EnlistRefused(_) | Event::DeadlinePassed | Event::SessionLost => {
            to(stay(held, owed), [])
        }
        Event::Joined(_)
        | Event::Finished(_)
        | Event::HandlerGone
        | Event::AskAgain
        | Event::Begun
        | Event::NotBegun(_)
        | Event::Discarded
        | Event::PrepareDone(_)
        | Event::Found(_)
        | Event::Resolved(_) => impossible(stay(held, owed), event),
    }
}

/// A doomed branch that nobody holds any more: rolled back, and it was never prepared.
fn over(why: &Doom, owed: Owed) -> Stepped {
    let end = State::Ended(End::NeverPrepared(why.clone()));
    match owed {
        Owed::Nothing => to(end, []),
        Owed::Rollback(_) => to(end, [Action::Acknowledge(Applied::RolledBack)]),
        // Whoever asks for these judges by evidence, now and after any restart: the store leaves a fence.
        Owed::Commit(position) => apply(Decision::Commit, position),
        Owed::OnePhase(position) => prove(position),
    }
}
