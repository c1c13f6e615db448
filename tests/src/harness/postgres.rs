//! A real PostgreSQL server: made in a temporary directory, crashed, started again, and gone with the test.
//!
//! - [`PostgresServer::start`] makes a server of one's own: its own port on loopback, its own directory,
//!   `fsync` on. Where no server programs are installed, it installs Debian's package; it never skips.
//! - [`shared`] is one server for all tests of a process that only need a database: [`fresh_database`] gives
//!   them one.
//!
//! Nothing survives the process, whatever it dies of (`janitor` sees to that). The functions block; the slowest
//! (a first start) takes about a second.

mod programs;
mod single;
mod standby;

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use self::programs::Programs;
use super::clock::now;
use super::disk::SmallDisk;
use super::janitor::Janitor;
use super::ports::Port;
use super::procfs;

/// The superuser of every server made here, without a password. (Not `lockstep`: what such a role creates would
/// go into our schema, because `"$user"` comes first in the usual `search_path`.)
pub const SUPERUSER: &str = "harness";

/// How long a server may take to start (a crashed one replays its log) or to stop.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a condition is looked at while waiting for it.
const GLANCE: Duration = Duration::from_millis(5);
/// Ports tried before giving up.
const PORT_ATTEMPTS: u32 = 50;
/// Lines of the server's log that an error shows.
const LOG_LINES_SHOWN: usize = 40;
/// Characters of each of them: statements are logged with their whole text.
const LOG_LINE_CHARACTERS: usize = 400;

/// What every server here is set up with; [`PostgresServer::start_with`] adds to it.
const SETTINGS: &[(&str, &str)] = &[
    ("listen_addresses", "127.0.0.1"),
    ("max_connections", "200"),
    ("max_prepared_transactions", "100"),
    ("shared_buffers", "32MB"),
    ("fsync", "on"),
    ("full_page_writes", "on"),
    // After a crash: one call instead of an fsync for each of a thousand files.
    ("recovery_init_sync_method", "syncfs"),
    ("log_line_prefix", "%m [%p] %q%d "),
    ("log_timezone", "UTC"),
    ("timezone", "UTC"),
];

/// A server could not be made, started, stopped or asked. Says what was tried and what came of it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct PostgresError(String);

impl PostgresError {
    fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }

    /// For `map_err`: `what` could not be done, and why.
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |cause| Self(format!("{what}: {cause}"))
    }
}

type Result<T, E = PostgresError> = std::result::Result<T, E>;

fn reserve_port() -> Result<Port> {
    Port::reserve().map_err(|error| PostgresError(error.to_string()))
}

/// A PostgreSQL server of one's own. Dropping it stops the server and removes its directory; if that happens in
/// a panic, the end of its log is printed and the whole log is kept.
#[derive(Debug)]
pub struct PostgresServer {
    programs: Programs,
    /// Holds `data/`, the socket and `log`. The janitor removes it if this process does not.
    directory: PathBuf,
    port: Port,
    /// The postmaster while it runs.
    postmaster: Option<Child>,
    /// What `data/` is on, if that is a disk of its own.
    disk: Option<SmallDisk>,
    _janitor: Janitor,
}

impl PostgresServer {
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
    /// As [`PostgresServer::start`].
    pub fn start_with(settings: &[(&str, &str)]) -> Result<Self> {
        let mut server = Self::reserve(Programs::find_or_install()?)?;
        server.initialise(settings)?;
        server.run_on_a_free_port()?;
        Ok(server)
    }

    /// The same with its files on a disk of their own, which can be filled.
    ///
    /// # Errors
    /// As [`PostgresServer::start`], and of [`SmallDisk::mount`].
    pub fn start_on_small_disk(mebibytes: u32, settings: &[(&str, &str)]) -> Result<Self> {
        let mut server = Self::reserve(Programs::find_or_install()?)?;
        fs::create_dir(server.data()).map_err(PostgresError::io("no directory for the data"))?;
        let disk = SmallDisk::mount(&server.data(), mebibytes);
        server.disk = Some(disk.map_err(|failed| PostgresError(failed.to_string()))?);
        server.programs.give_to_server_user(&server.data())?;
        server.initialise(settings)?;
        server.run_on_a_free_port()?;
        Ok(server)
    }

    /// The disk that its files are on, if that is one of its own.
    #[must_use]
    pub const fn disk(&self) -> Option<&SmallDisk> {
        self.disk.as_ref()
    }

    /// Whether it has not ended by itself, as far as it was started.
    ///
    /// # Errors
    /// If it can't be asked.
    pub fn is_running(&mut self) -> Result<bool> {
        let Some(postmaster) = &mut self.postmaster else { return Ok(false) };
        let ended = postmaster.try_wait().map_err(PostgresError::io("the postmaster can't be asked"))?;
        if ended.is_some() {
            // Its number may be somebody else's from now on.
            self.postmaster = None;
        }
        Ok(ended.is_none())
    }

    /// Where to connect to for `database`, as the superuser.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        self.url_as(SUPERUSER, database)
    }

    /// Where to connect to for `database` as `role`; no password is asked for.
    #[must_use]
    pub fn url_as(&self, role: &str, database: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/{database}", self.port.number())
    }

    /// Where it listens on loopback.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Makes an empty database. `name` is taken as it is.
    ///
    /// # Errors
    /// If the server refuses.
    pub fn create_database(&self, name: &str) -> Result<()> {
        // template0: nobody can be connected to it, so databases can be made at the same time.
        self.psql("postgres", &format!("CREATE DATABASE \"{name}\" TEMPLATE template0")).map(drop)
    }

    /// Runs `sql` in `database` from outside, with psql: what comes back, one line per row, columns parted by `|`.
    ///
    /// # Errors
    /// If psql can't connect or a statement fails; the error is what psql printed.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String> {
        let mut command = Command::new(self.programs.path("psql"));
        command.args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1"]);
        command.arg("--command").arg(sql).arg(self.url(database)).stdin(Stdio::null());
        let output = command.output().map_err(PostgresError::io("psql does not run"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned());
        }
        Err(PostgresError(format!("{sql}\n{}", String::from_utf8_lossy(&output.stderr).trim_end())))
    }

    /// Writes a database as it is at this moment to a file, with `pg_dump`, while it is used.
    ///
    /// # Errors
    /// What `pg_dump` says.
    pub fn dump(&self, database: &str, to: &Path) -> Result<()> {
        let mut command = Command::new(self.programs.path("pg_dump"));
        command.arg("--format=custom").arg("--file").arg(to).arg(self.url(database));
        run(command)
    }

    /// Puts a database back to what was written, with `pg_restore`. Sessions in it are ended.
    ///
    /// # Errors
    /// What `pg_restore` says.
    pub fn put_back(&self, database: &str, from: &Path) -> Result<()> {
        self.psql("postgres", &format!("DROP DATABASE {database} WITH (FORCE)"))?;
        self.create_database(database)?;
        let mut command = Command::new(self.programs.path("pg_restore"));
        command.arg("--exit-on-error").arg("--dbname").arg(self.url(database)).arg(from);
        run(command)
    }

    /// Changes settings in the configuration file. They count from the next [`PostgresServer::restart`].
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn configure(&self, settings: &[(&str, &str)]) -> Result<()> {
        let path = self.data().join("postgresql.conf");
        let mut file = File::options()
            .append(true)
            .open(&path)
            .map_err(PostgresError::io(format!("no {}", path.display())))?;
        settings
            .iter()
            .try_for_each(|(name, value)| writeln!(file, "{name} = '{value}'"))
            .map_err(PostgresError::io(format!("{} can't be written", path.display())))
    }

    /// Crashes the server: SIGKILL for the postmaster and all its children, as one.
    ///
    /// # Errors
    /// If it is not running, or does not die.
    pub fn kill(&mut self) -> Result<()> {
        let mut postmaster = self.take_postmaster()?;
        let pid = pid_of(&postmaster);
        // Stopped first, so that it can't start another child, nor mourn one, while they are being killed.
        stop(pid)?;
        let children = procfs::children_of(pid);
        for victim in children.iter().copied().chain([pid]) {
            signal(victim, Signal::KILL)?;
        }
        postmaster.wait().map_err(PostgresError::io("the postmaster can't be waited for"))?;
        wait_until("the server's processes to die", || !children.iter().any(|child| procfs::is_alive(*child)))
    }

    /// Stops the server in order: sessions are ended, everything is written out.
    ///
    /// # Errors
    /// If it is not running, or takes too long.
    pub fn stop(&mut self) -> Result<()> {
        let postmaster = self.take_postmaster()?;
        self.end(postmaster, Signal::INT)
    }

    /// Starts the server again on its old port, after [`PostgresServer::kill`] or [`PostgresServer::stop`];
    /// stops it first if it runs.
    ///
    /// # Errors
    /// If it does not start; the error shows its log.
    pub fn restart(&mut self) -> Result<()> {
        if self.postmaster.is_some() {
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

    /// Restarts it as a standby that never hears of a primary: it answers queries, and stays in recovery.
    ///
    /// # Errors
    /// As [`PostgresServer::restart`].
    pub fn restart_as_standby(&mut self) -> Result<()> {
        let signal_file = self.data().join("standby.signal");
        File::create(&signal_file).map_err(PostgresError::io("standby.signal"))?;
        self.programs.give_to_server_user(&signal_file)?;
        self.restart()
    }

    /// Keeps the files as they are now: those of a standby that hears nothing more. The server is stopped for that, and started again.
    ///
    /// # Errors
    /// If they can't be copied.
    pub fn keep_files(&mut self) -> Result<()> {
        self.stop()?;
        super::files::copy(&self.data(), &self.directory.join("kept"))
            .map_err(PostgresError::io("a copy"))?;
        self.restart()
    }

    /// Crashes the server, and goes on with the files that were kept, as after a failover to that standby: what was acknowledged since is
    /// lost.
    ///
    /// # Errors
    /// If nothing was kept, or the server does not start.
    pub fn fail_over(&mut self) -> Result<()> {
        self.kill()?;
        fs::remove_dir_all(self.data()).map_err(PostgresError::io("the data"))?;
        fs::rename(self.directory.join("kept"), self.data()).map_err(PostgresError::io("the copy"))?;
        self.restart()
    }

    /// Stops every process of the server in its tracks, until [`PostgresServer::thaw`] or [`PostgresServer::kill`]: it reads and answers
    /// nothing.
    ///
    /// # Errors
    /// If it is not running.
    pub fn freeze(&self) -> Result<()> {
        // The postmaster first: it starts no other process then.
        let postmaster = self.processes()?.into_iter().next_back().expect("the postmaster is one of them");
        stop(postmaster)?;
        self.processes()?.into_iter().try_for_each(stop)
    }

    /// Lets a server go on that was frozen.
    ///
    /// # Errors
    /// If it is not running.
    pub fn thaw(&self) -> Result<()> {
        self.processes()?.into_iter().try_for_each(|process| signal(process, Signal::CONT))
    }

    /// Its processes, the postmaster's last.
    ///
    /// # Errors
    /// If it is not running.
    pub fn processes(&self) -> Result<Vec<Pid>> {
        let postmaster =
            self.postmaster.as_ref().ok_or_else(|| PostgresError::new("the server is not running"))?;
        let pid = pid_of(postmaster);
        Ok(procfs::children_of(pid).into_iter().chain([pid]).collect())
    }

    /// The server's whole log so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.log_path()).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// An empty directory and a port for a server that is not there yet.
    fn reserve(programs: Programs) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("lockstep-postgres-")
            .tempdir()
            .map_err(PostgresError::io("no temporary directory"))?;
        programs.give_to_server_user(directory.path())?;
        let pid_file = directory.path().join("data/postmaster.pid");
        let janitor = Janitor::watch(directory.path(), &pid_file)
            .map_err(PostgresError::io("the shell that cleans up does not run"))?;
        // From here on the janitor, and Drop, see to the directory.
        let port = reserve_port()?;
        Ok(Self {
            programs,
            directory: directory.keep(),
            port,
            postmaster: None,
            disk: None,
            _janitor: janitor,
        })
    }

    fn initialise(&self, settings: &[(&str, &str)]) -> Result<()> {
        let mut initdb = self.programs.command("initdb");
        // --no-sync: the directory need not survive a power failure, only crashes of the server.
        initdb.args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C"]);
        initdb.arg(format!("--username={SUPERUSER}")).arg("--pgdata").arg(self.data());
        let output = initdb.output().map_err(PostgresError::io("initdb does not run"))?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(PostgresError(format!("initdb in {} failed: {words}", self.directory.display())));
        }
        self.configure(SETTINGS)?;
        self.configure(&[("unix_socket_directories", &self.directory.to_string_lossy())])?;
        self.configure(settings)
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

    /// Starts the postmaster and waits until it takes connections. `false`: the port is in use.
    fn run(&mut self) -> Result<bool> {
        let log_start = self.log().len();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .map_err(PostgresError::io("the log can't be opened"))?;
        let stderr = log.try_clone().map_err(PostgresError::io("the log can't be opened"))?;
        let mut command = self.programs.command("postgres");
        command.arg("-D").arg(self.data()).arg("-p").arg(self.port.number().to_string());
        // An own process group: a Ctrl-C for the tests is not one for the server, which goes with its directory.
        command.stdin(Stdio::null()).stdout(log).stderr(stderr).process_group(0);
        let mut postmaster = command.spawn().map_err(PostgresError::io("postgres does not run"))?;
        let deadline = now() + PATIENCE;
        while !self.is_ready(&postmaster) {
            let exit = postmaster.try_wait().map_err(PostgresError::io("postgres can't be waited for"))?;
            if let Some(status) = exit {
                if self.log()[log_start..].contains("Address already in use") {
                    return Ok(false);
                }
                return Err(self.failed(&format!("the server did not start ({status})")));
            }
            if now() > deadline {
                let late = self.failed("the server takes too long to start");
                self.end(postmaster, Signal::QUIT)?;
                return Err(late);
            }
            thread::sleep(GLANCE);
        }
        self.postmaster = Some(postmaster);
        Ok(true)
    }

    /// Line 8 of `postmaster.pid` says so, as for `pg_ctl --wait`; line 1 tells a file that a crash has left
    /// behind.
    fn is_ready(&self, postmaster: &Child) -> bool {
        let text = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        lines.first() == Some(&postmaster.id().to_string().as_str()) && lines.get(7) == Some(&"ready")
    }

    fn take_postmaster(&mut self) -> Result<Child> {
        self.postmaster.take().ok_or_else(|| PostgresError::new("the server is not running"))
    }

    fn end(&self, mut postmaster: Child, how: Signal) -> Result<()> {
        signal(pid_of(&postmaster), how)?;
        wait_until("the server to stop", || !matches!(postmaster.try_wait(), Ok(None))).map_err(|late| {
            // Not left behind in any case.
            drop(postmaster.kill());
            self.failed(&late.0)
        })
    }

    /// An error that shows the end of the log.
    fn failed(&self, what: &str) -> PostgresError {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let end: Vec<String> = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..]
            .iter()
            .map(|line| line.chars().take(LOG_LINE_CHARACTERS).collect())
            .collect();
        let end = end.join("\n");
        PostgresError(format!("PostgreSQL in {}: {what}\n{end}", self.directory.display()))
    }

    /// Where the log is kept after a failure, beside the directory that goes away.
    fn keep_log(&self) -> PathBuf {
        let kept = self.directory.with_extension("log");
        drop(fs::copy(self.log_path(), &kept));
        kept
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}\nits whole log: {}", self.failed("the log's end"), self.keep_log().display());
        }
        if let Some(postmaster) = self.postmaster.take()
            && let Err(error) = self.end(postmaster, Signal::QUIT)
        {
            eprintln!("{error}");
        }
        drop(self.disk.take());
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            eprintln!("{} can't be removed: {error}", self.directory.display());
        }
    }
}

/// Gives a file, such as a key that nobody else may read, to the user that servers run as.
///
/// # Errors
/// If that is not possible.
pub fn give_to_server(file: &Path) -> Result<()> {
    Programs::find_or_install()?.give_to_server_user(file)
}

/// The one server of this process that tests share which only need a database of their own. Started when first
/// asked for; gone with the process.
///
/// # Panics
/// If it can't be started: no test that needs it is skipped.
pub fn shared() -> &'static PostgresServer {
    static SHARED: OnceLock<Result<PostgresServer>> = OnceLock::new();
    match SHARED.get_or_init(PostgresServer::start) {
        Ok(server) => server,
        Err(error) => panic!("no PostgreSQL server for the tests: {error}"),
    }
}

/// An empty database of the [`shared`] server. If the test panics, the end of the server's log is printed.
#[derive(Debug)]
pub struct Database {
    server: &'static PostgresServer,
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

    /// Where to connect to as `role`.
    #[must_use]
    pub fn url_as(&self, role: &str) -> String {
        self.server.url_as(role, &self.name)
    }

    /// What the server has logged about this database so far.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        let its_own = format!("] {} ", self.name);
        self.server.log().lines().filter(|line| line.contains(&its_own)).map(str::to_owned).collect()
    }

    /// Runs `sql` from outside, as [`PostgresServer::psql`].
    ///
    /// # Panics
    /// If that fails.
    pub fn psql(&self, sql: &str) -> String {
        self.server.psql(&self.name, sql).unwrap_or_else(|error| panic!("{error}"))
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.server.failed(&format!("the log's end ({} failed)", self.name)));
        }
    }
}

/// Runs a program to its end.
fn run(mut command: Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(PostgresError::io(format!("{command:?} does not run")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(PostgresError(format!("{command:?}\n{}", String::from_utf8_lossy(&output.stderr).trim_end())))
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

fn signal(pid: Pid, signal: Signal) -> Result<()> {
    match kill_process(pid, signal) {
        // Gone already is as good as told.
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(PostgresError(format!("process {pid:?} can't be sent {signal:?}: {error}"))),
    }
}

fn stop(pid: Pid) -> Result<()> {
    procfs::stop(pid).map_err(|failed| PostgresError(failed.to_string()))
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let deadline = now() + PATIENCE;
    while !condition() {
        if now() > deadline {
            return Err(PostgresError(format!("waited {PATIENCE:?} for {what}")));
        }
        thread::sleep(GLANCE);
    }
    Ok(())
}

/// For `programs`: a path as text for a shell or a person.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
