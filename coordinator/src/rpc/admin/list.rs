//! Transactions, by what is asked for.

use std::collections::BTreeSet;

use lockstep_proto::wire::known_enum;
use lockstep_proto::{Gtrid, v1};

use super::info::{add_decision, ended_info, live_info};
use super::limit;
use crate::engine::clock::unix_ms;
use crate::engine::handle::EngineError;
use crate::rpc::Services;
use crate::rpc::status::RequestError;

/// Live transactions, and ended ones, that are looked through for those that fit: enough for a bad night, and a bound.
const LOOKED_THROUGH: u32 = 100_000;

pub(in crate::rpc) async fn list(
    services: &Services,
    request: v1::ListTransactionsRequest,
) -> Result<v1::ListTransactionsResponse, RequestError> {
    let wanted = usize::try_from(limit(request.limit)).expect("at most 1,000");
    let filter = Filter::new(&request)?;
    let engine = &services.shared.engine;
    // One more than wanted tells whether there are more.
    let look_at = if filter.takes_all { wanted + 1 } else { LOOKED_THROUGH as usize };
    let mut transactions: Vec<_> = engine.list(look_at).await?.into_iter().map(live_info).collect();
    let live: BTreeSet<String> = transactions.iter().map(|info| info.gtrid.clone()).collect();
    let log = engine.log();
    let ended_at_most = u32::try_from(look_at).unwrap_or(LOOKED_THROUGH);
    let open = match filter.situation {
        v1::Situation::Heuristic => log.open_heuristics(ended_at_most).await.map_err(EngineError::Log)?,
        v1::Situation::Unspecified if request.include_ended => {
            log.recently_ended(ended_at_most).await.map_err(EngineError::Log)?
        }
        v1::Situation::Unspecified
        | v1::Situation::Undelivered
        | v1::Situation::Undecided
        | v1::Situation::Orphan => Vec::new(),
    };
    let is_open = filter.situation == v1::Situation::Heuristic;
    for end in open {
        let gtrid = end.gtrid;
        let heuristic = matches!(end.outcome, crate::protocol::outcome::Outcome::Heuristic(_));
        let acknowledged =
            heuristic && !is_open && log.is_acknowledged(gtrid).await.map_err(EngineError::Log)?;
        let info = ended_info(None, end, acknowledged);
        if !live.contains(&info.gtrid) {
            transactions.push(info);
        }
    }
    transactions.retain(|info| filter.fits(info));
    let truncated = transactions.len() > wanted;
    transactions.truncate(wanted);
    let ended = transactions.iter_mut().filter(|info| !live.contains(&info.gtrid));
    add_decisions(services, ended.collect()).await?;
    Ok(v1::ListTransactionsResponse { transactions, truncated, now_ms: unix_ms() })
}

/// When what has ended was decided, and for what: its end does not tell. (What is live needs no log, and is told while there is none.)
async fn add_decisions(
    services: &Services,
    ended: Vec<&mut v1::TransactionInfo>,
) -> Result<(), RequestError> {
    let gtrids: Vec<Gtrid> = ended.iter().filter_map(|info| info.gtrid.parse().ok()).collect();
    if gtrids.is_empty() {
        return Ok(());
    }
    assert_eq!(gtrids.len(), ended.len(), "each was made from a gtrid");
    let look_ups = services.shared.engine.log().look_up(&gtrids).await.map_err(EngineError::Log)?;
    for (info, look_up) in ended.into_iter().zip(look_ups) {
        if let Some(decision) = look_up.recorded.decision() {
            add_decision(info, decision);
        }
    }
    Ok(())
}

/// What is asked for, checked.
struct Filter<'a> {
    request: &'a v1::ListTransactionsRequest,
    situation: v1::Situation,
    begun_before_ms: u64,
    /// Nothing is left out.
    takes_all: bool,
}

impl<'a> Filter<'a> {
    fn new(request: &'a v1::ListTransactionsRequest) -> Result<Self, RequestError> {
        for state in &request.states {
            known_enum::<v1::TransactionState>(*state, "states")?;
        }
        let situation = match request.situation {
            0 => v1::Situation::Unspecified,
            other => known_enum(other, "situation")?,
        };
        let takes_all = situation == v1::Situation::Unspecified
            && request.states.is_empty()
            && request.name.is_empty()
            && request.labels.is_empty()
            && request.resource_manager.is_empty()
            && request.min_age_ms == 0;
        let begun_before_ms = unix_ms().saturating_sub(request.min_age_ms);
        Ok(Self { request, situation, begun_before_ms, takes_all })
    }

    fn fits(&self, info: &v1::TransactionInfo) -> bool {
        let request = self.request;
        let situation = self.situation == v1::Situation::Unspecified || info.situation() == self.situation;
        let state = request.states.is_empty() || request.states.contains(&info.state);
        let name = request.name.is_empty() || info.name == request.name;
        let labels = request.labels.iter().all(|(key, value)| info.labels.get(key) == Some(value));
        let theirs = |branch: &v1::BranchInfo| branch.resource_manager == request.resource_manager;
        let participant = request.resource_manager.is_empty() || info.branches.iter().any(theirs);
        situation && state && name && labels && participant && info.began_ms <= self.begun_before_ms
    }
}
