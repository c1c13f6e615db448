//! A share of `prove model` in every test run: the small worlds, every state of each.
//!
//! The long run is `cargo run --release -p lockstep-tests --bin prove -- model`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use lockstep_tests::model::bounds::SMALL;
use lockstep_tests::model::run::explore_world;

/// More than any of them has.
const MOST_STATES: usize = 1_000_000;

#[test]
fn nothing_is_violated_in_any_state_and_from_each_there_is_a_way_to_the_end() {
    for bounds in SMALL {
        let tried = explore_world(bounds, MOST_STATES);
        assert!(tried.violations.is_empty(), "in {:?}: {}", bounds.name, tried.violations.join("\n"));
        assert!(tried.ends > 0, "{:?} has no end at all", bounds.name);
        assert!(tried.states > 500, "{:?} has only {} states", bounds.name, tried.states);
    }
}
