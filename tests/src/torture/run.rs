//! What is done to whom, and when it is mended.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::process::Signal;

use super::link::Condition;
use super::report::{Faults, InDoubt, Report};
use super::watch::Watch;
use super::world::{CLIENTS, NODES, Server, World};
use crate::harness::clock::{self, wait_for};
use crate::harness::disk::FailingForces;
use crate::harness::roles::Roles;
use crate::harness::{Failed, Result};

/// How long the first transfers may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long healing may take. A branch that is prepared waits for the longest of: a lease, a listing, a dial again.
const TO_HEAL: Duration = Duration::from_secs(180);
/// Between two faults.
const PAUSE_MS: std::ops::Range<u64> = 500..2_500;
/// How long somebody is down, stopped or out of reach: sometimes longer than a lease.
const AWAY_MS: std::ops::Range<u64> = 100..4_000;
/// How slow a slow link is.
const SLOW_MS: std::ops::Range<u64> = 20..300;

/// What is done.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// SIGKILL to a coordinator.
    KillCoordinator(usize),
    /// SIGKILL to a bank's process.
    KillBank(usize),
    /// SIGKILL to a client.
    KillClient(usize),
    /// SIGKILL to a database server.
    KillServer(Server),
    /// SIGSTOP to a coordinator.
    StopCoordinator(usize),
    /// SIGSTOP to a bank's process.
    StopBank(usize),
    /// Connections of a link break, and none is made.
    Cut(usize),
    /// Nothing passes through a link.
    Silence(usize),
    /// Everything on a link is so much later.
    Slow(usize, Duration),
    /// Forced writes fail.
    FailForces(Server),
    /// Of the log's server.
    FillDisk,
}

impl Fault {
    /// Two of three kill somebody.
    fn drawn(random: &mut StdRng, links: usize) -> Self {
        let link = random.random_range(0..links);
        match random.random_range(0..26) {
            0..5 => Self::KillCoordinator(random.random_range(0..NODES)),
            5..10 => Self::KillBank(random.random_range(0..2)),
            10..12 => Self::KillClient(random.random_range(0..CLIENTS)),
            12 => Self::KillServer(Server::Log),
            13..15 => Self::KillServer(Server::Postgres),
            15..17 => Self::KillServer(Server::MariaDb),
            17 => Self::StopCoordinator(random.random_range(0..NODES)),
            18 => Self::StopBank(random.random_range(0..2)),
            19..21 => Self::Cut(link),
            21..23 => Self::Silence(link),
            23 => Self::Slow(link, Duration::from_millis(random.random_range(SLOW_MS))),
            24 => {
                Self::FailForces([Server::Log, Server::Postgres, Server::MariaDb][random.random_range(0..3)])
            }
            _ => Self::FillDisk,
        }
    }
}

/// Tortures for so long, mends everything, and looks. `tell` hears of each fault.
///
/// # Errors
/// If something of the harness failed, or does not come to rest.
pub fn run(
    roles: &Roles,
    directory: &Path,
    time: Duration,
    seed: u64,
    mut tell: impl FnMut(&str),
) -> Result<Report> {
    let mut world = World::start(roles, directory)?;
    let mut random = StdRng::seed_from_u64(seed);
    wait_for("the first transfers", PATIENCE, || Ok((world.ledgers()?.len() > 20).then_some(())))
        .map_err(|error| Failed::new(format!("{error}\n{}", world.logs())))?;
    let watch = Watch::start(world.banks.iter().map(|bank| bank.books.clone()).collect())?;
    let started = clock::now();
    let mut faults = Faults::default();
    while started.elapsed() < time {
        let fault = Fault::drawn(&mut random, world.links.len());
        let away = Duration::from_millis(random.random_range(AWAY_MS));
        tell(&format!("{fault:?} for {} ms", away.as_millis()));
        strike(&mut world, fault, away, &mut faults)
            .map_err(|error| Failed::new(format!("{fault:?}: {error}\n{}", world.logs())))?;
        world.start_whoever_is_down()?;
        sleep(Duration::from_millis(random.random_range(PAUSE_MS)));
        world.start_whoever_is_down()?;
    }
    let took = started.elapsed();
    world.open_all_links();
    let (settled, left) = world.settle(TO_HEAL)?;
    let in_doubt = InDoubt { times: watch.stop()?, left, settled };
    let violations = world.violations()?;
    Ok(Report::new(&world.ledgers()?, faults, violations, took, &in_doubt, seed))
}

/// Does it, and mends it after a while.
///
/// # Errors
/// If something of the harness failed.
pub fn strike(world: &mut World, fault: Fault, away: Duration, faults: &mut Faults) -> Result<()> {
    match fault {
        Fault::KillCoordinator(node) => {
            faults.kills.coordinators += 1;
            world.coordinators[node].process().kill()?;
            sleep(away);
            world.coordinators[node].start_again(None)?;
        }
        Fault::KillBank(bank) => {
            faults.kills.banks += 1;
            world.banks[bank].process().kill()?;
            sleep(away / 2);
            world.banks[bank].start_again(None)?;
        }
        Fault::KillClient(client) => {
            faults.kills.clients += 1;
            world.clients[client].kill()?;
            world.clients[client] = world.start_client(client)?;
        }
        Fault::KillServer(server) => {
            *faults.kills.of(server) += 1;
            world.kill_server(server)?;
            sleep(away / 2);
            world.start_server_again(server)?;
        }
        Fault::StopCoordinator(node) => {
            faults.stops += 1;
            let process = world.coordinators[node].process();
            process.stop()?;
            sleep(away);
            process.signal(Signal::CONT)?;
        }
        Fault::StopBank(bank) => {
            faults.stops += 1;
            let process = world.banks[bank].process();
            process.stop()?;
            sleep(away);
            process.signal(Signal::CONT)?;
        }
        Fault::Cut(link) => {
            faults.cuts += 1;
            make_for(world, link, Condition::Cut, away);
        }
        Fault::Silence(link) => {
            faults.cuts += 1;
            make_for(world, link, Condition::Silent, away);
        }
        Fault::Slow(link, by) => {
            faults.slowed += 1;
            make_for(world, link, Condition::Slow(by), away);
        }
        Fault::FailForces(server) => {
            faults.failed_forces += 1;
            let recoveries = world.recoveries_of(server);
            let failing = FailingForces::of(&world.processes_of(server)?)?;
            sleep(away);
            drop(failing);
            faults.crashed += u32::from(mended_since(world, server, recoveries)?);
        }
        Fault::FillDisk => {
            faults.full_disks += 1;
            let recoveries = world.recoveries_of(Server::Log);
            fill_disk_for(world, away)?;
            faults.crashed += u32::from(mended_since(world, Server::Log, recoveries)?);
        }
    }
    Ok(())
}

/// Of the log's server.
fn fill_disk_for(world: &World, time: Duration) -> Result<()> {
    let disk = world.log_server.disk().expect("the log's server has a disk of its own");
    disk.fill()?;
    sleep(time);
    disk.make_room()
}

/// Has a server come back, and says whether it has crashed since it had recovered so often.
fn mended_since(world: &mut World, server: Server, recoveries: u32) -> Result<bool> {
    world.mend(server)?;
    Ok(world.recoveries_of(server) > recoveries)
}

fn make_for(world: &World, link: usize, condition: Condition, time: Duration) {
    world.links[link].make(condition);
    sleep(time);
    world.links[link].make(Condition::Open);
}
