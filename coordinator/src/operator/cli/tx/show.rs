//! `lockstep tx show`.

use lockstep_proto::v1::{InspectRequest, ShowTransactionRequest};

use super::super::exit::{Exit, Failure};
use super::super::output;
use super::super::remote::{AnswerTimeout, Remote, ServerArgs, within};
use super::super::tables;
use crate::operator::view::TransactionShown;
use crate::operator::view::participants::Inspected;

#[derive(Debug, clap::Args)]
pub(in super::super) struct Args {
    /// The transaction: its id, or a beginning of it that no other one has
    #[arg(value_name = "GTRID")]
    gtrid: String,
    /// Do not ask the databases
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    answer: AnswerTimeout,
}

pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    let remote = Remote::new(&args.server.server, args.answer.timeout);
    let request = ShowTransactionRequest { gtrid: args.gtrid.clone() };
    let answer = within(&remote, args.answer, remote.admin().show_transaction(request)).await?;
    let mut shown = TransactionShown::try_from(answer).map_err(|error| remote.strange(&error))?;
    if !args.offline {
        let request =
            InspectRequest { gtrid: shown.transaction.gtrid.clone(), resource_manager: String::new() };
        let answer = within(&remote, args.answer, remote.admin().inspect(request)).await?;
        let mut inspected = Inspected::try_from(answer).map_err(|error| remote.strange(&error))?;
        // Only those that have to do with it: a branch that it names, or one that its database names.
        let branches = &shown.transaction.branches;
        inspected.answers.retain(|answer| {
            !answer.branches.is_empty()
                || branches.iter().any(|branch| branch.resource_manager == answer.resource_manager)
        });
        for answer in &mut inspected.answers {
            let of_another = |gtrid: &String| *gtrid != shown.transaction.gtrid;
            answer.blocked.retain(|blocked| !blocked.gtrid.as_ref().is_some_and(of_another));
        }
        shown.databases = inspected.answers;
    }
    if args.server.json {
        output::print_json(&shown)?;
    } else {
        output::print(&tables::show(&shown, tables::Look::of_stdout()))?;
    }
    Ok(Exit::Ok)
}
