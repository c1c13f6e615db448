//! Answers as text for people: tables that fit 80 columns, and use what a wider terminal has.

use std::io::IsTerminal as _;

use comfy_table::{Cell, Color, ColumnConstraint, ContentArrangement, Table, Width, presets};
use indicatif::HumanBytes;
use lockstep_proto::limits::cut;

use super::cluster::NodeView;
use super::evidence;
use super::output::printable;
use crate::operator::view::{
    BranchView, Moment, Outcome, OutcomeView, ParticipantView, State, StatusView, TransactionList,
    TransactionShown, TransactionView,
};

/// Columns that every table fits into.
const NARROW: u16 = 80;
/// Hex digits of a shortened id: its time, and 12 bits that tell transactions of one millisecond apart.
const SHORT_HEX: usize = 16;
/// Blanks between two columns.
const COLUMN_GAP: u16 = 2;
/// Columns for a branch, above which it is broken: most resource managers have short names, and so much is left by the other columns.
const BRANCH_WIDTH: usize = 36;

/// What text is written for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    /// Columns.
    pub width: u16,
    /// Whether colours may be used. (`NO_COLOR` is honoured below this.)
    pub colour: bool,
}

impl Look {
    /// What stdout is.
    pub(super) fn of_stdout() -> Self {
        Self {
            width: Table::new().width().unwrap_or(NARROW).max(NARROW),
            colour: std::io::stdout().is_terminal(),
        }
    }

    /// An empty table of `columns` columns, of which only the last gives way when the width is not enough.
    pub(super) fn table(self, columns: usize) -> Table {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(self.width)
            .set_truncation_indicator("…");
        if self.colour {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        table.set_header(vec![""; columns]);
        for column in table.column_iter_mut() {
            column.set_padding((0, COLUMN_GAP));
            if column.index + 1 < columns {
                column.set_constraint(ColumnConstraint::ContentWidth);
            } else {
                column.set_padding((0, 0));
            }
        }
        table
    }
}

/// The lines of a table, none of them with blanks at its end.
pub(super) fn lines(table: &Table) -> String {
    table.lines().fold(String::new(), |lines, line| format!("{lines}{}\n", line.trim_end()))
}

/// `tx ls`. Empty if there is none.
pub(super) fn list(list: &TransactionList, look: Look) -> String {
    if list.transactions.is_empty() {
        return String::new();
    }
    let mut table = look.table(6);
    table.set_header(["TRANSACTION", "STATE", "AGE", "DEADLINE", "BRANCHES", "NAME"]);
    for (transaction, id) in list.transactions.iter().zip(short_ids(&list.transactions)) {
        let mut row = comfy_table::Row::from(vec![
            Cell::new(printable(id)),
            state(transaction),
            Cell::new(age(list.as_of.ms_since(transaction.began))),
            Cell::new(transaction.deadline.map_or(String::new(), |at| when(at, list.as_of))),
            Cell::new(transaction.branches.len()),
            Cell::new(printable(&transaction.name)),
        ]);
        row.max_height(1);
        table.add_row(row);
    }
    lines(&table)
}

/// `cluster ls`. Empty if there is none.
pub(super) fn nodes(nodes: &[NodeView], look: Look) -> String {
    if nodes.is_empty() {
        return String::new();
    }
    let mut table = look.table(8);
    table.set_header(["EPOCH", "STATE", "LEASE", "LIVE", "UNFINISHED", "ADOPTED BY", "NODE", "ADDRESS"]);
    for node in nodes {
        let lease = if node.state == "live" { format!("{}ms", node.lease_ms) } else { String::new() };
        table.add_row(vec![
            Cell::new(node.epoch),
            Cell::new(node.state),
            Cell::new(lease),
            Cell::new(node.live),
            Cell::new(node.unfinished),
            Cell::new(node.adopted_by.map_or(String::new(), |epoch| format!("epoch {epoch}"))),
            Cell::new(printable(&node.node)),
            Cell::new(printable(&node.address)),
        ]);
    }
    lines(&table)
}

/// Each gtrid cut so short that a person can read it, and yet no other one begins so.
fn short_ids(transactions: &[TransactionView]) -> Vec<&str> {
    let mut sorted: Vec<&str> = transactions.iter().map(|transaction| transaction.gtrid.as_str()).collect();
    sorted.sort_unstable();
    sorted.dedup();
    let short = |gtrid: &'_ str| {
        let at = sorted.binary_search(&gtrid).expect("it was put in there");
        // What an id has most in common with, stands beside it.
        let beside = [at.checked_sub(1), at.checked_add(1)].into_iter().flatten();
        let beside = beside.filter_map(|other| sorted.get(other));
        let common = beside.map(|other| common_bytes(gtrid, other)).max().unwrap_or(0);
        let readable = gtrid.find('.').map_or(0, |dot| dot + 1) + SHORT_HEX;
        readable.max(common + 1)
    };
    transactions.iter().map(|transaction| cut(&transaction.gtrid, short(&transaction.gtrid))).collect()
}

/// How many bytes two texts begin with alike.
fn common_bytes(a: &str, b: &str) -> usize {
    a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count()
}

/// Where a transaction is; how it ended, once it has.
fn state(transaction: &TransactionView) -> Cell {
    match transaction.state {
        State::Ended => outcome_cell(transaction.outcome),
        // The whole name would leave no room for the transaction's.
        State::CommittingOnePhase => Cell::new("one-phase"),
        State::Active | State::Preparing | State::Deciding | State::Committing | State::RollingBack => {
            Cell::new(transaction.state.as_str())
        }
    }
}

fn outcome_cell(outcome: Outcome) -> Cell {
    let cell = Cell::new(outcome.as_str());
    match colour(outcome) {
        Some(colour) => cell.fg(colour),
        None => cell,
    }
}

fn colour(outcome: Outcome) -> Option<Color> {
    match outcome {
        Outcome::Committed | Outcome::NothingToCommit => Some(Color::Green),
        Outcome::RolledBack => Some(Color::Yellow),
        Outcome::Heuristic | Outcome::Unknown => Some(Color::Red),
        Outcome::Undecided => None,
    }
}

/// `tx show`.
pub(super) fn show(shown: &TransactionShown, look: Look) -> String {
    let TransactionShown { as_of, transaction, .. } = shown;
    let mut facts = look.table(2);
    let mut fact = |name: &str, value: Cell| {
        facts.add_row(vec![Cell::new(name), value]);
    };
    fact("Transaction", Cell::new(printable(&transaction.gtrid)));
    if !transaction.name.is_empty() {
        fact("Name", Cell::new(printable(&transaction.name)));
    }
    for (key, value) in &transaction.labels {
        fact("Label", Cell::new(printable(&format!("{key}={value}"))));
    }
    fact("State", Cell::new(transaction.state.as_str()));
    fact("Outcome", outcome_cell(transaction.outcome));
    fact("", Cell::new(if transaction.can_change { "can still change" } else { "cannot change any more" }));
    if !transaction.detail.is_empty() {
        fact("Detail", Cell::new(printable(&transaction.detail)));
    }
    if let Some(trace) = transaction.traceparent.split('-').nth(1) {
        fact("Trace", Cell::new(printable(trace)));
    }
    let times = [
        ("Began", Some(transaction.began)),
        ("Deadline", transaction.deadline),
        ("Decided", transaction.decided),
        ("Ended", transaction.ended),
    ];
    for (name, at) in times {
        if let Some(at) = at {
            fact(name, Cell::new(format!("{at}  ({})", when(at, *as_of))));
        }
    }
    if let Some(situation) = transaction.situation {
        fact("Situation", Cell::new(situation.as_str()).fg(Color::Red));
    }
    if transaction.paused {
        fact("", Cell::new("its deliveries are paused by an operator").fg(Color::Yellow));
    }
    if transaction.acknowledged {
        fact("", Cell::new("its heuristic outcome was acknowledged"));
    }
    if !shown.log_unavailable.is_empty() {
        let why = printable(&shown.log_unavailable);
        let text = format!("{why}; this is from the coordinator's memory, without what operators did");
        fact("Log", Cell::new(text).fg(Color::Red));
    }
    let mut text = without_header(&facts);
    text += "\n";
    text += &if transaction.branches.is_empty() {
        "no branches\n".to_owned()
    } else {
        branches(&transaction.branches, look)
    };
    text + &evidence::text(shown, look)
}

fn branches(branches: &[BranchView], look: Look) -> String {
    let mut table = look.table(5);
    table.set_header(["BRANCH", "STATE", "VOTE", "ATTEMPTS", "NEXT"]);
    for branch in branches {
        let next = branch.next_attempt_in_ms;
        let next =
            next.map_or(String::new(), |ms| format!("in {}", age(i64::try_from(ms).unwrap_or(i64::MAX))));
        table.add_row(vec![
            Cell::new(printable(&branch.bqual)),
            Cell::new(printable(&branch.state)),
            Cell::new(printable(&branch.vote)),
            Cell::new(branch.attempts),
            Cell::new(next),
        ]);
    }
    break_names(&mut table, branches);
    lines(&table) + &last_errors(branches, look)
}

/// Below the branches, where they have room; empty if there is none.
fn last_errors(branches: &[BranchView], look: Look) -> String {
    let mut table = look.table(2);
    table.set_header(["BRANCH", "LAST ERROR"]);
    for branch in branches.iter().filter(|branch| !branch.last_error.is_empty()) {
        table.add_row(vec![Cell::new(printable(&branch.bqual)), Cell::new(printable(&branch.last_error))]);
    }
    break_names(&mut table, branches);
    if table.is_empty() { String::new() } else { format!("\n{}", lines(&table)) }
}

/// Where one of them is too long, all of the names in the first column are given so much room.
fn break_names(table: &mut Table, branches: &[BranchView]) {
    let widest = branches.iter().map(|branch| branch.bqual.len()).max().unwrap_or(0);
    if let Some(column) = table.column_mut(0).filter(|_| widest > BRANCH_WIDTH) {
        let width = u16::try_from(BRANCH_WIDTH).expect("a small number");
        column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(width + COLUMN_GAP)));
    }
}

/// `status`.
pub(super) fn status(status: &StatusView, look: Look) -> String {
    let mut facts = look.table(2);
    let mut fact = |name: &str, value: Cell| {
        facts.add_row(vec![Cell::new(name), value]);
    };
    let up = age(i64::try_from(status.uptime_ms).unwrap_or(i64::MAX));
    let (version, cluster) = (printable(&status.version), printable(&status.cluster));
    let itself = format!("{version}  cluster {cluster}  epoch {}  up {up}", status.epoch);
    fact("lockstep", Cell::new(itself));
    fact("in flight", Cell::new(status.transactions_in_flight));
    let oldest = status
        .undelivered_since
        .map_or(String::new(), |since| format!(" (oldest {})", age(status.as_of.ms_since(since))));
    let heuristic = status.heuristic_open.map_or("?".to_owned(), |open| open.to_string());
    // A line breaks between two of them, and not between a name and its number.
    let unresolved = Cell::new(format!(
        "undelivered {}{oldest}\nundecided {}   orphan {}   heuristic {heuristic}",
        status.undelivered, status.undecided, status.orphans
    ));
    fact("unresolved", if status.unresolved() == 0 { unresolved } else { unresolved.fg(Color::Red) });
    if status.draining {
        fact("", Cell::new("draining: nothing new is begun").fg(Color::Yellow));
    }
    if status.log_behind {
        let text = "the decision log is behind what participants have seen: nothing is presumed";
        fact("", Cell::new(text).fg(Color::Red));
    }
    if !status.begins_refused.is_empty() && !status.draining && !status.log_behind {
        fact("", Cell::new(printable(&status.begins_refused)).fg(Color::Red));
    }
    fact("log", log_cell(status));
    if status.participants.is_empty() {
        fact("participants", Cell::new("none was ever attached"));
    }
    for (index, participant) in status.participants.iter().enumerate() {
        let name = if index == 0 { "participants" } else { "" };
        fact(name, participant_cell(participant, status.as_of));
    }
    let next = if status.orphans > 0 {
        "next: lockstep orphans scan\n"
    } else if status.heuristic_open.is_some_and(|open| open > 0) {
        "next: lockstep tx ls --situation heuristic\n"
    } else if status.undecided > 0 {
        "next: lockstep tx ls --situation undecided\n"
    } else if status.undelivered > 0 {
        "next: lockstep tx ls --situation undelivered\n"
    } else {
        ""
    };
    without_header(&facts) + next
}

fn log_cell(status: &StatusView) -> Cell {
    let free = status.log_free_bytes.map_or(String::new(), |free| format!(", {} free", HumanBytes(free)));
    match status.log_bytes {
        Some(bytes) => Cell::new(format!("{}{free}", HumanBytes(bytes))),
        None => Cell::new(format!("{}{free}", printable(&status.log_unavailable))).fg(Color::Red),
    }
}

fn participant_cell(participant: &ParticipantView, now: Moment) -> Cell {
    let name = printable(&participant.resource_manager);
    let up = match (participant.retired, participant.down_since) {
        (true, _) => return Cell::new(format!("{name} retired")),
        (false, Some(since)) => format!("{name} DOWN since {}", when(since, now)),
        (false, None) => format!("{name} up ({})", participant.sessions),
    };
    let well = participant.sessions > 0 && participant.problem.is_empty();
    let told = if participant.problem.is_empty() {
        up
    } else {
        format!("{up}: {}", printable(&participant.problem))
    };
    if well { Cell::new(told) } else { Cell::new(told).fg(Color::Red) }
}

/// `tx wait`.
pub(super) fn outcome(view: &OutcomeView) -> String {
    let mut text = view.outcome.as_str().to_owned();
    if !view.detail.is_empty() {
        text = format!("{text}: {}", printable(&view.detail));
    }
    match view.branches_pending {
        0 => text + "\n",
        pending => format!("{text} ({pending} of {} branches have still to apply it)\n", view.branches),
    }
}

/// The lines of a table of facts: its columns need no names.
pub(super) fn without_header(table: &Table) -> String {
    let lines = lines(table);
    lines.split_once('\n').map_or(String::new(), |(_, facts)| facts.to_owned())
}

/// A time as seen from another: `4m12s ago`, `in 3s`.
pub(super) fn when(at: Moment, now: Moment) -> String {
    match now.ms_since(at) {
        ms @ ..0 => format!("in {}", age(-ms)),
        ms => format!("{} ago", age(ms)),
    }
}

/// A duration by its two greatest units; below a second, milliseconds. What is negative is the clocks' fault, and 0.
pub(super) fn age(ms: i64) -> String {
    let seconds = ms / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    if days > 0 {
        format!("{days}d{}h", hours % 24)
    } else if hours > 0 {
        format!("{hours}h{}m", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes}m{}s", seconds % 60)
    } else if seconds > 0 {
        format!("{seconds}s")
    } else {
        format!("{}ms", ms.max(0))
    }
}

#[cfg(test)]
pub(super) mod tests;
