//! What a process of the harness plays: this program starts itself again with a hidden subcommand.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::Subcommand;

use super::process::end_with_the_parent;
use super::{bank, client, crash_points};

/// A role, as the command line of the process that plays it.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// `lockstep`, with these arguments
    Coordinator {
        /// Everything behind the program's name
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// A service with accounts in a database of its own
    Bank(bank::Arguments),
    /// Whoever moves money between banks
    Client(client::Arguments),
}

/// The program that plays every role: `prove`.
#[derive(Debug, Clone)]
pub struct Roles {
    program: PathBuf,
    /// What starts the program, with its arguments behind: nothing, or such as `nice`.
    under: Vec<String>,
}

impl Roles {
    /// Played by the program at this path: a test names `prove`, which cargo has built for it.
    pub fn played_by(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), under: Vec::new() }
    }

    /// The same, started by these words, which end by becoming the program.
    #[must_use]
    pub fn under(self, words: impl IntoIterator<Item = String>) -> Self {
        Self { under: words.into_iter().collect(), ..self }
    }

    /// A process that plays `role`, with nothing of ours in its environment.
    #[must_use]
    pub fn command(&self, role: &str) -> Command {
        let mut words = self.under.iter().map(OsString::from).chain([self.program.clone().into_os_string()]);
        let mut command = Command::new(words.next().expect("the program at least"));
        command.args(words).arg("role").arg(role);
        let ours = |name: &str| name.starts_with("LOCKSTEP_") || name.starts_with("OTEL_");
        for (name, _) in std::env::vars_os().filter(|(name, _)| ours(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        command
    }
}

/// Plays a role until it ends.
#[must_use]
pub fn play(role: Role) -> ExitCode {
    if let Err(error) = crash_points::arm_from_environment() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    match role {
        Role::Coordinator { arguments } => {
            end_with_the_parent();
            lockstep_coordinator::run(std::iter::once("lockstep".to_owned()).chain(arguments))
        }
        Role::Bank(arguments) => {
            end_with_the_parent();
            end(bank::run(&arguments))
        }
        Role::Client(arguments) => end(client::run(arguments)),
    }
}

/// Where a role writes what it has to say: its log.
pub(super) fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::new("info,sqlx=warn,h2=warn,hyper=warn");
    // A role is the only thing that sets one up in its process.
    let _already_set = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .try_init();
}

fn end(result: super::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
