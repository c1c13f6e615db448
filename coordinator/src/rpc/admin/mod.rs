//! What operators' tools ask.
//!
//! - `list`, `status`: what there is, and what is unresolved. `show`: one transaction, and what may be done about it.
//! - `act`: what an operator does: judged, put on record, done. `orphans`: the same for what nobody answers for.
//! - `participants`, `inspect`: who takes part, and what their databases say. `audit`, `export`: what is on record.
//! - `info`: from a transaction to what is told of it.

pub(super) mod act;
pub(super) mod audit;
pub(super) mod export;
mod info;
pub(super) mod inspect;
pub(super) mod list;
mod orphans;
pub(super) mod participants;
pub(super) mod show;
pub(super) mod status;

pub(crate) use info::{audit_entry, recorded_info};

/// How many entries a question gets if it does not say how many it wants, and at most.
const LISTED_BY_DEFAULT: u32 = 100;
const MOST_LISTED: u32 = 1000;

fn limit(asked: u32) -> u32 {
    if asked == 0 { LISTED_BY_DEFAULT } else { asked.min(MOST_LISTED) }
}

fn wide(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
