//! What a run has cost: processor time by process, forced writes, messages. Counted from outside, by the kernel and the servers.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use lockstep_tests::harness::clock::now;
use lockstep_tests::harness::postgres::PostgresServer;
use lockstep_tests::harness::{Failed, Result};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

/// How long the disk is probed: medians of less differ by a third on a disk that does not change.
const PROBED: Duration = Duration::from_millis(500);
/// Forced writes in a probe, at least.
const PROBES: usize = 200;
/// Bytes of each: a page of PostgreSQL's log.
const PROBE_BYTES: usize = 8192;
/// By how much the disk may change during a turn.
pub const MOST_DRIFT: f64 = 0.25;
/// The kernel counts processor time in hundredths of a second (`CLK_TCK` on every Linux that we know).
const TICK: Duration = Duration::from_millis(10);

/// Processor time that was used so far by each part.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProcessorTime(pub BTreeMap<&'static str, Duration>);

impl ProcessorTime {
    /// Microseconds for each of so many transactions, by part, since `before`.
    pub fn each(&self, before: &Self, transactions: u64) -> BTreeMap<String, f64> {
        let used = |part: &str, after: Duration| {
            after.saturating_sub(before.0.get(part).copied().unwrap_or_default()).as_secs_f64() * 1e6
        };
        self.0
            .iter()
            .map(|(part, after)| ((*part).to_owned(), used(part, *after) / count(transactions)))
            .collect()
    }
}

/// What these processes have used. With `with_reaped`, also what their children had that have ended.
fn processor_time(processes: impl IntoIterator<Item = i32>, with_reaped: bool) -> Duration {
    let fields = if with_reaped { 4 } else { 2 };
    let ticks: u32 = processes.into_iter().map(|process| ticks(process, fields)).sum();
    TICK * ticks
}

/// The first `fields` of user, system, and the reaped children's user and system time (proc(5)): the 14th field and those behind it. The
/// program's name is in parentheses and may have spaces.
fn ticks(process: i32, fields: usize) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
    behind.split_whitespace().skip(11).take(fields).filter_map(|field| field.parse::<u32>().ok()).sum()
}

/// What a process has used.
pub fn processor_time_of(process: u32) -> Duration {
    processor_time(i32::try_from(process).ok(), false)
}

/// What this process has used.
pub fn own_processor_time() -> Duration {
    processor_time_of(std::process::id())
}

/// What a server's processes have used, those that have ended too.
///
/// # Errors
/// If it does not run.
pub fn processor_time_of_server(server: &PostgresServer) -> Result<Duration> {
    let mut processes = server.processes()?;
    loop {
        let pids: Vec<i32> = processes.iter().map(|pid| pid.as_raw_nonzero().get()).collect();
        let (postmaster, backends) = pids.split_last().expect("a server that runs has a postmaster");
        let all = processor_time([*postmaster], true)
            + backends.iter().copied().map(of_single_thread).sum::<Duration>();
        // One that has ended in between is counted twice or not at all, with all of its life.
        let then = std::mem::replace(&mut processes, server.processes()?);
        if processes == then {
            return Ok(all);
        }
    }
}

/// To the nanosecond, where the kernel has that. Its usual count leaves out up to two hundredths of a second of each process, and there are many.
fn of_single_thread(process: i32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/schedstat")).unwrap_or_default();
    let nanos = stat.split_whitespace().next().and_then(|nanos| nanos.parse().ok());
    nanos.map_or_else(|| processor_time([process], false), Duration::from_nanos)
}

/// How often a server has forced its log. A backend tells when it ends, or seldom: those that matter have to have ended.
///
/// # Errors
/// If it can't be asked.
pub fn forced_writes(server: &PostgresServer) -> Result<u64> {
    let version: u32 = number(&server.psql("postgres", "SHOW server_version_num")?)?;
    // Since 18 they are counted with all other input and output.
    let sql = if version >= 180_000 {
        "SELECT coalesce(sum(fsyncs), 0)::bigint FROM pg_stat_io WHERE object = 'wal'"
    } else {
        "SELECT wal_sync FROM pg_stat_wal"
    };
    number(&server.psql("postgres", sql)?)
}

/// Runs what has to wait for an answer now and then in a program that is not asynchronous otherwise.
///
/// # Errors
/// If there is none to be had.
pub fn runtime() -> Result<Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Failed::because("no runtime"))
}

/// What a coordinator says of itself to Prometheus.
pub struct Scraped(String);

impl Scraped {
    /// Of the one at this address, now.
    ///
    /// # Errors
    /// If it can't be asked.
    pub async fn from(coordinator: &str) -> Result<Self> {
        let cannot = || Failed::because("the coordinator's metrics");
        let response = reqwest::get(format!("{coordinator}/metrics")).await.map_err(cannot())?;
        response.text().await.map(Self).map_err(cannot())
    }

    /// Of all series whose names begin so.
    #[must_use]
    pub fn sum(&self, series: &str) -> f64 {
        let of = |line: &str| line.strip_prefix(series)?.rsplit(' ').next()?.parse::<f64>().ok();
        self.0.lines().filter_map(of).sum()
    }
}

/// Transactions of the coordinator at this address that are decided, and not all of whose branches have acknowledged.
///
/// # Errors
/// If it can't be asked.
pub async fn unresolved(coordinator: &str) -> Result<f64> {
    Ok(Scraped::from(coordinator).await?.sum("lockstep_unresolved_transactions"))
}

/// What a coordinator counts, from its metrics.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Counted {
    /// Forced batches of its log.
    pub forces: f64,
    /// Records in them.
    pub records: f64,
    /// Messages on the participants' streams, both ways.
    pub messages: f64,
    /// Frames that carried them.
    pub frames: f64,
    /// Calls of applications: each is a request and an answer.
    pub transactions: f64,
}

impl Counted {
    /// Of a coordinator at this address, so far.
    ///
    /// # Errors
    /// If it can't be asked.
    pub async fn at(coordinator: &str) -> Result<Self> {
        let scraped = Scraped::from(coordinator).await?;
        Ok(Self {
            forces: scraped.sum("lockstep_log_force_seconds_count"),
            records: scraped.sum("lockstep_log_batch_records_sum"),
            messages: scraped.sum("lockstep_stream_messages_total"),
            frames: scraped.sum("lockstep_stream_frames_total"),
            transactions: scraped.sum("lockstep_transactions_started_total"),
        })
    }

    /// What came since `before`, for each of so many transactions.
    #[must_use]
    pub fn each(&self, before: &Self, transactions: u64) -> Self {
        let each = |after: f64, before: f64| (after - before) / count(transactions);
        Self {
            forces: each(self.forces, before.forces),
            records: each(self.records, before.records),
            messages: each(self.messages, before.messages),
            frames: each(self.frames, before.frames),
            transactions: each(self.transactions, before.transactions),
        }
    }
}

/// The median time of a forced write of one page in this directory, in microseconds.
///
/// # Errors
/// If it can't be written.
pub fn fdatasync_micros(directory: &Path) -> Result<f64> {
    let cannot = || Failed::because(format!("a probe in {}", directory.display()));
    let path = directory.join("probe");
    let mut file = File::create(&path).map_err(cannot())?;
    let page = [b'x'; PROBE_BYTES];
    let mut took = Vec::new();
    let probing = now();
    while took.len() < PROBES || probing.elapsed() < PROBED {
        file.write_all(&page).map_err(cannot())?;
        let begun = now();
        file.sync_data().map_err(cannot())?;
        took.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    fs::remove_file(&path).map_err(cannot())?;
    Ok(median(&took))
}

/// The middle one; the mean of the two in the middle if there are two; not a number if there is none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (length, middle) if length % 2 == 1 => sorted[middle],
        (_, middle) => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The same number, to divide by.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53, and nothing here counts so far")]
pub fn count(of: u64) -> f64 {
    of as f64
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T>
where
    T::Err: std::fmt::Display,
{
    text.trim().parse().map_err(Failed::because(format!("a number: {text}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn this_process_uses_processor_time() {
        let begun = now();
        while begun.elapsed() < Duration::from_millis(100) {}
        assert!(own_processor_time() >= Duration::from_millis(20));
        assert_eq!(processor_time([i32::MAX], true), Duration::ZERO);
    }
}
