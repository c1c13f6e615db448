//! Many worlds, on every core.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::sometimes::Reached;
use super::world::{Violation, World};

/// Transactions in one world while there are faults: enough that what one leaves behind meets others, few enough that a trace
/// can be read.
pub const IN_A_WORLD: usize = 200;

/// A violation, and the world it was seen in.
#[derive(Debug, Clone)]
pub struct Found {
    /// The world's seed.
    pub seed: u64,
    /// What was seen.
    pub violation: Violation,
    /// The trace of the transaction, and of what concerned everyone meanwhile.
    pub trace: String,
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Run {
    /// Worlds.
    pub worlds: u64,
    /// Transactions.
    pub transactions: u64,
    /// Those of which a client was told that they are committed.
    pub committed: u64,
    /// Faults of each kind.
    pub faults: Vec<u64>,
    /// What was reached.
    pub reached: Reached,
    /// The violations, by their seeds.
    pub found: Vec<Found>,
    /// All traces' hashes in one.
    pub hash: u64,
}

/// Runs as many worlds as it takes to begin so many transactions, from this seed on, on so many threads. Stops after `enough`
/// violations.
///
/// # Panics
/// If a thread cannot be started.
#[must_use]
pub fn run(transactions: u64, seed: u64, threads: usize, enough: usize) -> Run {
    let per_world = IN_A_WORLD.min(usize::try_from(transactions.max(1)).unwrap_or(IN_A_WORLD));
    let worlds = transactions.div_ceil(per_world as u64).max(1);
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let sum = Mutex::new(Run::default());
    let work = || {
        let mut part = Run::default();
        while !stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= worlds {
                break;
            }
            part.take(seed.wrapping_add(number), per_world);
            if part.found.len() >= enough {
                stop.store(true, Ordering::Relaxed);
            }
        }
        sum.lock().expect("no thread panics with it").add(part);
    };
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let mut sum = sum.into_inner().expect("no thread panics with it");
    sum.found.sort_by_key(|found| found.seed);
    sum
}

impl Run {
    fn take(&mut self, seed: u64, transactions: usize) {
        self.worlds += 1;
        match catch_unwind(AssertUnwindSafe(|| World::new(seed, transactions, false).run())) {
            Ok(ended) => {
                self.transactions += ended.transactions;
                self.committed += ended.committed;
                self.faults.resize(ended.faults.counts.len(), 0);
                for (sum, count) in self.faults.iter_mut().zip(ended.faults.counts) {
                    *sum += count;
                }
                self.reached.add(&ended.reached);
                // Worlds end in any order: what is summed must not depend on it.
                self.hash ^= ended.trace.hash().wrapping_mul(seed | 1);
                if let Some(violation) = ended.violation {
                    self.found.push(again(seed, transactions, violation));
                }
            }
            Err(panic) => {
                let what = panic.downcast_ref::<String>().cloned();
                let what = what.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                let what = what.unwrap_or_else(|| "a panic without a text".to_owned());
                let violation = Violation { invariant: "assertion", transaction: None, what };
                self.found.push(Found { seed, violation, trace: String::new() });
            }
        }
    }

    fn add(&mut self, part: Self) {
        self.worlds += part.worlds;
        self.transactions += part.transactions;
        self.committed += part.committed;
        self.faults.resize(self.faults.len().max(part.faults.len()), 0);
        for (sum, count) in self.faults.iter_mut().zip(&part.faults) {
            *sum += count;
        }
        self.reached.add(&part.reached);
        self.hash ^= part.hash;
        self.found.extend(part.found);
    }
}

/// The same world once more, told.
fn again(seed: u64, transactions: usize, violation: Violation) -> Found {
    let trace = World::new(seed, transactions, true).run().trace.text(violation.transaction);
    Found { seed, violation, trace }
}
