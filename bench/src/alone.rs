//! The coordinator alone: participants that vote at once, in a process of their own, and nothing else on the machine to wait for but the
//! coordinator's log.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_tests::harness::clock::now;
use lockstep_tests::harness::coordinator::Coordinator;
use lockstep_tests::harness::process::Process;
use lockstep_tests::harness::procfs::Memory;
use lockstep_tests::harness::roles::Roles;
use lockstep_tests::harness::{Failed, Result};
use serde::Serialize;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::driver::{self, BEGIN, DONE, END, READY, Seen};
use crate::meter::{self, Counted, count};
use crate::stage::wait_for_line;
use crate::voter::GONE;
use crate::wal;

const WARM_UP: Duration = Duration::from_millis(500);
/// Transactions that are held at the same time, to see what they weigh and whether others are slower for it.
const HELD: [usize; 3] = [1_000, 10_000, 100_000];
/// How many of them one participant takes part in: as many branches as it may have open.
const HELD_BY_ONE: usize = 1_000;
/// Room for them and for others.
const MOST_IN_FLIGHT: &str = "--max-in-flight=110000";
/// The most branches of a transaction that are tried.
const MOST_BRANCHES: usize = 64;
/// Transactions after which the coordinator's memory is looked at again.
const MANY: u64 = 1_000_000;
/// The length of each run until then.
const LONG_RUN: Duration = Duration::from_secs(15);

/// One run.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// How many asked at the same time.
    pub clients: usize,
    /// Branches of each transaction.
    pub branches: usize,
    /// Milliseconds that each took to prepare, and to commit.
    pub takes: u64,
    /// What the clients have seen.
    pub seen: Seen,
    /// Of the coordinator, for each transaction.
    pub counted: Counted,
    /// Its microseconds of processor time for each transaction.
    pub processor: f64,
    /// The same of the process that the participants and the clients are in.
    pub others: f64,
}

/// All of it.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// The disk before and after: the median of a forced write, in microseconds.
    pub disk: (f64, f64),
    /// By clients and branches.
    pub runs: Vec<Run>,
    /// By branches, at one client: for nothing, and when each takes a while.
    pub growth: Vec<Run>,
    /// By transactions of two branches that are held open.
    pub in_flight: Vec<InFlight>,
    /// Bytes that its memory has grown by while it ran a million transactions; not in a quick run.
    pub bytes_after_many: Option<f64>,
    /// Bytes that its log has grown by for each transaction with two branches, after a clean end.
    pub log_bytes: f64,
    /// What each costs a log that is in PostgreSQL, of write-ahead log without images of pages.
    pub shared_log: Vec<wal::Records>,
}

/// What transactions cost that are open and do nothing.
#[derive(Debug, Clone, Serialize)]
pub struct InFlight {
    /// How many.
    pub held: usize,
    /// Bytes of the coordinator's memory for each of them.
    pub bytes: f64,
    /// The same after they are gone, with what the others below have needed.
    pub bytes_afterwards: f64,
    /// Others with two branches, meanwhile.
    pub meanwhile: Run,
}

/// A coordinator with nothing but participants that vote at once.
pub struct Alone {
    roles: Roles,
    coordinator: Coordinator,
    directory: TempDir,
    runtime: Runtime,
}

impl Measured {
    /// Microseconds that each further branch costs the coordinator, and the participants and their client, at one client.
    #[must_use]
    pub fn further_branch(&self) -> (f64, f64) {
        let at = |branches| self.growth.iter().find(|run| run.takes == 0 && run.branches == branches);
        let Some((one, most)) = at(1).zip(at(MOST_BRANCHES)) else { return (f64::NAN, f64::NAN) };
        let further = count(MOST_BRANCHES as u64 - 1);
        ((most.processor - one.processor) / further, (most.others - one.others) / further)
    }
}

impl Alone {
    /// Starts it.
    ///
    /// # Errors
    /// If it does not start.
    pub fn set(roles: &Roles) -> Result<Self> {
        Self::set_with(roles, &[])
    }

    /// The same with further flags of the coordinator.
    ///
    /// # Errors
    /// As [`Alone::set`].
    pub fn set_with(roles: &Roles, flags: &[&str]) -> Result<Self> {
        let directory = TempDir::with_prefix("lockstep-bench-").map_err(Failed::because("no directory"))?;
        let mut coordinator = Coordinator::start(roles, directory.path(), flags, None)?;
        coordinator.expect_it_serves()?;
        Ok(Self { roles: roles.clone(), coordinator, directory, runtime: meter::runtime()? })
    }

    /// Where everything is written.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where its log is.
    pub fn log(&self) -> PathBuf {
        self.coordinator.data_directory()
    }

    /// Ends it cleanly.
    ///
    /// # Errors
    /// If it does not end.
    pub fn stop(&mut self) -> Result<()> {
        self.coordinator.stop()?;
        Ok(())
    }

    /// Starts it again: seconds until it served.
    ///
    /// # Errors
    /// If it does not.
    pub fn start_again(&mut self) -> Result<f64> {
        let begun = now();
        self.coordinator.start_again(None)?;
        self.coordinator.expect_it_serves()?;
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Transactions that are decided, and not all of whose branches have acknowledged.
    ///
    /// # Errors
    /// If it can't be asked.
    pub fn unresolved(&self) -> Result<f64> {
        self.runtime.block_on(meter::unresolved(&self.coordinator.url()))
    }

    /// The participants and clients, yet to begin.
    ///
    /// # Errors
    /// If they don't start.
    pub fn voters(&self, clients: usize, branches: usize, more: &[String]) -> Result<Process> {
        let mut command = self.roles.command("vote");
        command.args(["--coordinator", &self.coordinator.url(), "--clients", &clients.to_string()]);
        command.args(["--branches", &branches.to_string()]).args(more);
        let mut voters = Process::start("voters", command, &self.directory.path().join("voters.log"))?;
        wait_for_line(&mut voters, READY)?;
        Ok(voters)
    }

    /// So many clients, so long, behind a while that does not count.
    ///
    /// # Errors
    /// If a transaction fails.
    pub fn run(&self, clients: usize, branches: usize, takes: u64, measure: Duration) -> Result<Run> {
        let takes_long = ["--takes".to_owned(), takes.to_string()];
        let run = self.run_with(clients, branches, &takes_long, (WARM_UP, measure))?;
        Ok(Run { takes, ..run })
    }

    /// The same with other flags. `phases`: how long it does not count, and how long it does.
    ///
    /// # Errors
    /// As [`Alone::run`].
    pub fn run_with(
        &self,
        clients: usize,
        branches: usize,
        more: &[String],
        phases: (Duration, Duration),
    ) -> Result<Run> {
        let phases =
            [format!("--warm-up={}", phases.0.as_millis()), format!("--measure={}", phases.1.as_millis())];
        let mut voters = self.voters(clients, branches, &[more, &phases].concat())?;
        let used = |voters: &Process| [self.coordinator.id(), voters.id()].map(meter::processor_time_of);
        let before = (self.counted()?, used(&voters));
        voters.tell(BEGIN);
        let line = wait_for_line(&mut voters, DONE)?;
        let after = (self.counted()?, used(&voters));
        let seen = driver::ended(voters, &line)?;
        let counted = after.0.each(&before.0, seen.all);
        let each = |n: usize| (after.1[n] - before.1[n]).as_secs_f64() * 1e6 / count(seen.all);
        let (processor, others) = (each(0), each(1));
        Ok(Run { clients, branches, takes: 0, seen, counted, processor, others })
    }

    fn counted(&self) -> Result<Counted> {
        self.runtime.block_on(Counted::at(&self.coordinator.url()))
    }

    /// Holds so many open, runs others meanwhile, and lets them go.
    fn hold(&self, held: usize, measure: Duration) -> Result<InFlight> {
        let (hold, groups) = (format!("--hold={held}"), format!("--groups={}", held.div_ceil(HELD_BY_ONE)));
        let mut voters =
            self.voters(1, 2, &["--warm-up=0", "--measure=0", &hold, &groups].map(String::from))?;
        let before = self.memory()?;
        voters.tell(BEGIN);
        wait_for_line(&mut voters, DONE)?;
        let holding = self.memory()?;
        let meanwhile = self.run(64, 2, 0, measure)?;
        voters.tell(END);
        wait_for_line(&mut voters, GONE)?;
        let afterwards = self.memory()?;
        voters.tell(END);
        voters.wait(Duration::from_secs(30))?;
        let each = |bytes: f64| (bytes - before) / count(held as u64);
        Ok(InFlight { held, bytes: each(holding), bytes_afterwards: each(afterwards), meanwhile })
    }

    /// Bytes that its memory grows by while it runs so many transactions that nothing of each can be left.
    fn grow(&self) -> Result<f64> {
        let mut all = self.run(64, 2, 0, LONG_RUN)?.seen.all;
        // What a busy coordinator needs at most, it has had by then.
        let before = self.memory()?;
        while all < MANY {
            all += self.run(64, 2, 0, LONG_RUN)?.seen.all;
        }
        Ok(self.memory()? - before)
    }

    /// Bytes that the coordinator has in memory.
    fn memory(&self) -> Result<f64> {
        Ok(count(Memory::Now.of(self.coordinator.id())?))
    }

    /// Ends it cleanly: what is left of its log is what it has to keep.
    fn log_bytes(&mut self) -> Result<f64> {
        self.stop()?;
        bytes(&self.log())
    }
}

/// Bytes of a log's files.
///
/// # Errors
/// If they can't be looked at.
pub fn bytes(directory: &Path) -> Result<f64> {
    let cannot = || Failed::because(directory.display().to_string());
    let mut all = 0;
    for entry in std::fs::read_dir(directory).map_err(cannot())? {
        all += entry.and_then(|entry| entry.metadata()).map_err(cannot())?.len();
    }
    Ok(count(all))
}

/// Measures all of it. `told` hears of each run.
///
/// # Errors
/// If something did not run.
pub fn run(roles: &Roles, quick: bool, told: impl Fn(&str)) -> Result<Measured> {
    let measure = Duration::from_millis(if quick { 300 } else { 3000 });
    let alone = Alone::set(roles)?;
    let disk_before = meter::fdatasync_micros(alone.directory.path())?;
    let mut runs = Vec::new();
    for (clients, branches) in [(1, 2), (8, 2), (64, 2), (256, 2), (512, 2), (64, 4), (64, 8), (64, 16)] {
        let run = alone.run(clients, branches, 0, measure)?;
        told(&format!("{clients:>3} clients, {branches:>2} branches: {:>6.0}/s", run.seen.rate()));
        runs.push(run);
    }
    let mut growth = Vec::new();
    for takes in [0, 20] {
        for branches in [1, 2, 4, 8, 16, 32, MOST_BRANCHES] {
            let run = alone.run(1, branches, takes, measure)?;
            told(&format!(
                "{branches:>2} branches that take {takes} ms: {:.1} ms",
                count(run.seen.p50) / 1000.0
            ));
            growth.push(run);
        }
    }
    let mut in_flight = Vec::new();
    for held in HELD.into_iter().take(if quick { 1 } else { HELD.len() }) {
        // One that has done nothing yet has no room of its own that could be used again.
        let fresh = Alone::set_with(roles, &[MOST_IN_FLIGHT])?;
        let one = fresh.hold(held, measure)?;
        told(&format!("{held} in flight: {:.0}/s meanwhile", one.meanwhile.seen.rate()));
        in_flight.push(one);
    }
    let bytes_after_many = if quick { None } else { Some(alone.grow()?) };
    let disk = (disk_before, meter::fdatasync_micros(alone.directory.path())?);
    drop(alone);
    let log_bytes = log_bytes(roles, measure)?;
    let shared_log = wal::of_commits(roles, measure)?;
    Ok(Measured { disk, runs, growth, in_flight, bytes_after_many, log_bytes, shared_log })
}

/// A log with nothing but commits of two branches in it, and one without, both after a clean end.
fn log_bytes(roles: &Roles, measure: Duration) -> Result<f64> {
    let empty = Alone::set(roles)?.log_bytes()?;
    let mut alone = Alone::set(roles)?;
    let run = alone.run(64, 2, 0, 2 * measure)?;
    Ok((alone.log_bytes()? - empty) / count(run.seen.all))
}
