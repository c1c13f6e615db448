//! Prepared branches that no coordinator answers for, ended by hand (P14).
//!
//! Nothing automatic ever does this. A person chooses, and the choice is refused unless it is proved: a commit by evidence that
//! another branch of the same transaction has committed, a rollback by an answer of every resource manager that is not retired.
//! Branches of another cluster are left alone in any case.

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep_proto::{Gtrid, ResourceManagerName, Xid, v1};

use super::act::{Deed, Plan};
use super::inspect::ask;
use super::show::{forbidden, whole};
use crate::engine::handle::EngineError;
use crate::protocol::outcome::Decision;
use crate::protocol::presumption::{PreparedFate, prepared_fate};
use crate::protocol::situation::{Action, Proof, Standing};
use crate::rpc::Services;
use crate::rpc::status::RequestError;

/// How long it may take until the databases have done it. Shorter than a command waits for its answer, which says what is left then.
const PATIENCE: Duration = Duration::from_secs(7);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Which branches are told what.
pub(super) struct Resolution {
    gtrid: Gtrid,
    decision: Decision,
    branches: BTreeMap<ResourceManagerName, Vec<Xid>>,
}

/// What all resource managers say of a transaction.
pub(super) struct Census {
    proof: Proof,
    /// Who said what: for people.
    pub(super) said: String,
    /// Who was asked.
    asked: String,
    prepared: BTreeMap<ResourceManagerName, Vec<Xid>>,
    /// What they hold of it is another cluster's.
    pub(super) foreign: bool,
}

pub(super) async fn plan(
    services: &Services,
    request: &v1::ActRequest,
    decision: Decision,
) -> Result<Plan, RequestError> {
    let gtrid = whole(services, &request.target).await?;
    let (standing, census) = standing(services, gtrid).await?;
    let (action, verb) = match decision {
        Decision::Commit => (Action::CommitOrphan, "commit"),
        Decision::Rollback => (Action::RollbackOrphan, "roll back"),
    };
    permit(services, gtrid, standing, &census, action)?;
    if decision == Decision::Rollback {
        met_all(services, gtrid, request)?;
    }
    if census.prepared.is_empty() {
        return Err(RequestError::NotFound(gtrid.to_string()));
    }
    let all = census.prepared.values().flatten().map(|xid| xid.bqual.as_str());
    let mut steps = vec![format!("{verb} the prepared branches {}", all.collect::<Vec<_>>().join(", "))];
    if decision == Decision::Rollback && request.resource_manager.is_empty() {
        steps.push(format!("but first name every resource manager that may have taken part, with --all; asked were {}, and one that this log has never met, because it first attached after the backup, was not", census.asked));
    }
    Ok(Plan {
        target: gtrid.to_string(),
        trace: None,
        gtrid: Some(gtrid),
        situation: standing.situation(true),
        before: census.said,
        steps,
        confirm: Some(gtrid.to_string()),
        deed: Deed::Orphans(Resolution { gtrid, decision, branches: census.prepared }),
    })
}

/// P14 asks every resource manager, and a log that was restored knows only those of before its backup: a person says who there is.
fn met_all(services: &Services, gtrid: Gtrid, request: &v1::ActRequest) -> Result<(), RequestError> {
    let named = request.resource_manager.split(',').map(str::trim).filter(|name| !name.is_empty());
    let named: Vec<ResourceManagerName> = named.map(str::parse).collect::<Result<_, _>>()?;
    if named.is_empty() && !request.dry_run {
        return Err(RequestError::NotAllNamed(gtrid));
    }
    let strange = named.into_iter().filter(|name| services.shared.registry.known(name).is_none());
    let strange: Vec<String> = strange.map(|name| name.to_string()).collect();
    if strange.is_empty() { Ok(()) } else { Err(RequestError::NeverMet { gtrid, names: strange.join(", ") }) }
}

fn permit(
    services: &Services,
    gtrid: Gtrid,
    standing: Standing,
    census: &Census,
    action: Action,
) -> Result<(), RequestError> {
    standing.permit(action).map_err(|why| forbidden(services, gtrid, why, census.said.clone()))
}

/// What a transaction's own command is refused with if nobody but an operator answers for the transaction.
pub(super) async fn refuse(services: &Services, target: &str, action: Action) -> Result<(), RequestError> {
    let gtrid = whole(services, target).await?;
    let (standing, census) = standing(services, gtrid).await?;
    if matches!(standing, Standing::Orphan(_) | Standing::Foreign) {
        return permit(services, gtrid, standing, &census, action);
    }
    Ok(())
}

/// Where an orphan stands. One that this coordinator can answer for is none.
async fn standing(services: &Services, gtrid: Gtrid) -> Result<(Standing, Census), RequestError> {
    let engine = &services.shared.engine;
    // First who is live, then the log (P4), then the databases.
    if let Some(view) = engine.find(&gtrid.to_string(), 1).await?.pop() {
        return Ok((Standing::of_live(&view.state, view.overdue), Census::none()));
    }
    let look_up = engine.look_up(gtrid).await.map_err(EngineError::Log)?;
    let mut census = census(services, gtrid).await;
    let acknowledged = engine.log().is_acknowledged(gtrid).await.map_err(EngineError::Log)?;
    let prepared = census.prepared.values().flatten().map(|xid| &xid.bqual);
    let proof = (!census.foreign).then_some(census.proof);
    let standing = Standing::of_prepared(&look_up, engine.is_behind(), acknowledged, prepared, proof);
    // What the log tells the end of is told to its participant without anybody's help, and is nobody's choice.
    let open = |xid: &Xid| {
        matches!(prepared_fate(&look_up, engine.is_behind(), &xid.bqual), PreparedFate::Unknown(_))
    };
    census.prepared.values_mut().for_each(|xids| xids.retain(open));
    census.prepared.retain(|_, xids| !xids.is_empty());
    Ok((standing, census))
}

impl Census {
    fn none() -> Self {
        Self {
            proof: Proof::Incomplete,
            said: String::new(),
            asked: String::new(),
            prepared: BTreeMap::new(),
            foreign: false,
        }
    }
}

/// Asks every resource manager that is not retired.
pub(super) async fn census(services: &Services, gtrid: Gtrid) -> Census {
    let overview = services.shared.registry.overview().into_iter();
    let names: Vec<_> =
        overview.filter(|(entry, _)| !entry.known.retired).map(|(entry, _)| entry.known.name).collect();
    let ours = services.shared.engine.log().cluster().to_string();
    let asked = names.iter().map(ResourceManagerName::as_str).collect::<Vec<_>>().join(", ");
    let mut census = Census { asked, proof: Proof::NotCommitted, ..Census::none() };
    let (mut said, mut theirs, mut own) = (Vec::new(), 0, 0);
    for answer in ask(services, &names, Some(gtrid)).await {
        let name = answer.resource_manager;
        let inspection = match answer.inspection {
            Ok(inspection) => inspection,
            Err(why) => {
                said.push(format!("{name}: no answer ({why})"));
                if census.proof == Proof::NotCommitted {
                    census.proof = Proof::Incomplete;
                }
                continue;
            }
        };
        let mut holds = Vec::new();
        for branch in inspection.branches {
            let found = branch.found();
            if branch.cluster != ours {
                theirs += 1;
                holds.push("of another cluster");
                continue;
            }
            own += 1;
            holds.push(match found {
                v1::BranchFound::Prepared => "prepared",
                v1::BranchFound::Committed => "committed",
                v1::BranchFound::Fenced => "fenced",
                v1::BranchFound::Hazard => "hazard",
                v1::BranchFound::Unspecified => "unknown",
            });
            match found {
                v1::BranchFound::Committed => census.proof = Proof::Committed,
                v1::BranchFound::Prepared => {
                    let xid = branch.xid.and_then(|xid| Xid::try_from(xid).ok());
                    census.prepared.entry(name.clone()).or_default().extend(xid);
                }
                // What it did is not known: it may have committed a part.
                v1::BranchFound::Hazard | v1::BranchFound::Unspecified => {
                    if census.proof == Proof::NotCommitted {
                        census.proof = Proof::Incomplete;
                    }
                }
                v1::BranchFound::Fenced => {}
            }
        }
        let holds = if holds.is_empty() { "nothing".to_owned() } else { holds.join(", ") };
        said.push(format!("{name}: {holds}"));
    }
    census.foreign = theirs > 0 && own == 0;
    census.said = said.join("; ");
    census
}

/// Tells the branches, and waits until their databases have done it.
pub(super) async fn carry_out(services: &Services, resolution: Resolution) -> Result<(), RequestError> {
    let answer = match resolution.decision {
        Decision::Commit => v1::BranchAnswer::Commit,
        Decision::Rollback => v1::BranchAnswer::Rollback,
    };
    for (name, xids) in &resolution.branches {
        let Some(outbox) = services.shared.registry.outboxes(Some(name)).remove(name) else { continue };
        let told = |xid: &Xid| v1::report_answer::Answer {
            xid: Some(xid.into()),
            answer: answer.into(),
            detail: "an operator has decided".to_owned(),
        };
        let answers = xids.iter().map(told).collect();
        outbox.answer(v1::coordinator_message::Kind::ReportAnswer(v1::ReportAnswer {
            answers,
            position: None,
            listing: 0,
        }));
    }
    let names: Vec<_> = resolution.branches.keys().cloned().collect();
    let done = async {
        loop {
            let answers = ask(services, &names, Some(resolution.gtrid)).await;
            let prepared = |inspection: &v1::Inspection| {
                inspection.branches.iter().any(|branch| branch.found() == v1::BranchFound::Prepared)
            };
            if answers.iter().all(|answer| answer.inspection.as_ref().is_ok_and(|found| !prepared(found))) {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    if tokio::time::timeout(PATIENCE, done).await.is_err() {
        return Err(RequestError::OrphanNotEnded(resolution.gtrid));
    }
    for xid in resolution.branches.values().flatten() {
        services.shared.registry.forget_orphan(xid);
    }
    Ok(())
}
