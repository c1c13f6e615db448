//! Puts the coordinator together, runs it, and takes it down.
//!
//! The order at the start is what makes recovery safe: the log is opened under a new epoch, with every earlier one sealed
//! (this node's own, where several share the log: `cluster` sees to those of the others) and what it reads forced (P3, P6); every
//! unfinished decision is with its shard; only then is anyone served.
//!
//! **Lives.** A node whose epoch was sealed by another ends that life at once: its streams and its waiting clients are told that
//! it is gone, its transactions are the other's to finish, or are presumed rolled back. Then it begins again under a new epoch, in
//! the same process and on the same address. A node that was told to stop, and is sealed while it drains, has nothing left to wait for.

mod error;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lockstep_proto::limits::{CONNECTION_WINDOW, MAX_OPEN_CALLS};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::cluster::Keeper;
use crate::config::Config;
use crate::decision_log::group_commit::GroupCommit;
use crate::decision_log::{AppendError, DecisionLog, ReadError};
use crate::engine::clock::Clock;
use crate::engine::handle::Engine;
use crate::engine::input::Input;
use crate::engine::shard::{Shard, ShardConfig};
use crate::engine::shell::{Mail, ShardTask, Shards, Stopped, StrayAcknowledgement};
use crate::engine::{inquiry, maintenance};
use crate::open_log::OpenLog;
use crate::operator::{Ready, Recovered};
use crate::rpc::Services;
use crate::sessions::inspections::Inspections;
use crate::sessions::registry::Registry;
use crate::sessions::session::{Shared, Terms};
use crate::telemetry::Onlookers;
use crate::telemetry::exporter::Exporter;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::stopwatch::Stopwatch;
use crate::telemetry::traces::{ShardTraces, Traces};

pub use error::ServeError;

/// Acknowledgements of forgotten transactions that wait to be compared with the log.
const STRAYS: usize = 4096;
/// Decisions that are read at once at the start.
const RECOVER_AT_ONCE: u32 = 1000;
/// Transactions for which a shard of their own is worth while.
const LIVE_PER_SHARD: usize = 1024;
/// A peer that does not answer a ping for so long is gone, and its session with it.
const PING_EVERY: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two attempts to begin again.
const AGAIN: Duration = Duration::from_secs(1);

/// Runs a coordinator until `shutdown` is cancelled and it has drained.
///
/// # Errors
/// Why it did not start, or could not go on. The decision log is whole in any case.
pub async fn serve(
    config: &Config,
    on_ready: impl FnOnce(Ready) + Send,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let address = config.listen;
    let cannot_listen = |source| ServeError::Listen { address, source };
    // Not tokio's: it is the same through all lives, and connections that come between two of them wait in it.
    let listener = std::net::TcpListener::bind(address).map_err(cannot_listen)?;
    listener.set_nonblocking(true).map_err(cannot_listen)?;
    let bound = listener.local_addr().map_err(cannot_listen)?;

    let exporter = Exporter::from_environment();
    // Through all lives: what is counted only grows.
    let watched =
        Watched { metrics: Arc::new(Metrics::new()), traces: exporter.as_ref().map(Exporter::traces) };
    let ended = lives(config, &listener, bound, &watched, on_ready, &shutdown).await;
    if let Some(exporter) = exporter {
        match &ended {
            Ok(()) => exporter.end().await,
            Err(_failed) => exporter.abandon(),
        }
    }
    ended
}

/// Into what a coordinator is measured and followed.
struct Watched {
    metrics: Arc<Metrics>,
    traces: Option<Traces>,
}

/// One life after the other, until one ends because the process was told to stop.
async fn lives(
    config: &Config,
    listener: &std::net::TcpListener,
    bound: SocketAddr,
    watched: &Watched,
    on_ready: impl FnOnce(Ready) + Send,
    shutdown: &CancellationToken,
) -> Result<(), ServeError> {
    let cannot_listen = |source| ServeError::Listen { address: config.listen, source };
    let mut on_ready = Some(on_ready);
    loop {
        let first = on_ready.is_some();
        let Some(log) = open(config, bound, first, shutdown).await? else { return Ok(()) };
        let parts = match Parts::recovered(config, log.shared(), watched).await {
            Err(ServeError::Read(ReadError::Unavailable(why))) if !first => {
                tracing::error!(why, "what is unfinished cannot be read: this node begins once more");
                log.shared().close().await;
                if shutdown.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none() {
                    return Ok(());
                }
                continue;
            }
            parts => parts?,
        };
        let listener = listener.try_clone().and_then(TcpListener::from_std).map_err(cannot_listen)?;
        let mut told = |ready: Ready| match on_ready.take() {
            Some(on_ready) => on_ready(ready),
            None => tracing::warn!(epoch = %ready.epoch, recovered = ?ready.recovered, "serving again"),
        };
        match Box::pin(live(config, &log, listener, parts, &mut told, shutdown)).await? {
            Ended::Stopped => return Ok(()),
            Ended::Sealed(why) if shutdown.is_cancelled() => {
                tracing::error!(
                    "{why}; this node was told to stop, and what it had not ended is the other's"
                );
                return Ok(());
            }
            Ended::Sealed(why) => tracing::error!("{why}; this node begins again under a new epoch"),
        }
    }
}

/// Opens the log. After the first life the server that it is on was there a moment ago: it is waited for. `None`: this process was told
/// to stop meanwhile.
async fn open(
    config: &Config,
    bound: SocketAddr,
    first: bool,
    shutdown: &CancellationToken,
) -> Result<Option<OpenLog>, ServeError> {
    loop {
        match OpenLog::open(config, bound, first).await {
            Err(ServeError::OpenShared(error)) if !first => {
                tracing::error!(%error, "the decision log cannot be opened again; it is tried again");
            }
            opened => return opened.map(Some),
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none() {
            return Ok(None);
        }
    }
}

/// How a life ended.
enum Ended {
    /// This process was told to stop, and has drained.
    Stopped,
    /// Another node has taken over.
    Sealed(String),
}

/// One life: from an open log, of which everything unfinished was read, to its end.
async fn live(
    config: &Config,
    log: &OpenLog,
    listener: TcpListener,
    (mut parts, recovered): (Parts, Recovered),
    on_ready: &mut (dyn FnMut(Ready) + Send),
    shutdown: &CancellationToken,
) -> Result<Ended, ServeError> {
    let bound =
        listener.local_addr().map_err(|source| ServeError::Listen { address: config.listen, source })?;
    fail::fail_point!("coordinator-recovered-before-serving");
    parts.run_beside(config, log);
    let mut keeper = parts.keep(config, log);

    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .tcp_nodelay(true)
        .max_concurrent_streams(MAX_OPEN_CALLS)
        // Calls that were given up before they were looked at. With more of them than so many, 20 unless it is said, the connection is closed.
        .http2_max_pending_accept_reset_streams(Some(MAX_OPEN_CALLS as usize))
        .initial_connection_window_size(CONNECTION_WINDOW)
        // For /metrics and the probes; gRPC is HTTP/2.
        .accept_http1(true)
        .add_routes(Services::new(parts.shared.clone(), config.default_timeout).router());
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    let stopped = parts.shared.shutdown.clone();
    let mut serving = tokio::spawn(server.serve_with_incoming_shutdown(incoming, stopped.cancelled_owned()));

    on_ready(log.ready(bound, recovered));
    let mut ended = tokio::select! {
        () = shutdown.cancelled() => Ok(Ended::Stopped),
        ended = parts.until_over(&mut keeper, &mut serving) => ended,
    };
    if let Ok(Ended::Stopped) = ended {
        parts.shared.start_draining();
        let engine = parts.shared.engine.clone();
        ended = tokio::select! {
            () = drain(engine, config.drain_timeout) => Ok(Ended::Stopped),
            ended = parts.until_over(&mut keeper, &mut serving) => ended,
        };
    }
    // After a failed force or a bug nothing more may be sent: the process ends here.
    let ended = ended?;
    // Before the log is closed: who gives its lease up must not renew it.
    keeper.abort();
    match ended {
        Ended::Stopped => {
            parts.shared.shutdown.cancel();
            end_serving(serving).await;
            parts.flush().await;
        }
        Ended::Sealed(_) => parts.end_at_once(serving).await,
    }
    log.shared().close().await;
    Ok(ended)
}

/// Waits for the last answers to those who still ask, not for those who wait for what the log does not say.
async fn end_serving(mut serving: JoinHandle<Result<(), tonic::transport::Error>>) {
    const PATIENCE: Duration = Duration::from_secs(2);
    if tokio::time::timeout(PATIENCE, &mut serving).await.is_err() {
        serving.abort();
    }
}

fn log_ended(ended: Result<Result<(), AppendError>, JoinError>) -> Result<Ended, ServeError> {
    match ended {
        Ok(Ok(())) => Err(ServeError::Bug("the decision log's writer stopped by itself".into())),
        Ok(Err(AppendError::Sealed(why))) => Ok(Ended::Sealed(why)),
        Ok(Err(error @ (AppendError::Refused(_) | AppendError::Unknown(_)))) => {
            Err(ServeError::LogFailed(error.to_string()))
        }
        Err(panic) => Err(ServeError::Bug(panic.to_string())),
    }
}

/// Everything that runs.
struct Parts {
    shared: Shared,
    /// What must not end before the process does.
    tasks: JoinSet<()>,
    /// The decision log's writer: ends by itself when nothing can write to it any more.
    log_task: JoinHandle<Result<(), AppendError>>,
    strays: Option<mpsc::Receiver<StrayAcknowledgement>>,
}

impl Parts {
    /// Everything, with every unfinished decision in it; nothing of it is sent yet, and nobody is served.
    async fn recovered(
        config: &Config,
        log: &Arc<dyn DecisionLog>,
        watched: &Watched,
    ) -> Result<(Self, Recovered), ServeError> {
        let mut parts = Self::start(config, log, watched).await?;
        let recovered = parts.recover(log).await?;
        Ok((parts, recovered))
    }

    async fn start(
        config: &Config,
        log: &Arc<dyn DecisionLog>,
        watched: &Watched,
    ) -> Result<Self, ServeError> {
        let Watched { metrics, traces } = watched;
        let clock = Clock::start();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let count = cores.min(config.max_in_flight / LIVE_PER_SHARD).max(1);
        let (answer_to, answers): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::unbounded_channel()).unzip();
        let (writer, group_commit) = GroupCommit::new(Arc::clone(log), answer_to, metrics.log.clone());
        let log_task = tokio::spawn(group_commit.run());
        let (stray_sender, strays) = mpsc::channel(STRAYS);
        let known = log.resource_managers().await?;
        let shard_config = ShardConfig {
            epoch: log.position().epoch,
            max_live: config.max_in_flight.div_ceil(count),
            apply_wait: config.apply_wait,
            begin_from_ms: log.begins_from_ms().await?,
        };
        let mut tasks = JoinSet::new();
        let mut handles = Vec::new();
        for (number, answers) in answers.into_iter().enumerate() {
            let shard = Shard::new(shard_config);
            let onlookers = Onlookers {
                stopwatch: Stopwatch::new(Arc::clone(metrics)),
                traces: traces.clone().map(ShardTraces::new),
            };
            let (task, handle) = ShardTask::new(
                number,
                shard,
                clock,
                writer.clone(),
                answers,
                stray_sender.clone(),
                onlookers,
            );
            tasks.spawn(task.run());
            handles.push(handle);
        }
        let retired: Vec<_> =
            known.iter().filter(|known| known.retired).map(|known| known.name.clone()).collect();
        let registry = Registry::new(known);
        let shards = Shards::new(handles);
        let (metrics, traces) = (Arc::clone(metrics), traces.clone());
        let engine = Engine::new(shards, Arc::clone(log), writer, metrics, traces, config.max_in_flight);
        let terms = Terms { retention: config.retention, report_interval: config.report_interval };
        let shared = Shared {
            engine,
            registry,
            inspections: Inspections::default(),
            terms: Arc::new(terms),
            draining: CancellationToken::new(),
            shutdown: CancellationToken::new(),
        };
        shared.retire_again(&retired).await.map_err(|Stopped| ServeError::Bug("a shard has ended".into()))?;
        Ok(Self { shared, tasks, log_task, strays: Some(strays) })
    }

    /// Gives every unfinished decision to its shard. Reads the decisions of sealed epochs only: the seal is committed, so that
    /// none can appear behind what was read (P1).
    async fn recover(&mut self, log: &Arc<dyn DecisionLog>) -> Result<Recovered, ServeError> {
        let mut recovered = Recovered::default();
        let mut after = None;
        loop {
            let page = log.unfinished(after, RECOVER_AT_ONCE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.gtrid);
            let covered = self.shared.engine.cover(page.iter().map(|record| record.gtrid.epoch())).await;
            covered.map_err(|error| ReadError::Unavailable(error.to_string()))?;
            for record in page {
                recovered.count(&record);
                let shard = self.shared.engine.shards().of(&record.gtrid);
                let mail = Mail::Input(Input::Recover(record));
                shard.send(mail).await.map_err(|Stopped| ServeError::Bug("a shard has ended".into()))?;
            }
        }
        let status = log.status().await?;
        self.shared.engine.admission().raise_horizon(status.horizon_ms);
        if status.behind {
            tracing::error!(
                "the decision log lacks what participants, or a node, had seen: nothing is presumed and nothing is begun \
                 before every coordinator was stopped and `lockstep restore` was run"
            );
            self.shared.engine.presume_nothing();
        }
        Ok(recovered)
    }

    /// Starts what runs beside the transactions.
    fn run_beside(&mut self, config: &Config, log: &OpenLog) {
        let engine = || self.shared.engine.clone();
        let strays = self.strays.take().expect("started once");
        self.tasks.spawn(inquiry::judge_strays(engine(), strays));
        self.tasks.spawn(maintenance::prune_now_and_then(
            engine(),
            self.shared.registry.clone(),
            config.retention,
        ));
        if let Some(log) = log.embedded() {
            self.tasks.spawn(maintenance::watch_disk(engine(), move || log.free_bytes()));
        }
    }

    /// Keeps the lease, where there is one, until another node has taken over; of a log of one's own, waits until it must not be
    /// trusted any more.
    fn keep(&self, config: &Config, log: &OpenLog) -> JoinHandle<AppendError> {
        let keeper = log.on_postgres().map(|(log, adopted)| {
            Keeper::new(log, self.shared.engine.clone(), self.shared.registry.clone(), config.lease, adopted)
        });
        let own = log.embedded();
        tokio::spawn(async move {
            match (keeper, own) {
                (Some(keeper), _) => keeper.run().await,
                (None, Some(own)) => own.broken().await,
                (None, None) => unreachable!("a log is shared or embedded"),
            }
        })
    }

    /// Waits until this life is over, by whatever must not end before it: how it ended.
    async fn until_over(
        &mut self,
        keeper: &mut JoinHandle<AppendError>,
        serving: &mut JoinHandle<Result<(), tonic::transport::Error>>,
    ) -> Result<Ended, ServeError> {
        tokio::select! {
            ended = &mut self.log_task => log_ended(ended),
            over = keeper => log_ended(over.map(Err)),
            task = self.tasks.join_next() => Err(ServeError::Bug(format!("{task:?}"))),
            served = serving => Err(match served {
                Ok(Err(error)) => error.into(),
                Ok(Ok(())) => ServeError::Bug("the server stopped by itself".into()),
                Err(panic) => ServeError::Bug(panic.to_string()),
            }),
        }
    }

    /// Ends everything of a life that is over: nothing more is sent, and whoever waits learns that this node is gone.
    async fn end_at_once(self, serving: JoinHandle<Result<(), tonic::transport::Error>>) {
        let Self { shared, mut tasks, log_task, .. } = self;
        shared.shutdown.cancel();
        // What is under way in the log is void behind the seal.
        log_task.abort();
        tasks.shutdown().await;
        end_serving(serving).await;
    }

    /// Lets go of everything that can write to the log, and waits until what was written lazily is in it.
    async fn flush(self) {
        const PATIENCE: Duration = Duration::from_secs(5);
        let Self { shared, mut tasks, mut log_task, .. } = self;
        drop(shared);
        tasks.abort_all();
        while tasks.join_next().await.is_some() {}
        // Sessions that are just ending may hold it a moment longer. What is not flushed then is only for people: every end
        // that was written lazily is found out again by the next start.
        match tokio::time::timeout(PATIENCE, &mut log_task).await {
            Ok(Ok(Ok(()))) => {}
            Ok(ended) => tracing::warn!(?ended, "the last records may not be in the decision log"),
            Err(_elapsed) => {
                tracing::warn!(
                    "the decision log's writer did not end in time: whether the log has what was under way, whoever takes over finds out"
                );
                log_task.abort();
                let _aborted = log_task.await;
            }
        }
    }
}

/// Waits until everything has ended, at most so long. Says what is left. A shard that waits for the log says nothing.
async fn drain(engine: Engine, timeout: Duration) {
    const LOOK_EVERY: Duration = Duration::from_millis(20);
    let mut left = None;
    let drained = async {
        while let Ok(now) = engine.summarize().await {
            if now.live == 0 {
                tracing::info!("drained: nothing is in doubt");
                return;
            }
            left = Some(now);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    if tokio::time::timeout(timeout, drained).await.is_err() {
        tracing::warn!(
            undecided = left.as_ref().map(|left| left.undecided),
            undelivered = left.as_ref().map(|left| left.undelivered),
            "stopping with transactions that have not ended: undecided ones are rolled back, \
             undelivered decisions are delivered by the next start"
        );
    }
}
