//! Group commit: whatever is waiting goes into one forced write.
//!
//! Shards hand their writes over through a [`LogWriter`]; one [`GroupCommit`] task takes everything that waits, forces it as
//! one batch, and answers each shard with all of its results at once. While a force is under way the next batch gathers by
//! itself, so that the slower the disk, the larger the batch. No timer ever delays a forced write. Ends that nobody waits for
//! ride along with the next forced batch; if none comes within a second they are written without an fsync.
//!
//! **Order.** The log knows its new position before any result is told, so that a message that follows from a decision
//! carries a position that has it (protocol.md, P8).
//!
//! **Failure.** Refused: the waiting writes are answered so, the lazy ends are kept for the next batch. Unknown: everything
//! that waits is answered unknown, also what was not handed to the log yet, nothing more is taken, and
//! [`GroupCommit::run`] returns the error; the process has to end. Sealed by another node: the same, but a new epoch will do.
//!
//! **Why the answers have no bounded channel.** A shard that waits for room in the queue of writes, while this task waits for
//! room in the shard's queue of answers, would wait for ever. The answers are bounded by the questions instead: a
//! transaction has at most one forced write under way, so a shard never has more answers waiting than it has transactions.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use lockstep_proto::{Gtrid, LogPosition};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{AppendError, Batch, DecisionLog};
use crate::protocol::record::{EndRecord, LogWrite};
use crate::telemetry::metrics::LogMetrics;

/// Records in one batch. Past some hundred, a larger batch saves no more time per record, and the first in it wait longer;
/// and with the largest records (256 branches, 16 labels) a full one still is some 30 MiB.
pub const MAX_BATCH: usize = 1024;
/// Writes that wait for the task: the next batches. More wait in the shards.
const QUEUE: usize = 4 * MAX_BATCH;
/// How long an end waits for a forced batch to ride along with, and the pause after a refusal.
const LAZY_DELAY: Duration = Duration::from_secs(1);

/// Which kind of forced write a result is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forced {
    /// [`LogWrite::ForceDecision`].
    Decision,
    /// [`LogWrite::ForceEnd`].
    End,
}

/// What came of a forced write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogDone {
    /// Whose.
    pub gtrid: Gtrid,
    /// Which.
    pub forced: Forced,
    /// The position that has it, or what failed.
    pub result: Result<LogPosition, AppendError>,
    /// The write that it was part of.
    pub force: Force,
}

/// A batch on its way to the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Force {
    /// The records in it; 0 if it was not handed to the log any more.
    pub records: usize,
    /// How long the log took.
    pub took: Duration,
}

/// The writer has stopped: the log is broken, and the process is about to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the decision log takes no more writes: the process is ending")]
pub struct Stopped;

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Forced batches.
    pub forces: u64,
    /// Records in them.
    pub records: u64,
    /// The most records in one.
    pub largest_batch: u64,
    /// Writes of ends alone, without an fsync.
    pub lazy_writes: u64,
    /// Batches that the log refused.
    pub refused: u64,
}

#[derive(Debug, Default)]
struct Counters {
    forces: AtomicU64,
    records: AtomicU64,
    largest_batch: AtomicU64,
    lazy_writes: AtomicU64,
    refused: AtomicU64,
}

/// Ends that were handed over and are not in the log yet: lazy ones, up to [`LAZY_DELAY`] long. Their shard has forgotten the
/// transaction, and the log alone would still say that it is being decided.
#[derive(Debug, Default)]
struct OnTheirWay(Mutex<BTreeMap<Gtrid, EndRecord>>);

impl OnTheirWay {
    fn ends(&self) -> MutexGuard<'_, BTreeMap<Gtrid, EndRecord>> {
        self.0.lock().expect("nobody panics with this lock")
    }
}

struct Request {
    shard: usize,
    write: LogWrite,
}

/// A cheap handle: hands writes over, and knows the newest position. When the last one is dropped, the task writes what is
/// left and ends.
#[derive(Clone)]
pub struct LogWriter {
    queue: mpsc::Sender<Request>,
    log: Arc<dyn DecisionLog>,
    counters: Arc<Counters>,
    on_their_way: Arc<OnTheirWay>,
    shards: usize,
}

impl LogWriter {
    /// Hands a write of this shard over; waits while the queue is full. The result of a forced one comes by the shard's
    /// channel.
    ///
    /// # Errors
    /// [`Stopped`]: the write was not taken, and nothing will come of it.
    ///
    /// # Panics
    /// If there is no such shard.
    pub async fn submit(&self, shard: usize, write: LogWrite) -> Result<(), Stopped> {
        assert!(shard < self.shards, "shard {shard} of {} writes to the log", self.shards);
        if let LogWrite::LazyEnd(end) = &write {
            self.on_their_way.ends().insert(end.gtrid, end.clone());
        }
        self.queue.send(Request { shard, write }).await.map_err(|_closed| Stopped)
    }

    /// The end of a transaction that was handed over and is not in the log yet. Whoever finds none here and reads the log after
    /// that finds what was written meanwhile there.
    #[must_use]
    pub fn end_on_its_way(&self, gtrid: &Gtrid) -> Option<EndRecord> {
        self.on_their_way.ends().get(gtrid).cloned()
    }

    /// The newest forced batch, whoever has forced it.
    #[must_use]
    pub fn position(&self) -> LogPosition {
        self.log.position()
    }

    /// How much was written, and in what portions.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            forces: load(&self.counters.forces),
            records: load(&self.counters.records),
            largest_batch: load(&self.counters.largest_batch),
            lazy_writes: load(&self.counters.lazy_writes),
            refused: load(&self.counters.refused),
        }
    }
}

/// Who waits for a record of the batch.
struct Waiter {
    shard: usize,
    gtrid: Gtrid,
    forced: Forced,
}

/// The task between the shards and the log.
pub struct GroupCommit {
    log: Arc<dyn DecisionLog>,
    queue: mpsc::Receiver<Request>,
    shards: Vec<mpsc::UnboundedSender<Vec<LogDone>>>,
    counters: Arc<Counters>,
    metrics: LogMetrics,
    on_their_way: Arc<OnTheirWay>,
    /// What is forced next, and who waits for it.
    batch: Batch,
    waiters: Vec<Waiter>,
    /// Ends that nobody waits for, and when they are written at the latest. Together with the batch at most [`MAX_BATCH`].
    lazy: Vec<EndRecord>,
    lazy_due: Instant,
}

/// What gathering ended with.
enum Gathered {
    /// There is something to force.
    Forced,
    /// Lazy ends have waited long enough.
    LazyDue,
    /// No writer is left.
    Closed,
}

impl GroupCommit {
    /// The task, to be [run](Self::run), and the handle to it. `shards` are told the results of their forced writes, by
    /// their index.
    #[must_use]
    pub fn new(
        log: Arc<dyn DecisionLog>,
        shards: Vec<mpsc::UnboundedSender<Vec<LogDone>>>,
        metrics: LogMetrics,
    ) -> (LogWriter, Self) {
        let (queue, requests) = mpsc::channel(QUEUE);
        let counters = Arc::new(Counters::default());
        let on_their_way = Arc::<OnTheirWay>::default();
        let writer = LogWriter {
            queue,
            log: Arc::clone(&log),
            counters: Arc::clone(&counters),
            on_their_way: Arc::clone(&on_their_way),
            shards: shards.len(),
        };
        let task = Self {
            log,
            queue: requests,
            shards,
            counters,
            metrics,
            on_their_way,
            batch: Batch::default(),
            waiters: Vec::new(),
            lazy: Vec::new(),
            lazy_due: Instant::now(),
        };
        (writer, task)
    }

    /// Runs until every [`LogWriter`] is gone and all is written. It must not be cancelled: a force that is given up halfway
    /// breaks the log.
    ///
    /// # Errors
    /// [`AppendError::Unknown`], when the log was broken and the process has to end; [`AppendError::Sealed`], when another node has
    /// taken over and a new epoch has to be taken; [`AppendError::Refused`], when the
    /// ends that were left could not be written, which a restart makes up for.
    pub async fn run(mut self) -> Result<(), AppendError> {
        loop {
            let written = match self.gather().await {
                Gathered::Forced => self.force().await,
                Gathered::LazyDue => self.write_lazily().await,
                Gathered::Closed => return self.write_rest().await,
            };
            match written {
                Ok(()) => {}
                Err(AppendError::Refused(reason)) => {
                    tracing::warn!(reason, "the decision log refused a batch");
                    self.lazy_due = Instant::now() + LAZY_DELAY;
                }
                Err(unknown @ (AppendError::Unknown(_) | AppendError::Sealed(_))) => {
                    self.stop(&unknown).await;
                    return Err(unknown);
                }
            }
        }
    }

    /// Waits for something to write, and takes all there is of it.
    async fn gather(&mut self) -> Gathered {
        let mut taken = Vec::new();
        while self.waiters.is_empty() {
            let room = MAX_BATCH - self.lazy.len();
            if room == 0 {
                sleep_until(self.lazy_due).await;
                return Gathered::LazyDue;
            }
            let take = self.queue.recv_many(&mut taken, room);
            let received = if self.lazy.is_empty() {
                take.await
            } else if let Ok(received) = timeout_at(self.lazy_due, take).await {
                received
            } else {
                return Gathered::LazyDue;
            };
            if received == 0 {
                return Gathered::Closed;
            }
            taken.drain(..).for_each(|request| self.sort_in(request));
        }
        Gathered::Forced
    }

    fn sort_in(&mut self, Request { shard, write }: Request) {
        let (gtrid, forced) = match write {
            LogWrite::ForceDecision(decision) => {
                let gtrid = decision.gtrid;
                self.batch.decisions.push(decision);
                (gtrid, Forced::Decision)
            }
            LogWrite::ForceEnd(end) => {
                let gtrid = end.gtrid;
                self.batch.ends.push(end);
                (gtrid, Forced::End)
            }
            LogWrite::LazyEnd(end) => return self.keep_lazy(end),
        };
        self.waiters.push(Waiter { shard, gtrid, forced });
    }

    fn keep_lazy(&mut self, end: EndRecord) {
        if self.lazy.is_empty() {
            self.lazy_due = Instant::now() + LAZY_DELAY;
        }
        self.lazy.push(end);
        if self.lazy.len() == MAX_BATCH {
            self.lazy_due = Instant::now();
        }
    }

    /// Forces the batch, with the lazy ends behind it, and answers.
    async fn force(&mut self) -> Result<(), AppendError> {
        let mut batch = std::mem::take(&mut self.batch);
        let forced_ends = batch.ends.len();
        batch.ends.append(&mut self.lazy);
        fail::fail_point!("log-before-force");
        let started = Instant::now();
        let result = self.log.force(&batch).await;
        let force = Force { records: batch.decisions.len() + batch.ends.len(), took: started.elapsed() };
        fail::fail_point!("log-before-answer");
        match &result {
            Ok(_position) => {
                let records = force.records as u64;
                self.metrics.forced(records, force.took);
                self.counters.forces.fetch_add(1, Ordering::Relaxed);
                self.counters.records.fetch_add(records, Ordering::Relaxed);
                self.counters.largest_batch.fetch_max(records, Ordering::Relaxed);
                self.have_arrived(&batch.ends[forced_ends..]);
            }
            Err(AppendError::Refused(_)) => {
                self.metrics.refused();
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
                self.lazy = batch.ends.split_off(forced_ends);
            }
            Err(AppendError::Unknown(_) | AppendError::Sealed(_)) => {}
        }
        self.answer(&result, force);
        result.map(|_position| ())
    }

    /// Tells each shard the result for all of its writes in the batch.
    fn answer(&mut self, result: &Result<LogPosition, AppendError>, force: Force) {
        let mut answers: Vec<Vec<LogDone>> = self.shards.iter().map(|_shard| Vec::new()).collect();
        for Waiter { shard, gtrid, forced } in self.waiters.drain(..) {
            answers[shard].push(LogDone { gtrid, forced, result: result.clone(), force });
        }
        for (shard, answers) in self.shards.iter().zip(answers) {
            if !answers.is_empty() {
                // A shard that is gone wants no answer.
                let _ = shard.send(answers);
            }
        }
    }

    async fn write_lazily(&mut self) -> Result<(), AppendError> {
        self.log.write_lazily(&self.lazy).await.inspect_err(|error| match error {
            AppendError::Refused(_) => {
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
            }
            AppendError::Unknown(_) | AppendError::Sealed(_) => {}
        })?;
        self.counters.lazy_writes.fetch_add(1, Ordering::Relaxed);
        self.have_arrived(&self.lazy);
        self.lazy.clear();
        Ok(())
    }

    /// These ends are in the log: whoever asks from now on reads them there.
    fn have_arrived(&self, ends: &[EndRecord]) {
        let mut on_their_way = self.on_their_way.ends();
        for end in ends {
            on_their_way.remove(&end.gtrid);
        }
    }

    /// The last write: the ends that are left, forced, since the process is about to end.
    async fn write_rest(&mut self) -> Result<(), AppendError> {
        if self.lazy.is_empty() { Ok(()) } else { self.force().await }
    }

    /// Answers everything that still waits, and takes nothing more.
    async fn stop(&mut self, unknown: &AppendError) {
        self.queue.close();
        while let Some(request) = self.queue.recv().await {
            self.sort_in(request);
        }
        self.answer(&Err(unknown.clone()), Force::default());
    }
}

#[cfg(test)]
mod tests {
    use lockstep_proto::Epoch;
    use tokio::sync::mpsc::UnboundedReceiver;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::decision_log::Recorded;
    use crate::decision_log::contract::{Store, commit, committed, gtrid, rolled_back};
    use crate::decision_log::sqlite::SqliteLog;
    use crate::decision_log::sqlite::tests::{TempSqlite, stranger};

    /// A log with a writer, and two shards.
    struct Bench {
        store: TempSqlite,
        log: Arc<SqliteLog>,
        epoch: Epoch,
        writer: LogWriter,
        task: Option<GroupCommit>,
        shards: Vec<UnboundedReceiver<Vec<LogDone>>>,
    }

    impl Bench {
        async fn new() -> Self {
            let store = TempSqlite::create().await;
            let log = Arc::new(store.open().await);
            let (senders, shards) = (0..2).map(|_shard| mpsc::unbounded_channel()).unzip();
            let (writer, task) =
                GroupCommit::new(Arc::clone(&log) as Arc<dyn DecisionLog>, senders, LogMetrics::default());
            Self { store, epoch: log.position().epoch, log, writer, task: Some(task), shards }
        }

        /// Starts the task, until when everything waits.
        fn start(&mut self) -> JoinHandle<Result<(), AppendError>> {
            tokio::spawn(self.task.take().unwrap().run())
        }

        /// The next `count` results of a shard.
        async fn done(&mut self, shard: usize, count: usize) -> Vec<LogDone> {
            let mut done = Vec::new();
            while done.len() < count {
                done.extend(self.shards[shard].recv().await.unwrap());
            }
            assert_eq!(done.len(), count);
            done
        }

        async fn recorded(&self, gtrid: Gtrid) -> Recorded {
            self.log.look_up(&[gtrid]).await.unwrap().remove(0).recorded
        }
    }

    #[tokio::test]
    async fn everything_that_waits_goes_into_one_force_and_each_shard_hears_of_its_own() {
        let mut bench = Bench::new().await;
        let gtrids: Vec<Gtrid> = (0..64).map(|n| gtrid(bench.epoch, 0, n)).collect();
        for (n, gtrid) in gtrids.iter().enumerate() {
            bench.writer.submit(n % 2, LogWrite::ForceDecision(commit(*gtrid))).await.unwrap();
        }
        let end = committed(&commit(gtrids[0]));
        bench.writer.submit(0, LogWrite::ForceEnd(end)).await.unwrap();
        let _task = bench.start();
        let (even, odd) = (bench.done(0, 33).await, bench.done(1, 32).await);
        for (n, done) in even.iter().take(32).enumerate() {
            assert_eq!((done.gtrid, done.forced), (gtrids[2 * n], Forced::Decision));
        }
        assert_eq!((even[32].gtrid, even[32].forced), (gtrids[0], Forced::End));
        let position = bench.log.position();
        assert_eq!(position.sequence, 1);
        assert!(even.iter().chain(&odd).all(|done| done.result == Ok(position)));
        let counts = bench.writer.counts();
        assert_eq!((counts.forces, counts.records, counts.largest_batch), (1, 65, 65));
    }

    /// Whoever looks here first and then into the log finds the end at every moment after it was handed over.
    #[tokio::test]
    async fn an_end_on_its_way_is_found_until_it_is_in_the_log() {
        let mut bench = Bench::new().await;
        let decision = commit(gtrid(bench.epoch, 0, 1));
        let end = committed(&decision);
        bench.writer.submit(0, LogWrite::LazyEnd(end.clone())).await.unwrap();
        assert_eq!(bench.writer.end_on_its_way(&end.gtrid), Some(end.clone()));
        bench.writer.submit(0, LogWrite::ForceDecision(decision.clone())).await.unwrap();
        let _task = bench.start();
        bench.done(0, 1).await;
        assert_eq!(bench.writer.end_on_its_way(&end.gtrid), None);
        assert_eq!(bench.recorded(end.gtrid).await, Recorded::Ended(Some(decision), end));

        // One that is written without a force.
        let end = rolled_back(gtrid(bench.epoch, 0, 2));
        bench.writer.submit(0, LogWrite::LazyEnd(end.clone())).await.unwrap();
        let arrived = async {
            while bench.writer.end_on_its_way(&end.gtrid).is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), arrived).await.expect("it is written");
        assert_eq!(bench.recorded(end.gtrid).await, Recorded::Ended(None, end));
    }

    #[tokio::test]
    async fn a_result_never_comes_before_its_position() {
        let mut bench = Bench::new().await;
        let _task = bench.start();
        for n in 1..=20 {
            bench.writer.submit(0, LogWrite::ForceDecision(commit(gtrid(bench.epoch, 0, n)))).await.unwrap();
            let done = bench.done(0, 1).await;
            assert_eq!(done[0].result, Ok(bench.writer.position()));
            assert_eq!(bench.writer.position().sequence, u64::from(n));
        }
    }

    #[tokio::test]
    async fn many_writers_are_all_answered_in_bounded_batches() {
        let mut bench = Bench::new().await;
        let _task = bench.start();
        let count: u16 = 3000;
        let submit = (0..count).map(|n| {
            let [high, low] = n.to_be_bytes();
            let decision = commit(gtrid(bench.epoch, u64::from(high), low));
            let writer = bench.writer.clone();
            async move { writer.submit(0, LogWrite::ForceDecision(decision)).await }
        });
        let submitted = futures::future::join_all(submit).await;
        assert!(submitted.iter().all(Result::is_ok));
        let done = bench.done(0, usize::from(count)).await;
        let sequences: Vec<u64> = done.iter().map(|done| done.result.as_ref().unwrap().sequence).collect();
        assert!(sequences.is_sorted());
        let counts = bench.writer.counts();
        assert_eq!(counts.records, u64::from(count));
        assert!(
            counts.largest_batch <= MAX_BATCH as u64 && counts.forces < u64::from(count) / 4,
            "{counts:?}"
        );
        assert_eq!(bench.log.unfinished(None, 9999).await.unwrap().len(), usize::from(count));
    }

    #[tokio::test]
    async fn a_lazy_end_rides_along_with_the_next_force() {
        let mut bench = Bench::new().await;
        let end = rolled_back(gtrid(bench.epoch, 0, 1));
        bench.writer.submit(0, LogWrite::LazyEnd(end.clone())).await.unwrap();
        bench.writer.submit(1, LogWrite::ForceDecision(commit(gtrid(bench.epoch, 0, 2)))).await.unwrap();
        let _task = bench.start();
        bench.done(1, 1).await;
        assert_eq!(bench.recorded(end.gtrid).await, Recorded::Ended(None, end));
        let counts = bench.writer.counts();
        assert_eq!((counts.forces, counts.records, counts.lazy_writes), (1, 2, 0));
        assert!(bench.shards[0].try_recv().is_err(), "nobody waits for a lazy end");
    }

    #[tokio::test]
    async fn lazy_ends_alone_are_written_after_a_while_without_a_force() {
        let mut bench = Bench::new().await;
        let _task = bench.start();
        let start = Instant::now();
        let ends: Vec<EndRecord> = (0..5).map(|n| rolled_back(gtrid(bench.epoch, 0, n))).collect();
        for end in &ends {
            bench.writer.submit(0, LogWrite::LazyEnd(end.clone())).await.unwrap();
        }
        while bench.writer.counts().lazy_writes == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(start.elapsed() >= LAZY_DELAY);
        assert_eq!(bench.writer.counts().forces, 0);
        assert_eq!(bench.log.recently_ended(9).await.unwrap().len(), 5);
    }

    #[tokio::test]
    async fn as_many_lazy_ends_as_fit_a_batch_do_not_wait() {
        let mut bench = Bench::new().await;
        for n in 0..MAX_BATCH {
            let [high, low] = u16::try_from(n).unwrap().to_be_bytes();
            let end = rolled_back(gtrid(bench.epoch, u64::from(high), low));
            bench.writer.submit(0, LogWrite::LazyEnd(end)).await.unwrap();
        }
        bench.writer.submit(0, LogWrite::ForceDecision(commit(gtrid(bench.epoch, 999, 1)))).await.unwrap();
        let _task = bench.start();
        bench.done(0, 1).await;
        // Had they waited, they would have gone with the force, or come after it.
        assert_eq!(bench.writer.counts().lazy_writes, 1);
    }

    #[tokio::test]
    async fn a_refused_batch_is_told_and_its_lazy_ends_are_kept() {
        let mut bench = Bench::new().await;
        let mut holder = stranger(&bench.store).await;
        sqlx::query("BEGIN IMMEDIATE").execute(&mut holder).await.unwrap();
        let end = rolled_back(gtrid(bench.epoch, 0, 1));
        let decision = commit(gtrid(bench.epoch, 0, 2));
        bench.writer.submit(0, LogWrite::LazyEnd(end.clone())).await.unwrap();
        bench.writer.submit(1, LogWrite::ForceDecision(decision.clone())).await.unwrap();
        let _task = bench.start();
        let done = bench.done(1, 1).await;
        assert!(matches!(done[0].result, Err(AppendError::Refused(_))), "{done:?}");
        assert_eq!(bench.writer.counts().refused, 1);
        sqlx::query("ROLLBACK").execute(&mut holder).await.unwrap();

        bench.writer.submit(1, LogWrite::ForceDecision(commit(gtrid(bench.epoch, 0, 3)))).await.unwrap();
        assert!(bench.done(1, 1).await[0].result.is_ok());
        assert_eq!(bench.recorded(end.gtrid).await, Recorded::Ended(None, end));
        assert_eq!(bench.recorded(decision.gtrid).await, Recorded::Absent);
    }

    #[tokio::test]
    async fn an_unknown_write_is_told_to_everyone_and_nothing_more_is_taken() {
        let mut bench = Bench::new().await;
        // Someone else takes the log, and seals this epoch.
        std::fs::remove_file(bench.store.0.path().join("lockstep.lock")).unwrap();
        let other = bench.store.open().await;
        let count = MAX_BATCH + 10;
        for n in 0..count {
            let [high, low] = u16::try_from(n).unwrap().to_be_bytes();
            let decision = commit(gtrid(bench.epoch, u64::from(high), low));
            bench.writer.submit(0, LogWrite::ForceDecision(decision)).await.unwrap();
        }
        let before = bench.writer.position();
        let task = bench.start();
        let done = bench.done(0, count).await;
        assert!(done.iter().all(|done| matches!(done.result, Err(AppendError::Unknown(_)))));
        assert!(matches!(task.await.unwrap(), Err(AppendError::Unknown(_))));
        let more = LogWrite::ForceDecision(commit(gtrid(bench.epoch, 99, 1)));
        assert_eq!(bench.writer.submit(0, more).await, Err(Stopped));
        assert_eq!(bench.writer.position(), before);
        assert_eq!(other.unfinished(None, 10).await.unwrap(), []);
    }

    #[tokio::test]
    async fn when_the_writers_are_gone_everything_is_forced_and_the_task_ends() {
        let mut bench = Bench::new().await;
        let end = rolled_back(gtrid(bench.epoch, 0, 1));
        let decision = commit(gtrid(bench.epoch, 0, 2));
        bench.writer.submit(0, LogWrite::ForceDecision(decision.clone())).await.unwrap();
        bench.writer.submit(0, LogWrite::LazyEnd(end.clone())).await.unwrap();
        let task = bench.start();
        bench.done(0, 1).await;
        let late = rolled_back(gtrid(bench.epoch, 0, 3));
        bench.writer.submit(0, LogWrite::LazyEnd(late.clone())).await.unwrap();
        let Bench { store, log, writer, .. } = bench;
        drop(writer);
        task.await.unwrap().unwrap();
        // The last force was one: a log that is not closed properly has it all.
        assert_eq!(log.position().sequence, 2);
        drop(log);
        let log = store.open().await;
        for (gtrid, recorded) in [
            (end.gtrid, Recorded::Ended(None, end)),
            (late.gtrid, Recorded::Ended(None, late)),
            (decision.gtrid, Recorded::Decided(decision)),
        ] {
            assert_eq!(log.look_up(&[gtrid]).await.unwrap()[0].recorded, recorded);
        }
    }
}
