//! What an operator does: judged by one table, put on record, and only then done.
//!
//! A dry run goes the same way up to the record, and ends there. What is refused is refused before anything is on record.

use std::time::Duration;

use lockstep_proto::wire::known_enum;
use lockstep_proto::{ResourceManagerName, TraceParent, limits, v1};
use opentelemetry::KeyValue;

use super::info::wire_situation;
use super::show::{Found, find, forbidden, others};
use super::{orphans, participants};
use crate::decision_log::audit::{Effect, Operation};
use crate::engine::clock::unix_ms;
use crate::engine::handle::EngineError;
use crate::engine::input::{Act, Input};
use crate::engine::shell::Mail;
use crate::protocol::branch::Branch;
use crate::protocol::outcome::{Decision, Outcome};
use crate::protocol::situation::{Action, Forbidden, Situation};
use crate::rpc::Services;
use crate::rpc::status::RequestError;
use crate::telemetry::traces::OpenSpan;

/// What is about to be done, judged and found safe.
pub(super) struct Plan {
    /// The target, whole.
    pub(super) target: String,
    /// The span of the transaction that it is about, if one was recorded.
    pub(super) trace: Option<TraceParent>,
    pub(super) gtrid: Option<lockstep_proto::Gtrid>,
    pub(super) situation: Option<Situation>,
    /// How it is now.
    pub(super) before: String,
    /// What will be done: a sentence each.
    pub(super) steps: Vec<String>,
    /// What has to be confirmed, because it cannot be taken back.
    pub(super) confirm: Option<String>,
    pub(super) deed: Deed,
}

/// What is done behind the record.
pub(super) enum Deed {
    /// With a decision's deliveries.
    Act(Act),
    /// With a transaction that is not decided.
    Rollback,
    /// In the log alone.
    Acknowledge,
    /// A resource manager is gone for good.
    Retire(crate::decision_log::KnownResourceManager),
    /// Its database has moved.
    Rebind(crate::decision_log::KnownResourceManager),
    /// Begin nothing new.
    Drain,
    /// With branches that nobody else answers for.
    Orphans(orphans::Resolution),
}

pub(in crate::rpc) async fn act(
    services: &Services,
    request: v1::ActRequest,
) -> Result<v1::ActResponse, RequestError> {
    let asked = known_enum::<v1::OperatorAction>(request.action, "action")?;
    for (field, text) in [("reason", &request.reason), ("who", &request.who)] {
        if text.len() > limits::MAX_DETAIL_BYTES {
            return Err(RequestError::TooLong(field));
        }
    }
    let plan = plan(services, asked, &request).await?;
    let confirm = plan.confirm.clone().unwrap_or_default();
    let mut response = v1::ActResponse {
        target: plan.target.clone(),
        situation: plan.situation.map_or(v1::Situation::Unspecified, wire_situation).into(),
        before: plan.before.clone(),
        plan: plan.steps.clone(),
        confirm: confirm.clone(),
        audit_id: 0,
    };
    if request.dry_run {
        return Ok(response);
    }
    if request.reason.trim().is_empty() {
        return Err(RequestError::NoReason);
    }
    if plan.confirm.as_ref().is_some_and(|confirm| request.confirm != *confirm) {
        return Err(RequestError::NotConfirmed { action: name(asked), confirm });
    }
    let operation = Operation {
        at_ms: unix_ms(),
        who: request.who.clone(),
        action: name(asked).to_owned(),
        subject: plan.target.clone(),
        gtrid: plan.gtrid,
        reason: request.reason.clone(),
        before: limits::cut(&plan.before, limits::MAX_DETAIL_BYTES).to_owned(),
        after: limits::cut(&plan.steps.join("; "), limits::MAX_DETAIL_BYTES).to_owned(),
        effect: effect(&plan.deed),
    };
    let span = span(services, &plan, &operation);
    let log = services.shared.engine.log();
    fail::fail_point!("operator-before-record");
    response.audit_id = log.operate(&operation).await.map_err(RequestError::NotRecorded)?;
    services.shared.engine.metrics().acted(&operation.action);
    tracing::warn!(
        audit = response.audit_id,
        action = operation.action,
        gtrid = operation.gtrid.map(tracing::field::display),
        subject = operation.subject,
        who = operation.who,
        reason = operation.reason,
        "an operator acts"
    );
    fail::fail_point!("operator-recorded-before-act");
    if let Err(why) = carry_out(services, plan, &operation).await {
        if let Some(span) = &span {
            span.fail("failed", &why.to_string());
        }
        return Err(failed(services, operation, response.audit_id, why).await);
    }
    fail::fail_point!("operator-after-act");
    Ok(response)
}

/// Puts on record that what was recorded under this number did not come about, or is not known to have.
async fn failed(services: &Services, recorded: Operation, audit_id: u64, why: RequestError) -> RequestError {
    let cut = |text: String| limits::cut(&text, limits::MAX_DETAIL_BYTES).to_owned();
    let failure = Operation {
        at_ms: unix_ms(),
        before: cut(format!("audit {audit_id}: {}", recorded.after)),
        after: cut(format!("failed: {why}")),
        effect: Effect::None,
        ..recorded
    };
    let noted = services.shared.engine.log().operate(&failure).await;
    tracing::error!(audit = audit_id, action = failure.action, subject = failure.subject, %why, ?noted, "an operator's action failed");
    let noted = match noted {
        Ok(id) => format!("its failure is audit {id}"),
        Err(error) => format!("its failure is not known to be on record: {error}"),
    };
    RequestError::NotDone { audit_id, noted, why: Box::new(why) }
}

/// A trace of the action, linked to the transaction's.
fn span(services: &Services, plan: &Plan, operation: &Operation) -> Option<OpenSpan> {
    let span = services.shared.engine.traces()?.operator(&operation.action, &operation.reason, plan.trace)?;
    span.set(KeyValue::new("lockstep.subject", operation.subject.clone()));
    if let Some(gtrid) = plan.gtrid {
        span.set(KeyValue::new("lockstep.gtrid", gtrid.to_string()));
    }
    if let Some(situation) = plan.situation {
        span.set(KeyValue::new("lockstep.situation", situation.name()));
    }
    Some(span)
}

/// What changes in the log together with the record.
fn effect(deed: &Deed) -> Effect {
    match deed {
        Deed::Acknowledge => Effect::Acknowledge,
        Deed::Retire(known) | Deed::Rebind(known) => Effect::Remember(known.clone()),
        Deed::Act(_) | Deed::Rollback | Deed::Drain | Deed::Orphans(_) => Effect::None,
    }
}

/// What it is about, and whether it may be done. A heuristic outcome that is on its way to the log is there in a moment, and waited for.
async fn judge(
    services: &Services,
    target: &str,
    action: Action,
) -> Result<(Found, Result<(), Forbidden>), RequestError> {
    const LOOK_EVERY: Duration = Duration::from_millis(50);
    const LOOKS: u32 = 40;
    let mut looks = 0;
    loop {
        looks += 1;
        let found = find(services, target).await?;
        let permitted = found.standing.permit(action);
        if permitted != Err(Forbidden::NotOnRecord) || looks == LOOKS {
            return Ok((found, permitted));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn plan(
    services: &Services,
    asked: v1::OperatorAction,
    request: &v1::ActRequest,
) -> Result<Plan, RequestError> {
    let action = match asked {
        v1::OperatorAction::Retry => Action::Retry,
        v1::OperatorAction::Pause => Action::Pause,
        v1::OperatorAction::Resume => Action::Resume,
        v1::OperatorAction::Rollback => Action::Rollback,
        v1::OperatorAction::Commit => Action::Commit,
        v1::OperatorAction::Abandon => Action::Abandon,
        v1::OperatorAction::Acknowledge => Action::Acknowledge,
        v1::OperatorAction::CommitOrphan => return orphans::plan(services, request, Decision::Commit).await,
        v1::OperatorAction::RollbackOrphan => {
            return orphans::plan(services, request, Decision::Rollback).await;
        }
        v1::OperatorAction::Retire => return retire(services, request).await,
        v1::OperatorAction::Rebind => return rebind(services, request),
        v1::OperatorAction::Drain => return drain(services).await,
        v1::OperatorAction::Unspecified => unreachable!("known_enum refuses it"),
    };
    if services.shared.registry.has_orphan_of(&request.target) {
        orphans::refuse(services, &request.target, action).await?;
    }
    let (found, permitted) = judge(services, &request.target, action).await?;
    permitted.map_err(|why| forbidden(services, found.gtrid, why, context(&found)))?;
    transaction_plan(found, action, &request.resource_manager)
}

/// Which branches stand how: what makes a refusal understandable.
fn context(found: &Found) -> String {
    let branches = found.info.branches.iter();
    branches
        .map(|branch| format!("{} {}", branch.resource_manager, branch.state))
        .collect::<Vec<_>>()
        .join(", ")
}

fn transaction_plan(found: Found, action: Action, whose: &str) -> Result<Plan, RequestError> {
    let waiting = || found.info.branches.iter().filter(|branch| branch.state == Branch::DELIVERING);
    let names = |infos: Vec<&v1::BranchInfo>| {
        infos.iter().map(|branch| branch.bqual.as_str()).collect::<Vec<_>>().join(", ")
    };
    let (steps, deed) = match action {
        Action::Retry => (
            vec![format!("deliver the decision now to: {}", names(waiting().collect()))],
            Deed::Act(Act::Retry),
        ),
        Action::Pause => (
            vec![
                format!("deliver the decision no more to: {}", names(waiting().collect())),
                "until it is resumed, or this coordinator starts again".to_owned(),
            ],
            Deed::Act(Act::Pause),
        ),
        Action::Resume => {
            (vec![format!("deliver the decision to: {}", names(waiting().collect()))], Deed::Act(Act::Resume))
        }
        Action::Rollback => {
            (vec!["roll back every branch; nothing of it commits".to_owned()], Deed::Rollback)
        }
        Action::Abandon => {
            let name: ResourceManagerName = whose.parse()?;
            let theirs: Vec<_> =
                waiting().filter(|branch| branch.resource_manager == name.as_str()).collect();
            if theirs.is_empty() {
                return Err(RequestError::NoBranchToAbandon { gtrid: found.gtrid, name });
            }
            let steps = vec![
                format!("stop delivering to {}: what it did is not known, and stays unknown", names(theirs)),
                "the transaction's outcome becomes heuristic; a branch that is still prepared keeps its locks".to_owned(),
                format!("if {name} comes back, its branch is told the decision, and what it did is put on record"),
            ];
            (steps, Deed::Act(Act::Abandon(name)))
        }
        Action::Acknowledge => (
            vec![
                "note that its heuristic outcome was dealt with; its record may go after its retention"
                    .to_owned(),
            ],
            Deed::Acknowledge,
        ),
        Action::Commit | Action::CommitOrphan | Action::RollbackOrphan => {
            unreachable!("{action:?} is never permitted of a transaction that this coordinator knows")
        }
    };
    let before = format!(
        "{}: {}",
        found.info.state().as_str_name().trim_start_matches("TRANSACTION_STATE_").to_lowercase(),
        context(&found)
    );
    Ok(Plan {
        target: found.gtrid.to_string(),
        trace: found.info.traceparent.parse().ok(),
        gtrid: Some(found.gtrid),
        situation: found.standing.situation(true).filter(|_| found.info.situation != 0),
        before,
        steps,
        confirm: action.is_dangerous().then(|| found.gtrid.to_string()),
        deed,
    })
}

fn not_attached(services: &Services, name: &ResourceManagerName) -> Result<(), RequestError> {
    match services.shared.registry.instances(name).len() {
        0 => Ok(()),
        attached => Err(RequestError::StillAttached { name: name.clone(), attached }),
    }
}

/// What is said of the other nodes on the log: they do the same, and nobody has looked what it comes to there.
fn not_asked(services: &Services, name: &ResourceManagerName) -> Option<String> {
    let others = others(services);
    let ask = format!(
        "the same at the other nodes on this log, which were not asked what is attached or waits there: \
         `lockstep participants show {name}` with --server {}",
        others.join(", --server ")
    );
    (!others.is_empty()).then_some(ask)
}

async fn retire(services: &Services, request: &v1::ActRequest) -> Result<Plan, RequestError> {
    let name: ResourceManagerName = request.target.parse()?;
    let registry = &services.shared.registry;
    let known = registry.known(&name).ok_or_else(|| RequestError::NoSuchParticipant(name.to_string()))?;
    if known.retired {
        return Err(RequestError::RetiredBefore(name));
    }
    not_attached(services, &name)?;
    let waiting = participants::undelivered(services).await?.remove(&name).unwrap_or(0);
    let mut steps = vec![
        format!("{waiting} branches end as abandoned, and their transactions' outcomes become heuristic"),
        "nothing waits for it any more: neither pruning, nor an orphan's rollback".to_owned(),
        "its identity is refused for ever, whatever it is called".to_owned(),
    ];
    steps.extend(not_asked(services, &name));
    Ok(Plan {
        target: name.to_string(),
        trace: None,
        gtrid: None,
        situation: None,
        before: format!("{waiting} of its branches have not acknowledged their decision"),
        steps,
        confirm: Some(name.to_string()),
        deed: Deed::Retire(crate::decision_log::KnownResourceManager { retired: true, ..known }),
    })
}

fn rebind(services: &Services, request: &v1::ActRequest) -> Result<Plan, RequestError> {
    let name: ResourceManagerName = request.target.parse()?;
    let registry = &services.shared.registry;
    let known = registry.known(&name).ok_or_else(|| RequestError::NoSuchParticipant(name.to_string()))?;
    let moved =
        registry.refused_location(&name).ok_or_else(|| RequestError::NothingToRebind(name.clone()))?;
    // Whoever serves it where it was is not gone from there: then there are two of them (P21).
    not_attached(services, &name)?;
    let mut steps = vec![
        format!("from now on it is at {moved:?}, and attaches there"),
        format!(
            "nothing may be left at {:?}: a copy there would be refused, and could write all the same",
            known.location
        ),
    ];
    steps.extend(not_asked(services, &name));
    Ok(Plan {
        target: name.to_string(),
        trace: None,
        gtrid: None,
        situation: None,
        before: format!("it was at {:?}", known.location),
        steps,
        // Not its name: another attach may have been refused since the dry run, from another place.
        confirm: Some(moved.clone()),
        deed: Deed::Rebind(crate::decision_log::KnownResourceManager { location: moved, ..known }),
    })
}

async fn drain(services: &Services) -> Result<Plan, RequestError> {
    let engine = &services.shared.engine;
    let live = engine.summarize().await?.live;
    Ok(Plan {
        target: engine.log().cluster().to_string(),
        trace: None,
        gtrid: None,
        situation: None,
        before: format!("{live} transactions are in flight"),
        steps: vec![
            "say that it is not ready, then begin nothing new until it is started again".to_owned(),
            "what is in flight goes on to its end".to_owned(),
        ],
        confirm: None,
        deed: Deed::Drain,
    })
}

async fn carry_out(services: &Services, plan: Plan, operation: &Operation) -> Result<(), RequestError> {
    let engine = &services.shared.engine;
    let registry = &services.shared.registry;
    match plan.deed {
        Deed::Act(act) => {
            let gtrid = plan.gtrid.expect("a transaction's act has one");
            // What is not held back goes on, whether or not it was before.
            let goes_on = act == Act::Resume;
            match engine.act(gtrid, act).await? {
                None => return Err(RequestError::EndedBefore(gtrid)),
                Some(0) if !goes_on => return Err(RequestError::NothingWaits(gtrid)),
                Some(_) => {}
            }
        }
        Deed::Rollback => {
            let gtrid = plan.gtrid.expect("a transaction's rollback has one");
            let why = format!("rolled back by an operator: {}", operation.reason);
            let told = engine.rollback(gtrid, why).await?;
            match told.outcome {
                Some(Outcome::RolledBack | Outcome::NothingToCommit) => {}
                Some(Outcome::Committed) => return Err(RequestError::AlreadyCommitted(gtrid)),
                other @ (Some(Outcome::Heuristic(_) | Outcome::Unknown) | None) => {
                    return Err(RequestError::NotRolledBack { gtrid, outcome: other });
                }
            }
        }
        Deed::Acknowledge => {}
        Deed::Retire(known) => {
            let name = known.name.clone();
            registry.remember(known);
            registry.disconnect(&name);
            let retired = || Mail::Input(Input::Retire { resource_manager: name.clone() });
            engine.broadcast(retired).await.map_err(EngineError::Stopped)?;
        }
        Deed::Rebind(known) => {
            let name = known.name.clone();
            registry.remember(known);
            // Who has attached at its old place since it was looked at.
            registry.disconnect(&name);
        }
        Deed::Drain => services.shared.start_draining(),
        Deed::Orphans(resolution) => orphans::carry_out(services, resolution).await?,
    }
    Ok(())
}

/// An action's name, in the audit and in messages.
fn name(action: v1::OperatorAction) -> &'static str {
    match action {
        v1::OperatorAction::Unspecified => "nothing",
        v1::OperatorAction::Retry => Action::Retry.name(),
        v1::OperatorAction::Pause => Action::Pause.name(),
        v1::OperatorAction::Resume => Action::Resume.name(),
        v1::OperatorAction::Rollback => Action::Rollback.name(),
        v1::OperatorAction::Commit => Action::Commit.name(),
        v1::OperatorAction::Abandon => Action::Abandon.name(),
        v1::OperatorAction::Acknowledge => Action::Acknowledge.name(),
        v1::OperatorAction::CommitOrphan => Action::CommitOrphan.name(),
        v1::OperatorAction::RollbackOrphan => Action::RollbackOrphan.name(),
        v1::OperatorAction::Retire => "retire",
        v1::OperatorAction::Rebind => "rebind",
        v1::OperatorAction::Drain => "drain",
    }
}
