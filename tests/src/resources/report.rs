//! What `prove resources` prints: a table for people, one object for programs.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::{Table, presets};
use serde::Serialize;

use super::matrix::{Cell, Skipped};
use super::promise::{DATABASES, Fault, Way};
use crate::harness::books::Database;
use crate::trial::verdict::Verdict;

/// Everything that was tried, and what came of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Cells that were tried.
    cells: usize,
    /// Of these, cells in which something was to fail.
    cells_with_a_fault: usize,
    /// Faults that struck: statements that the proxy has stopped, processes reaped with signal 9 that had left a marker.
    faults: u32,
    /// Transactions that were begun.
    transactions: usize,
    /// Cells over each kind of database.
    databases: BTreeMap<&'static str, usize>,
    /// Kinds of cells that cannot be, by the reason.
    skipped: BTreeMap<&'static str, Vec<String>>,
    /// How many things were wrong.
    violations: usize,
    /// What was wrong, each with its cell.
    violation_texts: Vec<String>,
    /// The longest that anything was in doubt after the last fault.
    in_doubt_ms_max: u128,
    /// What repeats it.
    seed: u64,
    /// How long it took.
    seconds: f64,
}

impl Report {
    /// Of these cells and their verdicts.
    #[must_use]
    pub fn new(
        cells: &[Cell],
        verdicts: &[Verdict],
        skipped: Vec<Skipped>,
        seed: u64,
        took: Duration,
    ) -> Self {
        let texts = verdicts.iter().flat_map(|verdict| {
            verdict.violations.iter().map(move |violation| format!("{}: {violation}", verdict.cell))
        });
        let violation_texts: Vec<String> = texts.collect();
        let mut by_reason: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
        for Skipped { cells, reason } in skipped {
            by_reason.entry(reason).or_default().push(cells);
        }
        let mut databases = BTreeMap::new();
        for cell in cells {
            *databases.entry(cell.database.name()).or_default() += 1;
        }
        let in_doubt = verdicts.iter().map(|verdict| verdict.in_doubt.as_millis());
        Self {
            cells: verdicts.len(),
            cells_with_a_fault: cells.iter().filter(|cell| cell.fault != Fault::Clean).count(),
            faults: verdicts.iter().map(|verdict| verdict.faults).sum(),
            transactions: verdicts.iter().map(|verdict| verdict.transactions).sum(),
            databases,
            skipped: by_reason,
            violations: violation_texts.len(),
            violation_texts,
            in_doubt_ms_max: in_doubt.max().unwrap_or_default(),
            seed,
            seconds: (took.as_secs_f64() * 10.0).round() / 10.0,
        }
    }

    /// Whether everything that was promised was tried, every fault struck, and nothing was wrong. (A fault that did not strike is a
    /// violation of its cell.)
    #[must_use]
    pub fn is_clean(&self, promised: usize) -> bool {
        let all_struck = self.faults as usize >= self.cells_with_a_fault;
        self.violations == 0 && self.cells == promised && self.cells > 0 && all_struck
    }

    /// One line of JSON.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers and texts make JSON")
    }

    /// For people, in a few lines.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut lines = vec![format!(
            "{} cells, {} faults struck, {} transactions, in {} s; in doubt after a fault: {} ms at the most",
            self.cells, self.faults, self.transactions, self.seconds, self.in_doubt_ms_max
        )];
        let skipped = self.skipped.iter();
        lines.extend(skipped.map(|(reason, cells)| format!("no {}: {reason}", cells.join(", "))));
        lines.extend(self.violation_texts.iter().map(|text| format!("VIOLATION {text}")));
        lines.push(format!("{} violations (seed {})", self.violations, self.seed));
        lines.join("\n")
    }
}

/// One row for each kind of database and way, one column for each fault: how many cells, and how many of them went wrong.
#[must_use]
pub fn table(cells: &[Cell], verdicts: &[Verdict], skipped: &[Skipped]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["database", "way"].into_iter().chain(Fault::ALL.map(Fault::name)));
    for database in DATABASES {
        for way in Way::ALL {
            let texts = Fault::ALL.map(|fault| field(cells, verdicts, skipped, (database, way, fault)));
            let names = [database.name(), way.name()].map(str::to_owned);
            table.add_row(names.into_iter().chain(texts));
        }
    }
    table.to_string()
}

fn field(cells: &[Cell], verdicts: &[Verdict], skipped: &[Skipped], kind: (Database, Way, Fault)) -> String {
    let (database, way, fault) = kind;
    let name = format!("{} / {} / {}", database.name(), way.name(), fault.name());
    if skipped.iter().any(|skipped| skipped.cells == name) {
        return "cannot be".to_owned();
    }
    let of_kind = cells.iter().zip(verdicts);
    let of_kind: Vec<&Verdict> = of_kind
        .filter(|(cell, _)| (cell.database, cell.way, cell.fault) == kind)
        .map(|(_, verdict)| verdict)
        .collect();
    let wrong = of_kind.iter().filter(|verdict| !verdict.violations.is_empty()).count();
    match (of_kind.len(), wrong) {
        (0, _) => "-".to_owned(),
        (all, 0) => format!("{all} ok"),
        (all, wrong) => format!("{wrong} of {all} WRONG"),
    }
}
