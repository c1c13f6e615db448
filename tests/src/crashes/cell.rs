//! One cell, from an empty directory to its verdict.

use std::path::Path;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::matrix::Cell;
use super::points::{Log, Moment, Needs, Reach, Victim, Way, first_crash};
use super::stage::Stage;
use crate::harness::client::Plan;
use crate::harness::crash_points::Fuse;
use crate::harness::process::Reaped;
use crate::harness::{Failed, Result, clock};
use crate::trial::checker::Seen;
use crate::trial::verdict::Verdict;
use crate::trial::world::{LogPlace, Who, World};

/// How long a point may take to be reached. The slowest needs a log of megabytes, or rows that are old enough.
const TO_FIRE: Duration = Duration::from_secs(60);
/// The passes among which the seed chooses.
const PASSES: std::ops::RangeInclusive<u32> = 1..=3;

const SHORT_RETENTION: &str = "--retention=1s";

/// Where the coordinator is slow, in one of so many cells: longer than it takes until a bank lists what it has prepared.
const SLOW_POINT: &str = "log-before-force";
const SLOW_FOR: Duration = Duration::from_millis(1200);
const ONE_OF: u32 = 8;

/// Tries a cell. `seed` chooses whatever the cell leaves open. What the harness itself fails at is a violation too: the cell
/// was not tried.
#[must_use]
pub fn run(stage: &Stage, cell: Cell, directory: &Path, seed: u64) -> Verdict {
    let mut verdict = Verdict::of(cell.name(), again(cell, seed));
    let begun = clock::now();
    let mut choices = Choices::new(cell, seed);
    let first = choices.first_fuse(directory);
    let tried = choices.start_world(stage, directory, &first).and_then(|mut world| {
        let tried = try_cell(&mut world, cell, &choices, &first, directory, &mut verdict);
        verdict.conclude(tried, world)
    });
    if let Err(failed) = tried {
        verdict.violations.push(failed.to_string());
    }
    verdict.took = begun.elapsed();
    verdict
}

/// The command that tries the cell again.
fn again(cell: Cell, seed: u64) -> String {
    format!("crashes --only {} --seed {seed}", cell.point.name)
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

    /// Starts the coordinator and the banks, whichever of them dies with this fuse.
    fn start_world(&self, stage: &Stage, directory: &Path, first: &Fuse) -> Result<World> {
        let short_retention = (self.cell.point.needs == Needs::ShortRetention).then_some(SHORT_RETENTION);
        let place = match self.cell.log {
            Log::Embedded => LogPlace::Embedded,
            Log::Shared => LogPlace::Shared(stage.fresh_log()?),
        };
        let slow_at = self.slow_log.then_some((SLOW_POINT, SLOW_FOR));
        let doomed = Some((self.victim(), first));
        let flags = short_retention.as_slice();
        let mut world = World::start_on(&stage.roles, directory, place, flags, slow_at, doomed)?;
        for index in 0..self.cell.way.banks() {
            let books = world.block_on(stage.books(self.cell.database, index, directory))?;
            world.start_bank(books, doomed)?;
        }
        Ok(world)
    }

    /// Who dies.
    const fn victim(&self) -> Who {
        match self.cell.point.victim {
            Victim::Coordinator => Who::Coordinator,
            Victim::Participant => Who::Bank(self.victim_bank),
            Victim::Client => Who::Client,
        }
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
        let in_recovery = (self.cell.point.moment != Moment::Work).then_some(self.cell.point.name);
        let point = self.cell.then.or(in_recovery)?.to_owned();
        Some(Fuse { point, nth: 1, marker: directory.join("second-crash") })
    }
}

fn try_cell(
    world: &mut World,
    cell: Cell,
    choices: &Choices,
    first: &Fuse,
    directory: &Path,
    verdict: &mut Verdict,
) -> Result<()> {
    let victim = choices.victim();
    world.start_client(&choices.plans, cell.point.needs == Needs::Growth, Some((victim, first)))?;
    if matches!(cell.point.needs, Needs::Operator { .. }) {
        world.coordinator.expect_it_serves()?;
        // It dies of that, so that there is no answer.
        let _no_answer = world.coordinator.run(&["drain", "--reason", "to see what a crash leaves of it"])?;
    }
    let struck_at = blow(world, victim, first, verdict)?;
    if let Some(second) = choices.second_fuse(directory) {
        if cell.point.needs == Needs::Meddling {
            world.block_on(world.banks[choices.victim_bank].books.meddle())?;
        }
        world.restart(victim, Some(&second))?;
        blow(world, victim, &second, verdict)?;
    }
    world.stop_the_client();
    world.restart(victim, None)?;
    if choices.everyone {
        world.kill_and_restart_all_but(victim)?;
    }
    verdict.in_doubt = world.come_to_rest(Plan::Commit)?;
    let mut seen = world.look(&mut verdict.violations)?;
    seen.forgets = cell.point.needs == Needs::ShortRetention;
    if cell.point.needs == Needs::Meddling {
        seen.torn_by_hand = seen.under_way_at(struck_at).map(str::to_owned);
    }
    if let Needs::Operator { on_record } = cell.point.needs {
        verdict.violations.extend(misrecorded(world, on_record)?);
    }
    verdict.transactions = seen.asked.len();
    verdict.violations.extend(seen.contradictions());
    verdict.violations.extend(unexpected(&seen, cell, struck_at));
    world.stop_the_coordinator()
}

/// Whether what an operator did is on record exactly if it came so far.
fn misrecorded(world: &World, on_record: bool) -> Result<Option<String>> {
    let audit = world.coordinator.ask(&["audit", "ls"])?;
    let found = audit["entries"].as_array().map_or(0, Vec::len);
    let wrong = found != usize::from(on_record);
    Ok(wrong
        .then(|| format!("{found} actions of operators are on record, and on record should be: {on_record}")))
}

/// Waits for the crash, and for the proof that it was this one. When it was.
fn blow(world: &mut World, victim: Who, fuse: &Fuse, verdict: &mut Verdict) -> Result<u64> {
    let how = world.wait_for_death(victim, &fuse.point, TO_FIRE)?;
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

/// Where the place of the crash determines what must come of the transaction that was under way.
fn unexpected(seen: &Seen, cell: Cell, struck_at: u64) -> Vec<String> {
    let expected = match cell.point.reach(cell.way, cell.database) {
        Reach::Yes(expected) | Reach::First(expected) => expected,
        Reach::No(_) => unreachable!("there is no such cell"),
    };
    if !cell.way.commits() {
        return seen.committed_against_plan();
    }
    seen.unexpected(seen.under_way_at(struck_at), expected)
}
