//! What operators did.

use lockstep_proto::v1;

use super::info::audit_entry;
use super::limit;
use super::show::resolve;
use crate::decision_log::audit::AuditQuery;
use crate::engine::handle::EngineError;
use crate::rpc::Services;
use crate::rpc::status::RequestError;

pub(in crate::rpc) async fn list(
    services: &Services,
    request: v1::ListAuditRequest,
) -> Result<v1::ListAuditResponse, RequestError> {
    let of = if request.gtrid.is_empty() {
        None
    } else if let Ok(whole) = request.gtrid.parse() {
        // Its record may be gone, and what was done about it stays.
        Some(whole)
    } else {
        Some(resolve(services, &request.gtrid).await?)
    };
    let wanted = limit(request.limit);
    let query = AuditQuery { of, below: 0, limit: wanted + 1 };
    let found = services.shared.engine.log().audit(query).await.map_err(EngineError::Log)?;
    let mut entries: Vec<_> = found.into_iter().map(audit_entry).collect();
    let wanted = usize::try_from(wanted).expect("at most 1,000");
    let truncated = entries.len() > wanted;
    entries.truncate(wanted);
    Ok(v1::ListAuditResponse { entries, truncated })
}
