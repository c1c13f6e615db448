//! The situations, each made for real, and every action tried in it as a dry run; then it is resolved as the runbook says.

use super::expected::{self, ACTIONS, REFUSALS, Row};
use super::pages;
use super::report::{Cell, DONE, Report, UNRESOLVED, verdict};
use super::runbook::{self, Page};
use super::stage::{BRIEF, LEDGER, LONG, ORDERS, SHORT, Servers, World};
use crate::harness::roles::Roles;
use crate::harness::{Failed, Result};

/// Tries all of it.
///
/// # Errors
/// If a situation could not be made.
pub fn run(roles: &Roles) -> Result<Report> {
    let servers = Servers::start()?;
    let mut report = Report::default();
    open(&servers, roles, &mut report)?;
    undecided_and_undelivered(&servers, roles, &mut report)?;
    one_phase(&servers, roles, &mut report)?;
    rolling_back(&servers, roles, &mut report)?;
    heuristic(&servers, roles, &mut report)?;
    orphan(&servers, roles, &mut report, Orphaned::CommittedElsewhere)?;
    orphan(&servers, roles, &mut report, Orphaned::NotCommitted)?;
    other_cluster(&servers, roles, &mut report)?;
    other_node(&servers, roles, &mut report)?;
    participants(&servers, roles, &mut report)?;
    let all = runbook::pages().iter().map(|page| page.name).collect();
    report.claims.insert("every page of the runbook was followed", report.followed == all);
    Ok(report)
}

/// Runs the commands of these pages: all of them are done, but for those that come to something else here, named as they stand there.
fn follow(
    world: &World<'_>,
    report: &mut Report,
    pages: &[Page],
    (id, name): (&str, &str),
    otherwise: &[(&str, &str)],
) -> Result<()> {
    for page in pages {
        page.follow(world, id, name, otherwise)?;
        report.followed.insert(page.name);
    }
    Ok(())
}

/// One command, as a dry run.
struct Attempt<'a> {
    situation: &'static str,
    action: &'static str,
    arguments: &'a [&'a str],
    expected: &'static str,
    /// The transaction that it is about; empty if it is about none.
    id: &'a str,
    /// What the commands of its refusal's page come to.
    page: &'static str,
}

impl Attempt<'_> {
    fn run(self, world: &World<'_>, report: &mut Report) -> Result<()> {
        let Self { situation, action, expected, .. } = self;
        let found = verdict(&world.lockstep(&[self.arguments, &["--dry-run"]].concat())?);
        let met = report.cells.iter().any(|cell| cell.situation == situation && cell.found == found);
        if REFUSALS.contains(&found.as_str()) && !met {
            follow_code(world, &found, self.id, self.page)?;
            report.codes.insert(found.clone());
        }
        report.cells.push(Cell { situation, action, expected, found });
        Ok(())
    }
}

/// Tries every action.
fn try_all(world: &World<'_>, report: &mut Report, row: Row, id: &str) -> Result<()> {
    let Row { situation, expected, pages } = row;
    for ((action, words, behind), expected) in ACTIONS.into_iter().zip(expected) {
        let page = pages.iter().find(|(code, _)| *code == expected).map_or(DONE, |(_, verdict)| verdict);
        let arguments = [words, &[id], behind].concat();
        Attempt { situation, action, arguments: &arguments, expected, id, page }.run(world, report)?;
    }
    Ok(())
}

/// Runs what the page of this code says, in the situation that it was met in.
fn follow_code(world: &World<'_>, code: &str, id: &str, expected: &str) -> Result<()> {
    let names = pages::Names { id, name: LEDGER, ..pages::Names::default() };
    for command in pages::commands(code, &names) {
        let arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        let ran = world.lockstep(&arguments)?;
        if verdict(&ran) != expected {
            return Err(Failed::new(format!(
                "the page of {code}: lockstep {arguments:?}, and not {expected}: {ran:?}"
            )));
        }
    }
    Ok(())
}

/// Does one for real, and has it succeed.
fn act(world: &World<'_>, arguments: &[&str]) -> Result<()> {
    let ran = world.lockstep(arguments)?;
    if ran.code == 0 { Ok(()) } else { Err(Failed::new(format!("lockstep {arguments:?}: {ran:?}"))) }
}

fn shown_ended(shown: &serde_json::Value) -> bool {
    shown["transaction"]["state"] == "ended"
}

fn open(servers: &Servers, roles: &Roles, report: &mut Report) -> Result<()> {
    let world = World::start(servers, roles, "operators_open")?;
    let gtrid = world.leave_open(LONG)?.to_string();
    let id = gtrid.as_str();
    try_all(&world, report, expected::OPEN, id)?;
    follow(&world, report, &runbook::UNDECIDED_ALERTS, (id, ORDERS), &[])?;
    follow(&world, report, &[runbook::UNDECIDED], (id, ORDERS), &[])?;
    let rolled_back = |shown: &serde_json::Value| shown["transaction"]["outcome"] == "rolled-back";
    world.until("the rollback", &["tx", "show", id], rolled_back)?;
    report.claims.insert("a transaction that is not decided is rolled back", true);
    let gtrid = world.leave_open(BRIEF)?.to_string();
    let shown = world.until("its deadline", &["tx", "show", &gtrid], rolled_back)?;
    let why = shown["transaction"]["detail"].as_str().unwrap_or_default();
    report
        .claims
        .insert("what nobody decides is rolled back by its deadline", why.starts_with("its deadline passed"));
    Ok(())
}

fn undecided_and_undelivered(servers: &Servers, roles: &Roles, report: &mut Report) -> Result<()> {
    let mut world = World::start(servers, roles, "operators_undelivered")?;
    world.hold_the_log()?;
    let gtrid = world.commit_in_the_background(SHORT)?;
    world.wait_until_voted(gtrid)?;
    let gtrid = gtrid.to_string();
    let id = gtrid.as_str();
    // Its decision is on its way, and its service goes away with the branch prepared.
    world.stop_ledger();
    undecided(&world, report, id)?;
    world.release_the_log()?;

    let undelivered = |shown: &serde_json::Value| {
        let branches = shown["transaction"]["branches"].as_array().cloned().unwrap_or_default();
        shown["transaction"]["situation"] == "undelivered"
            && branches.iter().any(|branch| branch["state"] == "committed")
    };
    world.until("the decision", &["tx", "show", id, "--offline"], undelivered)?;
    try_all(&world, report, expected::UNDELIVERED, id)?;
    let (situation, action) = (expected::UNDELIVERED.situation, "abandon what has ended");
    let arguments = ["tx", "abandon", id, "--resource", ORDERS];
    Attempt { situation, action, arguments: &arguments, expected: "LS0429", id, page: DONE }
        .run(&world, report)?;

    // Held back, its service may come back and be asked: the branch is still prepared, and someone waits for its row.
    act(&world, &["tx", "pause", id, "--reason", "repair"])?;
    world.attach_ledger()?;
    world.wait_until_attached()?;
    let blocked = world.blocked_in_ledger(id)?;
    report.claims.insert("tx show names a session that waits for a branch in MariaDB", blocked);
    act(&world, &["tx", "resume", id, "--reason", "repaired"])?;
    let shown = world.until("its end", &["tx", "show", id], shown_ended)?;
    report
        .claims
        .insert("an undelivered decision is delivered", shown["transaction"]["outcome"] == "committed");
    try_all(&world, report, expected::ENDED, id)
}

/// Its deadline has passed, and the log has not said whether it has the decision.
fn undecided(world: &World<'_>, report: &mut Report, id: &str) -> Result<()> {
    let listed = |list: &serde_json::Value| list["transactions"][0]["gtrid"] == id;
    world.until("the deadline", &["tx", "ls", "--situation", "undecided"], listed)?;
    try_all(world, report, expected::UNDECIDED, id)?;
    follow(world, report, &runbook::UNDECIDED_ALERTS, (id, ORDERS), &[])?;
    let refused = [
        ("tx rollback $ID --dry-run", "LS0416"),
        ("tx rollback $ID --reason \"its application hangs\" --confirm $ID", "LS0416"),
    ];
    follow(world, report, &[runbook::UNDECIDED], (id, ORDERS), &refused)?;
    let counted = world.metric("lockstep_unresolved_transactions{situation=\"undecided\"}")?;
    let told = verdict(&world.lockstep(&["status", "--exit-code"])?);
    report.claims.insert(
        "an undecided transaction is counted, and is unresolved",
        counted == "1" && told == UNRESOLVED,
    );
    Ok(())
}

/// The only branch may commit by itself, and its service goes away before it is told so.
fn one_phase(servers: &Servers, roles: &Roles, report: &mut Report) -> Result<()> {
    let mut world = World::start(servers, roles, "operators_one_phase")?;
    world.hold_the_log()?;
    let gtrid = world.commit_in_ledger_alone(LONG)?;
    world.wait_until_voted(gtrid)?;
    let gtrid = gtrid.to_string();
    let id = gtrid.as_str();
    world.stop_ledger();
    world.release_the_log()?;
    let told = |shown: &serde_json::Value| shown["transaction"]["state"] == "committing-one-phase";
    world.until("its intent", &["tx", "show", id, "--offline"], told)?;
    try_all(&world, report, expected::ONE_PHASE, id)?;
    world.attach_ledger()?;
    let shown = world.until("its end", &["tx", "show", id], shown_ended)?;
    let amount = world.in_ledger("SELECT amount FROM account")?;
    let nothing = amount.split_whitespace().last() == Some("100");
    report.claims.insert(
        "a one-phase commit ends as its database's evidence says",
        shown["transaction"]["outcome"] == "rolled-back" && nothing,
    );
    Ok(())
}

/// One database hangs until the deadline, and the service of the other goes away with its branch prepared.
fn rolling_back(servers: &Servers, roles: &Roles, report: &mut Report) -> Result<()> {
    let mut world = World::start(servers, roles, "operators_rolling_back")?;
    let gtrid = world.commit_while_orders_hangs(SHORT)?.to_string();
    let id = gtrid.as_str();
    let prepared = |shown: &serde_json::Value| {
        let branches = shown["transaction"]["branches"].as_array().cloned().unwrap_or_default();
        branches.iter().any(|branch| branch["resource_manager"] == LEDGER && branch["state"] == "prepared")
    };
    let voted = world.until("a vote", &["tx", "show", id, "--offline"], prepared);
    world.stop_ledger();
    let rolling_back = |shown: &serde_json::Value| shown["transaction"]["state"] == "rolling-back";
    let late =
        voted.and_then(|_shown| world.until("the deadline", &["tx", "show", id, "--offline"], rolling_back));
    // Whatever came of it: other situations need the server.
    servers.postgres.thaw()?;
    late?;
    try_all(&world, report, expected::ROLLING_BACK, id)?;
    world.attach_ledger()?;
    let shown = world.until("its end", &["tx", "show", id], shown_ended)?;
    let amounts =
        [world.in_orders("SELECT amount FROM account")?, world.in_ledger("SELECT amount FROM account")?];
    let whole = amounts.iter().all(|amount| amount.split_whitespace().last() == Some("100"));
    report.claims.insert(
        "a rollback is delivered to a branch that was prepared",
        shown["transaction"]["outcome"] == "rolled-back" && whole,
    );
    Ok(())
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
    let (situation, arguments) = ("heuristic, not on record yet", ["tx", "ack", id]);
    Attempt { situation, action: "ack", arguments: &arguments, expected: "LS0433", id, page: DONE }
        .run(&world, report)?;
    world.release_the_log()?;
    until_on_record(&world, id)?;
    try_all(&world, report, expected::HEURISTIC, id)?;
    let counted = world.metric("lockstep_unresolved_transactions{situation=\"heuristic\"}")?;
    follow(&world, report, &runbook::LOG_ALERTS, (id, ORDERS), &[])?;
    follow(&world, report, &runbook::HEURISTIC_ALERTS, (id, ORDERS), &[])?;
    follow(&world, report, &[runbook::HEURISTIC], (id, ORDERS), &[])?;
    let status = world.lockstep(&["status", "--exit-code"])?;
    report.claims.insert("an acknowledged heuristic outcome is not unresolved", status.code == 0);
    let left = world.metric("lockstep_unresolved_transactions{situation=\"heuristic\"}")?;
    let noted = world.metric("lockstep_operator_actions_total{action=\"acknowledge\"}")?;
    let counts = [counted.as_str(), &left, &noted] == ["1", "0", "1"];
    report.claims.insert("the metrics count a heuristic outcome until it is acknowledged", counts);
    try_all(&world, report, expected::ACKNOWLEDGED, id)?;
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
    follow(world, report, &runbook::UNDELIVERED_ALERTS, (id, ORDERS), &[])?;
    follow(world, report, &[runbook::UNDELIVERED], (id, ORDERS), &[])?;
    until_on_record(world, id)?;
    follow(world, report, &[runbook::HEURISTIC], (id, ORDERS), &[])?;
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
    let (name, row) = match how {
        Orphaned::CommittedElsewhere => ("operators_orphan_c", expected::COMMITTED_ELSEWHERE),
        Orphaned::NotCommitted => ("operators_orphan_n", expected::NOT_COMMITTED),
    };
    let mut world = World::start(servers, roles, name)?;
    world.back_up()?;
    // What participants have seen has to be newer than the backup: one that commits, then one that is torn by the crash.
    let first = world.commit_in_the_background(LONG)?.to_string();
    world.until("the first one's end", &["tx", "show", &first], shown_ended)?;
    world.restart(Some("coordinator-before-decide"))?;
    world.wait_until_attached()?;
    let gtrid = world.commit_in_the_background(LONG)?.to_string();
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
    try_all(&world, report, row, id)?;
    if how == Orphaned::NotCommitted {
        one_is_silent(&mut world, report, id)?;
    }
    let counted = world.metric("lockstep_unresolved_transactions{situation=\"orphan\"}")?;
    report.claims.insert("the metrics count an orphaned transaction once", counted == "1");
    match how {
        Orphaned::CommittedElsewhere => {
            act(&world, &["orphans", "resolve", id, "--commit", "--reason", "evidence", "--confirm", id])?;
        }
        Orphaned::NotCommitted => {
            follow(&world, report, &runbook::ORPHAN_ALERTS, (id, ORDERS), &[("health", UNRESOLVED)])?;
            let refused = [("orphans resolve $ID --commit --dry-run", "LS0425")];
            follow(&world, report, &[runbook::ORPHAN], (id, ORDERS), &refused)?;
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

/// A service that is down may have committed its branch.
fn one_is_silent(world: &mut World<'_>, report: &mut Report, id: &str) -> Result<()> {
    world.stop_ledger();
    world.wait_until_down(LEDGER)?;
    let arguments = ["orphans", "resolve", id, "--rollback"];
    let (situation, action) = ("orphan, one is silent", "resolve --rollback");
    Attempt { situation, action, arguments: &arguments, expected: "LS0426", id, page: DONE }
        .run(world, report)?;
    world.attach_ledger()?;
    world.wait_until_attached()
}

/// What another cluster has prepared in a database that both use: nothing is done with it here, by nobody.
fn other_cluster(servers: &Servers, roles: &Roles, report: &mut Report) -> Result<()> {
    let world = World::start(servers, roles, "operators_other_cluster")?;
    // Its epoch is one that this cluster's log has given out, too: every cluster counts from 1.
    let id = "1.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f";
    let gid = format!("lockstep:00000000:{id}:{ORDERS}.0000000000000001");
    world.in_orders(&format!("BEGIN; UPDATE account SET amount = 0; PREPARE TRANSACTION '{gid}'"))?;
    let there = |scan: &serde_json::Value| scan.to_string().contains(id);
    world.until("its branch", &["orphans", "scan"], there)?;
    let scan = world.lockstep(&["orphans", "scan"])?.stdout;
    let apart = scan.starts_with("OF ANOTHER CLUSTER") && scan.contains(id);
    report.claims.insert("what another cluster has prepared is listed apart", apart);
    try_all(&world, report, expected::OTHER_CLUSTER, id)?;
    follow(&world, report, &runbook::ORPHAN_ALERTS, (id, ORDERS), &[])?;
    let resolve = "orphans resolve $ID --rollback --all \"orders-db,ledger-db\" --reason \"its log was lost\" --confirm $ID";
    let refused =
        ["orphans resolve $ID --commit --dry-run", "orphans resolve $ID --rollback --dry-run", resolve];
    follow(&world, report, &[runbook::ORPHAN], (id, ORDERS), &refused.map(|command| (command, "LS0427")))?;
    let left = world.in_orders("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")?;
    report.claims.insert("what another cluster has prepared is left alone", left.trim() == gid);
    world.in_orders(&format!("ROLLBACK PREPARED '{gid}'")).map(drop)
}

/// Two nodes on one log: what the one has to deliver is not for the other to hold back or to give up.
fn other_node(servers: &Servers, roles: &Roles, report: &mut Report) -> Result<()> {
    let (mut world, mut other) = World::start_shared(servers, roles, "operators_nodes")?;
    let gtrid = world.commit_without_orders()?.to_string();
    let id = gtrid.as_str();
    std::mem::swap(&mut world.coordinator, &mut other);
    try_all(&world, report, expected::OTHER_NODE, id)?;
    std::mem::swap(&mut world.coordinator, &mut other);
    world.attach_orders()?;
    let shown = world.until("its end", &["tx", "show", id], shown_ended)?;
    report.claims.insert(
        "a transaction ends at its node, whatever was asked for at another one",
        shown["transaction"]["outcome"] == "committed",
    );
    Ok(())
}

/// A database and a copy of it: who is attached is neither retired nor rebound.
fn participants(servers: &Servers, roles: &Roles, report: &mut Report) -> Result<()> {
    let mut world = World::start(servers, roles, "operators_copied")?;
    let rows = |situation, retire, rebind| [(situation, "retire", retire), (situation, "rebind", rebind)];
    let try_both =
        |world: &World<'_>, report: &mut Report, rows: [(&'static str, &'static str, &'static str); 2]| {
            rows.into_iter().try_for_each(|(situation, action, expected)| {
                let arguments = ["participants", action, ORDERS];
                Attempt { situation, action, arguments: &arguments, expected, id: "", page: DONE }
                    .run(world, report)
            })
        };
    try_both(&world, report, rows("attached", "LS0430", "LS0431"))?;
    world.stop_orders();
    world.wait_until_down(ORDERS)?;
    world.copy_orders()?;
    try_both(&world, report, rows("gone", DONE, "LS0431"))?;
    world.attach_orders()?;
    let refused = world.attach_copy_of_orders().is_err();
    report.claims.insert("a copy of a database does not attach beside it", refused);
    try_both(&world, report, rows("attached, and a copy was refused", "LS0430", "LS0430"))?;
    world.stop_orders();
    world.wait_until_down(ORDERS)?;
    try_both(&world, report, rows("gone, and a copy was refused", DONE, DONE))?;
    let plan =
        world.until("where it is now", &["participants", "rebind", ORDERS, "--dry-run"], |_plan| true)?;
    let moved = plan["confirm"].as_str().unwrap_or_default();
    act(&world, &["participants", "rebind", ORDERS, "--reason", "it has moved", "--confirm", moved])?;
    world.attach_copy_of_orders()?;
    report.claims.insert("a database that has moved attaches once it is rebound", true);
    Ok(())
}
