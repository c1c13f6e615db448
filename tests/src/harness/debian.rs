//! What database servers need of a Debian system: their packages, and somebody to run as.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// One installation at a time on a machine, however many test processes need one.
const INSTALL_LOCK: &str = "lockstep-install.lock";

/// Whom a server runs as, where this process is root: servers refuse root.
#[derive(Debug, Clone, Copy)]
pub(super) struct User {
    uid: u32,
    gid: u32,
}

/// Installs `packages`, unless `is_there` once it is this process' turn: whoever had it before may have installed them. The
/// error is a sentence.
pub(super) fn install(packages: &[&str], is_there: impl Fn() -> bool) -> Result<(), String> {
    let path = std::env::temp_dir().join(INSTALL_LOCK);
    let no_lock = |error: io::Error| format!("{}: {error}", path.display());
    let lock = File::create(&path).map_err(no_lock)?;
    lock.lock().map_err(no_lock)?;
    if is_there() {
        return Ok(());
    }
    apt_get(&["update"])?;
    apt_get(&[&["install", "-y", "--no-install-recommends"], packages].concat())
}

fn apt_get(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("/usr/bin/apt-get")
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("apt-get does not run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "a database server's programs are needed, and `apt-get {}` failed ({}):\n{}{}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    ))
}

/// `name`, which the server's package may have made, or else `nobody`. `None`: this process is not root, and a server can run as
/// it does. The error is a sentence.
pub(super) fn server_user(name: &str) -> Result<Option<User>, String> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let accounts = fs::read_to_string("/etc/passwd").map_err(|error| format!("/etc/passwd: {error}"))?;
    let find = |name: &str| {
        accounts.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == name).then_some(())?;
            Some(User { uid: fields.nth(1)?.parse().ok()?, gid: fields.next()?.parse().ok()? })
        })
    };
    find(name).or_else(|| find("nobody")).map(Some).ok_or_else(|| {
        format!("database servers refuse to run as root, and /etc/passwd has neither {name} nor nobody")
    })
}

/// Has the command run as `user`.
pub(super) fn run_as(command: &mut Command, user: Option<User>) {
    if let Some(User { uid, gid }) = user {
        command.uid(uid).gid(gid);
    }
}

/// Gives a file or a directory to `user`.
pub(super) fn give(path: &Path, user: Option<User>) -> io::Result<()> {
    let Some(User { uid, gid }) = user else { return Ok(()) };
    chown(path, Some(uid), Some(gid))
}
