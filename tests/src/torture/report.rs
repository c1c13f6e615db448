//! What `prove torture` prints.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::world::Server;
use crate::harness::client::{Entry, Told, What};

/// In twenty minutes there have to be so many kills.
const KILLS_IN_20_MINUTES: f64 = 200.0;
/// Between them, clients commit so often in a minute.
const COMMITS_A_MINUTE: f64 = 100.0;

/// Who was killed how often.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Kills {
    /// Coordinators.
    pub coordinators: u32,
    /// Banks' processes.
    pub banks: u32,
    /// Clients.
    pub clients: u32,
    /// The log's server.
    pub log_servers: u32,
    /// The first bank's server.
    pub postgres: u32,
    /// The second bank's.
    pub mariadb: u32,
}

impl Kills {
    /// Those of a server.
    pub const fn of(&mut self, server: Server) -> &mut u32 {
        match server {
            Server::Log => &mut self.log_servers,
            Server::Postgres => &mut self.postgres,
            Server::MariaDb => &mut self.mariadb,
        }
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// SIGKILLs.
    pub kills: Kills,
    /// SIGSTOPs.
    pub stops: u32,
    /// Links that were cut, or passed nothing for a while.
    pub cuts: u32,
    /// Links that were slow for a while.
    pub slowed: u32,
    /// How often forced writes of a server failed for a while.
    pub failed_forces: u32,
    /// How often the disk of the log's server was full for a while.
    pub full_disks: u32,
    /// How often a server ended of one of these.
    pub crashed: u32,
}

/// Branches that were in doubt.
#[derive(Debug, Clone, Default)]
pub struct InDoubt {
    /// For how long each one that was seen from outside was so at least, the shortest time first.
    pub times: Vec<Duration>,
    /// How many were so when the last fault was mended and nobody began anything any more.
    pub left: usize,
    /// How long it took from then until there were none.
    pub settled: Duration,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// SIGKILLs.
    kills: u32,
    /// By whom they met.
    killed: Kills,
    /// SIGSTOPs.
    stops: u32,
    /// Links cut or silent.
    cuts: u32,
    /// Links slowed.
    slowed: u32,
    /// How often forced writes of a server failed for a while.
    failed_forces: u32,
    /// How often the disk of the log's server was full for a while.
    full_disks: u32,
    /// How often a server ended of one of these: not among the kills.
    crashed: u32,
    /// All of that.
    faults: u32,
    /// Transactions that clients began.
    transactions: usize,
    /// Those of which they were told that they are committed.
    commits: usize,
    /// In a minute, on average.
    commits_per_minute: f64,
    /// Between a transaction's begin and what its client was told, at the median.
    answered_ms_p50: u64,
    /// For one in a hundred it took longer.
    answered_ms_p99: u64,
    /// At the most.
    answered_ms_max: u64,
    /// Branches that were seen prepared from outside, which looks every 50 ms.
    in_doubt_seen: usize,
    /// For so long they were so at least, at the median.
    in_doubt_ms_p50: u128,
    /// One in a hundred for longer.
    in_doubt_ms_p99: u128,
    /// At the most.
    in_doubt_ms_max: u128,
    /// Branches in doubt when the last fault was mended and nobody began anything any more.
    in_doubt_then: usize,
    /// How long it took from then until there were none.
    settled_ms: u128,
    /// Branches in doubt at the end.
    in_doubt: usize,
    /// What is wrong.
    violations: usize,
    /// In words.
    violation_texts: Vec<String>,
    /// What chose the faults.
    seed: u64,
    /// How long there were faults.
    seconds: f64,
}

impl Report {
    /// Of a run that has settled.
    #[must_use]
    pub fn new(
        ledger: &[Entry],
        faults: Faults,
        violations: Vec<String>,
        took: Duration,
        in_doubt: &InDoubt,
        seed: u64,
    ) -> Self {
        let Faults { kills: killed, stops, cuts, slowed, failed_forces, full_disks, crashed } = faults;
        let Kills { coordinators, banks, clients, log_servers, postgres, mariadb } = killed;
        let kills = coordinators + banks + clients + log_servers + postgres + mariadb;
        let committed = |entry: &&Entry| matches!(entry.what, What::Told { told: Told::Committed, .. });
        let commits = ledger.iter().filter(committed).count();
        let begun = |entry: &&Entry| matches!(entry.what, What::Begun { .. });
        let answered = answered(ledger);
        let at = |part: usize| answered.get(answered.len() * part / 100).or(answered.last()).copied();
        let times = &in_doubt.times;
        let doubtful = |part: usize| times.get(times.len() * part / 100).or(times.last());
        let doubtful = |part: usize| doubtful(part).map_or(0, Duration::as_millis);
        let minutes = took.as_secs_f64() / 60.0;
        Self {
            kills,
            killed,
            stops,
            cuts,
            slowed,
            failed_forces,
            full_disks,
            crashed,
            faults: kills + stops + cuts + slowed + failed_forces + full_disks,
            transactions: ledger.iter().filter(begun).count(),
            commits,
            commits_per_minute: (as_float(commits) / minutes).round(),
            answered_ms_p50: at(50).unwrap_or_default(),
            answered_ms_p99: at(99).unwrap_or_default(),
            answered_ms_max: at(100).unwrap_or_default(),
            in_doubt_seen: times.len(),
            in_doubt_ms_p50: doubtful(50),
            in_doubt_ms_p99: doubtful(99),
            in_doubt_ms_max: doubtful(100),
            in_doubt_then: in_doubt.left,
            settled_ms: in_doubt.settled.as_millis(),
            in_doubt: violations.iter().filter(|text| text.contains("has still prepared")).count(),
            violations: violations.len(),
            violation_texts: violations,
            seed,
            seconds: (took.as_secs_f64() * 10.0).round() / 10.0,
        }
    }

    /// Whether somebody was killed, and nothing is wrong: what a short run on a busy machine can promise.
    #[must_use]
    pub const fn is_safe(&self) -> bool {
        self.violations == 0 && self.kills > 0 && self.commits > 0
    }

    /// Whether nothing is wrong, and enough was done and survived.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let minutes = self.seconds / 60.0;
        let enough_kills = f64::from(self.kills) >= KILLS_IN_20_MINUTES / 20.0 * minutes;
        self.violations == 0 && enough_kills && self.commits_per_minute >= COMMITS_A_MINUTE
    }

    /// One line of JSON.
    ///
    /// # Panics
    /// Never: numbers and texts make JSON.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers and texts make JSON")
    }

    /// For people.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut lines = vec![format!(
            "{} s: {} kills {:?}, {} stops, {} cuts, {} slowed, {} times failing forces, {} full disks, {} servers crashed of those; {} transactions, {} commits, {} a minute; answered after {} ms at the \
             median, {} ms at most; {} branches seen in doubt, for {} ms at the median, {} ms at most; {} branches in doubt when all was mended, \
             none {} ms later",
            self.seconds,
            self.kills,
            self.killed,
            self.stops,
            self.cuts,
            self.slowed,
            self.failed_forces,
            self.full_disks,
            self.crashed,
            self.transactions,
            self.commits,
            self.commits_per_minute,
            self.answered_ms_p50,
            self.answered_ms_max,
            self.in_doubt_seen,
            self.in_doubt_ms_p50,
            self.in_doubt_ms_max,
            self.in_doubt_then,
            self.settled_ms
        )];
        lines.extend(self.violation_texts.iter().map(|text| format!("VIOLATION {text}")));
        lines.push(format!("{} violations (seed {})", self.violations, self.seed));
        lines.join("\n")
    }
}

/// How long each answer took, the shortest first.
fn answered(ledger: &[Entry]) -> Vec<u64> {
    let mut begun = BTreeMap::new();
    let mut took = Vec::new();
    for entry in ledger {
        match entry.what {
            What::Begun { .. } => {
                begun.insert(entry.gtrid.as_str(), entry.at);
            }
            What::Told { .. } => {
                let since = begun.get(entry.gtrid.as_str()).copied().unwrap_or(entry.at);
                took.push(entry.at.saturating_sub(since) / 1000);
            }
            What::Ready { .. } | What::Heard { .. } => {}
        }
    }
    took.sort_unstable();
    took
}

fn as_float(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
