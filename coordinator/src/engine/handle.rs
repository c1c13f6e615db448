//! The engine as the edge sees it: begin, commit, roll back, inquire.
//!
//! A question goes to the transaction's shard first. Only if it is not live there is the log asked, in this order (P4): what ends
//! between the two questions has left its record before it leaves the shard.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lockstep_proto::{Epoch, Gtrid, TraceParent};

use super::input::{Act, Answer, Input, OutcomeAnswer, Summary, TransactionView, Wait};
use super::maintenance::MIN_FREE_BYTES;
use super::shell::{Mail, Shards, Stopped};
use crate::decision_log::group_commit::LogWriter;
use crate::decision_log::{AppendError, Batch, DecisionLog, LogStatus, LookUp, ReadError};
use crate::protocol::outcome::Outcome;
use crate::protocol::presumption::{Known, conclude};
use crate::protocol::record::About;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::{OpenSpan, Traces};

/// What a question to the engine can fail with. Nothing is known then, and nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The process is ending.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The log cannot be asked.
    #[error(transparent)]
    Log(#[from] ReadError),
    /// What was read in the log could not be made durable.
    #[error(transparent)]
    NotDurable(#[from] AppendError),
}

/// Why a transaction was not begun.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// As many are in flight as may be.
    #[error(
        "{0} transactions are in flight, which is the limit (max-in-flight): try again when some have ended"
    )]
    Full(usize),
    /// The coordinator is going away.
    #[error("the coordinator is draining and begins nothing new: begin at another one, or when it is back")]
    Draining,
    /// Participants have seen decisions that this log has lost (P8).
    #[error(
        "the decision log is behind what participants have seen: it was restored from a backup, \
         and nothing is begun before an operator has stopped every coordinator and run `lockstep restore`"
    )]
    Behind,
    /// The data directory has too little room left.
    #[error(
        "only {0} MiB are free in the data directory: make room there, running transactions can still end"
    )]
    DiskFull(u64),
    /// The clock stands before the newest transaction that was pruned (P7).
    #[error("this machine's clock stands before transactions that were pruned from the log: set it right")]
    ClockBehind,
    /// The process is ending.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// What comes of reading the log, for those who do not wait for it. One that does not answer soon is as good as one that says that it cannot:
/// people and scrapers ask, and look elsewhere if they hear nothing. The reading itself goes on to its own end: broken off, it would leave
/// a statement on the server, and each further question one more of them.
///
/// # Errors
/// [`ReadError::Unavailable`] after two seconds.
///
/// # Panics
/// If the reading does.
pub async fn soon<T: Send + 'static>(
    reading: impl Future<Output = T> + Send + 'static,
) -> Result<T, ReadError> {
    within(Duration::from_secs(2), reading).await
}

/// The same for those who wait so long.
///
/// # Errors
/// [`ReadError::Unavailable`] after that time.
///
/// # Panics
/// If the reading does.
pub async fn within<T: Send + 'static>(
    patience: Duration,
    reading: impl Future<Output = T> + Send + 'static,
) -> Result<T, ReadError> {
    match tokio::time::timeout(patience, tokio::spawn(reading)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(ended)) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_cancelled) => Err(ReadError::Unavailable("this process is ending".to_owned())),
        },
        Err(_elapsed) => Err(ReadError::Unavailable(format!("it has not answered within {patience:?}"))),
    }
}

/// Everything the edge needs. Cheap to clone.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    shards: Shards,
    log: Arc<dyn DecisionLog>,
    writer: LogWriter,
    metrics: Arc<Metrics>,
    traces: Option<Traces>,
    max_in_flight: usize,
    draining: AtomicBool,
    behind: AtomicBool,
    admission: Admission,
    late_ends: tokio::sync::Mutex<()>,
}

/// What is measured now and then to decide whether new transactions may begin.
#[derive(Debug)]
pub struct Admission {
    /// Bytes free in the data directory; [`Admission::NOT_MEASURED`] for a log that is elsewhere.
    free_bytes: AtomicU64,
    /// The log's horizon, in milliseconds since 1970.
    horizon_ms: AtomicU64,
}

impl Default for Admission {
    fn default() -> Self {
        Self { free_bytes: AtomicU64::new(Self::NOT_MEASURED), horizon_ms: AtomicU64::new(0) }
    }
}

impl Admission {
    /// More than any disk has.
    const NOT_MEASURED: u64 = u64::MAX;

    /// So much is free now.
    pub fn set_free_bytes(&self, bytes: u64) {
        self.free_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Bytes free in the data directory, where they are measured.
    #[must_use]
    pub fn free_bytes(&self) -> Option<u64> {
        Some(self.free_bytes.load(Ordering::Relaxed)).filter(|bytes| *bytes != Self::NOT_MEASURED)
    }

    /// Nothing that begins from now on is older than this, or exactly as old.
    pub fn raise_horizon(&self, unix_ms: u64) {
        self.horizon_ms.fetch_max(unix_ms, Ordering::Relaxed);
    }
}

impl Engine {
    /// An engine of these parts.
    #[must_use]
    pub fn new(
        shards: Shards,
        log: Arc<dyn DecisionLog>,
        writer: LogWriter,
        metrics: Arc<Metrics>,
        traces: Option<Traces>,
        max_in_flight: usize,
    ) -> Self {
        Self(Arc::new(Inner {
            shards,
            log,
            writer,
            metrics,
            traces,
            max_in_flight,
            draining: AtomicBool::new(false),
            behind: AtomicBool::new(false),
            admission: Admission::default(),
            late_ends: tokio::sync::Mutex::new(()),
        }))
    }

    /// The shards.
    #[must_use]
    pub fn shards(&self) -> &Shards {
        &self.0.shards
    }

    /// The log, for reading.
    #[must_use]
    pub fn log(&self) -> &Arc<dyn DecisionLog> {
        &self.0.log
    }

    /// How the log stands.
    ///
    /// # Errors
    /// [`ReadError`], [`soon`].
    pub async fn log_status(&self) -> Result<LogStatus, ReadError> {
        let engine = self.clone();
        soon(async move { engine.0.log.status().await }).await?
    }

    /// Before decisions of these epochs are told: sees to it that the position that is told with them is one to which a log without
    /// them has not come, by a forced batch where it takes one ([`lockstep_proto::positions`]).
    ///
    /// # Errors
    /// [`AppendError`]: nothing may be told.
    pub async fn cover(&self, epochs: impl IntoIterator<Item = Epoch>) -> Result<(), AppendError> {
        let log = self.log();
        let own = log.position().epoch;
        if epochs.into_iter().any(|epoch| epoch != own && !log.has_all_of(epoch)) {
            log.force(&Batch::default()).await?;
        }
        Ok(())
    }

    /// What knows the newest log position.
    #[must_use]
    pub fn writer(&self) -> &LogWriter {
        &self.0.writer
    }

    /// What is measured.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// What makes spans, if somebody wants them.
    #[must_use]
    pub fn traces(&self) -> Option<&Traces> {
        self.0.traces.as_ref()
    }

    /// What admission looks at.
    #[must_use]
    pub fn admission(&self) -> &Admission {
        &self.0.admission
    }

    /// Held while an end that turned out late is read, changed and written.
    #[must_use]
    pub(super) fn late_ends(&self) -> &tokio::sync::Mutex<()> {
        &self.0.late_ends
    }

    /// From now on nothing is begun.
    pub fn start_draining(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }

    /// Whether nothing is begun any more.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Relaxed)
    }

    /// A participant has seen decisions that the log does not have: nothing is presumed any more (P8).
    pub fn presume_nothing(&self) {
        self.0.behind.store(true, Ordering::Relaxed);
    }

    /// Whether a participant has seen decisions that the log does not have.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.0.behind.load(Ordering::Relaxed)
    }

    /// Begins a transaction. `caller`: the span that it is begun in. Its id, and its own span, if that is recorded.
    ///
    /// # Errors
    /// [`BeginError`]; nothing was begun.
    pub async fn begin(
        &self,
        about: About,
        timeout: Duration,
        caller: Option<TraceParent>,
    ) -> Result<(Gtrid, Option<TraceParent>), BeginError> {
        self.may_begin()?;
        let random: [u8; 10] = rand::random();
        let name = about.name.clone();
        let span = self.0.traces.as_ref().and_then(|traces| traces.begin(&name, timeout, caller));
        let trace = span.as_ref().map(OpenSpan::parent);
        let about = About { trace, ..about };
        // The shard follows from the random bits alone, so any time and epoch give the right one.
        let epoch = self.0.log.position().epoch;
        let shard = self.0.shards.of(&Gtrid::new(epoch, 0, random));
        let mail = |reply| {
            let input = Input::Begin { random, timeout, about, reply };
            match span {
                Some(span) => Mail::Begins(input, span),
                None => Mail::Input(input),
            }
        };
        let answer = shard.ask_by(mail).await?;
        if answer == Answer::Full {
            return Err(BeginError::Full(self.0.max_in_flight));
        }
        let Answer::Begun(gtrid) = answer else {
            unreachable!("a begin is answered with begun or full, not {answer:?}")
        };
        self.0.metrics.started(&name);
        Ok((gtrid, trace))
    }

    /// Whether a transaction may begin now.
    ///
    /// # Errors
    /// Why not.
    pub fn may_begin(&self) -> Result<(), BeginError> {
        if self.0.draining.load(Ordering::Relaxed) {
            return Err(BeginError::Draining);
        }
        if self.is_behind() {
            return Err(BeginError::Behind);
        }
        if let Some(free) = self.0.admission.free_bytes().filter(|free| *free < MIN_FREE_BYTES) {
            return Err(BeginError::DiskFull(free >> 20));
        }
        if super::clock::unix_ms() <= self.0.admission.horizon_ms.load(Ordering::Relaxed) {
            return Err(BeginError::ClockBehind);
        }
        Ok(())
    }

    /// Commits, and waits for the outcome as asked.
    ///
    /// # Errors
    /// [`EngineError`]: the outcome is unknown to the caller then.
    pub async fn commit(&self, gtrid: Gtrid, wait: Wait) -> Result<OutcomeAnswer, EngineError> {
        let answer = self.0.shards.of(&gtrid).ask(|reply| Input::Commit { gtrid, wait, reply }).await?;
        self.outcome_or_recorded(gtrid, answer).await
    }

    /// Rolls back unless commit is decided, and tells the outcome.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn rollback(&self, gtrid: Gtrid, why: String) -> Result<OutcomeAnswer, EngineError> {
        let answer = self.0.shards.of(&gtrid).ask(|reply| Input::Rollback { gtrid, why, reply }).await?;
        self.outcome_or_recorded(gtrid, answer).await
    }

    /// Tells the outcome.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn inquire(&self, gtrid: Gtrid) -> Result<OutcomeAnswer, EngineError> {
        let answer = self.0.shards.of(&gtrid).ask(|reply| Input::Inquire { gtrid, reply }).await?;
        self.outcome_or_recorded(gtrid, answer).await
    }

    async fn outcome_or_recorded(&self, gtrid: Gtrid, answer: Answer) -> Result<OutcomeAnswer, EngineError> {
        if answer == Answer::NotLive {
            // In this order: what is not on its way any more is in the log.
            if let Some(end) = self.0.writer.end_on_its_way(&gtrid) {
                let (outcome, branches) = (Some(end.outcome), end.branches.len());
                return Ok(OutcomeAnswer { outcome, detail: end.detail, branches, pending: 0 });
            }
            let look_up = self.look_up(gtrid).await?;
            return Ok(recorded_outcome(&look_up, self.is_behind()));
        }
        let Answer::Outcome(outcome) = answer else {
            unreachable!("a question for an outcome is answered with one, not {answer:?}")
        };
        Ok(outcome)
    }

    /// An operator's act on a decision's deliveries. On how many branches it was carried out; `None` if the transaction is not
    /// live here.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn act(&self, gtrid: Gtrid, act: Act) -> Result<Option<usize>, Stopped> {
        let answer = self.0.shards.of(&gtrid).ask(|reply| Input::Act { gtrid, act, reply }).await?;
        match answer {
            Answer::Acted(branches) => Ok(Some(branches)),
            Answer::NotLive => Ok(None),
            other @ (Answer::Begun(_)
            | Answer::Full
            | Answer::Outcome(_)
            | Answer::Prepared(_)
            | Answer::Listing(_)
            | Answer::Summary(_)) => unreachable!("an act is answered with what was done, not {other:?}"),
        }
    }

    /// What the log knows of a transaction.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn look_up(&self, gtrid: Gtrid) -> Result<LookUp, ReadError> {
        let mut found = self.0.log.look_up(&[gtrid]).await?;
        assert_eq!(found.len(), 1, "the log answers each gtrid once");
        Ok(found.remove(0))
    }

    /// The newest live transactions, at most `limit`.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn list(&self, limit: usize) -> Result<Vec<TransactionView>, Stopped> {
        self.gather(limit, |reply| Input::List { limit, reply }).await
    }

    /// Live transactions whose gtrid, or hex digits, begin with `prefix`, at most `limit`.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn find(&self, prefix: &str, limit: usize) -> Result<Vec<TransactionView>, Stopped> {
        self.gather(limit, |reply| Input::Find { prefix: prefix.to_owned(), limit, reply }).await
    }

    async fn gather(
        &self,
        limit: usize,
        input: impl Fn(super::shell::ReplyTo) -> Input<super::shell::ReplyTo>,
    ) -> Result<Vec<TransactionView>, Stopped> {
        let mut all = Vec::new();
        for shard in self.0.shards.iter() {
            let answer = shard.ask(&input).await?;
            let Answer::Listing(views) = answer else {
                unreachable!("a listing is answered with one, not {answer:?}")
            };
            all.extend(views);
        }
        all.sort_unstable_by_key(|view| std::cmp::Reverse(view.gtrid));
        all.truncate(limit);
        Ok(all)
    }

    /// All shards in numbers.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn summarize(&self) -> Result<Summary, Stopped> {
        let mut sum = Summary { begins_from_ms: u64::MAX, ..Summary::default() };
        for shard in self.0.shards.iter() {
            let answer = shard.ask(|reply| Input::Summarize { reply }).await?;
            let Answer::Summary(part) = answer else {
                unreachable!("a summary is answered with one, not {answer:?}")
            };
            sum.live += part.live;
            sum.undecided += part.undecided;
            sum.overdue += part.overdue;
            sum.undelivered += part.undelivered;
            sum.undelivered_since_ms =
                [sum.undelivered_since_ms, part.undelivered_since_ms].into_iter().flatten().min();
            sum.oldest = [sum.oldest, part.oldest].into_iter().flatten().min();
            sum.begins_from_ms = sum.begins_from_ms.min(part.begins_from_ms);
            for (name, depth) in part.queued {
                *sum.queued.entry(name).or_default() += depth;
            }
        }
        Ok(sum)
    }

    /// No transaction that is live here is older than this, and none that begins later will be.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn live_floor(&self) -> Result<Gtrid, Stopped> {
        let sum = self.summarize().await?;
        Ok(sum.floor(self.0.log.position().epoch))
    }

    /// The same of every node on the log.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn floor(&self) -> Result<Gtrid, EngineError> {
        let own = self.live_floor().await?;
        Ok(self.0.log.floor(own).await?)
    }

    /// Hands mail to every shard.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn broadcast(&self, mail: impl Fn() -> Mail) -> Result<(), Stopped> {
        for shard in self.0.shards.iter() {
            shard.send(mail()).await?;
        }
        Ok(())
    }
}

/// What a client is told of a transaction that is not live. `behind`: participants have seen decisions that the log does not have.
#[must_use]
pub fn recorded_outcome(look_up: &LookUp, behind: bool) -> OutcomeAnswer {
    use crate::decision_log::Recorded;
    let branches = match &look_up.recorded {
        Recorded::Absent => 0,
        Recorded::Decided(decision) | Recorded::Ended(Some(decision), _) => decision.branches.len(),
        Recorded::Ended(None, end) => end.branches.len(),
    };
    let (outcome, detail, pending) = match conclude(look_up, behind) {
        Known::Ended(outcome, detail) => (Some(outcome), detail, 0),
        Known::Committing => (Some(Outcome::Committed), String::new(), branches),
        Known::OnePhase => {
            (None, "its only branch commits by itself and has not answered yet".to_owned(), branches)
        }
        Known::Elsewhere => (None, "it is running at another coordinator: ask that one".to_owned(), 0),
        Known::PresumedRolledBack => {
            let detail =
                "no commit of it is recorded: it was rolled back, its deadline passed, or it never began";
            (Some(Outcome::RolledBack), detail.to_owned(), 0)
        }
        Known::Unknown(why) => (Some(Outcome::Unknown), why.to_owned(), 0),
    };
    OutcomeAnswer { outcome, detail, branches, pending }
}
