//! The one place of the harness that reads clocks.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{Failed, Result};

/// How often a condition is looked at while waiting for it.
const GLANCE: Duration = Duration::from_millis(3);

/// This moment, for measuring.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn now() -> Instant {
    Instant::now()
}

/// Microseconds since 1970: comparable between the processes of one machine, which is all it is used for.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Waits until `look` finds something, at most `patience`. How long it took comes with it.
///
/// # Errors
/// Names `what` was waited for.
pub fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<(T, Duration)> {
    let start = now();
    loop {
        if let Some(found) = look()? {
            return Ok((found, start.elapsed()));
        }
        if start.elapsed() > patience {
            return Err(Failed::new(format!("waited {patience:?} for {what}")));
        }
        thread::sleep(GLANCE);
    }
}
