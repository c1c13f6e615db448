//! Commit: asks for it, and answers with the outcome.

use lockstep_proto::v1;
use lockstep_proto::wire::known_enum;

use super::status::RequestError;
use super::{Services, count, wire_outcome};
use crate::engine::input::Wait;

pub(super) async fn commit(
    services: &Services,
    request: v1::CommitRequest,
) -> Result<v1::CommitResponse, RequestError> {
    let gtrid = services.gtrid(&request.gtrid, &request.cluster)?;
    let wait = match known_enum::<v1::Wait>(request.wait, "wait")? {
        v1::Wait::Applied => Wait::Applied,
        v1::Wait::Decided => Wait::Decided,
        v1::Wait::Unspecified => unreachable!("known_enum refuses it"),
    };
    let answer = services.shared.engine.commit(gtrid, wait).await?;
    Ok(v1::CommitResponse {
        outcome: wire_outcome(answer.outcome).into(),
        detail: answer.detail,
        branches: count(answer.branches),
        branches_pending: count(answer.pending),
    })
}
