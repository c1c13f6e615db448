//! Every contender in turn, several times over, on the same servers in the same minute: what is compared is a ratio, because a machine is
//! not equally fast at all times.
//!
//! A turn is every contender once, at one number of clients. It is void if the disk has changed by more than a quarter meanwhile; a void
//! turn counts for nothing, is told, and is taken again.

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep_tests::harness::Result;
use lockstep_tests::harness::roles::Roles;
use serde::{Deserialize, Serialize};

use crate::contender::Contender;
use crate::driver::Seen;
use crate::meter::{self, Counted, MOST_DRIFT, count};
use crate::peer;
use crate::stage::Stage;

/// How many are asked while forced writes are counted, and how long: with one client nothing is forced together with anything else.
const COUNTING: Duration = Duration::from_millis(1500);
/// Clients ask for so long before it counts.
const WARM_UP: Duration = Duration::from_millis(500);

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Who.
    pub contenders: Vec<Contender>,
    /// How many clients, each of them.
    pub clients: Vec<usize>,
    /// Turns that have to count, for each number of clients.
    pub rounds: usize,
    /// How long each run is measured.
    pub measure: Duration,
    /// The peer, if it takes part.
    pub dtmrs: Option<peer::Installed>,
}

/// One run of one contender.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cell {
    /// Who.
    pub contender: Contender,
    /// How many clients.
    pub clients: usize,
    /// What they have seen.
    pub seen: Seen,
    /// Microseconds of processor time for each transaction, by part.
    pub processor: BTreeMap<String, f64>,
    /// What the coordinator counted for each transaction.
    pub counted: Counted,
}

/// Every contender once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Turn {
    /// How many clients.
    pub clients: usize,
    /// The disk before it: the median of a forced write, in microseconds.
    pub disk_before: f64,
    /// After it.
    pub disk_after: f64,
    /// It counts for nothing.
    pub void: bool,
    /// Its runs.
    pub cells: Vec<Cell>,
}

/// Forced writes of the databases for each transaction, counted in runs of their own.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Forced {
    /// Who.
    pub contender: Contender,
    /// How many clients.
    pub clients: usize,
    /// At both databases together.
    pub databases: f64,
}

/// All that was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measured {
    /// In the order in which they ran.
    pub turns: Vec<Turn>,
    /// Forced writes.
    pub forced: Vec<Forced>,
    /// Transfers after which the books were right.
    pub transfers: u64,
    /// Where dtmrs kept its transactions, if it took part.
    pub dtmrs_store: Option<String>,
}

/// Runs it all. `told` hears of each run.
///
/// # Errors
/// If something could not be run, a transfer failed, or the books are wrong.
pub fn run(roles: &Roles, plan: &Plan, told: impl Fn(&str)) -> Result<Measured> {
    let runtime = meter::runtime()?;
    let mut stage = Stage::set(roles)?;
    if let Some(dtmrs) = &plan.dtmrs {
        stage.start_dtmrs(dtmrs)?;
    }
    let dtmrs_store = plan.dtmrs.as_ref().map(|dtmrs| dtmrs.place.title().to_owned());
    let mut measured = Measured { turns: Vec::new(), forced: Vec::new(), transfers: 0, dtmrs_store };
    // Plans, caches and files that grow: nobody's cost.
    for contender in &plan.contenders {
        stage.run(*contender, 8, WARM_UP, WARM_UP)?;
    }
    // A few more than needed, where the disk does not stay the same.
    for _ in 0..2 * plan.rounds + 1 {
        for clients in plan
            .clients
            .iter()
            .filter(|clients| !measured.is_enough(**clients, plan))
            .copied()
            .collect::<Vec<_>>()
        {
            let turn = turn(&mut stage, plan, clients, &runtime, &told)?;
            if turn.void {
                told(&format!(
                    "void: the disk went from {:.0} to {:.0} us",
                    turn.disk_before, turn.disk_after
                ));
            }
            measured.turns.push(turn);
        }
    }
    for contender in &plan.contenders {
        for clients in &plan.clients {
            let before = stage.forced_writes()?;
            let ran = stage.run(*contender, *clients, Duration::ZERO, COUNTING)?;
            let forced = stage.forced_writes()?.saturating_sub(before);
            let databases = count(forced) / count(ran.seen.all);
            measured.forced.push(Forced { contender: *contender, clients: *clients, databases });
            measured.transfers += ran.seen.all;
        }
    }
    let cells = measured.turns.iter().flat_map(|turn| &turn.cells);
    measured.transfers += cells.map(|cell| cell.seen.all).sum::<u64>();
    Ok(measured)
}

fn turn(
    stage: &mut Stage,
    plan: &Plan,
    clients: usize,
    runtime: &tokio::runtime::Runtime,
    told: &impl Fn(&str),
) -> Result<Turn> {
    let disk_before = meter::fdatasync_micros(stage.directory())?;
    let mut cells = Vec::new();
    for contender in &plan.contenders {
        let cell = cell(stage, *contender, clients, plan.measure, runtime)?;
        told(&format!("{clients:>3} clients  {:<32} {:>7.0}/s", contender.title(), cell.seen.rate()));
        cells.push(cell);
    }
    let disk_after = meter::fdatasync_micros(stage.directory())?;
    let void = (disk_after / disk_before).max(disk_before / disk_after) > 1.0 + MOST_DRIFT;
    Ok(Turn { clients, disk_before, disk_after, void, cells })
}

fn cell(
    stage: &mut Stage,
    contender: Contender,
    clients: usize,
    measure: Duration,
    runtime: &tokio::runtime::Runtime,
) -> Result<Cell> {
    let coordinator = stage.coordinator();
    let before = runtime.block_on(Counted::at(&coordinator))?;
    let ran = stage.run(contender, clients, WARM_UP, measure)?;
    let after = runtime.block_on(Counted::at(&coordinator))?;
    let processor = ran.processor_time.1.each(&ran.processor_time.0, ran.seen.all);
    let counted = after.each(&before, ran.seen.all);
    Ok(Cell { contender, clients, seen: ran.seen, processor, counted })
}

impl Measured {
    /// The turns that count.
    pub fn valid(&self) -> impl Iterator<Item = &Turn> {
        self.turns.iter().filter(|turn| !turn.void)
    }

    /// Whether there are as many as there have to be.
    #[must_use]
    pub fn is_enough(&self, clients: usize, plan: &Plan) -> bool {
        self.valid().filter(|turn| turn.clients == clients).count() >= plan.rounds
    }

    /// The runs of a contender with so many clients that count, one of each turn.
    pub fn cells(&self, contender: Contender, clients: usize) -> Vec<&Cell> {
        let of = move |cell: &&Cell| cell.contender == contender && cell.clients == clients;
        self.valid().flat_map(|turn| &turn.cells).filter(of).collect()
    }

    /// One number of each of those.
    pub fn each(&self, contender: Contender, clients: usize, what: impl Fn(&Cell) -> f64) -> Vec<f64> {
        self.cells(contender, clients).into_iter().map(what).collect()
    }

    /// The median over the turns of a number of one contender by that of another one in the same turn.
    pub fn ratio(&self, one: Contender, by: Contender, clients: usize, what: impl Fn(&Cell) -> f64) -> f64 {
        let (one, by) = (self.each(one, clients, &what), self.each(by, clients, &what));
        let ratios: Vec<f64> = one.iter().zip(&by).map(|(one, by)| one / by).collect();
        meter::median(&ratios)
    }
}
