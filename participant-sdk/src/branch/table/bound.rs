//! From prepare on: the store knows what the branch is, and after a commit vote only a decision ends it.
//!
//! [`Event::AskAgain`] may come to a state that did not ask for it: a wait that a decision cut short is over only then.

use lockstep_proto::museum::mutated;
use lockstep_proto::{Epoch, Incarnation, LogPosition};

use super::super::{Action, Applied, Decision, Doom, End, Event, Operation, Owed, State, Vote, Wanted};
use super::{Stepped, Tell, acknowledge, apply, impossible, prove, to, undo};
use crate::resource::{Fate, Prepared, Unresolved};

pub(super) fn finding(owed: Owed, event: Event) -> Stepped {
    let stay = |owed| State::Finding { owed };
    match event {
        Event::Found(found) => match (owed, found) {
            (Owed::Rollback(position), _) => apply(Decision::Rollback, position),
            (Owed::Commit(position), _) => apply(Decision::Commit, position),
            (Owed::OnePhase(position), _) => prove(position),
            (Owed::Nothing, Ok(true)) => to(State::Prepared, [Action::Vote(Vote::Commit)]),
            // Nothing is voted, and nothing is done: this branch may have voted commit before, and be committed; a failover may bring
            // it back prepared before a rollback gets there. If its vote is still awaited, the coordinator's deadline ends that.
            (Owed::Nothing, Ok(false)) if mutated("a-branch-that-is-not-found-is-undone") => {
                undo(position_unknown(), String::new(), Tell::Coordinator)
            }
            (Owed::Nothing, Ok(false) | Err(_)) => to(State::Absent, []),
        },
        Event::Decide(Decision::Rollback, position) => to(stay(owed.and(Owed::Rollback(position))), []),
        Event::Decide(Decision::Commit, position) => to(stay(owed.and(Owed::Commit(position))), []),
        Event::CommitOnePhase(position) => to(stay(owed.and(Owed::OnePhase(position))), []),
        Event::Prepare(_)
        | Event::Enlisted
        | Event::EnlistRefused(_)
        | Event::DeadlinePassed
        | Event::SessionLost
        | Event::AskAgain => to(stay(owed), []),
        Event::Joined(_)
        | Event::Finished(_)
        | Event::HandlerGone
        | Event::Begun
        | Event::NotBegun(_)
        | Event::Discarded
        | Event::PrepareDone(_)
        | Event::Resolved(_) => impossible(stay(owed), event),
    }
}

pub(super) fn preparing(position: LogPosition, owed: Owed, wanted: Wanted, event: Event) -> Stepped {
    let stay = |owed, wanted| State::Preparing { position, owed, wanted };
    match event {
        Event::PrepareDone(result) => {
            let answer = answer_early_voter(wanted, owed, &result);
            let (state, actions) = prepare_done(position, owed, wanted, result)?;
            // The vote goes first: a commit that follows the handler's answer then finds it.
            to(state, actions.into_iter().chain(answer))
        }
        Event::Decide(Decision::Rollback, at) => to(stay(owed.and(Owed::Rollback(at)), wanted), []),
        Event::Decide(Decision::Commit, at) => to(stay(owed.and(Owed::Commit(at)), wanted), []),
        Event::CommitOnePhase(at) => {
            let order = match wanted {
                Wanted::ByCoordinator | Wanted::ByHandler => Owed::OnePhase(at),
                // The outcome is left to this branch, and somebody may have heard that it is rolled back.
                Wanted::ByNobody | Wanted::NoMore => Owed::Rollback(at),
            };
            to(stay(owed.and(order), wanted), [])
        }
        Event::SessionLost => {
            let answer = (wanted == Wanted::ByHandler)
                .then(|| Action::Answer(unless_committing(owed, Err(Doom::SessionLost))));
            to(stay(owed, Wanted::NoMore), answer)
        }
        Event::HandlerGone if wanted == Wanted::ByHandler => to(stay(owed, Wanted::ByNobody), []),
        // To a prepare, the early vote that is on its way is the answer.
        Event::HandlerGone
        | Event::Prepare(_)
        | Event::Enlisted
        | Event::EnlistRefused(_)
        | Event::DeadlinePassed => to(stay(owed, wanted), []),
        Event::Joined(_)
        | Event::Finished(_)
        | Event::AskAgain
        | Event::Begun
        | Event::NotBegun(_)
        | Event::Discarded
        | Event::Found(_)
        | Event::Resolved(_) => impossible(stay(owed, wanted), event),
    }
}

fn prepare_done(
    position: LogPosition,
    owed: Owed,
    wanted: Wanted,
    result: Result<Prepared, Unresolved>,
) -> Stepped {
    match result {
        Ok(Prepared::Yes) => match owed {
            Owed::Commit(position) | Owed::OnePhase(position) => apply(Decision::Commit, position),
            Owed::Rollback(position) => apply_rollback(wanted, position),
            Owed::Nothing => match wanted {
                Wanted::ByCoordinator | Wanted::ByHandler => {
                    to(State::Prepared, [Action::Vote(Vote::Commit)])
                }
                // It has not voted: it is still its participant's own.
                Wanted::ByNobody => undo(position, Doom::HandlerGone.to_string(), Tell::Coordinator),
                Wanted::NoMore => undo(position, Doom::SessionLost.to_string(), Tell::Nobody),
            },
        },
        Ok(Prepared::ReadOnly) => match owed {
            Owed::Nothing if wanted == Wanted::ByNobody => {
                let vote = Action::Vote(Vote::Rollback(Doom::HandlerGone.to_string()));
                to(State::Ended(End::NeverPrepared(Doom::HandlerGone)), [vote])
            }
            Owed::Nothing => to(State::Ended(End::ReadOnly), [Action::Vote(Vote::ReadOnly)]),
            Owed::Rollback(_) => to(State::Ended(End::ReadOnly), [Action::Acknowledge(Applied::RolledBack)]),
            Owed::Commit(position) => apply(Decision::Commit, position),
            Owed::OnePhase(position) => prove(position),
        },
        Ok(Prepared::No(why)) => {
            let action = match owed {
                Owed::Nothing => Action::Vote(Vote::Rollback(why.clone())),
                Owed::Rollback(_) => Action::Acknowledge(Applied::RolledBack),
                Owed::Commit(position) => return apply(Decision::Commit, position),
                Owed::OnePhase(position) => return prove(position),
            };
            to(State::Ended(End::Refused(why)), [action])
        }
        // Whatever was decided meanwhile: no decision can be kept any more, and the coordinator has to know.
        Ok(Prepared::Hazard(why)) => {
            let action = match owed {
                Owed::Nothing => Action::Vote(Vote::Hazard(why)),
                Owed::Rollback(_) | Owed::Commit(_) | Owed::OnePhase(_) => {
                    Action::Acknowledge(Applied::Hazard)
                }
            };
            to(State::Ended(End::Proved(Fate::Hazard)), [action])
        }
        Err(unresolved) => match owed {
            Owed::Commit(position) => apply(Decision::Commit, position),
            Owed::OnePhase(position) => prove(position),
            Owed::Rollback(position) => apply_rollback(wanted, position),
            Owed::Nothing if mutated("P15-an-error-is-a-no") => {
                let why = unresolved.to_string();
                to(State::Ended(End::Refused(why.clone())), [Action::Vote(Vote::Rollback(why))])
            }
            Owed::Nothing if mutated("P15-an-error-is-a-yes") => {
                to(State::Prepared, [Action::Vote(Vote::Commit)])
            }
            Owed::Nothing => {
                let why = format!("whether it was prepared was not known: {unresolved}");
                let tell = if wanted == Wanted::NoMore { Tell::Nobody } else { Tell::Coordinator };
                undo(position, why, tell)
            }
        },
    }
}

/// A rollback that was decided, or (without anyone left who wants the vote) is this branch's own: then it is not left to a
/// coordinator that has ordered a commit in one phase, and would do so again.
fn apply_rollback(wanted: Wanted, position: LogPosition) -> Stepped {
    match wanted {
        Wanted::ByCoordinator | Wanted::ByHandler => apply(Decision::Rollback, position),
        Wanted::ByNobody | Wanted::NoMore => to(
            State::Undoing {
                position,
                why: Doom::Decided.to_string(),
                vote: false,
                acknowledge: true,
                failed: 0,
                waiting: false,
            },
            [Action::Run(Operation::Rollback(position))],
        ),
    }
}

/// What the handler hears that has voted early, if it still waits.
fn answer_early_voter(wanted: Wanted, owed: Owed, result: &Result<Prepared, Unresolved>) -> Option<Action> {
    let not_prepared = |why: String| Err(Doom::NotPrepared(why));
    let answer = match result {
        _ if wanted != Wanted::ByHandler => return None,
        Ok(Prepared::No(why)) => not_prepared(why.clone()),
        Ok(Prepared::Hazard(why)) => Err(Doom::EndedByService(why.clone())),
        Ok(Prepared::Yes | Prepared::ReadOnly) => match owed {
            Owed::Rollback(_) => Err(Doom::Decided),
            Owed::Nothing | Owed::Commit(_) | Owed::OnePhase(_) => Ok(()),
        },
        Err(unresolved) => unless_committing(owed, not_prepared(unresolved.to_string())),
    };
    Some(Action::Answer(answer))
}

/// A branch that the coordinator has ordered to commit is in its hands: nobody is told that it is rolled back before that is
/// proved.
fn unless_committing(owed: Owed, answer: Result<(), Doom>) -> Result<(), Doom> {
    match owed {
        Owed::Commit(_) | Owed::OnePhase(_) => Ok(()),
        Owed::Nothing | Owed::Rollback(_) => answer,
    }
}

/// In doubt: neither a deadline nor a broken session nor anyone here ends it.
pub(super) fn prepared(event: Event) -> Stepped {
    match event {
        Event::Prepare(_) => to(State::Prepared, [Action::Vote(Vote::Commit)]),
        Event::Decide(decision, position) => apply(decision, position),
        // The order to commit crossed a vote (P10): it is an order to commit all the same.
        Event::CommitOnePhase(position) => apply(Decision::Commit, position),
        // Another instance has ended it, or somebody's hand. What became of it only the store knows.
        Event::Found(Ok(false)) => to(State::Absent, []),
        Event::Found(Ok(true) | Err(_))
        | Event::HandlerGone
        | Event::Enlisted
        | Event::EnlistRefused(_)
        | Event::DeadlinePassed
        | Event::SessionLost
        | Event::AskAgain => to(State::Prepared, []),
        Event::Joined(_)
        | Event::Finished(_)
        | Event::Begun
        | Event::NotBegun(_)
        | Event::Discarded
        | Event::PrepareDone(_)
        | Event::Resolved(_) => impossible(State::Prepared, event),
    }
}

pub(super) fn committing_one_phase(position: LogPosition, event: Event) -> Stepped {
    let stay = State::CommittingOnePhase(position);
    match event {
        Event::Resolved(Ok(fate)) => acknowledge(fate),
        // It may have committed. Only evidence tells, and where there is none, a fence makes that final.
        Event::Resolved(Err(_)) if mutated("P10-an-error-is-a-rollback") => {
            to(State::Ended(End::Proved(Fate::RolledBack)), [Action::Acknowledge(Applied::RolledBack)])
        }
        Event::Resolved(Err(_)) => prove(position),
        // What the store proves in the end answers all of these.
        Event::CommitOnePhase(_) | Event::Decide(..) | Event::Prepare(_) => to(stay, []),
        Event::HandlerGone
        | Event::Enlisted
        | Event::EnlistRefused(_)
        | Event::DeadlinePassed
        | Event::SessionLost => to(stay, []),
        Event::Joined(_)
        | Event::Finished(_)
        | Event::AskAgain
        | Event::Begun
        | Event::NotBegun(_)
        | Event::Discarded
        | Event::PrepareDone(_)
        | Event::Found(_) => impossible(stay, event),
    }
}

pub(super) fn applying(event: Event) -> Stepped {
    match event {
        Event::Resolved(Ok(fate)) => acknowledge(fate),
        Event::Resolved(Err(_)) if mutated("unknown-xid-is-done") => {
            to(State::Ended(End::Proved(Fate::Committed)), [Action::Acknowledge(Applied::Committed)])
        }
        // Not done, or not known: the coordinator sends its decision again, to whoever is attached then.
        Event::Resolved(Err(unresolved)) => {
            to(State::Absent, [Action::Acknowledge(Applied::NotYet(unresolved.0))])
        }
        Event::CommitOnePhase(_) | Event::Decide(..) | Event::Prepare(_) => to(State::Applying, []),
        Event::HandlerGone
        | Event::Enlisted
        | Event::EnlistRefused(_)
        | Event::DeadlinePassed
        | Event::SessionLost
        | Event::AskAgain => to(State::Applying, []),
        Event::Joined(_)
        | Event::Finished(_)
        | Event::Begun
        | Event::NotBegun(_)
        | Event::Discarded
        | Event::PrepareDone(_)
        | Event::Found(_) => impossible(State::Applying, event),
    }
}

pub(super) fn undoing(state: &State, event: Event) -> Stepped {
    let State::Undoing { position, why, vote, acknowledge: owed, failed, waiting } = state.clone() else {
        unreachable!("called in this state only")
    };
    let stay = |vote, acknowledge, failed, waiting| State::Undoing {
        position,
        why: why.clone(),
        vote,
        acknowledge,
        failed,
        waiting,
    };
    let run = Action::Run(Operation::Rollback(position));
    match event {
        Event::Resolved(Ok(fate)) if !waiting => {
            let action = match fate {
                _ if owed => Some(Action::Acknowledge(fate.into())),
                Fate::RolledBack if vote => Some(Action::Vote(Vote::Rollback(why))),
                Fate::RolledBack => None,
                // Someone's hand has committed it, or it fits no end: no vote says that. The decision will be told.
                Fate::Committed | Fate::Hazard => None,
            };
            to(State::Ended(End::Proved(fate)), action)
        }
        Event::Resolved(Err(_)) if !waiting => {
            to(stay(vote, owed, failed.saturating_add(1), true), [Action::AskLater(failed)])
        }
        Event::AskAgain if waiting => to(stay(vote, owed, failed, false), [run]),
        // An attempt is on its way already.
        Event::AskAgain => to(stay(vote, owed, failed, waiting), []),
        Event::Prepare(_) => to(stay(true, owed, failed, waiting), []),
        Event::Decide(..) | Event::CommitOnePhase(_) => {
            to(stay(vote, true, failed, false), waiting.then_some(run))
        }
        Event::SessionLost => to(stay(false, owed, failed, waiting), []),
        Event::HandlerGone | Event::Enlisted | Event::EnlistRefused(_) | Event::DeadlinePassed => {
            to(stay(vote, owed, failed, waiting), [])
        }
        Event::Joined(_)
        | Event::Finished(_)
        | Event::Begun
        | Event::NotBegun(_)
        | Event::Discarded
        | Event::PrepareDone(_)
        | Event::Found(_)
        | Event::Resolved(_) => impossible(state.clone(), event),
    }
}

pub(super) fn ended(end: &End, event: Event) -> Stepped {
    let stay = || State::Ended(end.clone());
    match event {
        Event::Prepare(_) => to(stay(), same_vote(end).map(Action::Vote)),
        Event::Decide(decision, position) => match (end, decision) {
            (End::NeverPrepared(_) | End::Refused(_) | End::ReadOnly, Decision::Rollback) => {
                to(stay(), [Action::Acknowledge(Applied::RolledBack)])
            }
            // A failover may have brought it back.
            (End::Proved(_), _) | (_, Decision::Commit) => apply(decision, position),
        },
        Event::CommitOnePhase(position) => prove(position),
        // A wait that was cut short by a decision is over only now.
        Event::AskAgain => to(stay(), []),
        Event::HandlerGone
        | Event::Enlisted
        | Event::EnlistRefused(_)
        | Event::DeadlinePassed
        | Event::SessionLost => to(stay(), []),
        Event::Joined(_)
        | Event::Finished(_)
        | Event::Begun
        | Event::NotBegun(_)
        | Event::Discarded
        | Event::PrepareDone(_)
        | Event::Found(_)
        | Event::Resolved(_) => impossible(stay(), event),
    }
}

/// For a bug that rolls back what nobody has told it to.
fn position_unknown() -> LogPosition {
    let epoch = Epoch::new(1).expect("1 is an epoch");
    LogPosition { epoch, incarnation: Incarnation::from_bytes([0; 16]), sequence: 0 }
}

/// The vote of a branch that is over: as it was, so far as a vote can say it.
fn same_vote(end: &End) -> Option<Vote> {
    match end {
        End::NeverPrepared(why) => Some(Vote::Rollback(why.to_string())),
        End::Refused(why) => Some(Vote::Rollback(why.clone())),
        End::ReadOnly => Some(Vote::ReadOnly),
        End::Proved(Fate::RolledBack) => Some(Vote::Rollback("it was rolled back".to_owned())),
        End::Proved(Fate::Committed | Fate::Hazard) => None,
    }
}
