//! Several coordinators on one log, a few of them killed and stopped: what `prove cluster` does for minutes.
//! `schedules`: one thing at a time goes wrong, at the worst moment.

#![allow(clippy::unwrap_used, reason = "a test panics where something is not as it should be")]

mod schedules;

use std::time::Duration;

use lockstep_tests::cluster::run::{LEASE, Plan, run};
use lockstep_tests::cluster::world::{Setup, World};
use lockstep_tests::harness::books::Database;
use lockstep_tests::harness::clock::{now, wait_for};
use lockstep_tests::harness::roles::Roles;

fn setup(nodes: usize, lease: Duration) -> Setup {
    Setup { nodes, named: Some(nodes), lease, banks: Database::Postgres }
}

/// Which does nothing yet.
const PLAN: Plan = Plan {
    nodes: 3,
    time: Duration::ZERO,
    banks: Database::Postgres,
    faults: 0,
    log_crashes: 0,
    failovers: 0,
    seed: 7,
};

fn try_plan(plan: Plan) {
    let directory = tempfile::tempdir().unwrap();
    let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove"));
    let report = run(&roles, directory.path(), plan, |struck| eprintln!("{struck}"));
    let report = report.unwrap_or_else(|error| panic!("{error}"));
    eprintln!("{}", report.summary());
    assert!(report.committed() > 20, "{}", report.summary());
    assert_eq!(report.violations(), Vec::<String>::new());
}

#[test]
fn coordinators_that_are_killed_or_stopped_are_taken_over_from() {
    try_plan(Plan { faults: 4, ..PLAN });
}

/// A SQLite file has one instance, which is attached to all of them (P24).
#[test]
fn whoever_takes_over_finishes_what_is_prepared_in_a_sqlite_file() {
    try_plan(Plan { faults: 3, banks: Database::Sqlite, ..PLAN });
}

#[test]
fn nothing_is_lost_where_the_logs_server_crashes_and_fails_over() {
    try_plan(Plan { nodes: 2, log_crashes: 3, failovers: 2, seed: 11, ..PLAN });
}

/// Longer than a lease: when the log is back every lease has run out, and nobody is gone.
#[test]
fn a_log_that_was_away_longer_than_a_lease_costs_no_node_its_epoch() {
    const NODES: usize = 3;
    let directory = tempfile::tempdir().unwrap();
    let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove"));
    let mut world = World::start(&roles, directory.path(), setup(NODES, LEASE)).unwrap();
    let patience = Duration::from_secs(60);
    for _crash in 0..2 {
        let before = world.ledgers().unwrap().len();
        let more = || Ok((world.ledgers()?.len() > before + 50).then_some(()));
        wait_for("transfers", patience, more).unwrap_or_else(|error| panic!("{error}\n{}", world.logs()));
        world.crash_the_log(LEASE + Duration::from_secs(1)).unwrap();
    }
    let before = world.ledgers().unwrap().len();
    let more = || Ok((world.ledgers()?.len() > before + 50).then_some(()));
    wait_for("transfers", patience, more).unwrap_or_else(|error| panic!("{error}\n{}", world.logs()));
    world.settle(patience).unwrap();
    assert_eq!(world.epochs().unwrap(), i64::try_from(NODES).unwrap(), "{}", world.logs());
    let seen = world.look(&[0, 1, 2]).unwrap();
    assert_eq!(seen.contradictions(), Vec::<String>::new());
    assert_eq!(world.heuristic().unwrap(), 0);
}

/// A lease of minutes, and nobody waits for it.
#[test]
fn a_node_that_drains_hands_over_without_waiting_for_its_lease() {
    let directory = tempfile::tempdir().unwrap();
    let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove"));
    let lease = Duration::from_secs(90);
    let mut world = World::start(&roles, directory.path(), setup(2, lease)).unwrap();
    let patience = Duration::from_secs(60);
    wait_for("the first transfers", patience, || Ok((world.ledgers()?.len() > 20).then_some(()))).unwrap();
    let epoch = world.epoch_of(0).unwrap();
    let started = now();
    world.drain(0).unwrap();
    wait_for("the other node to take over", lease, || Ok(world.left_by(epoch)?.sealed.then_some(())))
        .unwrap();
    assert!(started.elapsed() < lease / 2, "{:?}", started.elapsed());
    world.settle(patience).unwrap();
    let seen = world.look(&[1]).unwrap();
    assert_eq!(seen.contradictions(), Vec::<String>::new());
}

/// Banks and clients are given one node of two. They are told of the other one, of a third that is started later, and that one is gone; and
/// then they do without the one that they were given.
#[test]
fn one_address_is_enough_to_find_every_node() {
    let directory = tempfile::tempdir().unwrap();
    let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove"));
    let setup = Setup { named: Some(1), ..setup(2, LEASE) };
    let mut world = World::start(&roles, directory.path(), setup).unwrap();
    let patience = Duration::from_secs(60);
    let expect_commits_at = |world: &World, node| {
        let epoch = world.epoch_of(node).unwrap();
        let before = world.commits_of(epoch).unwrap();
        let more = || Ok((world.commits_of(epoch)? > before + 20).then_some(()));
        wait_for("commits", patience, more).unwrap_or_else(|error| panic!("{error}\n{}", world.logs()));
    };
    expect_commits_at(&world, 1);
    world.add_node().unwrap();
    expect_commits_at(&world, 2);

    let gone = world.coordinators[1].url();
    world.coordinators[1].process().kill().unwrap();
    let left = format!("a coordinator is left name=bank-a address={gone:?}");
    let left = ["bank-a", "bank-b"].map(|bank| left.replace("bank-a", bank));
    wait_for("the banks to leave it", patience, || Ok(world.every_bank_logs(&left)?.then_some(())))
        .unwrap_or_else(|error| panic!("{error}\n{}", world.logs()));
    world.coordinators[0].process().kill().unwrap();
    expect_commits_at(&world, 2);
    world.settle(patience).unwrap();
    let seen = world.look(&[2]).unwrap();
    assert_eq!(seen.contradictions(), Vec::<String>::new());
    assert_eq!(world.heuristic().unwrap(), 0);
}
