//! The transition table, once more: for every state and every event what must come of it, in `table.txt`.
//!
//! Complete by construction: the events are generated for each state listed there, for each of its branches and for a stranger, and
//! every pair has to be in exactly one row. `walk` holds that the states listed are all there are.
//!
//! A section `[active: e p r]` is a transaction in that state with branches called after theirs: `e` enlisted, `g` asked to
//! prepare, `p` prepared, `d` in doubt, `o` told while open, `t` told, `c` committed, `k` rolled back, `r` read-only, `h` hazard,
//! `l` lost; `n` is a new branch, `x` a stranger. A row: events → what changes, `=` for nothing, `rejected`.

use std::collections::{BTreeMap, BTreeSet};

use super::names::{bqual, gtrid, short};
use super::show;
use crate::protocol::branch::{Branch, BranchState};
use crate::protocol::event::{Applied, Effects, Event, Reply, Vote};
use crate::protocol::outcome::{BranchEnd, Heuristic, Outcome};
use crate::protocol::record::{About, DecisionKind, EndRecord, LogWrite};
use crate::protocol::transaction::{State, Transaction};

const TABLE: &str = include_str!("table.txt");

#[test]
fn every_pair_of_state_and_event() {
    let mut wrong = Vec::new();
    for (section, rows) in sections() {
        let transaction = transaction(section);
        let mut expected = BTreeMap::new();
        for (events, result) in rows {
            for event in events.split(", ") {
                assert!(expected.insert(event, result).is_none(), "[{section}] has two rows for {event}");
            }
        }
        for (name, event) in events(&transaction) {
            let result = result_of(&transaction, event);
            match expected.remove(name.as_str()) {
                Some(expected) if expected == result => {}
                Some(expected) => {
                    wrong.push(format!("[{section}] {name} → {result}\n    but expected: {expected}"))
                }
                None => wrong.push(format!("[{section}] {name} → {result}\n    but there is no row for it")),
            }
        }
        assert!(expected.is_empty(), "[{section}] has rows for events that do not exist: {expected:?}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The states and branch states that the table covers, for `walk` to compare with what can be reached.
pub(super) fn covered() -> BTreeSet<(&'static str, Option<&'static str>)> {
    let mut all = BTreeSet::new();
    for (section, _) in sections() {
        let transaction = transaction(section);
        let state = transaction.state().name();
        all.insert((state, None));
        all.extend(transaction.branches().iter().map(|branch| (state, Some(letter(branch.state)))));
    }
    all
}

type Rows = Vec<(&'static str, &'static str)>;

fn sections() -> Vec<(&'static str, Rows)> {
    let mut sections: Vec<(&str, Rows)> = Vec::new();
    for line in TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            assert!(sections.iter().all(|(other, _)| *other != section), "[{section}] is there twice");
            sections.push((section, Vec::new()));
        } else {
            let (events, result) = line.split_once(" → ").unwrap_or_else(|| panic!("no row: {line}"));
            let (_, rows) = sections.last_mut().expect("rows stand in sections");
            rows.push((events.trim(), result.trim()));
        }
    }
    sections
}

fn transaction(section: &str) -> Transaction {
    let (state, branches) = section.split_once(':').unwrap();
    let branch = |name: &str| Branch { bqual: bqual(name), state: branch_state(name) };
    Transaction::in_state(gtrid(1), state_of(state), branches.split_whitespace().map(branch).collect())
}

fn state_of(name: &str) -> State {
    use DecisionKind::{Commit, OnePhaseIntent};
    let why = || "why".to_owned();
    match name {
        "active" => State::Active,
        "rollback only" => State::RollbackOnly(why()),
        "preparing" => State::Preparing,
        "deciding" => State::Deciding(Commit),
        "deciding in one phase" => State::Deciding(OnePhaseIntent),
        "decision unknown" => State::DecisionUnknown(Commit),
        "intent unknown" => State::DecisionUnknown(OnePhaseIntent),
        "committing" => State::Committing,
        "committing in one phase" => State::CommittingOnePhase,
        "rolling back" => State::RollingBack(why()),
        "recording a heuristic outcome" => State::Recording(EndRecord {
            gtrid: gtrid(1),
            outcome: Outcome::Heuristic(Heuristic::Mixed),
            detail: why(),
            branches: Vec::new(),
            ended_ms: 1,
            about: About::default(),
        }),
        "ended, committed" => State::Ended(Outcome::Committed, String::new()),
        "ended, rolled back" => State::Ended(Outcome::RolledBack, why()),
        "ended, nothing to commit" => State::Ended(Outcome::NothingToCommit, String::new()),
        "ended, heuristic" => State::Ended(Outcome::Heuristic(Heuristic::Mixed), why()),
        other => panic!("no such state: {other}"),
    }
}

fn branch_state(name: &str) -> BranchState {
    match &name[..1] {
        "e" => BranchState::Enlisted,
        "g" => BranchState::Preparing,
        "p" => BranchState::Prepared,
        "d" => BranchState::InDoubt,
        "o" => BranchState::ToldOpen,
        "t" => BranchState::Told,
        "c" => BranchState::Ended(BranchEnd::Committed),
        "k" => BranchState::Ended(BranchEnd::RolledBack),
        "r" => BranchState::Ended(BranchEnd::ReadOnly),
        "h" => BranchState::Ended(BranchEnd::Hazard),
        "l" => BranchState::Ended(BranchEnd::Lost),
        "a" => BranchState::Ended(BranchEnd::Abandoned),
        other => panic!("no such branch state: {other}"),
    }
}

pub(super) fn letter(state: BranchState) -> &'static str {
    match state {
        BranchState::Enlisted => "e",
        BranchState::Preparing => "g",
        BranchState::Prepared => "p",
        BranchState::InDoubt => "d",
        BranchState::ToldOpen => "o",
        BranchState::Told => "t",
        BranchState::Ended(BranchEnd::Committed) => "c",
        BranchState::Ended(BranchEnd::RolledBack) => "k",
        BranchState::Ended(BranchEnd::ReadOnly) => "r",
        BranchState::Ended(BranchEnd::Hazard) => "h",
        BranchState::Ended(BranchEnd::Lost) => "l",
        BranchState::Ended(BranchEnd::Abandoned) => "a",
    }
}

/// Every event there is for this transaction.
fn events(transaction: &Transaction) -> Vec<(String, Event)> {
    let why = || "why".to_owned();
    let alone = [
        ("enlist n", Event::Enlist(bqual("n"))),
        ("commit", Event::CommitRequested),
        ("rollback", Event::RollbackRequested(why())),
        ("deadline", Event::DeadlinePassed),
        ("forced", Event::LogForced),
        ("refused", Event::LogRefused(why())),
        ("unknown", Event::LogUnknown(why())),
        ("found", Event::LogFound),
        ("absent", Event::LogAbsent),
        ("again", Event::RecordAgain),
    ];
    let mut all: Vec<_> = alone.into_iter().map(|(name, event)| (name.to_owned(), event)).collect();
    let mut names: Vec<_> = transaction.branches().iter().map(|branch| short(&branch.bqual)).collect();
    all.extend(names.iter().map(|name| (format!("enlist {name}"), Event::Enlist(bqual(name)))));
    names.push("x".into());
    for name in names {
        let branch = bqual(&name);
        all.push((format!("lost {name}"), Event::BranchLost(branch.clone())));
        all.push((format!("abandon {name}"), Event::Abandoned(branch.clone())));
        for (word, vote) in [
            ("commit", Vote::Commit),
            ("rollback", Vote::Rollback(why())),
            ("read-only", Vote::ReadOnly),
            ("hazard", Vote::Hazard(why())),
        ] {
            all.push((format!("vote {name} {word}"), Event::Voted(branch.clone(), vote)));
        }
        for (word, applied) in [
            ("committed", Applied::Committed),
            ("rolled-back", Applied::RolledBack),
            ("hazard", Applied::Hazard),
        ] {
            all.push((format!("ack {name} {word}"), Event::Acknowledged(branch.clone(), applied)));
        }
    }
    all
}

fn result_of(before: &Transaction, event: Event) -> String {
    let mut after = before.clone();
    match after.step(event, 1) {
        Ok(effects) => changes(before, &after, &effects),
        Err(_) => {
            assert_eq!(*before, after, "a rejected event changes nothing");
            "rejected".to_owned()
        }
    }
}

fn changes(before: &Transaction, after: &Transaction, effects: &Effects) -> String {
    let mut parts = Vec::new();
    if before.state().name() != after.state().name() {
        parts.push(after.state().name().to_owned());
    }
    for branch in after.branches() {
        let old = before.branches().iter().find(|old| old.bqual == branch.bqual);
        if old.is_none_or(|old| old.state != branch.state) {
            parts.push(format!("{}:{}", short(&branch.bqual), letter(branch.state)));
        }
    }
    if let Some(write) = &effects.log {
        parts.push(summary(write));
    }
    for (bqual, message) in &effects.messages {
        parts.push(format!("send {} {}", short(bqual), show::message(*message)));
    }
    match &effects.reply {
        None => {}
        Some(Reply::Decided(outcome, _)) => parts.push(format!("reply decided {}", show::outcome(*outcome))),
        Some(Reply::Ended(outcome, _)) => parts.push(format!("reply ended {}", show::outcome(*outcome))),
    }
    if parts.is_empty() { "=".to_owned() } else { parts.join("; ") }
}

fn summary(write: &LogWrite) -> String {
    match write {
        LogWrite::ForceDecision(decision) => {
            let kind = match decision.kind {
                DecisionKind::Commit => "commit",
                DecisionKind::OnePhaseIntent => "intent",
            };
            let branches: Vec<_> = decision.branches.iter().map(short).collect();
            format!("force {kind} of {}", branches.join(" "))
        }
        LogWrite::ForceEnd(end) => format!("force end {}", show::outcome(end.outcome)),
        LogWrite::LazyEnd(end) => format!("lazily end {}", show::outcome(end.outcome)),
    }
}
