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
use super::show::resolve;
use crate::engine::handle::EngineError;
use crate::protocol::outcome::Decision;
use crate::protocol::presumption::{Known, conclude};
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
struct Census {
    proof: Proof,
    /// Who said what: for people.
    said: String,
    prepared: BTreeMap<ResourceManagerName, Vec<Xid>>,
    foreign: bool,
}

pub(super) async fn plan(
    services: &Services,
    request: &v1::ActRequest,
    action: Action,
) -> Result<Plan, RequestError> {
    let gtrid = match request.target.parse::<Gtrid>() {
        Ok(whole) => whole,
        Err(_beginning) => resolve(services, &request.target).await?,
    };
    let (standing, census) = standing(services, gtrid).await?;
    standing.permit(action).map_err(|forbidden| RequestError::Forbidden {
        what: gtrid.to_string(),
        context: census.said.clone(),
        forbidden,
    })?;
    if census.prepared.is_empty() {
        return Err(RequestError::NotFound(gtrid.to_string()));
    }
    let (decision, verb) = match action {
        Action::CommitOrphan => (Decision::Commit, "commit"),
        Action::RollbackOrphan
        | Action::Retry
        | Action::Pause
        | Action::Resume
        | Action::Rollback
        | Action::Commit
        | Action::Abandon
        | Action::Acknowledge => (Decision::Rollback, "roll back"),
    };
    let all = census.prepared.values().flatten().map(|xid| xid.bqual.as_str());
    let steps = vec![format!("{verb} the prepared branches {}", all.collect::<Vec<_>>().join(", "))];
    Ok(Plan {
        target: gtrid.to_string(),
        trace: None,
        gtrid: Some(gtrid),
        situation: standing.situation(true),
        before: census.said,
        steps,
        dangerous: true,
        deed: Deed::Orphans(Resolution { gtrid, decision, branches: census.prepared }),
    })
}

/// Where an orphan stands. One that this coordinator can answer for is none.
async fn standing(services: &Services, gtrid: Gtrid) -> Result<(Standing, Census), RequestError> {
    let engine = &services.shared.engine;
    // First who is live, then the log (P4), then the databases.
    if let Some(view) = engine.find(&gtrid.to_string(), 1).await?.pop() {
        return Ok((Standing::of_live(&view.state, view.overdue), Census::none()));
    }
    let look_up = engine.look_up(gtrid).await.map_err(EngineError::Log)?;
    let census = census(services, gtrid).await;
    let standing = match conclude(&look_up, engine.is_behind()) {
        Known::Ended(outcome, _) => Standing::of_ended(outcome, false),
        Known::Committing => Standing::Committing,
        Known::OnePhase => Standing::OnePhase,
        Known::PresumedRolledBack => Standing::RollingBack,
        Known::Elsewhere => Standing::Elsewhere,
        Known::Unknown(_) if census.foreign => Standing::Foreign,
        Known::Unknown(_) => Standing::Orphan(census.proof),
    };
    Ok((standing, census))
}

impl Census {
    fn none() -> Self {
        Self { proof: Proof::Incomplete, said: String::new(), prepared: BTreeMap::new(), foreign: false }
    }
}

/// Asks every resource manager that is not retired.
async fn census(services: &Services, gtrid: Gtrid) -> Census {
    let overview = services.shared.registry.overview().into_iter();
    let names: Vec<_> =
        overview.filter(|(entry, _)| !entry.known.retired).map(|(entry, _)| entry.known.name).collect();
    let ours = services.shared.engine.log().cluster().to_string();
    let mut census = Census { proof: Proof::NotCommitted, ..Census::none() };
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
