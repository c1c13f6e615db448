//! A share of `prove museum` in every test run: bugs of every layer, each of them found by what is meant to find it; and that the
//! catalogue, the code and the documentation have the same ones.
//!
//! All of them, with more seeds: `cargo run --release -p lockstep-tests --bin prove -- museum`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

mod sources;

use std::collections::BTreeSet;
use std::fs;

use lockstep_tests::model::bounds::FAILOVER;
use lockstep_tests::museum::catalogue::{BUGS, Bug, Layer};
use lockstep_tests::museum::run::{Effort, run};

use crate::sources::{root, sources};

/// The one test of this program that puts bugs back: they are there for the whole process.
#[test]
fn a_share_of_the_bugs_is_found_as_it_is_meant() {
    // All of the small layers, and every fifth of the simulation's, which needs minutes without optimisation for the others, and of the
    // stores', whose rules wait for deadlines; not the one large world of the model.
    let long = |bug: &&Bug| matches!(bug.layer, Layer::Simulation(_) | Layer::Store(_));
    let (long, others): (Vec<&Bug>, Vec<&Bug>) = BUGS.iter().partition(long);
    let small = |bug: &&Bug| !matches!(bug.layer, Layer::Model(world, _) if world == FAILOVER.name);
    let others = others.into_iter().filter(small);
    let share: Vec<Bug> = long.into_iter().step_by(5).chain(others).copied().collect();
    let report = run(&share, Effort { seed: 1, worlds: 400, threads: 2 }, |_| {});
    assert!(report.is_clean(), "{}", report.text());
}

#[test]
fn every_bug_in_the_catalogue_is_in_the_code_and_no_other() {
    let mut in_the_code = BTreeSet::new();
    for (_path, text) in ["proto", "coordinator", "participant-sdk"].into_iter().flat_map(sources) {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let names =
            code.flat_map(|line| line.split("mutated(\"").skip(1).map(str::to_owned).collect::<Vec<_>>());
        in_the_code.extend(names.map(|rest| rest.split('"').next().unwrap().to_owned()));
    }
    let catalogue: BTreeSet<String> = BUGS.iter().map(|bug| bug.name.to_owned()).collect();
    assert_eq!(catalogue.len(), BUGS.len(), "each has a name of its own");
    assert_eq!(catalogue, in_the_code);
    assert!(catalogue.len() >= 40, "only {}", catalogue.len());
}

#[test]
fn the_list_in_the_docs_is_the_catalogue() {
    let text = fs::read_to_string(root().join("docs/museum.md")).unwrap();
    let in_the_docs: Vec<&str> = text.lines().filter(|line| line.starts_with("| `")).collect();
    let catalogue: Vec<String> = BUGS.iter().map(row).collect();
    assert_eq!(in_the_docs, catalogue, "the table of docs/museum.md should read\n{}", catalogue.join("\n"));
}

fn row(bug: &Bug) -> String {
    let names = |names: &[&str]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let by = match bug.layer {
        Layer::Simulation(by) => format!("simulation: {}", names(by)),
        Layer::Model(world, by) => format!("model, {world}: {}", names(by)),
        Layer::Log(promise) => format!("decision log: {}", names(&[promise.invariant()])),
        Layer::Store(rules) => {
            format!("store contract: {}", names(&rules.iter().map(|rule| rule.name()).collect::<Vec<_>>()))
        }
        Layer::Schedule(schedule) => format!("real databases: {}", names(&[schedule.invariant()])),
        Layer::Script(script) => format!("script: {}", names(&[script.invariant()])),
    };
    format!("| `{}` | {} | {by} |", bug.name, bug.what)
}
