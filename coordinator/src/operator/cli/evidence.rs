//! The lower half of `tx show`: what the databases say, what waits for it, what was done, and what can be done now.

use comfy_table::Cell;
use lockstep_proto::limits::cut;

use super::audit;
use super::output::printable;
use super::tables::{Look, age, lines, when};
use crate::operator::view::TransactionShown;

/// Bytes of an id: its epoch, its time, and 28 bits that tell transactions of one millisecond apart.
const SHORT_ID: usize = 31;

/// Empty if there is nothing to say.
pub(super) fn text(shown: &TransactionShown, look: Look) -> String {
    [databases(shown, look), blocked(shown, look), done(shown, look), advice(shown)].concat()
}

fn databases(shown: &TransactionShown, look: Look) -> String {
    if shown.databases.is_empty() {
        return String::new();
    }
    let mut table = look.table(3);
    table.set_header(["DATABASE", "SAYS", "BRANCH"]);
    for answer in &shown.databases {
        let name = printable(&answer.resource_manager);
        if !answer.error.is_empty() {
            table.add_row(vec![Cell::new(name), Cell::new("?"), Cell::new(printable(&answer.error))]);
            continue;
        }
        if answer.branches.is_empty() {
            let nothing = "it holds nothing of this transaction";
            table.add_row(vec![Cell::new(&name), Cell::new("nothing"), Cell::new(nothing)]);
        }
        for branch in &answer.branches {
            let since = branch.at.map_or(String::new(), |at| format!("  ({})", when(at, shown.as_of)));
            table.add_row(vec![
                Cell::new(&name),
                Cell::new(printable(&branch.state)),
                Cell::new(format!("{}{since}", printable(&branch.bqual))),
            ]);
        }
    }
    format!("\n{}", lines(&table))
}

fn blocked(shown: &TransactionShown, look: Look) -> String {
    let mut table = look.table(4);
    table.set_header(["BLOCKED BY IT", "SESSION", "WAITS FOR", "STATEMENT, AND WHAT IT WANTS"]);
    let mut any = false;
    let ms = |ms: u64| age(i64::try_from(ms).unwrap_or(i64::MAX));
    for answer in &shown.databases {
        for session in &answer.blocked {
            any = true;
            let began =
                session.statement_ms.map_or(String::new(), |began| format!("began {} ago: ", ms(began)));
            let which = if session.gtrid.is_some() { "" } else { " (by some prepared branch)" };
            table.add_row(vec![
                Cell::new(printable(&answer.resource_manager)),
                Cell::new(session.session),
                Cell::new(ms(session.waiting_ms)),
                Cell::new(format!("{began}{}{which}", printable(&session.object))),
            ]);
        }
    }
    let mut text =
        if any { format!("\n{}plain reads are not blocked\n", lines(&table)) } else { String::new() };
    for answer in shown.databases.iter().filter(|answer| !answer.blocked_unknown.is_empty()) {
        let (name, why) = (printable(&answer.resource_manager), printable(&answer.blocked_unknown));
        text += &format!("whom it blocks in {name} is not known: {why}\n");
    }
    text
}

fn done(shown: &TransactionShown, look: Look) -> String {
    let text = audit::text(&shown.audit, look);
    if text.is_empty() { text } else { format!("\n{text}") }
}

fn advice(shown: &TransactionShown) -> String {
    // The one of the two that would change something.
    let useless = if shown.transaction.paused { "pause" } else { "resume" };
    let can = shown.advice.iter().filter(|advice| advice.permitted && advice.action != useless);
    let mut text = String::new();
    // So much of it that no other one begins so, and yet fits a line.
    let id = printable(cut(&shown.transaction.gtrid, SHORT_ID));
    for advice in can {
        let command = match advice.action {
            "acknowledge" => format!("lockstep tx ack {id}"),
            "abandon" => format!("lockstep tx abandon {id} --resource NAME"),
            other => format!("lockstep tx {other} {id}"),
        };
        text += &format!("  {command}\n");
    }
    if text.is_empty() {
        return text;
    }
    if !shown.log_unavailable.is_empty() {
        return "\nnothing is done by hand before the log answers: it is put on record first\n".to_owned();
    }
    let refused = shown.advice.iter().find(|advice| advice.action == "rollback" && !advice.permitted);
    let refused =
        refused.map_or(String::new(), |advice| format!("rollback is refused: {}\n", printable(&advice.why)));
    format!("\nYou can now, with --dry-run first\n{text}{refused}")
}
