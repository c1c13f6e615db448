//! The story, from top to bottom.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::Options;
use crate::application::Application;
use crate::books::{self, Books, Violation};
use crate::killer::Killer;
use crate::ledger::Ledger;
use crate::process::{Processes, log_file};
use crate::progress::Progress;
use crate::report::{Findings, Report};
use crate::role::Role;

/// How long it may take after the load until nothing is in doubt any more.
const SETTLE_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Lines of each process' output that are shown when the run fails.
const LAST_LINES: usize = 15;

/// Why a run could not be brought to its end. Broken books are no failure: finding them is what the run is for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{role} could not be started: {error}")]
    Start { role: Role, error: std::io::Error },
    #[error("{role} could not be ended: {error}")]
    Kill { role: Role, error: std::io::Error },
    #[error("{role} ended unexpectedly: {status}")]
    Ended { role: Role, status: ExitStatus },
    #[error("{role} is not ready, {within:?} after it was started")]
    NotReady { role: Role, within: Duration },
    #[error("only {made} kills could be made: too few transfers got between their two calls")]
    TooFewKills { made: u32 },
    #[error("the SQLite files cannot be read: {0}")]
    Books(#[from] sqlx::Error),
    #[error("the operating system says: {0}")]
    System(#[from] std::io::Error),
    #[error("no HTTP client: {0}")]
    Http(#[from] reqwest::Error),
    #[error(transparent)]
    Client(#[from] lockstep::ConnectError),
    #[error("interrupted")]
    Interrupted,
}

/// What became of a run.
pub(crate) struct Run {
    pub(crate) result: Result<Report, Failure>,
    /// The last lines of each process' output, if the run failed.
    pub(crate) last_words: Vec<(Role, String)>,
    /// Where its files are, if they were kept.
    pub(crate) kept: Option<PathBuf>,
}

/// Runs the scenario in a directory of its own, which is removed unless someone will want to look into it.
pub(crate) async fn run(options: &Options) -> Result<Run, Failure> {
    let dir = TempDir::with_prefix("lockstep-demo-")?;
    let processes = Processes::new(dir.path(), options.naive)?;
    let result = tokio::select! {
        result = play(options, dir.path(), &processes) => result,
        _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted),
    };
    processes.end_all().await;
    let failed = !matches!(result, Ok(_) | Err(Failure::Interrupted));
    let last_words =
        Role::ALL.into_iter().filter(|_| failed).map(|role| (role, last_lines(dir.path(), role))).collect();
    let broken = !options.naive && result.as_ref().is_ok_and(Report::is_wrong);
    let kept = (options.keep || failed || broken).then(|| dir.keep());
    Ok(Run { result, last_words, kept })
}

async fn play(options: &Options, dir: &Path, processes: &Processes) -> Result<Report, Failure> {
    let started = Instant::now();

    // A coordinator and two banks.
    for role in Role::ALL {
        processes.start(role)?;
    }
    processes.until_all_up().await?;

    // The clients move money, and the killer kills.
    let ledger = Ledger::default();
    let killer = Killer::new(options, processes, &ledger);
    let progress = Progress::start(options);
    let application = Application::new(options, processes, &killer, &ledger, &progress).await?;
    tokio::try_join!(application.run(), killer.run())?;
    progress.finish();

    // Then everyone gets the time to find out what is still in doubt.
    let settled = settle(&application, &ledger, processes).await?;
    processes.stop_all().await?;

    // And the books are checked, from outside: the files, and what the clients were told.
    let books = Books::read(dir).await?;
    let transfers = ledger.told(options.seed);
    let mut violations = books::check(&books, &transfers);
    violations.extend(settled.violations());
    let findings = Findings {
        transfers: &transfers,
        unknown_resolved: settled.unknown_resolved,
        kills: killer.made_by_role(),
        kills_while_prepared: killer.made_while_prepared(),
        books: &books,
        violations,
        took: started.elapsed(),
    };
    Ok(Report::new(options, findings))
}

/// What was left when nothing changed any more, or the time was up.
struct Settled {
    /// Transactions, by the coordinator's account.
    in_doubt: u64,
    /// Recorded by the coordinator.
    heuristic: u64,
    /// Outcomes that were learned by asking for them.
    unknown_resolved: u32,
}

impl Settled {
    fn violations(&self) -> impl Iterator<Item = Violation> {
        let in_doubt = (self.in_doubt > 0).then_some(Violation::InDoubt { transactions: self.in_doubt });
        let heuristic = (self.heuristic > 0).then_some(Violation::Heuristic { transactions: self.heuristic });
        in_doubt.into_iter().chain(heuristic)
    }
}

/// Waits until nobody is in doubt: no client, not the coordinator, and no bank.
async fn settle(
    application: &Application<'_>,
    ledger: &Ledger,
    processes: &Processes,
) -> Result<Settled, Failure> {
    let deadline = Instant::now() + SETTLE_WITHIN;
    let mut unknown_resolved = 0;
    loop {
        unknown_resolved += application.ask_for_unknown().await;
        let status = processes.coordinator_status().await;
        // A coordinator that does not answer has told nobody that nothing is in doubt.
        let in_doubt =
            status.as_ref().map_or(1, |status| status.transactions_in_flight.max(status.undelivered));
        let prepared = processes.hold_prepared_branch()?;
        let settled = in_doubt == 0 && !prepared && ledger.unknown().is_empty();
        if settled || Instant::now() >= deadline {
            let heuristic = status.map_or(0, |status| status.heuristic);
            return Ok(Settled { in_doubt, heuristic, unknown_resolved });
        }
        sleep(LOOK_EVERY).await;
    }
}

fn last_lines(dir: &Path, role: Role) -> String {
    // A process that never started has no log file, and nothing to say.
    let log = std::fs::read_to_string(log_file(dir, role)).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}
