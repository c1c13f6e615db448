//! What people and programs see, kept in `../golden`: the exact text and JSON for given answers of a coordinator.
//!
//! `UPDATE_GOLDENFILES=1 cargo test` writes the files anew. A change of a `.json` that does more than add a field breaks
//! somebody's script.

use std::path::PathBuf;

use lockstep_proto::v1;

use super::super::output::json;
use super::*;

/// 2026-01-02T03:04:05.678Z.
const NOW_MS: u64 = 1_767_323_045_678;
const PLAIN: Look = Look { width: 80, colour: false };

pub(in crate::operator::cli) fn golden(name: &str, shown: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/operator/cli/golden").join(name);
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        std::fs::write(&path, shown).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(shown, kept, "{} differs: see the head of {}", path.display(), file!());
}

/// The text, of which no line is wider than 80 columns (each of these characters takes one) or ends with a blank.
pub(in crate::operator::cli) fn golden_text(name: &str, shown: &str) {
    for line in shown.lines() {
        assert!(line.chars().count() <= 80, "too wide: {line}");
        assert!(!line.ends_with(' '), "blank at the end: {line:?}");
    }
    golden(name, shown);
}

/// Transactions of one millisecond, told apart by what follows.
fn gtrid(random: u16) -> String {
    format!("12.0192f0c1a2b37{random:03x}8e4f5a6b7c8d9e0f")
}

fn transaction(gtrid: String, state: v1::TransactionState, outcome: v1::Outcome) -> v1::TransactionInfo {
    v1::TransactionInfo {
        gtrid,
        name: "transfer".into(),
        state: state.into(),
        outcome: outcome.into(),
        began_ms: NOW_MS - 252_500,
        ..Default::default()
    }
}

fn branch(bqual: &str, state: &str) -> v1::BranchInfo {
    v1::BranchInfo {
        bqual: bqual.into(),
        resource_manager: bqual.split('.').next().unwrap().into(),
        state: state.into(),
        ..Default::default()
    }
}

/// One transaction in each state, with the longest that may stand in each column.
fn every_state() -> v1::ListTransactionsResponse {
    use v1::{Outcome, TransactionState};
    let mut transactions = vec![
        v1::TransactionInfo {
            deadline_ms: NOW_MS + 29_750,
            name: "a".repeat(64),
            can_change: true,
            ..transaction(gtrid(1), TransactionState::Active, Outcome::Undecided)
        },
        v1::TransactionInfo {
            deadline_ms: NOW_MS - 1,
            name: String::new(),
            branches: vec![branch("orders-db.0f1e2d3c4b5a6978", "preparing")],
            ..transaction(gtrid(2), TransactionState::Preparing, Outcome::Undecided)
        },
        transaction(gtrid(3), TransactionState::Deciding, Outcome::Undecided),
        v1::TransactionInfo {
            began_ms: NOW_MS - 3 * 86_400_000,
            branches: vec![branch("db.0f1e2d3c4b5a6978", "delivering"); 256],
            ..transaction(gtrid(4), TransactionState::Committing, Outcome::Committed)
        },
        transaction(gtrid(5), TransactionState::RollingBack, Outcome::RolledBack),
        transaction(gtrid(6), TransactionState::CommittingOnePhase, Outcome::Undecided),
        v1::TransactionInfo {
            gtrid: "4294967295.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f".into(),
            name: "\u{1b}[2Jevil\nname\u{202e}".into(),
            ..transaction(gtrid(7), TransactionState::CommittingOnePhase, Outcome::Undecided)
        },
    ];
    for outcome in [Outcome::Committed, Outcome::RolledBack, Outcome::NothingToCommit, Outcome::Heuristic] {
        let next = u16::try_from(transactions.len()).unwrap();
        transactions.push(transaction(gtrid(next), TransactionState::Ended, outcome));
    }
    v1::ListTransactionsResponse { transactions, truncated: true, now_ms: NOW_MS }
}

/// A transaction with something in every field.
fn in_doubt() -> v1::ShowTransactionResponse {
    let delivering = v1::BranchInfo {
        attempts: 9,
        next_attempt_in_ms: 22_000,
        last_error: "no instance attached since the connection was reset by its peer".into(),
        vote: "commit".into(),
        ..branch("ledger-db.8a7b6c5d4e3f2a1b", "delivering")
    };
    let committed = v1::BranchInfo {
        attempts: 1,
        vote: "commit".into(),
        ..branch("orders-db.0f1e2d3c4b5a6978", "committed")
    };
    let transaction = v1::TransactionInfo {
        labels: [("order", "o-91"), ("customer", "17")].map(|(k, v)| (k.into(), v.into())).into(),
        detail: "waiting for a branch".into(),
        deadline_ms: NOW_MS - 222_500,
        decided_ms: NOW_MS - 252_000,
        ended_ms: NOW_MS - 99,
        branches: vec![committed, delivering],
        can_change: false,
        situation: v1::Situation::Undelivered.into(),
        paused: true,
        traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into(),
        ..transaction(gtrid(1), v1::TransactionState::Committing, v1::Outcome::Committed)
    };
    v1::ShowTransactionResponse { transaction: Some(transaction), now_ms: NOW_MS, ..Default::default() }
}

/// The same with what its databases say, what was done, and what can be.
fn looked_into() -> TransactionShown {
    let found = |bqual: &str, state: &str| v1::InspectedBranch {
        cluster: "7c1f09ae".into(),
        gtrid: gtrid(1),
        bqual: bqual.into(),
        state: state.into(),
        at_ms: NOW_MS - 252_100,
        orphan: String::new(),
        foreign: false,
    };
    let waits = v1::BlockedSession {
        session: 4121,
        waiting_ms: 38_000,
        statement_ms: 38_250,
        object: "a row that it changed".into(),
        gtrid: gtrid(1),
    };
    let answers = vec![
        v1::DatabaseAnswer {
            resource_manager: "orders-db".into(),
            took_ms: 3,
            branches: vec![found("orders-db.0f1e2d3c4b5a6978", "committed")],
            ..Default::default()
        },
        v1::DatabaseAnswer {
            resource_manager: "ledger-db".into(),
            took_ms: 4,
            branches: vec![found("ledger-db.8a7b6c5d4e3f2a1b", "prepared")],
            blocked: vec![waits],
            ..Default::default()
        },
        v1::DatabaseAnswer {
            resource_manager: "stock-db".into(),
            error: "no instance is attached".into(),
            ..Default::default()
        },
    ];
    let advice = |action: v1::OperatorAction, why: &str| v1::Advice {
        action: action.into(),
        permitted: why.is_empty(),
        why: why.into(),
        instead: String::new(),
    };
    let entry = v1::AuditEntry {
        id: 7,
        at_ms: NOW_MS - 60_000,
        who: "kim".into(),
        action: "retry".into(),
        subject: gtrid(1),
        gtrid: gtrid(1),
        reason: "ledger-db is back".into(),
        before: "committing".into(),
        after: "deliver the decision now".into(),
    };
    let mut wire = in_doubt();
    wire.advice = vec![
        advice(v1::OperatorAction::Retry, ""),
        advice(v1::OperatorAction::Pause, ""),
        advice(v1::OperatorAction::Resume, ""),
        advice(v1::OperatorAction::Rollback, "COMMIT is durable, and cannot be taken back or chosen again"),
        advice(v1::OperatorAction::Abandon, ""),
    ];
    wire.audit = vec![entry];
    let mut shown = show_view(wire);
    let inspected = v1::InspectResponse { answers, now_ms: NOW_MS, gtrid: gtrid(1) };
    shown.databases = crate::operator::view::participants::Inspected::try_from(inspected).unwrap().answers;
    shown
}

/// What is hardest to lay out: names as long as they may be, and text that wants to be something else.
fn hard_to_show() -> v1::ShowTransactionResponse {
    let long = v1::BranchInfo {
        vote: "read-only".into(),
        next_attempt_in_ms: 3_599_000,
        last_error: "x".repeat(60),
        ..branch(&format!("{}.0f1e2d3c4b5a6978", "r".repeat(47)), "rolled-back")
    };
    let transaction = v1::TransactionInfo {
        name: "n".repeat(64),
        labels: [("k".repeat(100), "v".repeat(100))].into(),
        detail: format!("\u{1b}]0;title\u{7} it's \"quoted\"\nover lines {}", "d".repeat(200)),
        branches: vec![long],
        can_change: true,
        ..transaction(gtrid(1), v1::TransactionState::Active, v1::Outcome::Undecided)
    };
    v1::ShowTransactionResponse { transaction: Some(transaction), now_ms: NOW_MS, ..Default::default() }
}

fn troubled() -> v1::StatusResponse {
    let participant = |name: &str, sessions, problem: &str| v1::ParticipantInfo {
        resource_manager: name.into(),
        sessions,
        problem: problem.into(),
        down_since_ms: if sessions == 0 { NOW_MS - 252_000 } else { 0 },
        retired: false,
    };
    v1::StatusResponse {
        version: "0.1.0".into(),
        cluster: "7c1f09ae".into(),
        epoch: 12,
        uptime_ms: (3 * 24 + 4) * 3_600_000,
        transactions_in_flight: 17,
        undelivered: 2,
        undelivered_since_ms: NOW_MS - 252_500,
        undecided: 1,
        orphans: 3,
        heuristic: 1,
        heuristic_open: 1,
        draining: true,
        log_behind: true,
        begins_refused: "it is draining".into(),
        log_bytes: 12 << 20,
        log_free_bytes: Some(21 << 30),
        log_unavailable: String::new(),
        now_ms: NOW_MS,
        participants: vec![
            participant("orders-db", 2, ""),
            participant(
                "stock-db",
                1,
                "its log position 9:120 is ahead of this log's 9:114: run lockstep restore",
            ),
            participant("ledger-db", 0, ""),
        ],
    }
}

fn status_view(wire: v1::StatusResponse) -> StatusView {
    wire.try_into().unwrap()
}

fn list_view(wire: v1::ListTransactionsResponse) -> TransactionList {
    wire.try_into().unwrap()
}

fn show_view(wire: v1::ShowTransactionResponse) -> TransactionShown {
    wire.try_into().unwrap()
}

#[test]
fn the_list_of_transactions() {
    golden_text("tx-ls.txt", &list(&list_view(every_state()), PLAIN));
    let transactions = in_doubt().transaction.into_iter().collect();
    let wire = v1::ListTransactionsResponse { transactions, truncated: true, now_ms: NOW_MS };
    golden("tx-ls.json", &(json(&list_view(wire)) + "\n"));
}

#[test]
fn one_transaction() {
    golden_text("tx-show.txt", &show(&looked_into(), PLAIN));
    golden_text("tx-show-hard.txt", &show(&show_view(hard_to_show()), PLAIN));
    golden("tx-show.json", &(json(&looked_into()) + "\n"));
}

#[test]
fn a_transaction_without_anything() {
    let bare = v1::TransactionInfo {
        name: String::new(),
        ..transaction(gtrid(1), v1::TransactionState::Ended, v1::Outcome::NothingToCommit)
    };
    let shown = v1::ShowTransactionResponse { transaction: Some(bare), now_ms: NOW_MS, ..Default::default() };
    golden_text("tx-show-bare.txt", &show(&show_view(shown), PLAIN));
}

#[test]
fn the_coordinator_itself() {
    golden_text("status.txt", &status(&status_view(troubled()), PLAIN));
    golden("status.json", &(json(&status_view(troubled())) + "\n"));
    let well = v1::StatusResponse {
        version: "0.1.0".into(),
        cluster: "7c1f09ae".into(),
        epoch: 12,
        now_ms: NOW_MS,
        ..Default::default()
    };
    golden_text("status-well.txt", &status(&status_view(well.clone()), PLAIN));
    let full = v1::StatusResponse {
        begins_refused:
            "only 12 MiB are free in the data directory: make room there, running transactions can still end"
                .into(),
        log_bytes: 1 << 20,
        log_free_bytes: Some(12 << 20),
        ..well
    };
    golden_text("status-full.txt", &status(&status_view(full), PLAIN));
}

/// What the log would tell is not told as nothing.
#[test]
fn while_the_log_cannot_be_read() {
    let log_unavailable = "the decision log cannot be read: it has not answered within 2s".to_owned();
    let wire = v1::StatusResponse {
        log_unavailable: log_unavailable.clone(),
        heuristic: 0,
        heuristic_open: 0,
        log_bytes: 0,
        log_free_bytes: None,
        log_behind: false,
        draining: false,
        begins_refused: String::new(),
        orphans: 0,
        ..troubled()
    };
    golden_text("status-log-away.txt", &status(&status_view(wire.clone()), PLAIN));
    golden("status-log-away.json", &(json(&status_view(wire)) + "\n"));
    let mut shown = looked_into();
    shown.log_unavailable = log_unavailable;
    shown.audit.clear();
    golden_text("tx-show-log-away.txt", &show(&shown, PLAIN));
}

#[test]
fn an_outcome() {
    let wire = v1::InquireResponse {
        outcome: v1::Outcome::Heuristic.into(),
        detail: "ledger-db rolled back though COMMIT is durable".into(),
        branches: 3,
        branches_pending: 1,
    };
    let view = OutcomeView::new(&gtrid(1), wire).unwrap();
    golden("tx-wait.txt", &outcome(&view));
    golden("tx-wait.json", &(json(&view) + "\n"));
}

#[test]
fn a_wider_terminal_is_used() {
    let wide = Look { width: 200, colour: false };
    let shown = show(&show_view(in_doubt()), wide);
    let error = "no instance attached since the connection was reset by its peer";
    assert!(shown.lines().any(|line| line.ends_with(error)), "{shown}");
}

#[test]
fn colours_say_what_is_bad_and_plain_text_has_none() {
    for value in [Outcome::Heuristic, Outcome::Unknown] {
        assert_eq!(colour(value), Some(Color::Red));
    }
    for value in [Outcome::Committed, Outcome::NothingToCommit] {
        assert_eq!(colour(value), Some(Color::Green));
    }
    let plain = [
        list(&list_view(every_state()), PLAIN),
        show(&show_view(hard_to_show()), PLAIN),
        status(&status_view(troubled()), PLAIN),
    ];
    for text in plain {
        assert!(!text.contains('\u{1b}') && !text.contains('\u{7}') && !text.contains('\u{202e}'), "{text}");
    }
}

#[test]
fn a_short_id_is_as_long_as_it_must_be_to_differ() {
    let short = |gtrids: &[&str]| -> Vec<String> {
        let info = |gtrid: &&str| {
            transaction((*gtrid).into(), v1::TransactionState::Active, v1::Outcome::Undecided).try_into()
        };
        let views: Vec<TransactionView> = gtrids.iter().map(|gtrid| info(gtrid).unwrap()).collect();
        short_ids(&views).into_iter().map(str::to_owned).collect()
    };
    let (a, b, c) = (
        "12.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f",
        "12.0192f0c1a2b37c3d8e4f5a000c8d9e0f",
        "12.0192f0c1a2b4700000000000000000000",
    );
    assert_eq!(short(&[a, c]), ["12.0192f0c1a2b37c3d", "12.0192f0c1a2b47000"]);
    let all = short(&[c, a, b]);
    assert_eq!(all, ["12.0192f0c1a2b47000", "12.0192f0c1a2b37c3d8e4f5a6", "12.0192f0c1a2b37c3d8e4f5a0"]);
    // The coordinator does not tell one twice; if it did, both would be shown.
    assert_eq!(short(&[a, a]), ["12.0192f0c1a2b37c3d", "12.0192f0c1a2b37c3d"]);
}

#[test]
fn an_id_of_any_other_form_is_shown_and_not_cut_within_a_character() {
    let mut view: TransactionView =
        transaction("ü".repeat(40), v1::TransactionState::Active, v1::Outcome::Undecided).try_into().unwrap();
    assert_eq!(short_ids(std::slice::from_ref(&view)), ["ü".repeat(8)]);
    view.gtrid = String::new();
    assert_eq!(short_ids(std::slice::from_ref(&view)), [""]);
}

#[test]
fn ages_have_two_units() {
    let cases = [
        (-5, "0ms"),
        (0, "0ms"),
        (999, "999ms"),
        (1_000, "1s"),
        (59_999, "59s"),
        (252_500, "4m12s"),
        (3_600_000, "1h0m"),
        (273_600_000, "3d4h"),
        (i64::MAX, "106751991167d7h"),
    ];
    for (ms, text) in cases {
        assert_eq!(age(ms), text);
    }
}

#[test]
fn a_time_that_cannot_be_one_is_an_error_and_no_panic() {
    for ms in [u64::MAX, 253_402_300_800_000] {
        let response = v1::ListTransactionsResponse { now_ms: ms, ..Default::default() };
        let error = TransactionList::try_from(response).unwrap_err();
        assert!(error.to_string().contains("now_ms"), "{error}");
    }
}

#[test]
fn every_name_of_a_state_and_an_outcome_stays_what_it_is() {
    let states =
        ["active", "preparing", "deciding", "committing", "rolling-back", "committing-one-phase", "ended"];
    let outcomes = ["committed", "rolled-back", "nothing-to-commit", "heuristic", "undecided", "unknown"];
    for (name, number) in states.iter().zip(1..) {
        let info = v1::TransactionInfo { state: number, outcome: 1, ..Default::default() };
        assert_eq!(TransactionView::try_from(info).unwrap().state.as_str(), *name);
    }
    for (name, number) in outcomes.iter().zip(1..) {
        let info = v1::TransactionInfo { state: 1, outcome: number, ..Default::default() };
        assert_eq!(TransactionView::try_from(info).unwrap().outcome.as_str(), *name);
    }
    for (state, outcome) in [(0, 1), (8, 1), (1, 0), (1, 7)] {
        let info = v1::TransactionInfo { state, outcome, ..Default::default() };
        TransactionView::try_from(info).expect_err("what is not known is not guessed");
    }
}
