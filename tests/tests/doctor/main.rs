//! `lockstep doctor` as a person runs it, against real servers and files with real faults; and that what it says mends them.

#![allow(clippy::unwrap_used, reason = "a test panics where something is not as it should be")]

mod documented;
mod mysql;
mod postgres;
mod sqlite;

use std::path::Path;
use std::process::Stdio;

use lockstep::resource::BranchId;
use lockstep_proto::{Bqual, ClusterId, Epoch, Gtrid, Incarnation, LogPosition, ResourceManagerName, Xid};
use lockstep_tests::harness::roles::Roles;
use serde_json::Value;

/// The exit codes of docs/cli.md.
const OK: i32 = 0;
const USAGE: i32 = 2;
const UNFIT: i32 = 10;
const UNREACHABLE: i32 = 11;

/// What a run left behind.
#[derive(Debug)]
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

/// Runs `lockstep` with these arguments.
fn lockstep(arguments: &[&str]) -> Ran {
    let mut command = Roles::played_by(env!("CARGO_BIN_EXE_prove")).command("coordinator");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.arg("--").args(arguments).spawn().unwrap();
    // It takes the end of its standard input for the end of this process.
    let _open = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).expect("the program writes UTF-8");
    let code = output.status.code().expect("it ended by itself");
    Ran { code, stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A report as `--json` prints it, and the exit code.
#[derive(Debug)]
struct Report {
    code: i32,
    json: Value,
}

fn report(arguments: &[&str]) -> Report {
    let ran = lockstep(&[&["doctor", "--json", "--timeout=60s"], arguments].concat());
    let json = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    Report { code: ran.code, json }
}

fn of_postgres(url: &str) -> Report {
    report(&["--postgres", url])
}

fn of_mysql(url: &str) -> Report {
    report(&["--mysql", url])
}

fn of_sqlite(path: &Path) -> Report {
    report(&["--sqlite", path.to_str().unwrap()])
}

impl Report {
    fn finding(&self, check: &str) -> &Value {
        let findings = self.json["findings"].as_array().unwrap();
        let mut found = findings.iter().filter(|finding| finding["check"] == check);
        let one = found.next().unwrap_or_else(|| panic!("no finding of {check}: {:#}", self.json));
        assert!(found.next().is_none(), "several findings of {check}: {:#}", self.json);
        one
    }

    /// That the finding of `check` is this bad, and says this.
    #[track_caller]
    fn says(&self, check: &str, severity: &str, words: &str) -> &Value {
        let finding = self.finding(check);
        assert_eq!(finding["severity"], severity, "{finding:#}");
        assert!(finding["what"].as_str().unwrap().contains(words), "{words:?} is not in {finding:#}");
        finding
    }

    /// The statements that mend `check`; commands of other programs are left out.
    fn statements(&self, check: &str) -> Vec<String> {
        let mend = self.finding(check)["mend"].as_array().unwrap();
        let mend = mend.iter().map(|command| command.as_str().unwrap());
        mend.filter(|command| command.contains(';')).map(str::to_owned).collect()
    }
}

fn name(text: &str) -> ResourceManagerName {
    text.parse().unwrap()
}

/// A branch of `orders-db` that nobody has used.
fn branch(cluster: ClusterId) -> BranchId {
    let gtrid = Gtrid::new(Epoch::new(12).unwrap(), 1_767_323_045_678, rand::random());
    BranchId { cluster, xid: Xid { gtrid, bqual: Bqual::new(&name("orders-db"), rand::random()) } }
}

fn position() -> LogPosition {
    let incarnation = Incarnation::from_bytes([7; 16]);
    LogPosition { epoch: Epoch::new(12).unwrap(), incarnation, sequence: 1 }
}
