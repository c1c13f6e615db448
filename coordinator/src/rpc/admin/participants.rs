//! Everyone that ever attached.

use std::collections::BTreeMap;

use lockstep_proto::{ResourceManagerName, v1};

use super::wide;
use crate::engine::clock::unix_ms;
use crate::rpc::Services;
use crate::rpc::status::RequestError;

pub(in crate::rpc) async fn list(
    services: &Services,
    request: v1::ListParticipantsRequest,
) -> Result<v1::ListParticipantsResponse, RequestError> {
    let mut participants = details(services).await?;
    if !request.resource_manager.is_empty() {
        participants.retain(|detail| detail.resource_manager == request.resource_manager);
        if participants.is_empty() {
            let name = lockstep_proto::limits::cut(&request.resource_manager, 80).to_owned();
            return Err(RequestError::NoSuchParticipant(name));
        }
    }
    Ok(v1::ListParticipantsResponse { participants, now_ms: unix_ms() })
}

/// All of them, by name.
pub(super) async fn details(services: &Services) -> Result<Vec<v1::ParticipantDetail>, RequestError> {
    let undelivered = undelivered(services).await?;
    let registry = &services.shared.registry;
    let detail = |(entry, _): (crate::sessions::registry::Entry, usize)| {
        let name = &entry.known.name;
        let instances = registry.instances(name);
        let (refused, refused_location) = entry
            .refused
            .map_or_else(Default::default, |refused| (refused.why, refused.location.unwrap_or_default()));
        v1::ParticipantDetail {
            resource_manager: name.to_string(),
            instances: instances.into_iter().map(|instance| instance.instance.to_string()).collect(),
            identity: entry.known.identity.to_string(),
            location: entry.known.location,
            timeline: entry.known.timeline,
            floor: entry.known.floor.map_or(String::new(), |floor| floor.to_string()),
            retired: entry.known.retired,
            down_since_ms: entry.down_since_ms,
            problem: entry.problem,
            refused,
            refused_location,
            undelivered: undelivered.get(name).copied().unwrap_or(0),
            orphans: wide(entry.orphans.len()),
        }
    };
    Ok(registry.overview().into_iter().map(detail).collect())
}

/// How many branches of each resource manager have not acknowledged their decision, of those that this node delivers.
pub(super) async fn undelivered(
    services: &Services,
) -> Result<BTreeMap<ResourceManagerName, u64>, RequestError> {
    let queued = services.shared.engine.summarize().await?.queued;
    Ok(queued.into_iter().map(|(name, depth)| (name, wide(depth))).collect())
}
