//! `lockstep tx …`: transactions of a running coordinator.

mod ls;
mod show;
mod wait;

use lockstep_proto::v1::OperatorAction;

use super::act::{ActArgs, TransactionArgs, act};
use super::exit::{Exit, Failure};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List transactions, newest first
    Ls(ls::Args),
    /// Show one transaction with its branches, what their databases say, and what can be done about it
    Show(show::Args),
    /// Wait until a transaction is decided; the exit code is its outcome
    Wait(wait::Args),
    /// Deliver a decision now, whatever its next attempt was waiting for
    Retry(TransactionArgs),
    /// Deliver a decision no more, until it is resumed or the coordinator starts again
    Pause(TransactionArgs),
    /// Deliver a decision again that was paused
    Resume(TransactionArgs),
    /// Roll back a transaction that is not decided
    Rollback(TransactionArgs),
    /// Refused in any case, with the reason: only all branches' votes make a commit
    Commit(TransactionArgs),
    /// Give up a branch whose database is lost for good: the outcome becomes heuristic
    Abandon(AbandonArgs),
    /// Note that a heuristic outcome was dealt with
    Ack(TransactionArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct AbandonArgs {
    /// The transaction: its id, or a beginning of it that no other one has
    #[arg(value_name = "GTRID")]
    gtrid: String,
    /// Whose branch
    #[arg(long, value_name = "NAME")]
    resource: String,
    #[command(flatten)]
    act: ActArgs,
}

pub(super) async fn run(command: Command) -> Result<Exit, Failure> {
    let (args, action) = match command {
        Command::Ls(args) => return ls::run(args).await,
        Command::Show(args) => return show::run(args).await,
        Command::Wait(args) => return wait::run(args).await,
        Command::Abandon(args) => {
            return act(args.act, OperatorAction::Abandon, args.gtrid, args.resource).await;
        }
        Command::Retry(args) => (args, OperatorAction::Retry),
        Command::Pause(args) => (args, OperatorAction::Pause),
        Command::Resume(args) => (args, OperatorAction::Resume),
        Command::Rollback(args) => (args, OperatorAction::Rollback),
        Command::Commit(args) => (args, OperatorAction::Commit),
        Command::Ack(args) => (args, OperatorAction::Acknowledge),
    };
    act(args.act, action, args.gtrid, String::new()).await
}
