//! A coordinator as a process: `lockstep serve`, by its library function.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;

use super::clock::wait_for;
use super::crash_points::{Fuse, hold, slow_down};
use super::ports::Port;
use super::process::{Process, Reaped, end_of_log};
use super::roles::Roles;
use super::{Failed, Result};

/// How long a coordinator may take to start or to drain.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the last line of the banner begins with: everything is bound and recovered when it is there.
pub const LAST_OF_BANNER: &str = "lockstep recovered";

/// How a coordinator is started, each time: its port and its directory stay the same over restarts.
#[derive(Debug, Clone)]
struct Setup {
    roles: Roles,
    directory: PathBuf,
    flags: Vec<String>,
    port: Port,
    slow_at: Option<(&'static str, Duration)>,
    held_at: Option<(&'static str, PathBuf)>,
}

/// What a command of `lockstep` came to.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// Data.
    pub stdout: String,
    /// Talk.
    pub stderr: String,
}

/// A coordinator of one's own.
#[derive(Debug)]
pub struct Coordinator {
    setup: Setup,
    process: Process,
}

impl Coordinator {
    /// Starts one with its data in `directory`, and these flags of `lockstep serve`. Does not wait for it.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start(roles: &Roles, directory: &Path, flags: &[&str], fuse: Option<&Fuse>) -> Result<Self> {
        Self::start_slow(roles, directory, flags, fuse, None)
    }

    /// The same, and each time it passes this crash point it waits so long.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start_slow(
        roles: &Roles,
        directory: &Path,
        flags: &[&str],
        fuse: Option<&Fuse>,
        slow_at: Option<(&'static str, Duration)>,
    ) -> Result<Self> {
        let flags = flags.iter().map(ToString::to_string).collect();
        let (roles, directory, port) = (roles.clone(), directory.to_owned(), Port::reserve()?);
        let setup = Setup { roles, directory, flags, port, slow_at, held_at: None };
        Ok(Self { process: setup.launch(fuse)?, setup })
    }

    /// Starts one that waits at this crash point for as long as there is a file at the path.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start_held(
        roles: &Roles,
        directory: &Path,
        flags: &[&str],
        held_at: (&'static str, PathBuf),
    ) -> Result<Self> {
        let flags = flags.iter().map(ToString::to_string).collect();
        let (roles, directory, port) = (roles.clone(), directory.to_owned(), Port::reserve()?);
        let setup = Setup { roles, directory, flags, port, slow_at: None, held_at: Some(held_at) };
        Ok(Self { process: setup.launch(None)?, setup })
    }

    /// Starts it again where it was, after it has died. Does not wait for it.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start_again(&mut self, fuse: Option<&Fuse>) -> Result<()> {
        self.process = self.setup.launch(fuse)?;
        Ok(())
    }

    /// Waits until it serves, or has ended, which its banner or its death tells.
    ///
    /// # Errors
    /// If neither happens.
    pub fn wait_until_it_serves(&mut self) -> Result<Option<Reaped>> {
        let process = &mut self.process;
        let (reaped, _) = wait_for("the coordinator's banner", PATIENCE, || {
            if let Some(reaped) = process.try_reap()? {
                return Ok(Some(Some(reaped)));
            }
            let serves = process.output().lines().any(|line| line.starts_with(LAST_OF_BANNER));
            Ok(serves.then_some(None))
        })?;
        Ok(reaped)
    }

    /// Waits until it serves.
    ///
    /// # Errors
    /// If it doesn't, with the end of its log.
    pub fn expect_it_serves(&mut self) -> Result<()> {
        match self.wait_until_it_serves()? {
            None => Ok(()),
            Some(how) => {
                Err(Failed::new(format!("the coordinator ended: {how:?}\n{}", end_of_log(&self.log()))))
            }
        }
    }

    /// The port that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.setup.port.number()
    }

    /// Where it is reached.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.setup.port.number())
    }

    /// What a command of `lockstep` prints about it as JSON, such as `["tx", "show", GTRID]`.
    ///
    /// # Errors
    /// If the command fails.
    pub fn ask(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let mut command = self.setup.roles.command("coordinator");
        command.arg("--").args(arguments).args(["--json", "--server", &self.url()]);
        let log = self.setup.directory.join("lockstep.log");
        let mut process = Process::start("lockstep", command, &log)?;
        match process.wait(PATIENCE)? {
            Reaped::Exit(0) => serde_json::from_str(&process.output())
                .map_err(Failed::because(format!("lockstep {arguments:?}: {}", process.output()))),
            how @ (Reaped::Exit(_) | Reaped::Signal(_)) => {
                Err(Failed::new(format!("lockstep {arguments:?} ended with {how:?}: {}", process.output())))
            }
        }
    }

    /// Runs a command of `lockstep` against it, whatever it comes to.
    ///
    /// # Errors
    /// If it does not end by itself.
    pub fn run(&self, arguments: &[&str]) -> Result<Ran> {
        let mut command = self.setup.roles.command("coordinator");
        command.arg("--").args(arguments).env("LOCKSTEP_SERVER", self.url());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(Failed::because("lockstep"))?;
        // A role ends when its standard input does.
        let _held = child.stdin.take();
        let ran = child.wait_with_output().map_err(Failed::because("lockstep"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code =
            ran.status.code().ok_or_else(|| Failed::new(format!("lockstep {arguments:?} was killed")))?;
        Ok(Ran { code, stdout: text(&ran.stdout), stderr: text(&ran.stderr) })
    }

    /// Runs a command of `lockstep` on its log, such as `["restore", "--dry-run"]`. How it ended, and what it printed on stdout.
    ///
    /// # Errors
    /// If it can't be run.
    pub fn run_offline(&self, arguments: &[&str]) -> Result<(Reaped, String)> {
        let mut command = self.setup.roles.command("coordinator");
        command.arg("--").args(arguments).arg("--data-dir").arg(self.data_directory());
        command.args(self.setup.flags.iter().filter(|flag| flag.starts_with("--log=")));
        let log = self.setup.directory.join("lockstep.log");
        let mut process = Process::start("lockstep", command, &log)?;
        let how = process.wait(PATIENCE)?;
        Ok((how, process.output()))
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The process' number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What it writes, over all its lives.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.setup.log()
    }

    /// Its data directory.
    #[must_use]
    pub fn data_directory(&self) -> PathBuf {
        self.setup.data_directory()
    }

    /// SIGTERM, and waits until it has drained.
    ///
    /// # Errors
    /// If it does not end.
    pub fn stop(&mut self) -> Result<Reaped> {
        self.process.signal(Signal::TERM)?;
        self.process.wait(PATIENCE)
    }
}

impl Setup {
    fn launch(&self, fuse: Option<&Fuse>) -> Result<Process> {
        let mut command = self.roles.command("coordinator");
        command.arg("--").arg("serve").arg(format!("--listen=127.0.0.1:{}", self.port.number()));
        command.arg("--data-dir").arg(self.data_directory()).args(&self.flags);
        command.current_dir(&self.directory);
        if let Some((point, wait)) = self.slow_at {
            slow_down(&mut command, point, wait);
        }
        if let Some((point, path)) = &self.held_at {
            hold(&mut command, point, path);
        }
        if let Some(fuse) = fuse {
            fuse.arm(&mut command);
        }
        Process::start("coordinator", command, &self.log())
    }

    fn data_directory(&self) -> PathBuf {
        self.directory.join("coordinator")
    }

    fn log(&self) -> PathBuf {
        self.directory.join("coordinator.log")
    }
}
