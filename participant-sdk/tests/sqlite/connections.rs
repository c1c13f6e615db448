//! What a service can do with a branch's connection, and who may write when (P16, P17, P19, P25).

use std::io::{BufRead, BufReader};
use std::time::Duration;

use lockstep::resource::sqlite::Sqlite;
use lockstep::resource::{Fate, Prepared, Resource, ResourceError};
use sqlx::Connection;

use crate::harness::{Database, LONG, branch, cluster, name, position, prepare, refusal, run, work};

const ONE: &str = "CREATE TABLE t (v); INSERT INTO t VALUES (1)";
/// Runs until somebody interrupts it.
const ENDLESS: &str =
    "WITH RECURSIVE s(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM s) INSERT INTO t SELECT max(n) FROM s";

fn unavailable(result: Result<impl std::fmt::Debug, ResourceError>) -> String {
    match result {
        Err(ResourceError::Unavailable(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_commit_by_the_service_is_refused_and_the_branch_with_it() {
    for statements in [
        "COMMIT",
        "END; INSERT INTO t VALUES (3)",
        "ROLLBACK; INSERT INTO t VALUES (3)",
        "ROLLBACK; BEGIN; INSERT INTO t VALUES (3); COMMIT",
        "ROLLBACK; SAVEPOINT own; INSERT INTO t VALUES (3); RELEASE own",
        "ROLLBACK; CREATE TABLE u (v)",
    ] {
        let database = Database::new(ONE).await;
        let before = database.dump().await;
        let resource = database.attached().await;
        let mut open = work(&resource, 1, "INSERT INTO t VALUES (2)").await;
        let error = run(Sqlite::connection(&mut open), statements).await.unwrap_err().to_string();
        assert!(error.contains("531"), "{statements}: {error}");
        // Nothing that follows gets in either, whether SQLite thinks of it as inside of a transaction or not.
        let _refused_or_lost = run(Sqlite::connection(&mut open), "INSERT INTO t VALUES (4)").await;
        match resource.prepare(&branch(1), open, &position(1)).await.unwrap() {
            Prepared::No(why) => assert!(why.contains("tried to commit by itself"), "{why}"),
            prepared @ (Prepared::Yes | Prepared::ReadOnly | Prepared::Hazard(_)) => panic!("{prepared:?}"),
        }
        assert_eq!(database.dump().await, before, "{statements}");
        assert_eq!(resource.rollback(&branch(1), &position(1)).await.unwrap(), Fate::RolledBack);
    }
}

#[tokio::test]
async fn a_rollback_by_the_service_is_a_vote_to_roll_back() {
    let database = Database::new(ONE).await;
    let resource = database.attached().await;
    let why = refusal(&resource, 1, "INSERT INTO t VALUES (2); ROLLBACK").await;
    assert!(why.contains("local transaction was ended"), "{why}");
    let why =
        refusal(&resource, 2, "INSERT INTO t VALUES (2); ROLLBACK; BEGIN; INSERT INTO t VALUES (3)").await;
    assert!(why.contains("local transaction was ended"), "{why}");
    let open = work(&resource, 3, "ROLLBACK; BEGIN; INSERT INTO t VALUES (3)").await;
    let fate = resource.commit_one_phase(&branch(3), open, &position(1)).await.unwrap();
    assert_eq!(fate, Fate::RolledBack);
    assert_eq!(resource.prove(&branch(3), &position(1)).await.unwrap(), Fate::RolledBack);
    assert_eq!(database.dump().await, Database::new(ONE).await.dump().await);
}

#[tokio::test]
async fn a_commit_hook_of_the_services_own_is_noticed() {
    let database = Database::new(ONE).await;
    let resource = database.attached().await;
    let mut open = work(&resource, 1, "INSERT INTO t VALUES (2)").await;
    Sqlite::connection(&mut open).lock_handle().await.unwrap().set_commit_hook(|| true);
    match resource.prepare(&branch(1), open, &position(1)).await.unwrap() {
        Prepared::No(why) => assert!(why.contains("replaced the connection's commit hook"), "{why}"),
        prepared @ (Prepared::Yes | Prepared::ReadOnly | Prepared::Hazard(_)) => panic!("{prepared:?}"),
    }
}

/// P16: what is durable already can't be taken back, and "rolled back" would be a lie.
#[tokio::test]
async fn a_commit_past_the_hook_is_a_hazard_whoever_asks_and_whenever() {
    let database = Database::new(ONE).await;
    let resource = database.attached().await;
    let committed = async |number| {
        let mut open = work(&resource, number, "INSERT INTO t VALUES (2)").await;
        let connection = Sqlite::connection(&mut open);
        connection.lock_handle().await.unwrap().set_commit_hook(|| true);
        run(connection, "COMMIT; BEGIN; INSERT INTO t VALUES (3)").await.unwrap();
        open
    };
    match resource.prepare(&branch(1), committed(1).await, &position(1)).await.unwrap() {
        Prepared::Hazard(why) => assert!(why.contains("what it committed is not known"), "{why}"),
        prepared @ (Prepared::Yes | Prepared::ReadOnly | Prepared::No(_)) => panic!("{prepared:?}"),
    }
    let fate = resource.commit_one_phase(&branch(2), committed(2).await, &position(1)).await.unwrap();
    assert_eq!(fate, Fate::Hazard);
    for number in [1, 2] {
        assert_eq!(resource.rollback(&branch(number), &position(1)).await.unwrap(), Fate::Hazard);
        assert_eq!(resource.commit(&branch(number), &position(1)).await.unwrap(), Fate::Hazard);
    }
    let values: Vec<i64> =
        sqlx::query_scalar("SELECT v FROM t ORDER BY v").fetch_all(&database.pool().await).await.unwrap();
    assert_eq!(values, [1, 2, 2], "what it committed stays, what it did afterwards is gone");
}

/// sqlx's own nesting works inside a branch: its begin is a savepoint there.
#[tokio::test]
async fn a_nested_transaction_of_the_service_is_a_savepoint() {
    let database = Database::new("CREATE TABLE t (v)").await;
    let resource = database.attached().await;
    for number in 1..4 {
        let mut open = resource.begin(&branch(number), LONG).await.unwrap();
        let mut kept = Sqlite::connection(&mut open).begin().await.unwrap();
        run(&mut kept, &format!("INSERT INTO t VALUES ('kept {number}')")).await.unwrap();
        kept.commit().await.unwrap();
        let mut dropped = Sqlite::connection(&mut open).begin().await.unwrap();
        run(&mut dropped, "INSERT INTO t VALUES ('dropped')").await.unwrap();
        drop(dropped);
        let prepared = resource.prepare(&branch(number), open, &position(1)).await.unwrap();
        assert_eq!(prepared, Prepared::Yes);
        assert_eq!(resource.commit(&branch(number), &position(1)).await.unwrap(), Fate::Committed);
    }
    let kept: Vec<String> =
        sqlx::query_scalar("SELECT v FROM t ORDER BY v").fetch_all(&database.pool().await).await.unwrap();
    assert_eq!(kept, ["kept 1", "kept 2", "kept 3"]);
}

/// P17: whatever a handler had sent when it was cancelled, the next branch has another connection, and finds nothing of it.
#[tokio::test]
async fn a_cancelled_handler_leaves_nothing_behind() {
    let database = Database::new(ONE).await;
    let resource = database.attached().await;
    for round in 0..5 {
        let mut open = work(&resource, 1, "INSERT INTO t VALUES (2); CREATE TEMP TABLE mine (v)").await;
        let handler = async {
            run(Sqlite::connection(&mut open), ENDLESS).await.unwrap();
            unreachable!("it ends when it is interrupted");
        };
        // The statement is on its way, perhaps running, when the handler goes away.
        let cancelled = tokio::time::timeout(Duration::from_millis(5 * round), handler).await;
        assert!(cancelled.is_err());
        if round % 2 == 0 {
            drop(open);
        } else {
            resource.discard(open).await;
        }
        let mut next = resource.begin(&branch(2), LONG).await.unwrap();
        let connection = Sqlite::connection(&mut next);
        let rows: i64 =
            sqlx::query_scalar("SELECT count(*) FROM t").fetch_one(&mut *connection).await.unwrap();
        assert_eq!(rows, 1);
        run(connection, "SELECT * FROM temp.mine").await.unwrap_err();
    }
}

#[tokio::test]
async fn a_discarded_branch_frees_the_file_at_once() {
    let database = Database::new(ONE).await;
    let resource = database.attached().await;
    let open = work(&resource, 1, "INSERT INTO t VALUES (2)").await;
    resource.discard(open).await;
    run(&mut database.stranger().await, "INSERT INTO t VALUES (3)").await.unwrap();
}

/// P19: nothing of a branch runs on, and nothing of it is prepared or committed, after its deadline.
#[tokio::test]
async fn a_branch_is_over_at_its_deadline() {
    let database = Database::new(ONE).await;
    let resource = database.attached().await;
    let soon = Duration::from_millis(300);
    let begun = tokio::time::Instant::now();
    let mut open = resource.begin(&branch(1), soon).await.unwrap();
    let error = run(Sqlite::connection(&mut open), ENDLESS).await.unwrap_err().to_string();
    assert!(error.contains("interrupted"), "{error}");
    assert!(begun.elapsed() >= soon);
    match resource.prepare(&branch(1), open, &position(1)).await.unwrap() {
        Prepared::No(why) => assert!(why.contains("deadline"), "{why}"),
        prepared @ (Prepared::Yes | Prepared::ReadOnly | Prepared::Hazard(_)) => panic!("{prepared:?}"),
    }
    let mut open = resource.begin(&branch(2), soon).await.unwrap();
    run(Sqlite::connection(&mut open), "INSERT INTO t VALUES (2)").await.unwrap();
    tokio::time::sleep(soon).await;
    let fate = resource.commit_one_phase(&branch(2), open, &position(1)).await.unwrap();
    assert_eq!(fate, Fate::RolledBack);
    // A deadline of the last branch is none for the next one.
    assert_eq!(prepare(&resource, 3, "INSERT INTO t VALUES (3)").await, Prepared::Yes);
    tokio::time::sleep(soon).await;
    assert_eq!(resource.commit(&branch(3), &position(1)).await.unwrap(), Fate::Committed);
}

#[tokio::test]
async fn a_branch_waits_for_the_one_before_and_says_which() {
    let database = Database::new(ONE).await;
    let resource = database.attached().await;
    let open = work(&resource, 1, "INSERT INTO t VALUES (2)").await;
    let why = unavailable(resource.begin(&branch(2), Duration::from_millis(50)).await);
    assert!(why.contains(&format!("the open branch {}", branch(1))), "{why}");
    resource.prepare(&branch(1), open, &position(1)).await.unwrap();
    let why = unavailable(resource.begin(&branch(2), Duration::from_millis(50)).await);
    assert!(why.contains(&format!("the prepared branch {}", branch(1))), "{why}");
    let (begun, committed) = tokio::join!(prepare(&resource, 2, "INSERT INTO t VALUES (3)"), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        resource.commit(&branch(1), &position(1)).await
    });
    assert_eq!((begun, committed), (Prepared::Yes, Ok(Fate::Committed)));
}

/// A fence for another branch waits for the one that has the file, and answers that it is not known rather than guess.
#[tokio::test]
async fn nothing_is_proved_while_another_branch_has_the_file() {
    let database = Database::new(ONE).await;
    let resource = database.attached().await;
    prepare(&resource, 1, "INSERT INTO t VALUES (2)").await;
    let unresolved = resource.rollback(&branch(2), &position(1)).await.unwrap_err();
    assert!(unresolved.0.contains(&format!("the prepared branch {}", branch(1))), "{unresolved}");
    assert_eq!(resource.commit(&branch(1), &position(1)).await.unwrap(), Fate::Committed);
    assert_eq!(resource.rollback(&branch(2), &position(1)).await.unwrap(), Fate::RolledBack);
}

#[tokio::test]
async fn many_at_once_lose_nothing() {
    let database = Database::new("CREATE TABLE t (v); INSERT INTO t VALUES (0)").await;
    let resource = database.attached().await;
    let tasks: Vec<_> = (0..40u8)
        .map(|number| {
            let resource = resource.clone();
            tokio::spawn(async move {
                let open = work(&resource, number, "UPDATE t SET v = v + 1").await;
                let id = branch(number);
                match number % 4 {
                    0 => {
                        assert_eq!(resource.prepare(&id, open, &position(1)).await.unwrap(), Prepared::Yes);
                        assert_eq!(resource.commit(&id, &position(1)).await.unwrap(), Fate::Committed);
                    }
                    1 => {
                        let fate = resource.commit_one_phase(&id, open, &position(1)).await.unwrap();
                        assert_eq!(fate, Fate::Committed);
                    }
                    2 => {
                        assert_eq!(resource.prepare(&id, open, &position(1)).await.unwrap(), Prepared::Yes);
                        assert_eq!(resource.rollback(&id, &position(1)).await.unwrap(), Fate::RolledBack);
                    }
                    _ => drop(open),
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let sum: i64 = sqlx::query_scalar("SELECT v FROM t").fetch_one(&database.pool().await).await.unwrap();
    assert_eq!(sum, 20);
}

/// Whoever asks for a step may go away in the middle of it: it is done, or as if it had not begun.
#[tokio::test]
async fn a_step_that_nobody_waits_for_any_more_is_done_all_the_same() {
    let database = Database::new("CREATE TABLE t (v); INSERT INTO t VALUES (0)").await;
    let resource = database.attached().await;
    for number in 1..30u8 {
        let patience = Duration::from_micros(100 * u64::from(number));
        let (id, position) = (branch(number), position(1));
        let open = work(&resource, number, "UPDATE t SET v = v + 1").await;
        let prepared = tokio::time::timeout(patience, resource.prepare(&id, open, &position)).await;
        while resource.prepared(cluster(), &name()).await.unwrap().is_empty() {
            assert!(prepared.is_err(), "{prepared:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let first = tokio::time::timeout(patience, resource.rollback(&id, &position)).await;
        assert_eq!(resource.rollback(&id, &position).await.unwrap(), Fate::RolledBack, "{first:?}");
        assert_eq!(resource.prepared(cluster(), &name()).await.unwrap(), []);
    }
    let sum: i64 = sqlx::query_scalar("SELECT v FROM t").fetch_one(&database.pool().await).await.unwrap();
    assert_eq!(sum, 0);
}

#[tokio::test]
async fn a_local_write_takes_its_turn() {
    let database = Database::new(ONE).await;
    let resource = database.resource().await;
    let why = unavailable(resource.local_write(LONG).await);
    assert!(why.contains("not attached"), "{why}");
    resource.attach(&name()).await.unwrap();

    let mut write = resource.local_write(LONG).await.unwrap();
    run(&mut write, "INSERT INTO t VALUES (2)").await.unwrap();
    let why = unavailable(resource.begin(&branch(1), Duration::from_millis(50)).await);
    assert!(why.contains("a local write"), "{why}");
    write.commit().await.unwrap();

    let open = work(&resource, 1, "INSERT INTO t VALUES (3)").await;
    assert_eq!(resource.prepare(&branch(1), open, &position(1)).await.unwrap(), Prepared::Yes);
    let why = unavailable(resource.local_write(Duration::from_millis(50)).await);
    assert!(why.contains(&format!("the prepared branch {}", branch(1))), "{why}");
    resource.commit(&branch(1), &position(1)).await.unwrap();

    let mut dropped = resource.local_write(LONG).await.unwrap();
    run(&mut dropped, "DELETE FROM t").await.unwrap();
    drop(dropped);
    // A migration is a local write; the next branch captures what it made.
    let mut migration = resource.local_write(LONG).await.unwrap();
    run(&mut migration, "CREATE TABLE u (v)").await.unwrap();
    migration.commit().await.unwrap();
    assert_eq!(prepare(&resource, 2, "INSERT INTO u SELECT v FROM t").await, Prepared::Yes);
    drop(resource);
    let resource = database.attached().await;
    assert_eq!(resource.commit(&branch(2), &position(1)).await.unwrap(), Fate::Committed);
    let all: Vec<i64> =
        sqlx::query_scalar("SELECT v FROM u ORDER BY v").fetch_all(&database.pool().await).await.unwrap();
    assert_eq!(all, [1, 2, 3]);
}

/// P25: a writer of the service's pool that waits on SQLite's lock while a branch is prepared goes on after its end.
#[tokio::test]
async fn a_plain_write_waits_for_a_prepared_branch() {
    let database = Database::new(ONE).await;
    let resource = database.attached().await;
    prepare(&resource, 1, "UPDATE t SET v = v + 10").await;
    let pool = database.pool().await;
    let plain =
        tokio::spawn(async move { sqlx::query("UPDATE t SET v = v * 2").execute(&pool).await.map(drop) });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!plain.is_finished());
    resource.commit(&branch(1), &position(1)).await.unwrap();
    plain.await.unwrap().unwrap();
    let value: i64 = sqlx::query_scalar("SELECT v FROM t").fetch_one(&database.pool().await).await.unwrap();
    assert_eq!(value, 22);
}

#[tokio::test]
async fn a_foreign_writer_is_waited_for_until_the_deadline() {
    let database = Database::new(ONE).await;
    let resource = database.attached().await;
    let mut stranger = database.stranger().await;
    run(&mut stranger, "BEGIN IMMEDIATE; INSERT INTO t VALUES (2)").await.unwrap();
    let why = unavailable(resource.begin(&branch(1), Duration::from_millis(100)).await);
    assert!(why.contains("a writer that does not use the SDK"), "{why}");
    let second = branch(2);
    let (begun, _ended) = tokio::join!(resource.begin(&second, LONG), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        run(&mut stranger, "COMMIT").await.unwrap();
    });
    drop(begun.unwrap());
}

/// P25: whoever writes through the SDK looks at the journal when it has the lock, not before.
#[tokio::test]
async fn an_entry_that_appears_behind_our_back_is_seen_before_anything_is_written() {
    let database = Database::new(ONE).await;
    let resource = database.attached().await;
    prepare(&resource, 1, "UPDATE t SET v = 2").await;
    let entry = std::fs::read(database.journal()).unwrap();
    resource.commit(&branch(1), &position(1)).await.unwrap();
    for round in 0..3 {
        std::fs::write(database.journal(), &entry).unwrap();
        let why = match round {
            0 => unavailable(resource.begin(&branch(2), LONG).await),
            1 => unavailable(resource.local_write(LONG).await),
            _ => resource.rollback(&branch(9), &position(1)).await.unwrap_err().to_string(),
        };
        assert!(why.contains("has an entry that this process did not write"), "{why}");
        // It was looked at: the branch had ended, and only its end mark was missing.
        resource.local_write(LONG).await.unwrap().commit().await.unwrap();
    }
}

/// What statements report about themselves is not disturbed by the triggers that note keys.
#[tokio::test]
async fn counts_and_rowids_are_those_of_the_service() {
    let database = Database::new(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v UNIQUE); INSERT INTO t VALUES (1, 1), (2, 2)",
    )
    .await;
    let resource = database.attached().await;
    let mut open = resource.begin(&branch(1), LONG).await.unwrap();
    let connection = Sqlite::connection(&mut open);
    let done = sqlx::query("INSERT INTO t VALUES (77, 7)").execute(&mut *connection).await.unwrap();
    assert_eq!((done.last_insert_rowid(), done.rows_affected()), (77, 1));
    let done = sqlx::query("UPDATE t SET v = v + 10").execute(&mut *connection).await.unwrap();
    assert_eq!((done.last_insert_rowid(), done.rows_affected()), (77, 3));
    let done = sqlx::query("REPLACE INTO t VALUES (5, 11)").execute(&mut *connection).await.unwrap();
    assert_eq!((done.last_insert_rowid(), done.rows_affected()), (5, 1));
    let ids: Vec<i64> = sqlx::query_scalar("DELETE FROM t RETURNING id").fetch_all(connection).await.unwrap();
    assert_eq!(ids, [2, 5, 77]);
}

/// P25: one instance per file, also against one of the same process; after a SIGKILL the file is free at once.
#[tokio::test]
async fn one_instance_serves_a_file() {
    let database = Database::new(ONE).await;
    let first = database.attached().await;
    let why = unavailable(database.resource().await.attach(&name()).await);
    assert!(why.contains(&format!("process {}", std::process::id())), "{why}");
    // Another name of the same file finds the same lock.
    let link = database.path().with_file_name("link.db");
    std::os::unix::fs::symlink(database.path(), &link).unwrap();
    let why = unavailable(crate::harness::resource_at(&link).await.attach(&name()).await);
    assert!(why.contains("another instance"), "{why}");
    drop(first);
    database.attached().await;
}

#[tokio::test]
async fn a_killed_instance_leaves_its_file_free_and_its_branch_prepared() {
    let database = Database::new(
        "CREATE TABLE account (id INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT UNIQUE, balance INTEGER); \
             INSERT INTO account (owner, balance) VALUES ('ada', 100), ('cyd', 0)",
    )
    .await;
    let mut child = database.child("hold").command().spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("child: voted")));
    let why = unavailable(database.resource().await.attach(&name()).await);
    assert!(why.contains(&format!("process {}", child.id())), "{why}");
    child.kill().unwrap();
    child.wait().unwrap();
    let resource = database.attached().await;
    assert_eq!(resource.prepared(cluster(), &name()).await.unwrap(), [branch(1).xid]);
    // Before attach returned, no other writer could get in any more.
    run(&mut database.stranger().await, "DELETE FROM account").await.unwrap_err();
    assert_eq!(resource.commit(&branch(1), &position(2)).await.unwrap(), Fate::Committed);
    run(&mut database.stranger().await, "DELETE FROM account").await.unwrap();
}
