//! A branch that somebody ends by hand behind our back is a heuristic outcome: on record, told to its client, and never repaired.
//!
//! Real processes and real databases. Whatever is to be done by hand is done at the one moment at which it contradicts the decision:
//! the participant's own command to the database is held up, or the participant is dead.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use lockstep_tests::harness::books::{Books, Database};
use lockstep_tests::harness::client::{Plan, Told, What};
use lockstep_tests::harness::clock::wait_for;
use lockstep_tests::harness::crash_points::Fuse;
use lockstep_tests::harness::process::Reaped;
use lockstep_tests::harness::proxy::{At, Proxy, Strike, Then};
use lockstep_tests::harness::roles::Roles;
use lockstep_tests::resources::stage::{Server, Stage};
use lockstep_tests::trial::checker::{Found, Seen};
use lockstep_tests::trial::world::{BANKS, Who, World};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

fn stage() -> Stage {
    Stage::set(&Roles::played_by(env!("CARGO_BIN_EXE_prove")))
}

/// What became of a transaction that somebody's hand was in.
struct Torn {
    seen: Seen,
    gtrid: String,
    /// What its client was told.
    told: Told,
    /// `lockstep tx show --json`.
    shown: Value,
}

impl Torn {
    /// Of the transaction that is named here, or was under way at that moment, when nothing is in doubt any more.
    fn look(world: &mut World, named_in: &str, at: u64) -> Self {
        world.stop_the_client();
        world.come_to_rest(Plan::Commit).unwrap();
        let mut violations = Vec::new();
        let mut seen = world.look(&mut violations).unwrap();
        assert_eq!(violations, Vec::<String>::new());
        let gtrid = seen.named_in(named_in, at).unwrap().to_owned();
        seen.torn_by_hand = Some(gtrid.clone());
        let told = seen.ledger.iter().rev().find_map(|entry| match entry.what {
            What::Told { told, .. } if entry.gtrid == gtrid => Some(told),
            What::Told { .. } | What::Begun { .. } | What::Ready { .. } | What::Heard { .. } => None,
        });
        let shown = world.coordinator.ask(&["tx", "show", &gtrid]).unwrap();
        Self { seen, told: told.unwrap(), gtrid, shown }
    }

    /// On record: the transaction's outcome, and which of its branches it was.
    fn assert_it_is_on_record(&self, bank: &str, its_state: &str) {
        let transaction = &self.shown["transaction"];
        assert_eq!(transaction["outcome"], "heuristic", "{}", self.shown);
        let branches = transaction["branches"].as_array().unwrap();
        let branch = branches.iter().find(|branch| branch["resource_manager"] == bank);
        assert_eq!(branch.unwrap()["state"], its_state, "{}", self.shown);
        assert_eq!(self.seen.asked[&self.gtrid], Told::Heuristic, "whoever asks is told");
    }
}

/// Two banks, the first of them in a server behind a proxy, which holds up its command that begins so. In MariaDB the one of a second
/// session: while that is there which prepared the branch, no hand can finish it.
fn held_up(
    stage: &Stage,
    server: &Server,
    directory: &Path,
    plan: Plan,
    statement: &'static str,
) -> (World, Proxy) {
    let [tested, other] = BANKS;
    let proxy = server.proxy().unwrap();
    let strike = |nth, then| Strike { statement, same: None, nth, answers: &[], at: At::Request, then };
    let strikes = match server {
        Server::Mariadb(_) => vec![strike(2, Then::Cut), strike(1, Then::Freeze)],
        Server::Postgres(_) => vec![strike(2, Then::Freeze)],
    };
    proxy.arm(&strikes);
    let mut world = World::start(&stage.roles, directory, &[], None, None).unwrap();
    let books = world.block_on(server.books(tested, &stage.fresh_name())).unwrap();
    world.block_on(books.plant_foreign()).unwrap();
    world.start_bank(books.through(proxy.port()), None).unwrap();
    let books = world.block_on(Books::in_sqlite(other, directory.join("other.db"))).unwrap();
    world.start_bank(books, None).unwrap();
    world.start_client(&[plan], false, None).unwrap();
    wait_for("the command to be held up", PATIENCE, || {
        world.expect_all_alive()?;
        Ok((proxy.struck().len() == strikes.len()).then_some(()))
    })
    .unwrap();
    (world, proxy)
}

/// MariaDB lets nobody else finish a branch until the session has ended that has prepared it, some milliseconds after its client has gone.
fn do_by_hand(world: &World, sql: &str) {
    let try_it = || Ok(world.block_on(world.banks[0].books.execute(sql)).ok());
    wait_for("the branch to be ended by hand", PATIENCE, try_it).unwrap();
}

fn committed_but_rolled_back_by_hand(kind: Database, statement: &'static str) {
    let stage = stage();
    let server = stage.server(kind).unwrap().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (mut world, proxy) =
        held_up(&stage, &server, &directory.path().join("cell"), Plan::Commit, statement);
    let held = proxy.struck().pop().unwrap();
    let by_hand = held.text.replace("COMMIT", "ROLLBACK");
    do_by_hand(&world, &by_hand);
    proxy.release();
    let torn = Torn::look(&mut world, &held.text, held.when);
    assert_eq!(torn.seen.contradictions(), Vec::<String>::new());
    assert_eq!(torn.seen.found(&torn.gtrid), Found::Torn, "nobody repairs it");
    assert_eq!(torn.told, Told::Heuristic);
    torn.assert_it_is_on_record(BANKS[0], "rolled-back");
    world.remove().unwrap();
}

fn rolled_back_but_committed_by_hand(kind: Database, statement: &'static str) {
    let stage = stage();
    let server = stage.server(kind).unwrap().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (mut world, proxy) =
        held_up(&stage, &server, &directory.path().join("cell"), Plan::RefusedBySecond, statement);
    let held = proxy.struck().pop().unwrap();
    let by_hand = held.text.replace("ROLLBACK", "COMMIT");
    do_by_hand(&world, &by_hand);
    proxy.release();
    let torn = Torn::look(&mut world, &held.text, held.when);
    assert_eq!(torn.seen.found(&torn.gtrid), Found::Torn, "nobody repairs it");
    torn.assert_it_is_on_record(BANKS[0], "committed");
    world.remove().unwrap();
}

#[test]
fn rollback_prepared_by_hand_in_postgresql_is_on_record() {
    committed_but_rolled_back_by_hand(Database::Postgres, "COMMIT PREPARED");
}

#[test]
fn commit_prepared_by_hand_in_postgresql_is_on_record() {
    rolled_back_but_committed_by_hand(Database::Postgres, "ROLLBACK PREPARED");
}

#[test]
fn xa_rollback_by_hand_in_mariadb_is_on_record() {
    committed_but_rolled_back_by_hand(Database::MariaDb, "XA COMMIT");
}

#[test]
fn xa_commit_by_hand_in_mariadb_is_on_record() {
    rolled_back_but_committed_by_hand(Database::MariaDb, "XA ROLLBACK");
}

/// Two banks without a server; the first dies when it hears that its prepared branch is to commit, something is done to its files,
/// and it comes back. The transaction's end, with the directory that they are in.
fn while_it_was_dead(kind: Database, by_hand: impl FnOnce(&World, &Path)) -> (World, tempfile::TempDir, u64) {
    let stage = stage();
    let directory = tempfile::tempdir().unwrap();
    let cell = directory.path().join("cell");
    let fuse =
        Fuse { point: "sdk-decision-received".to_owned(), nth: 2, marker: directory.path().join("crash") };
    let first = Who::Bank(0);
    let mut world = World::start(&stage.roles, &cell, &[], None, None).unwrap();
    let tested = cell.join(BANKS[0]);
    let books = match kind {
        Database::Own => world.block_on(Books::in_ledger(BANKS[0], tested.clone())).unwrap(),
        Database::Sqlite => world.block_on(Books::in_sqlite(BANKS[0], tested.clone())).unwrap(),
        Database::Postgres | Database::MariaDb => panic!("it has a server"),
    };
    world.start_bank(books, Some((first, &fuse))).unwrap();
    let books = world.block_on(Books::in_sqlite(BANKS[1], cell.join("other.db"))).unwrap();
    world.start_bank(books, None).unwrap();
    world.start_client(&[Plan::Commit], false, None).unwrap();
    assert_eq!(world.wait_for_death(first, &fuse.point, PATIENCE).unwrap(), Reaped::KILLED);
    by_hand(&world, &tested);
    world.restart(first, None).unwrap();
    (world, directory, fuse.fired_at().unwrap())
}

#[test]
fn a_journal_deleted_by_hand_in_sqlite_is_on_record() {
    let (mut world, _directory, at) = while_it_was_dead(Database::Sqlite, |_, file| {
        let mut journal = file.as_os_str().to_owned();
        journal.push("-lockstep");
        fs::remove_file(journal).unwrap();
    });
    let torn = Torn::look(&mut world, "", at);
    assert_eq!(torn.seen.contradictions(), Vec::<String>::new());
    assert_eq!(torn.seen.found(&torn.gtrid), Found::Torn, "nobody repairs it");
    torn.assert_it_is_on_record(BANKS[0], "rolled-back");
    world.remove().unwrap();
}

#[test]
fn a_row_changed_by_hand_in_sqlite_is_on_record_and_not_overwritten() {
    let (mut world, _directory, at) = while_it_was_dead(Database::Sqlite, |world, _| {
        world.block_on(world.banks[0].books.execute("UPDATE accounts SET balance = balance + 1")).unwrap();
    });
    let torn = Torn::look(&mut world, "", at);
    assert_eq!(torn.seen.found(&torn.gtrid), Found::Torn, "its journal does not fit the row any more");
    torn.assert_it_is_on_record(BANKS[0], "hazard");
    assert_eq!(torn.seen.pages[0].wrong_accounts.len(), 4, "what the hand wrote is there");
    world.remove().unwrap();
}

#[test]
fn a_prepared_record_deleted_by_hand_in_a_store_of_ones_own_is_on_record() {
    let (mut world, _directory, at) = while_it_was_dead(Database::Own, |_, directory| {
        let ledger = directory.join("ledger");
        let text = fs::read_to_string(&ledger).unwrap();
        // It was prepared last of all.
        let at = text.rfind("\"record\":\"prepared\"").unwrap();
        let line = text[..at].rfind('\n').unwrap() + 1;
        fs::write(&ledger, &text[..line]).unwrap();
    });
    let torn = Torn::look(&mut world, "", at);
    assert_eq!(torn.seen.contradictions(), Vec::<String>::new());
    assert_eq!(torn.seen.found(&torn.gtrid), Found::Torn, "nobody repairs it");
    torn.assert_it_is_on_record(BANKS[0], "rolled-back");
    world.remove().unwrap();
}
