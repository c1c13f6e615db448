//! The commands of `lockstep`.
//!
//! - [`exit`]: what each exit code means, and how a failure is told.
//! - [`serve`], [`migrate`], [`restore`], [`cluster`], [`config_show`], [`status`], [`tx`], [`doctor`]: the commands.
//! - [`remote`]: how they ask a running coordinator, and what a failed question means.
//! - [`tables`], [`output`]: how an answer is written: data on stdout, talk on stderr.
//!
//! A command that reads changes nothing; none of them is told a secret.

mod cluster;
mod config_show;
mod doctor;
mod exit;
mod migrate;
mod output;
mod remote;
mod restore;
mod serve;
mod status;
mod tables;
mod tx;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::environment;
use exit::{Exit, Failure};

/// Commits one piece of work in several databases, or in none.
#[derive(Debug, Parser)]
#[command(name = "lockstep", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a coordinator until SIGTERM or SIGINT; a second one ends it at once, which is safe
    Serve(serve::Args),
    /// Nodes that share a decision log
    #[command(subcommand, arg_required_else_help = true)]
    Cluster(cluster::Command),
    /// Make the schema of a shared decision log, or bring it up to date; safe while coordinators run
    Migrate(migrate::Args),
    /// Deal with a decision log that was restored from a backup, or has failed over with a loss
    Restore(restore::Args),
    /// What a coordinator would be configured to
    #[command(subcommand, arg_required_else_help = true)]
    Config(ConfigCommand),
    /// Transactions of a running coordinator
    #[command(subcommand, arg_required_else_help = true)]
    Tx(tx::Command),
    /// A running coordinator, and what is unresolved in it
    Status(status::Args),
    /// Whether a database can take part, what stands in the way, and what mends it
    Doctor(doctor::Args),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the configuration that these flags, this environment and the file make, as a file
    Show(config_show::Args),
}

/// Runs the program `lockstep`: `args` begin with its name. What it returns is documented in docs/cli.md.
///
/// Builds its own tokio runtime: not to be called from within one.
pub fn run<I, T>(args: I) -> ExitCode
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let parsed = command().try_get_matches_from(args).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` arrive here too, and are no errors. There is nobody left to tell that neither
            // stdout nor stderr took it.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Ok }.into();
        }
    };
    warn_of_environment();
    match dispatch(cli.command) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            output::talk(&failure.to_string());
            failure.exit.into()
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "the one place that looks at the whole environment; single variables are read by clap"
)]
fn warn_of_environment() {
    for warning in environment::warnings(std::env::vars_os()) {
        output::talk(&format!("warning: {warning}"));
    }
}

/// The whole command line, as clap knows it.
fn command() -> clap::Command {
    Cli::command().after_help(exit::table())
}

fn dispatch(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Config(ConfigCommand::Show(args)) => config_show::run(&args),
        Command::Serve(args) => block_on(serve::run(args)),
        Command::Cluster(command) => block_on(cluster::run(command)),
        Command::Migrate(args) => block_on(migrate::run(args)),
        Command::Restore(args) => block_on(restore::run(args)),
        Command::Tx(command) => block_on(tx::run(command)),
        Command::Status(args) => block_on(status::run(args)),
        Command::Doctor(args) => block_on(doctor::run(args)),
    }
}

fn block_on(command: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("no runtime: {error}")))?;
    let result = runtime.block_on(command);
    // Whatever must be waited for was waited for by the command: to end at once means not to wait for anything here.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests;
