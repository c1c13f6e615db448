//! The coordinator with a log that has grown: millions of transactions that have ended, or a hundred thousand that are decided and have
//! still to be told, as a crash may leave them. Participants answer at once, in a process of their own.

use std::path::Path;
use std::time::Duration;

use lockstep_coordinator::decision_log::sqlite::{Options, SqliteLog};
use lockstep_coordinator::decision_log::{Batch, DecisionLog as _};
use lockstep_coordinator::engine::clock::unix_ms;
use lockstep_coordinator::protocol::outcome::{BranchEnd, Outcome};
use lockstep_coordinator::protocol::record::{About, DecisionKind, DecisionRecord, EndRecord};
use lockstep_proto::{Bqual, Epoch, Gtrid, ResourceManagerName};
use lockstep_tests::harness::clock::{now, wait_for};
use lockstep_tests::harness::roles::Roles;
use lockstep_tests::harness::{Failed, Result};
use serde::Serialize;

use crate::alone::{Alone, bytes};
use crate::meter::{self, count};

/// Transactions in one batch.
const BATCH: usize = 1024;
/// Transactions that have ended.
const ENDED: usize = 10_000_000;
/// The same, in a short run.
const ENDED_QUICK: usize = 50_000;
/// Transactions that are decided and not told.
const IN_DOUBT: usize = 100_000;
/// The same, in a short run.
const IN_DOUBT_QUICK: usize = 10_000;
/// Branches of each.
const BRANCHES: usize = 2;
/// Clients of the coordinator.
const CLIENTS: usize = 64;
/// Long enough for a rate, and for a part of what is in doubt.
const MEASURE: Duration = Duration::from_secs(3);
/// Short enough that not all of it is told by then.
const BESIDE: Duration = Duration::from_secs(1);
/// How long anything may take.
const PATIENCE: Duration = Duration::from_mins(5);
/// What the participants are called.
const VOTERS: &str = "grown";

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// The disk before and after: the median of a forced write, in microseconds.
    pub disk: (f64, f64),
    /// Transactions a second with an empty log.
    pub normal: f64,
    /// With millions that have ended.
    pub ended: Ended,
    /// With many in doubt.
    pub in_doubt: InDoubt,
}

/// A log of transactions that have ended.
#[derive(Debug, Clone, Serialize)]
pub struct Ended {
    /// How many.
    pub transactions: usize,
    /// What the log weighs.
    pub bytes: f64,
    /// Seconds from the coordinator's start until it served.
    pub serves: f64,
    /// Transactions a second.
    pub rate: f64,
}

/// A log of decisions that have still to be told.
#[derive(Debug, Clone, Serialize)]
pub struct InDoubt {
    /// How many.
    pub transactions: usize,
    /// Seconds from the coordinator's start until it served.
    pub serves: f64,
    /// Seconds from the participants' start until all had ended, with nothing else to do.
    pub resolved: f64,
    /// New transactions a second, while others are being told.
    pub meanwhile: f64,
    /// How many were still in doubt when that had been measured: it says nothing if there were none.
    pub left: f64,
}

impl InDoubt {
    /// Transactions a second that were told and acknowledged.
    #[must_use]
    pub fn rate(&self) -> f64 {
        count(self.transactions as u64) / self.resolved
    }
}

/// Measures it. `told` hears of each part.
///
/// # Errors
/// If something did not run.
pub fn run(roles: &Roles, quick: bool, told: impl Fn(&str)) -> Result<Measured> {
    let empty = Alone::set(roles)?;
    let disk_before = meter::fdatasync_micros(empty.directory())?;
    let normal = empty.run(CLIENTS, BRANCHES, 0, MEASURE)?.seen.rate();
    told(&format!("an empty log: {normal:.0} transactions a second"));
    drop(empty);

    let ended = ended(roles, if quick { ENDED_QUICK } else { ENDED })?;
    told(&format!("{} ended: {:.0} a second", ended.transactions, ended.rate));

    let transactions = if quick { IN_DOUBT_QUICK } else { IN_DOUBT };
    let (serves, resolved) = resolve(roles, transactions)?;
    told(&format!("{transactions} in doubt: all told after {resolved:.1} s"));
    let (meanwhile, left) = beside(roles, transactions)?;
    told(&format!("{meanwhile:.0} new ones a second meanwhile, {left} still in doubt"));
    let in_doubt = InDoubt { transactions, serves, resolved, meanwhile, left };

    let directory = tempfile::tempdir().map_err(Failed::because("no directory"))?;
    let disk = (disk_before, meter::fdatasync_micros(directory.path())?);
    Ok(Measured { disk, normal, ended, in_doubt })
}

fn ended(roles: &Roles, transactions: usize) -> Result<Ended> {
    let mut grown = Alone::set(roles)?;
    grown.stop()?;
    fill(&grown.log(), transactions, true)?;
    let bytes = bytes(&grown.log())?;
    let serves = grown.start_again()?;
    let rate = grown.run(CLIENTS, BRANCHES, 0, MEASURE)?.seen.rate();
    Ok(Ended { transactions, bytes, serves, rate })
}

/// Seconds until it serves, and from then on until everybody was told.
fn resolve(roles: &Roles, transactions: usize) -> Result<(f64, f64)> {
    let (grown, serves) = in_doubt(roles, transactions)?;
    let begun = now();
    let _voters = grown.voters(1, BRANCHES, &idle())?;
    let none = || Ok((grown.unresolved()? < 1.0).then_some(()));
    wait_for("everything to end", PATIENCE, none)?;
    Ok((serves, begun.elapsed().as_secs_f64()))
}

/// New transactions a second while others are being told, and how many of these were left.
fn beside(roles: &Roles, transactions: usize) -> Result<(f64, f64)> {
    let (grown, _serves) = in_doubt(roles, transactions)?;
    let run = grown.run_with(CLIENTS, BRANCHES, &named(), (Duration::ZERO, BESIDE))?;
    Ok((run.seen.rate(), grown.unresolved()?))
}

/// A coordinator that was started with all of them, and how long that took.
fn in_doubt(roles: &Roles, transactions: usize) -> Result<(Alone, f64)> {
    let mut grown = Alone::set(roles)?;
    grown.stop()?;
    fill(&grown.log(), transactions, false)?;
    let serves = grown.start_again()?;
    let found = grown.unresolved()?;
    if (found - count(transactions as u64)).abs() < 0.5 {
        Ok((grown, serves))
    } else {
        Err(Failed::new(format!("{found} are in doubt")))
    }
}

fn named() -> [String; 2] {
    ["--names".to_owned(), VOTERS.to_owned()]
}

/// Participants without a client.
fn idle() -> Vec<String> {
    let nothing = ["--warm-up=0", "--measure=0"].map(String::from);
    [&nothing[..], &named()[..]].concat()
}

/// Writes so many commits of two branches into the log of a coordinator that does not run, with their ends or without.
fn fill(directory: &Path, transactions: usize, with_ends: bool) -> Result<()> {
    meter::runtime()?.block_on(async {
        let opened = SqliteLog::open(directory, Options::default()).await;
        let (log, _opened) = opened.map_err(Failed::because("the decision log"))?;
        let names: Vec<ResourceManagerName> = (0..BRANCHES)
            .map(|n| format!("{VOTERS}-{n}").parse().map_err(Failed::because("a name")))
            .collect::<Result<_>>()?;
        let mut written = 0;
        while written < transactions {
            let some = BATCH.min(transactions - written);
            let decisions = (0..some).map(|_| decision(log.position().epoch, &names)).collect();
            let mut batch = Batch { decisions, ends: Vec::new() };
            if with_ends {
                batch.ends = batch.decisions.iter().map(end).collect();
            }
            log.force(&batch).await.map_err(Failed::because("the decision log"))?;
            written += some;
        }
        log.close().await;
        Ok(())
    })
}

fn decision(epoch: Epoch, names: &[ResourceManagerName]) -> DecisionRecord {
    let gtrid = Gtrid::new(epoch, unix_ms(), rand::random());
    let branches = names.iter().map(|name| Bqual::new(name, rand::random())).collect();
    let about = About { name: "alone".to_owned(), ..About::default() };
    DecisionRecord { gtrid, kind: DecisionKind::Commit, branches, decided_ms: unix_ms(), about }
}

fn end(decision: &DecisionRecord) -> EndRecord {
    EndRecord {
        gtrid: decision.gtrid,
        outcome: Outcome::Committed,
        detail: String::new(),
        branches: decision.branches.iter().map(|bqual| (bqual.clone(), BranchEnd::Committed)).collect(),
        ended_ms: unix_ms(),
        about: decision.about.clone(),
    }
}
