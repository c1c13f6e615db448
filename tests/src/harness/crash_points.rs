//! SIGKILL at a named place, and the proof that it was there.
//!
//! The code under test has `fail::fail_point!("name")` between effects that must not be one. A process that is started with
//! a [`Fuse`] kills itself when it passes that point for the nth time, after it has written a marker: a cell counts only if
//! the process was reaped with signal 9 *and* the marker is there. A point that was renamed or is never reached shows as a
//! fault that did not fire, not as a test that passes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::process::kill_this_process;
use super::{Failed, Result, clock};

/// `<point>` or `<point>:<nth>`: where the process is to kill itself.
pub const POINT_VARIABLE: &str = "LOCKSTEP_TEST_CRASH_POINT";
/// The file that it writes before it does.
pub const MARKER_VARIABLE: &str = "LOCKSTEP_TEST_CRASH_MARKER";

/// `<point>:<milliseconds>`: where the process is to be slow, each time.
pub const SLOW_VARIABLE: &str = "LOCKSTEP_TEST_SLOW_POINT";

/// `<point>:<path>`: where the process is to wait for as long as there is a file at this path.
pub const HOLD_VARIABLE: &str = "LOCKSTEP_TEST_HOLD_POINT";

/// `<point>`: where the process is to panic, as it would of a bug.
pub const PANIC_VARIABLE: &str = "LOCKSTEP_TEST_PANIC_POINT";

/// How often whoever is held looks whether it may go on.
const HOLD_LOOK: Duration = Duration::from_millis(10);

/// Has `command` start a process that waits at this point whenever it passes it: what else happens meanwhile, happens in
/// between the two effects that the point is between.
pub fn slow_down(command: &mut Command, point: &str, wait: Duration) {
    command.env(SLOW_VARIABLE, format!("{point}:{}", wait.as_millis()));
}

/// Has `command` start a process that waits at this point for as long as there is a file at `path`: a test decides how long something
/// is under way, however slow the machine is.
pub fn hold(command: &mut Command, point: &str, path: &Path) {
    command.env(HOLD_VARIABLE, format!("{point}:{}", path.display()));
}

/// A crash that a process is to be started with.
#[derive(Debug, Clone)]
pub struct Fuse {
    /// The point's name.
    pub point: String,
    /// At which pass: from 1.
    pub nth: u32,
    /// Where the process leaves its marker. Each fuse has its own.
    pub marker: PathBuf,
}

impl Fuse {
    /// Has `command` start a process with this crash in it.
    pub fn arm(&self, command: &mut Command) {
        command
            .env(POINT_VARIABLE, format!("{}:{}", self.point, self.nth))
            .env(MARKER_VARIABLE, &self.marker);
    }

    /// When the point was reached, in microseconds since 1970; `None` if it was not.
    #[must_use]
    pub fn fired_at(&self) -> Option<u64> {
        let marker = fs::read_to_string(&self.marker).ok()?;
        let (point, at) = marker.trim_end().split_once(' ')?;
        (point == self.point).then(|| at.parse().ok())?
    }
}

/// In the process that is to die or to be slow: sets up what its environment asks for, if anything. To be called before
/// anything else of a role runs.
///
/// # Errors
/// If the environment asks for something that cannot be.
pub fn arm_from_environment() -> Result<()> {
    if let Ok(asked) = std::env::var(SLOW_VARIABLE) {
        let (point, millis) =
            asked.split_once(':').ok_or_else(|| Failed::new(format!("{SLOW_VARIABLE}={asked}")))?;
        let wait = millis.parse().map_err(Failed::because(format!("{SLOW_VARIABLE}={asked}")))?;
        let wait = Duration::from_millis(wait);
        // Only who waits there is held up: other tasks of the same worker go on elsewhere.
        fail::cfg_callback(point, move || tokio::task::block_in_place(|| std::thread::sleep(wait)))
            .map_err(|why| Failed::new(format!("{SLOW_VARIABLE}={asked}: {why}")))?;
    }
    if let Ok(asked) = std::env::var(HOLD_VARIABLE) {
        let wrong = |why: &str| Failed::new(format!("{HOLD_VARIABLE}={asked}: {why}"));
        let (point, path) = asked.split_once(':').ok_or_else(|| wrong("no path"))?;
        let path = PathBuf::from(path);
        // In place: what else this thread of the runtime has to do goes on elsewhere.
        let wait = move || {
            tokio::task::block_in_place(|| {
                while path.exists() {
                    std::thread::sleep(HOLD_LOOK);
                }
            });
        };
        fail::cfg_callback(point, wait).map_err(|why| wrong(&why))?;
    }
    if let Ok(point) = std::env::var(PANIC_VARIABLE) {
        fail::cfg(point.as_str(), "panic")
            .map_err(|why| Failed::new(format!("{PANIC_VARIABLE}={point}: {why}")))?;
    }
    let Ok(asked) = std::env::var(POINT_VARIABLE) else { return Ok(()) };
    if !fail::has_failpoints() {
        return Err(Failed::new("this program was built without crash points"));
    }
    let marker = std::env::var_os(MARKER_VARIABLE)
        .ok_or_else(|| Failed::new(format!("{MARKER_VARIABLE} is not set")))?;
    let (point, nth) = match asked.split_once(':') {
        Some((point, nth)) => {
            (point, nth.parse().map_err(Failed::because(format!("{POINT_VARIABLE}={asked}")))?)
        }
        None => (asked.as_str(), 1),
    };
    let passes = AtomicU32::new(0);
    let name = point.to_owned();
    let strike = move || {
        if passes.fetch_add(1, Ordering::SeqCst) + 1 != nth {
            return;
        }
        // Without the marker the crash does not count, and the cell fails.
        drop(fs::write(&marker, format!("{name} {}\n", clock::unix_micros())));
        kill_this_process();
    };
    fail::cfg_callback(point, strike).map_err(|why| Failed::new(format!("{POINT_VARIABLE}={asked}: {why}")))
}
