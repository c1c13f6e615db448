//! The one place of the engine that reads a clock.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::input::Now;

/// Reads both clocks at once.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock whose monotonic time begins now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// This moment.
    #[must_use]
    pub fn now(&self) -> Now {
        Now { monotonic: self.start.elapsed(), unix_ms: unix_ms() }
    }

    /// The monotonic time as tokio's timers want it.
    #[must_use]
    pub fn instant(&self, monotonic: super::delivery::Monotonic) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.start + monotonic)
    }
}

/// Milliseconds since 1970, for people and for gtrids. 0 on a clock that stands before 1970.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
