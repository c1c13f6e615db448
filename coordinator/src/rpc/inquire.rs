//! Inquire: the outcome, without changing it.

use lockstep_proto::v1;

use super::status::RequestError;
use super::{Services, count, wire_outcome};

pub(super) async fn inquire(
    services: &Services,
    request: v1::InquireRequest,
) -> Result<v1::InquireResponse, RequestError> {
    let gtrid = services.gtrid(&request.gtrid, &request.cluster)?;
    let answer = services.shared.engine.inquire(gtrid).await?;
    Ok(v1::InquireResponse {
        outcome: wire_outcome(answer.outcome).into(),
        detail: answer.detail,
        branches: count(answer.branches),
        branches_pending: count(answer.pending),
    })
}
