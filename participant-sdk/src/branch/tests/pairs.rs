//! Every pair of state and event. What comes of it is written down in `testscripts/table`, to be read by a person; that every
//! pair is there, and that the impossible ones change nothing and name both, is checked here.

use std::error::Error;
use std::fmt::Write as _;

use super::*;

/// One of each kind of state, with every variant of what it remembers.
fn states() -> Vec<State> {
    let owed =
        [Owed::Nothing, Owed::Rollback(position(1)), Owed::Commit(position(1)), Owed::OnePhase(position(1))];
    let mut states = vec![
        State::Absent,
        State::Opening(Enlist::Asked),
        State::Opening(Enlist::Taken),
        State::Open(Handler::Busy(Enlist::Asked)),
        State::Open(Handler::Busy(Enlist::Taken)),
        State::Open(Handler::Finishing(Then::StayOpen)),
        State::Open(Handler::Finishing(Then::Vote(position(1)))),
        State::Open(Handler::Idle),
    ];
    for held in [Held::ByBegin, Held::ByHandler, Held::ByDiscard] {
        states.extend(owed.map(|owed| State::Doomed { why: Doom::HandlerRunning, held, owed }));
    }
    states.extend(owed.map(|owed| State::Finding { owed }));
    for wanted in [Wanted::ByCoordinator, Wanted::ByHandler, Wanted::ByNobody, Wanted::NoMore] {
        states.extend(owed.map(|owed| State::Preparing { position: position(1), owed, wanted }));
    }
    states.extend([State::Prepared, State::CommittingOnePhase(position(1)), State::Applying]);
    for (vote, acknowledge, waiting) in [
        (true, false, false),
        (true, false, true),
        (false, false, false),
        (false, false, true),
        (true, true, false),
        (false, true, false),
    ] {
        let why = "not known".to_owned();
        states.push(State::Undoing { position: position(1), why, vote, acknowledge, failed: 1, waiting });
    }
    states.extend(
        [
            End::NeverPrepared(Doom::HandlerGone),
            End::Refused("constraint".to_owned()),
            End::ReadOnly,
            End::Proved(Fate::Committed),
            End::Proved(Fate::RolledBack),
            End::Proved(Fate::Hazard),
        ]
        .map(State::Ended),
    );
    states
}

struct Table;

impl goldenscript::Runner for Table {
    type Command = goldenscript::Command;

    /// One command per kind of state: its name as [`show_state`] begins.
    fn run(
        &mut self,
        command: &goldenscript::Command,
        _: &goldenscript::Context,
    ) -> Result<String, Box<dyn Error>> {
        let mut output = String::new();
        let states = states();
        let mut chosen =
            states.iter().filter(|state| show_state(state).starts_with(&command.name)).peekable();
        if chosen.peek().is_none() {
            return Err("no such state".into());
        }
        for state in chosen {
            writeln!(output, "{}", show_state(state))?;
            let mut impossible = Vec::new();
            for (name, event) in events() {
                match (Branch { state: state.clone() }).step_to(event) {
                    Ok((next, actions)) => {
                        writeln!(output, "  {name}: {}", show_step(state, &next, &actions))?
                    }
                    Err(_) => impossible.push(kind(name)),
                }
            }
            impossible.dedup();
            writeln!(output, "  impossible: {}", impossible.join(", "))?;
        }
        Ok(output)
    }
}

impl Branch {
    fn step_to(mut self, event: Event) -> Result<(State, Vec<Action>), Box<Impossible>> {
        let actions = self.step(event)?;
        Ok((self.state, actions))
    }
}

/// The event without its result.
fn kind(name: &'static str) -> &'static str {
    ["finished", "prepare-done", "found", "resolved"]
        .into_iter()
        .find(|kind| name.starts_with(kind))
        .unwrap_or(name)
}

fn show_step(state: &State, next: &State, actions: &[Action]) -> String {
    let mut parts: Vec<_> = actions.iter().map(show_action).collect();
    if state == next {
        parts.push("stays".to_owned());
    } else {
        parts.push(format!("→ {}", show_state(next)));
    }
    parts.join("; ")
}

#[test]
fn every_pair_does_what_the_table_says() {
    goldenscript::run(&mut Table, "src/branch/testscripts/table").unwrap();
}

#[test]
fn the_script_of_the_table_has_every_state() {
    let script = std::fs::read_to_string("src/branch/testscripts/table").unwrap();
    for state in states() {
        let line = show_state(&state);
        assert!(script.lines().any(|found| found == line), "{line} is not in the table");
    }
}

#[test]
fn an_impossible_pair_is_an_error_that_names_both_and_changes_nothing() {
    let (mut possible, mut impossible) = (0, 0);
    for state in states() {
        for (_, event) in events() {
            let mut branch = Branch { state: state.clone() };
            match branch.step(event.clone()) {
                Ok(_) => possible += 1,
                Err(error) => {
                    impossible += 1;
                    assert_eq!(branch.state, state);
                    assert_eq!(*error, Impossible { state: state.clone(), event: event.clone() });
                    let text = error.to_string();
                    assert!(
                        text.contains(&format!("{state:?}")) && text.contains(&format!("{event:?}")),
                        "{text}"
                    );
                }
            }
        }
    }
    assert_eq!(possible + impossible, states().len() * events().len());
    assert!(impossible > 0 && possible > 0);
}

/// The network may deliver anything at any time: a message is never impossible.
#[test]
fn a_message_of_the_coordinator_is_defined_in_every_state() {
    let messages =
        ["enlisted", "enlist-refused", "prepare", "decide-commit", "decide-rollback", "commit-one-phase"];
    for state in states() {
        for (name, event) in events().into_iter().filter(|(name, _)| messages.contains(name)) {
            assert!(
                (Branch { state: state.clone() }).step(event).is_ok(),
                "{name} in {}",
                show_state(&state)
            );
        }
    }
}
