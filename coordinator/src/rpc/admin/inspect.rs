//! What the databases themselves say, asked through the participants that are attached.

use std::collections::BTreeMap;

use futures::future::join_all;
use lockstep_proto::wire::known_enum;
use lockstep_proto::{Gtrid, ResourceManagerName, Xid, v1};

use super::show::whole;
use crate::engine::clock::unix_ms;
use crate::engine::inquiry::{BranchAnswer, look_at_prepared};
use crate::rpc::Services;
use crate::rpc::status::RequestError;
use crate::sessions::inspections::Answer;

pub(in crate::rpc) async fn inspect(
    services: &Services,
    request: v1::InspectRequest,
) -> Result<v1::InspectResponse, RequestError> {
    let gtrid = if request.gtrid.is_empty() { None } else { Some(whole(services, &request.gtrid).await?) };
    let registry = &services.shared.registry;
    let known: Vec<ResourceManagerName> = registry
        .overview()
        .into_iter()
        .filter(|(entry, _)| !entry.known.retired)
        .map(|(entry, _)| entry.known.name)
        .collect();
    let names: Vec<_> = if request.resource_manager.is_empty() {
        known
    } else {
        let only = known.into_iter().filter(|name| name.as_str() == request.resource_manager);
        let only: Vec<_> = only.collect();
        if only.is_empty() {
            let name = lockstep_proto::limits::cut(&request.resource_manager, 80).to_owned();
            return Err(RequestError::NoSuchParticipant(name));
        }
        only
    };
    let answers = ask(services, &names, gtrid).await;
    let orphans = orphans(services, &answers).await;
    Ok(v1::InspectResponse {
        answers: answers.into_iter().map(|answer| wire_answer(services, answer, &orphans)).collect(),
        now_ms: unix_ms(),
        gtrid: gtrid.map_or(String::new(), |gtrid| gtrid.to_string()),
    })
}

/// Asks each of these, all at once. One that is not attached has not answered.
pub(super) async fn ask(
    services: &Services,
    names: &[ResourceManagerName],
    gtrid: Option<Gtrid>,
) -> Vec<Answer> {
    let asked = names.iter().map(async |name| {
        let outbox = services.shared.registry.outboxes(Some(name)).remove(name);
        match outbox {
            Some(outbox) => {
                let cluster = services.shared.engine.log().cluster();
                services.shared.inspections.ask(cluster, name.clone(), &outbox, gtrid).await
            }
            None => Answer {
                resource_manager: name.clone(),
                inspection: Err("no instance is attached".to_owned()),
                took: std::time::Duration::ZERO,
            },
        }
    });
    join_all(asked).await
}

/// Of what the databases hold prepared now, what nobody answers for, and why: as they would be told of it.
async fn orphans(services: &Services, answers: &[Answer]) -> BTreeMap<Xid, &'static str> {
    let ours = services.shared.engine.log().cluster().to_string();
    let found = answers.iter().filter_map(|answer| answer.inspection.as_ref().ok());
    let prepared = found
        .flat_map(|inspection| &inspection.branches)
        .filter(|branch| branch.cluster == ours && branch.found() == v1::BranchFound::Prepared);
    let xids: Vec<Xid> = prepared.filter_map(|branch| Xid::try_from(branch.xid.clone()?).ok()).collect();
    let Ok(fates) = look_at_prepared(&services.shared.engine, &xids).await else {
        let unknown = "this coordinator is ending: whether anybody answers for it is not known";
        return xids.into_iter().map(|xid| (xid, unknown)).collect();
    };
    let why = |(xid, fate)| match fate {
        BranchAnswer::Unknown(why) => Some((xid, why)),
        BranchAnswer::Commit | BranchAnswer::Rollback | BranchAnswer::StillRunning => None,
    };
    xids.into_iter().zip(fates).filter_map(why).collect()
}

fn wire_answer(
    services: &Services,
    answer: Answer,
    orphans: &BTreeMap<Xid, &'static str>,
) -> v1::DatabaseAnswer {
    let took_ms = u64::try_from(answer.took.as_millis()).unwrap_or(u64::MAX);
    let resource_manager = answer.resource_manager.to_string();
    let inspection = match answer.inspection {
        Ok(inspection) => inspection,
        Err(error) => {
            return v1::DatabaseAnswer { resource_manager, error, took_ms, ..v1::DatabaseAnswer::default() };
        }
    };
    let ours = services.shared.engine.log().cluster().to_string();
    let branch = |branch: v1::inspection::Branch| {
        let xid = branch.xid.unwrap_or_default();
        let why = Xid::try_from(xid.clone()).ok().and_then(|xid| orphans.get(&xid));
        let state = known_enum::<v1::BranchFound>(branch.found, "found");
        let foreign = branch.cluster != ours;
        let orphan = if foreign {
            "it belongs to another cluster".to_owned()
        } else {
            why.map_or(String::new(), |why| (*why).to_owned())
        };
        v1::InspectedBranch {
            cluster: branch.cluster,
            gtrid: xid.gtrid,
            bqual: xid.bqual,
            state: state.map_or("unknown", found_name).to_owned(),
            at_ms: branch.at_ms,
            orphan,
            foreign,
        }
    };
    let blocked = |blocked: v1::inspection::Blocked| v1::BlockedSession {
        session: blocked.session,
        waiting_ms: blocked.waiting_ms,
        statement_ms: blocked.statement_ms,
        object: blocked.object,
        gtrid: blocked.held_by.map_or(String::new(), |xid| xid.gtrid),
    };
    v1::DatabaseAnswer {
        resource_manager,
        error: String::new(),
        took_ms,
        branches: inspection.branches.into_iter().map(branch).collect(),
        blocked: inspection.blocked.into_iter().map(blocked).collect(),
        blocked_unknown: inspection.blocked_unknown,
    }
}

fn found_name(found: v1::BranchFound) -> &'static str {
    match found {
        v1::BranchFound::Unspecified => "unknown",
        v1::BranchFound::Prepared => "prepared",
        v1::BranchFound::Committed => "committed",
        v1::BranchFound::Fenced => "fenced",
        v1::BranchFound::Hazard => "hazard",
    }
}
