//! The harness's own PostgreSQL servers: what every other test relies on when it breaks one.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use lockstep_tests::harness::clock::now;
use lockstep_tests::harness::postgres::{PostgresServer, fresh_database};

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let deadline = now() + Duration::from_secs(30);
    while !condition() {
        assert!(now() < deadline, "waited too long for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn servers_are_separate_and_a_crash_loses_nothing_that_was_committed() {
    let mut one = PostgresServer::start().unwrap();
    let other = PostgresServer::start_with(&[("max_prepared_transactions", "0")]).unwrap();
    assert_eq!(one.psql("postgres", "SHOW fsync").unwrap(), "on");
    assert_eq!(other.psql("postgres", "SHOW max_prepared_transactions").unwrap(), "0");
    assert_ne!(one.url("postgres"), other.url("postgres"));

    one.psql("postgres", "CREATE TABLE kept (n int)").unwrap();
    one.psql("postgres", "BEGIN; INSERT INTO kept VALUES (1); PREPARE TRANSACTION 'doubt'").unwrap();
    one.psql("postgres", "INSERT INTO kept VALUES (2)").unwrap();
    let url = one.url("postgres");
    one.kill().unwrap();
    assert!(one.psql("postgres", "SELECT 1").is_err(), "a killed server answers");
    one.restart().unwrap();
    assert_eq!(one.url("postgres"), url, "clients must find it again");
    assert!(one.log().contains("was not properly shut down"), "that was no crash:\n{}", one.log());
    one.psql("postgres", "COMMIT PREPARED 'doubt'").unwrap();
    assert_eq!(one.psql("postgres", "SELECT sum(n) FROM kept").unwrap(), "3");

    one.restart_as_standby().unwrap();
    assert_eq!(one.psql("postgres", "SELECT pg_is_in_recovery()").unwrap(), "t");
    assert_eq!(one.psql("postgres", "SELECT pg_promote()").unwrap(), "t");
    assert_eq!(one.psql("postgres", "INSERT INTO kept VALUES (4) RETURNING n").unwrap(), "4");
    one.stop().unwrap();
    assert!(one.stop().is_err(), "it was not running");
}

#[test]
fn a_server_that_cannot_start_shows_its_log() {
    let error = PostgresServer::start_with(&[("shared_buffers", "much")]).unwrap_err().to_string();
    assert!(error.contains("invalid value for parameter \"shared_buffers\""), "{error}");
}

#[test]
fn tests_share_a_server_and_not_a_database() {
    let (one, other) = (fresh_database(), fresh_database());
    one.psql("CREATE TABLE mine (n int)");
    assert_eq!(other.psql("SELECT to_regclass('mine') IS NULL"), "t");
}

/// Not a test: the process that the next one kills.
#[test]
#[ignore = "started and killed by a_killed_test_process_leaves_nothing_behind"]
fn holds_a_server_until_it_is_killed() {
    let server = PostgresServer::start().unwrap();
    let directory = server.psql("postgres", "SHOW unix_socket_directories").unwrap();
    let postmaster = server.psql("postgres", "SELECT pg_read_file('postmaster.pid')").unwrap();
    println!("server {directory} {}", postmaster.lines().next().unwrap());
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
    let (directory, pid) = line.split_once("server ").unwrap().1.split_once(' ').unwrap();
    let process = format!("/proc/{pid}/fd/0");
    assert!(Path::new(directory).exists() && Path::new(&process).exists(), "no server at {line}");
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("the server's directory to go", || !Path::new(directory).exists());
    wait_for("the server to die", || !Path::new(&process).exists());
}
