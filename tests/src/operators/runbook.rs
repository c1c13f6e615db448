//! The commands of the runbook's pages, run in their order as they stand there.

use super::stage::World;
use crate::harness::{Failed, Result};

/// A page of the runbook: its name, and its text.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// The name of its file.
    pub name: &'static str,
    text: &'static str,
}

macro_rules! page {
    ($name:literal) => {
        Page { name: $name, text: include_str!(concat!("../../../docs/runbook/", $name)) }
    };
}

/// For what is past its deadline and not decided.
pub const UNDECIDED: Page = page!("undecided.md");
/// For what is decided and has not arrived.
pub const UNDELIVERED: Page = page!("undelivered.md");
/// For what nobody answers for.
pub const ORPHAN: Page = page!("orphan.md");
/// For what ended differently.
pub const HEURISTIC: Page = page!("heuristic.md");

/// For each alert, in the situation that it is about.
pub const UNDECIDED_ALERTS: [Page; 1] = [page!("alerts/LockstepUndecided.md")];
/// See [`UNDECIDED_ALERTS`].
pub const UNDELIVERED_ALERTS: [Page; 4] = [
    page!("alerts/LockstepRecoveryStalled.md"),
    page!("alerts/LockstepUndelivered.md"),
    page!("alerts/LockstepUndeliveredForLong.md"),
    page!("alerts/LockstepResourceWithoutInstance.md"),
];
/// See [`UNDECIDED_ALERTS`]. A log that was restored is one that nothing is begun with, too.
pub const ORPHAN_ALERTS: [Page; 2] =
    [page!("alerts/LockstepOrphan.md"), page!("alerts/LockstepNotAccepting.md")];
/// See [`UNDECIDED_ALERTS`].
pub const HEURISTIC_ALERTS: [Page; 1] = [page!("alerts/LockstepHeuristic.md")];
/// Of a log that is slow, has little room left, or does not answer, and of a coordinator that does not.
pub const LOG_ALERTS: [Page; 4] = [
    page!("alerts/LockstepSlowLog.md"),
    page!("alerts/LockstepLogDiskLow.md"),
    page!("alerts/LockstepLogUnreachable.md"),
    page!("alerts/LockstepDown.md"),
];

/// All pages.
#[must_use]
pub fn pages() -> Vec<Page> {
    let situations = [UNDECIDED, UNDELIVERED, ORPHAN, HEURISTIC];
    let alerts: [&[Page]; 5] =
        [&UNDECIDED_ALERTS, &UNDELIVERED_ALERTS, &ORPHAN_ALERTS, &HEURISTIC_ALERTS, &LOG_ALERTS];
    [&situations[..]].into_iter().chain(alerts).flatten().copied().collect()
}

impl Page {
    /// The arguments of each command that it shows, for this transaction and this resource manager.
    #[must_use]
    pub fn commands(&self, id: &str, name: &str) -> Vec<Vec<String>> {
        let shown = self.text.lines().filter_map(|line| line.strip_prefix("$ lockstep "));
        shown.map(|line| words(&line.replace("$ID", id).replace("$NAME", name))).collect()
    }

    /// Runs all of them. A dry run may be refused: then it says what to do instead; and who asks whether a coordinator is ready
    /// may be told that it is not.
    ///
    /// # Errors
    /// If one of them fails.
    pub fn follow(&self, world: &World<'_>, id: &str, name: &str) -> Result<()> {
        const REFUSED: i32 = 4;
        const NOT_READY: i32 = 6;
        let commands = self.commands(id, name);
        if commands.is_empty() {
            return Err(Failed::new(format!("{} shows no commands", self.name)));
        }
        for command in commands {
            let arguments: Vec<&str> = command.iter().map(String::as_str).collect();
            let ran = world.lockstep(&arguments)?;
            let told = (arguments.contains(&"--dry-run") && ran.code == REFUSED)
                || (arguments == ["health"] && ran.code == NOT_READY);
            if ran.code != 0 && !told {
                return Err(Failed::new(format!("{}: lockstep {arguments:?}: {ran:?}", self.name)));
            }
        }
        Ok(())
    }
}

/// The words of a command, as a shell takes them apart: what is in double quotes is one.
fn words(line: &str) -> Vec<String> {
    let parts = line.split('"').enumerate();
    let words = parts.map(|(number, part)| {
        let quoted = number % 2 == 1;
        if quoted { vec![part.to_owned()] } else { part.split_whitespace().map(str::to_owned).collect() }
    });
    words.flatten().collect()
}
