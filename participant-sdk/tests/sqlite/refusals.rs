//! What cannot take part, and is told why: schemas, settings, files, and what a branch may not do (P22, P26).

use lockstep::resource::sqlite::Sqlite;
use lockstep::resource::{Fate, Prepared, Resource, ResourceError};
use sqlx::sqlite::SqlitePoolOptions;
use sqlx::{ConnectOptions, Connection};

use crate::harness::{Database, LONG, branch, cluster, name, position, prepare, refusal, run, unfit};

#[tokio::test]
async fn databases_in_memory() {
    for url in ["sqlite::memory:", "sqlite://?mode=memory", "sqlite:file:shared?mode=memory&cache=shared"] {
        let pool = SqlitePoolOptions::new().max_connections(1).connect(url).await.unwrap();
        let why = unfit(&Sqlite::new(pool)).await;
        assert!(why.contains("in memory"), "{url}: {why}");
    }
}

#[tokio::test]
async fn schemas_whose_rows_cannot_be_captured() {
    for (setup, expected) in [
        ("CREATE VIRTUAL TABLE words USING fts5(text)", "virtual table words"),
        ("CREATE TABLE t (rowid, oid, _ROWID_)", "rowid, _rowid_ and oid"),
        ("CREATE TABLE Lockstep_mine (v)", "belong to the SDK"),
    ] {
        let database = Database::new(setup).await;
        let why = unfit(&database.resource().await).await;
        assert!(why.contains(expected), "{why}");
    }
}

#[tokio::test]
async fn a_virtual_table_that_is_made_later() {
    let database = Database::new("CREATE TABLE t (v)").await;
    let resource = database.attached().await;
    run(&mut database.stranger().await, "CREATE VIRTUAL TABLE words USING fts5(text)").await.unwrap();
    match resource.begin(&branch(1), LONG).await {
        Err(ResourceError::Unfit(why)) => assert!(why.contains("virtual table words"), "{why}"),
        other => panic!("{other:?}"),
    }
    run(&mut database.stranger().await, "DROP TABLE words").await.unwrap();
    assert_eq!(prepare(&resource, 2, "INSERT INTO t VALUES (1)").await, Prepared::Yes);
}

#[tokio::test]
async fn what_a_branch_may_not_do() {
    let database =
        Database::new("CREATE TABLE t (id INTEGER PRIMARY KEY, v UNIQUE); INSERT INTO t VALUES (1, 1)").await;
    let before = database.dump().await;
    let resource = database.attached().await;
    let mut number = 0;
    for (statements, expected) in [
        ("CREATE TABLE u (v)", "changes the schema"),
        ("CREATE INDEX i ON t (v)", "changes the schema"),
        ("DROP TABLE t", "changes the schema"),
        ("ALTER TABLE t ADD COLUMN w", "changes the schema"),
        ("CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; END", "changes the schema"),
        ("PRAGMA user_version = 5", "user_version"),
        ("PRAGMA application_id = 5", "application_id"),
        ("ATTACH ':memory:' AS other", "attached other"),
        ("PRAGMA recursive_triggers = OFF; REPLACE INTO t VALUES (2, 1)", "recursive_triggers"),
        ("DROP TRIGGER temp.lockstep_0_UPDATE", "dropped triggers"),
        (
            "WITH s(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM s WHERE n < 70) INSERT INTO t SELECT 1 + n, zeroblob(1000000 + n) FROM s",
            "64 MiB",
        ),
    ] {
        number += 1;
        let why = refusal(&resource, number, &format!("INSERT INTO t VALUES (0, 0); {statements}")).await;
        assert!(why.contains(expected), "{statements}: {why}");
        assert_eq!(database.dump().await, before, "{statements}");
    }
    // A connection on which any of this was done is not used again.
    assert_eq!(prepare(&resource, 100, "REPLACE INTO t VALUES (2, 1)").await, Prepared::Yes);
    drop(resource);
    let resource = database.attached().await;
    assert_eq!(resource.commit(&branch(100), &position(2)).await.unwrap(), Fate::Committed);
    let rows: Vec<(i64, i64)> =
        sqlx::query_as("SELECT id, v FROM t").fetch_all(&database.pool().await).await.unwrap();
    assert_eq!(rows, [(2, 1)]);
}

/// A deferred key fails at COMMIT, which is after the vote.
#[tokio::test]
async fn deferred_foreign_keys_that_are_violated() {
    let setup = "CREATE TABLE parent (id INTEGER PRIMARY KEY); INSERT INTO parent VALUES (1); \
         CREATE TABLE child (p REFERENCES parent DEFERRABLE INITIALLY DEFERRED); \
         CREATE TABLE pair (a, b, p REFERENCES parent DEFERRABLE INITIALLY DEFERRED, PRIMARY KEY (a, b)) WITHOUT ROWID; \
         CREATE TABLE strict_child (p REFERENCES parent); INSERT INTO strict_child VALUES (1); \
         PRAGMA foreign_keys = OFF; INSERT INTO child VALUES (999); INSERT INTO pair VALUES (1, 1, 999); PRAGMA foreign_keys = ON;";
    let database = Database::new(setup).await;
    let resource = database.attached().await;
    let mut number = 0;
    for statements in [
        "INSERT INTO child VALUES (2)",
        "INSERT INTO pair VALUES (2, 2, 2)",
        "INSERT INTO pair VALUES (2, 2, 999)",
        "INSERT INTO child VALUES (1), (7); UPDATE child SET p = 1 WHERE p = 7; UPDATE child SET p = 8 WHERE p = 1",
        "PRAGMA defer_foreign_keys = ON; DELETE FROM parent WHERE id = 1",
    ] {
        number += 1;
        let why = refusal(&resource, number, statements).await;
        assert!(why.contains("refers to a row of parent"), "{statements}: {why}");
        // One phase lets SQLite itself look.
        let id = branch(number);
        let open = crate::harness::work(&resource, number, statements).await;
        assert_eq!(resource.commit_one_phase(&id, open, &position(1)).await.unwrap(), Fate::RolledBack);
    }
    for statements in [
        "INSERT INTO child VALUES (2); INSERT INTO parent VALUES (2)",
        "PRAGMA defer_foreign_keys = ON; INSERT INTO strict_child VALUES (3); INSERT INTO parent VALUES (3)",
        // What was wrong before is not the branch's fault.
        "INSERT INTO child VALUES (1); INSERT INTO parent VALUES (4); DELETE FROM parent WHERE id = 4",
        "DELETE FROM pair; INSERT INTO child VALUES (NULL)",
    ] {
        number += 1;
        assert_eq!(prepare(&resource, number, statements).await, Prepared::Yes, "{statements}");
        let fate = resource.commit(&branch(number), &position(1)).await;
        assert_eq!(fate, Ok(Fate::Committed), "{statements}");
    }
}

#[tokio::test]
async fn foreign_keys_that_the_service_has_switched_off() {
    let database = Database::new("CREATE TABLE parent (id INTEGER PRIMARY KEY); CREATE TABLE child (p REFERENCES parent DEFERRABLE INITIALLY DEFERRED)").await;
    let pool = SqlitePoolOptions::new().connect_with(database.options().foreign_keys(false)).await.unwrap();
    let resource = Sqlite::new(pool);
    resource.attach(&name()).await.unwrap();
    assert_eq!(prepare(&resource, 1, "INSERT INTO child VALUES (5)").await, Prepared::Yes);
    assert_eq!(resource.commit(&branch(1), &position(1)).await.unwrap(), Fate::Committed);
}

/// The service's pool may be set up for reading: the resource's own connections are not.
#[tokio::test]
async fn the_settings_of_the_pool_do_not_weaken_the_branch() {
    let database = Database::new("CREATE TABLE t (v)").await;
    let options = database
        .options()
        .read_only(true)
        .synchronous(sqlx::sqlite::SqliteSynchronous::Off)
        .optimize_on_close(true, None)
        .pragma("query_only", "ON")
        .pragma("recursive_triggers", "OFF");
    // A read-only connection cannot make the file a WAL file, and does not have to.
    let resource = Sqlite::new(SqlitePoolOptions::new().connect_lazy_with(options));
    resource.attach(&name()).await.unwrap();
    let mut open = resource.begin(&branch(1), LONG).await.unwrap();
    let connection = Sqlite::connection(&mut open);
    for (pragma, expected) in [("synchronous", "2"), ("journal_mode", "wal"), ("recursive_triggers", "1")] {
        let sql = sqlx::AssertSqlSafe(format!("SELECT CAST({pragma} AS TEXT) FROM pragma_{pragma}"));
        let value: String = sqlx::query_scalar(sql).fetch_one(&mut *connection).await.unwrap();
        assert_eq!(value, expected, "{pragma}");
    }
    run(connection, "INSERT INTO t VALUES (1)").await.unwrap();
    assert_eq!(resource.prepare(&branch(1), open, &position(1)).await.unwrap(), Prepared::Yes);
    assert_eq!(resource.commit(&branch(1), &position(1)).await.unwrap(), Fate::Committed);
}

#[tokio::test]
async fn a_file_that_cannot_be_a_wal_file_now() {
    let database = Database::new("PRAGMA journal_mode = DELETE; CREATE TABLE t (v)").await;
    let mut reader = database.options().connect().await.unwrap();
    run(&mut reader, "BEGIN; SELECT * FROM t").await.unwrap();
    match database.resource().await.attach(&name()).await {
        Err(ResourceError::Unavailable(why)) => assert!(why.contains("locked"), "{why}"),
        other => panic!("{other:?}"),
    }
    reader.close().await.unwrap();
    database.attached().await;
}

#[tokio::test]
async fn nothing_is_answered_before_attach() {
    let database = Database::new("CREATE TABLE t (v)").await;
    let resource = database.resource().await;
    assert!(matches!(resource.begin(&branch(1), LONG).await, Err(ResourceError::Unavailable(_))));
    resource.commit(&branch(1), &position(1)).await.unwrap_err();
    resource.rollback(&branch(1), &position(1)).await.unwrap_err();
    resource.prove(&branch(1), &position(1)).await.unwrap_err();
    resource.prepared(cluster(), &name()).await.unwrap_err();
    resource.oldest_evidence(cluster()).await.unwrap_err();
    resource.bind(cluster()).await.unwrap_err();
}
