//! `prove`: whatever crashes, is cut off, or answers late or twice, no two branches of a transaction end differently.
//!
//! Each subcommand tries one kind of fault over real processes and real databases, says what it tried and counted, and ends
//! with exit code 0 only if nothing was violated and everything that it promised to try was tried.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use lockstep_tests::cluster;
use lockstep_tests::crashes::matrix::{Cell, cells};
use lockstep_tests::crashes::report::{Report, table};
use lockstep_tests::crashes::stage::Stage;
use lockstep_tests::crashes::{points, run};
use lockstep_tests::harness::Failed;
use lockstep_tests::harness::books::Database;
use lockstep_tests::harness::clock;
use lockstep_tests::harness::roles::{Role, Roles, play};
use lockstep_tests::resources::{cell, matrix, report, stage};
use lockstep_tests::simulation;
use lockstep_tests::trial::progress::Progress;
use lockstep_tests::trial::run::share;
use lockstep_tests::trial::verdict::Verdict;
use lockstep_tests::{model, museum, torture};

/// Violations after which a simulation stops: each is a world that is run again for its trace.
const MOST_VIOLATIONS: usize = 3;

/// States of one world of the model at most: with its steps, some gigabytes of memory.
const MOST_STATES: usize = 60_000_000;

/// States of the model's large worlds together, at least.
const LARGE_STATES: u64 = 10_000_000;

#[derive(Debug, Parser)]
#[command(name = "prove", arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// SIGKILL at every crash point, to a commit and to a rollback, over SQLite, PostgreSQL and MariaDB
    Crashes(Crashes),
    /// The real protocol, engine and SDK on a simulated network, disk and clock, with faults of every kind
    Simulate(Simulate),
    /// Every state of small worlds with the real transaction and branch machines: two coordinators, up to three branches
    Model(Model),
    /// Known bugs, put back one at a time: each has to be found, by what is meant to find it
    Museum(Museum),
    /// Every kind of database, every way of a transaction, every fault: SIGKILL of participant or server, connections cut
    Resources(Resources),
    /// The four situations, every operator's action in each, and its resolution as the runbook says, on real databases
    Operators(Operators),
    /// SIGKILL or SIGSTOP of a random coordinator every few seconds, several of them on one PostgreSQL log, under load
    Cluster(Cluster),
    /// SIGKILL and SIGSTOP of anybody, servers too, and connections cut and slowed, at random and under load; then healing
    Torture(Torture),
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
struct Simulate {
    /// How many transactions to begin while there are faults
    #[arg(long, default_value_t = 1_000_000)]
    transactions: u64,
    /// The seed of the first world; each one after it has the next seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// End with one line of JSON on stdout
    #[arg(long)]
    json: bool,
    /// Say on stderr how often each situation came in a million transactions, as tests/src/simulation/sometimes.txt does
    #[arg(long)]
    situations: bool,
}

#[derive(Debug, clap::Args)]
struct Model {
    /// End with one line of JSON on stdout
    #[arg(long)]
    json: bool,
    /// Only worlds whose names contain this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Only the small worlds, which every test run explores
    #[arg(long)]
    small: bool,
}

#[derive(Debug, clap::Args)]
struct Museum {
    /// End with one line of JSON on stdout
    #[arg(long)]
    json: bool,
    /// The seed of the first simulated world that each bug is tried in
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Simulated worlds in which a bug has to be found
    #[arg(long, default_value_t = 5_000)]
    worlds: u64,
    /// Only bugs whose names contain this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

#[derive(Debug, clap::Args)]
struct Resources {
    /// End with one line of JSON on stdout
    #[arg(long)]
    json: bool,
    /// What a cell leaves open is chosen from this: the same seed chooses the same
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only cells whose names contain this, such as "postgres / commit" or "cut"
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Only the Kth of N parts of the cells
    #[arg(long, value_name = "K/N", value_parser = parse_share, default_value = "1/1")]
    share: (usize, usize),
}

#[derive(Debug, clap::Args)]
struct Operators {
    /// End with one line of JSON on stdout
    #[arg(long)]
    json: bool,
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
    /// What the participants keep their data in: files, or a PostgreSQL server
    #[arg(long, value_enum, default_value = "postgres")]
    database: Database,
    /// After that, SIGKILL and restart of the log's PostgreSQL server, so often
    #[arg(long, default_value_t = 0, value_name = "N")]
    log_crashes: usize,
    /// After that, SIGKILL of the log's server and promotion of its synchronous standby, so often
    #[arg(long, default_value_t = 0, value_name = "N")]
    failovers: usize,
    /// Chooses who is struck, how and when
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Break nothing, and compare the throughput of two nodes on one log with that of one
    #[arg(long, conflicts_with_all = ["log_crashes", "failovers"])]
    throughput: bool,
}

#[derive(Debug, clap::Args)]
struct Torture {
    /// End with one line of JSON on stdout
    #[arg(long)]
    json: bool,
    /// For how long
    #[arg(long, default_value_t = 20)]
    minutes: u64,
    /// Chooses what is done to whom, and when
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
        What::Simulate(arguments) => simulate(&arguments),
        What::Model(arguments) => explore(&arguments),
        What::Museum(arguments) => put_bugs_back(&arguments),
        What::Resources(arguments) => resources(&arguments),
        What::Operators(arguments) => operators(&arguments),
        What::Cluster(arguments) => cluster(&arguments),
        What::Torture(arguments) => torture(&arguments),
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
    show(&for_people, arguments.json.then(|| report.json()));
    if report.is_clean(cells.len()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn cluster(arguments: &Cluster) -> ExitCode {
    if arguments.throughput {
        return throughput(arguments);
    }
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

fn torture(arguments: &Torture) -> ExitCode {
    let time = Duration::from_secs(60 * arguments.minutes);
    let tried =
        tempfile::tempdir().map_err(Failed::because("no temporary directory")).and_then(|directory| {
            torture::run::run(&roles()?, directory.path(), time, arguments.seed, |fault| eprintln!("{fault}"))
        });
    match tried {
        Ok(report) => {
            show(&report.summary(), arguments.json.then(|| report.json()));
            if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(failed) => {
            eprintln!("{failed}");
            ExitCode::FAILURE
        }
    }
}

fn throughput(arguments: &Cluster) -> ExitCode {
    const ROUND: Duration = Duration::from_secs(10);
    // Both take turns.
    let rounds = usize::try_from(60 * arguments.minutes / (2 * ROUND.as_secs())).unwrap_or(usize::MAX).max(3);
    let plans = cluster::throughput::Plans { rounds, round: ROUND };
    let measured = tempfile::tempdir()
        .map_err(Failed::because("no temporary directory"))
        .and_then(|directory| cluster::throughput::measure(&roles()?, directory.path(), plans));
    match measured {
        Ok(measured) => {
            show(&measured.table(), arguments.json.then(|| measured.json()));
            if measured.is_enough() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(failed) => {
            eprintln!("{failed}");
            ExitCode::FAILURE
        }
    }
}

fn try_cluster(arguments: &Cluster) -> Result<cluster::report::Report, Failed> {
    let directory = tempfile::tempdir().map_err(Failed::because("no temporary directory"))?;
    let plan = cluster::run::Plan {
        nodes: arguments.nodes.max(2),
        time: Duration::from_secs(60 * arguments.minutes),
        banks: arguments.database,
        faults: usize::from(arguments.minutes > 0),
        log_crashes: arguments.log_crashes,
        failovers: arguments.failovers,
        seed: arguments.seed,
    };
    let mut count = 0;
    cluster::run::run(&roles()?, directory.path(), plan, |struck| {
        count += 1;
        eprintln!("{count:>4}  {struck}");
    })
}

fn simulate(arguments: &Simulate) -> ExitCode {
    let started = clock::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let run = simulation::run::run(arguments.transactions, arguments.seed, threads, MOST_VIOLATIONS);
    let report = simulation::report::Report::new(
        &run,
        arguments.seed,
        threads,
        started.elapsed(),
        clock::processor_time(),
    );
    if arguments.situations {
        for (situation, count) in run.reached.situations() {
            eprintln!("{} {situation}", count.saturating_mul(1_000_000) / run.transactions.max(1));
        }
    }
    if arguments.json {
        eprintln!("{}", report.text(&run));
        println!("{}", report.json());
    } else {
        println!("{}", report.text(&run));
    }
    if report.is_clean(arguments.transactions) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn explore(arguments: &Model) -> ExitCode {
    let started = clock::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let bounds = if arguments.small { model::bounds::SMALL } else { model::bounds::LARGE };
    let wanted = |name: &str| arguments.only.as_ref().is_none_or(|only| name.contains(only));
    let bounds = bounds.iter().filter(|bounds| wanted(bounds.name)).copied().collect::<Vec<_>>();
    let worlds = model::run::explore_worlds(&bounds, MOST_STATES, threads, |tried| {
        eprintln!("{}: {} states in {} s", tried.world, tried.states, tried.seconds);
    });
    let all_of_the_large = !arguments.small && arguments.only.is_none();
    let promised = if all_of_the_large { LARGE_STATES } else { 0 };
    let report = model::run::Report::new(worlds, promised, started.elapsed());
    show(&report.text(), arguments.json.then(|| report.json()));
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn put_bugs_back(arguments: &Museum) -> ExitCode {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let wanted = |name: &str| arguments.only.as_ref().is_none_or(|only| name.contains(only));
    let bugs = museum::catalogue::BUGS.iter().filter(|bug| wanted(bug.name)).copied().collect::<Vec<_>>();
    if bugs.is_empty() {
        eprintln!("there is no such bug; docs/museum.md has their names");
        return ExitCode::from(2);
    }
    let effort = museum::run::Effort { seed: arguments.seed, worlds: arguments.worlds, threads };
    let report = museum::run::run(&bugs, effort, |found| eprintln!("{}", found.line()));
    show(&report.text(), arguments.json.then(|| report.json()));
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// For people on stdout; where a program reads that, on stderr.
fn show(for_people: &str, json: Option<String>) {
    match json {
        Some(json) => {
            eprintln!("{for_people}");
            println!("{json}");
        }
        None => println!("{for_people}"),
    }
}

/// This program plays every role itself.
fn roles() -> Result<Roles, Failed> {
    let program =
        std::env::current_exe().map_err(Failed::because("this program does not know where it is"))?;
    Ok(Roles::played_by(program))
}

fn try_all(cells: &[Cell], seed: u64) -> Result<Vec<Verdict>, Failed> {
    let stage = Stage::set(&roles()?)?;
    let progress = Progress::start(cells.len());
    let verdicts = run::run(&stage, cells, seed, |done, verdict| progress.cell(done, verdict));
    progress.finish();
    verdicts
}

fn resources(arguments: &Resources) -> ExitCode {
    let (all, skipped) = matrix::cells();
    let wanted = |cell: &matrix::Cell| arguments.only.as_ref().is_none_or(|only| cell.name().contains(only));
    let (number, of) = arguments.share;
    let cells = share(all.into_iter().filter(wanted).collect(), number, of);
    if cells.is_empty() {
        eprintln!("there is no such cell; the names are in the output of a whole run");
        return ExitCode::from(2);
    }
    let started = clock::now();
    let verdicts = match try_resources(&cells, arguments.seed) {
        Ok(verdicts) => verdicts,
        Err(failed) => {
            eprintln!("{failed}");
            return ExitCode::FAILURE;
        }
    };
    let table = report::table(&cells, &verdicts, &skipped);
    let report = report::Report::new(&cells, &verdicts, skipped, arguments.seed, started.elapsed());
    show(&format!("{table}\n{}", report.summary()), arguments.json.then(|| report.json()));
    if report.is_clean(cells.len()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn try_resources(cells: &[matrix::Cell], seed: u64) -> Result<Vec<Verdict>, Failed> {
    let stage = stage::Stage::set(&roles()?);
    let progress = Progress::start(cells.len());
    let verdicts = cell::run_all(&stage, cells, seed, |done, verdict| progress.cell(done, verdict));
    progress.finish();
    verdicts
}

fn operators(arguments: &Operators) -> ExitCode {
    let report = match roles().and_then(|roles| lockstep_tests::operators::matrix::run(&roles)) {
        Ok(report) => report,
        Err(failed) => {
            eprintln!("{failed}");
            return ExitCode::FAILURE;
        }
    };
    show(&report.text(), arguments.json.then(|| report.json()));
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
