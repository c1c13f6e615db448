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

/// The processor time that this process has used so far, on all cores, in hundredths of a second as the kernel counts it.
#[must_use]
pub fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The program's name is in parentheses and may have spaces; what follows it are numbers (proc(5)): user and system time are the
    // 14th and 15th field of all.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok());
    Duration::from_millis(ticks.sum::<u64>() * 10)
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
