//! The shop without Docker, as a person runs it: real processes, real kills, and the books.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

#[test]
fn the_shop_sells_while_it_is_killed_and_its_books_are_right() {
    let temp = TempDir::new().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
    command.args(["shop", "--seconds", "12", "--kill-every", "2", "--json"]).env("TMPDIR", temp.path());
    let ran = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{out}{err}");
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["books"]["violations"], 0, "{json}");
    assert_eq!(json["books"]["in_doubt"], 0, "{json}");
    assert_eq!(json["told"]["heuristic"], 0, "{json}");
    let kills: u64 = json["kills"].as_object().unwrap().values().map(|times| times.as_u64().unwrap()).sum();
    assert!(kills >= 1, "{json}");
    let (told, done) =
        (json["told"]["committed"].as_u64().unwrap(), json["books"]["orders"].as_u64().unwrap());
    assert!(told >= 10, "{json}");
    assert_eq!(told, done, "every order that is in the books was told as done: {json}");
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0, "a run leaves nothing behind");
}

/// A database that is none of the shop's kinds is an error that names it, and a usage error is one too.
#[test]
fn a_service_on_a_database_of_another_kind_is_refused() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
    command.args([
        "shop",
        "serve",
        "inventory",
        "--listen",
        "127.0.0.1:0",
        "--database",
        "mysql://shop@db/shop",
    ]);
    let ran = command.args(["--coordinators", "http://127.0.0.1:1"]).output().unwrap();
    assert_eq!(ran.status.code(), Some(1));
    let err = String::from_utf8_lossy(&ran.stderr);
    assert!(err.contains("Inventory does not run on mysql://shop@db/shop"), "{err}");
}
