//! A share of `prove torture` in every test run, and its checker, which has to see what was torn.
//!
//! The long run is `cargo run --release -p lockstep-tests --bin prove -- torture --minutes 20`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::time::Duration;

use lockstep_tests::harness::clock::wait_for;
use lockstep_tests::harness::roles::Roles;
use lockstep_tests::torture::report::Faults;
use lockstep_tests::torture::run::{Fault, run, strike};
use lockstep_tests::torture::world::{Server, World};

fn roles() -> Roles {
    Roles::played_by(env!("CARGO_BIN_EXE_prove"))
}

#[test]
fn nothing_is_torn_and_everything_ends() {
    let directory = tempfile::tempdir().unwrap();
    let report = run(&roles(), directory.path(), Duration::from_secs(30), 1, |fault| println!("{fault}"));
    let report = report.unwrap_or_else(|failed| panic!("{failed}"));
    assert!(report.is_safe(), "{}", report.summary());
}

/// Servers whose forces fail end, and come back with whatever was written; one whose disk is full refuses, or ends.
#[test]
fn nothing_is_torn_where_disks_are_full_or_fail() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::start(&roles(), directory.path()).unwrap_or_else(|failed| panic!("{failed}"));
    let patience = Duration::from_secs(60);
    let mut faults = Faults::default();
    let mut strike_at_work = |world: &mut World, fault| {
        let before = world.ledgers().unwrap().len();
        let went_on = || Ok((world.ledgers()?.len() > before + 20).then_some(()));
        wait_for("some transfers", patience, went_on).unwrap_or_else(|failed| panic!("{failed}"));
        strike(world, fault, Duration::from_secs(3), &mut faults)
            .unwrap_or_else(|failed| panic!("{fault:?}: {failed}\n{}", world.logs()));
        faults.crashed
    };
    for (done, server) in (1..).zip([Server::Log, Server::Postgres, Server::MariaDb]) {
        let crashed = strike_at_work(&mut world, Fault::FailForces(server));
        assert_eq!(crashed, done, "{server:?} goes on where its forces fail");
    }
    strike_at_work(&mut world, Fault::FillDisk);
    assert!(world.log_server.log().contains("No space left on device"), "the log had to write more");
    world.settle(3 * patience).unwrap_or_else(|failed| panic!("{failed}"));
    assert_eq!(world.violations().unwrap(), Vec::<String>::new());
}

/// Half of a transaction that is in the books of one bank only, an account that does not match its transfers, and a foreign transaction
/// that is gone.
#[test]
fn the_checker_sees_what_is_planted_by_hand() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::start(&roles(), directory.path()).unwrap_or_else(|failed| panic!("{failed}"));
    let patience = Duration::from_secs(60);
    wait_for("some transfers", patience, || Ok((world.ledgers()?.len() > 40).then_some(()))).unwrap();
    world.settle(patience).unwrap();
    assert_eq!(world.violations().unwrap(), Vec::<String>::new());

    let books = world.banks[0].books.clone();
    let committed = world.block_on(books.read()).unwrap().transfers.into_keys().next().unwrap();
    world.block_on(books.execute(&format!("DELETE FROM transfers WHERE transfer = '{committed}'"))).unwrap();
    let seen = world.violations().unwrap();
    assert!(seen.iter().any(|text| text.contains(&committed) && text.contains("is torn")), "{seen:?}");
    assert!(seen.iter().any(|text| text.contains("accounts do not match")), "{seen:?}");
}
