//! All cells of the matrix.

use super::cell;
use super::matrix::Cell;
use super::points::Needs;
use super::stage::Stage;
use crate::harness::Result;
use crate::trial::run::run as run_in_order;
use crate::trial::verdict::Verdict;

/// Tries these cells; `done` hears of each as it ends, with the number of those that have. Verdicts in the order of the cells.
///
/// # Errors
/// If there is no place to try them in.
pub fn run(
    stage: &Stage,
    cells: &[Cell],
    seed: u64,
    done: impl Fn(usize, &Verdict) + Sync,
) -> Result<Vec<Verdict>> {
    let order = slowest_first(cells);
    run_in_order("crashes", cells, &order, |cell, directory| cell::run(stage, *cell, directory, seed), done)
}

/// The order in which cells are tried: those that wait for something to grow or to become old do so beside the others, and not
/// at the end when nobody else is left.
fn slowest_first(cells: &[Cell]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..cells.len()).collect();
    order.sort_by_key(|index| cells[*index].point.needs == Needs::Nothing);
    order
}
