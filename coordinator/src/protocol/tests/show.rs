//! How tests write what the protocol asks for.

use lockstep_proto::Bqual;

use super::names::{short, shorten};
use crate::protocol::event::Message;
use crate::protocol::outcome::Outcome;
use crate::protocol::record::{DecisionKind, EndRecord, LogWrite};

pub(crate) fn write(write: &LogWrite) -> String {
    match write {
        LogWrite::ForceDecision(decision) => {
            let kind = match decision.kind {
                DecisionKind::Commit => "commit",
                DecisionKind::OnePhaseIntent => "one-phase intent",
            };
            format!("force {kind} of {}", bquals(&decision.branches))
        }
        LogWrite::ForceEnd(record) => format!("force {}", end(record)),
        LogWrite::LazyEnd(record) => format!("lazily {}", end(record)),
    }
}

fn bquals(bquals: &[Bqual]) -> String {
    bquals.iter().map(short).collect::<Vec<_>>().join(" ")
}

fn end(record: &EndRecord) -> String {
    let branches = record.branches.iter().map(|(bqual, end)| format!(" {}={}", short(bqual), end.name()));
    let detail =
        if record.detail.is_empty() { String::new() } else { format!(" ({})", shorten(&record.detail)) };
    format!("end {}{detail}:{}", outcome(record.outcome), branches.collect::<String>())
}

pub(crate) fn message(message: Message) -> String {
    match message {
        Message::Enlisted => "enlisted".into(),
        Message::EnlistRefused(why) => format!("enlist refused: {why:?}"),
        Message::Prepare => "prepare".into(),
        Message::Commit => "commit".into(),
        Message::Rollback => "roll back".into(),
        Message::CommitOnePhase => "commit in one phase".into(),
    }
}

pub(crate) fn outcome(outcome: Outcome) -> String {
    match outcome {
        Outcome::Committed => "committed".into(),
        Outcome::RolledBack => "rolled back".into(),
        Outcome::NothingToCommit => "nothing to commit".into(),
        Outcome::Heuristic(kind) => format!("heuristic {kind:?}").to_lowercase(),
        Outcome::Unknown => "unknown".into(),
    }
}
