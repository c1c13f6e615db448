//! Disks that have no room, and journals that are not as they were written.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use lockstep::resource::sqlite::Sqlite;
use lockstep::resource::{Fate, Prepared, Resource, ResourceError};
use rustix::process::Rlimit;
use tokio::signal::unix::{SignalKind, signal};

use crate::harness::{
    Database, LONG, branch, cluster, name, position, prepare, refusal, resource_at, say, unfit, work,
};

const SETUP: &str = "CREATE TABLE t (id INTEGER PRIMARY KEY, v, filler); \
     WITH s(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM s WHERE n < 300) INSERT INTO t SELECT n, 0, zeroblob(3000) FROM s";
/// A small entry in the journal, and a page of the WAL for each row.
const MANY_PAGES: &str = "UPDATE t SET v = 1";
/// A large entry in the journal.
const ONE_LARGE: &str = "INSERT INTO t VALUES (1000, 1, zeroblob(900000))";

/// No file of this process may become larger than this, as on a disk that is full: writes beyond it fail, and those
/// within files that are there succeed.
fn no_file_beyond(bytes: Option<u64>) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize);
    let limit = Rlimit { current: bytes, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
}

/// Played in a process of its own, whose limits it changes.
pub(crate) async fn play_full(path: &std::path::Path, argument: &str) {
    // By default the signal that comes with the error would end the process.
    let mut too_large = signal(SignalKind::from_raw(25)).unwrap();
    let resource = resource_at(path).await;
    resource.attach(&name()).await.unwrap();
    match argument {
        "journal" => play_full_at_the_journal(&resource).await,
        "commit" => play_full_at_commit(&resource).await,
        "one-phase" => play_full_at_one_phase(&resource).await,
        unknown => panic!("no case {unknown:?}"),
    }
    // The limit was met, or this tests nothing.
    assert!(too_large.recv().await.is_some());
    say("done");
}

async fn play_full_at_the_journal(resource: &Sqlite) {
    no_file_beyond(Some(500_000));
    let why = refusal(resource, 1, ONE_LARGE).await;
    assert!(why.contains("-lockstep: "), "{why}");
    no_file_beyond(None);
    assert_eq!(resource.rollback(&branch(1), &position(1)).await.unwrap(), Fate::RolledBack);
    assert_eq!(prepare(resource, 2, ONE_LARGE).await, Prepared::Yes);
    assert_eq!(resource.commit(&branch(2), &position(1)).await.unwrap(), Fate::Committed);
}

async fn play_full_at_commit(resource: &Sqlite) {
    assert_eq!(prepare(resource, 1, MANY_PAGES).await, Prepared::Yes);
    no_file_beyond(Some(100_000));
    for _again in 0..2 {
        let unresolved = resource.commit(&branch(1), &position(1)).await.unwrap_err();
        say(&unresolved.to_string());
    }
    // It is still the prepared branch, and nobody else gets in.
    assert!(resource.local_write(Duration::from_millis(50)).await.is_err());
    no_file_beyond(None);
    assert_eq!(resource.prepared(cluster(), &name()).await.unwrap(), [branch(1).xid]);
    assert_eq!(resource.commit(&branch(1), &position(1)).await.unwrap(), Fate::Committed);
}

async fn play_full_at_one_phase(resource: &Sqlite) {
    let open = work(resource, 1, MANY_PAGES).await;
    no_file_beyond(Some(100_000));
    let unresolved = resource.commit_one_phase(&branch(1), open, &position(1)).await.unwrap_err();
    assert!(unresolved.0.contains("is unknown"), "{unresolved}");
    no_file_beyond(None);
    assert_eq!(resource.prove(&branch(1), &position(1)).await.unwrap(), Fate::RolledBack);
}

#[tokio::test]
async fn a_disk_without_room_for_the_journal_is_a_vote_to_roll_back() {
    let database = Database::new(SETUP).await;
    assert!(database.child("full").argument("journal").run().heard("done"));
    let rows: i64 =
        sqlx::query_scalar("SELECT count(*) FROM t").fetch_one(&database.pool().await).await.unwrap();
    assert_eq!(rows, 301);
}

#[tokio::test]
async fn a_disk_without_room_for_the_commit_leaves_it_to_be_asked_again() {
    let database = Database::new(SETUP).await;
    let said = database.child("full").argument("commit").run();
    assert!(said.heard("done"), "{:?}", said.lines);
    let sum: i64 =
        sqlx::query_scalar("SELECT sum(v) FROM t").fetch_one(&database.pool().await).await.unwrap();
    assert_eq!(sum, 300);
}

#[tokio::test]
async fn a_disk_without_room_for_a_one_phase_commit_leaves_it_to_be_proved() {
    let database = Database::new(SETUP).await;
    assert!(database.child("full").argument("one-phase").run().heard("done"));
    let sum: i64 =
        sqlx::query_scalar("SELECT sum(v) FROM t").fetch_one(&database.pool().await).await.unwrap();
    assert_eq!(sum, 0);
}

/// Prepares, and loses the process's state.
async fn prepared() -> (Database, usize) {
    let database = Database::new("CREATE TABLE t (v)").await;
    let resource = database.attached().await;
    assert_eq!(prepare(&resource, 1, "INSERT INTO t VALUES ('row')").await, Prepared::Yes);
    drop(resource);
    let bytes = std::fs::read(database.journal()).unwrap();
    let length = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    (database, length)
}

/// What a crash leaves that came before the vote: the branch is not prepared, and is rolled back when it is asked for.
async fn is_not_prepared(database: &Database, case: &str) {
    let resource = database.attached().await;
    assert_eq!(resource.prepared(cluster(), &name()).await.unwrap(), [], "{case}");
    assert_eq!(resource.rollback(&branch(1), &position(1)).await.unwrap(), Fate::RolledBack, "{case}");
    assert_eq!(prepare(&resource, 2, "INSERT INTO t VALUES (2)").await, Prepared::Yes, "{case}");
    assert_eq!(resource.commit(&branch(2), &position(1)).await.unwrap(), Fate::Committed, "{case}");
}

/// What an attach makes of a journal with this content, tried on one database after another content.
async fn tried(database: &Database, journal: &[u8], case: &str) -> Option<Sqlite> {
    std::fs::write(database.journal(), journal).unwrap();
    let resource = database.resource().await;
    match resource.attach(&name()).await {
        Ok(_attachment) => Some(resource),
        // Another byte in the magic or the version: it says that it does not know what this is.
        Err(ResourceError::Unfit(why)) => {
            assert!(why.contains("It may hold a prepared branch"), "{case}: {why}");
            None
        }
        Err(error) => panic!("{case}: {error}"),
    }
}

/// Every content that a journal has when it is cut at a byte, or when a byte is another one, and whether the header still says
/// that it is a journal.
fn damaged(whole: &[u8], length: usize) -> impl Iterator<Item = (String, Vec<u8>, bool)> {
    let cut = (0..length).map(|kept| (format!("cut at {kept}"), whole[..kept].to_vec(), true));
    let flipped = (0..length).map(|at| {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 1 << (at % 8);
        (format!("byte {at} flipped"), bytes, at >= 12)
    });
    cut.chain(flipped)
}

#[tokio::test]
async fn a_journal_that_is_torn_at_any_byte_was_never_prepared() {
    let (database, length) = prepared().await;
    let whole = std::fs::read(database.journal()).unwrap();
    for (case, journal, is_one) in damaged(&whole, length) {
        let resource = tried(&database, &journal, &case).await;
        assert_eq!(resource.is_some(), is_one, "{case}");
        let Some(resource) = resource else { continue };
        assert_eq!(resource.prepared(cluster(), &name()).await.unwrap(), [], "{case}");
        // The file is free, and nothing of the branch is in it.
        let write = resource.local_write(Duration::from_secs(30)).await.unwrap();
        drop(write);
        assert!(!database.dump().await.contains("row"), "{case}");
    }
    // It was the bytes: whole, it is prepared.
    let resource = tried(&database, &whole, "whole").await.unwrap();
    assert_eq!(resource.prepared(cluster(), &name()).await.unwrap(), [branch(1).xid]);
}

/// The entry stays behind the end mark until another one is written over it. It is never written again.
#[tokio::test]
async fn an_entry_behind_its_end_mark_is_never_written_again() {
    let database = Database::new("CREATE TABLE t (v); INSERT INTO t VALUES ('first')").await;
    let resource = database.attached().await;
    assert_eq!(prepare(&resource, 1, "UPDATE t SET v = 'second'").await, Prepared::Yes);
    let entry = std::fs::read(database.journal()).unwrap();
    assert_eq!(resource.commit(&branch(1), &position(1)).await.unwrap(), Fate::Committed);
    let ended = std::fs::read(database.journal()).unwrap();
    let mut write = resource.local_write(LONG).await.unwrap();
    // What a branch written again would overwrite: the row is as it was before it.
    crate::harness::run(&mut write, "UPDATE t SET v = 'first'").await.unwrap();
    write.commit().await.unwrap();
    drop(resource);

    let length = entry.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let content = database.dump().await;
    // The end mark, up to any byte of it, and damage of all kinds when it is there.
    let torn =
        (0..32).map(|at| (format!("end mark up to {at}"), [&ended[..at], &entry[at..]].concat(), true));
    let cases: Vec<_> = torn.chain(damaged(&ended, length)).collect();
    for (case, journal, is_one) in &cases {
        let resource = tried(&database, journal, case).await;
        assert_eq!(resource.is_some(), *is_one, "{case}");
        let Some(resource) = resource else { continue };
        assert_eq!(resource.prepared(cluster(), &name()).await.unwrap(), [], "{case}");
        assert_eq!(resource.commit(&branch(1), &position(1)).await.unwrap(), Fate::Committed, "{case}");
        drop(resource);
        assert_eq!(database.dump().await, content, "{case}");
    }

    // Without its evidence, which goes only when the end mark is durable (P27), nothing but the journal tells.
    std::fs::write(database.journal(), &ended).unwrap();
    database.attached().await.forget(&[branch(1)]).await.unwrap();
    let (mut prepared, mut not_prepared) = (0, 0);
    for (case, journal, is_one) in &cases {
        let Some(resource) = tried(&database, journal, case).await else { continue };
        assert!(*is_one, "{case}");
        let is_whole = *journal == entry;
        let expected = if is_whole { vec![branch(1).xid] } else { vec![] };
        assert_eq!(resource.prepared(cluster(), &name()).await.unwrap(), expected, "{case}");
        drop(resource);
        assert_eq!(database.dump().await, content, "{case}");
        if is_whole { prepared += 1 } else { not_prepared += 1 }
    }
    // Up to the byte that tells an end from an entry both are the same, and this is what the evidence is for.
    assert_eq!((prepared, not_prepared), (13, cases.len() - 13 - 12));
}

/// As every attach after a crash does, it takes up work again.
#[tokio::test]
async fn a_torn_entry_keeps_nobody_from_working() {
    for kept in [0, 40, 150] {
        let (database, _length) = prepared().await;
        std::fs::OpenOptions::new().write(true).open(database.journal()).unwrap().set_len(kept).unwrap();
        is_not_prepared(&database, &format!("{kept} bytes")).await;
    }
    let (database, _length) = prepared().await;
    let file = std::fs::OpenOptions::new().write(true).open(database.journal()).unwrap();
    file.write_all_at(&[9], 8).unwrap();
    let why = unfit(&database.resource().await).await;
    assert!(why.contains("its version is 9"), "{why}");
}

/// A removed journal makes the branch disappear; it is then fenced, so that its loss is known and not guessed.
#[tokio::test]
async fn a_removed_journal_is_a_lost_branch() {
    let (database, _length) = prepared().await;
    std::fs::remove_file(database.journal()).unwrap();
    let resource = database.attached().await;
    assert_eq!(resource.commit(&branch(1), &position(1)).await.unwrap(), Fate::RolledBack);
}

/// A reader that holds an older state keeps the WAL from being moved into the file, and evidence from being believed.
#[tokio::test]
async fn nothing_is_believed_that_is_not_known_to_be_on_disk() {
    use sqlx::{ConnectOptions, Connection};
    let database = Database::new("PRAGMA journal_mode = WAL; CREATE TABLE t (v)").await;
    let mut reader = database.options().connect().await.unwrap();
    crate::harness::run(&mut reader, "BEGIN; SELECT * FROM t").await.unwrap();
    crate::harness::run(&mut database.stranger().await, "INSERT INTO t VALUES (1)").await.unwrap();
    match database.resource().await.attach(&name()).await {
        Err(ResourceError::Unavailable(why)) => {
            assert!(why.contains("cannot be checkpointed"), "{why}");
        }
        other => panic!("{other:?}"),
    }
    reader.close().await.unwrap();
    database.attached().await;
}
