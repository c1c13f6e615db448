//! The server's programs: found, or installed from Debian's package, and run as somebody whom PostgreSQL accepts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{PostgresError, Result, text};
use crate::harness::debian::{self, User};

/// Where Debian puts them: one folder per major version.
const DEBIAN: &str = "/usr/lib/postgresql";
/// Tells Debian's package to make no server of its own.
const NO_CLUSTER: &str = "/etc/postgresql-common/createcluster.d/lockstep.conf";
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
        let user = debian::server_user("postgres").map_err(PostgresError)?;
        Ok(Self { folder, user })
    }

    pub(super) fn path(&self, program: &str) -> PathBuf {
        self.folder.join(program)
    }

    /// A program of the server, to be run as the server's user.
    pub(super) fn command(&self, program: &str) -> Command {
        self.command_at(&self.path(program))
    }

    /// A program that may be anybody's, to be run as the server's user.
    pub(super) fn command_at(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        debian::run_as(&mut command, self.user);
        // Started from a directory that the user can be in, with messages that can be searched.
        command.current_dir("/").env("LC_ALL", "C").env_remove("PGDATA");
        command
    }

    pub(super) fn give_to_server_user(&self, path: &Path) -> Result<()> {
        debian::give(path, self.user).map_err(PostgresError::io(format!("chown of {}", path.display())))
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
    eprintln!("{missing}: installing Debian's package postgresql");
    forbid_cluster()?;
    debian::install(&["postgresql"], || find().is_some()).map_err(PostgresError)?;
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
