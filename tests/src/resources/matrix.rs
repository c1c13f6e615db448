//! The cells that follow from what is promised, and those that cannot be, each with its reason.

use super::promise::{DATABASES, DEATHS, Death, Fault, STEPS, Step, Way, impossible};
use crate::harness::books::Database;
use crate::harness::proxy::At;
use crate::trial::checker::Expected;

/// Where a fault strikes.
#[derive(Debug, Clone, Copy)]
pub enum Place {
    /// Nowhere.
    Nowhere,
    /// At statements on their way to the server or back.
    Step(&'static Step, At),
    /// At a crash point.
    Point(&'static Death),
}

/// One cell.
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    /// The kind of database under test.
    pub database: Database,
    /// Which way transactions take.
    pub way: Way,
    /// What strikes.
    pub fault: Fault,
    /// Where.
    pub place: Place,
}

impl Cell {
    /// Its name: what to look for in a report.
    #[must_use]
    pub fn name(&self) -> String {
        let place = match self.place {
            Place::Nowhere => String::new(),
            Place::Step(step, At::Request) => format!(" / before {}", step.name),
            Place::Step(step, At::Answer(0)) => format!(" / after {}", step.name),
            Place::Step(step, At::Answer(heard)) => {
                format!(" / after {}, {heard} of {} answers", step.name, step.answers.len())
            }
            Place::Point(death) => format!(" / at {}", death.point),
        };
        format!("{} / {} / {}{place}", self.database.name(), self.way.name(), self.fault.name())
    }

    /// Whether what is struck belongs to a vote that nobody has asked for.
    #[must_use]
    pub const fn is_unasked(&self) -> bool {
        match self.place {
            Place::Nowhere => false,
            Place::Step(step, _) => step.unasked,
            Place::Point(death) => death.unasked,
        }
    }

    /// What must become of the transaction that is struck.
    #[must_use]
    pub const fn expected(&self) -> Expected {
        match self.place {
            Place::Nowhere => Expected::Either,
            Place::Step(step, At::Request) => step.before,
            Place::Step(step, At::Answer(heard)) if heard == step.answers.len() => step.heard,
            Place::Step(step, At::Answer(_)) => step.after,
            Place::Point(death) => death.expected,
        }
    }
}

/// Cells that cannot be, and why.
#[derive(Debug, Clone)]
pub struct Skipped {
    /// What they would be called.
    pub cells: String,
    /// Why.
    pub reason: &'static str,
}

/// All cells, database by database, and those that cannot be.
#[must_use]
pub fn cells() -> (Vec<Cell>, Vec<Skipped>) {
    let mut cells = Vec::new();
    let mut skipped = Vec::new();
    for database in DATABASES {
        for way in Way::ALL {
            for fault in Fault::ALL {
                match impossible(database, fault) {
                    Some(reason) => {
                        let cells = format!("{} / {} / {}", database.name(), way.name(), fault.name());
                        skipped.push(Skipped { cells, reason });
                    }
                    None => {
                        let places = places(database, way, fault).into_iter();
                        cells.extend(places.map(|place| Cell { database, way, fault, place }));
                    }
                }
            }
        }
    }
    (cells, skipped)
}

/// Every place at which a fault strikes on a way.
fn places(database: Database, way: Way, fault: Fault) -> Vec<Place> {
    let steps = STEPS.iter().filter(|step| (step.database, step.way) == (database, way));
    let deaths = DEATHS.iter().filter(|death| (death.database, death.way) == (database, way));
    match fault {
        Fault::Clean => vec![Place::Nowhere],
        // Before the server gets it, and when the server has executed it and the answer is on its way.
        Fault::ServerKilled => before_and_after(steps),
        Fault::ParticipantKilled => {
            before_and_after(steps).into_iter().chain(deaths.map(Place::Point)).collect()
        }
        // The same, and behind each of the answers.
        Fault::Cut => steps
            .flat_map(|step| {
                let answers = (0..=step.answers.len()).map(At::Answer);
                std::iter::once(At::Request).chain(answers).map(|at| Place::Step(step, at))
            })
            .collect(),
    }
}

fn before_and_after(steps: impl Iterator<Item = &'static Step>) -> Vec<Place> {
    steps.flat_map(|step| [At::Request, At::Answer(0)].map(|at| Place::Step(step, at))).collect()
}

/// A cell of every kind: of each database, way and fault the one whose turn it is, so that a share of the matrix sees different
/// places from one kind to the next.
#[must_use]
pub fn one_of_each_kind() -> Vec<Cell> {
    let (all, _) = cells();
    let kinds = DATABASES
        .into_iter()
        .flat_map(|database| Way::ALL.map(|way| Fault::ALL.map(|fault| (database, way, fault))).concat());
    kinds
        .enumerate()
        .filter_map(|(turn, kind)| {
            let of_kind: Vec<&Cell> =
                all.iter().filter(|cell| (cell.database, cell.way, cell.fault) == kind).collect();
            of_kind.get((turn * 7) % of_kind.len().max(1)).map(|cell| **cell)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_kind_of_cell_is_there_or_has_a_reason_and_every_name_is_there_once() {
        let (cells, skipped) = cells();
        let names: BTreeSet<String> = cells.iter().map(Cell::name).collect();
        assert_eq!(names.len(), cells.len());
        for database in DATABASES {
            for way in Way::ALL {
                for fault in Fault::ALL {
                    let kind = format!("{} / {} / {}", database.name(), way.name(), fault.name());
                    let there = names.iter().any(|name| name.starts_with(&kind));
                    let reason = skipped.iter().any(|skipped| skipped.cells == kind);
                    assert!(there != reason, "{kind} is there: {there}, has a reason not to be: {reason}");
                }
            }
        }
        let promised = DATABASES.len() * Way::ALL.len() * Fault::ALL.len();
        assert_eq!(one_of_each_kind().len(), promised - skipped.len());
    }

    #[test]
    fn a_connection_is_cut_before_each_step_and_behind_each_answer() {
        let (cells, _) = cells();
        for step in STEPS {
            let named = |other: &Step| {
                (other.database, other.way, other.name) == (step.database, step.way, step.name)
            };
            let cuts = cells
                .iter()
                .filter(|cell| cell.fault == Fault::Cut)
                .filter(|cell| matches!(cell.place, Place::Step(other, _) if named(other)));
            assert_eq!(cuts.count(), 2 + step.answers.len(), "{:?} {}", step.way, step.name);
        }
    }
}
