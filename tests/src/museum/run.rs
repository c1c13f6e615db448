//! Puts each bug back, tries it where it is meant to be found, and says how it was found.

use std::time::Duration;

use comfy_table::{Table, presets};
use lockstep::testing::Rule;
use lockstep_proto::museum::{put_back, repair};
use serde::Serialize;

use super::catalogue::{Bug, Layer};
use super::log::{PROMISES, keeps};
use super::schedule::SCHEDULES;
use super::script::SCRIPTS;
use super::store::first_broken;
use crate::harness::clock;
use crate::model;
use crate::simulation;

/// How much is tried before a bug counts as not found.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// The seed of the first simulated world.
    pub seed: u64,
    /// Simulated worlds at most.
    pub worlds: u64,
    /// Threads.
    pub threads: usize,
}

/// What became of one bug.
#[derive(Debug, Clone, Serialize)]
pub struct Found {
    /// Its name.
    bug: &'static str,
    /// Who was to find it.
    layer: &'static str,
    /// Which invariant did, if any.
    pub by: Option<String>,
    /// Whether that is the one, or one of those, that it was meant for.
    pub as_meant: bool,
    /// Simulated worlds until then; 1 for what is tried once.
    seeds: u64,
    /// How long that took.
    seconds: f64,
}

/// Everything that was tried.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Bugs that were put back.
    bugs: usize,
    /// Those that were found, each by what was meant to.
    caught: usize,
    /// What the code without any bug was found to violate, in as many tries: nothing.
    false_alarms: Vec<String>,
    /// One for each bug.
    found: Vec<Found>,
    /// The same as `bugs`, by the name that all reports have.
    cells: usize,
    /// The same.
    faults: usize,
    /// Bugs that were not found, and false alarms.
    violations: usize,
    /// The first simulated world's seed.
    seed: u64,
    /// How long all of it took.
    seconds: f64,
}

/// Tries these bugs, and then the code as it is, with as much effort as the bug that took most.
///
/// # Panics
/// If there is no runtime to be had for what is asynchronous.
#[must_use]
pub fn run(bugs: &[Bug], effort: Effort, tell: impl Fn(&Found)) -> Report {
    let started = clock::now();
    let earlier = std::panic::take_hook();
    // A bug that an assertion finds is found; nobody needs to read of it.
    std::panic::set_hook(Box::new(|_| {}));
    let mut found = Vec::new();
    for bug in bugs {
        put_back(bug.name);
        let tried = try_one(bug, effort);
        repair();
        tell(&tried);
        found.push(tried);
    }
    std::panic::set_hook(earlier);
    let most = found.iter().map(|found| found.seeds).max().unwrap_or(1);
    let false_alarms = false_alarms(bugs, Effort { worlds: most, ..effort });
    let caught = found.iter().filter(|found| found.as_meant).count();
    Report {
        bugs: bugs.len(),
        caught,
        violations: bugs.len() - caught + false_alarms.len(),
        false_alarms,
        found,
        cells: bugs.len(),
        faults: bugs.len(),
        seed: effort.seed,
        seconds: tenths(started.elapsed()),
    }
}

fn try_one(bug: &Bug, effort: Effort) -> Found {
    let started = clock::now();
    let (layer, meant, by, seeds) = match bug.layer {
        Layer::Simulation(meant) => {
            let (by, seeds) = simulate(effort);
            ("simulation", meant.to_vec(), by, seeds)
        }
        Layer::Model(world, meant) => ("model", meant.to_vec(), explore(world, effort.threads), 1),
        Layer::Log(promise) => {
            let by = (!block_on(keeps(promise))).then(|| promise.invariant().to_owned());
            ("decision log", vec![promise.invariant()], by, 1)
        }
        Layer::Store(rules) => {
            let by = block_on(first_broken(rules)).map(|rule| rule.name().to_owned());
            ("store contract", rules.iter().map(|rule| rule.name()).collect(), by, 1)
        }
        Layer::Schedule(schedule) => {
            let by = (!block_on(schedule.ends_well())).then(|| schedule.invariant().to_owned());
            ("real databases", vec![schedule.invariant()], by, 1)
        }
        Layer::Script(script) => {
            let by = (!script.ends_well()).then(|| script.invariant().to_owned());
            ("script", vec![script.invariant()], by, 1)
        }
    };
    let as_meant = by.as_ref().is_some_and(|by| meant.contains(&by.as_str()));
    Found { bug: bug.name, layer, by, as_meant, seeds, seconds: tenths(started.elapsed()) }
}

/// More and more worlds, until one has a violation: which, and after how many.
fn simulate(effort: Effort) -> (Option<String>, u64) {
    let mut tried = 0;
    let mut next = 2;
    while tried < effort.worlds {
        let worlds = next.min(effort.worlds - tried);
        let first = effort.seed + tried;
        let transactions = worlds * simulation::run::IN_A_WORLD as u64;
        let run = simulation::run::run(transactions, first, effort.threads, 1);
        if let Some(found) = run.found.first() {
            return (Some(found.violation.invariant.to_owned()), found.seed - effort.seed + 1);
        }
        tried += worlds;
        next *= 4;
    }
    (None, tried)
}

fn explore(world: &str, threads: usize) -> Option<String> {
    let bounds = worlds().find(|bounds| bounds.name == world).expect("a bug names a world that there is");
    model::run::unsafe_states(&bounds, threads).into_iter().next().map(|(name, _)| name.to_owned())
}

/// The worlds of the model in which bugs are put back.
fn worlds() -> impl Iterator<Item = model::bounds::Bounds> {
    model::bounds::SMALL.iter().copied().chain([model::bounds::FAILOVER])
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime can be had").block_on(future)
}

/// What the code as it is violates on the same layers, with the same effort.
fn false_alarms(bugs: &[Bug], effort: Effort) -> Vec<String> {
    let mut alarms = Vec::new();
    let run = simulation::run::run(
        effort.worlds * simulation::run::IN_A_WORLD as u64,
        effort.seed,
        effort.threads,
        1,
    );
    alarms
        .extend(run.found.iter().map(|found| format!("{} (seed {})", found.violation.invariant, found.seed)));
    let worlds = worlds().filter(|bounds| {
        bugs.iter().any(|bug| matches!(bug.layer, Layer::Model(world, _) if world == bounds.name))
    });
    for bounds in worlds {
        let violations = model::run::unsafe_states(&bounds, effort.threads);
        alarms.extend(violations.into_iter().map(|(name, _)| format!("{name} (model, {})", bounds.name)));
    }
    for promise in PROMISES {
        if !block_on(keeps(promise)) {
            alarms.push(format!("{promise:?} (decision log)"));
        }
    }
    let mut rules: Vec<Rule> = bugs.iter().flat_map(|bug| bug.layer.rules()).copied().collect();
    rules.sort_by_key(|rule| rule.name());
    rules.dedup();
    alarms.extend(block_on(first_broken(&rules)).map(|rule| format!("{rule} (store contract)")));
    let schedules = SCHEDULES.into_iter().filter(|schedule| !block_on(schedule.ends_well()));
    alarms.extend(schedules.map(|schedule| format!("{schedule:?} (real databases)")));
    let scripts = SCRIPTS.into_iter().filter(|script| !script.ends_well());
    alarms.extend(scripts.map(|script| format!("{script:?} (script)")));
    alarms
}

fn tenths(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10.0).round() / 10.0
}

impl Report {
    /// Whether every bug was found by what was meant to find it, and nothing else was.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.violations == 0
    }

    /// One line of JSON.
    ///
    /// # Panics
    /// Never: numbers and texts make JSON.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers and texts make JSON")
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["bug", "layer", "found by", "seeds", "seconds"]);
        for found in &self.found {
            table.add_row([
                found.bug.to_owned(),
                found.layer.to_owned(),
                found.words(),
                found.seeds.to_string(),
                found.seconds.to_string(),
            ]);
        }
        let alarms = self.false_alarms.iter().map(|alarm| format!("FALSE ALARM without any bug: {alarm}"));
        let sum =
            format!("{} bugs, {} caught; {} s (seed {})", self.bugs, self.caught, self.seconds, self.seed);
        [table.to_string()].into_iter().chain(alarms).chain([sum]).collect::<Vec<_>>().join("\n")
    }
}

impl Found {
    /// How it was found, for people.
    #[must_use]
    pub fn words(&self) -> String {
        match (&self.by, self.as_meant) {
            (Some(by), true) => by.clone(),
            (Some(by), false) => format!("{by}, WHICH WAS NOT MEANT"),
            (None, _) => "NOBODY".to_owned(),
        }
    }

    /// One line, as it comes.
    #[must_use]
    pub fn line(&self) -> String {
        format!("{}: {} ({}, {} seeds, {} s)", self.bug, self.words(), self.layer, self.seeds, self.seconds)
    }
}
