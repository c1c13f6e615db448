//! `lockstep tx …`: transactions of a running coordinator.

mod ls;
mod show;
mod wait;

use super::exit::{Exit, Failure};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List transactions, newest first
    Ls(ls::Args),
    /// Show one transaction with its branches
    Show(show::Args),
    /// Wait until a transaction is decided; the exit code is its outcome
    Wait(wait::Args),
}

pub(super) async fn run(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Ls(args) => ls::run(args).await,
        Command::Show(args) => show::run(args).await,
        Command::Wait(args) => wait::run(args).await,
    }
}
