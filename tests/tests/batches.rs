//! A forced write holds every decision that was waiting when the one before it ended: with a log that forces as fast as it can, and with one
//! that is slow, over both kinds of log.
//!
//! A program of its own: the slow log is a crash point of the whole process.

#![allow(clippy::unwrap_used, reason = "a test panics where something is not as it should be")]

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use lockstep_coordinator::decision_log::DecisionLog;
use lockstep_coordinator::decision_log::contract::{commit, gtrid};
use lockstep_coordinator::decision_log::group_commit::{Counts, GroupCommit, LogDone, LogWriter};
use lockstep_coordinator::decision_log::postgres::{self, Accepted, PostgresLog};
use lockstep_coordinator::decision_log::sqlite::{self, SqliteLog};
use lockstep_coordinator::engine::clock::unix_ms;
use lockstep_coordinator::protocol::record::LogWrite;
use lockstep_coordinator::telemetry::metrics::LogMetrics;
use lockstep_proto::Epoch;
use lockstep_tests::harness::postgres::fresh_database;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// Longer than anything takes here on a loaded machine.
const LONG: Duration = Duration::from_secs(60);
/// Decisions that wait behind a slow force: fewer than a batch may hold.
const WAITING: u16 = 200;

/// Every force waits here, one after the other, until it is let through.
#[derive(Default)]
struct Gate {
    /// Forces that have come, and those that may go on.
    passes: Mutex<(u32, u32)>,
    moved: Condvar,
}

impl Gate {
    /// At the crash point before each force.
    fn close() -> Arc<Self> {
        let gate = Arc::new(Self::default());
        let at = Arc::clone(&gate);
        fail::cfg_callback("log-before-force", move || {
            let mut passes = at.passes.lock().unwrap();
            passes.0 += 1;
            let mine = passes.0;
            at.moved.notify_all();
            drop(at.moved.wait_timeout_while(passes, LONG, |passes| passes.1 < mine).unwrap());
        })
        .unwrap();
        gate
    }

    /// Waits until so many forces have come.
    fn wait_for(&self, forces: u32) {
        let waited = self.moved.wait_timeout_while(self.passes.lock().unwrap(), LONG, |p| p.0 < forces);
        assert!(!waited.unwrap().1.timed_out(), "force {forces} has not come");
    }

    /// Lets so many through, all in all.
    fn let_through(&self, forces: u32) {
        self.passes.lock().unwrap().1 = forces;
        self.moved.notify_all();
    }
}

struct Bench {
    writer: LogWriter,
    epoch: Epoch,
    answers: UnboundedReceiver<Vec<LogDone>>,
}

impl Bench {
    fn new(log: impl DecisionLog) -> Self {
        let log: Arc<dyn DecisionLog> = Arc::new(log);
        let (answer, answers) = unbounded_channel();
        let epoch = log.position().epoch;
        let (writer, task) = GroupCommit::new(log, vec![answer], LogMetrics::default());
        tokio::spawn(task.run());
        Self { writer, epoch, answers }
    }

    async fn submit(&self, numbers: std::ops::Range<u16>) {
        for number in numbers {
            let [high, low] = number.to_be_bytes();
            let decision = commit(gtrid(self.epoch, u64::from(high), low));
            self.writer.submit(0, LogWrite::ForceDecision(decision)).await.unwrap();
        }
    }

    async fn answered(&mut self, count: u16) -> Counts {
        let mut left = usize::from(count);
        while left > 0 {
            let done = tokio::time::timeout(LONG, self.answers.recv()).await.unwrap().unwrap();
            assert!(done.iter().all(|done| done.result.is_ok()), "{done:?}");
            left -= done.len();
        }
        self.writer.counts()
    }

    /// One force is held up, and what comes meanwhile waits for it; then all of that goes with the next one.
    async fn try_behind_a_slow_force(&mut self) {
        let gate = Gate::close();
        self.submit(0..1).await;
        tokio::task::block_in_place(|| gate.wait_for(1));
        self.submit(1..1 + WAITING).await;
        gate.let_through(1);
        tokio::task::block_in_place(|| gate.wait_for(2));
        // These came when the second one had been put together.
        self.submit(1 + WAITING..1 + 2 * WAITING).await;
        gate.let_through(u32::MAX);
        let counts = self.answered(1 + 2 * WAITING).await;
        fail::remove("log-before-force");
        let expected = (3, u64::from(1 + 2 * WAITING), u64::from(WAITING));
        assert_eq!((counts.forces, counts.records, counts.largest_batch), expected);
    }

    /// As fast as it goes: no decision waits for more than the force that is under way, and for its own.
    async fn try_at_full_speed(&mut self) {
        const ROUNDS: u16 = 50;
        const AT_ONCE: u16 = 20;
        let before = self.writer.counts();
        for round in 0..ROUNDS {
            let first = 1000 + round * AT_ONCE;
            self.submit(first..first + AT_ONCE).await;
            self.answered(AT_ONCE).await;
        }
        let after = self.writer.counts();
        let (forces, records) = (after.forces - before.forces, after.records - before.records);
        assert_eq!(records, u64::from(ROUNDS * AT_ONCE));
        assert!(forces <= u64::from(2 * ROUNDS), "{forces} forces for {ROUNDS} rounds");
    }
}

/// One after the other: they share the crash point.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_batch_is_every_decision_that_was_waiting_when_the_force_before_it_ended() {
    let directory = tempfile::tempdir().unwrap();
    let (embedded, _) = SqliteLog::open(directory.path(), sqlite::Options::default()).await.unwrap();
    let database = fresh_database();
    let options = postgres::Options {
        url: database.url(),
        migrate: true,
        accepted: Accepted::default(),
        node: "a".to_owned(),
        address: None,
        succeeds: true,
        lease: 10 * LONG,
        patience: LONG,
        now_ms: unix_ms(),
    };
    let (shared, _) = PostgresLog::open(&options).await.unwrap();
    for mut bench in [Bench::new(embedded), Bench::new(shared)] {
        bench.try_behind_a_slow_force().await;
        bench.try_at_full_speed().await;
    }
}
