//! What came of it, for people and for programs.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::run::{Fault, LogFault, Plan};
use crate::harness::client::{Entry, Told, What};

/// The longest that a transaction may stay in doubt after its coordinator is gone, with a lease of 3 s.
pub const LONGEST_IN_DOUBT: Duration = Duration::from_secs(10);

/// One fault, and how long the others took.
#[derive(Debug, Clone, Copy)]
pub struct Takeover {
    /// Whose.
    pub node: usize,
    /// What was done to it.
    pub fault: Fault,
    /// From then until its epoch was sealed.
    pub sealed: Duration,
    /// From then until no branch of it was prepared in any bank.
    pub settled: Duration,
}

/// One fault of the log's server, and how long nothing was decided.
#[derive(Debug, Clone, Copy)]
pub struct Outage {
    /// What was done.
    pub fault: LogFault,
    /// From then until a server took connections there again.
    pub back: Duration,
    /// From then until clients were told of commits again.
    pub committing: Duration,
}

impl fmt::Display for Takeover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sealed, settled) = (self.sealed.as_secs_f64(), self.settled.as_secs_f64());
        let Self { node, fault, .. } = self;
        write!(
            f,
            "node {node} {fault:?}: taken over after {sealed:.1} s, nothing in doubt after {settled:.1} s"
        )
    }
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (back, committing) = (self.back.as_secs_f64(), self.committing.as_secs_f64());
        write!(f, "log {:?}: back after {back:.1} s, committing again after {committing:.1} s", self.fault)
    }
}

/// The whole run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    nodes: usize,
    seed: u64,
    /// All of the four that follow.
    faults: usize,
    kills: usize,
    stops: usize,
    log_crashes: usize,
    failovers: usize,
    /// Transactions that were begun.
    transactions: usize,
    committed: usize,
    /// Clients that were told "unknown" in the end.
    unknown: usize,
    takeover_ms_p50: u128,
    takeover_ms_p99: u128,
    takeover_ms_max: u128,
    in_doubt_ms_max: u128,
    outage_ms_max: u128,
    violations: usize,
    violation_texts: Vec<String>,
}

impl Report {
    /// Of a run.
    #[must_use]
    pub fn new(
        plan: Plan,
        ledger: &[Entry],
        takeovers: &[Takeover],
        outages: &[Outage],
        mut violations: Vec<String>,
    ) -> Self {
        let told = |wanted: Told| {
            let is = |entry: &&Entry| matches!(&entry.what, What::Told { told, .. } if *told == wanted);
            ledger.iter().filter(is).count()
        };
        let mut sealed: Vec<u128> = takeovers.iter().map(|takeover| takeover.sealed.as_millis()).collect();
        sealed.sort_unstable();
        let rank = |percent: usize| sealed.get((sealed.len() * percent).div_ceil(100).max(1) - 1).copied();
        let in_doubt = takeovers.iter().map(|takeover| takeover.settled).max().unwrap_or_default();
        if in_doubt > LONGEST_IN_DOUBT {
            violations
                .push(format!("something was in doubt for {in_doubt:?} after its coordinator was gone"));
        }
        let of = |fault| takeovers.iter().filter(|takeover| takeover.fault == fault).count();
        let of_log = |fault| outages.iter().filter(|outage| outage.fault == fault).count();
        let outage = outages.iter().map(|outage| outage.committing).max().unwrap_or_default();
        Self {
            nodes: plan.nodes,
            seed: plan.seed,
            faults: takeovers.len() + outages.len(),
            kills: of(Fault::Kill),
            stops: of(Fault::Stop),
            log_crashes: of_log(LogFault::Crash),
            failovers: of_log(LogFault::Failover),
            transactions: ledger.iter().filter(|entry| matches!(entry.what, What::Begun { .. })).count(),
            committed: told(Told::Committed),
            unknown: told(Told::Unknown),
            takeover_ms_p50: rank(50).unwrap_or_default(),
            takeover_ms_p99: rank(99).unwrap_or_default(),
            takeover_ms_max: rank(100).unwrap_or_default(),
            in_doubt_ms_max: in_doubt.as_millis(),
            outage_ms_max: outage.as_millis(),
            violations: violations.len(),
            violation_texts: violations,
        }
    }

    /// Whether nothing was violated.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.violations == 0
    }

    /// Commits that clients were told of.
    #[must_use]
    pub const fn committed(&self) -> usize {
        self.committed
    }

    /// What was violated, a sentence each.
    #[must_use]
    pub fn violations(&self) -> &[String] {
        &self.violation_texts
    }

    /// For people.
    #[must_use]
    pub fn summary(&self) -> String {
        let violations: String =
            self.violation_texts.iter().map(|violation| format!("\nVIOLATION: {violation}")).collect();
        format!(
            "{} coordinators on one log: {} killed, {} stopped; the log: {} crashes, {} failovers\n\
             {} transactions, {} told committed, {} told unknown\n\
             takeover p50 {} ms, p99 {} ms, max {} ms; longest in doubt {} ms; longest outage {} ms\n\
             {} violations{violations}",
            self.nodes,
            self.kills,
            self.stops,
            self.log_crashes,
            self.failovers,
            self.transactions,
            self.committed,
            self.unknown,
            self.takeover_ms_p50,
            self.takeover_ms_p99,
            self.takeover_ms_max,
            self.in_doubt_ms_max,
            self.outage_ms_max,
            self.violations,
        )
    }

    /// One line.
    ///
    /// # Panics
    /// Never: numbers and texts are JSON.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers and texts are JSON")
    }
}
