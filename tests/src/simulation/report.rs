//! What `prove simulate` prints: a few tables for people, one object for programs.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::{Table, presets};
use serde::Serialize;

use super::faults::KINDS;
use super::run::{IN_A_WORLD, Run};
use super::sometimes::never_seen;

/// A run of so many transactions has to reach the goals: in a shorter one, chance has too much to say.
const LONG: u64 = 1_000_000;
/// Faults for each transaction.
const FAULTS_EACH: u64 = 5;
/// What each kind has of all faults, in hundredths.
const SHARE_OF_A_KIND: u64 = 1;
/// Transactions that commit, in hundredths: where nothing ever commits, little is tried.
const COMMITTED: u64 = 30;
/// Transactions in a second of one core: what is slow is not run.
const SPEED: u64 = 20_000;

/// Everything that was tried, and what came of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Worlds, each with its own seed.
    worlds: u64,
    /// Transactions that applications began, or tried to.
    transactions: u64,
    /// Those of which a client was told that they are committed.
    committed: u64,
    /// Faults.
    faults: u64,
    /// Faults by their kind.
    faults_by_kind: BTreeMap<&'static str, u64>,
    /// Different situations that were reached.
    situations: usize,
    /// Situations that have to be reached by a run of this size, and were not.
    never_seen: Vec<String>,
    /// Goals of a long run that this one has missed.
    missed: Vec<String>,
    /// How many worlds have a violation.
    violations: usize,
    /// Each violation, with what repeats it.
    violation_texts: Vec<String>,
    /// The first world's seed.
    seed: u64,
    /// The same for the same seed and number of transactions, whatever the machine.
    trace: String,
    /// How long it took.
    seconds: f64,
    /// How fast that was.
    transactions_per_second: u64,
    /// How fast one core was: by the processor time that was used, whatever else the machine had to do.
    transactions_per_core_second: u64,
    /// Threads that worked.
    threads: usize,
}

impl Report {
    /// Of this run.
    #[must_use]
    pub fn new(run: &Run, seed: u64, threads: usize, took: Duration, processor: Duration) -> Self {
        let faults_by_kind = KINDS.iter().zip(&run.faults).map(|(kind, count)| (kind.name(), *count));
        let per_second = |time: Duration| {
            let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
            run.transactions.saturating_mul(1000) / millis
        };
        let text = |found: &super::run::Found| {
            let about =
                found.violation.transaction.map_or(String::new(), |number| format!(", transaction {number}"));
            format!("{} (seed {}{about}): {}", found.violation.invariant, found.seed, found.violation.what)
        };
        let mut report = Self {
            worlds: run.worlds,
            transactions: run.transactions,
            committed: run.committed,
            faults: run.faults.iter().sum(),
            faults_by_kind: faults_by_kind.collect(),
            situations: run.reached.situations().len(),
            never_seen: never_seen(&run.reached, run.transactions),
            missed: Vec::new(),
            violations: run.found.len(),
            violation_texts: run.found.iter().map(text).collect(),
            seed,
            trace: format!("{:016x}", run.hash),
            seconds: (took.as_secs_f64() * 10.0).round() / 10.0,
            transactions_per_second: per_second(took),
            transactions_per_core_second: per_second(processor),
            threads,
        };
        report.missed = report.missed_goals();
        report
    }

    /// The goals that a long run has to reach, and this one has not.
    fn missed_goals(&self) -> Vec<String> {
        if self.transactions < LONG {
            return Vec::new();
        }
        let mut missed = Vec::new();
        let mut goal = |reached: bool, words: String| {
            if !reached {
                missed.push(words);
            }
        };
        goal(
            self.faults >= FAULTS_EACH * self.transactions,
            format!(
                "{} faults in each transaction, of {FAULTS_EACH}",
                tenths(self.faults, self.transactions)
            ),
        );
        for (kind, count) in &self.faults_by_kind {
            let share = tenths(count * 100, self.faults);
            goal(
                count * 100 >= SHARE_OF_A_KIND * self.faults,
                format!("{kind}: {share} % of all faults, of {SHARE_OF_A_KIND} %"),
            );
        }
        goal(
            self.committed * 100 >= COMMITTED * self.transactions,
            format!("{} % committed, of {COMMITTED} %", tenths(self.committed * 100, self.transactions)),
        );
        let speed = self.transactions_per_core_second;
        goal(speed >= SPEED, format!("{speed} transactions in a second of a core, of {SPEED}"));
        missed
    }

    /// Whether everything that was promised was tried and reached, and nothing was violated.
    #[must_use]
    pub fn is_clean(&self, promised: u64) -> bool {
        let reached = self.never_seen.is_empty() && self.missed.is_empty();
        self.violations == 0 && reached && self.transactions >= promised
    }

    /// One line of JSON.
    ///
    /// # Panics
    /// Never: numbers and texts make JSON.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers and texts make JSON")
    }

    /// For people.
    #[must_use]
    pub fn text(&self, run: &Run) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["fault", "times", "of all"]);
        for (kind, count) in KINDS.iter().zip(&run.faults) {
            let share = format!("{} %", tenths(*count * 100, self.faults));
            table.add_row([kind.name().to_owned(), count.to_string(), share]);
        }
        let mut lines = vec![table.to_string()];
        lines.push(format!(
            "{} transactions in {} worlds, {} % committed, {} faults each, {} situations reached; {} s, {} transactions per second on {} \
             threads, {} for each second of a core",
            self.transactions,
            self.worlds,
            tenths(self.committed * 100, self.transactions),
            tenths(self.faults, self.transactions),
            self.situations,
            self.seconds,
            self.transactions_per_second,
            self.threads,
            self.transactions_per_core_second
        ));
        lines.extend(self.never_seen.iter().map(|what| format!("NEVER SEEN {what}")));
        lines.extend(self.missed.iter().map(|goal| format!("GOAL MISSED: {goal}")));
        for (text, found) in self.violation_texts.iter().zip(&run.found) {
            lines.push(format!("{}VIOLATION of {text}", found.trace));
            lines
                .push(format!("repeat it: prove simulate --transactions {IN_A_WORLD} --seed {}", found.seed));
        }
        lines.push(format!("{} violations (seed {}, trace {})", self.violations, self.seed, self.trace));
        lines.join("\n")
    }
}

/// A quotient with one digit behind the point.
fn tenths(of: u64, by: u64) -> String {
    let tenths = (of * 10).checked_div(by).unwrap_or(0);
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A_SECOND: Duration = Duration::from_secs(1);

    /// A run that reaches every goal.
    fn good() -> Run {
        Run {
            transactions: LONG,
            committed: LONG * 3 / 10,
            faults: vec![LONG * 5 / KINDS.len() as u64 + 1; KINDS.len()],
            ..Run::default()
        }
    }

    fn missed(run: &Run, processor: Duration) -> Vec<String> {
        Report::new(run, 1, 1, A_SECOND, processor).missed
    }

    #[test]
    fn a_long_run_says_which_goal_it_missed() {
        let (fast, slow) = (Duration::from_secs(50), Duration::from_secs(51));
        assert_eq!(missed(&good(), fast), Vec::<String>::new());
        assert_eq!(missed(&good(), slow), ["19607 transactions in a second of a core, of 20000"]);
        let few_commits = Run { committed: LONG * 3 / 10 - 1, ..good() };
        assert_eq!(missed(&few_commits, fast), ["29.9 % committed, of 30 %"]);
        let mut rare = good();
        rare.faults[1] += rare.faults[0];
        rare.faults[0] = 49_999;
        assert_eq!(missed(&rare, fast), ["message lost: 0.9 % of all faults, of 1 %"]);
        let few_faults = Run { faults: vec![LONG / 10; KINDS.len()], ..good() };
        assert_eq!(missed(&few_faults, fast), ["2.8 faults in each transaction, of 5"]);
        let short = Run { transactions: LONG - 1, committed: 0, ..few_faults };
        assert_eq!(missed(&short, slow), Vec::<String>::new());
    }
}
