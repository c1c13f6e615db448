//! What is looked up when somebody asks for the metrics, and the answer.

use std::time::Duration;

use super::metrics::Gauges;
use crate::decision_log::LogStatus;
use crate::engine::clock::unix_ms;
use crate::engine::input::Summary;
use crate::engine::shell::Stopped;
use crate::sessions::session::Shared;

/// All metrics, as they are now, in Prometheus' text format. While the log cannot be asked, what it knows is left out and everything else is
/// told: that is when somebody looks.
///
/// # Errors
/// If the engine is ending.
pub async fn scrape(shared: &Shared) -> Result<String, Stopped> {
    let summary = shared.engine.summarize().await?;
    let log = shared.engine.log_status().await.ok();
    Ok(shared.engine.metrics().scraped(|gauges| {
        set_log(gauges, log.as_ref(), shared.engine.admission().free_bytes());
        gauges.accepting.set(i64::from(shared.engine.may_begin().is_ok()));
        set_transactions(gauges, &summary);
        gauges.attached.reset();
        for (entry, sessions) in shared.registry.overview() {
            gauges.attached.with_label_values(&[entry.known.name.as_str()]).set(whole(sessions));
        }
        gauges.unresolved.with_label_values(&["orphan"]).set(whole(shared.registry.orphan_transactions()));
        gauges.queued.reset();
        for (name, depth) in &summary.queued {
            gauges.queued.with_label_values(&[name.as_str()]).set(whole(*depth));
        }
    }))
}

/// An old number would be taken for one of now: what is not known has no value.
fn set_log(gauges: &Gauges, log: Option<&LogStatus>, free: Option<u64>) {
    gauges.log_up.set(i64::from(log.is_some()));
    gauges.log_bytes.reset();
    gauges.log_free_bytes.reset();
    gauges.unresolved.reset();
    if let Some(log) = log {
        gauges.log_bytes.with_label_values::<&str>(&[]).set(whole(log.bytes));
        gauges.unresolved.with_label_values(&["heuristic"]).set(whole(log.heuristic_open));
    }
    if let Some(free) = free {
        gauges.log_free_bytes.with_label_values::<&str>(&[]).set(whole(free));
    }
}

fn set_transactions(gauges: &Gauges, summary: &Summary) {
    for (state, count) in [("undecided", summary.undecided), ("undelivered", summary.undelivered)] {
        gauges.active.with_label_values(&[state]).set(whole(count));
    }
    let overdue_since = summary.oldest.filter(|_| summary.overdue > 0).map(|gtrid| gtrid.unix_ms());
    let oldest = [
        ("undelivered", whole(summary.undelivered), summary.undelivered_since_ms),
        ("undecided", whole(summary.overdue), overdue_since),
    ];
    for (situation, count, since_ms) in oldest {
        gauges.unresolved.with_label_values(&[situation]).set(count);
        gauges.unresolved_oldest_age.with_label_values(&[situation]).set(since_ms.map_or(0.0, age));
    }
}

/// Seconds since then.
fn age(since_ms: u64) -> f64 {
    Duration::from_millis(unix_ms().saturating_sub(since_ms)).as_secs_f64()
}

fn whole<N: TryInto<i64>>(count: N) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}
