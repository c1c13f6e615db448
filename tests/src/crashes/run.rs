//! All cells, some of them at a time.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::cell::{self, Verdict};
use super::matrix::Cell;
use super::world::Stage;
use crate::harness::postgres::PostgresServer;
use crate::harness::roles::Roles;
use crate::harness::{Failed, Result};

/// Cells at a time. Each is five processes that mostly wait for a disk; more than this, and two cores are what they wait for.
pub const AT_A_TIME: usize = 5;

/// Tries these cells; `done` hears of each as it ends, with the number of those that have. Verdicts in the order of the cells.
///
/// # Errors
/// If there is no place to try them in.
pub fn run(
    roles: &Roles,
    cells: &[Cell],
    seed: u64,
    done: impl Fn(usize, &Verdict) + Sync,
) -> Result<Vec<Verdict>> {
    let root = tempfile::Builder::new().prefix("lockstep-crashes-").tempdir();
    let root = root.map_err(Failed::because("no temporary directory"))?;
    let stage = Stage { roles: roles.clone(), servers: [PostgresServer::start()?, PostgresServer::start()?] };
    let next = AtomicUsize::new(0);
    let verdicts: Mutex<Vec<Option<Verdict>>> = Mutex::new(cells.iter().map(|_| None).collect());
    let ended = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME.min(cells.len()) {
            scope.spawn(|| {
                while let Some(index) = take(&next, cells.len()) {
                    let verdict = try_in(&stage, cells[index], root.path(), index, seed);
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

fn take(next: &AtomicUsize, end: usize) -> Option<usize> {
    let index = next.fetch_add(1, Ordering::SeqCst);
    (index < end).then_some(index)
}

fn try_in(stage: &Stage, cell: Cell, root: &Path, index: usize, seed: u64) -> Verdict {
    let directory = root.join(cell.name().replace(" / ", "+"));
    let verdict = cell::run(stage, cell, &directory, index, seed);
    if verdict.violations.is_empty() {
        // What is not removed here goes with the whole.
        drop(fs::remove_dir_all(&directory));
    }
    verdict
}
