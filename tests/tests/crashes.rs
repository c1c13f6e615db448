//! A share of `prove crashes` in every test run: each crash point once, the ways and databases by turns.
//!
//! The whole matrix is `cargo run --release -p lockstep-tests --bin prove -- crashes`. A failure names its cells.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

mod sources;

use std::collections::BTreeSet;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use lockstep_tests::crashes::matrix::{Cell, cells};
use lockstep_tests::crashes::points::{POINTS, Victim};
use lockstep_tests::crashes::run::run;
use lockstep_tests::crashes::stage::Stage;
use lockstep_tests::harness::roles::Roles;
use lockstep_tests::trial::verdict::Verdict;

use crate::sources::sources;

/// What the cells leave open is chosen from this.
const SEED: u64 = 1;

/// One cell of each point of this victim: another way and another kind of database from one point to the next. Of every fourth point, the one
/// with a second crash besides.
fn share(victim: Victim) -> Vec<Cell> {
    let points = POINTS.iter().filter(|point| point.victim == victim);
    points
        .enumerate()
        .map(|(turn, point)| {
            let (cells, _) = cells(|other, _| other.name == point.name);
            let (twice, once): (Vec<Cell>, Vec<Cell>) =
                cells.into_iter().partition(|cell| cell.then.is_some());
            let again = twice.get(turn % twice.len().max(1)).copied().filter(|_| turn % 4 == 0);
            [Some(once[turn % once.len()]), again]
        })
        .flat_map(|both| both.into_iter().flatten())
        .collect()
}

/// For one test at a time: there are cells enough in each to keep a machine busy.
fn stage() -> MutexGuard<'static, Stage> {
    static STAGE: LazyLock<Mutex<Stage>> = LazyLock::new(|| {
        let stage = Stage::set(&Roles::played_by(env!("CARGO_BIN_EXE_prove")));
        Mutex::new(stage.unwrap_or_else(|failed| panic!("{failed}")))
    });
    // A test that failed has left it as it was.
    STAGE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn try_all(victim: Victim) {
    let cells = share(victim);
    let stage = stage();
    let verdicts = run(&stage, &cells, SEED, |done, verdict| {
        println!("{done}/{} {} in doubt for {:?}", cells.len(), verdict.cell, verdict.in_doubt);
    });
    let verdicts = verdicts.unwrap_or_else(|failed| panic!("{failed}"));
    let wrong: Vec<String> = verdicts.iter().filter_map(Verdict::complaint).collect();
    assert!(wrong.is_empty(), "{} of {} cells failed:\n{}", wrong.len(), cells.len(), wrong.join("\n"));
    assert!(verdicts.iter().all(|verdict| verdict.faults > 0), "a cell passes only if its fault fired");
}

#[test]
fn a_client_may_die_at_each_of_its_crash_points() {
    try_all(Victim::Client);
}

#[test]
fn a_participant_may_die_at_each_of_its_crash_points() {
    try_all(Victim::Participant);
}

#[test]
fn a_coordinator_may_die_at_each_of_its_crash_points() {
    try_all(Victim::Coordinator);
}

/// The table is written by hand, so that a point that was removed, renamed or added by mistake is noticed here.
#[test]
fn the_table_of_crash_points_is_what_the_sources_have() {
    let mut in_sources = BTreeSet::new();
    for (path, text) in ["coordinator", "participant-sdk", "proto"].into_iter().flat_map(sources) {
        for rest in text.split("fail_point!(").skip(1) {
            let name = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split_once('"'));
            let (name, _) =
                name.unwrap_or_else(|| panic!("{}: a crash point without a name", path.display()));
            assert!(in_sources.insert(name.to_owned()), "{}: {name} is there twice", path.display());
        }
    }
    let in_table: BTreeSet<String> = POINTS.iter().map(|point| point.name.to_owned()).collect();
    let missing: Vec<_> = in_sources.difference(&in_table).collect();
    let gone: Vec<_> = in_table.difference(&in_sources).collect();
    assert!(missing.is_empty(), "in the sources and not in tests/src/crashes/points.rs: {missing:?}");
    assert!(gone.is_empty(), "in tests/src/crashes/points.rs and not in the sources: {gone:?}");
    assert!(in_table.len() >= 20, "only {} crash points", in_table.len());
}
