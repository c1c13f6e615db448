//! One cell, from an empty directory to its verdict.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::checker::{Expected, Found, Seen, is_expected};
use super::matrix::Cell;
use super::points::{Moment, Needs, Reach, Way, first_crash};
use super::world::{Options, Stage, World};
use crate::harness::client::Plan;
use crate::harness::crash_points::Fuse;
use crate::harness::process::Reaped;
use crate::harness::{Failed, Result};

/// How long a point may take to be reached. The slowest needs a log of megabytes, or rows that are old enough.
const TO_FIRE: Duration = Duration::from_secs(60);
/// How long anything may be in doubt after the restart: a deadline, a listing, and a database that recovers.
pub const TO_SETTLE: Duration = Duration::from_secs(30);
/// How long a healthy transaction may take to be committed again.
const TO_HEAL: Duration = Duration::from_secs(15);
/// The passes among which the seed chooses.
const PASSES: std::ops::RangeInclusive<u32> = 1..=3;

/// Where the coordinator is slow, in one of so many cells: longer than it takes until a bank lists what it has prepared.
const SLOW_POINT: &str = "log-before-force";
const SLOW_FOR: Duration = Duration::from_millis(1200);
const ONE_OF: u32 = 8;

/// What came of a cell.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The cell.
    pub cell: String,
    /// How many faults fired: reaped with signal 9, with a marker.
    pub faults: u32,
    /// How many transactions were begun.
    pub transactions: usize,
    /// How long something was in doubt after the restart.
    pub in_doubt: Duration,
    /// What was wrong.
    pub violations: Vec<String>,
    /// The ends of the logs, if something was wrong.
    pub logs: String,
}

/// Tries a cell. `number` tells the cells of a run apart; `seed` chooses whatever the cell leaves open. What the harness itself
/// fails at is a violation too: the cell was not tried.
#[must_use]
pub fn run(stage: &Stage, cell: Cell, directory: &Path, number: usize, seed: u64) -> Verdict {
    let mut verdict = Verdict {
        cell: cell.name(),
        faults: 0,
        transactions: 0,
        in_doubt: Duration::ZERO,
        violations: Vec::new(),
        logs: String::new(),
    };
    let mut choices = Choices::new(cell, seed);
    let first = choices.first_fuse(directory);
    let slow_at = choices.slow_log.then_some((SLOW_POINT, SLOW_FOR));
    let options = Options { victim_bank: choices.victim_bank, slow_at };
    let started = World::start(stage, cell, directory, number, options, &first);
    let tried = started.and_then(|mut world| {
        let tried = try_cell(&mut world, cell, &choices, &first, directory, &mut verdict);
        if let Err(failed) = tried {
            verdict.violations.push(failed.to_string());
        }
        if !verdict.violations.is_empty() {
            verdict.logs = world.logs();
        }
        world.remove()
    });
    if let Err(failed) = tried {
        verdict.violations.push(failed.to_string());
    }
    verdict
}

/// What the seed decides.
struct Choices {
    cell: Cell,
    victim_bank: usize,
    plans: Vec<Plan>,
    nth: u32,
    /// Whether all other processes die with the victim.
    everyone: bool,
    /// Whether a decision takes long on its way to the log, so that a bank lists what it has prepared before there is one.
    slow_log: bool,
}

impl Choices {
    fn new(cell: Cell, seed: u64) -> Self {
        // Each cell has a run of its own of choices, whichever cells are tried beside it.
        let own =
            cell.name().bytes().fold(seed, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let mut random = StdRng::seed_from_u64(own);
        let victim_bank = random.random_range(0..cell.way.banks());
        let mut plans = match cell.way {
            Way::Commit | Way::OnePhaseCommit => vec![Plan::Commit],
            // What is to be recovered is a branch that was prepared: it is the other one that refuses.
            Way::Rollback if cell.point.moment != Moment::Work => match victim_bank {
                0 => vec![Plan::RefusedBySecond],
                _second => vec![Plan::RefusedByFirst],
            },
            Way::Rollback => vec![Plan::Rollback, Plan::RefusedByFirst, Plan::RefusedBySecond],
            Way::OnePhaseRollback => vec![Plan::Rollback, Plan::RefusedByFirst],
        };
        let turn = random.random_range(0..plans.len());
        plans.rotate_left(turn);
        let nth = match (cell.point.reach(cell.way, cell.database), cell.point.moment) {
            (Reach::Yes(_), Moment::Work) => random.random_range(PASSES),
            (Reach::Yes(_), Moment::Recovery | Moment::RecoveryFrom(_))
            | (Reach::First(_) | Reach::No(_), _) => 1,
        };
        // At the point itself there is a crash to be had, and the others below have work enough.
        let may_be_slow = cell.point.needs == Needs::Nothing && cell.point.name != SLOW_POINT;
        let slow_log = may_be_slow && random.random_ratio(1, ONE_OF);
        Self { cell, victim_bank, plans, nth, everyone: random.random_bool(0.5), slow_log }
    }

    /// What the victim starts with.
    fn first_fuse(&mut self, directory: &Path) -> Fuse {
        let (point, nth) = match self.cell.point.moment {
            Moment::Work => (self.cell.point.name, self.nth),
            Moment::Recovery => (first_crash(self.cell.point.victim, self.cell.way), 1),
            Moment::RecoveryFrom(points) => (points[self.cell.way as usize], 1),
        };
        Fuse { point: point.to_owned(), nth, marker: directory.join("first-crash") }
    }

    /// What it starts with after the first crash.
    fn second_fuse(&self, directory: &Path) -> Option<Fuse> {
        let point = self.cell.point.name.to_owned();
        let fuse = Fuse { point, nth: 1, marker: directory.join("second-crash") };
        (self.cell.point.moment != Moment::Work).then_some(fuse)
    }
}

fn try_cell(
    world: &mut World<'_>,
    cell: Cell,
    choices: &Choices,
    first: &Fuse,
    directory: &Path,
    verdict: &mut Verdict,
) -> Result<()> {
    world.start_client(&choices.plans, first)?;
    let struck_at = blow(world, first, verdict)?;
    if let Some(second) = choices.second_fuse(directory) {
        if cell.point.needs == Needs::Meddling {
            world.meddle()?;
        }
        world.restart_the_victim(Some(&second))?;
        blow(world, &second, verdict)?;
    }
    world.stop_the_client();
    world.restart_the_victim(None)?;
    if choices.everyone {
        world.kill_and_restart_the_others()?;
    }
    world.coordinator.expect_it_serves()?;
    verdict.in_doubt = world.settle(TO_SETTLE)?;
    world.prove_health(TO_HEAL)?;
    world.settle(TO_SETTLE)?;
    world.wait_for_ends(TO_SETTLE)?;
    let mut seen = look(world, cell, verdict)?;
    if cell.point.needs == Needs::Meddling {
        seen.torn_by_hand = seen.under_way_at(struck_at).map(str::to_owned);
    }
    verdict.transactions = seen.asked.len();
    verdict.violations.extend(seen.contradictions());
    verdict.violations.extend(unexpected(&seen, cell, struck_at));
    let how = world.coordinator.stop()?;
    if how != Reaped::Exit(0) {
        verdict.violations.push(format!("told to stop, the coordinator ended with {how:?}"));
    }
    Ok(())
}

/// Waits for the crash, and for the proof that it was this one. When it was.
fn blow(world: &mut World<'_>, fuse: &Fuse, verdict: &mut Verdict) -> Result<u64> {
    let how = world.wait_for_the_victim(TO_FIRE)?;
    if how != Reaped::KILLED {
        return Err(Failed::new(format!(
            "the process was to be killed at {}, and ended with {how:?}",
            fuse.point
        )));
    }
    let at =
        fuse.fired_at().ok_or_else(|| Failed::new(format!("it was killed, but not at {}", fuse.point)))?;
    verdict.faults += 1;
    Ok(at)
}

/// Looks at everything from outside.
fn look(world: &mut World<'_>, cell: Cell, verdict: &mut Verdict) -> Result<Seen> {
    let ledger = world.told()?;
    let mut asked = BTreeMap::new();
    for entry in &ledger {
        if !asked.contains_key(&entry.gtrid) {
            asked.insert(entry.gtrid.clone(), world.ask(&entry.gtrid)?);
        }
    }
    let mut pages = Vec::new();
    for bank in &world.banks {
        let books = &bank.books;
        pages.push(world.block_on(books.read())?);
        for name in world.block_on(books.prepared())? {
            verdict.violations.push(format!("{} has still prepared: {name}", books.bank));
        }
        for name in world.block_on(books.foreign_missing())? {
            verdict.violations.push(format!("{} touched what is not ours: {name} is gone", books.bank));
        }
    }
    Ok(Seen { pages, ledger, asked, forgets: cell.point.needs == Needs::ShortRetention, torn_by_hand: None })
}

/// Where the place of the crash determines what must come of the transaction that was under way.
fn unexpected(seen: &Seen, cell: Cell, struck_at: u64) -> Vec<String> {
    let expected = match cell.point.reach(cell.way, cell.database) {
        Reach::Yes(expected) | Reach::First(expected) => expected,
        Reach::No(_) => unreachable!("there is no such cell"),
    };
    if !cell.way.commits() {
        return committed_against_plan(seen);
    }
    match (seen.under_way_at(struck_at), expected) {
        (None, Expected::Either) => Vec::new(),
        (None, Expected::Committed | Expected::RolledBack | Expected::Heuristic) => {
            vec!["no transaction was under way at the crash, so it shows nothing".to_owned()]
        }
        (Some(gtrid), expected) => {
            let found = seen.found(gtrid);
            let wrong =
                format!("{gtrid} was under way at the crash and must be {expected:?}, and is {found:?}");
            if is_expected(expected, found) { Vec::new() } else { vec![wrong] }
        }
    }
}

/// Transactions that were to be rolled back, and were not.
fn committed_against_plan(seen: &Seen) -> Vec<String> {
    use crate::harness::client::What;
    let planned =
        seen.ledger.iter().filter(|entry| matches!(entry.what, What::Begun { plan } if plan != Plan::Commit));
    planned
        .filter(|entry| seen.found(&entry.gtrid) != Found::RolledBack)
        .map(|entry| format!("{} was to be rolled back, and is {:?}", entry.gtrid, seen.found(&entry.gtrid)))
        .collect()
}
