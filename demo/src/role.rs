//! What this program is when it starts itself: a coordinator, or one of two banks.

use std::fmt;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use crate::{bank, shop};

/// One of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Role {
    Coordinator,
    BankA,
    BankB,
}

impl Role {
    pub(crate) const ALL: [Self; 3] = [Self::Coordinator, Self::BankA, Self::BankB];
    pub(crate) const BANKS: [Self; 2] = [Self::BankA, Self::BankB];

    /// Its name, and its files' names. A bank's is also the resource manager's.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::BankA => "bank-a",
            Self::BankB => "bank-b",
        }
    }

    /// Its place in [`Role::ALL`].
    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Coordinator => 0,
            Self::BankA => 1,
            Self::BankB => 2,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The command line that a role is started with. Its files are in the current directory.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// A coordinator, as `lockstep serve` runs it
    #[command(hide = true)]
    Coordinator { listen: SocketAddr, data_dir: PathBuf },
    /// A bank
    #[command(hide = true)]
    Bank(bank::Args),
    /// A shop with three services: without Docker, or one part of it
    Shop(Box<shop::Shop>),
}

impl Command {
    /// Plays the role until SIGTERM, or until the process that started this one is gone.
    pub(crate) fn run(self) -> ExitCode {
        match self {
            Self::Coordinator { listen, data_dir } => {
                end_with_parent();
                let (listen, data_dir) = (listen.to_string().into(), data_dir.into_os_string());
                let serve = [
                    "lockstep".into(),
                    "serve".into(),
                    "--listen".into(),
                    listen,
                    "--data-dir".into(),
                    data_dir,
                ];
                lockstep_coordinator::run(serve)
            }
            Self::Bank(args) => {
                end_with_parent();
                run_bank(args).map_or_else(
                    |error| {
                        tracing::error!("this bank cannot go on: {error}");
                        ExitCode::FAILURE
                    },
                    |()| ExitCode::SUCCESS,
                )
            }
            Self::Shop(shop) => shop.run(),
        }
    }
}

fn run_bank(args: bank::Args) -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    tokio::runtime::Runtime::new()?.block_on(bank::serve(args))
}

/// Ends this process when the one that started it is gone, even if that was killed with SIGKILL. Stdin is a pipe that
/// nothing is written to and whose other end the parent holds: it ends with the parent. (The kernel's own means, a
/// parent's death signal, exists on Linux only, and goes by the thread that started the process.)
pub(crate) fn end_with_parent() {
    std::thread::spawn(|| {
        let _end = std::io::stdin().lock().read_to_end(&mut Vec::new());
        std::process::exit(1);
    });
}
