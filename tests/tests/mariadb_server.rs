//! The harness's own MariaDB servers: what every other test relies on when it breaks one.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use lockstep_tests::harness::clock::now;
use lockstep_tests::harness::mariadb::{MariaDbServer, fresh_database};

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let deadline = now() + Duration::from_secs(30);
    while !condition() {
        assert!(now() < deadline, "waited too long for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn servers_are_separate_and_a_crash_loses_nothing_that_was_committed_or_prepared() {
    let mut one = MariaDbServer::start().unwrap();
    let other = MariaDbServer::start_with(&[("sync-binlog", "7")]).unwrap();
    assert_eq!(one.sql("", "SELECT @@innodb_flush_log_at_trx_commit").unwrap(), "1");
    assert_eq!(other.sql("", "SELECT @@sync_binlog").unwrap(), "7");
    assert_ne!(one.url("x"), other.url("x"));

    one.create_database("kept").unwrap();
    one.sql("kept", "CREATE TABLE kept (n int)").unwrap();
    one.sql("kept", "XA START 'doubt'; INSERT INTO kept VALUES (1); XA END 'doubt'; XA PREPARE 'doubt'")
        .unwrap();
    one.sql("kept", "INSERT INTO kept VALUES (2)").unwrap();
    let url = one.url("kept");
    one.kill().unwrap();
    assert!(one.sql("kept", "SELECT 1").is_err(), "a killed server answers");
    one.restart().unwrap();
    assert_eq!(one.url("kept"), url, "clients must find it again");
    assert!(one.log().contains("crash recovery"), "that was no crash:\n{}", one.log());
    one.sql("kept", "XA COMMIT 'doubt'").unwrap();
    assert_eq!(one.sql("kept", "SELECT sum(n) FROM kept").unwrap(), "3");

    one.configure(&[("read-only", "1")]);
    one.restart().unwrap();
    assert_eq!(one.sql("", "SELECT @@read_only").unwrap(), "1");
    one.stop().unwrap();
    assert!(one.stop().is_err(), "it was not running");
}

#[test]
fn a_server_that_cannot_start_shows_its_log() {
    let error = MariaDbServer::start_with(&[("innodb-page-size", "5")]).unwrap_err().to_string();
    assert!(error.contains("innodb"), "{error}");
}

#[test]
fn tests_share_a_server_and_not_a_database() {
    let (one, other) = (fresh_database(), fresh_database());
    one.sql("CREATE TABLE mine (n int)");
    assert_eq!(other.sql("SHOW TABLES"), "");
}

/// Not a test: the process that the next one kills.
#[test]
#[ignore = "started and killed by a_killed_test_process_leaves_nothing_behind"]
fn holds_a_server_until_it_is_killed() {
    let server = MariaDbServer::start().unwrap();
    println!("server {}", server.sql("", "SELECT @@datadir, @@pid_file").unwrap());
    // Until it is killed; at once where nobody holds the other end.
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[test]
fn a_killed_test_process_leaves_nothing_behind() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "holds_a_server_until_it_is_killed", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let line = lines.into_iter().find(|line| line.contains("server /")).unwrap();
    let (directory, pid_file) = line.split_once("server ").unwrap().1.split_once('\t').unwrap();
    let pid = std::fs::read_to_string(pid_file).unwrap();
    let process = format!("/proc/{}/fd/0", pid.trim());
    assert!(Path::new(directory).exists() && Path::new(&process).exists(), "no server at {line}");
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("the server's directory to go", || !Path::new(directory).exists());
    wait_for("the server to die", || !Path::new(&process).exists());
}
