//! Which end a transaction can have, beside what is on record of it: the same in every log.

use crate::protocol::outcome::Outcome;
use crate::protocol::record::{DecisionKind, DecisionRecord, EndRecord};

/// What is on record of an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// As decided.
    AsDecided,
    /// With a heuristic outcome.
    Heuristically,
}

/// What a record of this outcome is.
pub(super) fn how_ended(outcome: Outcome) -> Ended {
    match outcome {
        Outcome::Heuristic(_) => Ended::Heuristically,
        Outcome::Committed | Outcome::RolledBack | Outcome::NothingToCommit | Outcome::Unknown => {
            Ended::AsDecided
        }
    }
}

/// Whether an end adds to what is on record. One that is there already changes nothing when it comes again, with one exception: a
/// branch may turn out to have ended differently long after its transaction did, and another one after that. Such a record
/// always replaces what is there, and nothing but such a record ever replaces it.
pub(super) fn says_more(before: Option<Ended>, now: Ended) -> bool {
    match (before, now) {
        (None, _) | (Some(_), Ended::Heuristically) => true,
        (Some(Ended::AsDecided | Ended::Heuristically), Ended::AsDecided) => false,
    }
}

/// Whether a transaction with this decision can have this end. Anything else would be a decision that changed.
pub(super) fn can_end(decision: Option<&DecisionRecord>, end: &EndRecord) -> bool {
    match end.outcome {
        Outcome::Unknown => false,
        Outcome::Heuristic(_) => true,
        Outcome::Committed => decision.is_some(),
        Outcome::RolledBack | Outcome::NothingToCommit => {
            decision.is_none_or(|decision| decision.kind == DecisionKind::OnePhaseIntent)
        }
    }
}
