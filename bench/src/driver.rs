//! The process that asks: so many clients, each with accounts of its own, one transfer after the other.
//!
//! Its accounts are disjoint because a row that two clients update in two databases, in different orders, is a deadlock that neither
//! database sees.

use std::io::BufRead as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use lockstep_tests::harness::clock::now;
use lockstep_tests::harness::process::Process;
use lockstep_tests::harness::{Failed, Result};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::contender::{Contender, Mover, Places};

/// Accounts in each database.
pub const ACCOUNTS: usize = 10_000;
/// The line that a driver prints when it is connected and waits to be told to begin.
pub const READY: &str = "ready";
/// What its last line begins with.
pub const DONE: &str = "done ";
/// How long a client waits after it was refused, or failed.
const REFUSED_WAIT: Duration = Duration::from_millis(10);
/// How long a driver may take to end.
const TIME_TO_END: Duration = Duration::from_secs(60);
/// What it is told.
pub const BEGIN: &str = "begin";
/// The same, at the end.
pub const END: &str = "end";

/// The first is 0: they do not count.
const MEASURING: u8 = 1;
const OVER: u8 = 2;

/// The command line of a driver's process.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    places: Places,
    /// How it moves money
    #[arg(long)]
    contender: Contender,
    /// How many ask at the same time
    #[arg(long)]
    clients: usize,
    /// The first account that they may use, and the first one behind them that they may not
    #[arg(long, num_args = 2, default_values_t = [0, ACCOUNTS])]
    accounts: Vec<usize>,
    /// Milliseconds that are not measured
    #[arg(long)]
    warm_up: u64,
    /// Milliseconds that are
    #[arg(long)]
    measure: u64,
}

/// What a driver has seen.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Seen {
    /// Transfers that were acknowledged, the warm-up's too: what the books must show, and what processor time was spent for.
    pub all: u64,
    /// Of the time that was measured.
    pub measured: u64,
    /// How long that was.
    pub seconds: f64,
    /// Latencies of those, in microseconds.
    pub p50: u64,
    /// The same.
    pub p99: u64,
    /// Transfers that were refused for lack of room, and rolled back.
    pub refused: u64,
    /// Transfers that failed, and the first one's words: there must be none.
    pub failed: u64,
    /// The same.
    pub first_failure: Option<String>,
}

/// What one client has seen.
#[derive(Debug, Default)]
pub struct One {
    all: u64,
    refused: u64,
    latencies: Vec<u64>,
    failures: Vec<String>,
}

/// A driver's process.
///
/// # Errors
/// If something can't be reached.
pub fn run(arguments: &Arguments) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().map_err(Failed::because("no runtime"))?;
    runtime.block_on(async {
        let Arguments { places, contender, clients, accounts, warm_up, measure } = arguments;
        let mover = Mover::new(*contender, places, *clients).await?;
        println!("{READY}");
        wait_for(BEGIN)?;
        let phases = Phases::default();
        let ask = |client: usize| {
            let (mover, first, own) = (mover.clone(), accounts[0], (accounts[1] - accounts[0]) / clients);
            ask(phases.clone(), async move |number| {
                let account = first + client * own + usize::try_from(number).unwrap_or(0) % own;
                mover.transfer(client, number, i64::try_from(account).unwrap_or(0)).await
            })
        };
        let tasks: Vec<_> = (0..*clients).map(ask).map(tokio::spawn).collect();
        let seen = phases.run(tasks, *warm_up, *measure).await?;
        println!("{DONE}{}", serde_json::to_string(&seen).expect("numbers are JSON"));
        // What this process has used is looked at before it ends.
        wait_for(END)
    })
}

/// Reads a line from whoever has started this process, which has to be this one.
///
/// # Errors
/// If it is another one, or there is none.
pub fn wait_for(word: &str) -> Result<()> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(Failed::because("stdin"))?;
    if line.trim() == word { Ok(()) } else { Err(Failed::new(format!("nobody says {word}"))) }
}

/// What a driver's process has seen that has said its last line: it ends now.
///
/// # Errors
/// If something of it failed, or it does not end.
pub fn ended(mut driver: Process, line: &str) -> Result<Seen> {
    driver.tell(END);
    driver.wait(TIME_TO_END)?;
    let seen =
        serde_json::from_str::<Seen>(&line[DONE.len()..]).map_err(Failed::because("a driver's last line"))?;
    seen.all_went_well()
}

/// What all clients go by: whether it counts yet, and whether it is over.
#[derive(Debug, Clone, Default)]
pub struct Phases(Arc<AtomicU8>);

impl Phases {
    /// Lets these clients ask for so many milliseconds that do not count and so many that do.
    ///
    /// # Errors
    /// If one of them panicked.
    pub async fn run(&self, tasks: Vec<JoinHandle<One>>, warm_up: u64, measure: u64) -> Result<Seen> {
        tokio::time::sleep(Duration::from_millis(warm_up)).await;
        let begun = now();
        self.0.store(MEASURING, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(measure)).await;
        self.0.store(OVER, Ordering::Relaxed);
        let seconds = begun.elapsed().as_secs_f64();
        let mut seen = Vec::new();
        for task in tasks {
            seen.push(task.await.map_err(Failed::because("a client panicked"))?);
        }
        Ok(Seen::of(seen, seconds))
    }

    fn now(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One client: asks for one after the other until it is over.
pub async fn ask(phases: Phases, transaction: impl AsyncFn(u64) -> Result<bool>) -> One {
    let mut one = One::default();
    for number in 0.. {
        if phases.now() == OVER {
            break;
        }
        let begun = now();
        let done = transaction(number).await;
        let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        match done {
            Ok(false) => {
                one.refused += 1;
                tokio::time::sleep(REFUSED_WAIT).await;
            }
            Ok(true) => {
                one.all += 1;
                // Ended inside the time that counts.
                if phases.now() == MEASURING {
                    one.latencies.push(took);
                }
            }
            Err(why) => {
                one.failures.push(why.to_string());
                // One that keeps failing fills no memory with it.
                tokio::time::sleep(REFUSED_WAIT).await;
            }
        }
    }
    one
}

impl Seen {
    fn of(seen: Vec<One>, seconds: f64) -> Self {
        let all = seen.iter().map(|one| one.all).sum();
        let mut failures = seen.iter().flat_map(|one| &one.failures);
        let first_failure = failures.next().cloned();
        let failed = seen.iter().map(|one| one.failures.len() as u64).sum();
        let refused = seen.iter().map(|one| one.refused).sum();
        let mut latencies: Vec<u64> = seen.into_iter().flat_map(|one| one.latencies).collect();
        latencies.sort_unstable();
        Self {
            all,
            measured: latencies.len() as u64,
            seconds,
            p50: percentile(&latencies, 50),
            p99: percentile(&latencies, 99),
            refused,
            failed,
            first_failure,
        }
    }

    /// The same, unless something failed.
    ///
    /// # Errors
    /// What failed first.
    pub fn all_went_well(self) -> Result<Self> {
        match &self.first_failure {
            Some(why) => Err(Failed::new(format!("{} transactions failed: {why}", self.failed))),
            None => Ok(self),
        }
    }

    /// Transfers a second.
    pub fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a run has far fewer than 2^52 transfers")]
        let measured = self.measured as f64;
        measured / self.seconds
    }
}

/// Of sorted values; 0 if there are none.
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or(0)
}
