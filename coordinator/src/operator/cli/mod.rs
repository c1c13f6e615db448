//! The commands of `lockstep`.
//!
//! - [`exit`]: what each exit code means, and how a failure is told.
//! - [`serve`], [`migrate`], [`restore`], [`cluster`], [`config_show`], [`status`], [`tx`], [`orphans`], [`participants`], [`audit`], [`export`], [`health`], [`doctor`],
//!   [`backup`], [`log`], [`manual`]: the commands.
//!   [`act`]: what those share that change something.
//! - [`remote`]: how they ask a running coordinator, and what a failed question means.
//! - [`tables`], [`evidence`], [`output`]: how an answer is written: data on stdout, talk on stderr.
//!
//! A command that reads changes nothing; none of them is told a secret.

mod act;
mod audit;
mod backup;
mod cluster;
mod config_show;
mod doctor;
mod evidence;
mod exit;
mod export;
mod health;
mod log;
mod manual;
mod migrate;
mod orphans;
mod output;
mod participants;
mod remote;
mod restore;
mod serve;
mod status;
mod tables;
mod tx;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use lockstep_proto::v1::OperatorAction;

use crate::codes::Code;
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
    /// Whether a running coordinator is to be called
    Health(health::Args),
    /// Prepared branches that no coordinator answers for
    #[command(subcommand, arg_required_else_help = true)]
    Orphans(orphans::Command),
    /// Who takes part
    #[command(subcommand, arg_required_else_help = true)]
    Participants(participants::Command),
    /// What operators did
    #[command(subcommand, arg_required_else_help = true)]
    Audit(audit::Command),
    /// Write everything on record to stdout: one JSON object on each line
    Export(export::Args),
    /// Begin nothing new, until the coordinator is started again
    Drain(act::ActArgs),
    /// Whether a database can take part, what stands in the way, and what mends it
    Doctor(doctor::Args),
    /// Copy an embedded decision log, while its coordinator runs or not
    Backup(backup::Args),
    /// An embedded decision log that no coordinator has
    #[command(subcommand, arg_required_else_help = true)]
    Log(log::Command),
    /// Print what a shell needs to complete commands
    Completions(manual::CompletionsArgs),
    /// Print the manual page of a command
    Man(manual::ManArgs),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the configuration that these flags, this environment and the file make, as a file
    Show(config_show::Args),
    /// Whether a coordinator would take these flags, this environment and the file
    Check(config_show::CheckArgs),
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
            if error.use_stderr() {
                let code = Code::WrongCommandLine;
                let said = error.to_string().replacen("error:", &format!("error[{code}]:"), 1);
                output::talk(&format!("{}\n  docs/errors/{code}.md", said.trim_end()));
                return Exit::Usage.into();
            }
            // `--help` and `--version`, which are no errors. There is nobody left to tell that stdout did not take it.
            let _ = error.print();
            return Exit::Ok.into();
        }
    };
    warn_of_environment();
    match dispatch(cli.command) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            if !failure.is_silent() {
                output::talk(&failure.to_string());
            }
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
        Command::Config(ConfigCommand::Check(args)) => config_show::check(&args),
        Command::Serve(args) => block_on(serve::run(args)),
        Command::Cluster(command) => block_on(cluster::run(command)),
        Command::Migrate(args) => block_on(migrate::run(args)),
        Command::Restore(args) => block_on(restore::run(args)),
        Command::Tx(command) => block_on(tx::run(command)),
        Command::Status(args) => block_on(status::run(args)),
        Command::Health(args) => block_on(health::run(args)),
        Command::Orphans(command) => block_on(orphans::run(command)),
        Command::Participants(command) => block_on(participants::run(command)),
        Command::Audit(command) => block_on(audit::run(command)),
        Command::Export(args) => block_on(export::run(args)),
        Command::Drain(args) => block_on(act::act(args, OperatorAction::Drain, String::new(), String::new())),
        Command::Doctor(args) => block_on(doctor::run(args)),
        Command::Backup(args) => block_on(backup::run(args)),
        Command::Log(command) => block_on(log::run(command)),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
    }
}

fn block_on(command: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::of_system("start threads", &error))?;
    let result = runtime.block_on(command);
    // Whatever must be waited for was waited for by the command: to end at once means not to wait for anything here.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests;
