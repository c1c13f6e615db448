//! A share of `prove resources` in every test run: a cell of every kind, which place by turns.
//!
//! The whole matrix is `cargo run --release -p lockstep-tests --bin prove -- resources`. A failure names its cells.

use lockstep_tests::harness::roles::Roles;
use lockstep_tests::resources::cell::run_all;
use lockstep_tests::resources::matrix::one_of_each_kind;
use lockstep_tests::resources::promise::Fault;
use lockstep_tests::resources::stage::Stage;
use lockstep_tests::trial::verdict::Verdict;

/// What the cells leave open is chosen from this.
const SEED: u64 = 1;

#[test]
fn every_way_through_every_kind_of_database_ends_right_under_every_kind_of_fault() {
    let cells = one_of_each_kind();
    let stage = Stage::set(&Roles::played_by(env!("CARGO_BIN_EXE_prove")));
    let verdicts = run_all(&stage, &cells, SEED, |done, verdict| {
        println!("{done}/{} {} in {:?}", cells.len(), verdict.cell, verdict.took);
    });
    let verdicts = verdicts.unwrap_or_else(|failed| panic!("{failed}"));
    let wrong: Vec<String> = verdicts.iter().filter_map(Verdict::complaint).collect();
    assert!(wrong.is_empty(), "{} of {} cells failed:\n{}", wrong.len(), cells.len(), wrong.join("\n"));
    for (cell, verdict) in cells.iter().zip(&verdicts) {
        let struck = verdict.faults > 0;
        assert_eq!(struck, cell.fault != Fault::Clean, "{} passes only if its fault struck", verdict.cell);
    }
}
