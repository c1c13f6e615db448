//! What came of a cell.

use std::time::Duration;

use super::world::World;
use crate::harness::Result;

/// What came of a cell.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The cell.
    pub cell: String,
    /// What tries it again: arguments of `prove`.
    again: String,
    /// How many faults fired, each with its proof.
    pub faults: u32,
    /// How many transactions were begun.
    pub transactions: usize,
    /// How long something was in doubt after the last fault.
    pub in_doubt: Duration,
    /// How long the cell took.
    pub took: Duration,
    /// What was wrong.
    pub violations: Vec<String>,
    /// The ends of the logs, if something was wrong.
    logs: String,
}

impl Verdict {
    /// Nothing yet. `again`: the arguments of `prove` that try this cell again.
    #[must_use]
    pub fn of(cell: String, again: String) -> Self {
        Self {
            cell,
            again,
            faults: 0,
            transactions: 0,
            in_doubt: Duration::ZERO,
            took: Duration::ZERO,
            violations: Vec::new(),
            logs: String::new(),
        }
    }

    /// The end of a cell: keeps its logs if something was wrong, and ends its processes.
    ///
    /// # Errors
    /// If they can't be ended.
    pub fn conclude(&mut self, tried: Result<()>, world: World) -> Result<()> {
        self.violations.extend(tried.err().map(|failed| failed.to_string()));
        if !self.violations.is_empty() {
            self.logs = world.logs();
        }
        world.remove()
    }

    /// What was wrong, and the command that tries it again; nothing if nothing was.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        let again = format!("again: cargo run --release -p lockstep-tests --bin prove -- {}", self.again);
        let wrong = self.violations.join("\n  ");
        (!wrong.is_empty()).then(|| format!("{}:\n  {wrong}\n{}\n{again}", self.cell, self.logs))
    }
}
