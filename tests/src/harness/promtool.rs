//! Prometheus' own checker, from Debian's package `prometheus`.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::debian::install;
use super::{Failed, Result};

const PROGRAM: &str = "/usr/bin/promtool";

/// Runs `promtool` with these arguments in this directory, with this on its stdin: what it said, if it was content.
///
/// # Errors
/// What it complained of, or that it is not there and cannot be installed.
pub fn promtool(arguments: &[&str], directory: &Path, stdin: &str) -> Result<String> {
    let is_there = || Path::new(PROGRAM).exists();
    if !is_there() {
        install(&["prometheus"], is_there).map_err(Failed::new)?;
    }
    let cannot = || Failed::because("promtool does not run");
    let mut command = Command::new(PROGRAM);
    command.args(arguments).current_dir(directory);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = command.spawn().map_err(cannot())?;
    promtool.stdin.take().expect("it is piped").write_all(stdin.as_bytes()).map_err(cannot())?;
    let output = promtool.wait_with_output().map_err(cannot())?;
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    if output.status.success() {
        Ok(said)
    } else {
        Err(Failed::new(format!("promtool {arguments:?}: {said}")))
    }
}
