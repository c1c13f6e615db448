//! Somebody wrote between the crash and the next attach: what was prepared may not fit any more. Nothing is overwritten.

use std::time::Duration;

use lockstep::resource::{Fate, Prepared, Resource, ResourceError};

use crate::harness::{Database, branch, cluster, name, position, prepare, run, unfit};

const SETUP: &str = "CREATE TABLE account (id INTEGER PRIMARY KEY, owner TEXT UNIQUE, balance INTEGER); \
     INSERT INTO account VALUES (1, 'ada', 100), (2, 'bob', 50), (3, 'cyd', 0); \
     CREATE TABLE numbered (id INTEGER PRIMARY KEY AUTOINCREMENT, v); INSERT INTO numbered (v) VALUES (1)";
const WORK: &str = "UPDATE account SET balance = 90 WHERE id = 1; DELETE FROM account WHERE id = 3; \
     INSERT INTO account VALUES (4, 'dan', 10); INSERT INTO numbered (v) VALUES ('it''s')";

/// A database whose process has died with the branch prepared, and where somebody has then done this.
async fn interfered(statements: &str) -> Database {
    let database = Database::new(SETUP).await;
    let resource = database.attached().await;
    assert_eq!(prepare(&resource, 1, WORK).await, Prepared::Yes);
    drop(resource);
    let mut stranger = database.stranger().await;
    run(&mut stranger, "PRAGMA busy_timeout = 5000").await.unwrap();
    run(&mut stranger, statements).await.unwrap();
    database
}

const MISFITS: [&str; 9] = [
    "UPDATE account SET balance = 77 WHERE id = 1",
    "DELETE FROM account WHERE id = 1",
    "DELETE FROM account WHERE id = 3",
    "INSERT INTO account VALUES (4, 'eve', 1)",
    "INSERT INTO account VALUES (5, 'dan', 1)",
    "INSERT INTO numbered (v) VALUES (2); DELETE FROM numbered WHERE v = 2",
    "ALTER TABLE account ADD COLUMN note",
    "DROP TABLE account",
    "CREATE UNIQUE INDEX i ON account (balance); INSERT INTO account VALUES (6, 'fay', 90)",
];

const HARMLESS: [&str; 4] = [
    "UPDATE account SET balance = 51 WHERE id = 2",
    "INSERT INTO account VALUES (9, 'eve', 1)",
    "CREATE TABLE later (id INTEGER PRIMARY KEY AUTOINCREMENT, v); CREATE INDEX i ON account (balance)",
    "CREATE TRIGGER t AFTER INSERT ON account BEGIN DELETE FROM account; END",
];

#[tokio::test]
async fn a_branch_that_does_not_fit_any_more_is_a_hazard_when_it_is_committed() {
    for statements in MISFITS {
        let database = interfered(statements).await;
        let content = database.dump().await;
        let resource = database.attached().await;
        assert_eq!(resource.prepared(cluster(), &name()).await.unwrap(), [branch(1).xid], "{statements}");
        // Until it is decided, nobody makes it harder to understand.
        match resource.begin(&branch(2), Duration::from_millis(50)).await {
            Err(ResourceError::Unavailable(why)) => assert!(why.contains("cannot be written again"), "{why}"),
            other => panic!("{other:?}"),
        }
        resource.local_write(Duration::from_millis(50)).await.unwrap_err();
        for _asked in 0..2 {
            assert_eq!(
                resource.commit(&branch(1), &position(2)).await.unwrap(),
                Fate::Hazard,
                "{statements}"
            );
        }
        assert_eq!(database.dump().await, content, "{statements}");
        drop(resource);
        // The answer stays, and the file is served again.
        let resource = database.attached().await;
        assert_eq!(resource.prepared(cluster(), &name()).await.unwrap(), []);
        assert_eq!(resource.commit(&branch(1), &position(2)).await.unwrap(), Fate::Hazard);
        assert_eq!(resource.rollback(&branch(1), &position(2)).await.unwrap(), Fate::Hazard);
        assert_eq!(prepare(&resource, 2, "DELETE FROM numbered").await, Prepared::Yes);
        assert_eq!(resource.commit(&branch(2), &position(2)).await.unwrap(), Fate::Committed);
    }
}

#[tokio::test]
async fn a_branch_that_does_not_fit_any_more_is_rolled_back_as_if_it_did() {
    for statements in MISFITS {
        let database = interfered(statements).await;
        let content = database.dump().await;
        let resource = database.attached().await;
        for _asked in 0..2 {
            assert_eq!(resource.rollback(&branch(1), &position(2)).await.unwrap(), Fate::RolledBack);
        }
        assert_eq!(database.dump().await, content, "{statements}");
        assert_eq!(database.files().iter().filter(|file| file.contains("hazard")).count(), 0);
    }
}

#[tokio::test]
async fn a_change_that_does_not_meet_the_branch_is_no_hazard() {
    for statements in HARMLESS {
        let database = interfered(statements).await;
        let resource = database.attached().await;
        assert_eq!(resource.commit(&branch(1), &position(2)).await.unwrap(), Fate::Committed, "{statements}");
        let dump = database.dump().await;
        assert!(dump.contains(" ada | integer 3930 90 "), "{statements}: {dump}");
        assert!(dump.contains(" dan ") && !dump.contains(" cyd "), "{statements}: {dump}");
    }
}

#[tokio::test]
async fn what_a_person_finds_of_a_hazard() {
    let database = interfered(MISFITS[0]).await;
    let resource = database.attached().await;
    resource.commit(&branch(1), &position(2)).await.unwrap();
    let files = database.files();
    let file = files.iter().find(|file| file.contains("-lockstep-hazard-")).unwrap();
    assert!(file.contains(branch(1).xid.bqual.as_str()), "{file}");
    let text = std::fs::read_to_string(database.path().with_file_name(file)).unwrap();
    for expected in [
        branch(1).to_string().as_str(),
        "the row 1 of the table account is not as the branch found it",
        "account (id, owner, balance)",
        "key 1: (1, 'ada', 100) -> (1, 'ada', 90)",
        "key 3: (3, 'cyd', 0) -> none",
        "key 4: none -> (4, 'dan', 10)",
        "'it''s'",
    ] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
}

#[tokio::test]
async fn killed_at_each_point_of_recording_a_hazard() {
    for point in ["sqlite-hazard-kept", "sqlite-hazard-recorded"] {
        let database = interfered(MISFITS[0]).await;
        let content = database.dump().await;
        assert!(database.child("restart").argument("commit").killed_at(point).run().killed, "{point}");
        let resource = database.attached().await;
        assert_eq!(resource.commit(&branch(1), &position(2)).await.unwrap(), Fate::Hazard, "{point}");
        assert_eq!(database.dump().await, content);
        assert_eq!(database.files().iter().filter(|file| file.contains("hazard")).count(), 1);
    }
}

/// The files of two databases, mixed up.
#[tokio::test]
async fn a_journal_of_another_database_is_refused() {
    let database = interfered("SELECT 1").await;
    let other = Database::new(SETUP).await;
    let resource = other.attached().await;
    prepare(&resource, 1, WORK).await;
    drop(resource);
    std::fs::copy(other.journal(), database.journal()).unwrap();
    let why = unfit(&database.resource().await).await;
    assert!(why.contains("of another database"), "{why}");
    // And beside one that was never attached.
    let new = Database::new(SETUP).await;
    std::fs::copy(other.journal(), new.journal()).unwrap();
    let why = unfit(&new.resource().await).await;
    assert!(why.contains("of another database"), "{why}");
}
