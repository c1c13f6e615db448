//! `prove`: whatever crashes, is cut off, or answers late or twice, no two branches of a transaction end differently.
//!
//! Each subcommand tries one kind of fault over real processes and real databases, says what it tried and counted, and ends
//! with exit code 0 only if nothing was violated and everything that it promised to try was tried.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use lockstep_tests::cluster;
use lockstep_tests::crashes::cell::Verdict;
use lockstep_tests::crashes::matrix::{Cell, cells, share};
use lockstep_tests::crashes::report::{Report, table};
use lockstep_tests::crashes::world::Stage;
use lockstep_tests::crashes::{points, run};
use lockstep_tests::harness::Failed;
use lockstep_tests::harness::books::Database;
use lockstep_tests::harness::clock;
use lockstep_tests::harness::roles::{Role, Roles, play};

#[derive(Debug, Parser)]
#[command(name = "prove", arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// SIGKILL at every crash point, to a commit and to a rollback, over SQLite and PostgreSQL
    Crashes(Crashes),
    /// SIGKILL or SIGSTOP of a random coordinator every few seconds, several of them on one PostgreSQL log, under load
    Cluster(Cluster),
    /// What a process of the harness plays
    #[command(hide = true)]
    Role {
        #[command(subcommand)]
        role: Role,
    },
}

#[derive(Debug, clap::Args)]
struct Crashes {
    /// End with one line of JSON on stdout
    #[arg(long)]
    json: bool,
    /// What a cell leaves open is chosen from this: the same seed chooses the same
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this crash point
    #[arg(long, value_name = "POINT")]
    only: Option<String>,
    /// Only over this kind of database
    #[arg(long, value_enum)]
    database: Option<Database>,
    /// Only the Kth of N parts of the cells
    #[arg(long, value_name = "K/N", value_parser = parse_share, default_value = "1/1")]
    share: (usize, usize),
}

#[derive(Debug, clap::Args)]
struct Cluster {
    /// End with one line of JSON on stdout
    #[arg(long)]
    json: bool,
    /// For how long
    #[arg(long, default_value_t = 5)]
    minutes: u64,
    /// Coordinators
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Chooses who is struck, how and when
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn parse_share(text: &str) -> Result<(usize, usize), String> {
    let parts = text.split_once('/').and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
    let (k, n) = parts.ok_or("it has the form K/N, such as 1/4")?;
    if (1..=n).contains(&k) { Ok((k, n)) } else { Err(format!("{k} is not from 1 to {n}")) }
}

fn main() -> ExitCode {
    match Cli::parse().what {
        What::Crashes(arguments) => crashes(&arguments),
        What::Cluster(arguments) => cluster(&arguments),
        What::Role { role } => play(role),
    }
}

fn crashes(arguments: &Crashes) -> ExitCode {
    if let Some(only) = &arguments.only
        && points::find(only).is_none()
    {
        eprintln!("there is no crash point {only}");
        return ExitCode::from(2);
    }
    let (all, skipped) = cells(|point, database| {
        arguments.only.as_deref().is_none_or(|only| only == point.name)
            && arguments.database.is_none_or(|only| only == database)
    });
    let (number, of) = arguments.share;
    let cells = share(all, number, of);
    let started = clock::now();
    let verdicts = match try_all(&cells, arguments.seed) {
        Ok(verdicts) => verdicts,
        Err(failed) => {
            eprintln!("{failed}");
            return ExitCode::FAILURE;
        }
    };
    let report = Report::new(&cells, &verdicts, skipped, arguments.seed, started.elapsed());
    let for_people = format!("{}\n{}", table(&cells, &verdicts), report.summary());
    if arguments.json {
        eprintln!("{for_people}");
        println!("{}", report.json());
    } else {
        println!("{for_people}");
    }
    if report.is_clean(cells.len()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn cluster(arguments: &Cluster) -> ExitCode {
    let report = match try_cluster(arguments) {
        Ok(report) => report,
        Err(failed) => {
            eprintln!("{failed}");
            return ExitCode::FAILURE;
        }
    };
    if arguments.json {
        eprintln!("{}", report.summary());
        println!("{}", report.json());
    } else {
        println!("{}", report.summary());
    }
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn try_cluster(arguments: &Cluster) -> Result<cluster::report::Report, Failed> {
    let program =
        std::env::current_exe().map_err(Failed::because("this program does not know where it is"))?;
    let directory = tempfile::tempdir().map_err(Failed::because("no temporary directory"))?;
    let plan = cluster::run::Plan {
        nodes: arguments.nodes.max(2),
        time: Duration::from_secs(60 * arguments.minutes),
        faults: 1,
        seed: arguments.seed,
    };
    let mut count = 0;
    cluster::run::run(&Roles::played_by(program), directory.path(), plan, |takeover| {
        count += 1;
        let (sealed, settled) = (takeover.sealed.as_secs_f64(), takeover.settled.as_secs_f64());
        eprintln!(
            "{count:>4}  node {} {:?}: taken over after {sealed:.1} s, nothing in doubt after {settled:.1} s",
            takeover.node, takeover.fault
        );
    })
}

fn try_all(cells: &[Cell], seed: u64) -> Result<Vec<Verdict>, Failed> {
    let program =
        std::env::current_exe().map_err(Failed::because("this program does not know where it is"))?;
    let stage = Stage::set(&Roles::played_by(program))?;
    run::run(&stage, cells, seed, |done, verdict| {
        let mark = if verdict.violations.is_empty() { "ok" } else { "WRONG" };
        let seconds = verdict.took.as_secs_f64();
        eprintln!("{done:>4}/{} {mark:<5} {seconds:>4.1} s  {}", cells.len(), verdict.cell);
        if let Some(complaint) = verdict.complaint() {
            eprintln!("{complaint}");
        }
    })
}
