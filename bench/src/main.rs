//! The benchmark's command line; what it does is in the library.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bench::contender::Contender;
use bench::peer::store::Place;
use bench::{
    alone, branch, driver, engine, grown, peer, plot, report, restart, stage, statements, suite, teller,
    voter,
};
use clap::{Parser, Subcommand};
use lockstep_tests::harness::roles::{self, Roles};
use lockstep_tests::harness::{Failed, Result};
use serde::Serialize;

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
    /// The coordinator alone: participants that vote at once, up to 512 clients, up to 64 branches
    Coordinator(Measure),
    /// The engine alone, in this process: no gRPC, no database
    Engine(Measure),
    /// The coordinator with ten million ended transactions in its log, and with a hundred thousand in doubt
    Log(Measure),
    /// A branch and its database alone: no coordinator, no gRPC
    Branch(Measure),
    /// The instructions that a branch's statements cost PostgreSQL, counted by valgrind
    Statements(Measure),
    /// Thousands of transactions in doubt at a restart, against a bare loop of COMMIT PREPARED
    Restart(Measure),
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
    #[arg(long, value_name = "FILE", value_parser = writable)]
    json: Option<PathBuf>,
    /// Where the plots are written
    #[arg(long, value_name = "DIRECTORY", value_parser = directory)]
    plots: Option<PathBuf>,
    /// Under three minutes: fewer turns, no 128 clients
    #[arg(long)]
    quick: bool,
    /// How many clients, one run for each
    #[arg(long, value_delimiter = ',')]
    clients: Option<Vec<usize>>,
    /// Who takes part
    #[arg(long, value_delimiter = ',')]
    only: Option<Vec<Contender>>,
    /// The program `dtmrs`; otherwise the one on PATH, if there is one
    #[arg(long, value_name = "FILE")]
    dtmrs: Option<PathBuf>,
    /// Where dtmrs keeps its transactions: `redis`, one of its own, which is started; `postgres`, a database on the first server; or an
    /// address. Otherwise in Redis if there is a `redis-server` on PATH, and in PostgreSQL if not
    #[arg(long, value_name = "STORE")]
    dtmrs_store: Option<Place>,
    /// Turns of every contender that have to count, for each number of clients
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of each run that are measured
    #[arg(long)]
    seconds: Option<f64>,
}

#[derive(Debug, clap::Args)]
struct Measure {
    /// Where the measured numbers are written as JSON
    #[arg(long, value_name = "FILE", value_parser = writable)]
    json: Option<PathBuf>,
    /// Shorter runs
    #[arg(long)]
    quick: bool,
}

impl Measure {
    fn coordinator(&self) -> Result<()> {
        let measured = alone::run(&roles()?, self.quick, |line| eprintln!("{line}"))?;
        println!("{}", report::alone(&measured));
        write(self.json.as_deref(), &measured)
    }

    fn engine(&self) -> Result<()> {
        let measured = engine::run(self.quick)?;
        println!("{}", report::engine(&measured));
        write(self.json.as_deref(), &measured)
    }

    fn branch(&self) -> Result<()> {
        let measured = branch::run(self.quick)?;
        println!("{}", report::branch(&measured));
        write(self.json.as_deref(), &measured)
    }

    fn statements(&self) -> Result<()> {
        let counted = statements::run(self.quick)?;
        println!("{}", report::statements(&counted));
        write(self.json.as_deref(), &counted)
    }

    fn log(&self) -> Result<()> {
        let measured = grown::run(&roles()?, self.quick, |line| eprintln!("{line}"))?;
        println!("{}", report::grown(&measured));
        write(self.json.as_deref(), &measured)
    }

    fn restart(&self) -> Result<()> {
        let measured = restart::run(&roles()?, self.quick)?;
        println!("{}", report::restart(&measured));
        write(self.json.as_deref(), &measured)
    }
}

/// A file that can be written: found out before anything is measured, and not after it. What is in it stays for now.
fn writable(path: &str) -> std::io::Result<PathBuf> {
    OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    Ok(PathBuf::from(path))
}

/// A directory that is there.
fn directory(path: &str) -> std::result::Result<PathBuf, String> {
    let is_one = Path::new(path).is_dir();
    if is_one { Ok(PathBuf::from(path)) } else { Err("it is no directory".to_owned()) }
}

/// As JSON, if somebody wants it.
fn write(path: Option<&Path>, measured: &impl Serialize) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let json = serde_json::to_string_pretty(measured).expect("numbers are JSON");
    std::fs::write(path, json).map_err(Failed::because(path.display().to_string()))
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
    /// Participants that vote at once, and whoever asks for them
    Vote(voter::Arguments),
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
        let rounds = self.rounds.unwrap_or(rounds);
        if rounds == 0 || measure.is_zero() {
            return Err(Failed::new("at least one turn, of more than no seconds"));
        }
        let (contenders, dtmrs) = self.contenders()?;
        Ok(suite::Plan { contenders, clients, rounds, measure, dtmrs })
    }

    /// Without dtmrs where it is not installed, unless it was asked for.
    fn contenders(&self) -> Result<(Vec<Contender>, Option<peer::Installed>)> {
        let dtmrs = peer::Installed::find(self.dtmrs.as_deref(), self.dtmrs_store.clone())?;
        let mut contenders = self.only.clone().unwrap_or_else(|| Contender::ALL.to_vec());
        if !contenders.contains(&Contender::Dtmrs) {
            return Ok((contenders, None));
        }
        if dtmrs.is_some() {
            return Ok((contenders, dtmrs));
        }
        if self.only.is_some() {
            return Err(Failed::new(peer::NOT_INSTALLED));
        }
        eprintln!("{}", peer::NOT_INSTALLED);
        contenders.retain(|contender| *contender != Contender::Dtmrs);
        Ok((contenders, None))
    }

    fn run(&self) -> Result<()> {
        let plan = self.plan()?;
        let measured = suite::run(&roles()?, &plan, |line| eprintln!("{line}"))?;
        println!("{}\n{}", report::table(&measured, &plan), report::summary(&measured, &plan));
        write(self.json.as_deref(), &measured)?;
        if let Some(directory) = &self.plots {
            plot::suite(&measured, &plan, directory)?;
        }
        if !plan.clients.iter().all(|clients| measured.is_enough(*clients, &plan)) {
            return Err(Failed::new("too many turns are void: the disk is not equally fast for long enough"));
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
        Role::Vote(arguments) => voter::run(&arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    let done = match Cli::parse().what {
        What::Suite(suite) => suite.run().map(|()| ExitCode::SUCCESS),
        What::Coordinator(measure) => measure.coordinator().map(|()| ExitCode::SUCCESS),
        What::Engine(measure) => measure.engine().map(|()| ExitCode::SUCCESS),
        What::Log(measure) => measure.log().map(|()| ExitCode::SUCCESS),
        What::Branch(measure) => measure.branch().map(|()| ExitCode::SUCCESS),
        What::Statements(measure) => measure.statements().map(|()| ExitCode::SUCCESS),
        What::Restart(measure) => measure.restart().map(|()| ExitCode::SUCCESS),
        What::Role { role } => play(role),
    };
    done.unwrap_or_else(|why| {
        eprintln!("{why}");
        ExitCode::FAILURE
    })
}
