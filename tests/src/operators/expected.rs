//! What is promised: each action in each situation is done, or refused with this code.

use super::report::DONE;
use super::stage::LEDGER;

/// What a transaction's commands are called, and the arguments behind the id.
pub(super) const ACTIONS: [(&str, &[&str], &[&str]); 9] = [
    ("retry", &["tx", "retry"], &[]),
    ("pause", &["tx", "pause"], &[]),
    ("resume", &["tx", "resume"], &[]),
    ("rollback", &["tx", "rollback"], &[]),
    ("commit", &["tx", "commit"], &[]),
    ("abandon", &["tx", "abandon"], &["--resource", LEDGER]),
    ("ack", &["tx", "ack"], &[]),
    ("resolve --commit", &["orphans", "resolve"], &["--commit"]),
    ("resolve --rollback", &["orphans", "resolve"], &["--rollback"]),
];

/// The codes with which an action is refused in one of the situations.
pub const REFUSALS: [&str; 21] = [
    "LS0412", "LS0413", "LS0414", "LS0415", "LS0416", "LS0417", "LS0418", "LS0419", "LS0420", "LS0421",
    "LS0422", "LS0423", "LS0424", "LS0425", "LS0426", "LS0427", "LS0428", "LS0429", "LS0430", "LS0431",
    "LS0433",
];

/// What is promised of one situation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) situation: &'static str,
    /// In the order of [`ACTIONS`].
    pub(super) expected: [&'static str; 9],
    /// Codes whose pages' commands are not done here, and what they come to instead.
    pub(super) pages: &'static [(&'static str, &'static str)],
}

impl Row {
    const fn new(situation: &'static str, expected: [&'static str; 9]) -> Self {
        Self { situation, expected, pages: &[] }
    }
}

pub(super) const OPEN: Row = Row::new(
    "open, before its deadline",
    ["LS0417", "LS0417", "LS0417", DONE, "LS0415", "LS0417", "LS0419", "LS0422", "LS0422"],
);
pub(super) const UNDECIDED: Row = Row {
    situation: "undecided",
    expected: ["LS0416", "LS0416", "LS0416", "LS0416", "LS0415", "LS0416", "LS0419", "LS0422", "LS0422"],
    pages: &[("LS0415", "LS0416")],
};
pub(super) const UNDELIVERED: Row =
    Row::new("undelivered", [DONE, DONE, DONE, "LS0412", "LS0412", DONE, "LS0419", "LS0422", "LS0422"]);
pub(super) const ONE_PHASE: Row = Row::new(
    "undelivered, one phase",
    [DONE, DONE, DONE, "LS0413", "LS0413", DONE, "LS0419", "LS0422", "LS0422"],
);
pub(super) const ROLLING_BACK: Row = Row::new(
    "undelivered, a rollback",
    [DONE, DONE, DONE, "LS0414", "LS0414", DONE, "LS0419", "LS0422", "LS0422"],
);
pub(super) const ENDED: Row = Row::new(
    "ended",
    ["LS0418", "LS0418", "LS0418", "LS0418", "LS0418", "LS0418", "LS0419", "LS0418", "LS0418"],
);
pub(super) const HEURISTIC: Row = Row::new(
    "heuristic",
    ["LS0421", "LS0421", "LS0421", "LS0421", "LS0421", "LS0421", DONE, "LS0421", "LS0421"],
);
pub(super) const ACKNOWLEDGED: Row = Row::new(
    "heuristic, acknowledged",
    ["LS0421", "LS0421", "LS0421", "LS0421", "LS0421", "LS0421", "LS0420", "LS0421", "LS0421"],
);
pub(super) const COMMITTED_ELSEWHERE: Row = Row::new(
    "orphan, committed elsewhere",
    ["LS0423", "LS0423", "LS0423", "LS0424", "LS0423", "LS0423", "LS0423", DONE, "LS0424"],
);
pub(super) const NOT_COMMITTED: Row = Row::new(
    "orphan, not committed",
    ["LS0423", "LS0423", "LS0423", "LS0423", "LS0425", "LS0423", "LS0423", "LS0425", DONE],
);
pub(super) const OTHER_CLUSTER: Row = Row::new("orphan, of another cluster", ["LS0427"; 9]);
pub(super) const OTHER_NODE: Row = Row::new("at another node", ["LS0428"; 9]);
