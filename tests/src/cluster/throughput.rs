//! Whether a second node costs throughput: transfers through one node and through two, by turns, on the same machine and the same log.
//!
//! Both nodes run all the time, so that only one thing is different: whether begins are spread over them. By turns, because a machine
//! is not equally fast at all times.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::run::{LEASE, PATIENCE};
use super::world::{Setup, World};
use crate::harness::books::{Database, Page};
use crate::harness::client::{Entry, Mover, Plan, Told, What, read_ledger};
use crate::harness::roles::Roles;
use crate::harness::{Failed, Result, clock};

/// Transfers at the same time: fewer than a bank has connections.
const AT_ONCE: usize = 5;
/// Rounds that are not counted, while everything warms up.
const WARM_UP: usize = 1;
/// What two nodes have to do of what one does.
pub const LEAST_RATIO: f64 = 0.9;

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub struct Plans {
    /// Rounds with each number of nodes.
    pub rounds: usize,
    /// How long one takes.
    pub round: Duration,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Throughput {
    transactions: u64,
    /// Commits a second in each round through one node.
    one_node: Vec<f64>,
    /// The same through two.
    two_nodes: Vec<f64>,
    one_node_median: f64,
    two_nodes_median: f64,
    ratio: f64,
    /// Commits that are not in every bank's books, or are there and nobody was told of.
    wrong: usize,
    violations: usize,
}

impl Throughput {
    fn new(one_node: Vec<f64>, two_nodes: Vec<f64>, transactions: u64, wrong: usize) -> Self {
        let (one_node_median, two_nodes_median) = (median(&one_node), median(&two_nodes));
        let ratio = two_nodes_median / one_node_median;
        let violations = usize::from(ratio.is_nan() || ratio < LEAST_RATIO) + wrong;
        Self {
            transactions,
            one_node,
            two_nodes,
            one_node_median,
            two_nodes_median,
            ratio,
            wrong,
            violations,
        }
    }

    /// Whether two nodes do as much as they have to, and nothing wrong.
    #[must_use]
    pub fn is_enough(&self) -> bool {
        self.violations == 0
    }

    /// For people: side by side.
    #[must_use]
    pub fn table(&self) -> String {
        let row = |name: String, one: f64, two: f64| format!("{name:>7}  {one:>8.1}  {two:>9.1}\n");
        let rounds = self.one_node.iter().zip(&self.two_nodes).enumerate();
        let rows: String = rounds.map(|(n, (one, two))| row((n + 1).to_string(), *one, *two)).collect();
        let medians = row("median".to_owned(), self.one_node_median, self.two_nodes_median);
        let (ratio, wrong) = (self.ratio, self.wrong);
        format!(
            "commits a second\n  round  one node  two nodes\n{rows}{medians}two nodes do {ratio:.2} of one, {LEAST_RATIO} is the least; \
             {wrong} commits are wrong in the books"
        )
    }

    /// One line.
    ///
    /// # Panics
    /// Never: numbers are JSON.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers are JSON")
    }
}

fn median(rates: &[f64]) -> f64 {
    let mut sorted = rates.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Measures.
///
/// # Errors
/// If something of the harness failed.
pub fn measure(roles: &Roles, directory: &Path, plans: Plans) -> Result<Throughput> {
    // A client that is to begin at one node must not be told of the other.
    let setup = Setup { nodes: 2, named: None, lease: LEASE, banks: Database::Postgres };
    let mut world = World::start_idle(roles, directory, setup)?;
    let runtime = tokio::runtime::Runtime::new().map_err(Failed::because("no runtime"))?;
    let urls: Vec<String> = world.coordinators.iter().map(|coordinator| coordinator.url()).collect();
    let (mut one_node, mut two_nodes, mut transactions) = (Vec::new(), Vec::new(), 0);
    let mut told = BTreeSet::new();
    for round in 0..WARM_UP + plans.rounds {
        for (nodes, rates) in [(1, &mut one_node), (2, &mut two_nodes)] {
            let movers = Movers {
                coordinators: urls[..nodes].join(","),
                banks: world.addresses(),
                ledger: directory.join(format!("round-{round}-{nodes}")),
            };
            let (rate, commits) = runtime.block_on(movers.run(plans.round))?;
            if round >= WARM_UP {
                rates.push(rate);
                transactions += commits;
            }
            told.extend(movers.told_committed()?);
        }
    }
    world.settle(PATIENCE)?;
    let wrong: usize = world.pages()?.iter().map(|page| differences(page, &told)).sum();
    Ok(Throughput::new(one_node, two_nodes, transactions, wrong))
}

/// Commits that clients were told of and that are not in these books, and the other way round.
fn differences(page: &Page, told: &BTreeSet<String>) -> usize {
    let booked: BTreeSet<&String> = page.transfers.keys().collect();
    told.iter().collect::<BTreeSet<_>>().symmetric_difference(&booked).count()
}

/// The clients of one round.
struct Movers {
    coordinators: String,
    banks: Vec<String>,
    ledger: PathBuf,
}

impl Movers {
    /// Commits a second, and how many.
    async fn run(&self, time: Duration) -> Result<(f64, u64)> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for number in 0..AT_ONCE {
            let mover =
                Mover::new(&self.coordinators, &self.banks, &self.ledger(number)).await?.without_asking();
            tasks.push(tokio::spawn(keep_moving(mover, Arc::clone(&stop))));
        }
        let begun = clock::now();
        tokio::time::sleep(time).await;
        stop.store(true, Ordering::Relaxed);
        let mut commits = 0;
        for task in tasks {
            commits += task.await.map_err(Failed::because("a client panicked"))??;
        }
        let rate = f64::from(u32::try_from(commits).unwrap_or(u32::MAX)) / begun.elapsed().as_secs_f64();
        Ok((rate, commits))
    }

    fn ledger(&self, number: usize) -> PathBuf {
        self.ledger.with_extension(number.to_string())
    }

    fn told_committed(&self) -> Result<Vec<String>> {
        let ledgers = (0..AT_ONCE).map(|number| read_ledger(&self.ledger(number)));
        let entries = ledgers.collect::<Result<Vec<_>>>()?.concat();
        let committed = |entry: Entry| {
            matches!(entry.what, What::Told { told: Told::Committed, .. }).then_some(entry.gtrid)
        };
        Ok(entries.into_iter().filter_map(committed).collect())
    }
}

async fn keep_moving(mut mover: Mover, stop: Arc<AtomicBool>) -> Result<u64> {
    let mut commits = 0;
    while !stop.load(Ordering::Relaxed) {
        if mover.transfer(Plan::Commit).await? == Some(Told::Committed) {
            commits += 1;
        }
    }
    Ok(commits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_nodes_that_do_too_little_are_a_violation() {
        let of = |one: &[f64], two: &[f64]| Throughput::new(one.to_vec(), two.to_vec(), 1, 0).is_enough();
        assert!(of(&[100.0, 10.0, 110.0], &[91.0, 95.0, 1.0]));
        assert!(!of(&[100.0, 100.0, 100.0], &[89.0, 100.0, 80.0]));
        assert!(!of(&[], &[]), "nothing was measured");
        assert!(!Throughput::new(vec![100.0], vec![100.0], 1, 1).is_enough());
    }

    #[test]
    fn what_is_in_the_books_and_not_told_differs_and_the_other_way_round() {
        let page = |transfers: &[&str]| Page {
            transfers: transfers.iter().map(|gtrid| ((*gtrid).to_owned(), 1)).collect(),
            total: 0,
            wrong_accounts: Vec::new(),
        };
        let told: BTreeSet<String> = ["a", "b"].map(str::to_owned).into();
        assert_eq!(differences(&page(&["a", "b"]), &told), 0);
        assert_eq!(differences(&page(&["a"]), &told), 1);
        assert_eq!(differences(&page(&["a", "c", "b"]), &told), 1);
    }
}
