//! Which pairs of state and event the branches of a session went through: only for a simulator, which has to know what it has
//! tried, and only with the feature `simulation`.

use crate::branch::{Event, Handler, State};

/// The states, by the numbers that they are counted under.
pub const STATES: [&str; 13] = [
    "absent",
    "opening",
    "busy",
    "finishing",
    "idle",
    "doomed",
    "finding",
    "preparing",
    "prepared",
    "committing in one phase",
    "applying",
    "undoing",
    "ended",
];
/// The events, by the numbers that they are counted under.
pub const EVENTS: [&str; 17] = [
    "joined",
    "finished",
    "handler gone",
    "enlisted",
    "enlist refused",
    "prepare",
    "decide",
    "commit in one phase",
    "deadline passed",
    "session lost",
    "ask again",
    "begun",
    "not begun",
    "discarded",
    "prepare done",
    "found",
    "resolved",
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
        State::Absent => 0,
        State::Opening(_) => 1,
        State::Open(Handler::Busy(_)) => 2,
        State::Open(Handler::Finishing(_)) => 3,
        State::Open(Handler::Idle) => 4,
        State::Doomed { .. } => 5,
        State::Finding { .. } => 6,
        State::Preparing { .. } => 7,
        State::Prepared => 8,
        State::CommittingOnePhase(_) => 9,
        State::Applying => 10,
        State::Undoing { .. } => 11,
        State::Ended(_) => 12,
    }
}

fn number_of_event(event: &Event) -> usize {
    match event {
        Event::Joined(_) => 0,
        Event::Finished(_) => 1,
        Event::HandlerGone => 2,
        Event::Enlisted => 3,
        Event::EnlistRefused(_) => 4,
        Event::Prepare(_) => 5,
        Event::Decide(..) => 6,
        Event::CommitOnePhase(_) => 7,
        Event::DeadlinePassed => 8,
        Event::SessionLost => 9,
        Event::AskAgain => 10,
        Event::Begun => 11,
        Event::NotBegun(_) => 12,
        Event::Discarded => 13,
        Event::PrepareDone(_) => 14,
        Event::Found(_) => 15,
        Event::Resolved(_) => 16,
    }
}
