//! `lockstep export`: everything on record, one JSON object on each line.

use lockstep_proto::v1::{ExportRequest, ExportResponse, export_response::Record};
use lockstep_proto::wire::{WireError, required};
use serde::Serialize;

use super::exit::{Exit, Failure};
use super::output;
use super::remote::{Remote, ServerUrl};
use crate::operator::view::TransactionView;
use crate::operator::view::acts::AuditView;
use crate::operator::view::participants::ParticipantDetail;

/// How long a coordinator may take for the next record.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    server: ServerUrl,
}

/// One line.
#[derive(Serialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
enum Line {
    Transaction(Box<TransactionView>),
    Audit(AuditView),
    Participant(ParticipantDetail),
}

pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    // The whole may take as long as it takes: only a silence is limited.
    let remote = Remote::new(&args.server.server, std::time::Duration::from_secs(24 * 60 * 60));
    let answered = tokio::time::timeout(PATIENCE, remote.admin().export(ExportRequest {})).await;
    let answered = answered.map_err(|_elapsed| remote.late())?;
    let mut records = answered.map_err(|status| remote.failure(&status))?.into_inner();
    loop {
        let next =
            tokio::time::timeout(PATIENCE, records.message()).await.map_err(|_elapsed| remote.late())?;
        let Some(record) = next.map_err(|status| remote.failure(&status))? else { return Ok(Exit::Ok) };
        let line = line(record).map_err(|error| remote.strange(&error))?;
        output::print_json(&line)?;
    }
}

fn line(response: ExportResponse) -> Result<Line, WireError> {
    Ok(match required(response.record, "record")? {
        Record::Transaction(info) => Line::Transaction(Box::new(info.try_into()?)),
        Record::Audit(entry) => Line::Audit(entry.try_into()?),
        Record::Participant(detail) => Line::Participant(detail.try_into()?),
    })
}
