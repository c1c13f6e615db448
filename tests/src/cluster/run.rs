//! A SIGKILL or a SIGSTOP of a random coordinator every few seconds; then crashes of the log's server; then failovers to its standby.

use std::fmt::Display;
use std::iter::repeat_n;
use std::path::Path;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::process::Signal;

use super::report::{Outage, Report, Takeover};
use super::world::{Setup, World};
use crate::harness::books::Database;
use crate::harness::client::{Told, What};
use crate::harness::clock::{self, wait_for};
use crate::harness::roles::Roles;
use crate::harness::{Failed, Result};

/// The lease of every node.
pub const LEASE: Duration = Duration::from_secs(3);
/// How long a takeover may take before the run is given up: far beyond what is promised.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Between two faults.
const PAUSE_MS: std::ops::Range<u64> = 1000..4000;
/// How long a log's server that crashed stays away: sometimes longer than a lease.
const DOWN_MS: std::ops::Range<u64> = 0..5000;

/// What is done to a coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL; it is started again after the others have taken over.
    Kill,
    /// SIGSTOP; it goes on after the others have taken over.
    Stop,
}

/// What is done to the log's server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFault {
    /// SIGKILL; it is started again where it was.
    Crash,
    /// SIGKILL; its synchronous standby takes its place.
    Failover,
}

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Coordinators.
    pub nodes: usize,
    /// For how long; at least `faults` are tried.
    pub time: Duration,
    /// What the banks keep their accounts in.
    pub banks: Database,
    /// At least so many.
    pub faults: usize,
    /// After that, crashes of the log's server.
    pub log_crashes: usize,
    /// After that, failovers to its synchronous standby, which it has only for these.
    pub failovers: usize,
    /// Chooses them.
    pub seed: u64,
}

/// Does it. `tell` is told of each fault and what it cost.
///
/// # Errors
/// If something of the harness failed, or did not come to an end.
pub fn run(
    roles: &Roles,
    directory: &Path,
    plan: Plan,
    mut tell: impl FnMut(&dyn Display),
) -> Result<Report> {
    // Of the last one, everybody has to be told.
    let named = Some(plan.nodes - 1);
    let setup = Setup { nodes: plan.nodes, named, lease: LEASE, banks: plan.banks };
    let mut world = World::start(roles, directory, setup)?;
    let mut rng = StdRng::seed_from_u64(plan.seed);
    let started = clock::now();
    // Something has to be under way before anything is broken.
    wait_for("the first transfers", PATIENCE, || Ok((world.ledgers()?.len() > 20).then_some(())))
        .map_err(|error| Failed::new(format!("{error}\n{}", world.logs())))?;
    let (mut takeovers, mut outages) = (Vec::new(), Vec::new());
    while started.elapsed() < plan.time || takeovers.len() < plan.faults {
        pause(&mut rng);
        let node = rng.random_range(0..plan.nodes);
        let fault = if rng.random_bool(0.5) { Fault::Kill } else { Fault::Stop };
        let takeover = strike(&mut world, plan, node, fault)
            .map_err(|error| Failed::new(format!("{fault:?} of node {node}: {error}\n{}", world.logs())))?;
        tell(&takeover);
        takeovers.push(takeover);
    }
    if plan.failovers > 0 {
        world.start_standby()?;
    }
    let crashes = repeat_n(LogFault::Crash, plan.log_crashes);
    for fault in crashes.chain(repeat_n(LogFault::Failover, plan.failovers)) {
        pause(&mut rng);
        let outage = strike_log(&mut world, fault, &mut rng)
            .map_err(|error| Failed::new(format!("{fault:?} of the log: {error}\n{}", world.logs())))?;
        tell(&outage);
        outages.push(outage);
    }
    world.settle(PATIENCE)?;
    let all: Vec<usize> = (0..plan.nodes).collect();
    let seen = world.look(&all)?;
    let mut violations = seen.contradictions();
    let heuristic = world.heuristic()?;
    if heuristic != 0 {
        violations.push(format!("{heuristic} transactions have a heuristic outcome on record"));
    }
    Ok(Report::new(plan, &seen.ledger, &takeovers, &outages, violations))
}

fn pause(rng: &mut StdRng) {
    std::thread::sleep(Duration::from_millis(rng.random_range(PAUSE_MS)));
}

/// Breaks one, waits until the others have finished what it left, and mends it.
fn strike(world: &mut World, plan: Plan, node: usize, fault: Fault) -> Result<Takeover> {
    let epoch = world.epoch_of(node)?;
    match fault {
        Fault::Kill => {
            world.coordinators[node].process().kill()?;
        }
        Fault::Stop => world.coordinators[node].process().stop()?,
    }
    let begun = clock::now();
    let (sealed, _) = wait_for("its epoch to be sealed", PATIENCE, || {
        Ok(world.left_by(epoch)?.sealed.then(|| begun.elapsed()))
    })?;
    let before = committed(world)?;
    let (settled, _) = wait_for("what it left to be finished", PATIENCE, || {
        // As long as something is prepared in a SQLite file, nobody else writes to it.
        let free = plan.banks != Database::Sqlite || committed(world)? > before;
        Ok((free && world.left_by(epoch)?.prepared == 0).then(|| begun.elapsed()))
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

/// Breaks the log's server, mends it, and waits until clients commit again.
fn strike_log(world: &mut World, fault: LogFault, rng: &mut StdRng) -> Result<Outage> {
    let begun = clock::now();
    match fault {
        LogFault::Crash => world.crash_the_log(Duration::from_millis(rng.random_range(DOWN_MS)))?,
        LogFault::Failover => world.fail_over()?,
    }
    let back = begun.elapsed();
    let before = committed(world)?;
    wait_for("clients to commit again", PATIENCE, || Ok((committed(world)? > before).then_some(())))?;
    let outage = Outage { fault, back, committing: begun.elapsed() };
    match fault {
        LogFault::Crash => {}
        LogFault::Failover => world.start_standby()?,
    }
    Ok(outage)
}

fn committed(world: &World) -> Result<usize> {
    let is = |what: &What| matches!(what, What::Told { told: Told::Committed, .. });
    Ok(world.ledgers()?.iter().filter(|entry| is(&entry.what)).count())
}
