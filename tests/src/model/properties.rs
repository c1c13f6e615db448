//! What must hold in every state: the invariants of docs/verification.md, by their names.
//!
//! A branch that somebody has ended by hand is left out where it says so; that it is on record in the end is `heuristics_recorded`.

use lockstep::branch::Applied;
use lockstep_coordinator::protocol::outcome::Outcome;
use lockstep_coordinator::protocol::record::{DecisionKind, DecisionRecord};

use super::world::{Participant, Truth, Up, World, bqual};

/// A property: its name, and whether it holds.
pub type Property = (&'static str, fn(&World) -> bool);

/// All of them.
pub const PROPERTIES: [Property; 8] = [
    ("agreement", agreement),
    ("stability", stability),
    ("commit_needs_all_votes", commit_needs_all_votes),
    ("durable_before_sent", durable_before_sent),
    ("reply_matches_log", reply_matches_log),
    ("acknowledgement_is_true", acknowledgement_is_true),
    ("heuristics_recorded", heuristics_recorded),
    ("assertion", assertion),
];

fn commit(world: &World) -> Option<&DecisionRecord> {
    world.log.decision.as_ref().filter(|decision| decision.kind == DecisionKind::Commit)
}

fn touched(world: &World) -> bool {
    world.participants.iter().any(|participant| participant.by_hand)
}

/// No branch has committed while another has rolled back, but by somebody's hand (AC1).
fn agreement(world: &World) -> bool {
    let left = || world.participants.iter().filter(|participant| !participant.by_hand);
    let committed = left().any(|participant| participant.truth == Truth::Committed);
    // One that writes nothing has nothing to agree on.
    let gone = |participant: &Participant| participant.truth == Truth::RolledBack && !participant.read_only;
    !committed || !left().any(|participant| gone(participant))
}

/// Where commit is decided, nobody was told to roll back, or that all is rolled back (AC2).
fn stability(world: &World) -> bool {
    commit(world).is_none() || !(world.told.rollback_sent || world.told.rolled_back)
}

/// Commit is decided only when every branch is prepared, or writes nothing and has left (AC3).
fn commit_needs_all_votes(world: &World) -> bool {
    let Some(decision) = commit(world) else { return true };
    world.participants.iter().enumerate().all(|(number, participant)| {
        if decision.branches.contains(&bqual(number)) {
            participant.by_hand || matches!(participant.truth, Truth::Prepared | Truth::Committed)
        } else {
            participant.truth == Truth::ReadOnly
        }
    })
}

/// Nobody commits, or was told to, before that is decided in the log.
fn durable_before_sent(world: &World) -> bool {
    let done = |participant: &Participant| participant.truth == Truth::Committed && !participant.by_hand;
    let needs = world.told.commit_sent || world.participants.iter().any(|participant| done(participant));
    !needs || world.log.decision.is_some()
}

/// What the application was told is what the log says, and in one phase what the branch did.
fn reply_matches_log(world: &World) -> bool {
    let told = &world.told;
    if told.committed && told.rolled_back {
        return false;
    }
    match &world.log.decision {
        None => !told.committed,
        Some(decision) if decision.kind == DecisionKind::Commit => !told.rolled_back,
        Some(decision) => {
            let named = |(number, _): &(usize, _)| decision.branches.contains(&bqual(*number));
            let mut branches = world.participants.iter().enumerate().filter(named);
            branches.all(|(_, participant)| {
                let committed = participant.truth == Truth::Committed || participant.undone;
                participant.by_hand
                    || (!told.committed || committed || participant.read_only)
                        && (!told.rolled_back || !committed)
            })
        }
    }
}

/// What is acknowledged has come to be.
fn acknowledgement_is_true(world: &World) -> bool {
    world.participants.iter().all(|participant| {
        let fits = |up: &Up| match up {
            Up::Acknowledge(Applied::Committed) => {
                participant.truth == Truth::Committed || participant.undone
            }
            Up::Acknowledge(Applied::RolledBack) => {
                !matches!(participant.truth, Truth::Committed | Truth::Prepared)
            }
            Up::Acknowledge(Applied::Hazard | Applied::NotYet(_)) | Up::Vote(_) | Up::Report => true,
        };
        participant.by_hand || participant.up.iter().all(fits)
    })
}

/// When everything is over, a branch that was forced against the decision is on record, and nobody is told otherwise.
fn heuristics_recorded(world: &World) -> bool {
    if !touched(world) || !world.is_over() {
        return true;
    }
    let Some(decision) = &world.log.decision else { return true };
    let forced = |participant: &Participant| participant.by_hand && participant.truth == Truth::RolledBack;
    let differs = decision.kind == DecisionKind::Commit
        && world.participants.iter().any(|participant| forced(participant));
    let recorded = |end: Outcome| matches!(end, Outcome::Heuristic(_));
    !differs || world.log.end.as_ref().is_some_and(|end| recorded(end.outcome))
}

/// Nothing happened that the machines, or the shells around them, hold impossible.
const fn assertion(world: &World) -> bool {
    world.broken.is_none()
}
