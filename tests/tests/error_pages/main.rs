//! Every error code, met for real: the situation is made, what a user is told names the code, and the commands on its page in docs/errors are
//! run there.
//!
//! - [`book`]: what was met, and the pages' commands;
//! - [`alone`]: commands that fail by themselves; [`serving`]: coordinators that do not start, or cannot go on;
//!   [`running`]: what a running coordinator refuses; [`played`]: the same, with a participant that the test plays;
//!   [`shared`]: logs in PostgreSQL.
//!
//! What the operators' matrix refuses (`lockstep_tests::operators::matrix`) is met there, and its pages are followed there too.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

mod alone;
mod book;
mod played;
mod running;
mod serving;
mod shared;

use std::collections::BTreeSet;

use lockstep_coordinator::codes::Code;
use lockstep_tests::operators::expected;

/// Codes that no test here can have a user meet, and why.
const NOT_MET: &[(Code, &str)] = &[
    (
        Code::StrangeAnswer,
        "a coordinator that is newer than this tool: coordinator/tests/commands.rs plays one",
    ),
    (Code::Stopping, "the moment between a coordinator's last answer and its end"),
    (Code::ClockBehind, "the machine's clock would have to be set back"),
];

#[test]
fn every_code_is_met() {
    let met = [alone::MEETS, serving::MEETS, running::MEETS, played::MEETS, shared::MEETS].concat();
    let mut met: BTreeSet<Code> = met.into_iter().collect();
    met.extend(Code::ALL.iter().filter(|code| expected::REFUSALS.contains(&code.to_string().as_str())));
    let missing: Vec<Code> = Code::ALL.iter().filter(|code| !met.contains(code)).copied().collect();
    let excused: Vec<Code> = NOT_MET.iter().map(|(code, _)| *code).collect();
    assert_eq!(missing, excused);
}
