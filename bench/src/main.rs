//! The benchmark's command line; what it does is in the library.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use lockstep_tests::harness::roles::{self, Roles};
use lockstep_tests::harness::{Failed, Result};

use bench::contender::Contender;
use bench::{driver, plot, report, stage, suite, teller};

#[derive(Debug, Parser)]
#[command(name = "bench", about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Every way of moving money between two PostgreSQL servers, by turns
    Suite(Suite),
    /// What a process of the benchmark plays
    #[command(hide = true)]
    Role {
        #[command(subcommand)]
        role: Role,
    },
}

#[derive(Debug, clap::Args)]
struct Suite {
    /// Where the measured numbers are written as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the plots are written
    #[arg(long, value_name = "DIRECTORY")]
    plots: Option<PathBuf>,
    /// Under three minutes: fewer rounds, no 128 clients
    #[arg(long)]
    quick: bool,
    /// How many clients, one run for each
    #[arg(long, value_delimiter = ',')]
    clients: Option<Vec<usize>>,
    /// Who takes part
    #[arg(long, value_delimiter = ',')]
    only: Option<Vec<Contender>>,
    /// Rounds that have to count
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of each run that are measured
    #[arg(long)]
    seconds: Option<f64>,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// `lockstep`, with these arguments
    Coordinator {
        /// Everything behind the program's name
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// A service
    Teller(teller::Arguments),
    /// Whoever asks
    Drive(driver::Arguments),
}

impl Suite {
    fn plan(&self) -> Result<suite::Plan> {
        let (clients, rounds, seconds): (&[usize], _, _) =
            if self.quick { (&[1, 8, 32], 2, 2.0) } else { (&[1, 8, 32, 128], 5, 3.0) };
        let clients = self.clients.clone().unwrap_or_else(|| clients.to_vec());
        if !clients.iter().all(|clients| (1..=stage::MOST_CLIENTS).contains(clients)) {
            return Err(Failed::new(format!("1 to {} clients", stage::MOST_CLIENTS)));
        }
        let seconds = self.seconds.unwrap_or(seconds);
        let measure = Duration::try_from_secs_f64(seconds).map_err(Failed::because("--seconds"))?;
        let contenders = self.only.clone().unwrap_or_else(|| Contender::ALL.to_vec());
        Ok(suite::Plan { contenders, clients, rounds: self.rounds.unwrap_or(rounds), measure })
    }

    fn run(&self) -> Result<()> {
        let plan = self.plan()?;
        let measured = suite::run(&roles()?, &plan, |line| eprintln!("{line}"))?;
        println!("{}\n{}", report::table(&measured, &plan), report::summary(&measured));
        if let Some(path) = &self.json {
            let json = serde_json::to_string_pretty(&measured).expect("numbers are JSON");
            std::fs::write(path, json).map_err(Failed::because(path.display().to_string()))?;
        }
        if let Some(directory) = &self.plots {
            plot::suite(&measured, &plan, directory)?;
        }
        if measured.valid().count() < plan.rounds {
            return Err(Failed::new(
                "too many rounds are void: the disk is not equally fast for long enough",
            ));
        }
        Ok(())
    }
}

/// This program plays every role itself.
fn roles() -> Result<Roles> {
    let program =
        std::env::current_exe().map_err(Failed::because("this program does not know where it is"))?;
    Ok(Roles::played_by(program))
}

fn play(role: Role) -> Result<ExitCode> {
    match role {
        Role::Coordinator { arguments } => return Ok(roles::play(roles::Role::Coordinator { arguments })),
        Role::Teller(arguments) => {
            lockstep_tests::harness::process::end_with_the_parent();
            teller::run(&arguments)?;
        }
        Role::Drive(arguments) => driver::run(&arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    let done = match Cli::parse().what {
        What::Suite(suite) => suite.run().map(|()| ExitCode::SUCCESS),
        What::Role { role } => play(role),
    };
    done.unwrap_or_else(|why| {
        eprintln!("{why}");
        ExitCode::FAILURE
    })
}
