//! The documented commands, as short as they can be: they run, what they print has numbers in it, and what they write can be read.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::process::{Command, Output};

use bench::contender::Contender;
use bench::suite::Measured;
use tempfile::TempDir;

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bench")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs it with `--quick`, and reads what it writes as JSON.
fn measured(command: &str) -> (String, serde_json::Value) {
    let directory = TempDir::new().unwrap();
    let json = directory.path().join("measured.json");
    let ran = bench(&[command, "--quick", "--json", json.to_str().unwrap()]);
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    (text(&ran.stdout), serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap())
}

#[test]
fn a_suite_compares_checks_the_books_and_writes_what_it_has_measured() {
    let directory = TempDir::new().unwrap();
    let json = directory.path().join("suite.json");
    let (json, plots) = (json.to_str().unwrap(), directory.path().to_str().unwrap());
    let only = ["--only", "hand-services,lockstep", "--clients", "2", "--rounds", "1", "--seconds", "0.5"];
    let ran = bench(&[&["suite", "--json", json, "--plots", plots], &only[..]].concat());
    let (printed, said) = (text(&ran.stdout), text(&ran.stderr));
    // Beside other tests the disk may not stay the same, and it says so.
    let unsteady = said.contains("too many turns are void: the disk is not equally fast for long enough");
    assert!(ran.status.success() || unsteady, "{said}");
    assert!(printed.contains("the books were right after each run"), "{printed}");
    let measured: Measured = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    let turn = &measured.turns[0];
    assert_eq!(turn.cells.len(), 2);
    assert_eq!(turn.cells[1].contender, Contender::Lockstep);
    assert!(turn.cells.iter().all(|cell| cell.seen.all > 0 && cell.seen.failed == 0), "{turn:?}");
    assert!(measured.transfers >= turn.cells.iter().map(|cell| cell.seen.all).sum());
    for plot in ["throughput.svg", "latency.svg"] {
        let plot = std::fs::read_to_string(directory.path().join(plot)).unwrap();
        assert!(plot.starts_with("<svg") && plot.contains("(c) Lockstep"), "{plot}");
    }
}

#[test]
fn the_engine_alone_is_measured() {
    let ran = bench(&["engine", "--quick"]);
    let (printed, said) = (text(&ran.stdout), text(&ran.stderr));
    assert!(ran.status.success(), "{said}");
    assert!(printed.contains(" for each second of one core's time"), "{printed}");
}

#[test]
fn a_branch_and_its_database_are_measured() {
    let ran = bench(&["branch", "--quick"]);
    let (printed, said) = (text(&ran.stdout), text(&ran.stderr));
    assert!(ran.status.success(), "{said}");
    let of = |who: &str| printed.lines().filter(|line| line.contains(who)).count();
    assert_eq!((of("by hand"), of("Lockstep")), (2, 2), "{printed}");
}

/// What is counted hardly depends on the machine: a branch's statements cost so many times what they cost by hand, and no more. A newer server
/// may count otherwise, and then says by how much.
#[test]
fn the_statements_of_a_branch_are_counted() {
    let (_said, counted) = measured("statements");
    let instructions = |what: &str| {
        let of = |row: &&serde_json::Value| row["what"].as_str().unwrap().contains(what);
        counted.as_array().unwrap().iter().find(of).unwrap()["instructions"].as_f64().unwrap()
    };
    let by_hand = instructions("by hand");
    let [lockstep, without_evidence, without_position, without_functions, key_alone] = [
        "as Lockstep",
        "without the evidence",
        "without the position",
        "functions could not",
        "with the key alone",
    ]
    .map(instructions);
    assert!(lockstep < 3.9 * by_hand, "{counted:#}");
    assert!(without_evidence < lockstep && without_position < lockstep, "{counted:#}");
    assert!(without_functions > 1.2 * lockstep, "{counted:#}");
    assert!(without_evidence < key_alone && key_alone < lockstep, "{counted:#}");
}

#[test]
fn the_coordinator_alone_is_measured() {
    let (said, measured) = measured("coordinator");
    assert!(said.contains("each further branch costs the coordinator"), "{said}");
    let bytes = |records: &serde_json::Value| records["bytes"].as_f64().unwrap();
    let written_ahead: f64 = measured["shared_log"].as_array().unwrap().iter().map(bytes).sum();
    assert!((300.0..1000.0).contains(&written_ahead), "{measured:#}");
    assert!(said.contains("Btree/INSERT_LEAF"), "{said}");
}

#[test]
fn a_log_that_has_grown_is_measured() {
    let (said, measured) = measured("log");
    assert!(said.contains("10000 in doubt"), "{said}");
    assert_eq!(measured["ended"]["transactions"], 50_000);
}

#[test]
fn a_restart_with_branches_in_doubt_is_measured() {
    let (said, measured) = measured("restart");
    assert_eq!(said.matches("times the bare loop's mean").count(), 2, "{said}");
    assert!(measured["branches"].as_u64().unwrap() >= 1_000, "{measured:#}");
    for when in ["at_once", "afterwards"] {
        let recovery = &measured[when];
        assert_eq!(recovery["services_memory"].as_array().unwrap().len(), 2);
        let micros = |part: &str| recovery["committed"]["processor"][part].as_f64().unwrap();
        assert!(
            ["databases", "tellers", "coordinator"].map(micros).iter().all(|us| *us > 0.0),
            "{measured:#}"
        );
    }
    for bare in measured["bare"].as_array().unwrap() {
        let micros = |part: &str| bare["processor"][part].as_f64().unwrap();
        assert!(micros("bench") > 0.0 && micros("databases") > 0.0, "{measured:#}");
    }
}

#[test]
fn what_cannot_be_run_is_refused_in_words_before_anything_is_measured() {
    for (arguments, code, says) in [
        (&["suite", "--clients", "100000"][..], 1, "1 to 256 clients"),
        (&["suite", "--rounds", "0"], 1, "at least one turn"),
        (&["suite", "--seconds", "0"], 1, "at least one turn"),
        (&["suite", "--seconds=-1"], 1, "--seconds"),
        (&["suite", "--only", "dtmrs", "--dtmrs", "/nowhere"], 1, "no program at /nowhere"),
        (&["suite", "--plots", "/nowhere"], 2, "it is no directory"),
        (&["restart", "--json", "/nowhere/measured.json"], 2, "/nowhere/measured.json"),
    ] {
        let ran = bench(arguments);
        assert_eq!(ran.status.code(), Some(code), "{arguments:?}");
        assert!(text(&ran.stderr).contains(says), "{arguments:?}: {}", text(&ran.stderr));
    }
}
