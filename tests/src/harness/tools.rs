//! Programs that others have made, from Debian's packages: checkers of what is in `deploy/`, `strace`, and `valgrind`.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::debian::install;
use super::{Failed, Result};

/// Runs Prometheus' `promtool` with these arguments in this directory, with this on its stdin: what it said, if it was content.
///
/// # Errors
/// What it complained of, or that it is not there and cannot be installed.
pub fn promtool(arguments: &[&str], directory: &Path, stdin: &str) -> Result<String> {
    run("/usr/bin/promtool", "prometheus", arguments, directory, stdin)
}

/// Runs `systemd-analyze` with these arguments in this directory: what it said, if it was content. It needs no systemd that runs.
///
/// # Errors
/// What it complained of, or that it is not there and cannot be installed.
pub fn systemd_analyze(arguments: &[&str], directory: &Path) -> Result<String> {
    run("/usr/bin/systemd-analyze", "systemd", arguments, directory, "")
}

/// Runs `shellcheck` with these arguments in this directory: what it said, if it was content.
///
/// # Errors
/// What it complained of, or that it is not there and cannot be installed.
pub fn shellcheck(arguments: &[&str], directory: &Path) -> Result<String> {
    run("/usr/bin/shellcheck", "shellcheck", arguments, directory, "")
}

/// `strace`, for what traces system calls or has them fail.
///
/// # Errors
/// If it may not trace here, or is not there and cannot be installed.
pub fn need_strace() -> Result<()> {
    run("/usr/bin/strace", "strace", &["-f", "-o", "/dev/null", "true"], Path::new("/"), "").map(drop)
}

/// `valgrind`, for what counts instructions.
///
/// # Errors
/// If it is not there and cannot be installed.
pub fn need_valgrind() -> Result<()> {
    run("/usr/bin/valgrind", "valgrind", &["--version"], Path::new("/"), "").map(drop)
}

fn run(program: &str, package: &str, arguments: &[&str], directory: &Path, stdin: &str) -> Result<String> {
    let is_there = || Path::new(program).exists();
    if !is_there() {
        install(&[package], is_there).map_err(Failed::new)?;
    }
    let cannot = || Failed::because(format!("{program} does not run"));
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(cannot())?;
    child.stdin.take().expect("it is piped").write_all(stdin.as_bytes()).map_err(cannot())?;
    let output = child.wait_with_output().map_err(cannot())?;
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    if output.status.success() {
        Ok(said)
    } else {
        Err(Failed::new(format!("{program} {arguments:?}: {said}")))
    }
}
