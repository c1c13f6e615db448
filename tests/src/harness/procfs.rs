//! Processes as the kernel sees them: who is whose child, who is alive, who stands still, and what they weigh.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::clock::wait_for;
use super::{Failed, Result};

/// How long a process may take to stop: one that waits for the disk stops behind that.
const TO_STOP: Duration = Duration::from_secs(30);

/// Stops a process in its tracks: SIGSTOP, and waits until all its threads stand still. The signal alone is no more than a wish: on a
/// machine with much to do it is some milliseconds before the process hears of it, and meanwhile its other threads go on and answer.
///
/// # Errors
/// If it can't be sent, or does not stop. One that is gone does nothing any more.
pub fn stop(pid: Pid) -> Result<()> {
    match kill_process(pid, Signal::STOP) {
        Ok(()) => {}
        Err(Errno::SRCH) => return Ok(()),
        Err(error) => return Err(Failed::new(format!("process {pid:?} cannot be stopped: {error}"))),
    }
    let stands_still = || Ok(threads_of(pid).iter().all(|thread| stopped(thread)).then_some(()));
    wait_for(&format!("process {pid:?} to stop"), TO_STOP, stands_still).map(drop)
}

fn directory_of(pid: Pid) -> PathBuf {
    PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()))
}

fn threads_of(pid: Pid) -> Vec<PathBuf> {
    let Ok(tasks) = fs::read_dir(directory_of(pid).join("task")) else { return Vec::new() };
    tasks.filter_map(|task| Some(task.ok()?.path())).collect()
}

/// One that has gone since counts too.
fn stopped(thread: &Path) -> bool {
    status_in(thread).map_or(true, |(state, _parent)| matches!(state, 'T' | 't' | 'Z' | 'X'))
}

/// The processes whose parent is `parent`.
pub(super) fn children_of(parent: Pid) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(Pid::from_raw)
        .filter(|pid| {
            status_of(*pid).is_ok_and(|(_state, its_parent)| its_parent == parent.as_raw_nonzero().get())
        })
        .collect()
}

/// Whether a process still runs; one that is dead and only not yet reaped does not.
pub(super) fn is_alive(pid: Pid) -> bool {
    status_of(pid).is_ok_and(|(state, _parent)| state != 'Z' && state != 'X')
}

fn status_of(pid: Pid) -> io::Result<(char, i32)> {
    status_in(&directory_of(pid))
}

/// A process's, or a thread's, state and parent, from the file `stat` in its directory.
fn status_in(directory: &Path) -> io::Result<(char, i32)> {
    let stat = fs::read_to_string(directory.join("stat"))?;
    let unreadable = || io::Error::other("an unreadable stat file");
    // The second field is the name in parentheses, which may itself hold blanks and parentheses.
    let (_, fields) = stat.rsplit_once(") ").ok_or_else(unreadable)?;
    let mut fields = fields.split(' ');
    let state = fields.next().and_then(|field| field.chars().next()).ok_or_else(unreadable)?;
    let parent = fields.next().and_then(|field| field.parse().ok()).ok_or_else(unreadable)?;
    Ok((state, parent))
}

/// What a process has of the machine's memory.
#[derive(Debug, Clone, Copy)]
pub enum Memory {
    /// At this moment.
    Now,
    /// The most that it ever had.
    Most,
}

impl Memory {
    /// In bytes. The kernel counts in KiB (proc(5), `status`).
    ///
    /// # Errors
    /// If the process is gone.
    pub fn of(self, process: u32) -> Result<u64> {
        let field = match self {
            Self::Now => "VmRSS:",
            Self::Most => "VmHWM:",
        };
        let status = fs::read_to_string(format!("/proc/{process}/status"));
        let status = status.map_err(Failed::because(format!("the memory of process {process}")))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        let ended = || Failed::new(format!("process {process} has no memory: it has ended"));
        kibibytes.map(|kibibytes| kibibytes * 1024).ok_or_else(ended)
    }
}
