//! All metrics of a coordinator, and how they are written out.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::protocol::outcome::Outcome;

/// Distinct names of transactions that get a label of their own. Applications choose them, and one that puts an id into the name must not
/// fill the memory of whoever scrapes: the names after these are counted as `other`.
pub const MAX_NAMES: usize = 100;
/// The label of transactions whose name came too late.
const OTHER: &str = "other";

/// From half a millisecond to a minute: where transactions and their phases take place, in seconds.
const DURATIONS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// From a cache that lies to a disk that is full of other work, in seconds.
const FORCES: [f64; 14] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
/// Records in a batch: 1 to the most there can be.
const BATCHES: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// A part of a transaction's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// From its begin until its application asks for an end.
    Work,
    /// From there until the decision is given to the log, or no decision is needed any more.
    Prepare,
    /// Until the decision is durable.
    Log,
    /// Until every branch has acknowledged.
    Apply,
}

impl Phase {
    const fn label(self) -> &'static str {
        match self {
            Self::Work => "work",
            Self::Prepare => "prepare",
            Self::Log => "log",
            Self::Apply => "apply",
        }
    }
}

/// What a branch is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// To prepare: ends with its vote.
    Prepare,
    /// To commit: ends with its acknowledgement, as the two after it do.
    Commit,
    /// To roll back.
    Rollback,
    /// To commit by itself.
    CommitOnePhase,
}

impl Operation {
    const fn label(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Commit => "commit",
            Self::Rollback => "rollback",
            Self::CommitOnePhase => "commit_one_phase",
        }
    }
}

/// What came of sending a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// It went out.
    Sent,
    /// The branch has ended.
    Acknowledged,
    /// The participant cannot do it, or tell, now.
    NotYet,
}

impl Attempt {
    const fn label(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Acknowledged => "acknowledged",
            Self::NotYet => "not_yet",
        }
    }
}

pub(super) const fn outcome_label(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Committed => "committed",
        Outcome::RolledBack => "rolled_back",
        Outcome::NothingToCommit => "nothing_to_commit",
        Outcome::Heuristic(_) => "heuristic",
        Outcome::Unknown => "unknown",
    }
}

/// Everything that is counted as it happens, and the gauges that [`super::scrape`] sets.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    scraping: Mutex<()>,
    names: Mutex<BTreeSet<String>>,
    started: IntCounterVec,
    completed: IntCounterVec,
    duration: HistogramVec,
    phases: HistogramVec,
    branches: HistogramVec,
    attempts: IntCounterVec,
    heuristics: IntCounter,
    operator_actions: IntCounterVec,
    /// Of the decision log.
    pub log: LogMetrics,
    /// Of the participants' streams.
    pub streams: StreamMetrics,
    gauges: Gauges,
}

/// What goes over the participants' streams. A frame carries every message that was waiting when it was made: how many that are tells
/// what batching saves.
#[derive(Debug, Clone)]
pub struct StreamMetrics {
    frames: IntCounterVec,
    messages: IntCounterVec,
    /// Looked up once: they are counted for every frame.
    received: (IntCounter, IntCounter),
    sent: (IntCounter, IntCounter),
}

impl StreamMetrics {
    fn new() -> Self {
        let frames = counters("stream_frames_total", "Frames on the streams of participants", &["direction"]);
        let messages = counters("stream_messages_total", "Messages in those frames", &["direction"]);
        let of = |direction: &str| {
            (frames.with_label_values(&[direction]), messages.with_label_values(&[direction]))
        };
        let (received, sent) = (of("received"), of("sent"));
        Self { frames, messages, received, sent }
    }

    /// A frame of so many messages came from a participant.
    pub fn received(&self, messages: usize) {
        self.received.0.inc();
        self.received.1.inc_by(messages as u64);
    }

    /// A frame of so many messages went to a participant.
    pub fn sent(&self, messages: usize) {
        self.sent.0.inc();
        self.sent.1.inc_by(messages as u64);
    }
}

/// What the decision log's writer counts.
#[derive(Debug, Clone)]
pub struct LogMetrics {
    forces: Histogram,
    batches: Histogram,
    refused: IntCounter,
}

/// Counted for nobody, until it is registered.
impl Default for LogMetrics {
    fn default() -> Self {
        let force_help = "How long the decision log took to force a batch";
        let batch_help = "Records in a forced batch of the decision log";
        let refused_help = "Batches that the decision log refused";
        Self {
            forces: histogram("log_force_seconds", force_help, &FORCES),
            batches: histogram("log_batch_records", batch_help, &BATCHES),
            refused: counter("log_refused_total", refused_help),
        }
    }
}

impl LogMetrics {
    /// A batch of so many records was forced.
    pub fn forced(&self, records: u64, took: Duration) {
        self.forces.observe(took.as_secs_f64());
        self.batches.observe(f64::from(u32::try_from(records).unwrap_or(u32::MAX)));
    }

    /// A batch was refused.
    pub fn refused(&self) {
        self.refused.inc();
    }
}

/// What stands at the moment of a scrape.
#[derive(Debug)]
pub struct Gauges {
    /// Live transactions by `state`.
    pub active: IntGaugeVec,
    /// By `situation`.
    pub unresolved: IntGaugeVec,
    /// Seconds, by `situation`.
    pub unresolved_oldest_age: GaugeVec,
    /// Attached instances by `resource`.
    pub attached: IntGaugeVec,
    /// Decisions to deliver by `resource`.
    pub queued: IntGaugeVec,
    /// 1 while the log answers.
    pub log_up: IntGauge,
    /// Bytes of the log on disk; without a value while it does not answer.
    pub log_bytes: IntGaugeVec,
    /// Bytes free where the log is; without a value where that is not measured.
    pub log_free_bytes: IntGaugeVec,
    /// 1 while new transactions are taken.
    pub accepting: IntGauge,
}

impl Gauges {
    fn new() -> Self {
        Self {
            active: gauges("transactions_active", "Transactions that have not ended", &["state"]),
            unresolved: gauges(
                "unresolved_transactions",
                "Transactions in a situation that may need a person; the alerts say from when on",
                &["situation"],
            ),
            unresolved_oldest_age: made(GaugeVec::new(
                opts("unresolved_oldest_age_seconds", "Since the oldest of them was begun"),
                &["situation"],
            )),
            attached: gauges(
                "participants_attached",
                "Attached instances of each known resource manager",
                &["resource"],
            ),
            queued: gauges(
                "delivery_queue_depth",
                "Decisions that a resource manager has not acknowledged",
                &["resource"],
            ),
            log_up: made(IntGauge::with_opts(opts("log_up", "1 while the decision log answers, else 0"))),
            log_bytes: gauges("log_bytes", "Bytes of the decision log on disk", &[]),
            log_free_bytes: gauges("log_free_bytes", "Bytes free where the embedded log is", &[]),
            accepting: made(IntGauge::with_opts(opts(
                "accepting",
                "1 while new transactions may begin, else 0",
            ))),
        }
    }
}

impl Metrics {
    /// All of them, at zero.
    #[must_use]
    pub fn new() -> Self {
        let metrics = Self {
            registry: Registry::new(),
            scraping: Mutex::default(),
            names: Mutex::default(),
            started: counters("transactions_started_total", "Transactions begun", &["name"]),
            completed: counters("transactions_completed_total", "Transactions ended", &["name", "outcome"]),
            duration: histograms(
                "transaction_duration_seconds",
                "From a transaction's begin until every branch has acknowledged",
                &["outcome"],
            ),
            phases: histograms("phase_duration_seconds", "Each phase of a transaction", &["phase"]),
            branches: histograms(
                "branch_operation_seconds",
                "From asking a branch until it has answered, the way there and back included",
                &["operation", "resource"],
            ),
            attempts: counters(
                "delivery_attempts_total",
                "Decisions sent to branches, and what came back",
                &["resource", "result"],
            ),
            heuristics: counter(
                "heuristics_total",
                "Transactions of which a branch ended differently from the decision",
            ),
            operator_actions: counters(
                "operator_actions_total",
                "What was done by hand, and is in the audit",
                &["action"],
            ),
            log: LogMetrics::default(),
            streams: StreamMetrics::new(),
            gauges: Gauges::new(),
        };
        metrics.register();
        metrics
    }

    fn register(&self) {
        let info = made(IntGauge::with_opts(
            opts("build_info", "1; the label says which version runs")
                .const_label("version", env!("CARGO_PKG_VERSION")),
        ));
        info.set(1);
        let Gauges {
            active,
            unresolved,
            unresolved_oldest_age,
            attached,
            queued,
            log_up,
            log_bytes,
            log_free_bytes,
            accepting,
        } = &self.gauges;
        let all: [Box<dyn prometheus::core::Collector>; 23] = [
            Box::new(info),
            Box::new(self.started.clone()),
            Box::new(self.completed.clone()),
            Box::new(self.duration.clone()),
            Box::new(self.phases.clone()),
            Box::new(self.branches.clone()),
            Box::new(self.attempts.clone()),
            Box::new(self.heuristics.clone()),
            Box::new(self.operator_actions.clone()),
            Box::new(self.log.forces.clone()),
            Box::new(self.log.batches.clone()),
            Box::new(self.log.refused.clone()),
            Box::new(self.streams.frames.clone()),
            Box::new(self.streams.messages.clone()),
            Box::new(active.clone()),
            Box::new(unresolved.clone()),
            Box::new(unresolved_oldest_age.clone()),
            Box::new(attached.clone()),
            Box::new(queued.clone()),
            Box::new(log_up.clone()),
            Box::new(log_bytes.clone()),
            Box::new(log_free_bytes.clone()),
            Box::new(accepting.clone()),
        ];
        for metric in all {
            self.registry.register(metric).expect("no two metrics have the same name");
        }
    }

    /// A transaction of this name was begun.
    pub fn started(&self, name: &str) {
        self.started.with_label_values(&[self.bounded(name)]).inc();
    }

    /// A transaction ended. `lasted`: since its begin, unless that was in an earlier life.
    pub fn completed(&self, name: &str, outcome: Outcome, lasted: Option<Duration>) {
        let outcome_label = outcome_label(outcome);
        self.completed.with_label_values(&[self.bounded(name), outcome_label]).inc();
        if let Some(lasted) = lasted {
            self.duration.with_label_values(&[outcome_label]).observe(lasted.as_secs_f64());
        }
        if let Outcome::Heuristic(_) = outcome {
            self.heuristics.inc();
        }
    }

    /// A transaction that had ended turned out to have a heuristic outcome.
    pub fn turned_out_heuristic(&self) {
        self.heuristics.inc();
    }

    /// An operator's action is on record.
    pub fn acted(&self, action: &str) {
        self.operator_actions.with_label_values(&[action]).inc();
    }

    /// A phase is over.
    pub fn phase(&self, phase: Phase, took: Duration) {
        self.phases.with_label_values(&[phase.label()]).observe(took.as_secs_f64());
    }

    /// A branch has answered.
    pub fn branch(&self, operation: Operation, resource: &str, took: Duration) {
        self.branches.with_label_values(&[operation.label(), resource]).observe(took.as_secs_f64());
    }

    /// A decision was sent, or answered.
    pub fn attempt(&self, attempt: Attempt, resource: &str) {
        self.attempts.with_label_values(&[resource, attempt.label()]).inc();
    }

    /// The name itself while there are few, else [`OTHER`].
    fn bounded<'a>(&self, name: &'a str) -> &'a str {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.contains(name) {
            return name;
        }
        if names.len() >= MAX_NAMES {
            return OTHER;
        }
        names.insert(name.to_owned());
        name
    }

    /// Sets the gauges and writes everything out, in Prometheus' text format. One scrape at a time: another one may clear a gauge
    /// that this one has just filled.
    #[must_use]
    pub fn scraped(&self, set: impl FnOnce(&Gauges)) -> String {
        let _one_at_a_time = self.scraping.lock().unwrap_or_else(PoisonError::into_inner);
        set(&self.gauges);
        self.text()
    }

    fn text(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).expect("metrics are text")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("lockstep_{name}"), help)
}

fn made<T>(metric: prometheus::Result<T>) -> T {
    metric.expect("the name and the labels of a metric are well-formed")
}

fn counter(name: &str, help: &str) -> IntCounter {
    made(IntCounter::with_opts(opts(name, help)))
}

fn counters(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    made(IntCounterVec::new(opts(name, help), labels))
}

fn gauges(name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    made(IntGaugeVec::new(opts(name, help), labels))
}

fn histogram(name: &str, help: &str, buckets: &[f64]) -> Histogram {
    made(Histogram::with_opts(HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec())))
}

fn histograms(name: &str, help: &str, labels: &[&str]) -> HistogramVec {
    made(HistogramVec::new(HistogramOpts::from(opts(name, help)).buckets(DURATIONS.to_vec()), labels))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_nobody_bounded_do_not_fill_the_memory() {
        let metrics = Metrics::new();
        for n in 0..10 * MAX_NAMES {
            metrics.started(&format!("order-{n}"));
        }
        metrics.started("order-0");
        let text = metrics.text();
        let series = text.lines().filter(|line| line.starts_with("lockstep_transactions_started_total{"));
        assert_eq!(series.count(), MAX_NAMES + 1);
        assert!(text.contains("lockstep_transactions_started_total{name=\"order-0\"} 2"), "{text}");
        assert!(text.contains("lockstep_transactions_started_total{name=\"other\"} 900"), "{text}");
    }

    #[test]
    fn a_heuristic_outcome_is_counted_whenever_it_comes_out() {
        let metrics = Metrics::new();
        metrics.completed("pay", Outcome::Heuristic(crate::protocol::outcome::Heuristic::Mixed), None);
        metrics.turned_out_heuristic();
        let text = metrics.text();
        assert!(text.contains("lockstep_heuristics_total 2"), "{text}");
        assert!(
            text.contains("lockstep_transactions_completed_total{name=\"pay\",outcome=\"heuristic\"} 1"),
            "{text}"
        );
    }
}
