//! `lockstep tx ls`.

use lockstep_proto::v1::ListTransactionsRequest;

use super::super::exit::{Exit, Failure};
use super::super::remote::{AnswerTimeout, Remote, ServerArgs, within};
use super::super::{output, tables};
use crate::operator::view::TransactionList;

#[derive(Debug, clap::Args)]
pub(in super::super) struct Args {
    /// Also those that have ended and are still kept
    #[arg(long)]
    all: bool,
    /// At most so many: 1 to 1000
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    answer: AnswerTimeout,
}

pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    let remote = Remote::new(&args.server.server, args.answer.timeout);
    let request = ListTransactionsRequest { limit: args.limit, include_ended: args.all };
    let answer = within(&remote, args.answer, remote.admin().list_transactions(request)).await?;
    let list = TransactionList::try_from(answer).map_err(|error| remote.strange(&error))?;
    if args.server.json {
        output::print_json(&list)?;
        return Ok(Exit::Ok);
    }
    output::print(&tables::list(&list, tables::Look::of_stdout()))?;
    if list.transactions.is_empty() {
        output::talk(if args.all {
            "no transactions"
        } else {
            "no unfinished transactions; --all lists ended ones too"
        });
    }
    if list.truncated {
        output::talk(&format!(
            "there are more than these {}; --limit takes up to 1000",
            list.transactions.len()
        ));
    }
    Ok(Exit::Ok)
}
