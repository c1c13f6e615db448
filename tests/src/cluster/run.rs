//! A SIGKILL or a SIGSTOP of a random coordinator every few seconds.

use std::path::Path;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::process::Signal;

use super::report::{Report, Takeover};
use super::world::World;
use crate::harness::clock::{self, wait_for};
use crate::harness::roles::Roles;
use crate::harness::{Failed, Result};

/// The lease of every node.
pub const LEASE: Duration = Duration::from_secs(3);
/// How long a takeover may take before the run is given up: far beyond what is promised.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two faults.
const PAUSE_MS: std::ops::Range<u64> = 1000..4000;

/// What is done to a coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL; it is started again after the others have taken over.
    Kill,
    /// SIGSTOP; it goes on after the others have taken over.
    Stop,
}

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Coordinators.
    pub nodes: usize,
    /// For how long; at least `faults` are tried.
    pub time: Duration,
    /// At least so many.
    pub faults: usize,
    /// Chooses them.
    pub seed: u64,
}

/// Does it. `tell` is told of each takeover.
///
/// # Errors
/// If something of the harness failed, or did not come to an end.
pub fn run(roles: &Roles, directory: &Path, plan: Plan, mut tell: impl FnMut(&Takeover)) -> Result<Report> {
    let mut world = World::start(roles, directory, plan.nodes, LEASE)?;
    let mut rng = StdRng::seed_from_u64(plan.seed);
    let started = clock::now();
    // Something has to be under way before anything is broken.
    wait_for("the first transfers", PATIENCE, || Ok((world.ledgers()?.len() > 20).then_some(())))
        .map_err(|error| Failed::new(format!("{error}\n{}", world.logs())))?;
    let mut takeovers = Vec::new();
    while started.elapsed() < plan.time || takeovers.len() < plan.faults {
        std::thread::sleep(Duration::from_millis(rng.random_range(PAUSE_MS)));
        let node = rng.random_range(0..plan.nodes);
        let fault = if rng.random_bool(0.5) { Fault::Kill } else { Fault::Stop };
        let takeover = strike(&mut world, node, fault)
            .map_err(|error| Failed::new(format!("{fault:?} of node {node}: {error}\n{}", world.logs())))?;
        tell(&takeover);
        takeovers.push(takeover);
    }
    world.settle(PATIENCE)?;
    let all: Vec<usize> = (0..plan.nodes).collect();
    let seen = world.look(&all)?;
    let mut violations = seen.contradictions();
    let heuristic = world.heuristic()?;
    if heuristic != 0 {
        violations.push(format!("{heuristic} transactions have a heuristic outcome on record"));
    }
    Ok(Report::new(plan, &seen.ledger, takeovers, violations))
}

/// Breaks one, waits until the others have finished what it left, and mends it.
fn strike(world: &mut World, node: usize, fault: Fault) -> Result<Takeover> {
    let epoch = world.epoch_of(node)?;
    match fault {
        Fault::Kill => {
            world.coordinators[node].process().kill()?;
        }
        Fault::Stop => world.coordinators[node].process().signal(Signal::STOP)?,
    }
    let begun = clock::now();
    let (sealed, _) = wait_for("its epoch to be sealed", PATIENCE, || {
        Ok(world.left_by(epoch)?.sealed.then(|| begun.elapsed()))
    })?;
    let (settled, _) = wait_for("what it left to be finished", PATIENCE, || {
        Ok((world.left_by(epoch)?.prepared == 0).then(|| begun.elapsed()))
    })?;
    match fault {
        Fault::Kill => {
            world.coordinators[node].start_again(None)?;
            world.coordinators[node].expect_it_serves()?;
        }
        Fault::Stop => world.coordinators[node].process().signal(Signal::CONT)?,
    }
    wait_for("it to take a new epoch", PATIENCE, || Ok((world.epoch_of(node)? > epoch).then_some(())))?;
    Ok(Takeover { node, fault, sealed, settled })
}
