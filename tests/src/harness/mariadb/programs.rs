//! The server's programs: found, or installed from Debian's packages, and run as somebody whom MariaDB accepts.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{MariaDbError, Result};
use crate::harness::debian::{self, User};

/// The server and the client without what would make a server of the machine's own.
const PACKAGES: &[&str] = &["mariadb-server-core", "mariadb-client-core"];
/// Where programs are looked for beside the path of this process, which may lack the second.
const FOLDERS: &[&str] = &["/usr/bin", "/usr/sbin"];
const NEEDED: &[&str] = &["mariadbd", "mariadb-install-db", "mariadb"];

#[derive(Debug, Clone)]
pub(super) struct Programs {
    user: Option<User>,
}

impl Programs {
    /// The server programs of this machine; where there are none, Debian's packages are installed first.
    pub(super) fn find_or_install() -> Result<Self> {
        if !is_complete() {
            install()?;
        }
        Ok(Self { user: debian::server_user("mysql").map_err(MariaDbError)? })
    }

    pub(super) fn path(&self, program: &str) -> PathBuf {
        find(program).unwrap_or_else(|| PathBuf::from(program))
    }

    /// A program of the server, to be run as the server's user.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.path(program));
        debian::run_as(&mut command, self.user);
        // Started from a directory that the user can be in, with messages that can be searched.
        command.current_dir("/").env("LC_ALL", "C").env_remove("MYSQL_HOME");
        command
    }

    pub(super) fn give_to_server_user(&self, path: &Path) -> Result<()> {
        debian::give(path, self.user).map_err(MariaDbError::io(format!("chown of {}", path.display())))
    }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    FOLDERS
        .iter()
        .map(PathBuf::from)
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

fn is_complete() -> bool {
    NEEDED.iter().all(|program| find(program).is_some())
}

fn install() -> Result<()> {
    let missing = "MariaDB's server programs are needed and not installed";
    if !rustix::process::geteuid().is_root() || !Path::new("/usr/bin/apt-get").exists() {
        return Err(MariaDbError(format!(
            "{missing}, and only root on a Debian system can be helped by this harness: install MariaDB 10.5 or newer so that \
             {NEEDED:?} are on the PATH"
        )));
    }
    eprintln!("{missing}: installing Debian's packages {PACKAGES:?}");
    debian::install(PACKAGES, is_complete).map_err(MariaDbError)?;
    if is_complete() {
        return Ok(());
    }
    Err(MariaDbError(format!("{missing}: apt-get installed {PACKAGES:?}, but {NEEDED:?} are not there")))
}
