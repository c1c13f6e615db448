//! The commands of the runbook's pages, run in their order as they stand there.

use super::report::{DONE, verdict};
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
    /// Runs each command that it shows, for this transaction and this resource manager. It is done; but for those that come to something else
    /// here, which are named as they stand there.
    ///
    /// # Errors
    /// If one of them comes to something else.
    pub fn follow(&self, world: &World<'_>, id: &str, name: &str, otherwise: &[(&str, &str)]) -> Result<()> {
        let shown: Vec<_> = self.text.lines().filter_map(|line| line.strip_prefix("$ lockstep ")).collect();
        if shown.is_empty() {
            return Err(Failed::new(format!("{} shows no commands", self.name)));
        }
        for line in shown {
            let expected =
                otherwise.iter().find(|(command, _)| *command == line).map_or(DONE, |(_, verdict)| verdict);
            let command = words(&line.replace("$ID", id).replace("$NAME", name));
            let arguments: Vec<&str> = command.iter().map(String::as_str).collect();
            let ran = world.lockstep(&arguments)?;
            if verdict(&ran) != expected {
                let name = self.name;
                return Err(Failed::new(format!(
                    "{name}: lockstep {arguments:?}, and not {expected}: {ran:?}"
                )));
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
