//! Random schemas and random work: preparing it, losing the process and committing from the journal gives the same database as
//! committing it directly. `PROPTEST_CASES` says how many; a failure prints the smallest schema and work that show it.

use lockstep::resource::sqlite::Sqlite;
use lockstep::resource::{Fate, Prepared, Resource};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sqlx::{ConnectOptions, Connection, SqliteConnection};

use crate::harness::{Database, LONG, branch, cluster, name, position, run};

/// Values that meet each other often, in every storage class.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        5 => (0..6i64).prop_map(|number| number.to_string()),
        2 => "[abAB]{0,2}".prop_map(|text| format!("'{text}'")),
        1 => prop_oneof![Just("NULL"), Just("1.5"), Just("x'00ff'"), Just("'a' || char(0)"), Just("1e999"), Just("CAST(x'fe' AS TEXT)")]
            .prop_map(str::to_owned),
    ]
}

fn pick(options: &'static [&'static str]) -> impl Strategy<Value = &'static str> + Clone {
    proptest::sample::select(options)
}

/// A table `t<number>` with columns a, b and c, which may refer to the tables before it.
fn table(number: usize) -> impl Strategy<Value = String> {
    // What another table refers to has to be unique; otherwise every statement on it fails.
    let key = pick(&[
        "a INTEGER PRIMARY KEY",
        "a INTEGER PRIMARY KEY AUTOINCREMENT",
        "a UNIQUE",
        "a TEXT PRIMARY KEY NOT NULL",
        "a COLLATE NOCASE UNIQUE ON CONFLICT REPLACE",
    ]);
    let key = if number < 2 { key.boxed() } else { prop_oneof![key, Just("a")].boxed() };
    let other = pick(&[
        "b",
        "b UNIQUE",
        "b INTEGER",
        "b TEXT COLLATE NOCASE UNIQUE",
        "b REAL CHECK (b IS NOT 5)",
        "b DEFAULT 3 UNIQUE ON CONFLICT IGNORE",
    ]);
    let action =
        pick(&["ON DELETE CASCADE ON UPDATE CASCADE", "ON DELETE SET NULL", "ON UPDATE SET DEFAULT", ""]);
    let extra = pick(&["", "", ", g AS (ifnull(b, 0) || c) STORED", ", rowid", ", g AS (typeof(a)) VIRTUAL"]);
    (key, other, action, extra, any::<bool>(), 0..2usize.max(number)).prop_map(
        move |(key, other, action, extra, refers, target)| {
            let reference = if refers && target < number {
                format!("REFERENCES t{target} (a) {action}")
            } else {
                String::new()
            };
            format!("CREATE TABLE t{number} ({key}, {other}, c {reference}{extra})")
        },
    )
}

/// A table whose rows are named by two columns.
fn without_rowid(number: usize) -> impl Strategy<Value = String> {
    pick(&["", "COLLATE NOCASE", "INTEGER", "TEXT"]).prop_map(move |class| {
        format!("CREATE TABLE t{number} (a {class}, b, c, PRIMARY KEY (b, a)) WITHOUT ROWID")
    })
}

fn trigger(number: usize) -> impl Strategy<Value = String> {
    let time = pick(&["BEFORE", "AFTER"]);
    let event = pick(&["INSERT", "UPDATE", "DELETE", "UPDATE OF b"]);
    let body = pick(&[
        "INSERT OR IGNORE INTO t{o} (a, b) VALUES (7, 8)",
        "UPDATE t{o} SET c = 'seen' WHERE b = 2",
        "DELETE FROM t{o} WHERE a = 3",
        "REPLACE INTO t{o} (a, b, c) VALUES (1, 2, 'replaced')",
        "SELECT RAISE(IGNORE) WHERE (SELECT count(*) FROM t{o}) % 3 = 0",
        "SELECT RAISE(ABORT, 'no') WHERE (SELECT count(*) FROM t{o}) > 9",
    ]);
    (time, event, body, 0..3usize, 0..3usize).prop_map(move |(time, event, body, on, other)| {
        let body = body.replace("{o}", &other.to_string());
        format!("CREATE TRIGGER g{number} {time} {event} ON t{on} BEGIN {body}; END")
    })
}

fn statement() -> impl Strategy<Value = String> {
    let clause = pick(&["", "", "OR REPLACE", "OR IGNORE", "OR FAIL", "OR ABORT"]);
    prop_oneof![
        4 => (clause.clone(), 0..3, value(), value(), value()).prop_map(|(clause, t, a, b, c)| {
            format!("INSERT {clause} INTO t{t} (a, b, c) VALUES ({a}, {b}, {c})")
        }),
        1 => (0..3, value(), value()).prop_map(|(t, a, b)| {
            format!("INSERT INTO t{t} (a, b) VALUES ({a}, {b}) ON CONFLICT DO UPDATE SET b = excluded.b, c = 'upserted'")
        }),
        4 => (clause, 0..3, pick(&["a", "b", "c"]), value(), pick(&["a", "b", "c"]), value()).prop_map(
            |(clause, t, set, to, by, key)| format!("UPDATE {clause} t{t} SET {set} = {to} WHERE {by} = {key}")
        ),
        1 => (0..3, pick(&["a = a + 1", "b = b || 'x'", "a = upper(a)", "c = a", "a = b, b = a"]))
            .prop_map(|(t, set)| format!("UPDATE OR REPLACE t{t} SET {set}")),
        2 => (0..3, pick(&["a", "b", "c"]), value()).prop_map(|(t, by, key)| format!("DELETE FROM t{t} WHERE {by} = {key}")),
        1 => (0..3).prop_map(|t| format!("DELETE FROM t{t}")),
        1 => (0..3, value()).prop_map(|(t, a)| {
            format!("SAVEPOINT s; INSERT OR IGNORE INTO t{t} (a) VALUES ({a}); DELETE FROM t0; ROLLBACK TO s; RELEASE s")
        }),
    ]
}

#[derive(Debug, Clone)]
struct Case {
    setup: Vec<String>,
    work: Vec<String>,
}

fn case() -> impl Strategy<Value = Case> {
    let tables = (table(0), table(1), prop_oneof![table(2).boxed(), without_rowid(2).boxed()]);
    let triggers = prop_oneof![
        Just(Vec::new()).boxed(),
        trigger(0).prop_map(|one| vec![one]).boxed(),
        (trigger(0), trigger(1), trigger(2)).prop_map(|(a, b, c)| vec![a, b, c]).boxed(),
    ];
    let statements = |count| proptest::collection::vec(statement(), count);
    (tables, triggers, statements(0..15), statements(1..20)).prop_map(|((a, b, c), triggers, rows, work)| {
        let setup = [a, b, c].into_iter().chain(rows).chain(triggers).collect();
        Case { setup, work }
    })
}

/// A service that goes on after an error. An error may also have ended the transaction.
async fn attempt(connection: &mut SqliteConnection, statements: &[String]) {
    for statement in statements {
        let _refused = run(connection, statement).await;
    }
}

async fn set_up(case: &Case) -> Database {
    let database = Database::new("").await;
    let mut connection = database.options().connect().await.unwrap();
    attempt(&mut connection, &case.setup).await;
    connection.close().await.unwrap();
    database
}

/// The same work on a connection of the service's own, with triggers that write something, as those of a branch do.
///
/// SQLite 3.51 is stricter where there are such triggers: without them it overlooks some violated foreign keys (a child's
/// insert with a trigger that deletes from a parent with ON DELETE SET NULL), and keeps what a statement has done that
/// failed because its triggers nested too deeply.
async fn committed_directly(case: &Case) -> String {
    let database = set_up(case).await;
    let mut connection = database.options().pragma("recursive_triggers", "ON").connect().await.unwrap();
    run(&mut connection, "CREATE TEMP TABLE noted (n INTEGER NOT NULL UNIQUE)").await.unwrap();
    for (table, event) in (0..3).flat_map(|table| ["INSERT", "UPDATE", "DELETE"].map(|event| (table, event)))
    {
        let sql = format!(
            "CREATE TEMP TRIGGER x{table}{event} AFTER {event} ON main.t{table} BEGIN \
             INSERT INTO noted SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM noted WHERE n = 1); END"
        );
        run(&mut connection, &sql).await.unwrap();
    }
    run(&mut connection, "BEGIN IMMEDIATE").await.unwrap();
    attempt(&mut connection, &case.work).await;
    run(&mut connection, "COMMIT").await.unwrap();
    connection.close().await.unwrap();
    database.dump().await
}

/// Whether there was anything to prepare.
async fn holds(case: &Case) -> bool {
    let expected = committed_directly(case).await;
    let database = set_up(case).await;
    let before = database.dump().await;
    let resource = database.attached().await;
    let mut open = resource.begin(&branch(1), LONG).await.unwrap();
    attempt(Sqlite::connection(&mut open), &case.work).await;
    match resource.prepare(&branch(1), open, &position(1)).await.unwrap() {
        Prepared::Yes => {}
        Prepared::ReadOnly => {
            assert_eq!(before, expected);
            return false;
        }
        Prepared::No(why) | Prepared::Hazard(why) => panic!("{why}"),
    }
    drop(resource);
    let resource = database.attached().await;
    assert_eq!(resource.prepared(cluster(), &name()).await.unwrap(), [branch(1).xid]);
    assert_eq!(database.dump().await, before, "nothing is visible before the decision");
    assert_eq!(resource.commit(&branch(1), &position(1)).await.unwrap(), Fate::Committed);
    assert_eq!(database.dump().await, expected);
    true
}

#[test]
fn any_work_on_any_schema_is_the_same_after_a_crash() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = Config { failure_persistence: None, ..Config::default() };
    // proptest's default is 256; each case is a handful of databases.
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { config.cases } else { 40 };
    let prepared = std::cell::Cell::new(0);
    TestRunner::new(Config { cases, ..config })
        .run(&case(), |case| {
            prepared.set(prepared.get() + u32::from(runtime.block_on(holds(&case))));
            Ok(())
        })
        .unwrap();
    assert!(prepared.get() * 2 > cases, "only {} of {cases} cases changed anything", prepared.get());
}
