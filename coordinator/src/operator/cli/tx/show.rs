//! `lockstep tx show`.

use lockstep_proto::v1::ShowTransactionRequest;

use super::super::exit::{Exit, Failure};
use super::super::output;
use super::super::remote::{AnswerTimeout, Remote, ServerArgs, within};
use super::super::tables;
use crate::operator::view::TransactionShown;

#[derive(Debug, clap::Args)]
pub(in super::super) struct Args {
    /// The transaction: its id, or a beginning of it that no other one has
    #[arg(value_name = "GTRID")]
    gtrid: String,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    answer: AnswerTimeout,
}

pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    let remote = Remote::new(&args.server.server, args.answer.timeout);
    let request = ShowTransactionRequest { gtrid: args.gtrid.clone() };
    let answer = within(&remote, args.answer, remote.admin().show_transaction(request)).await?;
    let shown = TransactionShown::try_from(answer).map_err(|error| remote.strange(&error))?;
    if args.server.json {
        output::print_json(&shown)?;
    } else {
        output::print(&tables::show(&shown, tables::Look::of_stdout()))?;
    }
    Ok(Exit::Ok)
}
