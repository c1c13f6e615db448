//! The cells: every crash point on every way over every kind of database; and those that cannot be, each with its reason.

use super::points::{Log, POINTS, Point, Reach, Victim, Way, second_crashes};
use crate::harness::books::Database;

/// One cell.
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    /// Where a process dies.
    pub point: &'static Point,
    /// Which way transactions take.
    pub way: Way,
    /// What the banks keep their accounts in.
    pub database: Database,
    /// Where the coordinator keeps its decisions.
    pub log: Log,
    /// Where it dies once more while it comes back.
    pub then: Option<&'static str>,
}

impl Cell {
    /// Its name: what to look for in a report.
    #[must_use]
    pub fn name(&self) -> String {
        let on = match self.log {
            Log::Embedded => "",
            Log::Shared => " / log in postgres",
        };
        let then = self.then.map(|then| format!(", then {then}")).unwrap_or_default();
        format!("{}{then} / {} / {}{on}", self.point.name, self.way.name(), self.database.name())
    }
}

/// A cell that cannot be, and why.
#[derive(Debug, Clone)]
pub struct Skipped {
    /// The cell's name.
    pub cell: String,
    /// Why.
    pub reason: &'static str,
}

/// Which kind of database each has.
const DATABASES: [Database; 3] = [Database::Sqlite, Database::Postgres, Database::MariaDb];

/// All cells that are wanted, in the order of the table, and those that cannot be.
#[must_use]
pub fn cells(wanted: impl Fn(&Point, Database) -> bool) -> (Vec<Cell>, Vec<Skipped>) {
    let mut cells = Vec::new();
    let mut skipped = Vec::new();
    for (turn, point) in POINTS.iter().enumerate() {
        for way in Way::ALL {
            let first_of_way = cells.len();
            for database in DATABASES.into_iter().filter(|database| wanted(point, *database)) {
                for log in logs(point, database) {
                    let cell = Cell { point, way, database, log, then: None };
                    match impossible(&cell) {
                        None => cells.push(cell),
                        Some(reason) => skipped.push(Skipped { cell: cell.name(), reason }),
                    }
                }
            }
            let twice = twice(&cells[first_of_way..], turn + way as usize);
            cells.extend(twice);
        }
    }
    (cells, skipped)
}

/// One of these cells with a second crash: another one, and another second crash, from one turn to the next.
fn twice(cells: &[Cell], turn: usize) -> Option<Cell> {
    let cell = *cells.get(turn % cells.len().max(1))?;
    let seconds = second_crashes(cell.point, cell.way, cell.database, cell.log);
    // Behind the cells: otherwise some of the one would never meet some of the other.
    let then = *seconds.get(turn / cells.len().max(1) % seconds.len().max(1))?;
    Some(Cell { then: Some(then), ..cell })
}

/// The logs that a point is tried with. Those of the coordinator with both; where a bank is struck, what is in the coordinator's log is the same.
fn logs(point: &Point, database: Database) -> impl Iterator<Item = Log> {
    let both = point.victim == Victim::Coordinator && database == Database::Postgres;
    let shared = both.then_some(Log::Shared);
    std::iter::once(Log::Embedded).chain(shared)
}

fn impossible(cell: &Cell) -> Option<&'static str> {
    match cell.point.only_in {
        Some(only) if only != cell.database => {
            return Some(match only {
                Database::Postgres => "the point is in the code for PostgreSQL, which this bank never runs",
                Database::Sqlite => "the point is in the code for SQLite, which this bank never runs",
                Database::MariaDb => "the point is in the code for MariaDB, which this bank never runs",
                Database::Own => {
                    "the point is in the code of the store of one's own, which this bank never runs"
                }
            });
        }
        Some(_) | None => {}
    }
    match cell.point.only_with {
        Some(Log::Embedded) if cell.log == Log::Shared => {
            return Some("the point is in the code of the embedded log, which this coordinator never runs");
        }
        Some(Log::Shared) if cell.log == Log::Embedded => {
            return Some(
                "the point is in the code of the log in PostgreSQL, which this coordinator never runs",
            );
        }
        Some(_) | None => {}
    }
    match cell.point.reach(cell.way, cell.database) {
        Reach::Yes(_) | Reach::First(_) => None,
        Reach::No(reason) => Some(reason),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::crashes::points::{Moment, find};
    use crate::trial::run::share;

    #[test]
    fn every_point_has_a_cell_and_every_name_is_there_once() {
        let names: BTreeSet<&str> = POINTS.iter().map(|point| point.name).collect();
        assert_eq!(names.len(), POINTS.len());
        for point in POINTS {
            let (cells, skipped) = cells(|other, _| other.name == point.name);
            assert!(!cells.is_empty(), "{} has no cell", point.name);
            let all = if point.victim == Victim::Coordinator { 16 } else { 12 };
            let once = cells.iter().filter(|cell| cell.then.is_none()).count();
            assert_eq!(once + skipped.len(), all, "{}", point.name);
        }
    }

    #[test]
    fn processes_die_again_at_every_point_that_they_always_pass_when_they_come_back() {
        let (cells, _) = cells(|_, _| true);
        let seconds: BTreeSet<&str> = cells.iter().filter_map(|cell| cell.then).collect();
        assert_eq!(seconds.len(), 14, "{seconds:?}");
        for second in seconds {
            let point = find(second).unwrap_or_else(|| panic!("there is no point {second}"));
            assert_eq!(point.moment, Moment::Recovery, "{second}");
        }
    }

    #[test]
    fn the_shares_are_the_whole() {
        let all = cells(|_, _| true).0;
        let mut parts: Vec<String> =
            (1..=7).flat_map(|number| share(all.clone(), number, 7)).map(|cell| cell.name()).collect();
        parts.sort();
        let mut whole: Vec<String> = all.iter().map(Cell::name).collect();
        whole.sort();
        assert_eq!(parts, whole);
    }
}
