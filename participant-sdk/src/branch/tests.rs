//! The table, pair by pair; its behaviour, script by script; and what must hold on every path.

mod pairs;
mod scripts;
mod walks;

use lockstep_proto::{Epoch, Incarnation, LogPosition};

use super::*;

/// A place in the log that prints as `p<sequence>`.
fn position(sequence: u64) -> LogPosition {
    let incarnation = Incarnation::from_bytes([0; 16]);
    LogPosition { epoch: Epoch::new(1).unwrap(), incarnation, sequence }
}

fn unresolved() -> Unresolved {
    Unresolved("connection lost".to_owned())
}

fn refusal() -> Refusal {
    Refusal { rollback_only: false, detail: "not active".to_owned() }
}

fn at(position: LogPosition) -> String {
    format!("p{}", position.sequence)
}

fn show_owed(owed: Owed) -> String {
    match owed {
        Owed::Nothing => "nothing owed".to_owned(),
        Owed::Rollback(position) => format!("owes rollback {}", at(position)),
        Owed::Commit(position) => format!("owes commit {}", at(position)),
        Owed::OnePhase(position) => format!("owes one-phase {}", at(position)),
    }
}

fn show_doom(why: &Doom) -> &'static str {
    match why {
        Doom::HandlerRunning => "handler running",
        Doom::HandlerGone => "handler gone",
        Doom::Refused(_) => "refused",
        Doom::Decided => "decided",
        Doom::CommitWithoutVote => "commit without vote",
        Doom::SessionLost => "session lost",
        Doom::DeadlinePassed => "deadline passed",
        Doom::NotBegun(_) => "not begun",
        Doom::NotPrepared(_) => "not prepared",
        Doom::EndedByService(_) => "ended by its service",
    }
}

fn show_state(state: &State) -> String {
    match state {
        State::Absent => "absent".to_owned(),
        State::Opening(enlist) => format!("opening, enlist {enlist:?}").to_lowercase(),
        State::Open(Handler::Busy(enlist)) => format!("open, busy, enlist {enlist:?}").to_lowercase(),
        State::Open(Handler::Finishing(Then::StayOpen)) => "open, finishing".to_owned(),
        State::Open(Handler::Finishing(Then::Vote(position))) => {
            format!("open, finishing with a vote at {}", at(*position))
        }
        State::Open(Handler::Idle) => "open, idle".to_owned(),
        State::Doomed { why, held, owed } => {
            let held = match held {
                Held::ByBegin => "begin",
                Held::ByHandler => "its handler",
                Held::ByDiscard => "discard",
            };
            format!("doomed ({}), held by {held}, {}", show_doom(why), show_owed(*owed))
        }
        State::Finding { owed } => format!("finding, {}", show_owed(*owed)),
        State::Preparing { position, owed, wanted } => {
            let wanted = match wanted {
                Wanted::ByCoordinator => "",
                Wanted::ByHandler => ", handler waits",
                Wanted::ByNobody => ", handler gone",
                Wanted::NoMore => ", session lost",
            };
            format!("preparing at {}, {}{wanted}", at(*position), show_owed(*owed))
        }
        State::Prepared => "prepared".to_owned(),
        State::CommittingOnePhase(position) => format!("committing in one phase at {}", at(*position)),
        State::Applying => "applying".to_owned(),
        State::Undoing { position, vote, acknowledge, failed, waiting, why: _ } => {
            let vote = if *vote { ", vote awaited" } else { "" };
            let acknowledge = if *acknowledge { ", acknowledgement awaited" } else { "" };
            let waiting = if *waiting { ", waiting" } else { "" };
            format!("undoing at {}, {failed} failed{vote}{acknowledge}{waiting}", at(*position))
        }
        State::Ended(End::NeverPrepared(why)) => format!("ended, never prepared ({})", show_doom(why)),
        State::Ended(End::Refused(why)) => format!("ended, refused ({why})"),
        State::Ended(End::ReadOnly) => "ended, read-only".to_owned(),
        State::Ended(End::Proved(Fate::Committed)) => "ended, proved committed".to_owned(),
        State::Ended(End::Proved(Fate::RolledBack)) => "ended, proved rolled back".to_owned(),
        State::Ended(End::Proved(Fate::Hazard)) => "ended, proved a hazard".to_owned(),
    }
}

fn show_operation(operation: &Operation) -> String {
    match operation {
        Operation::Begin(remaining) => format!("begin within {remaining:?}"),
        Operation::Discard => "discard".to_owned(),
        Operation::Prepare(position) => format!("prepare {}", at(*position)),
        Operation::Find => "find".to_owned(),
        Operation::CommitOnePhase(position) => format!("commit one-phase {}", at(*position)),
        Operation::Commit(position) => format!("commit {}", at(*position)),
        Operation::Rollback(position) => format!("rollback {}", at(*position)),
        Operation::Prove(position) => format!("prove {}", at(*position)),
    }
}

fn show_action(action: &Action) -> String {
    match action {
        Action::Run(operation) => format!("store: {}", show_operation(operation)),
        Action::Enlist => "send: enlist".to_owned(),
        Action::Vote(Vote::Commit) => "send: vote commit".to_owned(),
        Action::Vote(Vote::ReadOnly) => "send: vote read-only".to_owned(),
        Action::Vote(Vote::Rollback(why)) => format!("send: vote rollback ({why})"),
        Action::Vote(Vote::Hazard(why)) => format!("send: vote hazard ({why})"),
        Action::Acknowledge(Applied::NotYet(why)) => format!("send: acknowledge not yet ({why})"),
        Action::Acknowledge(Applied::Committed) => "send: acknowledge committed".to_owned(),
        Action::Acknowledge(Applied::RolledBack) => "send: acknowledge rolled back".to_owned(),
        Action::Acknowledge(Applied::Hazard) => "send: acknowledge hazard".to_owned(),
        Action::Hand => "handler: here is the connection".to_owned(),
        Action::Answer(Ok(())) => "handler: ok".to_owned(),
        Action::Answer(Err(why)) => format!("handler: error, {why}"),
        Action::AskLater(failed) => format!("ask again later, {failed} failed before"),
    }
}

/// Every event, with each of its results.
fn events() -> Vec<(&'static str, Event)> {
    vec![
        ("joined", Event::Joined(Duration::from_secs(5))),
        ("finished", Event::Finished(Then::StayOpen)),
        ("finished-with-a-vote", Event::Finished(Then::Vote(position(1)))),
        ("handler-gone", Event::HandlerGone),
        ("enlisted", Event::Enlisted),
        ("enlist-refused", Event::EnlistRefused(refusal())),
        ("prepare", Event::Prepare(position(2))),
        ("decide-commit", Event::Decide(Decision::Commit, position(3))),
        ("decide-rollback", Event::Decide(Decision::Rollback, position(3))),
        ("commit-one-phase", Event::CommitOnePhase(position(3))),
        ("deadline-passed", Event::DeadlinePassed),
        ("session-lost", Event::SessionLost),
        ("ask-again", Event::AskAgain),
        ("begun", Event::Begun),
        ("not-begun", Event::NotBegun("pool timed out".to_owned())),
        ("discarded", Event::Discarded),
        ("prepare-done-yes", Event::PrepareDone(Ok(Prepared::Yes))),
        ("prepare-done-read-only", Event::PrepareDone(Ok(Prepared::ReadOnly))),
        ("prepare-done-no", Event::PrepareDone(Ok(Prepared::No("constraint".to_owned())))),
        ("prepare-done-hazard", Event::PrepareDone(Ok(Prepared::Hazard("its service committed".to_owned())))),
        ("prepare-done-unresolved", Event::PrepareDone(Err(unresolved()))),
        ("found-prepared", Event::Found(Ok(true))),
        ("found-nothing", Event::Found(Ok(false))),
        ("found-unresolved", Event::Found(Err(unresolved()))),
        ("resolved-committed", Event::Resolved(Ok(Fate::Committed))),
        ("resolved-rolled-back", Event::Resolved(Ok(Fate::RolledBack))),
        ("resolved-hazard", Event::Resolved(Ok(Fate::Hazard))),
        ("resolved-unresolved", Event::Resolved(Err(unresolved()))),
    ]
}
