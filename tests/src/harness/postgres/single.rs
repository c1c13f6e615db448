//! A session without a server around it (`postgres --single`), and how many instructions it needs: a count that is nearly the same each time, whatever
//! else the machine does.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{PostgresError, PostgresServer, Result};
use crate::harness::tools;

/// Where Debian's package puts it.
const VALGRIND: &str = "/usr/bin/valgrind";

impl PostgresServer {
    /// Runs queries, one a line, in a session of their own. The server has to be stopped.
    ///
    /// # Errors
    /// If the server runs, or one of them is refused.
    pub fn run_single(&self, database: &str, queries: &str) -> Result<()> {
        self.single(self.programs.command("postgres"), database, queries).map(drop)
    }

    /// The same, and the instructions that it needed, start and end included. Without `fsync`, and without the kernel's.
    ///
    /// # Errors
    /// As [`PostgresServer::run_single`], or if `valgrind` is not there and can't be installed.
    pub fn instructions(&self, database: &str, queries: &str) -> Result<u64> {
        tools::need_valgrind().map_err(|error| PostgresError::new(error.to_string()))?;
        let mut valgrind = self.programs.command_at(Path::new(VALGRIND));
        let out = self.directory.join("callgrind.out");
        valgrind.arg("--tool=callgrind").arg(format!("--callgrind-out-file={}", out.display()));
        valgrind.arg(self.programs.path("postgres"));
        let said = self.single(valgrind, database, queries)?;
        let count = said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
        count.ok_or_else(|| PostgresError(format!("callgrind has counted nothing: {said}")))
    }

    /// What was said to stderr.
    fn single(&self, mut command: Command, database: &str, queries: &str) -> Result<String> {
        if self.postmaster.is_some() {
            return Err(PostgresError::new("a session without a server has to be alone with its files"));
        }
        command.args(["--single", "-F", "-c", "log_statement=none", "-D"]).arg(self.data()).arg(database);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let cannot = "postgres --single does not run";
        let mut session = command.spawn().map_err(PostgresError::io(cannot))?;
        let mut stdin = session.stdin.take().expect("it is piped");
        stdin.write_all(queries.as_bytes()).map_err(PostgresError::io(cannot))?;
        drop(stdin);
        let output = session.wait_with_output().map_err(PostgresError::io(cannot))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match said.lines().find(|line| line.contains("ERROR:")) {
            None if output.status.success() => Ok(said),
            refused => Err(PostgresError(format!("postgres --single: {}", refused.unwrap_or(&said)))),
        }
    }
}
