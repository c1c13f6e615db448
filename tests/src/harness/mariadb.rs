//! A real MariaDB server: made in a temporary directory, crashed, started again, and gone with the test.
//!
//! - [`MariaDbServer::start`] makes a server of one's own: its own port on loopback, its own directory, everything forced
//!   to disk. Where no server programs are installed, it installs Debian's packages; it never skips.
//! - [`shared`] is one server for all tests of a process that only need a database: [`fresh_database`] gives
//!   them one. XA branches belong to the whole server, so such a test looks only at its own.
//!
//! Nothing survives the process, whatever it dies of (`janitor` sees to that). The functions block; the slowest
//! (a first start) takes some seconds.

mod programs;

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use self::programs::Programs;
use super::clock::now;
use super::janitor::Janitor;
use super::ports::Port;

/// The user that every server made here has for us, without a password and with all privileges.
pub const SUPERUSER: &str = "root";

/// How long a server may take to start (a crashed one replays its log) or to stop.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a condition is looked at while waiting for it.
const GLANCE: Duration = Duration::from_millis(10);
/// Ports tried before giving up.
const PORT_ATTEMPTS: u32 = 50;
/// Lines of the server's log that an error shows.
const LOG_LINES_SHOWN: usize = 40;

/// What every server here is set up with; [`MariaDbServer::start_with`] adds to it.
const SETTINGS: &[(&str, &str)] = &[
    ("bind-address", "127.0.0.1"),
    ("skip-name-resolve", "1"),
    ("max-connections", "300"),
    ("innodb-buffer-pool-size", "32M"),
    ("innodb-log-file-size", "16M"),
    ("innodb-flush-log-at-trx-commit", "1"),
    ("performance-schema", "0"),
];

/// A server could not be made, started, stopped or asked. Says what was tried and what came of it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct MariaDbError(String);

impl MariaDbError {
    /// For `map_err`: `what` could not be done, and why.
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |cause| Self(format!("{what}: {cause}"))
    }
}

type Result<T, E = MariaDbError> = std::result::Result<T, E>;

fn reserve_port() -> Result<Port> {
    Port::reserve().map_err(|error| MariaDbError(error.to_string()))
}

/// A MariaDB server of one's own. Dropping it stops the server and removes its directory; if that happens in
/// a panic, the end of its log is printed.
#[derive(Debug)]
pub struct MariaDbServer {
    programs: Programs,
    /// Holds `data/`, the socket and `log`. The janitor removes it if this process does not.
    directory: PathBuf,
    port: Port,
    settings: Vec<(String, String)>,
    /// The server's process while it runs.
    process: Option<Child>,
    _janitor: Janitor,
}

impl MariaDbServer {
    /// A new server with the usual settings.
    ///
    /// # Errors
    /// If there are no server programs and installing them failed, or the server does not start.
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// The same with further settings, which win over the usual ones.
    ///
    /// # Errors
    /// As [`MariaDbServer::start`].
    pub fn start_with(settings: &[(&str, &str)]) -> Result<Self> {
        let programs = Programs::find_or_install()?;
        let directory = tempfile::Builder::new()
            .prefix("lockstep-mariadb-")
            .tempdir()
            .map_err(MariaDbError::io("no temporary directory"))?;
        programs.give_to_server_user(directory.path())?;
        let janitor = Janitor::watch(directory.path(), &directory.path().join("pid"))
            .map_err(MariaDbError::io("the shell that cleans up does not run"))?;
        // From here on the janitor, and Drop, see to the directory.
        let mut server = Self {
            programs,
            directory: directory.keep(),
            port: reserve_port()?,
            settings: Vec::new(),
            process: None,
            _janitor: janitor,
        };
        server.configure(SETTINGS);
        server.configure(settings);
        server.initialise()?;
        server.run_on_a_free_port()?;
        Ok(server)
    }

    /// Where to connect to for `database`, as the superuser.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        self.url_as(SUPERUSER, database)
    }

    /// Where to connect to for `database` as `user`; no password is asked for.
    #[must_use]
    pub fn url_as(&self, user: &str, database: &str) -> String {
        format!("mysql://{user}@127.0.0.1:{}/{database}", self.port.number())
    }

    /// Where it listens on loopback.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Where to connect to over the server's socket in the file system.
    #[must_use]
    pub fn socket_url(&self, database: &str) -> String {
        format!("mysql://{SUPERUSER}@localhost/{database}?socket={}", self.socket().display())
    }

    /// Makes an empty database. `name` is taken as it is.
    ///
    /// # Errors
    /// If the server refuses.
    pub fn create_database(&self, name: &str) -> Result<()> {
        self.sql("", &format!("CREATE DATABASE `{name}`")).map(drop)
    }

    /// Runs `sql` in `database` (or in none) from outside, with the client program: what comes back, one line per row, columns
    /// parted by tabs.
    ///
    /// # Errors
    /// If the client can't connect or a statement fails; the error is what it printed.
    pub fn sql(&self, database: &str, sql: &str) -> Result<String> {
        let mut command = Command::new(self.programs.path("mariadb"));
        command.args([
            "--no-defaults",
            "--batch",
            "--skip-column-names",
            "--protocol=tcp",
            "--host=127.0.0.1",
        ]);
        command.arg(format!("--port={}", self.port.number())).arg(format!("--user={SUPERUSER}"));
        command.arg(format!("--database={database}")).arg("--execute").arg(sql).stdin(Stdio::null());
        let output = command.output().map_err(MariaDbError::io("mariadb does not run"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned());
        }
        Err(MariaDbError(format!("{sql}\n{}", String::from_utf8_lossy(&output.stderr).trim_end())))
    }

    /// Changes settings. They count from the next [`MariaDbServer::restart`].
    pub fn configure(&mut self, settings: &[(&str, &str)]) {
        self.settings.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    }

    /// Crashes the server: SIGKILL. It is one process.
    ///
    /// # Errors
    /// If it is not running, or does not die.
    pub fn kill(&mut self) -> Result<()> {
        let process = self.take_process()?;
        self.end(process, Signal::KILL)
    }

    /// Stops the server in order: sessions are ended, everything is written out.
    ///
    /// # Errors
    /// If it is not running, or takes too long.
    pub fn stop(&mut self) -> Result<()> {
        let process = self.take_process()?;
        self.end(process, Signal::TERM)
    }

    /// Its process.
    ///
    /// # Errors
    /// If it is not running.
    pub fn process(&self) -> Result<Pid> {
        let process =
            self.process.as_ref().ok_or_else(|| MariaDbError("the server is not running".to_owned()))?;
        Ok(Pid::from_child(process))
    }

    /// Whether it has not ended by itself, as far as it was started.
    ///
    /// # Errors
    /// If it can't be asked.
    pub fn is_running(&mut self) -> Result<bool> {
        let Some(process) = &mut self.process else { return Ok(false) };
        let ended = process.try_wait().map_err(MariaDbError::io("the server can't be asked"))?;
        if ended.is_some() {
            // Its number may be somebody else's from now on.
            self.process = None;
        }
        Ok(ended.is_none())
    }

    /// Starts the server again on its old port, after [`MariaDbServer::kill`] or [`MariaDbServer::stop`];
    /// stops it first if it runs.
    ///
    /// # Errors
    /// If it does not start; the error shows its log.
    pub fn restart(&mut self) -> Result<()> {
        if self.process.is_some() {
            self.stop()?;
        }
        let deadline = now() + PATIENCE;
        while !self.run()? {
            if now() > deadline {
                return Err(self.failed(&format!("port {} has been taken by another", self.port.number())));
            }
            thread::sleep(GLANCE);
        }
        Ok(())
    }

    /// Keeps the files as they are now: those of a standby that hears nothing more. The server is stopped for that, and started again.
    ///
    /// # Errors
    /// If they can't be copied.
    pub fn keep_files(&mut self) -> Result<()> {
        self.stop()?;
        super::files::copy(&self.data(), &self.directory.join("kept")).map_err(MariaDbError::io("a copy"))?;
        self.restart()
    }

    /// Crashes the server, and goes on with the files that were kept, as after a failover to that standby: what was acknowledged since is
    /// lost.
    ///
    /// # Errors
    /// If nothing was kept, or the server does not start.
    pub fn fail_over(&mut self) -> Result<()> {
        self.kill()?;
        fs::remove_dir_all(self.data()).map_err(MariaDbError::io("the data"))?;
        fs::rename(self.directory.join("kept"), self.data()).map_err(MariaDbError::io("the copy"))?;
        self.restart()
    }

    /// The server's whole log so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.log_path()).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// Not in a directory that other servers use: their temporary tables have the same names where process ids are the same, as
    /// in containers.
    fn temporary_files(&self) -> String {
        format!("--tmpdir={}", self.directory.display())
    }

    fn initialise(&self) -> Result<()> {
        let mut install = self.programs.command("mariadb-install-db");
        // No --user: that would be changed to, and the command runs as that user already.
        install.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
        install.arg("--innodb-log-file-size=16M").arg(format!("--datadir={}", self.data().display()));
        install.arg(self.temporary_files());
        let output = install.output().map_err(MariaDbError::io("mariadb-install-db does not run"))?;
        if output.status.success() {
            return Ok(());
        }
        let words =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Err(MariaDbError(format!("mariadb-install-db in {} failed: {words}", self.directory.display())))
    }

    fn run_on_a_free_port(&mut self) -> Result<()> {
        for _ in 0..PORT_ATTEMPTS {
            // Somebody who reserves nothing may take it before the server does: then the next is tried.
            if self.run()? {
                return Ok(());
            }
            self.port = reserve_port()?;
        }
        Err(self.failed("no free port was found"))
    }

    /// Starts the server and waits until it takes connections. `false`: the port is in use.
    fn run(&mut self) -> Result<bool> {
        let log_start = self.log().len();
        let no_log = || MariaDbError::io("the log can't be opened");
        let log = File::options().create(true).append(true).open(self.log_path()).map_err(no_log())?;
        let stderr = log.try_clone().map_err(no_log())?;
        let mut command = self.programs.command("mariadbd");
        command.arg("--no-defaults").arg(format!("--datadir={}", self.data().display()));
        command.env("TMPDIR", &self.directory);
        command
            .arg(format!("--port={}", self.port.number()))
            .arg(format!("--socket={}", self.socket().display()));
        command.arg(format!("--pid-file={}", self.directory.join("pid").display()));
        command.arg(self.temporary_files());
        command.args(self.settings.iter().map(|(name, value)| format!("--{name}={value}")));
        // An own process group: a Ctrl-C for the tests is not one for the server, which goes with its directory.
        command.stdin(Stdio::null()).stdout(log).stderr(stderr).process_group(0);
        let mut process = command.spawn().map_err(MariaDbError::io("mariadbd does not run"))?;
        let deadline = now() + PATIENCE;
        while !self.log()[log_start..].contains("ready for connections") {
            let exit = process.try_wait().map_err(MariaDbError::io("mariadbd can't be waited for"))?;
            if let Some(status) = exit {
                if self.log()[log_start..].contains("Address already in use") {
                    return Ok(false);
                }
                return Err(self.failed(&format!("the server did not start ({status})")));
            }
            if now() > deadline {
                let late = self.failed("the server takes too long to start");
                self.end(process, Signal::KILL)?;
                return Err(late);
            }
            thread::sleep(GLANCE);
        }
        self.process = Some(process);
        Ok(true)
    }

    fn take_process(&mut self) -> Result<Child> {
        self.process.take().ok_or_else(|| MariaDbError("the server is not running".to_owned()))
    }

    fn end(&self, mut process: Child, how: Signal) -> Result<()> {
        let pid = Pid::from_child(&process);
        match kill_process(pid, how) {
            // Gone already is as good as told.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => {
                return Err(MariaDbError(format!("process {pid:?} can't be sent {how:?}: {error}")));
            }
        }
        let deadline = now() + PATIENCE;
        while matches!(process.try_wait(), Ok(None)) {
            if now() > deadline {
                // Not left behind in any case.
                drop(process.kill());
                return Err(self.failed("the server takes too long to stop"));
            }
            thread::sleep(GLANCE);
        }
        Ok(())
    }

    /// An error that shows the end of the log.
    fn failed(&self, what: &str) -> MariaDbError {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n");
        MariaDbError(format!("MariaDB in {}: {what}\n{end}", self.directory.display()))
    }
}

impl Drop for MariaDbServer {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.failed("the log's end"));
        }
        // What is in the directory is not needed any more.
        if let Some(process) = self.process.take()
            && let Err(error) = self.end(process, Signal::KILL)
        {
            eprintln!("{error}");
        }
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            eprintln!("{} can't be removed: {error}", self.directory.display());
        }
    }
}

/// The one server of this process that tests share which only need a database of their own. Started when first
/// asked for; gone with the process.
///
/// # Panics
/// If it can't be started: no test that needs it is skipped.
pub fn shared() -> &'static MariaDbServer {
    static SHARED: OnceLock<Result<MariaDbServer>> = OnceLock::new();
    match SHARED.get_or_init(MariaDbServer::start) {
        Ok(server) => server,
        Err(error) => panic!("no MariaDB server for the tests: {error}"),
    }
}

/// An empty database of the [`shared`] server.
#[derive(Debug)]
pub struct Database {
    server: &'static MariaDbServer,
    /// Its name.
    pub name: String,
}

/// A new empty database of the [`shared`] server.
///
/// # Panics
/// If it can't be made.
#[must_use]
pub fn fresh_database() -> Database {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let server = shared();
    server.create_database(&name).unwrap_or_else(|error| panic!("no database {name}: {error}"));
    Database { server, name }
}

impl Database {
    /// Where to connect to, as the superuser.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.url(&self.name)
    }

    /// Where to connect to as `user`.
    #[must_use]
    pub fn url_as(&self, user: &str) -> String {
        self.server.url_as(user, &self.name)
    }

    /// Runs `sql` from outside, as [`MariaDbServer::sql`].
    ///
    /// # Panics
    /// If that fails.
    pub fn sql(&self, sql: &str) -> String {
        self.server.sql(&self.name, sql).unwrap_or_else(|error| panic!("{error}"))
    }
}
