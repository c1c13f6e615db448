//! Puts the coordinator together, runs it, and takes it down.
//!
//! The order at the start is what makes recovery safe: the log is opened under a new epoch, with every earlier one sealed
//! (every one whose node is gone, where several share the log) and what it reads forced (P3, P6); every unfinished decision is
//! with its shard; only then is anyone served.
//!
//! **Lives.** A node whose epoch was sealed by another ends that life at once: its streams and its waiting clients are told that
//! it is gone, its transactions are the other's to finish, or are presumed rolled back. Then it begins again under a new epoch, in
//! the same process and on the same address.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::cluster::Keeper;
use crate::codes::Code;
use crate::config::Config;
use crate::decision_log::group_commit::GroupCommit;
use crate::decision_log::{AppendError, DecisionLog, ReadError, postgres, sqlite};
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

/// Acknowledgements of forgotten transactions that wait to be compared with the log.
const STRAYS: usize = 4096;
/// Decisions that are read at once at the start.
const RECOVER_AT_ONCE: u32 = 1000;
/// Transactions for which a shard of their own is worth while.
const LIVE_PER_SHARD: usize = 1024;
/// A peer that does not answer a ping for so long is gone, and its session with it.
const PING_EVERY: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a coordinator did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which address.
        address: SocketAddr,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The embedded decision log cannot be opened.
    #[error(transparent)]
    Open(#[from] sqlite::OpenError),
    /// The shared decision log cannot be opened.
    #[error(transparent)]
    OpenShared(#[from] postgres::OpenError),
    /// The decision log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A force failed, or it is unknown whether it did (P6).
    #[error("the decision log failed, and this process must not go on: {0}")]
    LogFailed(String),
    /// A task of ours is gone.
    #[error("a part of the coordinator has ended unexpectedly, and this process must not go on: {0}")]
    Bug(String),
    /// The server failed.
    #[error("the gRPC server failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

impl ServeError {
    /// Its code: docs/errors has a page for it.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Listen { .. } | Self::Serve(_) => Code::CannotListen,
            Self::Open(error) => error.code(),
            Self::OpenShared(error) => error.code(),
            Self::Read(ReadError::Unavailable(_)) => Code::CannotOpenLog,
            Self::Read(ReadError::Damaged(_)) => Code::LogDamaged,
            Self::LogFailed(_) => Code::LogFailed,
            Self::Bug(_) => Code::Bug,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::Listen { .. } => "is another `lockstep serve` running? `lockstep status` tells. \
                 Take another address with --listen; port 0 takes a free one"
                .to_owned(),
            // Its own sentence says what to do.
            Self::Open(_) => String::new(),
            Self::OpenShared(error) => error.remedy().to_owned(),
            Self::Read(_) => "if the log is damaged, keep a copy of it before anything else; \
                 then look at the disk, and restore from a backup"
                .to_owned(),
            Self::LogFailed(_) => {
                "look at the log's disk, then start again: what is really in the log is read then, and \
                 every transaction in doubt is finished from it"
                    .to_owned()
            }
            Self::Bug(_) => {
                "start again: the decision log has everything that is needed. Please report this".to_owned()
            }
            Self::Serve(_) => "start again".to_owned(),
        }
    }
}

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
        let listener = listener.try_clone().and_then(TcpListener::from_std).map_err(cannot_listen)?;
        let mut told = |ready: Ready| match on_ready.take() {
            Some(on_ready) => on_ready(ready),
            None => tracing::warn!(epoch = %ready.epoch, recovered = ?ready.recovered, "serving again"),
        };
        match Box::pin(live(config, &log, listener, watched, &mut told, shutdown)).await? {
            Ended::Stopped => return Ok(()),
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
    const AGAIN: Duration = Duration::from_secs(1);
    loop {
        match OpenLog::open(config, bound, first).await {
            Err(ServeError::OpenShared(error)) if !first => {
                tracing::error!(%error, "the decision log cannot be opened again; it is tried again");
            }
            opened => return opened.map(Some),
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = tokio::time::sleep(AGAIN) => {}
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

/// One life: from an open log to its end.
async fn live(
    config: &Config,
    log: &OpenLog,
    listener: TcpListener,
    watched: &Watched,
    on_ready: &mut (dyn FnMut(Ready) + Send),
    shutdown: &CancellationToken,
) -> Result<Ended, ServeError> {
    let bound =
        listener.local_addr().map_err(|source| ServeError::Listen { address: config.listen, source })?;
    let mut parts = Parts::start(config, log.shared(), watched).await?;
    let recovered = parts.recover(log.shared()).await?;
    fail::fail_point!("coordinator-recovered-before-serving");
    parts.run_beside(config, log);
    let mut keeper = parts.keep(config, log);

    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .tcp_nodelay(true)
        // For /metrics and the probes; gRPC is HTTP/2.
        .accept_http1(true)
        .add_routes(Services::new(parts.shared.clone(), config.default_timeout).router());
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    let stopped = parts.shared.shutdown.clone();
    let mut serving = tokio::spawn(server.serve_with_incoming_shutdown(incoming, stopped.cancelled_owned()));

    on_ready(log.ready(bound, recovered));
    let ended = tokio::select! {
        () = shutdown.cancelled() => Ok(Ended::Stopped),
        ended = &mut parts.log_task => log_ended(ended),
        over = &mut keeper => log_ended(over.map(Err)),
        task = parts.tasks.join_next() => Err(ServeError::Bug(format!("{task:?}"))),
        served = &mut serving => Err(match served {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) => ServeError::Bug("the server stopped by itself".into()),
            Err(panic) => ServeError::Bug(panic.to_string()),
        }),
    };
    // After a failed force or a bug nothing more may be sent: the process ends here.
    match ended? {
        Ended::Stopped => {
            parts.drain(config.drain_timeout).await;
            parts.shared.shutdown.cancel();
            let _served = serving.await;
            parts.flush().await;
            keeper.abort();
            log.shared().close().await;
            Ok(Ended::Stopped)
        }
        sealed @ Ended::Sealed(_) => {
            keeper.abort();
            parts.end_at_once(serving).await;
            log.shared().close().await;
            Ok(sealed)
        }
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
    clock: Clock,
    /// What must not end before the process does.
    tasks: JoinSet<()>,
    /// The decision log's writer: ends by itself when nothing can write to it any more.
    log_task: JoinHandle<Result<(), AppendError>>,
    strays: Option<mpsc::Receiver<StrayAcknowledgement>>,
}

impl Parts {
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
        Ok(Self { shared, clock, tasks, log_task, strays: Some(strays) })
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

    /// Ends everything of a life that is over: nothing more is sent, and whoever waits learns that this node is gone.
    async fn end_at_once(self, mut serving: JoinHandle<Result<(), tonic::transport::Error>>) {
        const PATIENCE: Duration = Duration::from_secs(2);
        let Self { shared, mut tasks, log_task, .. } = self;
        shared.shutdown.cancel();
        // What is under way in the log is void behind the seal.
        log_task.abort();
        tasks.shutdown().await;
        if tokio::time::timeout(PATIENCE, &mut serving).await.is_err() {
            serving.abort();
        }
    }

    /// Lets go of everything that can write to the log, and waits until what was written lazily is in it.
    async fn flush(self) {
        const PATIENCE: Duration = Duration::from_secs(5);
        let Self { shared, mut tasks, log_task, .. } = self;
        drop(shared);
        tasks.abort_all();
        while tasks.join_next().await.is_some() {}
        // Sessions that are just ending may hold it a moment longer. What is not flushed then is only for people: every end
        // that was written lazily is found out again by the next start.
        match tokio::time::timeout(PATIENCE, log_task).await {
            Ok(Ok(Ok(()))) => {}
            Ok(ended) => tracing::warn!(?ended, "the last records may not be in the decision log"),
            Err(_elapsed) => tracing::warn!("the decision log's writer did not end in time"),
        }
    }

    /// Begins nothing new, and waits until everything has ended, at most so long. Says what is left.
    async fn drain(&mut self, timeout: Duration) {
        const LOOK_EVERY: Duration = Duration::from_millis(20);
        self.shared.start_draining();
        let engine = &self.shared.engine;
        let deadline = self.clock.now().monotonic + timeout;
        loop {
            let Ok(left) = engine.summarize().await else { return };
            if left.live == 0 {
                tracing::info!("drained: nothing is in doubt");
                return;
            }
            if self.clock.now().monotonic >= deadline {
                tracing::warn!(
                    undecided = left.undecided,
                    undelivered = left.undelivered,
                    "stopping with transactions that have not ended: undecided ones are rolled back, \
                     undelivered decisions are delivered by the next start"
                );
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
