//! `lockstep status`.

use lockstep_proto::v1::StatusRequest;

use super::exit::{Exit, Failure};
use super::remote::{AnswerTimeout, Remote, ServerArgs, within};
use super::{output, tables};
use crate::operator::view::StatusView;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// End with 6 if something is unresolved, or the decision log cannot be read
    #[arg(long)]
    exit_code: bool,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    limit: AnswerTimeout,
}

pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    let remote = Remote::new(&args.server.server, args.limit.timeout);
    let answer = within(&remote, args.limit, remote.admin().status(StatusRequest {})).await?;
    let status = StatusView::try_from(answer).map_err(|error| remote.strange(&error))?;
    if args.server.json {
        output::print_json(&status)?;
    } else {
        output::print(&tables::status(&status, tables::Look::of_stdout()))?;
    }
    // What is on record is not known while that can't be read.
    let unresolved = status.unresolved() > 0 || !status.log_unavailable.is_empty();
    Ok(if args.exit_code && unresolved { Exit::Unresolved } else { Exit::Ok })
}
