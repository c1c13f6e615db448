//! One cell, from an empty directory to its verdict.

use std::path::Path;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::matrix::{Cell, Place};
use super::promise::{Fault, GivenUp, Step, Way};
use super::stage::{Server, Stage};
use crate::harness::books::{Books, Database};
use crate::harness::client::{Plan, What};
use crate::harness::clock::wait_for;
use crate::harness::crash_points::Fuse;
use crate::harness::process::Reaped;
use crate::harness::proxy::{At, Proxy, Strike, Struck, Then};
use crate::harness::{Failed, Result, clock};
use crate::trial::checker::Seen;
use crate::trial::verdict::Verdict;
use crate::trial::world::{BANKS, Doomed, Who, World};

/// How long a place may take to be reached.
const TO_STRIKE: Duration = Duration::from_secs(60);
/// Passes among which the seed chooses.
const PASSES: std::ops::RangeInclusive<u32> = 1..=3;
/// Transactions in a cell without a fault.
const CLEAN_TRANSACTIONS: usize = 3;

/// The bank under test.
const TESTED: Who = Who::Bank(0);
/// What the names of its branches begin with.
const ITS_BRANCHES: &str = "bank-a.";

/// Tries these cells; `done` hears of each as it ends, with the number of those that have. Verdicts in the order of the cells.
///
/// # Errors
/// If there is no place to try them in.
pub fn run_all(
    stage: &Stage,
    cells: &[Cell],
    seed: u64,
    done: impl Fn(usize, &Verdict) + Sync,
) -> Result<Vec<Verdict>> {
    let order: Vec<usize> = (0..cells.len()).collect();
    let try_in = |cell: &Cell, directory: &Path| run(stage, *cell, directory, seed);
    crate::trial::run::run("resources", cells, &order, try_in, done)
}

/// Tries a cell. `seed` chooses at which pass the fault strikes. What the harness itself fails at is a violation too: the cell was
/// not tried.
fn run(stage: &Stage, cell: Cell, directory: &Path, seed: u64) -> Verdict {
    let name = cell.name();
    let mut verdict = Verdict::of(name.clone(), format!("resources --only \"{name}\" --seed {seed}"));
    let begun = clock::now();
    let tried = stage.server(cell.database).and_then(|mut server| {
        let attempt = Attempt::new(cell, directory, seed);
        let tried = attempt.run(stage, server.as_mut(), &mut verdict);
        // One that a cell has failed over is not trusted with another.
        if let (Some(server), true) = (server, tried.is_ok()) {
            stage.give_back(server);
        }
        tried
    });
    verdict.violations.extend(tried.err().map(|failed| failed.to_string()));
    verdict.took = begun.elapsed();
    verdict
}

/// A cell, and what the seed has chosen for it.
struct Attempt<'a> {
    cell: Cell,
    directory: &'a Path,
    nth: u32,
}

impl<'a> Attempt<'a> {
    fn new(cell: Cell, directory: &'a Path, seed: u64) -> Self {
        // Each cell has a run of its own of choices, whichever cells are tried beside it.
        let own =
            cell.name().bytes().fold(seed, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)));
        Self { cell, directory, nth: StdRng::seed_from_u64(own).random_range(PASSES) }
    }

    fn run(&self, stage: &Stage, server: Option<&mut Server>, verdict: &mut Verdict) -> Result<()> {
        let fuse = self.fuse();
        let doomed = fuse.as_ref().map(|fuse| (TESTED, fuse));
        let mut world = World::start(&stage.roles, self.directory, &[], None, None)?;
        let proxy = server.as_ref().map(|server| server.proxy()).transpose()?;
        let tried = self
            .start_banks(stage, server.as_deref().zip(proxy.as_ref()), &mut world, doomed)
            .and_then(|()| self.try_in(&mut world, server, proxy.as_ref(), fuse.as_ref(), verdict));
        verdict.conclude(tried, world)
    }

    /// The bank under test, behind its proxy, and another one where the way needs one.
    fn start_banks(
        &self,
        stage: &Stage,
        server: Option<(&Server, &Proxy)>,
        world: &mut World,
        doomed: Doomed<'_>,
    ) -> Result<()> {
        let [tested, other] = BANKS;
        let file = |bank| self.directory.join(format!("{bank}.db"));
        let books = match server {
            Some((server, proxy)) => {
                world.block_on(server.books(tested, &stage.fresh_name()))?.through(proxy.port())
            }
            None if self.cell.database == Database::Own => {
                world.block_on(Books::in_ledger(tested, self.directory.join("ledger")))?
            }
            None => world.block_on(Books::in_sqlite(tested, file(tested)))?,
        };
        world.block_on(books.plant_foreign())?;
        world.start_bank(books, doomed)?;
        if self.cell.way != Way::OnePhase {
            let books = world.block_on(Books::in_sqlite(other, file(other)))?;
            world.start_bank(books, None)?;
        }
        Ok(())
    }

    fn try_in(
        &self,
        world: &mut World,
        server: Option<&mut Server>,
        proxy: Option<&Proxy>,
        fuse: Option<&Fuse>,
        verdict: &mut Verdict,
    ) -> Result<()> {
        let blow = match (self.cell.place, proxy, server, fuse) {
            (Place::Nowhere, ..) => {
                world.start_client(&[self.plan()], false, None)?;
                self.wait_for_transactions(world)?;
                None
            }
            (Place::Step(step, at), Some(proxy), Some(server), _) => {
                let strikes = self.strikes(step, at);
                proxy.arm(&strikes);
                world.start_client(&[self.plan()], false, None)?;
                let struck = self.wait_for_strikes(world, proxy, strikes.len())?;
                self.strike_down(world, server)?;
                verdict.faults += u32::try_from(strikes.len()).expect("one strike or two");
                struck.into_iter().last()
            }
            (Place::Point(_), _, _, Some(fuse)) => {
                world.start_client(&[self.plan()], false, None)?;
                let how = world.wait_for_death(TESTED, &fuse.point, TO_STRIKE)?;
                let when = fuse.fired_at().filter(|_| how == Reaped::KILLED);
                let when = when.ok_or_else(|| Failed::new(format!("it died at another point: {how:?}")))?;
                verdict.faults += 1;
                world.restart(TESTED, None)?;
                Some(Struck { when, text: String::new(), answers: Vec::new() })
            }
            (Place::Step(..) | Place::Point(_), ..) => return Err(Failed::new("a cell without its means")),
        };
        world.stop_the_client();
        let healthy = if self.cell.way == Way::ReadOnly { self.plan() } else { Plan::Commit };
        verdict.in_doubt = world.come_to_rest(healthy)?;
        let mut seen = world.look(&mut verdict.violations)?;
        if self.cell.way == Way::ReadOnly {
            let reader = seen.pages.remove(0);
            let written = reader.transfers.keys();
            let complaint = |gtrid| format!("{gtrid} was only to read in {}, and has written", BANKS[0]);
            verdict.violations.extend(written.map(complaint));
        }
        verdict.transactions = seen.asked.len();
        verdict.violations.extend(seen.contradictions());
        verdict.violations.extend(self.unexpected(&seen, blow.as_ref()));
        if self.cell.way == Way::EarlyVote {
            verdict.violations.extend(self.not_early(&seen, blow.as_ref()));
        }
        world.stop_the_coordinator()
    }

    /// How transactions are meant to end.
    const fn plan(&self) -> Plan {
        match (self.cell.way, self.cell.place) {
            (Way::Commit | Way::OnePhase, _) => Plan::Commit,
            (Way::ReadOnly, _) => Plan::OnlyReadByFirst,
            (Way::EarlyVote, _) => Plan::EarlyVote,
            (Way::Rollback, Place::Step(step, _)) => match step.given_up {
                GivenUp::ByTheOther => Plan::RefusedBySecond,
                GivenUp::ByTheClient => Plan::Rollback,
            },
            (Way::Rollback, Place::Nowhere | Place::Point(_)) => Plan::RefusedBySecond,
        }
    }

    /// What the bank under test starts with.
    fn fuse(&self) -> Option<Fuse> {
        let Place::Point(death) = self.cell.place else { return None };
        let marker = self.directory.join("crash");
        Some(Fuse { point: death.point.to_owned(), nth: self.nth, marker })
    }

    fn strikes(&self, step: &'static Step, at: At) -> Vec<Strike> {
        let then = match self.cell.fault {
            Fault::Cut | Fault::Clean => Then::Cut,
            Fault::ParticipantKilled | Fault::ServerKilled => Then::Freeze,
        };
        let before = step.behind.map(|lost| {
            let at = if lost.answers.is_some() { At::Answer(0) } else { At::Request };
            let answers = lost.answers.unwrap_or_default();
            Strike { statement: lost.text, same: None, nth: self.nth, answers, at, then: Then::Cut }
        });
        let (same, nth) = match before {
            Some(_) => (step.names_its_branch.then_some(ITS_BRANCHES), 1),
            None => (None, self.nth),
        };
        before
            .into_iter()
            .chain([Strike { statement: step.text, same, nth, answers: step.answers, at, then }])
            .collect()
    }

    fn wait_for_strikes(&self, world: &mut World, proxy: &Proxy, all: usize) -> Result<Vec<Struck>> {
        let what = format!("the strike of {}", self.cell.name());
        let waited = wait_for(&what, TO_STRIKE, || {
            world.expect_all_alive()?;
            let struck = proxy.struck();
            Ok((struck.len() == all).then_some(struck))
        });
        let (struck, _) = waited.map_err(|error| {
            let missed = proxy.missed();
            let times = missed.len();
            let answers = missed.last().map(|missed| missed.answers.as_slice()).unwrap_or_default();
            Failed::new(format!(
                "{error}; struck: {:?}; {times} times the answers were other ones than promised, at last {answers:?}",
                proxy.struck()
            ))
        })?;
        Ok(struck)
    }

    /// Whoever is to die does so while the connection is frozen, and comes back.
    fn strike_down(&self, world: &mut World, server: &mut Server) -> Result<()> {
        match self.cell.fault {
            Fault::Clean | Fault::Cut => Ok(()),
            Fault::ServerKilled => server.kill_and_restart(),
            Fault::ParticipantKilled => match world.process(TESTED)?.kill()? {
                Reaped::KILLED => world.restart(TESTED, None),
                how @ (Reaped::Exit(_) | Reaped::Signal(_)) => {
                    Err(Failed::new(format!("the bank was to be killed, and had ended: {how:?}")))
                }
            },
        }
    }

    fn wait_for_transactions(&self, world: &mut World) -> Result<()> {
        wait_for("transactions to end", TO_STRIKE, || {
            world.expect_all_alive()?;
            let told = world.told()?;
            let ended = told.iter().filter(|entry| matches!(entry.what, What::Told { .. })).count();
            Ok((ended >= CLEAN_TRANSACTIONS).then_some(()))
        })?;
        Ok(())
    }

    /// Votes that came only because somebody had asked for them.
    fn not_early(&self, seen: &Seen, blow: Option<&Struck>) -> Vec<String> {
        let mut wrong = seen.committed_without_early_votes();
        if let Some(struck) = blow.filter(|_| self.cell.is_unasked())
            && let Some(gtrid) = seen.named_in(&struck.text, struck.when)
            && seen.was_ready_at(gtrid, struck.when)
        {
            wrong.push(format!(
                "{gtrid} was struck at its vote, and its client had asked for the commit before"
            ));
        }
        wrong
    }

    fn unexpected(&self, seen: &Seen, blow: Option<&Struck>) -> Vec<String> {
        match blow {
            // Without a fault whatever is meant to commit does (AC4).
            None => seen.not_as_planned(),
            // A rollback may go on when its client has been told, and whoever is struck then, nothing of it is to commit.
            Some(_) if self.cell.way == Way::Rollback => seen.committed_against_plan(),
            Some(struck) => seen.unexpected(seen.named_in(&struck.text, struck.when), self.cell.expected()),
        }
    }
}
