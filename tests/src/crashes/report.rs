//! What `prove crashes` prints: a table for people, one object for programs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use comfy_table::{Table, presets};
use serde::Serialize;

use super::matrix::{Cell, Skipped};
use super::points::Way;
use crate::trial::verdict::Verdict;

/// Everything that was tried, and what came of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Crash points that were tried.
    points: usize,
    /// Cells that were tried.
    cells: usize,
    /// Those in which a process dies at the point, and again while it comes back.
    double: usize,
    /// Faults that fired: processes reaped with signal 9 that had left a marker at the point.
    faults: u32,
    /// Transactions that were begun.
    transactions: usize,
    /// Cells that cannot be, by the reason.
    skipped: BTreeMap<&'static str, Vec<String>>,
    /// How many things were wrong.
    violations: usize,
    /// What was wrong, each with its cell.
    violation_texts: Vec<String>,
    /// The longest that anything was in doubt after a restart.
    in_doubt_ms_max: u128,
    /// Half of the cells took less than this.
    in_doubt_ms_median: u128,
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
        let points: BTreeSet<&str> = cells.iter().map(|cell| cell.point.name).collect();
        let texts = verdicts.iter().flat_map(|verdict| {
            verdict.violations.iter().map(move |violation| format!("{}: {violation}", verdict.cell))
        });
        let violation_texts: Vec<String> = texts.collect();
        let mut by_reason: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
        for Skipped { cell, reason } in skipped {
            by_reason.entry(reason).or_default().push(cell);
        }
        let mut in_doubt: Vec<u128> = verdicts.iter().map(|verdict| verdict.in_doubt.as_millis()).collect();
        in_doubt.sort_unstable();
        Self {
            points: points.len(),
            cells: verdicts.len(),
            double: cells.iter().filter(|cell| cell.then.is_some()).count(),
            faults: verdicts.iter().map(|verdict| verdict.faults).sum(),
            transactions: verdicts.iter().map(|verdict| verdict.transactions).sum(),
            skipped: by_reason,
            violations: violation_texts.len(),
            violation_texts,
            in_doubt_ms_max: in_doubt.last().copied().unwrap_or_default(),
            in_doubt_ms_median: in_doubt.get(in_doubt.len() / 2).copied().unwrap_or_default(),
            seed,
            seconds: (took.as_secs_f64() * 10.0).round() / 10.0,
        }
    }

    /// Whether everything that was promised was tried, every fault fired, and nothing was wrong. (A fault that did not fire is a
    /// violation of its cell.)
    #[must_use]
    pub fn is_clean(&self, promised: usize) -> bool {
        self.violations == 0 && self.cells == promised && self.cells > 0 && self.faults as usize >= self.cells
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
            "{} crash points, {} cells, {} of them with a second crash, {} faults fired, {} transactions, in {} s; in doubt after a restart: {} ms at the most, {} ms \
             in the middle",
            self.points,
            self.cells,
            self.double,
            self.faults,
            self.transactions,
            self.seconds,
            self.in_doubt_ms_max,
            self.in_doubt_ms_median
        )];
        let skipped = self.skipped.iter();
        lines.extend(skipped.map(|(reason, cells)| format!("{} cells cannot be: {reason}", cells.len())));
        lines.extend(self.violation_texts.iter().map(|text| format!("VIOLATION {text}")));
        lines.push(format!("{} violations (seed {})", self.violations, self.seed));
        lines.join("\n")
    }
}

/// One row for each point, one column for each way: each kind of database, and whether all was well.
#[must_use]
pub fn table(cells: &[Cell], verdicts: &[Verdict]) -> String {
    let mut rows: Vec<(&str, BTreeMap<Way, String>)> = Vec::new();
    for (cell, verdict) in cells.iter().zip(verdicts) {
        if rows.last().is_none_or(|(name, _)| *name != cell.point.name) {
            rows.push((cell.point.name, BTreeMap::new()));
        }
        let (_, ways) = rows.last_mut().expect("it was just put in");
        let mark = if verdict.violations.is_empty() { "ok" } else { "WRONG" };
        let twice = if cell.then.is_some() { " twice" } else { "" };
        let text = ways.entry(cell.way).or_default();
        let gap = if text.is_empty() { "" } else { ", " };
        *text = format!("{text}{gap}{}{twice} {mark}", cell.database.name());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(std::iter::once("crash point").chain(Way::ALL.map(Way::name)));
    for (name, ways) in rows {
        let texts = Way::ALL.map(|way| ways.get(&way).cloned().unwrap_or_else(|| "-".to_owned()));
        table.add_row(std::iter::once(name.to_owned()).chain(texts));
    }
    table.to_string()
}
