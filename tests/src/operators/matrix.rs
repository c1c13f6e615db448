//! The situations, each made for real, and every action tried in it as a dry run; then it is resolved as the runbook says.

use std::collections::BTreeSet;
use std::time::Duration;

use super::pages;
use super::report::{Cell, Report};
use super::runbook::{self, Page};
use super::stage::{LEDGER, ORDERS, SHORT, Servers, World};
use crate::harness::coordinator::Ran;
use crate::harness::roles::Roles;
use crate::harness::{Failed, Result};

/// What a transaction's commands are called, and the arguments behind the id.
const ACTIONS: [(&str, &[&str], &[&str]); 9] = [
    ("retry", &["tx", "retry"], &[]),
    ("pause", &["tx", "pause"], &[]),
    ("resume", &["tx", "resume"], &[]),
    ("rollback", &["tx", "rollback"], &[]),
    ("commit", &["tx", "commit"], &[]),
    ("abandon", &["tx", "abandon"], &["--resource", LEDGER]),
    ("ack", &["tx", "ack"], &[]),
    ("resolve --commit", &["orphans", "resolve"], &["--commit"]),
    ("resolve --rollback", &["orphans", "resolve"], &["--rollback"]),
];

/// The codes with which an action is refused in one of the situations.
pub const REFUSALS: [&str; 14] = [
    "LS0412", "LS0415", "LS0416", "LS0417", "LS0418", "LS0419", "LS0420", "LS0421", "LS0422", "LS0423",
    "LS0424", "LS0425", "LS0426", "LS0433",
];

/// Tries all of it.
///
/// # Errors
/// If a situation could not be made.
pub fn run(roles: &Roles) -> Result<Report> {
    let servers = Servers::start()?;
    let mut report = Report::default();
    undecided(&servers, roles, &mut report)?;
    deciding_and_undelivered(&servers, roles, &mut report)?;
    heuristic(&servers, roles, &mut report)?;
    orphan(&servers, roles, &mut report, Orphaned::CommittedElsewhere)?;
    orphan(&servers, roles, &mut report, Orphaned::NotCommitted)?;
    let all = runbook::pages().iter().map(|page| page.name).collect();
    report.claims.insert("every page of the runbook was followed", report.followed == all);
    Ok(report)
}

/// Runs the commands of these pages.
fn follow(world: &World<'_>, report: &mut Report, pages: &[Page], id: &str, name: &str) -> Result<()> {
    for page in pages {
        page.follow(world, id, name)?;
        report.followed.insert(page.name);
    }
    Ok(())
}

/// What a command came to: `done`, or its code.
fn verdict(ran: &Ran) -> String {
    let code = ran.stderr.split_once("error[").and_then(|(_, rest)| rest.split_once(']'));
    match (ran.code, code) {
        (0, _) => "done".to_owned(),
        (4, Some((code, _))) => code.to_owned(),
        (exit, _) => format!("exit {exit}: {}", ran.stderr.lines().next().unwrap_or_default()),
    }
}

/// Tries every action as a dry run. `expected`: in the order of [`ACTIONS`].
fn try_all(
    world: &World<'_>,
    report: &mut Report,
    situation: &'static str,
    id: &str,
    expected: [&'static str; 9],
) -> Result<()> {
    let mut refused = BTreeSet::new();
    for ((action, words, behind), expected) in ACTIONS.into_iter().zip(expected) {
        let ran = world.lockstep(&[words, &[id], behind, &["--dry-run"]].concat())?;
        let found = verdict(&ran);
        refused.extend(REFUSALS.contains(&found.as_str()).then(|| found.clone()));
        report.cells.push(Cell { situation, action, expected, found });
    }
    for code in refused {
        follow_code(world, &code, id)?;
        report.codes.insert(code);
    }
    Ok(())
}

/// Runs what the page of this code says, in the situation that it was met in. It may be refused as well; it must not be misspelt.
fn follow_code(world: &World<'_>, code: &str, id: &str) -> Result<()> {
    const REFUSED: i32 = 4;
    let names = pages::Names { id, name: LEDGER, ..pages::Names::default() };
    for command in pages::commands(code, &names) {
        let arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        let ran = world.lockstep(&arguments)?;
        if !matches!(ran.code, 0 | REFUSED) {
            return Err(Failed::new(format!("the page of {code}: lockstep {arguments:?}: {ran:?}")));
        }
    }
    Ok(())
}

/// Does one for real, and has it succeed.
fn act(world: &World<'_>, arguments: &[&str]) -> Result<()> {
    let ran = world.lockstep(arguments)?;
    if ran.code == 0 { Ok(()) } else { Err(Failed::new(format!("lockstep {arguments:?}: {ran:?}"))) }
}

fn undecided(servers: &Servers, roles: &Roles, report: &mut Report) -> Result<()> {
    let world = World::start(servers, roles, "operators_undecided")?;
    let gtrid = world.leave_open()?.to_string();
    let id = gtrid.as_str();
    let expected = ["LS0417", "LS0417", "LS0417", "done", "LS0415", "LS0417", "LS0419", "LS0422", "LS0422"];
    try_all(&world, report, "undecided", id, expected)?;
    follow(&world, report, &runbook::UNDECIDED_ALERTS, id, ORDERS)?;
    follow(&world, report, &[runbook::UNDECIDED], id, ORDERS)?;
    let ended = |shown: &serde_json::Value| shown["transaction"]["outcome"] == "rolled-back";
    world.until("the rollback", &["tx", "show", id], ended)?;
    report.claims.insert("an undecided transaction is rolled back", true);
    Ok(())
}

fn deciding_and_undelivered(servers: &Servers, roles: &Roles, report: &mut Report) -> Result<()> {
    let mut world = World::start(servers, roles, "operators_undelivered")?;
    world.hold_the_log()?;
    let gtrid = world.commit_in_the_background(SHORT)?;
    world.wait_until_voted(gtrid)?;
    let gtrid = gtrid.to_string();
    let id = gtrid.as_str();
    // Its decision is on its way, and its service goes away with the branch prepared.
    world.stop_ledger();
    let overdue = |shown: &serde_json::Value| shown["transaction"]["situation"] == "undecided";
    world.until("the deadline", &["tx", "show", id, "--offline"], overdue)?;
    let expected = ["LS0416", "LS0416", "LS0416", "LS0416", "LS0415", "LS0416", "LS0419", "LS0422", "LS0422"];
    try_all(&world, report, "undecided, decision under way", id, expected)?;
    world.release_the_log()?;

    let undelivered = |shown: &serde_json::Value| {
        let branches = shown["transaction"]["branches"].as_array().cloned().unwrap_or_default();
        shown["transaction"]["situation"] == "undelivered"
            && branches.iter().any(|branch| branch["state"] == "committed")
    };
    world.until("the decision", &["tx", "show", id, "--offline"], undelivered)?;
    let expected = ["done", "done", "done", "LS0412", "LS0412", "done", "LS0419", "LS0422", "LS0422"];
    try_all(&world, report, "undelivered", id, expected)?;

    // Held back, its service may come back and be asked: the branch is still prepared, and someone waits for its row.
    act(&world, &["tx", "pause", id, "--reason", "repair"])?;
    world.attach_ledger()?;
    world.wait_until_attached()?;
    let blocked = world.blocked_in_ledger(id)?;
    report.claims.insert("tx show names a session that waits for a branch in MariaDB", blocked);
    act(&world, &["tx", "resume", id, "--reason", "repaired"])?;
    let ended = |shown: &serde_json::Value| shown["transaction"]["state"] == "ended";
    let shown = world.until("its end", &["tx", "show", id], ended)?;
    report
        .claims
        .insert("an undelivered decision is delivered", shown["transaction"]["outcome"] == "committed");
    let expected = ["LS0418", "LS0418", "LS0418", "LS0418", "LS0418", "LS0418", "LS0419", "LS0418", "LS0418"];
    try_all(&world, report, "ended", id, expected)
}

/// Somebody rolls a prepared branch back by hand whose transaction has committed.
fn heuristic(servers: &Servers, roles: &Roles, report: &mut Report) -> Result<()> {
    let mut world = World::start(servers, roles, "operators_heuristic")?;
    let gtrid = world.commit_without_orders()?.to_string();
    let id = gtrid.as_str();
    act(&world, &["tx", "pause", id, "--reason", "somebody looks at it"])?;
    world.attach_orders()?;
    world.wait_until_attached()?;
    let blocked = world.blocked_in_orders(id)?;
    report.claims.insert("tx show names a session that waits for a branch in PostgreSQL", blocked);
    let gid = world.in_orders("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")?;
    world.in_orders(&format!("ROLLBACK PREPARED '{}'", gid.trim()))?;
    world.hold_the_log()?;
    act(&world, &["tx", "resume", id, "--reason", "done looking"])?;
    let torn = |shown: &serde_json::Value| shown["transaction"]["situation"] == "heuristic";
    world.until("the heuristic outcome", &["tx", "show", id, "--offline"], torn)?;
    let ran = world.lockstep(&["tx", "ack", id, "--dry-run"])?;
    let (situation, found) = ("heuristic, not on record yet", verdict(&ran));
    report.cells.push(Cell { situation, action: "ack", expected: "LS0433", found });
    follow_code(&world, "LS0433", id)?;
    report.codes.insert("LS0433".to_owned());
    world.release_the_log()?;
    until_on_record(&world, id)?;
    let expected = ["LS0421", "LS0421", "LS0421", "LS0421", "LS0421", "LS0421", "done", "LS0421", "LS0421"];
    try_all(&world, report, "heuristic", id, expected)?;
    let counted = world.metric("lockstep_unresolved_transactions{situation=\"heuristic\"}")?;
    follow(&world, report, &runbook::SLOW_LOG_ALERTS, id, ORDERS)?;
    follow(&world, report, &runbook::HEURISTIC_ALERTS, id, ORDERS)?;
    follow(&world, report, &[runbook::HEURISTIC], id, ORDERS)?;
    let status = world.lockstep(&["status", "--exit-code"])?;
    report.claims.insert("an acknowledged heuristic outcome is not unresolved", status.code == 0);
    let left = world.metric("lockstep_unresolved_transactions{situation=\"heuristic\"}")?;
    let noted = world.metric("lockstep_operator_actions_total{action=\"acknowledge\"}")?;
    let counts = [counted.as_str(), &left, &noted] == ["1", "0", "1"];
    report.claims.insert("the metrics count a heuristic outcome until it is acknowledged", counts);
    let expected = ["LS0421", "LS0421", "LS0421", "LS0421", "LS0421", "LS0421", "LS0420", "LS0421", "LS0421"];
    try_all(&world, report, "heuristic, acknowledged", id, expected)?;
    lost(&mut world, report)
}

/// Waits for a heuristic outcome, and until it is on record.
fn until_on_record(world: &World<'_>, id: &str) -> Result<()> {
    let heuristic = |shown: &serde_json::Value| shown["transaction"]["situation"] == "heuristic";
    world.until("the heuristic outcome", &["tx", "show", id, "--offline"], heuristic)?;
    let on_record = |plan: &serde_json::Value| plan["situation"] == "heuristic";
    world.until("its record", &["tx", "ack", id, "--dry-run"], on_record).map(|_plan| ())
}

/// A database that never comes back: all of the runbook's page, to the last resort.
fn lost(world: &mut World<'_>, report: &mut Report) -> Result<()> {
    let gtrid = world.commit_without_orders()?.to_string();
    let id = gtrid.as_str();
    follow(world, report, &runbook::UNDELIVERED_ALERTS, id, ORDERS)?;
    follow(world, report, &[runbook::UNDELIVERED], id, ORDERS)?;
    until_on_record(world, id)?;
    follow(world, report, &[runbook::HEURISTIC], id, ORDERS)?;
    let status = world.lockstep(&["status", "--exit-code"])?;
    report.claims.insert("a branch that is lost for good is given up, and noted", status.code == 0);
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Orphaned {
    CommittedElsewhere,
    NotCommitted,
}

/// The log is restored to before the decision, with both branches prepared.
fn orphan(servers: &Servers, roles: &Roles, report: &mut Report, how: Orphaned) -> Result<()> {
    let (name, situation) = match how {
        Orphaned::CommittedElsewhere => ("operators_orphan_c", "orphan, committed elsewhere"),
        Orphaned::NotCommitted => ("operators_orphan_n", "orphan, not committed"),
    };
    let mut world = World::start(servers, roles, name)?;
    world.back_up()?;
    // What participants have seen has to be newer than the backup: one that commits, then one that is torn by the crash.
    let first = world.commit_in_the_background(Duration::from_secs(60))?.to_string();
    let ended = |shown: &serde_json::Value| shown["transaction"]["state"] == "ended";
    world.until("the first one's end", &["tx", "show", &first], ended)?;
    world.restart(Some("coordinator-before-decide"))?;
    world.wait_until_attached()?;
    let gtrid = world.commit_in_the_background(Duration::from_secs(60))?.to_string();
    let id = gtrid.as_str();
    world.wait_until_it_died()?;
    world.restore()?;
    world.wait_until_attached()?;
    let there = |scan: &serde_json::Value| scan.to_string().matches(id).count() >= 2;
    world.until("the orphans", &["orphans", "scan"], there)?;
    if how == Orphaned::CommittedElsewhere {
        let gid = world.in_orders("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")?;
        world.in_orders(&format!("COMMIT PREPARED '{}'", gid.trim()))?;
    }
    let expected = match how {
        Orphaned::CommittedElsewhere => {
            ["LS0423", "LS0423", "LS0423", "LS0424", "LS0423", "LS0423", "LS0423", "done", "LS0424"]
        }
        Orphaned::NotCommitted => {
            ["LS0423", "LS0423", "LS0423", "LS0423", "LS0425", "LS0423", "LS0423", "LS0425", "done"]
        }
    };
    try_all(&world, report, situation, id, expected)?;
    if how == Orphaned::NotCommitted {
        world.stop_ledger();
        let down = |list: &serde_json::Value| !list["participants"][0]["down_since"].is_null();
        world.until("ledger-db to be gone", &["participants", "show", LEDGER], down)?;
        let ran = world.lockstep(&["orphans", "resolve", id, "--rollback", "--dry-run"])?;
        let (situation, action) = ("orphan, one is silent", "resolve --rollback");
        report.cells.push(Cell { situation, action, expected: "LS0426", found: verdict(&ran) });
        follow_code(&world, "LS0426", id)?;
        report.codes.insert("LS0426".to_owned());
        world.attach_ledger()?;
        world.wait_until_attached()?;
    }
    let counted = world.metric("lockstep_unresolved_transactions{situation=\"orphan\"}")?;
    report.claims.insert("the metrics count an orphaned transaction once", counted == "1");
    match how {
        Orphaned::CommittedElsewhere => {
            act(&world, &["orphans", "resolve", id, "--commit", "--reason", "evidence", "--confirm", id])?;
        }
        Orphaned::NotCommitted => {
            follow(&world, report, &runbook::ORPHAN_ALERTS, id, ORDERS)?;
            follow(&world, report, &[runbook::ORPHAN], id, ORDERS)?;
        }
    }
    let none = |scan: &serde_json::Value| scan.to_string().matches(id).count() == 0;
    world.until("no orphan", &["orphans", "scan"], none)?;
    let changed = if how == Orphaned::CommittedElsewhere { "98" } else { "99" };
    let orders = world.in_orders("SELECT amount FROM account")?;
    let ledger = world.in_ledger("SELECT amount FROM account")?;
    let whole = orders.trim() == changed && ledger.split_whitespace().last() == Some(changed);
    let claim = match how {
        Orphaned::CommittedElsewhere => "an orphan that committed elsewhere is committed",
        Orphaned::NotCommitted => "an orphan that committed nowhere is rolled back",
    };
    report.claims.insert(claim, whole);
    Ok(())
}
