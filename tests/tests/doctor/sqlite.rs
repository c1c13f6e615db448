//! SQLite: the file, its journal, its lock; and that looking leaves everything as it was.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use lockstep::Sqlite;
use lockstep::resource::{Prepared, Resource as _, ResourceError};
use sqlx::SqlitePool;
use sqlx::sqlite::SqliteConnectOptions;
use tempfile::TempDir;

use super::*;

async fn pool(path: &Path) -> SqlitePool {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    SqlitePool::connect_with(options).await.unwrap()
}

/// The files of a directory and what is in them.
fn files(directory: &TempDir) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.display().to_string(), fs::read(&path).unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_seen_as_it_is_from_its_first_day_to_a_crash_with_a_prepared_branch() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("bank.db");
    let pool = pool(&path).await;
    sqlx::raw_sql("CREATE TABLE account (id INTEGER PRIMARY KEY, amount INTEGER)")
        .execute(&pool)
        .await
        .unwrap();
    pool.close().await;
    let before = files(&directory);
    let new = of_sqlite(&path);
    assert_eq!(new.code, OK, "{:#}", new.json);
    new.says("journal-mode", "note", "attaching changes it to wal");
    new.says("identity", "note", "never attached");
    new.says("lock", "ok", "no instance");
    assert_eq!(files(&directory), before, "looking changes nothing");

    let cluster = ClusterId::from_random(1);
    let pool = super::sqlite::pool(&path).await;
    let resource = Sqlite::new(pool.clone());
    resource.attach(&name("orders-db")).await.unwrap();
    resource.bind(cluster).await.unwrap();
    let served = of_sqlite(&path);
    assert_eq!(served.code, OK, "{:#}", served.json);
    served.says("lock", "ok", &format!("process {} serves it", std::process::id()));
    served.says("journal-mode", "ok", "wal");
    served.says("identity", "ok", &cluster.to_string());
    served.says("prepared", "ok", "no branch");
    served.says("schema", "ok", "all tables");

    let branch = branch(cluster);
    let mut open = resource.begin(&branch, Duration::from_secs(600)).await.unwrap();
    sqlx::raw_sql("INSERT INTO account VALUES (1, 1)").execute(Sqlite::connection(&mut open)).await.unwrap();
    assert_eq!(resource.prepare(&branch, open, &position()).await, Ok(Prepared::Yes));
    of_sqlite(&path).says("prepared", "note", &branch.to_string());

    // As after a crash: nobody holds the lock, and the journal has the branch.
    drop(resource);
    pool.close().await;
    let left = wait_until_nobody_serves(&path).await;
    let show = format!("lockstep tx show {}", branch.xid.gtrid);
    let finding = left.says("prepared", "warning", "no instance holds its lock: start the service");
    assert_eq!(finding["mend"], serde_json::json!([show]));

    // The journal of another database.
    let other = directory.path().join("other.db");
    drop(super::sqlite::pool(&other).await);
    fs::copy(directory.path().join("bank.db-lockstep"), directory.path().join("other.db-lockstep")).unwrap();
    let strange = of_sqlite(&other);
    assert_eq!(strange.code, UNFIT);
    strange.says("prepared", "error", "of another database");
    fs::write(directory.path().join("other.db-lockstep"), "somebody else's notes, of 32 bytes at least")
        .unwrap();
    of_sqlite(&other).says("prepared", "error", "no journal of Lockstep");
    // One that was cut before its header ended.
    let journal = fs::read(directory.path().join("bank.db-lockstep")).unwrap();
    fs::write(directory.path().join("other.db-lockstep"), &journal[..20]).unwrap();
    of_sqlite(&other).says("prepared", "note", "never completed");
}

/// The connections close in the background.
async fn wait_until_nobody_serves(path: &Path) -> Report {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let report = of_sqlite(path);
        if report.finding("lock")["what"] == "no instance serves it now" {
            return report;
        }
        assert!(tokio::time::Instant::now() < deadline, "the lock is not let go: {:#}", report.json);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_cannot_take_part_is_an_error_for_both() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("bank.db");
    let pool = pool(&path).await;
    sqlx::raw_sql("CREATE VIRTUAL TABLE notes USING fts5(text)").execute(&pool).await.unwrap();
    let found = of_sqlite(&path);
    assert_eq!(found.code, UNFIT);
    found.says("schema", "error", "the virtual table notes");
    let refused = Sqlite::new(pool).attach(&name("orders-db")).await;
    assert!(
        matches!(&refused, Err(ResourceError::Unfit(why)) if why.contains("the virtual table notes")),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_there_or_no_database_is_unreachable() {
    let directory = TempDir::new().unwrap();
    let missing = directory.path().join("missing.db");
    let ran = lockstep(&["doctor", "--sqlite", missing.to_str().unwrap()]);
    assert_eq!(ran.code, UNREACHABLE, "{ran:?}");
    assert!(!missing.exists());
    let text = directory.path().join("notes.txt");
    fs::write(&text, "no database, but long enough to be asked whether it is one: ".repeat(20)).unwrap();
    let ran = lockstep(&["doctor", "--sqlite", text.to_str().unwrap()]);
    assert_eq!(ran.code, UNREACHABLE, "{ran:?}");
    assert!(ran.stderr.contains("not a database"), "{ran:?}");
}
