//! The cells: every crash point on every way over every kind of database; and those that cannot be, each with its reason.

use super::points::{POINTS, Point, Reach, Way};
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
}

impl Cell {
    /// Its name: what to look for in a report.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{} / {} / {}", self.point.name, self.way.name(), self.database.name())
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
    for point in POINTS {
        for way in Way::ALL {
            for database in DATABASES.into_iter().filter(|database| wanted(point, *database)) {
                let cell = Cell { point, way, database };
                match impossible(&cell) {
                    None => cells.push(cell),
                    Some(reason) => skipped.push(Skipped { cell: cell.name(), reason }),
                }
            }
        }
    }
    (cells, skipped)
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
    match cell.point.reach(cell.way, cell.database) {
        Reach::Yes(_) | Reach::First(_) => None,
        Reach::No(reason) => Some(reason),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::trial::run::share;

    #[test]
    fn every_point_has_a_cell_and_every_name_is_there_once() {
        let names: BTreeSet<&str> = POINTS.iter().map(|point| point.name).collect();
        assert_eq!(names.len(), POINTS.len());
        for point in POINTS {
            let (cells, skipped) = cells(|other, _| other.name == point.name);
            assert!(!cells.is_empty(), "{} has no cell", point.name);
            assert_eq!(cells.len() + skipped.len(), 12, "{}", point.name);
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
