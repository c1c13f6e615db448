//! A share of `prove simulate` in every test run: the same worlds each time, and that a world is the same each time.
//!
//! The long run is `cargo run --release -p lockstep-tests --bin prove -- simulate --transactions 10000000`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use lockstep_tests::simulation::run::{IN_A_WORLD, run};
use lockstep_tests::simulation::sometimes::never_seen;
use lockstep_tests::simulation::world::World;

/// Few enough for a debug build on a loaded machine, enough for faults of every kind.
const TRANSACTIONS: u64 = 60_000;

#[test]
fn no_invariant_is_violated_and_what_should_happen_sometimes_does() {
    let run = run(TRANSACTIONS, 1, 2, 1);
    for found in &run.found {
        eprintln!("{}", found.trace);
    }
    let violations: Vec<_> = run.found.iter().map(|found| (found.seed, &found.violation)).collect();
    assert!(violations.is_empty(), "repeat with prove simulate --seed: {violations:?}");
    assert!(run.transactions >= TRANSACTIONS);
    assert!(run.faults.iter().all(|count| *count > 0), "faults of every kind: {:?}", run.faults);
    assert!(run.committed * 5 > run.transactions, "only {} were committed", run.committed);
    let missing = never_seen(&run.reached, run.transactions);
    assert!(missing.is_empty(), "never seen: {missing:?}");
}

#[test]
fn the_same_seed_is_the_same_trace_byte_for_byte() {
    for seed in 1..=20 {
        let first = World::new(seed, IN_A_WORLD, true).run();
        let again = World::new(seed, IN_A_WORLD, true).run();
        let (first, again) = (first.trace, again.trace);
        assert!(first.text(None).lines().count() > IN_A_WORLD, "seed {seed} tells something");
        assert_eq!(first.text(None), again.text(None), "seed {seed}");
        assert_eq!(first.hash(), again.hash(), "seed {seed}");
        let untold = World::new(seed, IN_A_WORLD, false).run().trace;
        assert_eq!(first.hash(), untold.hash(), "a world does not know whether it is told, seed {seed}");
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let (one, two) = (run(4_000, 7, 1, 1), run(4_000, 7, 2, 1));
    assert_eq!(one.hash, two.hash);
    assert_eq!(one.reached, two.reached);
    assert_ne!(one.hash, run(4_000, 8, 2, 1).hash, "another seed is another run");
}
