//! What is in doubt at a restart: thousands of transactions that are decided, and prepared on two PostgreSQL servers, when coordinator and
//! services are killed. How long until all are committed, against a bare loop of COMMIT PREPARED: when all is started again at once, and when
//! the servers have ended the sessions of the dead first, which they would have to do after any crash of a client.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use futures::StreamExt as _;
use lockstep_tests::harness::clock::{now, wait_for};
use lockstep_tests::harness::roles::Roles;
use lockstep_tests::harness::{Failed, Result};
use serde::Serialize;
use sqlx::PgPool;
use tokio::runtime::Runtime;

use crate::contender::Contender;
use crate::driver::Seen;
use crate::meter::{self, ProcessorTime, count};
use crate::stage::Stage;
use crate::teller::{UPDATE, end, pool};

/// Room for them, and for what is new meanwhile.
const SETTINGS: &[(&str, &str)] = &[("max_prepared_transactions", "10500")];
/// Each holds the row of an account of its own.
const IN_DOUBT: usize = 10_000;
/// The same, in a short run.
const IN_DOUBT_QUICK: usize = 500;
/// Accounts that none of them holds.
const OTHERS: usize = 960;
/// Connections of the bare loop, over both servers.
const CONNECTIONS: usize = 16;
/// Clients that bring them about: each has so many accounts, and stops at the first one that it finds held.
const CLIENTS: usize = 50;
/// Clients that move money between the other accounts.
const NEW_CLIENTS: usize = 32;
/// How long they are measured, at once: meanwhile, some of those in doubt have to be left.
const NEW: (Duration, Duration) = (Duration::ZERO, Duration::from_secs(3));
/// Between two looks at what is left: each costs the coordinator a page of metrics.
const LOOK: Duration = Duration::from_millis(50);
/// How long anything may take.
const PATIENCE: Duration = Duration::from_mins(5);

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// The disk before and after: the median of a forced write, in microseconds.
    pub disk: (f64, f64),
    /// Branches that were in doubt, on both servers together.
    pub branches: usize,
    /// The bare loop over as many, before and after.
    pub bare: (Committed, Committed),
    /// All is started again at once, while the servers still end the sessions of the dead.
    pub at_once: Recovery,
    /// The same when they have.
    pub afterwards: Recovery,
    /// Transfers a second when nothing is in doubt, before and after.
    pub normal: (f64, f64),
    /// Between other accounts, after the same restart once more.
    pub meanwhile: Seen,
    /// Branches that were in doubt shortly before these began.
    pub found: usize,
    /// Branches that were still in doubt when they had ended.
    pub left: usize,
}

/// Everything that was in doubt is committed.
#[derive(Debug, Clone, Serialize)]
pub struct Committed {
    /// Seconds.
    pub seconds: f64,
    /// Microseconds of processor time for each branch, by part. This process is a part of its own: it runs the bare loop, and looks whether
    /// all is over.
    pub processor: BTreeMap<String, f64>,
}

/// After a restart.
#[derive(Debug, Clone, Serialize)]
pub struct Recovery {
    /// Seconds from the coordinator's start until it served.
    pub serves: f64,
    /// From the same moment until all was committed and acknowledged.
    pub committed: Committed,
    /// The most memory that each service had until then, in bytes.
    pub services_memory: Vec<u64>,
}

/// Measures it.
///
/// # Errors
/// If something did not run, or the books are wrong.
pub fn run(roles: &Roles, quick: bool) -> Result<Measured> {
    let runtime = tokio::runtime::Runtime::new().map_err(Failed::because("no runtime"))?;
    let held = if quick { IN_DOUBT_QUICK } else { IN_DOUBT };
    let others = held..held + OTHERS;
    let mut stage = Stage::set_with(roles, SETTINGS, others.end)?;
    let disk_before = meter::fdatasync_micros(stage.directory())?;
    let before = undisturbed(&mut stage, &runtime, &others)?;

    let branches = leave_in_doubt(&mut stage, &runtime, held)?;
    let at_once = recover(&mut stage, &runtime, branches)?;
    let again = leave_in_doubt(&mut stage, &runtime, held)?;
    stage.wait_for_backends_to_end()?;
    let afterwards = recover(&mut stage, &runtime, again)?;

    leave_in_doubt(&mut stage, &runtime, held)?;
    stage.wait_for_backends_to_end()?;
    stage.start_coordinator_again()?;
    stage.start_tellers()?;
    let found = stage.prepared()?;
    let meanwhile = stage.drive(Contender::Lockstep, NEW_CLIENTS, others.clone(), NEW)?;
    let left = stage.prepared()?;
    if left == 0 && !quick {
        return Err(Failed::new(
            "nothing was in doubt any more while new transfers were measured: begin with more",
        ));
    }
    stage.look_at_books()?;

    let after = undisturbed(&mut stage, &runtime, &others)?;
    let disk = (disk_before, meter::fdatasync_micros(stage.directory())?);
    Ok(Measured {
        disk,
        branches,
        bare: (before.bare, after.bare),
        at_once,
        afterwards,
        normal: (before.normal, after.normal),
        meanwhile,
        found,
        left,
    })
}

/// Starts all again, and waits until all is committed.
fn recover(stage: &mut Stage, runtime: &Runtime, branches: usize) -> Result<Recovery> {
    let spent = Spent::until_now(stage)?;
    let begun = now();
    stage.start_coordinator_again()?;
    let serves = begun.elapsed().as_secs_f64();
    stage.start_tellers()?;
    wait_for("everything to be committed", PATIENCE, || is_over(stage, runtime))?;
    let seconds = begun.elapsed().as_secs_f64();
    let committed = Committed { seconds, processor: spent.each_since(stage, branches)? };
    let services_memory = stage.most_memory_of_tellers()?;
    stage.look_at_books()?;
    Ok(Recovery { serves, committed, services_memory })
}

/// Processor time that was used before something began.
struct Spent(ProcessorTime);

impl Spent {
    fn until_now(stage: &Stage) -> Result<Self> {
        let mut time = stage.processor_time()?;
        time.0.insert("bench", meter::own_processor_time());
        Ok(Self(time))
    }

    /// Since then, for each of so many branches.
    fn each_since(&self, stage: &Stage, branches: usize) -> Result<BTreeMap<String, f64>> {
        Ok(Self::until_now(stage)?.0.each(&self.0, branches as u64))
    }
}

/// What there is to compare with.
struct Undisturbed {
    bare: Committed,
    normal: f64,
}

/// The accounts below the `others` are those that will be held.
fn undisturbed(stage: &mut Stage, runtime: &Runtime, others: &Range<usize>) -> Result<Undisturbed> {
    let bare = runtime.block_on(bare_loop(stage, others.start))?;
    let normal = stage.drive(Contender::Lockstep, NEW_CLIENTS, others.clone(), NEW)?.rate();
    stage.look_at_books()?;
    Ok(Undisturbed { bare, normal })
}

/// Whether all is committed. The servers are asked at the end only, since to count thousands of prepared transactions again and again takes a
/// good part of a processor, which the bare loop has for itself.
fn is_over(stage: &Stage, runtime: &Runtime) -> Result<Option<()>> {
    std::thread::sleep(LOOK);
    let unresolved = runtime.block_on(meter::unresolved(&stage.coordinator()))?;
    Ok((unresolved == 0.0 && stage.prepared()? == 0).then_some(()))
}

/// Thousands of transactions that are decided, of which no branch is committed, and nobody left to do it. How many branches.
fn leave_in_doubt(stage: &mut Stage, runtime: &Runtime, transactions: usize) -> Result<usize> {
    let held = runtime.block_on(hold_up(stage))?;
    let driver = stage.begin_driving(Contender::AtDecision, CLIENTS, 0..transactions)?;
    // Those that are decided are prepared on both servers, and it stays so.
    let in_doubt = || {
        let decided = runtime.block_on(meter::unresolved(&stage.coordinator()))?;
        Ok((decided >= count(transactions as u64)).then_some(()))
    };
    wait_for("so many to be decided", PATIENCE, in_doubt)?;
    stage.kill_tellers_and_coordinator()?;
    drop(driver);
    runtime.block_on(async {
        for pool in held {
            pool.close().await;
        }
    });
    stage.prepared()
}

/// Prepares as many by hand, and commits them over a few connections: the latter counts.
async fn bare_loop(stage: &Stage, transactions: usize) -> Result<Committed> {
    let pools = [connect(stage, 0, CONNECTIONS / 2).await?, connect(stage, 1, CONNECTIONS / 2).await?];
    let all = || (0..2 * transactions).map(|n| (pools[n % 2].clone(), n % 2, n / 2));
    let prepare = all().map(async |(pool, side, n)| {
        let mut connection = pool.acquire().await?;
        sqlx::raw_sql("BEGIN").execute(&mut *connection).await?;
        let amount: i64 = if side == 0 { -1 } else { 1 };
        let update = sqlx::query(UPDATE).bind(i64::try_from(n).unwrap_or(0)).bind(amount);
        update.execute(&mut *connection).await?;
        end(&mut connection, "PREPARE TRANSACTION", &format!("bare-{n}")).await
    });
    finish(prepare).await?;
    let spent = Spent::until_now(stage)?;
    let begun = now();
    let commit = all().map(async |(pool, _, n)| {
        let mut connection = pool.acquire().await?;
        end(&mut connection, "COMMIT PREPARED", &format!("bare-{n}")).await
    });
    finish(commit).await?;
    let seconds = begun.elapsed().as_secs_f64();
    Ok(Committed { seconds, processor: spent.each_since(stage, 2 * transactions)? })
}

async fn finish(all: impl Iterator<Item = impl Future<Output = sqlx::Result<()>>>) -> Result<()> {
    let mut all = futures::stream::iter(all).buffer_unordered(CONNECTIONS);
    while let Some(one) = all.next().await {
        one.map_err(Failed::because("the bare loop"))?;
    }
    Ok(())
}

async fn connect(stage: &Stage, side: usize, connections: usize) -> Result<PgPool> {
    let pool = pool(u32::try_from(connections).unwrap_or(1)).connect(&stage.database(side)).await;
    pool.map_err(Failed::because("no connection"))
}

/// Has no branch be committed as long as these are open: before each commit a position is written, into the table that they hold.
async fn hold_up(stage: &Stage) -> Result<Vec<PgPool>> {
    let mut pools = Vec::new();
    for side in 0..2 {
        let pool = connect(stage, side, 1).await?;
        // The pool has one connection, and the transaction stays open on it.
        let sql = "BEGIN; LOCK TABLE lockstep.positions IN SHARE MODE";
        sqlx::raw_sql(sql).execute(&pool).await.map_err(Failed::because("not held up"))?;
        pools.push(pool);
    }
    Ok(pools)
}
