//! The coordinator on one screen.

use lockstep_proto::v1;

use super::wide;
use crate::engine::clock::unix_ms;
use crate::rpc::status::RequestError;
use crate::rpc::{Services, count};

pub(in crate::rpc) async fn status(services: &Services) -> Result<v1::StatusResponse, RequestError> {
    let engine = &services.shared.engine;
    let summary = engine.summarize().await?;
    let log = engine.log();
    // While it can't be read, what is in memory is what somebody looks for.
    let (numbers, log_unavailable) = match engine.log_status().await {
        Ok(numbers) => (Some(numbers), String::new()),
        Err(why) => (None, why.to_string()),
    };
    let overview = services.shared.registry.overview();
    let participants = overview.into_iter().map(|(entry, sessions)| v1::ParticipantInfo {
        resource_manager: entry.known.name.to_string(),
        sessions: count(sessions),
        problem: if entry.problem.is_empty() {
            entry.refused.map_or(String::new(), |refused| refused.why)
        } else {
            entry.problem
        },
        down_since_ms: entry.down_since_ms,
        retired: entry.known.retired,
    });
    let now_ms = unix_ms();
    Ok(v1::StatusResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cluster: log.cluster().to_string(),
        epoch: log.position().epoch.get(),
        uptime_ms: now_ms.saturating_sub(services.started_ms),
        transactions_in_flight: wide(summary.live),
        undelivered: wide(summary.undelivered),
        undelivered_since_ms: summary.undelivered_since_ms.unwrap_or(0),
        undecided: wide(summary.overdue),
        orphans: wide(services.shared.registry.orphan_transactions()),
        heuristic: numbers.map_or(0, |numbers| numbers.heuristic),
        heuristic_open: numbers.map_or(0, |numbers| numbers.heuristic_open),
        participants: participants.collect(),
        draining: engine.is_draining(),
        log_behind: engine.is_behind(),
        now_ms,
        log_bytes: numbers.map_or(0, |numbers| numbers.bytes),
        log_free_bytes: engine.admission().free_bytes(),
        begins_refused: engine.may_begin().map_or_else(|error| error.to_string(), |()| String::new()),
        log_unavailable,
    })
}
