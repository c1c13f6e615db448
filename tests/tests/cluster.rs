//! Several coordinators on one log, a few of them killed and stopped: what `prove cluster` does for minutes.

#![allow(clippy::unwrap_used, reason = "a test panics where something is not as it should be")]

use std::time::Duration;

use lockstep_tests::cluster::run::{Plan, run};
use lockstep_tests::harness::roles::Roles;

#[test]
fn coordinators_that_are_killed_or_stopped_are_taken_over_from() {
    let directory = tempfile::tempdir().unwrap();
    let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove"));
    let plan = Plan { nodes: 3, time: Duration::ZERO, faults: 4, seed: 7 };
    let report = run(&roles, directory.path(), plan, |takeover| eprintln!("{takeover:?}"));
    let report = report.unwrap_or_else(|error| panic!("{error}"));
    eprintln!("{}", report.summary());
    assert!(report.committed() > 20, "{}", report.summary());
    assert_eq!(report.violations(), [String::new(); 0]);
}
