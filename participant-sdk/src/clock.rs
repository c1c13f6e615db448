//! The one place where this crate reads a clock, draws random bits, and waits before it tries again.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A clock that never goes back. For deadlines and timers of this process.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Milliseconds since 1970. For people: nothing depends on it.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Random bits, unguessable.
pub(crate) fn random_bits() -> u64 {
    rand::random()
}

/// Any number below this one, which is at least 1.
pub(crate) fn random_below(many: usize) -> usize {
    rand::random_range(0..many)
}

/// 16 of them as bytes.
pub(crate) fn random_bytes() -> [u8; 16] {
    rand::random()
}

/// How long to wait before the next attempt, where `failed` have failed.
///
/// Doubles from `first` up to `cap`, then takes a random part of it between a half and the whole: a thousand clients
/// that lost one coordinator do not come back in the same millisecond.
pub(crate) fn backoff(failed: u32, first: Duration, cap: Duration) -> Duration {
    let doubled = first.saturating_mul(1 << failed.min(16));
    doubled.min(cap).mul_f64(rand::random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backoff_grows_to_its_cap_and_never_past_it() {
        let (first, cap) = (Duration::from_millis(10), Duration::from_secs(1));
        for failed in 0..80 {
            let wait = backoff(failed, first, cap);
            assert!(wait <= cap && wait >= first / 2, "{failed}: {wait:?}");
        }
        assert!(backoff(40, first, cap) >= cap / 2);
    }
}
