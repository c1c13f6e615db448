//! The examples of docs/cli.md, run: each documented command works, and its output has the checks that are shown.

use lockstep::resource::Resource as _;
use lockstep_tests::harness::mariadb;
use lockstep_tests::harness::postgres::fresh_database;
use sqlx::{MySqlPool, PgPool, SqlitePool};
use tempfile::TempDir;

use super::*;

const CLI: &str = include_str!("../../../docs/cli.md");

/// The documented commands with their output, up to the next command or the end of the block.
fn examples() -> Vec<(String, Vec<String>)> {
    let mut examples: Vec<(String, Vec<String>)> = Vec::new();
    for block in CLI.split("```console\n").skip(1) {
        let (block, _) = block.split_once("```").expect("a block ends");
        for line in block.lines() {
            match line.strip_prefix("$ lockstep ") {
                Some(command) => examples.push((command.to_owned(), Vec::new())),
                None => examples.last_mut().expect("a command comes first").1.push(line.to_owned()),
            }
        }
    }
    examples.retain(|(command, _)| command.starts_with("doctor "));
    examples
}

/// The checks of a report for people: the second word of every line that begins with a severity.
fn checks(lines: &[String]) -> Vec<String> {
    let severity = |word: &str| ["ok", "note", "warning", "error"].contains(&word);
    let check = |line: &String| {
        let mut words = line.split_whitespace();
        (!line.starts_with(' ') && words.next().is_some_and(severity))
            .then(|| words.next().unwrap().to_owned())
    };
    lines.iter().filter_map(check).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_documented_example_shows_what_the_command_shows() {
    let database = fresh_database();
    let postgres = lockstep::Postgres::new(PgPool::connect(&database.url()).await.unwrap());
    postgres.attach(&name("orders-db")).await.unwrap();
    let mariadb = mariadb::fresh_database();
    let mysql = lockstep::MySql::new(MySqlPool::connect(&mariadb.url()).await.unwrap());
    mysql.attach(&name("orders-db")).await.unwrap();
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("bank.db");
    let pool = SqlitePool::connect(&format!("sqlite://{}?mode=rwc", path.display())).await.unwrap();
    let sqlite = lockstep::Sqlite::new(pool);
    sqlite.attach(&name("orders-db")).await.unwrap();

    let examples = examples();
    for option in ["--postgres ", "--mysql ", "--sqlite "] {
        assert!(examples.iter().any(|(command, _)| command.contains(option)), "no example of {option}");
    }
    for (command, shown) in examples {
        let command = command
            .replace("postgres://app@db/orders", &database.url())
            .replace("mysql://app@db/stock", &mariadb.url())
            .replace("/var/lib/bank/bank.db", path.to_str().unwrap());
        let arguments: Vec<&str> = command.split_whitespace().collect();
        let ran = lockstep(&arguments);
        assert_eq!(ran.code, OK, "{command}: {ran:?}");
        let lines: Vec<String> = ran.stdout.lines().map(str::to_owned).collect();
        let missing: Vec<_> =
            checks(&shown).into_iter().filter(|check| !checks(&lines).contains(check)).collect();
        assert!(missing.is_empty(), "{command} does not show {missing:?}:\n{}", ran.stdout);
        assert!(!checks(&shown).is_empty(), "{command} is shown without its output");
        for line in &lines {
            assert!(line.chars().count() <= 80 && !line.contains('\u{1b}'), "{line:?}");
        }
    }
}
