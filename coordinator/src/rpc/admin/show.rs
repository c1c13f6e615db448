//! One transaction, found by the beginning of its id, and what may be done about it.

use std::time::Duration;

use lockstep_proto::{Gtrid, v1};
use tokio::time::timeout;

use super::info::{audit_entry, ended_info, live_info, recorded_info};
use super::orphans;
use crate::decision_log::ReadError;
use crate::decision_log::audit::{AuditQuery, AuditRecord};
use crate::engine::clock::unix_ms;
use crate::engine::handle::{EngineError, soon, within};
use crate::engine::input::TransactionView;
use crate::protocol::situation::{Action, Forbidden, Standing};
use crate::rpc::Services;
use crate::rpc::status::RequestError;

/// How many candidates an ambiguous prefix is answered with.
const CANDIDATES: usize = 5;
/// How long the databases may take to say whose it is, where there is no record: one that hangs is no reason to keep the answer.
const FOR_DATABASES: Duration = Duration::from_secs(1);
/// How long somebody waits who is about to act, and has to know: less than the command line waits for an answer unless told otherwise.
const FOR_THE_LOG: Duration = Duration::from_secs(8);
/// How much of its history a transaction is shown with.
const MOST_AUDIT: u32 = 100;

/// What is known of the transaction that somebody asked for.
pub(super) struct Found {
    pub(super) gtrid: Gtrid,
    pub(super) standing: Standing,
    pub(super) info: v1::TransactionInfo,
}

pub(in crate::rpc) async fn show(
    services: &Services,
    request: v1::ShowTransactionRequest,
) -> Result<v1::ShowTransactionResponse, RequestError> {
    let reading = {
        let (services, prefix) = (services.clone(), request.gtrid.clone());
        async move { from_log(&services, &prefix).await }
    };
    let read = soon(reading).await.unwrap_or_else(|late| Err(EngineError::Log(late).into()));
    let (found, audit, log_unavailable) = match read {
        Ok((found, audit)) => (found, audit, String::new()),
        Err(RequestError::Engine(EngineError::Log(why))) => {
            let reason = why.to_string();
            (from_memory(services, &request.gtrid, why).await?, Vec::new(), reason)
        }
        Err(other) => return Err(other),
    };
    Ok(v1::ShowTransactionResponse {
        advice: advice(found.standing),
        transaction: Some(found.info),
        audit: audit.into_iter().map(audit_entry).collect(),
        now_ms: unix_ms(),
        log_unavailable,
    })
}

/// With what is on record of it, too.
async fn from_log(services: &Services, prefix: &str) -> Result<(Found, Vec<AuditRecord>), RequestError> {
    let found = find(services, prefix).await?;
    let query = AuditQuery { of: Some(found.gtrid), below: 0, limit: MOST_AUDIT };
    let audit = services.shared.engine.log().audit(query).await.map_err(EngineError::Log)?;
    Ok((found, audit))
}

/// A live one, while the log cannot be read: that is when somebody looks. Nothing is concluded of one that is not live. `why`: it can't.
async fn from_memory(services: &Services, prefix: &str, why: ReadError) -> Result<Found, RequestError> {
    let mut live = services.shared.engine.find(prefix, CANDIDATES).await?;
    match (live.pop(), live.is_empty()) {
        (Some(view), true) => Ok(found_live(view)),
        (Some(last), false) => {
            live.push(last);
            Err(ambiguous(prefix, live.iter().map(|view| view.gtrid)))
        }
        (None, _) => Err(EngineError::Log(why).into()),
    }
}

fn found_live(view: TransactionView) -> Found {
    let standing = Standing::of_live(&view.state, view.overdue);
    Found { gtrid: view.gtrid, standing, info: live_info(view) }
}

/// What may be done now, and what may not.
pub(super) fn advice(standing: Standing) -> Vec<v1::Advice> {
    let advice = |action: Action| {
        let (why, instead) = match standing.permit(action) {
            Ok(()) => (String::new(), String::new()),
            Err(forbidden) => (forbidden.to_string(), forbidden.instead().to_owned()),
        };
        v1::Advice { action: wire_action(action).into(), permitted: why.is_empty(), why, instead }
    };
    Action::ALL.map(advice).into()
}

fn wire_action(action: Action) -> v1::OperatorAction {
    match action {
        Action::Retry => v1::OperatorAction::Retry,
        Action::Pause => v1::OperatorAction::Pause,
        Action::Resume => v1::OperatorAction::Resume,
        Action::Rollback => v1::OperatorAction::Rollback,
        Action::Commit => v1::OperatorAction::Commit,
        Action::Abandon => v1::OperatorAction::Abandon,
        Action::Acknowledge => v1::OperatorAction::Acknowledge,
        Action::CommitOrphan => v1::OperatorAction::CommitOrphan,
        Action::RollbackOrphan => v1::OperatorAction::RollbackOrphan,
    }
}

/// The one transaction that begins so.
pub(super) async fn find(services: &Services, prefix: &str) -> Result<Found, RequestError> {
    let engine = &services.shared.engine;
    let gtrid = resolve(services, prefix).await?;
    // In this order: what ends in between has left its record before it leaves its shard.
    if let Some(view) = engine.find(&gtrid.to_string(), 1).await?.pop() {
        return Ok(found_live(view));
    }
    let end = engine.writer().end_on_its_way(&gtrid);
    let asked = engine.clone();
    let reading = async move { Ok((asked.look_up(gtrid).await?, asked.log().is_acknowledged(gtrid).await?)) };
    let read = within(FOR_THE_LOG, reading).await.flatten();
    let (look_up, acknowledged) = read.map_err(EngineError::Log)?;
    let on_its_way = end.as_ref().map(|end| Standing::of_unrecorded(end.outcome));
    let standing = on_its_way.or_else(|| Standing::of_recorded(&look_up, engine.is_behind(), acknowledged));
    // It is shown as it is on record, while there is a record: what is shown to have ended stays so over a crash.
    let info = recorded_info(look_up.recorded, acknowledged);
    match (standing, info.or_else(|| Some(ended_info(None, end?, false)))) {
        (Some(standing), Some(info)) => Ok(Found { gtrid, standing, info }),
        (standing, _) => Err(absent(services, gtrid, standing).await),
    }
}

/// Why there is nothing to tell here of a transaction without a record, and where there is. Its databases are asked first: what they hold of it
/// may be another cluster's, whatever this log knows of an epoch of that number.
async fn absent(services: &Services, gtrid: Gtrid, standing: Option<Standing>) -> RequestError {
    let census = timeout(FOR_DATABASES, orphans::census(services, gtrid)).await;
    let (foreign, said) = census.map_or((false, String::new()), |census| (census.foreign, census.said));
    if foreign {
        return forbidden(services, gtrid, Forbidden::OtherCluster, said);
    }
    if standing == Some(Standing::Elsewhere) {
        return forbidden(services, gtrid, Forbidden::OtherCoordinator, String::new());
    }
    let what = gtrid.to_string();
    if standing.is_none() && services.shared.registry.has_orphan_of(&what) {
        return forbidden(services, gtrid, Forbidden::IsOrphan, said);
    }
    RequestError::NotFound(what)
}

/// A refusal about this transaction. `context`: how it is, for one that is not another coordinator's; of that one it is said where it is.
pub(super) fn forbidden(services: &Services, gtrid: Gtrid, why: Forbidden, context: String) -> RequestError {
    let context = if why == Forbidden::OtherCoordinator { whereabouts(services, gtrid) } else { context };
    RequestError::Forbidden { what: gtrid.to_string(), context, forbidden: why }
}

/// The other nodes on the same log, as far as this one has been told.
pub(super) fn others(services: &Services) -> Vec<String> {
    let own = services.shared.engine.log().position().epoch.get();
    let others = services.shared.registry.nodes().into_iter().filter(|node| node.epoch != own);
    others.map(|node| node.address).collect()
}

/// Where to ask about a transaction of another coordinator, as far as this one has been told.
fn whereabouts(services: &Services, gtrid: Gtrid) -> String {
    let nodes = services.shared.registry.nodes();
    if let Some(its) = nodes.iter().find(|node| node.epoch == gtrid.epoch().get()) {
        return format!("it is at {}", its.address);
    }
    let others = others(services);
    if others.is_empty() {
        "`lockstep cluster ls` lists the coordinators on a log".to_owned()
    } else {
        format!("one of these has taken it over: {}", others.join(", "))
    }
}

/// The gtrid that is named, known or not: an orphan may be one that this coordinator has never heard of. Of a beginning, that of the one
/// transaction that begins so.
pub(super) async fn whole(services: &Services, target: &str) -> Result<Gtrid, RequestError> {
    match target.parse::<Gtrid>() {
        Ok(whole) => Ok(whole),
        Err(_beginning) => resolve(services, target).await,
    }
}

/// The gtrid of the one transaction that begins so.
pub(super) async fn resolve(services: &Services, prefix: &str) -> Result<Gtrid, RequestError> {
    let usable = !prefix.is_empty()
        && prefix.len() <= 43
        && prefix.bytes().all(|b| b.is_ascii_hexdigit() || b == b'.');
    if !usable {
        return Err(RequestError::NotFound(lockstep_proto::limits::cut(prefix, 80).to_owned()));
    }
    let engine = &services.shared.engine;
    let live = engine.find(prefix, CANDIDATES).await?;
    let most = u32::try_from(CANDIDATES).expect("a small number");
    let (asked, begins) = (engine.clone(), prefix.to_owned());
    let recorded = soon(async move { asked.log().find(&begins, most).await }).await.flatten();
    let mut found: Vec<Gtrid> = recorded.map_err(EngineError::Log)?;
    found.extend(live.iter().map(|view| view.gtrid));
    found.extend(services.shared.registry.orphans_beginning(prefix));
    found.sort_unstable();
    found.dedup();
    match found.as_slice() {
        // One that is whole may be at another node, without a record yet.
        [] => prefix.parse().map_err(|_beginning| RequestError::NotFound(prefix.to_owned())),
        [one] => Ok(*one),
        several => Err(ambiguous(prefix, several.iter().copied())),
    }
}

fn ambiguous(prefix: &str, several: impl Iterator<Item = Gtrid>) -> RequestError {
    let candidates = several.take(CANDIDATES).map(|gtrid| gtrid.to_string()).collect();
    RequestError::Ambiguous { prefix: prefix.to_owned(), candidates }
}
