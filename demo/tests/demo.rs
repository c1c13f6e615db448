//! The demo as a person runs it: real processes, real kills, small numbers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// How often a condition is looked at, and how many times: nothing here takes a minute. A test that would hang fails
/// instead.
const LOOK_EVERY: Duration = Duration::from_millis(5);
const LOOKS: u32 = 12_000;

/// The demo, with its directory below `temp`.
fn demo(temp: &TempDir, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
    command.args(args).env("TMPDIR", temp.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a run to its end came to.
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let code = output.status.code().expect("it ended by itself");
        Self { code, stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self}"))
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit code {}\n{}\n{}", self.code, self.stdout, self.stderr)
    }
}

fn run(args: &[&str]) -> Ran {
    let temp = TempDir::new().unwrap();
    let ran = demo(&temp, args).output().unwrap().into();
    assert_eq!(entries(temp.path()), 0, "a run leaves nothing behind: {ran}");
    ran
}

fn entries(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

/// Waits until `done`.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..LOOKS {
        if done() {
            return;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    panic!("waited in vain until {what}");
}

/// A run that goes on for as long as a test needs, with all three processes up.
struct Running {
    temp: TempDir,
    parent: Child,
    children: Children,
}

/// Ended with the test, if the run has not done so.
struct Children(Vec<Pid>);

impl Drop for Children {
    fn drop(&mut self) {
        for child in self.0.iter().filter(|child| !is_gone(**child)) {
            let _gone_meanwhile = kill_process(*child, Signal::KILL);
        }
    }
}

impl Running {
    fn start(args: &[&str]) -> Self {
        let temp = TempDir::new().unwrap();
        let mut parent =
            demo(&temp, &[&["--transfers=1000000", "--kills=0"], args].concat()).spawn().unwrap();
        let mut children = Children(Vec::new());
        until("all three processes have a log and say something", || {
            assert!(parent.try_wait().unwrap().is_none(), "the run has ended");
            children.0 = children_of(&parent);
            let logs = ["coordinator.log", "bank-a.log", "bank-b.log"];
            let mut dirs = std::fs::read_dir(temp.path()).unwrap();
            let spoke =
                |dir: &Path| logs.iter().all(|log| dir.join(log).metadata().is_ok_and(|log| log.len() > 0));
            children.0.len() == 3 && dirs.any(|dir| spoke(&dir.unwrap().path()))
        });
        Self { temp, parent, children }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.parent.id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }
}

fn children_of(parent: &Child) -> Vec<Pid> {
    let id = parent.id();
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    children.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap()).unwrap()).collect()
}

/// Ended. An orphan that nobody has reaped yet is a zombie, and runs nothing any more.
fn is_gone(pid: Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    let zombie = status.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')));
    zombie || test_kill_process(pid).is_err()
}

#[test]
fn every_process_is_killed_and_the_books_are_right() {
    let temp = TempDir::new().unwrap();
    let mut demo = demo(&temp, &["--transfers=60", "--kills=6", "--seed=11", "--json"]);
    // What is meant for other coordinators and for the internet is not meant for these.
    demo.env("LOCKSTEP_LISTEN", "127.0.0.1:1").env("http_proxy", "http://127.0.0.1:1");
    let ran: Ran = demo.output().unwrap().into();
    let report = ran.json();
    assert_eq!((ran.code, &report["violations"]), (0, &0.into()), "{ran}");
    assert_eq!(report["kills"], 6);
    assert_eq!(report["kills_by_role"], serde_json::json!({ "coordinator": 2, "bank-a": 2, "bank-b": 2 }));
    assert_eq!((&report["seed"], &report["mode"]), (&11.into(), &"lockstep".into()));
    let number = |field: &str| report[field].as_u64().unwrap_or_else(|| panic!("{field}: {report}"));
    assert!(number("transfers") >= 60 && number("committed") > 0, "{report}");
    assert_eq!(number("committed") + number("rolled_back"), number("transfers"), "{report}");
    assert_eq!((number("unknown_left"), number("money_after")), (0, number("money_before")), "{report}");
}

#[test]
fn one_client_alone_gives_the_killer_every_moment_too() {
    let ran = run(&["--transfers=60", "--kills=6", "--clients=1", "--seed=3", "--json"]);
    assert_eq!((ran.code, &ran.json()["kills"]), (0, &6.into()), "{ran}");
}

#[test]
fn two_plain_commits_go_wrong_under_the_same_kills() {
    for seed in ["--seed=1", "--seed=2", "--seed=3", "--seed=4", "--seed=5"] {
        let ran = run(&["--naive", "--transfers=60", "--kills=3", seed, "--json"]);
        let report = ran.json();
        assert_eq!(ran.code, 1, "{ran}");
        assert_eq!(
            report["kills_by_role"],
            serde_json::json!({ "coordinator": 1, "bank-a": 1, "bank-b": 1 })
        );
        let violations = report["violation_list"].as_array().unwrap();
        assert!(!violations.is_empty() && report["violations"] == violations.len(), "{report}");
        assert!(violations[0].as_str().unwrap().contains("transfer"), "{report}");
    }
}

#[test]
fn two_plain_commits_go_right_as_long_as_nobody_is_killed() {
    let ran = run(&["--naive", "--transfers=200", "--kills=0", "--seed=1", "--json"]);
    assert_eq!((ran.code, &ran.json()["violations"]), (0, &0.into()), "{ran}");
}

#[test]
fn without_json_there_is_a_table_of_80_columns_and_a_verdict() {
    let right = run(&["--transfers=30", "--kills=0"]);
    assert_eq!(right.code, 0, "{right}");
    assert!(right.stdout.ends_with("no branch is left prepared.\n"), "{right}");
    let wrong = run(&["--naive", "--transfers=30", "--kills=3"]);
    assert_eq!(wrong.code, 1, "{wrong}");
    assert!(wrong.stdout.contains("The books are wrong"), "{wrong}");
    for line in right.stdout.lines().chain(wrong.stdout.lines()) {
        assert!(line.chars().count() <= 80, "{line}");
    }
    assert!(right.stderr.lines().count() <= 5, "there is no terminal to draw on: {right}");
}

#[test]
fn what_is_kept_is_where_it_is_said_to_be() {
    let temp = TempDir::new().unwrap();
    let ran: Ran = demo(&temp, &["--transfers=10", "--kills=0", "--keep", "--json"]).output().unwrap().into();
    let report = ran.json();
    let dir = Path::new(report["kept"].as_str().unwrap());
    assert!(dir.starts_with(temp.path()), "{ran}");
    for file in ["bank-a.db", "bank-b.db", "decision-log/decisions.db", "coordinator.log", "bank-a.log"] {
        assert!(dir.join(file).metadata().unwrap().len() > 0, "{file}");
    }
    assert!(ran.stderr.contains(&format!("kept: {}", dir.display())), "{ran}");
}

#[test]
fn what_cannot_be_is_refused_before_anything_starts() {
    for (args, says) in [
        (&["--kills=7", "--transfers=60"][..], "--kills 7 with --clients 8 needs at least --transfers 70"),
        (&["--kills=4294967295"], "needs at least --transfers 4294967295"),
        (&["--kills=10", "--clients=99"], "--transfers 1010, 101 for each kill, and there are 1000"),
        (&["--kills=-1"], "--kills"),
        (&["--transfers=0"], "1..=1000000"),
        (&["--clients=0"], "1..=256"),
        (&["--seed=moon"], "--seed"),
        (&["--kill=3"], "--kills"),
        (&["bank-c"], "bank-c"),
    ] {
        let ran = run(args);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{args:?}: {ran}");
        assert!(ran.stderr.contains(says), "{args:?}: {ran}");
    }
    let help = run(&["--help"]);
    assert!(!help.stdout.contains("coordinator  "), "the roles are nothing to type: {help}");
}

#[test]
fn a_parent_that_is_killed_leaves_no_process_behind() {
    let mut running = Running::start(&[]);
    running.signal(Signal::KILL);
    running.parent.wait().unwrap();
    until("no child is left", || running.children.0.iter().all(|child| is_gone(*child)));
}

#[test]
fn ctrl_c_leaves_no_process_and_no_file_behind() {
    let running = Running::start(&["--json"]);
    running.signal(Signal::INT);
    let (temp, children) = (running.temp, running.children);
    let ran: Ran = running.parent.wait_with_output().unwrap().into();
    assert_eq!((ran.code, &ran.json()["error"]), (1, &"interrupted".into()), "{ran}");
    assert!(children.0.iter().all(|child| is_gone(*child)), "they are reaped before it ends");
    assert_eq!(entries(temp.path()), 0);
}

#[test]
fn a_process_that_ends_without_being_killed_by_the_killer_fails_the_run() {
    let running = Running::start(&["--json"]);
    let [coordinator, ..] = running.children.0[..] else { panic!("three are running") };
    kill_process(coordinator, Signal::KILL).unwrap();
    let (temp, children) = (running.temp, running.children);
    let ran: Ran = running.parent.wait_with_output().unwrap().into();
    assert_eq!(ran.code, 1, "{ran}");
    assert_eq!(ran.json()["error"], "coordinator ended unexpectedly: signal: 9 (SIGKILL)");
    assert!(ran.stderr.contains("--- the last lines of coordinator\n"), "{ran}");
    assert!(children.0.iter().all(|child| is_gone(*child)), "{ran}");
    assert_eq!(entries(temp.path()), 1, "its files are kept for whoever looks into it: {ran}");
}
