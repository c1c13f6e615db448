//! How far a run is, on stderr: a bar on a terminal, a line for each cell elsewhere. What goes wrong is said at once.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::verdict::Verdict;

const BAR: &str = "{bar:40} {pos} of {len} cells, {elapsed}, {msg}";

/// A run's progress.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    lines: bool,
    cells: usize,
}

impl Progress {
    /// Of a run of so many cells.
    #[must_use]
    pub fn start(cells: usize) -> Self {
        let lines = !std::io::stderr().is_terminal();
        let target = if lines { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(u64::try_from(cells).ok(), target);
        bar.set_style(ProgressStyle::with_template(BAR).expect("the template is well-formed"));
        Self { bar, lines, cells }
    }

    /// A cell has ended, the `done`th.
    pub fn cell(&self, done: usize, verdict: &Verdict) {
        self.bar.inc(1);
        self.bar.set_message(verdict.cell.clone());
        if self.lines {
            let mark = if verdict.violations.is_empty() { "ok" } else { "WRONG" };
            let seconds = verdict.took.as_secs_f64();
            eprintln!("{done:>4}/{} {mark:<5} {seconds:>4.1} s  {}", self.cells, verdict.cell);
        }
        if let Some(complaint) = verdict.complaint() {
            self.bar.suspend(|| eprintln!("{complaint}"));
        }
    }

    /// Leaves the place to the report.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
