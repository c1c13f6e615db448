//! Everything on record, piece by piece.

use std::pin::Pin;

use futures::stream::{self, Stream, StreamExt, TryStreamExt};
use lockstep_proto::{Gtrid, v1};
use tonic::Status;

use super::info::{audit_entry, recorded_info};
use super::participants::details;
use crate::decision_log::audit::AuditQuery;
use crate::engine::handle::{Engine, EngineError};
use crate::rpc::Services;
use crate::rpc::status::RequestError;

/// Records that are read at once.
const PAGE: u32 = 500;

/// What a reader gets.
pub(in crate::rpc) type Records = Pin<Box<dyn Stream<Item = Result<v1::ExportResponse, Status>> + Send>>;

type Record = v1::export_response::Record;
type Pages = Result<Vec<Record>, RequestError>;

pub(in crate::rpc) async fn export(services: &Services) -> Result<Records, RequestError> {
    let participants: Pages = Ok(details(services).await?.into_iter().map(Record::Participant).collect());
    let engine = services.shared.engine.clone();
    let transactions = stream::unfold(Some((engine.clone(), None)), |at| async move {
        let (engine, after) = at?;
        match transactions(&engine, after).await {
            Ok((_, None)) => None,
            Ok((page, last)) => Some((Ok(page), Some((engine, last)))),
            Err(error) => Some((Err(error), None)),
        }
    });
    let audit = stream::unfold(Some((engine, 0)), |at| async move {
        let (engine, below) = at?;
        match audit(&engine, below).await {
            Ok((_, None)) => None,
            Ok((page, Some(last))) => Some((Ok(page), Some((engine, last)))),
            Err(error) => Some((Err(error), None)),
        }
    });
    let pages = transactions.chain(audit).chain(stream::iter([participants]));
    let records =
        pages.map_ok(|page| stream::iter(page.into_iter().map(Ok::<_, RequestError>))).try_flatten();
    let records = records.map_ok(|record| v1::ExportResponse { record: Some(record) }).map_err(Status::from);
    Ok(Box::pin(records))
}

/// A page of transactions, and the last gtrid of it, if there is one.
async fn transactions(
    engine: &Engine,
    after: Option<Gtrid>,
) -> Result<(Vec<Record>, Option<Gtrid>), RequestError> {
    let log = engine.log();
    let found = log.walk(after, PAGE).await.map_err(EngineError::Log)?;
    let last = found.last().map(|(gtrid, _)| *gtrid);
    let mut page = Vec::with_capacity(found.len());
    for (gtrid, recorded) in found {
        let acknowledged = log.is_acknowledged(gtrid).await.map_err(EngineError::Log)?;
        page.extend(recorded_info(recorded, acknowledged).map(Record::Transaction));
    }
    Ok((page, last))
}

/// A page of the audit, and the lowest number of it, if there is one.
async fn audit(engine: &Engine, below: u64) -> Result<(Vec<Record>, Option<u64>), RequestError> {
    let query = AuditQuery { of: None, below, limit: PAGE };
    let found = engine.log().audit(query).await.map_err(EngineError::Log)?;
    // Below the first there is nothing; and 0 would ask for all of them again.
    let found: Vec<_> = if below == 1 { Vec::new() } else { found };
    let last = found.last().map(|record| record.id);
    Ok((found.into_iter().map(|record| Record::Audit(audit_entry(record))).collect(), last))
}
