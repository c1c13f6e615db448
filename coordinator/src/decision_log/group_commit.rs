//! Group commit: whatever is waiting goes into one forced write.
//!
//! Shards hand their writes over through a [`LogWriter`]; one [`GroupCommit`] task takes everything that waits, forces it as
//! one batch, and answers each shard with all of its results at once. While a force is under way the next batch gathers by
//! itself, so that the slower the disk, the larger the batch. No timer ever delays a forced write. Ends that nobody waits for
//! ride along with the next forced batch; if none comes within a second they are written without an fsync.
//!
//! **Order.** The new position is published before any result is, so that a message that follows from a decision
//! carries a position that has it (protocol.md, P8).
//!
//! **Failure.** Refused: the waiting writes are answered so, the lazy ends are kept for the next batch. Unknown: everything
//! that waits is answered unknown, also what was not handed to the log yet, nothing more is taken, and
//! [`GroupCommit::run`] returns the error; the process has to end.
//!
//! **Why the answers have no bounded channel.** A shard that waits for room in the queue of writes, while this task waits for
//! room in the shard's queue of answers, would wait for ever. The answers are bounded by the questions instead: a
//! transaction has at most one forced write under way, so a shard never has more answers waiting than it has transactions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockstep_proto::{Gtrid, LogPosition};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{AppendError, Batch, DecisionLog};
use crate::protocol::record::{EndRecord, LogWrite};

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

struct Request {
    shard: usize,
    write: LogWrite,
}

/// A cheap handle: hands writes over, and knows the newest position. When the last one is dropped, the task writes what is
/// left and ends.
#[derive(Clone)]
pub struct LogWriter {
    queue: mpsc::Sender<Request>,
    position: watch::Receiver<LogPosition>,
    counters: Arc<Counters>,
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
        self.queue.send(Request { shard, write }).await.map_err(|_closed| Stopped)
    }

    /// The newest forced batch.
    #[must_use]
    pub fn position(&self) -> LogPosition {
        *self.position.borrow()
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
    position: watch::Sender<LogPosition>,
    counters: Arc<Counters>,
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
    ) -> (LogWriter, Self) {
        let (queue, requests) = mpsc::channel(QUEUE);
        let (publish, position) = watch::channel(log.position());
        let counters = Arc::new(Counters::default());
        let writer = LogWriter { queue, position, counters: Arc::clone(&counters), shards: shards.len() };
        let task = Self {
            log,
            queue: requests,
            shards,
            position: publish,
            counters,
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
    /// [`AppendError::Unknown`], when the log was broken and the process has to end; [`AppendError::Refused`], when the
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
                Err(unknown @ AppendError::Unknown(_)) => {
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
        let result = self.log.force(&batch).await;
        fail::fail_point!("log-before-answer");
        match &result {
            Ok(position) => {
                let records = (batch.decisions.len() + batch.ends.len()) as u64;
                self.counters.forces.fetch_add(1, Ordering::Relaxed);
                self.counters.records.fetch_add(records, Ordering::Relaxed);
                self.counters.largest_batch.fetch_max(records, Ordering::Relaxed);
                self.position.send_replace(*position);
            }
            Err(AppendError::Refused(_)) => {
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
                self.lazy = batch.ends.split_off(forced_ends);
            }
            Err(AppendError::Unknown(_)) => {}
        }
        self.answer(&result);
        result.map(|_position| ())
    }

    /// Tells each shard the result for all of its writes in the batch.
    fn answer(&mut self, result: &Result<LogPosition, AppendError>) {
        let mut answers: Vec<Vec<LogDone>> = self.shards.iter().map(|_shard| Vec::new()).collect();
        for Waiter { shard, gtrid, forced } in self.waiters.drain(..) {
            answers[shard].push(LogDone { gtrid, forced, result: result.clone() });
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
            AppendError::Unknown(_) => {}
        })?;
        self.counters.lazy_writes.fetch_add(1, Ordering::Relaxed);
        self.lazy.clear();
        Ok(())
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
        self.answer(&Err(unknown.clone()));
    }
}
