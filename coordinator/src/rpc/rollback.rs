//! Rollback: refused once the transaction has committed.

use lockstep_proto::{limits, v1};

use super::status::RequestError;
use super::{Services, wire_outcome};
use crate::protocol::outcome::Outcome;

/// Bytes of a reason.
const MAX_REASON_BYTES: usize = 256;

pub(super) async fn rollback(
    services: &Services,
    request: v1::RollbackRequest,
) -> Result<v1::RollbackResponse, RequestError> {
    let gtrid = services.gtrid(&request.gtrid, &request.cluster)?;
    let why = match limits::cut(&request.reason, MAX_REASON_BYTES) {
        "" => "the application rolled it back".to_owned(),
        reason => format!("the application rolled it back: {reason}"),
    };
    let answer = services.shared.engine.rollback(gtrid, why).await?;
    if answer.outcome == Some(Outcome::Committed) {
        return Err(RequestError::AlreadyCommitted(gtrid));
    }
    Ok(v1::RollbackResponse { outcome: wire_outcome(answer.outcome).into(), detail: answer.detail })
}
