//! Whatever a branch does, its changes are captured: written again from the journal, they give the same database.

use lockstep::resource::{Fate, Prepared, Resource};
use sqlx::{ConnectOptions, Connection};

use crate::harness::{Database, branch, cluster, name, position, prepare, run};

/// The content after the work was simply committed, on a connection with the settings of a branch.
async fn committed_directly(setup: &str, work: &str) -> String {
    let database = Database::new(setup).await;
    let options = database.options().pragma("recursive_triggers", "ON");
    let mut connection = options.connect().await.unwrap();
    run(&mut connection, "BEGIN IMMEDIATE").await.unwrap();
    run(&mut connection, work).await.unwrap();
    run(&mut connection, "COMMIT").await.unwrap();
    connection.close().await.unwrap();
    database.dump().await
}

/// Prepares the work, loses the process's state, and brings the branch to its end from the journal.
async fn prepared_and_lost(setup: &str, work: &str, commit: bool) -> String {
    let database = Database::new(setup).await;
    let resource = database.attached().await;
    assert_eq!(prepare(&resource, 1, work).await, Prepared::Yes, "{work}");
    drop(resource);
    let resource = database.attached().await;
    assert_eq!(resource.prepared(cluster(), &name()).await.unwrap(), [branch(1).xid], "{work}");
    let (fate, expected) = if commit {
        (resource.commit(&branch(1), &position(2)).await.unwrap(), Fate::Committed)
    } else {
        (resource.rollback(&branch(1), &position(2)).await.unwrap(), Fate::RolledBack)
    };
    assert_eq!(fate, expected, "{work}");
    database.dump().await
}

/// Prepares and commits without any fault.
async fn prepared_and_committed(setup: &str, work: &str) -> String {
    let database = Database::new(setup).await;
    let resource = database.attached().await;
    assert_eq!(prepare(&resource, 1, work).await, Prepared::Yes, "{work}");
    assert_eq!(resource.commit(&branch(1), &position(2)).await.unwrap(), Fate::Committed, "{work}");
    database.dump().await
}

/// The claim of this file, for one schema and one piece of work.
pub(crate) async fn is_captured(setup: &str, work: &str) {
    let expected = committed_directly(setup, work).await;
    let before = Database::new(setup).await.dump().await;
    assert_ne!(expected, before, "the work has to change something: {work}");
    assert_eq!(prepared_and_lost(setup, work, true).await, expected, "{setup}\n{work}");
    assert_eq!(prepared_and_committed(setup, work).await, expected, "{setup}\n{work}");
    assert_eq!(prepared_and_lost(setup, work, false).await, before, "{setup}\n{work}");
}

const ACCOUNTS: &str = "CREATE TABLE account (id INTEGER PRIMARY KEY, owner TEXT, balance INTEGER); \
     INSERT INTO account VALUES (1, 'ada', 100), (2, 'bob', 50), (3, 'cyd', 0);";

#[tokio::test]
async fn inserts_updates_and_deletes() {
    is_captured(
        ACCOUNTS,
        "UPDATE account SET balance = balance - 10 WHERE id = 1; UPDATE account SET balance = 7 WHERE id = 1; \
         DELETE FROM account WHERE id = 2; INSERT INTO account VALUES (9, 'new', 1); \
         INSERT INTO account VALUES (10, 'gone', 1); DELETE FROM account WHERE id = 10",
    )
    .await;
}

#[tokio::test]
async fn a_table_emptied_without_a_where() {
    is_captured(ACCOUNTS, "DELETE FROM account").await;
}

#[tokio::test]
async fn a_savepoint_rolled_back_by_the_service() {
    is_captured(
        ACCOUNTS,
        "SAVEPOINT own; DELETE FROM account; ROLLBACK TO own; RELEASE own; UPDATE account SET owner = 'eve' WHERE id = 3",
    )
    .await;
}

#[tokio::test]
async fn rows_that_replace_displaces() {
    let unique = "CREATE TABLE seat (id INTEGER PRIMARY KEY, row TEXT UNIQUE, number INTEGER UNIQUE); \
         INSERT INTO seat VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3);";
    is_captured(unique, "REPLACE INTO seat VALUES (4, 'a', 2)").await;
    is_captured(unique, "UPDATE OR REPLACE seat SET row = 'b' WHERE id = 3").await;
    is_captured(unique, "INSERT INTO seat VALUES (9, 'c', 7) ON CONFLICT (row) DO UPDATE SET number = 8")
        .await;
}

#[tokio::test]
async fn constraints_with_a_conflict_clause_of_their_own() {
    is_captured(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a UNIQUE ON CONFLICT REPLACE, b UNIQUE ON CONFLICT IGNORE); \
         INSERT INTO t VALUES (1, 'x', 1), (2, 'y', 2);",
        "INSERT INTO t VALUES (3, 'x', 3); INSERT INTO t VALUES (4, 'z', 2); UPDATE t SET a = a || a",
    )
    .await;
}

/// The clause of the outer statement decides conflicts in triggers too, also in those that note keys.
#[tokio::test]
async fn rows_touched_again_under_every_conflict_clause() {
    for clause in ["ABORT", "FAIL", "IGNORE", "REPLACE", "ROLLBACK"] {
        is_captured(
            ACCOUNTS,
            &format!(
                "UPDATE OR {clause} account SET balance = balance + 1; UPDATE OR {clause} account SET balance = balance + 1; \
                 INSERT OR {clause} INTO account VALUES (4, 'dan', 4); UPDATE OR {clause} account SET owner = 'x' WHERE id = 4"
            ),
        )
        .await;
    }
}

#[tokio::test]
async fn swapped_unique_values() {
    let unique = "CREATE TABLE place (id INTEGER PRIMARY KEY, at INTEGER UNIQUE); INSERT INTO place VALUES (1, 10), (2, 20);";
    is_captured(
        unique,
        "UPDATE place SET at = -1 WHERE id = 1; UPDATE place SET at = 10 WHERE id = 2; UPDATE place SET at = 20 WHERE id = 1",
    )
    .await;
    is_captured(
        unique,
        "UPDATE place SET id = 3 WHERE id = 1; UPDATE place SET id = 1 WHERE id = 2; UPDATE place SET id = 2 WHERE id = 3",
    )
    .await;
}

#[tokio::test]
async fn the_users_triggers_are_captured_and_not_fired_again() {
    is_captured(
        "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER); INSERT INTO account VALUES (1, 100), (2, 50); \
         CREATE TABLE history (at INTEGER PRIMARY KEY, account, was, is_now); CREATE TABLE counter (n); INSERT INTO counter VALUES (0); \
         CREATE TRIGGER b BEFORE UPDATE ON account BEGIN UPDATE counter SET n = n + 1; END; \
         CREATE TRIGGER a AFTER UPDATE ON account BEGIN INSERT INTO history (account, was, is_now) \
            VALUES (new.id, old.balance, new.balance); UPDATE counter SET n = n + 100; END; \
         CREATE TRIGGER c AFTER DELETE ON account BEGIN DELETE FROM history WHERE account = old.id; END; \
         CREATE TRIGGER d AFTER INSERT ON history BEGIN UPDATE counter SET n = n * 2; END;",
        "UPDATE account SET balance = balance + 1; DELETE FROM account WHERE id = 2",
    )
    .await;
}

/// Its row is changed, and every trigger that would have come after it is skipped.
#[tokio::test]
async fn a_trigger_that_ignores_the_rest() {
    is_captured(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (1, 1), (2, 2); \
         CREATE TRIGGER aaa AFTER UPDATE ON t BEGIN SELECT RAISE(IGNORE); END; \
         CREATE TRIGGER zzz AFTER INSERT ON t BEGIN SELECT RAISE(IGNORE); END; \
         CREATE TRIGGER mmm AFTER DELETE ON t BEGIN SELECT RAISE(IGNORE); END; \
         CREATE TRIGGER bbb BEFORE UPDATE ON t WHEN new.v = 13 BEGIN SELECT RAISE(IGNORE); END;",
        "UPDATE t SET v = v + 10; UPDATE t SET v = 13 WHERE id = 1; INSERT INTO t VALUES (3, 3); DELETE FROM t WHERE id = 1",
    )
    .await;
}

#[tokio::test]
async fn a_trigger_that_changes_its_own_table() {
    is_captured(
        "CREATE TABLE node (id INTEGER PRIMARY KEY, parent, depth); \
         INSERT INTO node VALUES (1, NULL, 0), (2, 1, 1), (3, 2, 2), (4, 3, 3); \
         CREATE TRIGGER deeper AFTER UPDATE OF depth ON node BEGIN \
            UPDATE node SET depth = new.depth + 1 WHERE parent = new.id; END;",
        "UPDATE node SET depth = 10 WHERE id = 1",
    )
    .await;
}

#[tokio::test]
async fn views_with_instead_of_triggers() {
    is_captured(
        "CREATE TABLE person (id INTEGER PRIMARY KEY, first, last); INSERT INTO person VALUES (1, 'ada', 'l'); \
         CREATE VIEW names AS SELECT id, first || ' ' || last AS name FROM person; \
         CREATE TRIGGER rename INSTEAD OF UPDATE ON names BEGIN UPDATE person SET first = new.name WHERE id = new.id; END;",
        "UPDATE names SET name = 'eve' WHERE id = 1",
    )
    .await;
}

#[tokio::test]
async fn foreign_key_actions_of_every_kind() {
    is_captured(
        "CREATE TABLE parent (id INTEGER PRIMARY KEY); INSERT INTO parent VALUES (1), (2), (3), (4); \
         CREATE TABLE gone (p REFERENCES parent ON DELETE CASCADE); INSERT INTO gone VALUES (1), (1), (2); \
         CREATE TABLE loose (id INTEGER PRIMARY KEY, p REFERENCES parent ON DELETE SET NULL); INSERT INTO loose VALUES (1, 1), (2, 2); \
         CREATE TABLE fallback (p DEFAULT 4 REFERENCES parent ON DELETE SET DEFAULT); INSERT INTO fallback VALUES (1), (4); \
         CREATE TABLE follows (p REFERENCES parent ON UPDATE CASCADE); INSERT INTO follows VALUES (2), (3); \
         CREATE TABLE grandchild (l REFERENCES loose ON DELETE CASCADE); INSERT INTO grandchild VALUES (1), (2); \
         CREATE TRIGGER more AFTER DELETE ON gone BEGIN INSERT INTO parent VALUES (1000 + old.rowid); END;",
        "DELETE FROM parent WHERE id = 1; UPDATE parent SET id = 30 WHERE id = 3; DELETE FROM loose WHERE id = 2",
    )
    .await;
}

#[tokio::test]
async fn tables_without_rowid() {
    let setup = "CREATE TABLE stock (shop TEXT COLLATE NOCASE, item, count INTEGER, PRIMARY KEY (item, shop)) WITHOUT ROWID; \
         INSERT INTO stock VALUES ('north', 'nut', 1), ('north', x'00ff', 2), ('south', 3, 3), ('south', 3.5, 4);";
    is_captured(setup, "UPDATE stock SET count = count * 2; DELETE FROM stock WHERE item = 3").await;
    is_captured(setup, "UPDATE stock SET shop = 'NORTH' WHERE shop = 'north'").await;
    is_captured(setup, "UPDATE stock SET shop = upper(shop), count = 0; UPDATE stock SET shop = lower(shop) WHERE item = 'nut'").await;
    is_captured(setup, "REPLACE INTO stock VALUES ('NoRtH', 'nut', 99), ('west', '3', 1), ('west', 3, 1)")
        .await;
    is_captured(
        setup,
        "UPDATE stock SET item = 'tmp' WHERE item = 3; UPDATE stock SET item = 3 WHERE item = 3.5; \
         UPDATE stock SET item = 3.5 WHERE item = 'tmp'",
    )
    .await;
}

#[tokio::test]
async fn autoincrement_continues_where_it_was() {
    let setup = "CREATE TABLE a (id INTEGER PRIMARY KEY AUTOINCREMENT, v); CREATE TABLE b (id INTEGER PRIMARY KEY AUTOINCREMENT, v); \
         INSERT INTO a (v) VALUES (1), (2), (3); DELETE FROM a WHERE id = 3;";
    is_captured(setup, "INSERT INTO a (v) VALUES (4)").await;
    is_captured(
        setup,
        "INSERT INTO b (v) VALUES (1); INSERT INTO a (v) VALUES (5); DELETE FROM a WHERE v = 5",
    )
    .await;
    // Nothing is left but the number that was used up.
    is_captured(setup, "INSERT INTO a (v) VALUES (6); DELETE FROM a WHERE v = 6").await;
    is_captured(setup, "DELETE FROM sqlite_sequence WHERE name = 'a'; UPDATE a SET v = 0 WHERE id = 1").await;
}

#[tokio::test]
async fn generated_columns() {
    is_captured(
        "CREATE TABLE box (w, h, area AS (w * h) STORED, id INTEGER PRIMARY KEY, half AS (area / 2) VIRTUAL UNIQUE, note); \
         INSERT INTO box (w, h, note) VALUES (2, 3, 'a'), (4, 5, 'b');",
        "UPDATE box SET w = 10 WHERE id = 1; DELETE FROM box WHERE id = 2; INSERT INTO box (w, h, note) VALUES (7, 7, NULL)",
    )
    .await;
}

#[tokio::test]
async fn columns_that_are_called_like_the_rowid() {
    for columns in ["rowid, v", "oid, rowid, v", "\"ROWID\" TEXT, _rowid_, v", "rowid INTEGER PRIMARY KEY, v"]
    {
        is_captured(
            &format!("CREATE TABLE t ({columns}); INSERT INTO t (v) VALUES (1), (2), (3);"),
            "UPDATE t SET v = 20 WHERE v = 2; DELETE FROM t WHERE v = 1; INSERT INTO t (v) VALUES (4)",
        )
        .await;
    }
}

#[tokio::test]
async fn rowids_that_nothing_but_the_rowid_tells() {
    is_captured(
        "CREATE TABLE t (v); INSERT INTO t VALUES ('same'), ('same'), ('same');",
        "DELETE FROM t WHERE rowid = 2; INSERT INTO t (rowid, v) VALUES (-5, 'same'), (9223372036854775807, 'last'), \
         (-9223372036854775808, 'first'); UPDATE t SET rowid = 77 WHERE rowid = 1",
    )
    .await;
}

#[tokio::test]
async fn every_value_that_sqlite_can_store() {
    let values = [
        "NULL",
        "0",
        "-1",
        "9223372036854775807",
        "-9223372036854775808",
        "0.1",
        "1e999",
        "-1e999",
        "-0.0",
        "5e-324",
        "9223372036854775808.0",
        "3.0",
        "''",
        "'text'",
        "'it''s'",
        "'12'",
        "'1e5'",
        "char(0)",
        "'a' || char(0) || 'b'",
        "CAST(x'ff00fe' AS TEXT)",
        "CAST(x'c3' AS TEXT)",
        "x''",
        "x'00'",
        "x'ff00ff'",
        "zeroblob(70000)",
        "'größer ' || char(128512)",
    ];
    let all: Vec<_> = values.iter().map(|value| format!("({value})")).collect();
    let all = all.join(", ");
    for (encoding, class) in [
        ("UTF-8", ""),
        ("UTF-8", "TEXT"),
        ("UTF-8", "INTEGER"),
        ("UTF-8", "REAL"),
        ("UTF-8", "NUMERIC"),
        ("UTF-8", "BLOB"),
        ("UTF-16le", ""),
        ("UTF-16be", "TEXT"),
    ] {
        is_captured(
            &format!(
                "PRAGMA encoding = '{encoding}'; CREATE TABLE t (v {class}); INSERT INTO t VALUES {all};"
            ),
            &format!(
                "INSERT INTO t VALUES {all}; UPDATE t SET rowid = rowid + 1000 WHERE rowid <= {}",
                values.len()
            ),
        )
        .await;
        is_captured(
            &format!(
                "PRAGMA encoding = '{encoding}'; CREATE TABLE t (v {class} PRIMARY KEY, w) WITHOUT ROWID;"
            ),
            &format!(
                "WITH s(v) AS (VALUES {all}) INSERT OR IGNORE INTO t SELECT v, v FROM s WHERE v IS NOT NULL"
            ),
        )
        .await;
    }
}

#[tokio::test]
async fn strict_tables() {
    is_captured(
        "CREATE TABLE t (i INTEGER, r REAL, x TEXT, b BLOB, a ANY) STRICT; INSERT INTO t VALUES (1, 2, 'x', x'00', '7');",
        "UPDATE t SET r = 1e999, a = 7; INSERT INTO t VALUES (2, 3, '', x'', 7.0), (3, 4, '9', x'61', '7.0')",
    )
    .await;
}

#[tokio::test]
async fn names_that_need_quoting() {
    is_captured(
        "CREATE TABLE \"order \"\"x\"\"; --\" (\"select\" INTEGER PRIMARY KEY, \"a \"\"b\"\"\", [c d]); \
         INSERT INTO \"order \"\"x\"\"; --\" VALUES (1, 2, 3); \
         CREATE TABLE 'Größe' (k PRIMARY KEY, 'ä b') WITHOUT ROWID; INSERT INTO Größe VALUES (1, 1); \
         CREATE TRIGGER \"t \"\" 1\" AFTER UPDATE ON 'Größe' BEGIN UPDATE \"order \"\"x\"\"; --\" SET [c d] = [c d] + 1; END;",
        "UPDATE Größe SET k = 2; INSERT INTO \"order \"\"x\"\"; --\" VALUES (2, 2, 2)",
    )
    .await;
}

#[tokio::test]
async fn more_rows_than_are_read_at_a_time() {
    is_captured(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v); CREATE TABLE w (a, b, PRIMARY KEY (a, b)) WITHOUT ROWID; \
         WITH s(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM s WHERE n < 2000) INSERT INTO t SELECT n, n FROM s; \
         INSERT INTO w SELECT id, 'x' FROM t WHERE id < 500;",
        "UPDATE t SET v = -v WHERE id % 3 <> 0; DELETE FROM t WHERE id % 7 = 0; UPDATE w SET b = 'y'",
    )
    .await;
}

#[tokio::test]
async fn a_user_defined_collation_of_the_pool() {
    let setup = "CREATE TABLE t (k TEXT PRIMARY KEY COLLATE backwards, v) WITHOUT ROWID;";
    let database = Database::new("").await;
    let options = database.options().collation("backwards", |a, b| b.cmp(a));
    let mut connection = options.connect().await.unwrap();
    run(&mut connection, setup).await.unwrap();
    connection.close().await.unwrap();
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    for decided in [1, 2] {
        let resource = lockstep::resource::sqlite::Sqlite::new(pool.clone());
        resource.attach(&name()).await.unwrap();
        let work = format!("INSERT INTO t VALUES ('a{decided}', 1), ('b{decided}', 2)");
        assert_eq!(prepare(&resource, decided, &work).await, Prepared::Yes);
        drop(resource);
        let resource = lockstep::resource::sqlite::Sqlite::new(pool.clone());
        resource.attach(&name()).await.unwrap();
        assert_eq!(resource.commit(&branch(decided), &position(2)).await.unwrap(), Fate::Committed);
    }
    let keys: Vec<String> = sqlx::query_scalar("SELECT k FROM t ORDER BY k").fetch_all(&pool).await.unwrap();
    assert_eq!(keys, ["b2", "b1", "a2", "a1"]);
}

#[tokio::test]
async fn tables_made_between_branches() {
    let database = Database::new("CREATE TABLE t (v)").await;
    let resource = database.attached().await;
    assert_eq!(prepare(&resource, 1, "INSERT INTO t VALUES (1)").await, Prepared::Yes);
    resource.commit(&branch(1), &position(2)).await.unwrap();
    run(
        &mut database.stranger().await,
        "CREATE TABLE u (v); ALTER TABLE t ADD COLUMN w; DROP TABLE IF EXISTS missing; CREATE TABLE gone (v)",
    )
    .await
    .unwrap();
    assert_eq!(prepare(&resource, 2, "INSERT INTO u VALUES (2); UPDATE t SET w = 3").await, Prepared::Yes);
    resource.commit(&branch(2), &position(2)).await.unwrap();
    run(&mut database.stranger().await, "DROP TABLE gone").await.unwrap();
    assert_eq!(prepare(&resource, 3, "INSERT INTO u VALUES (4)").await, Prepared::Yes);
    let before = database.dump().await;
    drop(resource);
    let resource = database.attached().await;
    resource.commit(&branch(3), &position(2)).await.unwrap();
    assert_ne!(database.dump().await, before);
}

#[tokio::test]
async fn what_changes_nothing_in_the_end_is_read_only() {
    let database = Database::new(ACCOUNTS).await;
    let resource = database.attached().await;
    for (number, work) in [
        (1, "SELECT * FROM account"),
        (2, "UPDATE account SET balance = balance"),
        (3, "INSERT INTO account VALUES (4, 'x', 1); DELETE FROM account WHERE id = 4"),
        (4, "CREATE TEMP TABLE own (v); INSERT INTO own VALUES (1); SELECT count(*) FROM own"),
    ] {
        assert_eq!(prepare(&resource, number, work).await, Prepared::ReadOnly, "{work}");
    }
    // Its lock is gone at once, and no temporary table of one branch is there in the next.
    run(&mut database.stranger().await, "UPDATE account SET balance = 1").await.unwrap();
    let mut open = resource.begin(&branch(5), crate::harness::LONG).await.unwrap();
    let connection = lockstep::resource::sqlite::Sqlite::connection(&mut open);
    assert!(run(connection, "SELECT * FROM temp.own").await.is_err());
}
