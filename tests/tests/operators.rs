//! The four situations on real databases, every operator's action in each, and their resolution through the command line.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use lockstep_tests::harness::roles::Roles;
use lockstep_tests::operators::matrix;

#[test]
fn every_situation_is_resolved_as_the_runbook_says_and_every_unsafe_action_is_refused() {
    let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove"));
    let report = matrix::run(&roles).unwrap();
    assert!(report.is_clean(), "{}", report.text());
}
