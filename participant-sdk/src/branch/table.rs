//! The transition table: the state first, the event inside it, one function per state.
//!
//! [`own`] has the states until the vote, while the branch is its participant's own; [`bound`] those in which the store
//! or the coordinator has the last word. What they share is here.

mod bound;
mod own;

use lockstep_proto::LogPosition;
use lockstep_proto::museum::mutated;

use super::{
    Action, Decision, Doom, End, Event, Handler, Held, Impossible, Operation, Owed, State, Vote, Wanted,
};
use crate::resource::Fate;

type Stepped = Result<(State, Vec<Action>), Box<Impossible>>;

pub(super) fn step(state: &State, event: Event) -> Stepped {
    match state {
        State::Absent => own::absent(event),
        State::Opening(enlist) => own::opening(*enlist, event),
        State::Open(Handler::Busy(enlist)) => own::busy(*enlist, event),
        State::Open(Handler::Finishing(then)) => own::finishing(*then, event),
        State::Open(Handler::Idle) => own::idle(event),
        State::Doomed { why, held, owed } => own::doomed(why, *held, *owed, event),
        State::Finding { owed } => bound::finding(*owed, event),
        State::Preparing { position, owed, wanted } => bound::preparing(*position, *owed, *wanted, event),
        State::Prepared => bound::prepared(event),
        State::CommittingOnePhase(position) => bound::committing_one_phase(*position, event),
        State::Applying => bound::applying(event),
        State::Undoing { .. } => bound::undoing(state, event),
        State::Ended(end) => bound::ended(end, event),
    }
}

/// Who hears that an open branch is rolled back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tell {
    /// The coordinator, by a vote.
    Coordinator,
    /// The handler that waits.
    Handler,
    /// Both.
    Both,
    /// Nobody: the coordinator decided it, or is out of reach.
    Nobody,
}

/// Rolls an open branch back whose connection is here.
fn roll_back_now(why: Doom, owed: Owed, tell: Tell) -> Stepped {
    let vote =
        matches!(tell, Tell::Coordinator | Tell::Both).then(|| Action::Vote(Vote::Rollback(why.to_string())));
    let answer = matches!(tell, Tell::Handler | Tell::Both).then(|| Action::Answer(Err(why.clone())));
    let actions = answer.into_iter().chain(vote).chain([Action::Run(Operation::Discard)]);
    to(State::Doomed { why, held: Held::ByDiscard, owed }, actions)
}

fn prepare(position: LogPosition, answer: Option<Action>) -> Stepped {
    if mutated("votes-before-it-is-prepared") {
        let actions = [Action::Vote(Vote::Commit), Action::Run(Operation::Prepare(position))];
        let wanted = Wanted::ByCoordinator;
        return to(
            State::Preparing { position, owed: Owed::Nothing, wanted },
            answer.into_iter().chain(actions),
        );
    }
    let state = State::Preparing { position, owed: Owed::Nothing, wanted: Wanted::ByCoordinator };
    to(state, answer.into_iter().chain([Action::Run(Operation::Prepare(position))]))
}

/// The branch is enlisted and its handler done: it votes without being asked.
fn vote_early(position: LogPosition) -> Stepped {
    let state = State::Preparing { position, owed: Owed::Nothing, wanted: Wanted::ByHandler };
    to(state, [Action::Run(Operation::Prepare(position))])
}

fn commit_one_phase(position: LogPosition, answer: Option<Action>) -> Stepped {
    let actions = answer.into_iter().chain([Action::Run(Operation::CommitOnePhase(position))]);
    to(State::CommittingOnePhase(position), actions)
}

fn apply(decision: Decision, position: LogPosition) -> Stepped {
    let operation = match decision {
        Decision::Commit => Operation::Commit(position),
        Decision::Rollback => Operation::Rollback(position),
    };
    to(State::Applying, [Action::Run(operation)])
}

fn prove(position: LogPosition) -> Stepped {
    to(State::Applying, [Action::Run(Operation::Prove(position))])
}

fn undo(position: LogPosition, why: String, tell: Tell) -> Stepped {
    let vote = tell == Tell::Coordinator;
    let state = State::Undoing { position, why, vote, acknowledge: false, failed: 0, waiting: false };
    to(state, [Action::Run(Operation::Rollback(position))])
}

fn acknowledge(fate: Fate) -> Stepped {
    to(State::Ended(End::Proved(fate)), [Action::Acknowledge(fate.into())])
}

impl Owed {
    /// Both are owed; the one that needs more proof answers for the other too.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nothing, _) => other,
            (Self::Rollback(_), Self::Commit(_) | Self::OnePhase(_)) => other,
            (Self::Rollback(_) | Self::Commit(_) | Self::OnePhase(_), _) => self,
        }
    }
}

fn to(state: State, actions: impl IntoIterator<Item = Action>) -> Stepped {
    Ok((state, actions.into_iter().collect()))
}

fn impossible(state: State, event: Event) -> Stepped {
    Err(Box::new(Impossible { state, event }))
}
