//! What operators' tools ask.

use lockstep_proto::{Bqual, Gtrid, v1};

use super::status::RequestError;
use super::{Services, count, wire_outcome};
use crate::decision_log::Recorded;
use crate::engine::clock::unix_ms;
use crate::engine::handle::EngineError;
use crate::engine::input::{BranchView, TransactionView};
use crate::protocol::outcome::{BranchEnd, Outcome};
use crate::protocol::record::{About, DecisionRecord, EndRecord};
use crate::protocol::transaction::State;

const MOST_LISTED: u32 = 1000;
const LISTED_BY_DEFAULT: u32 = 100;
/// How many candidates an ambiguous prefix is answered with.
const CANDIDATES: usize = 5;

pub(super) async fn list(
    services: &Services,
    request: v1::ListTransactionsRequest,
) -> Result<v1::ListTransactionsResponse, RequestError> {
    let limit = match request.limit {
        0 => LISTED_BY_DEFAULT,
        asked => asked.min(MOST_LISTED),
    };
    let wanted = usize::try_from(limit).expect("at most 1,000");
    // One more than wanted tells whether there are more.
    let live = services.shared.engine.list(wanted + 1).await?;
    let mut transactions: Vec<_> = live.into_iter().map(live_info).collect();
    if request.include_ended {
        let ended = services.shared.engine.log().recently_ended(limit + 1).await.map_err(EngineError::Log)?;
        let live: std::collections::BTreeSet<String> =
            transactions.iter().map(|info| info.gtrid.clone()).collect();
        transactions.extend(ended.into_iter().map(ended_info).filter(|info| !live.contains(&info.gtrid)));
    }
    let truncated = transactions.len() > wanted;
    transactions.truncate(wanted);
    Ok(v1::ListTransactionsResponse { transactions, truncated, now_ms: unix_ms() })
}

pub(super) async fn show(
    services: &Services,
    request: v1::ShowTransactionRequest,
) -> Result<v1::ShowTransactionResponse, RequestError> {
    let prefix = request.gtrid;
    let usable = !prefix.is_empty()
        && prefix.len() <= 43
        && prefix.bytes().all(|b| b.is_ascii_hexdigit() || b == b'.');
    if !usable {
        return Err(RequestError::NotFound(lockstep_proto::limits::cut(&prefix, 80).to_owned()));
    }
    let engine = &services.shared.engine;
    let mut live = engine.find(&prefix, CANDIDATES).await?;
    let most = u32::try_from(CANDIDATES).expect("a small number");
    let mut found: Vec<Gtrid> = engine.log().find(&prefix, most).await.map_err(EngineError::Log)?;
    found.extend(live.iter().map(|view| view.gtrid));
    found.sort_unstable();
    found.dedup();
    let gtrid = match found.as_slice() {
        [] => return Err(RequestError::NotFound(prefix)),
        [one] => *one,
        several => {
            let candidates = several.iter().take(CANDIDATES).map(ToString::to_string).collect();
            return Err(RequestError::Ambiguous { prefix, candidates });
        }
    };
    let transaction = match live.pop() {
        Some(view) => live_info(view),
        None => match engine.look_up(gtrid).await.map_err(EngineError::Log)?.recorded {
            Recorded::Ended(decision, end) => v1::TransactionInfo {
                decided_ms: decision.map_or(0, |decision| decision.decided_ms),
                ..ended_info(end)
            },
            Recorded::Decided(decision) => decided_info(decision),
            Recorded::Absent => return Err(RequestError::NotFound(prefix)),
        },
    };
    Ok(v1::ShowTransactionResponse { transaction: Some(transaction), now_ms: unix_ms() })
}

pub(super) async fn status(services: &Services) -> Result<v1::StatusResponse, RequestError> {
    let engine = &services.shared.engine;
    let summary = engine.summarize().await?;
    let log = engine.log();
    let numbers = log.status().await.map_err(EngineError::Log)?;
    let participants =
        services.shared.registry.overview().into_iter().map(|(entry, sessions)| v1::ParticipantInfo {
            resource_manager: entry.known.name.to_string(),
            sessions: count(sessions),
            problem: entry.problem,
        });
    Ok(v1::StatusResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cluster: log.cluster().to_string(),
        epoch: log.position().epoch.get(),
        uptime_ms: unix_ms().saturating_sub(services.started_ms),
        transactions_in_flight: wide(summary.live),
        undelivered: wide(summary.undelivered),
        heuristic: numbers.heuristic,
        participants: participants.collect(),
    })
}

fn wide(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn live_info(view: TransactionView) -> v1::TransactionInfo {
    let (outcome, detail, can_change) = match &view.state {
        State::Active
        | State::Preparing
        | State::Deciding(_)
        | State::DecisionUnknown(_)
        | State::CommittingOnePhase => (None, String::new(), true),
        State::RollbackOnly(why) | State::RollingBack(why) => (Some(Outcome::RolledBack), why.clone(), false),
        State::Committing => (Some(Outcome::Committed), String::new(), false),
        State::Recording(end) => (Some(end.outcome), end.detail.clone(), false),
        State::Ended(outcome, detail) => (Some(*outcome), detail.clone(), false),
    };
    v1::TransactionInfo {
        state: wire_state(&view.state).into(),
        outcome: wire_outcome(outcome).into(),
        detail,
        deadline_ms: view.deadline_ms,
        decided_ms: view.decided_ms,
        branches: view.branches.into_iter().map(live_branch).collect(),
        can_change,
        ..info(view.gtrid, view.about)
    }
}

fn live_branch(branch: BranchView) -> v1::BranchInfo {
    let next = branch.delivery.next_in.unwrap_or_default();
    v1::BranchInfo {
        attempts: branch.delivery.attempts,
        next_attempt_in_ms: u64::try_from(next.as_millis()).unwrap_or(u64::MAX),
        last_error: branch.delivery.last_error,
        ..branch_info(&branch.bqual, branch.state)
    }
}

fn wire_state(state: &State) -> v1::TransactionState {
    match state {
        State::Active => v1::TransactionState::Active,
        State::Preparing => v1::TransactionState::Preparing,
        State::Deciding(_) | State::DecisionUnknown(_) => v1::TransactionState::Deciding,
        State::Committing => v1::TransactionState::Committing,
        State::CommittingOnePhase => v1::TransactionState::CommittingOnePhase,
        State::RollbackOnly(_) | State::RollingBack(_) => v1::TransactionState::RollingBack,
        State::Recording(_) | State::Ended(..) => v1::TransactionState::Ended,
    }
}

fn ended_info(end: EndRecord) -> v1::TransactionInfo {
    let branches = end.branches.iter().map(|(bqual, how)| branch_info(bqual, end_name(*how))).collect();
    v1::TransactionInfo {
        state: v1::TransactionState::Ended.into(),
        outcome: wire_outcome(Some(end.outcome)).into(),
        detail: end.detail,
        ended_ms: end.ended_ms,
        branches,
        ..info(end.gtrid, end.about)
    }
}

/// Recorded and not live: seen only in the moment between a transaction's end and its record's.
fn decided_info(decision: DecisionRecord) -> v1::TransactionInfo {
    v1::TransactionInfo {
        state: v1::TransactionState::Committing.into(),
        outcome: v1::Outcome::Committed.into(),
        decided_ms: decision.decided_ms,
        branches: decision.branches.iter().map(|bqual| branch_info(bqual, "delivering")).collect(),
        ..info(decision.gtrid, decision.about)
    }
}

fn info(gtrid: Gtrid, about: About) -> v1::TransactionInfo {
    v1::TransactionInfo {
        gtrid: gtrid.to_string(),
        name: about.name,
        labels: about.labels.into_iter().collect(),
        began_ms: gtrid.unix_ms(),
        ..v1::TransactionInfo::default()
    }
}

fn branch_info(bqual: &Bqual, state: &str) -> v1::BranchInfo {
    v1::BranchInfo {
        bqual: bqual.to_string(),
        resource_manager: bqual.resource_manager().to_string(),
        state: state.to_owned(),
        ..v1::BranchInfo::default()
    }
}

fn end_name(end: BranchEnd) -> &'static str {
    match end {
        BranchEnd::Committed => "committed",
        BranchEnd::RolledBack => "rolled-back",
        BranchEnd::ReadOnly => "read-only",
        BranchEnd::Hazard => "hazard",
        BranchEnd::Lost => "lost",
    }
}
