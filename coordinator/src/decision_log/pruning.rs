//! Which transactions a prune may remove, and what may begin beside it (P7): the same in every log.

use lockstep_proto::museum::mutated;

use super::{KnownResourceManager, PruneLimits};

/// The first time, in milliseconds, of which transactions are kept. `None` while a resource manager has not yet said what
/// it holds.
pub(super) fn first_kept_ms(limits: &PruneLimits, known: &[KnownResourceManager]) -> Option<u64> {
    if mutated("P7-prunes-above-the-floors") {
        return Some(limits.below.unix_ms().min(limits.ended_before_ms));
    }
    // What was retired holds nothing that anybody waits for (P28).
    known
        .iter()
        .filter(|manager| !manager.retired)
        .map(|manager| manager.floor.map(|floor| floor.unix_ms()))
        .try_fold(limits.below.unix_ms().min(limits.ended_before_ms), |ms, floor| Some(ms.min(floor?)))
}

/// The first time, in milliseconds, of what may begin: above the horizon, and not below a floor of these.
pub(super) fn begins_from_ms(horizon_ms: u64, known: &[KnownResourceManager]) -> u64 {
    let floors = known.iter().filter_map(|manager| manager.floor).map(|floor| floor.unix_ms());
    floors.fold(horizon_ms + 1, u64::max)
}

/// What is lower than the keys of all transactions begun at `unix_ms` or later, and above all others.
pub(super) fn first_key_at(unix_ms: u64) -> Vec<u8> {
    // A gtrid's first 48 bits are its time.
    const NEWEST: u64 = (1 << 48) - 1;
    unix_ms.min(NEWEST).to_be_bytes()[2..].to_vec()
}
