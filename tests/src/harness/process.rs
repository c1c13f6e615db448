//! A process of the harness: started, killed, reaped, started again; what it writes is kept and shown.
//!
//! A child ends with its parent, whatever that died of: it reads its standard input, a pipe whose other end only the
//! parent holds, and goes when the kernel closes it ([`end_with_the_parent`]). A parent-death signal would be simpler, but
//! it is sent when the *thread* ends that started the child, and cells run in threads.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, getpid, kill_process};

use super::clock::wait_for;
use super::{Failed, Result, procfs};

/// How long a process may take to die of SIGKILL.
const TO_DIE: Duration = Duration::from_secs(10);
/// Bytes from the end of a log that are shown.
const LOG_SHOWN: u64 = 6000;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaped {
    /// A signal ended it: 9 is SIGKILL.
    Signal(i32),
    /// It ended by itself, with this code.
    Exit(i32),
}

impl Reaped {
    /// What SIGKILL leaves.
    pub const KILLED: Self = Self::Signal(9);
}

impl From<ExitStatus> for Reaped {
    fn from(status: ExitStatus) -> Self {
        status.signal().map_or_else(|| Self::Exit(status.code().unwrap_or(-1)), Self::Signal)
    }
}

/// A running process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    /// Closed when this goes, and the child with it.
    stdin: Option<ChildStdin>,
    log: PathBuf,
    log_start: u64,
    reaped: Option<Reaped>,
}

impl Process {
    /// Starts it. What it writes to stdout and stderr is appended to `log`.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let cannot = || Failed::because(format!("{name} cannot be started"));
        let file = File::options().create(true).append(true).open(log).map_err(cannot())?;
        let log_start = file.metadata().map_err(cannot())?.len();
        let stderr = file.try_clone().map_err(cannot())?;
        // An own group: a Ctrl-C is for the parent, and the pipe tells the child.
        command.stdin(Stdio::piped()).stdout(file).stderr(stderr).process_group(0);
        let mut child = command.spawn().map_err(cannot())?;
        let stdin = child.stdin.take();
        Ok(Self { name: name.to_owned(), child, stdin, log: log.to_owned(), log_start, reaped: None })
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Tells it a line, if it still listens.
    pub fn tell(&mut self, line: &str) {
        if let Some(stdin) = &mut self.stdin {
            // A process that died hears nothing, and whoever waits for it finds out.
            drop(writeln!(stdin, "{line}").and_then(|()| stdin.flush()));
        }
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// If it can't be asked.
    pub fn try_reap(&mut self) -> Result<Option<Reaped>> {
        if self.reaped.is_none() {
            let status =
                self.child.try_wait().map_err(Failed::because(format!("{} cannot be reaped", self.name)))?;
            self.reaped = status.map(Reaped::from);
        }
        Ok(self.reaped)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// If it does not.
    pub fn wait(&mut self, patience: Duration) -> Result<Reaped> {
        let what = format!("{} to end", self.name);
        Ok(wait_for(&what, patience, || self.try_reap())?.0)
    }

    /// SIGKILL, and reaps it. How it ended: [`Reaped::KILLED`], unless it was over before.
    ///
    /// # Errors
    /// If it doesn't die.
    pub fn kill(&mut self) -> Result<Reaped> {
        self.signal(Signal::KILL)?;
        self.wait(TO_DIE)
    }

    /// Sends it a signal. One that was reaped gets none: its number may be somebody else's.
    ///
    /// # Errors
    /// If it can't be sent.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.try_reap()?.is_some() {
            return Ok(());
        }
        kill_process(Pid::from_child(&self.child), signal)
            .map_err(Failed::because(format!("{} cannot be sent {signal:?}", self.name)))
    }

    /// Stops it in its tracks ([`procfs::stop`]), until it is sent SIGCONT.
    ///
    /// # Errors
    /// If it does not stop.
    pub fn stop(&mut self) -> Result<()> {
        if self.try_reap()?.is_some() {
            return Ok(());
        }
        procfs::stop(Pid::from_child(&self.child))
    }

    /// What it has written since this start of it.
    #[must_use]
    pub fn output(&self) -> String {
        let mut text = Vec::new();
        let read = File::open(&self.log).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.log_start))?;
            file.read_to_end(&mut text)
        });
        drop(read);
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{error}");
        }
    }
}

/// The end of a log file, for people.
#[must_use]
pub fn end_of_log(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let shown = usize::try_from(LOG_SHOWN).unwrap_or(usize::MAX);
    let end = String::from_utf8_lossy(&text[text.len().saturating_sub(shown)..]).into_owned();
    format!("---- the end of {}\n{end}", log.display())
}

/// For a role whose standard input carries nothing: ends this process as soon as its parent is gone.
pub fn end_with_the_parent() {
    thread::spawn(|| {
        let mut stdin = std::io::stdin();
        let mut nothing = [0; 64];
        while matches!(stdin.read(&mut nothing), Ok(1..)) {}
        kill_this_process();
    });
}

/// SIGKILL for the process itself: nothing of it runs after this.
pub fn kill_this_process() -> ! {
    let _told = kill_process(getpid(), Signal::KILL);
    // The signal may take a moment to reach the other threads; this one does nothing meanwhile.
    loop {
        thread::park();
    }
}
