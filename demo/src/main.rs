//! Two banks, a coordinator, and kill -9: does the money still add up?
//!
//! One command, no database server, no configuration. The program starts itself three times more, as a coordinator and as
//! two banks, each with its own SQLite file; it is itself the application that moves money between the banks, and the one
//! that kills them. Read in this order:
//! - [`scenario`]: the story, from top to bottom.
//! - [`bank`]: a service that takes part in transactions: this is what one's own service looks like.
//! - [`application`]: a program that begins transactions and calls both banks in each.
//! - [`naive`]: both without Lockstep, for comparison.
//! - [`ledger`]: the transfers, and what the clients were told of each.
//! - [`killer`]: which process is killed when, and why at a moment that hurts.
//! - [`role`]: what the program is when it starts itself.
//! - [`process`]: starting, killing, reaping and stopping.
//! - [`books`]: the checker, which looks at the files from outside.
//! - [`report`], [`progress`]: what a person or a program reads.
//! - [`shop`]: another demo, `demo shop`: three services on databases of three kinds, for `docker-compose.yml` and without it.

mod application;
mod bank;
mod books;
mod killer;
mod ledger;
mod naive;
mod process;
mod progress;
mod report;
mod role;
mod scenario;
mod shop;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, error::ErrorKind};

use scenario::Failure;

/// Moves money between two banks, kills every process meanwhile, and checks the books.
#[derive(Debug, Parser)]
#[command(name = "demo", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    role: Option<role::Command>,
}

/// What a run can be told.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Transfers to make; a few more if the kills are not all made by then
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) transfers: u32,
    /// Clients that make them, at the same time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) clients: u16,
    /// Times that a process is killed with SIGKILL: coordinator and banks in turn
    #[arg(long, value_name = "N", default_value_t = 9)]
    pub(crate) kills: u32,
    /// What the transfers and the kills are made from; at random unless given
    #[arg(long, value_name = "N", default_value_t = rand::random_range(1..=999_999), hide_default_value = true)]
    pub(crate) seed: u64,
    /// Without Lockstep: two plain commits, one in each bank
    #[arg(long)]
    pub(crate) naive: bool,
    /// Print one JSON object instead of the table
    #[arg(long)]
    pub(crate) json: bool,
    /// Keep the databases and the log output, and say where
    #[arg(long)]
    pub(crate) keep: bool,
}

fn main() -> ExitCode {
    let Cli { options, role } = Cli::parse();
    if let Some(role) = role {
        return role.run();
    }
    refuse_too_many_kills(&options);
    // One thread: the clients wait for disks and processes, not for this one, and so need no lock between them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let run = runtime.map_err(Failure::from).and_then(|runtime| runtime.block_on(scenario::run(&options)));
    report::tell(&options, run)
}

/// Ends the process with a usage error if more kills are asked for than the transfers give room for: each costs every
/// client the transfer that it is making, and some have to go right in between.
fn refuse_too_many_kills(options: &Options) {
    let for_each = u32::from(options.clients) + 2;
    let needed = options.kills.saturating_mul(for_each);
    if options.transfers >= needed {
        return;
    }
    let message = format!(
        "--kills {} with --clients {} needs at least --transfers {needed}, {for_each} for each kill, and there are {}",
        options.kills, options.clients, options.transfers
    );
    Cli::command().error(ErrorKind::ValueValidation, message).exit()
}
