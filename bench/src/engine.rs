//! The engine alone, in this process: clients and participants are tasks that answer at once, so that what is left are the shards, the group
//! commit and the decision log on a real disk. No gRPC, no database.

use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use lockstep_coordinator::decision_log::DecisionLog;
use lockstep_coordinator::decision_log::group_commit::GroupCommit;
use lockstep_coordinator::decision_log::sqlite::{Options, SqliteLog};
use lockstep_coordinator::engine::clock::Clock;
use lockstep_coordinator::engine::delivery::SessionId;
use lockstep_coordinator::engine::handle::Engine;
use lockstep_coordinator::engine::input::{Acknowledgement, Input, ToParticipant, Wait};
use lockstep_coordinator::engine::shard::{Shard, ShardConfig};
use lockstep_coordinator::engine::shell::{Mail, ShardTask, Shards};
use lockstep_coordinator::protocol::event::{Applied, Vote};
use lockstep_coordinator::protocol::outcome::Outcome;
use lockstep_coordinator::protocol::record::About;
use lockstep_coordinator::sessions::outbox::{Outbox, OutboxReceivers, Outgoing};
use lockstep_coordinator::telemetry::Onlookers;
use lockstep_coordinator::telemetry::metrics::Metrics;
use lockstep_coordinator::telemetry::stopwatch::Stopwatch;
use lockstep_proto::{Bqual, ResourceManagerName, Xid};
use lockstep_tests::harness::{Failed, Result};
use serde::Serialize;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::driver::{self, Phases, Seen};
use crate::meter::{self, count};

/// How many transactions are under way at the same time.
const IN_FLIGHT: usize = 64;
/// Branches of each.
const BRANCHES: usize = 2;
/// Milliseconds that are not measured.
const WARM_UP: u64 = 500;
/// The deadline: far away.
const TIMEOUT: Duration = Duration::from_mins(10);

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// The disk before and after: the median of a forced write, in microseconds.
    pub disk: (f64, f64),
    /// What the clients have seen.
    pub seen: Seen,
    /// Microseconds of this process's processor time for each transaction, clients and participants included.
    pub processor: f64,
    /// Forced batches for each transaction.
    pub forces: f64,
}

impl Measured {
    /// Transactions for each second of one core's time.
    #[must_use]
    pub fn per_core(&self) -> f64 {
        1e6 / self.processor
    }
}

/// The engine, as a coordinator puts it together, without the edge.
struct Alone {
    engine: Engine,
    names: Vec<ResourceManagerName>,
    directory: TempDir,
}

impl Alone {
    async fn start() -> Result<Self> {
        let directory = TempDir::with_prefix("lockstep-bench-").map_err(Failed::because("no directory"))?;
        let opened = SqliteLog::open(&directory.path().join("log"), Options::default()).await;
        let (log, _opened) = opened.map_err(Failed::because("no decision log"))?;
        let log: Arc<dyn DecisionLog> = Arc::new(log);
        let metrics = Arc::new(Metrics::new());
        let shards = std::thread::available_parallelism().map_or(1, usize::from);
        let (answer_to, answers): (Vec<_>, Vec<_>) = (0..shards).map(|_| mpsc::unbounded_channel()).unzip();
        let (writer, group_commit) = GroupCommit::new(Arc::clone(&log), answer_to, metrics.log.clone());
        tokio::spawn(group_commit.run());
        // Nothing is ended twice or late here: nobody has to judge strays.
        let (strays, _nobody) = mpsc::channel(1);
        let config = ShardConfig {
            epoch: log.position().epoch,
            max_live: 2 * IN_FLIGHT,
            apply_wait: TIMEOUT,
            begin_from_ms: log.begins_from_ms().await.map_err(Failed::because("the decision log"))?,
        };
        let clock = Clock::start();
        let mut handles = Vec::new();
        for (number, answers) in answers.into_iter().enumerate() {
            let onlookers = Onlookers { stopwatch: Stopwatch::new(Arc::clone(&metrics)), traces: None };
            let (writer, strays) = (writer.clone(), strays.clone());
            let shard = Shard::new(config);
            let (task, handle) = ShardTask::new(number, shard, clock, writer, answers, strays, onlookers);
            tokio::spawn(task.run());
            handles.push(handle);
        }
        let engine = Engine::new(Shards::new(handles), log, writer, metrics, None, 2 * IN_FLIGHT);
        let mut alone = Self { engine, names: Vec::new(), directory };
        for number in 0..BRANCHES {
            alone.attach(number).await?;
        }
        Ok(alone)
    }

    /// A participant that votes and acknowledges at once.
    async fn attach(&mut self, number: usize) -> Result<()> {
        let name: ResourceManagerName =
            format!("voter-{number}").parse().map_err(Failed::because("a name"))?;
        let session = session(number);
        let (outbox, receivers) = Outbox::new(CancellationToken::new());
        for shard in self.engine.shards().iter() {
            let mail = Mail::Attached(session, name.clone(), outbox.clone());
            shard.send(mail).await.map_err(Failed::because("not attached"))?;
        }
        tokio::spawn(answer(self.engine.clone(), session, receivers));
        self.names.push(name);
        Ok(())
    }

    async fn transaction(&self, number: u64) -> Result<bool> {
        let begun = self.engine.begin(About::default(), TIMEOUT, None).await;
        let (gtrid, _) = begun.map_err(Failed::because("not begun"))?;
        let shard = self.engine.shards().of(&gtrid);
        let enlist = self.names.iter().enumerate().map(async |(n, name)| {
            let xid = Xid { gtrid, bqual: Bqual::new(name, number) };
            shard.send(Mail::Input(Input::Enlist { session: session(n), xid })).await
        });
        try_join_all(enlist).await.map_err(Failed::because("not enlisted"))?;
        let answer = self.engine.commit(gtrid, Wait::Applied).await;
        let answer = answer.map_err(Failed::because("not committed"))?;
        let committed = matches!(answer.outcome, Some(Outcome::Committed));
        if committed && answer.branches == BRANCHES && answer.pending == 0 {
            return Ok(true);
        }
        Err(Failed::new(format!("{answer:?}")))
    }
}

fn session(number: usize) -> SessionId {
    SessionId(number as u64 + 1)
}

async fn answer(engine: Engine, session: SessionId, mut receivers: OutboxReceivers) {
    while let Some(message) = receivers.messages.recv().await {
        let (xid, input): (Xid, fn(SessionId, Xid) -> Input<_>) = match message {
            Outgoing::Shard(ToParticipant::Prepare(xid, _), _) => (xid, vote),
            Outgoing::Shard(ToParticipant::Commit(xid), _) => (xid, acknowledge),
            Outgoing::Shard(ToParticipant::Enlisted(..), _) => continue,
            // Nothing else is said to it: who counts the transactions finds out that one did not end.
            Outgoing::Shard(..) | Outgoing::Answer(_) => return,
        };
        let shard = engine.shards().of(&xid.gtrid);
        if shard.send(Mail::Input(input(session, xid))).await.is_err() {
            return;
        }
    }
}

fn vote<R>(session: SessionId, xid: Xid) -> Input<R> {
    Input::Vote { session, xid, vote: Vote::Commit }
}

fn acknowledge<R>(session: SessionId, xid: Xid) -> Input<R> {
    Input::Acknowledge { session, xid, acknowledgement: Acknowledgement::Ended(Applied::Committed) }
}

/// Measures it.
///
/// # Errors
/// If a transaction did not commit.
pub fn run(quick: bool) -> Result<Measured> {
    let runtime = tokio::runtime::Runtime::new().map_err(Failed::because("no runtime"))?;
    runtime.block_on(async {
        let alone = Arc::new(Alone::start().await?);
        let disk_before = meter::fdatasync_micros(alone.directory.path())?;
        let (used, forced) = (meter::own_processor_time(), alone.engine.writer().counts().forces);
        let phases = Phases::default();
        let ask = |_client| {
            let alone = Arc::clone(&alone);
            driver::ask(phases.clone(), async move |number| alone.transaction(number).await)
        };
        let tasks: Vec<_> = (0..IN_FLIGHT).map(ask).map(tokio::spawn).collect();
        let seen = phases.run(tasks, WARM_UP, if quick { 1500 } else { 5000 }).await?.all_went_well()?;
        let used = meter::own_processor_time() - used;
        let forced = alone.engine.writer().counts().forces - forced;
        let disk = (disk_before, meter::fdatasync_micros(alone.directory.path())?);
        let processor = used.as_secs_f64() * 1e6 / count(seen.all);
        Ok(Measured { disk, processor, forces: count(forced) / count(seen.all), seen })
    })
}
