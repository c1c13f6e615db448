//! All cells of a matrix, some of them at a time.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::verdict::Verdict;
use crate::harness::{Failed, Result};

/// Cells at a time. Each is five processes that mostly wait for a disk; more than this, and two cores are what they wait for.
pub const AT_A_TIME: usize = 5;

/// Tries `cells` of the matrix of this name, in the order of `order`; each gets a directory of its own, not yet made, and `done`
/// hears of each as it ends, with the number of those that have. Verdicts in the order of the cells.
///
/// # Errors
/// If there is no place to try them in.
pub fn run<C: Sync>(
    matrix: &str,
    cells: &[C],
    order: &[usize],
    try_in: impl Fn(&C, &Path) -> Verdict + Sync,
    done: impl Fn(usize, &Verdict) + Sync,
) -> Result<Vec<Verdict>> {
    let root = tempfile::Builder::new().prefix(&format!("lockstep-{matrix}-")).tempdir();
    let root = root.map_err(Failed::because("no temporary directory"))?;
    let next = AtomicUsize::new(0);
    let verdicts: Mutex<Vec<Option<Verdict>>> = Mutex::new(cells.iter().map(|_| None).collect());
    let ended = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME.min(cells.len()) {
            scope.spawn(|| {
                while let Some(index) = order.get(next.fetch_add(1, Ordering::SeqCst)).copied() {
                    let verdict =
                        try_one(&root.path().join(index.to_string()), |at| try_in(&cells[index], at));
                    done(ended.fetch_add(1, Ordering::SeqCst) + 1, &verdict);
                    verdicts.lock().expect("no thread panics with it")[index] = Some(verdict);
                }
            });
        }
    });
    let verdicts = verdicts.into_inner().expect("no thread panics with it");
    let verdicts: Vec<Verdict> =
        verdicts.into_iter().map(|verdict| verdict.expect("every cell was taken")).collect();
    if verdicts.iter().any(|verdict| !verdict.violations.is_empty()) {
        eprintln!("what is left of the cells that failed is in {}", root.keep().display());
    }
    Ok(verdicts)
}

fn try_one(directory: &Path, try_in: impl FnOnce(&Path) -> Verdict) -> Verdict {
    let verdict = try_in(directory);
    if verdict.violations.is_empty() {
        // What is not removed here goes with the whole.
        drop(fs::remove_dir_all(directory));
    }
    verdict
}

/// A part of the cells: the `number`th of `of` parts, from 1. All parts together are all cells, and each has some of every
/// area.
#[must_use]
pub fn share<C>(cells: Vec<C>, number: usize, of: usize) -> Vec<C> {
    let numbered = cells.into_iter().enumerate();
    numbered.filter(|(index, _)| index % of == number - 1).map(|(_, cell)| cell).collect()
}
