//! What is looked up when somebody asks for the metrics, and the answer.

use std::collections::BTreeSet;

use lockstep_proto::Gtrid;

use super::metrics::Gauges;
use crate::decision_log::LogStatus;
use crate::engine::clock::unix_ms;
use crate::engine::handle::EngineError;
use crate::engine::input::Summary;
use crate::sessions::session::Shared;

/// All metrics, as they are now, in Prometheus' text format.
///
/// # Errors
/// If the engine is ending, or the log cannot be asked: then the numbers would not be those of now.
pub async fn scrape(shared: &Shared) -> Result<String, EngineError> {
    let summary = shared.engine.summarize().await?;
    let log = shared.engine.log().status().await?;
    Ok(shared.engine.metrics().scraped(|gauges| {
        gauges.log_bytes.set(whole(log.bytes));
        gauges.log_free_bytes.reset();
        if let Some(free) = shared.engine.admission().free_bytes() {
            gauges.log_free_bytes.with_label_values::<&str>(&[]).set(whole(free));
        }
        gauges.accepting.set(i64::from(shared.engine.may_begin().is_ok()));
        set_transactions(gauges, &summary, &log);
        gauges.attached.reset();
        let mut orphans = BTreeSet::new();
        for (entry, sessions) in shared.registry.overview() {
            orphans.extend(entry.orphans.keys().map(|xid| xid.gtrid));
            gauges.attached.with_label_values(&[entry.known.name.as_str()]).set(whole(sessions));
        }
        gauges.unresolved.with_label_values(&["orphan"]).set(whole(orphans.len()));
        gauges.queued.reset();
        for (name, depth) in &summary.queued {
            gauges.queued.with_label_values(&[name.as_str()]).set(whole(*depth));
        }
    }))
}

fn set_transactions(gauges: &Gauges, summary: &Summary, log: &LogStatus) {
    for (state, count) in [("undecided", summary.undecided), ("undelivered", summary.undelivered)] {
        gauges.active.with_label_values(&[state]).set(whole(count));
    }
    let oldest = [
        ("undelivered", whole(summary.undelivered), summary.oldest_undelivered),
        ("undecided", whole(summary.overdue), summary.oldest.filter(|_| summary.overdue > 0)),
    ];
    for (situation, count, oldest) in oldest {
        gauges.unresolved.with_label_values(&[situation]).set(count);
        gauges.unresolved_oldest_age.with_label_values(&[situation]).set(oldest.map_or(0.0, age));
    }
    gauges.unresolved.with_label_values(&["heuristic"]).set(whole(log.heuristic_open));
}

/// Seconds since it was begun.
fn age(gtrid: Gtrid) -> f64 {
    std::time::Duration::from_millis(unix_ms().saturating_sub(gtrid.unix_ms())).as_secs_f64()
}

fn whole<N: TryInto<i64>>(count: N) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}
