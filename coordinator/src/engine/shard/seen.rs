//! Which pairs of state and event the transactions of a shard went through: only for a simulator, which has to know what it has
//! tried, and only with the feature `simulation`.

use crate::protocol::event::Event;
use crate::protocol::record::DecisionKind;
use crate::protocol::transaction::State;

/// The states, by the numbers that they are counted under.
pub const STATES: [&str; 12] = [
    "active",
    "rollback only",
    "preparing",
    "deciding",
    "deciding in one phase",
    "decision unknown",
    "intent unknown",
    "committing",
    "committing in one phase",
    "rolling back",
    "recording a heuristic outcome",
    "ended",
];
/// The events, by the numbers that they are counted under.
pub const EVENTS: [&str; 14] = [
    "enlist",
    "commit requested",
    "rollback requested",
    "voted",
    "branch lost",
    "deadline passed",
    "log forced",
    "log refused",
    "log unknown",
    "log found",
    "log absent",
    "record again",
    "acknowledged",
    "abandoned",
];

/// How often each pair was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen(pub [[u64; EVENTS.len()]; STATES.len()]);

impl Default for Seen {
    fn default() -> Self {
        Self([[0; EVENTS.len()]; STATES.len()])
    }
}

impl Seen {
    pub(super) fn note(&mut self, state: &State, event: &Event) {
        self.0[number_of_state(state)][number_of_event(event)] += 1;
    }
}

fn number_of_state(state: &State) -> usize {
    match state {
        State::Active => 0,
        State::RollbackOnly(_) => 1,
        State::Preparing => 2,
        State::Deciding(DecisionKind::Commit) => 3,
        State::Deciding(DecisionKind::OnePhaseIntent) => 4,
        State::DecisionUnknown(DecisionKind::Commit) => 5,
        State::DecisionUnknown(DecisionKind::OnePhaseIntent) => 6,
        State::Committing => 7,
        State::CommittingOnePhase => 8,
        State::RollingBack(_) => 9,
        State::Recording(_) => 10,
        State::Ended(..) => 11,
    }
}

fn number_of_event(event: &Event) -> usize {
    match event {
        Event::Enlist(_) => 0,
        Event::CommitRequested => 1,
        Event::RollbackRequested(_) => 2,
        Event::Voted(..) => 3,
        Event::BranchLost(_) => 4,
        Event::DeadlinePassed => 5,
        Event::LogForced => 6,
        Event::LogRefused(_) => 7,
        Event::LogUnknown(_) => 8,
        Event::LogFound => 9,
        Event::LogAbsent => 10,
        Event::RecordAgain => 11,
        Event::Acknowledged(..) => 12,
        Event::Abandoned(_) => 13,
    }
}
