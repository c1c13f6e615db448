//! The server's programs: found, or installed from Debian's package, and run as somebody whom PostgreSQL accepts.

use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{PostgresError, Result, text};

/// Where Debian puts them: one folder per major version.
const DEBIAN: &str = "/usr/lib/postgresql";
/// Tells Debian's package to make no server of its own.
const NO_CLUSTER: &str = "/etc/postgresql-common/createcluster.d/lockstep.conf";
/// One installation at a time on a machine, however many test processes need it.
const INSTALL_LOCK: &str = "lockstep-install-postgresql.lock";

/// Whom the server runs as, where this process is root: PostgreSQL refuses root.
#[derive(Debug, Clone, Copy)]
struct User {
    uid: u32,
    gid: u32,
}

#[derive(Debug, Clone)]
pub(super) struct Programs {
    folder: PathBuf,
    user: Option<User>,
}

impl Programs {
    /// The newest server programs of this machine; where there are none, Debian's package is installed first.
    pub(super) fn find_or_install() -> Result<Self> {
        let folder = match find() {
            Some(folder) => folder,
            None => install()?,
        };
        let user = if rustix::process::geteuid().is_root() { Some(server_user()?) } else { None };
        Ok(Self { folder, user })
    }

    pub(super) fn path(&self, program: &str) -> PathBuf {
        self.folder.join(program)
    }

    /// A program of the server, to be run as the server's user.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.path(program));
        if let Some(User { uid, gid }) = self.user {
            command.uid(uid).gid(gid);
        }
        // Started from a directory that the user can be in, with messages that can be searched.
        command.current_dir("/").env("LC_ALL", "C").env_remove("PGDATA");
        command
    }

    pub(super) fn give_to_server_user(&self, path: &Path) -> Result<()> {
        let Some(User { uid, gid }) = self.user else { return Ok(()) };
        chown(path, Some(uid), Some(gid)).map_err(PostgresError::io(format!("chown of {}", path.display())))
    }
}

/// The folder with the newest programs: Debian's, else the first one on the path.
fn find() -> Option<PathBuf> {
    let newest = fs::read_dir(DEBIAN)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|version| is_complete(&debian_folder(*version)))
        .max();
    newest.map(debian_folder).or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).find(|folder| is_complete(folder))
    })
}

fn debian_folder(version: u32) -> PathBuf {
    Path::new(DEBIAN).join(version.to_string()).join("bin")
}

fn is_complete(folder: &Path) -> bool {
    ["initdb", "postgres", "psql"].iter().all(|program| folder.join(program).is_file())
}

fn install() -> Result<PathBuf> {
    let missing = "PostgreSQL's server programs are needed and not installed";
    if !rustix::process::geteuid().is_root() || !Path::new("/usr/bin/apt-get").exists() {
        return Err(PostgresError(format!(
            "{missing}, and only root on a Debian system can be helped by this harness: install PostgreSQL 14 or newer \
             so that initdb, postgres and psql are in {DEBIAN}/<version>/bin or on the PATH"
        )));
    }
    let lock_path = std::env::temp_dir().join(INSTALL_LOCK);
    let lock = File::create(&lock_path).map_err(PostgresError::io(text(&lock_path)))?;
    lock.lock().map_err(PostgresError::io(text(&lock_path)))?;
    // Whoever held the lock before has installed them.
    if let Some(folder) = find() {
        return Ok(folder);
    }
    eprintln!("{missing}: installing Debian's package postgresql");
    forbid_cluster()?;
    apt_get(&["update"])?;
    apt_get(&["install", "-y", "--no-install-recommends", "postgresql"])?;
    find().ok_or_else(|| {
        PostgresError(format!("{missing}: apt-get installed postgresql, but {DEBIAN} has no programs"))
    })
}

fn forbid_cluster() -> Result<()> {
    let path = Path::new(NO_CLUSTER);
    let folder = path.parent().expect("the path of a file has a parent");
    fs::create_dir_all(folder).map_err(PostgresError::io(text(folder)))?;
    fs::write(path, "create_main_cluster = false\n").map_err(PostgresError::io(NO_CLUSTER))
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let output = Command::new("/usr/bin/apt-get")
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .map_err(PostgresError::io("apt-get does not run"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(PostgresError(format!(
        "PostgreSQL's server programs are needed, and `apt-get {}` failed ({}):\n{}{}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    )))
}

/// `postgres`, which the package makes, or else `nobody`.
fn server_user() -> Result<User> {
    let accounts = fs::read_to_string("/etc/passwd").map_err(PostgresError::io("/etc/passwd"))?;
    let find = |name: &str| {
        accounts.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == name).then_some(())?;
            Some(User { uid: fields.nth(1)?.parse().ok()?, gid: fields.next()?.parse().ok()? })
        })
    };
    find("postgres").or_else(|| find("nobody")).ok_or_else(|| {
        PostgresError::new(
            "PostgreSQL refuses to run as root, and /etc/passwd has neither postgres nor nobody",
        )
    })
}
