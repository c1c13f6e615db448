//! Disks that are full, that fail, and that are asked for too much.

use tempfile::TempDir;

use super::crash::{force_for_ever, rounds};
use super::{SqliteLog, TempSqlite, open};
use crate::decision_log::contract::{commit, decisions, gtrid, rolled_back};
use crate::decision_log::data_dir::DataDirError;
use crate::decision_log::rerun::{self, Child};
use crate::decision_log::sqlite::{OpenError, Options};
use crate::decision_log::{AppendError, DecisionLog, ReadError};

const ANY_DISK: Options = Options { min_free_bytes: 0 };

/// The words as they are passed on.
fn words(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// Numbers said, in their order, from behind the word that was heard before.
fn last_round(said: &[String]) -> u64 {
    said.iter().filter_map(|said| said.parse().ok()).next_back().unwrap_or(0)
}

/// After a force whose result is unknown, nothing goes on in this process.
async fn assert_broken(log: &SqliteLog, error: &AppendError) {
    assert!(matches!(error, AppendError::Unknown(_)), "{error}");
    let more = commit(gtrid(log.position().epoch, 999_999, 1));
    assert_eq!(log.force(&decisions(std::slice::from_ref(&more))).await, Err(error.clone()));
    assert_eq!(log.write_lazily(&[rolled_back(more.gtrid)]).await, Err(error.clone()));
    assert!(matches!(log.look_up(&[more.gtrid]).await, Err(ReadError::Unavailable(_))));
    log.close().await;
}

#[tokio::test]
#[ignore = "a child of the tests below"]
async fn child_forces_until_the_disk_says_no() {
    let Some(dir) = rerun::dir() else { return };
    let (log, opened) = SqliteLog::open(&dir, ANY_DISK).await.unwrap();
    rerun::say(opened.position.epoch);
    let error = force_for_ever(&log).await;
    rerun::say(&error);
    assert_broken(&log, &error).await;
    rerun::say("broken");
}

/// The whole life of a disk of 2 MiB: filled by the log, found full at the next start, emptied of something else.
#[tokio::test]
#[ignore = "a child of the test below"]
async fn child_fills_its_disk() {
    let Some(dir) = rerun::dir() else { return };
    let ballast = dir.join("ballast");
    std::fs::write(&ballast, vec![1; 256 * 1024]).unwrap();
    let (log, opened) = SqliteLog::open(&dir, ANY_DISK).await.unwrap();
    let epoch = opened.position.epoch;
    let error = force_for_ever(&log).await;
    rerun::say(&error);
    let acknowledged = log.position().sequence;
    assert!(log.free_bytes().unwrap() < 128 * 1024);
    assert_broken(&log, &error).await;
    drop(log);

    let full = SqliteLog::open(&dir, Options { min_free_bytes: 128 * 1024 }).await.err().unwrap();
    let full =
        matches!(full, OpenError::DataDir(DataDirError::NearlyFull { .. } | DataDirError::Full { .. }));
    assert!(full, "a full disk is named when the log is opened");
    std::fs::remove_file(ballast).unwrap();
    let (log, _) = SqliteLog::open(&dir, Options { min_free_bytes: 128 * 1024 }).await.unwrap();
    let newest = rounds(&log, epoch, acknowledged).await;
    log.force(&decisions(&[commit(gtrid(log.position().epoch, 0, 1))])).await.unwrap();
    rerun::say(format!("nothing lost of {acknowledged}, {newest} there"));
}

#[test]
fn a_full_disk_breaks_the_log_and_loses_nothing() {
    let dir = TempDir::new().unwrap();
    let wrapper = rerun::with_own_disk("size=2m");
    let child = "decision_log::sqlite::tests::disk::child_fills_its_disk";
    let (status, said) = Child::start(child, dir.path(), &words(&wrapper)).finish();
    assert!(status.success(), "{said:?}");
    let told = said.iter().any(|said| said.contains("database or disk is full"));
    assert!(told && said.last().unwrap().starts_with("nothing lost"), "{said:?}");
}

/// Works for any user and on any system: a file that may not grow past 512 KiB.
#[tokio::test]
async fn a_file_that_may_not_grow_breaks_the_log_and_loses_nothing() {
    let store = TempSqlite(TempDir::new().unwrap());
    let wrapper = ["bash", "-c", "trap '' XFSZ; ulimit -f 512; exec \"$@\"", "bash"];
    let child = "decision_log::sqlite::tests::disk::child_forces_until_the_disk_says_no";
    let (status, said) = Child::start(child, store.0.path(), &wrapper).finish();
    assert!(status.success(), "{said:?}");
    assert_eq!(said.last().unwrap(), "broken");
    let epoch = said[0].parse().unwrap();
    let (log, _) = open(&store).await.unwrap();
    assert!(rounds(&log, epoch, last_round(&said[1..])).await > 3);
}

/// How often a log of system calls has an fsync or fdatasync, by thread, before and after each word that was said.
fn syncs(trace: &str) -> Vec<(String, Vec<String>)> {
    let mut phases = vec![(String::new(), Vec::new())];
    for line in trace.lines() {
        let (thread, call) = line.split_once(' ').unwrap();
        if call.trim_start().starts_with("fsync(") || call.trim_start().starts_with("fdatasync(") {
            phases.last_mut().unwrap().1.push(thread.to_owned());
        } else if let Some((_, said)) = call.split_once("child: ") {
            let word = said.split_once("\\n").map_or(said, |(word, _)| word);
            phases.push((word.to_owned(), Vec::new()));
        }
    }
    phases
}

/// The traced run of a child that is not disturbed.
fn trace_child_in_phases() -> Vec<(String, Vec<String>)> {
    let dir = TempDir::new().unwrap();
    rerun::need(&["strace", "-f", "-o", "/dev/null", "true"]);
    let trace = dir.path().join("trace");
    let wrapper = ["strace", "-f", "-e", "trace=fsync,fdatasync,write", "-o", trace.to_str().unwrap()];
    let child = "decision_log::sqlite::tests::disk::child_writes_in_phases";
    let (status, said) = Child::start(child, &dir.path().join("log"), &wrapper).finish();
    assert!(status.success(), "{said:?}");
    syncs(&std::fs::read_to_string(trace).unwrap())
}

#[tokio::test]
#[ignore = "a child of the tests below"]
async fn child_writes_in_phases() {
    let Some(dir) = rerun::dir() else { return };
    let (log, opened) = SqliteLog::open(&dir, ANY_DISK).await.unwrap();
    let epoch = opened.position.epoch;
    // The first write after a checkpoint begins the write-ahead log anew, and syncs its header.
    log.force(&decisions(&[commit(gtrid(epoch, 0, 1))])).await.unwrap();
    rerun::say("forced");
    for n in 1..=10 {
        log.force(&decisions(&[commit(gtrid(epoch, n, 1))])).await.unwrap();
    }
    rerun::say("lazy");
    for n in 1..=10 {
        log.write_lazily(&[rolled_back(gtrid(epoch, n, 2))]).await.unwrap();
    }
    rerun::say("forced again");
    log.force(&decisions(&[commit(gtrid(epoch, 99, 1))])).await.unwrap();
    rerun::say("over");
}

#[test]
fn a_forced_write_syncs_once_and_a_lazy_one_never() {
    let phases = trace_child_in_phases();
    let counts: Vec<(&str, usize)> =
        phases.iter().skip(1).map(|(word, syncs)| (word.as_str(), syncs.len())).collect();
    assert_eq!(counts[..3], [("forced", 10), ("lazy", 0), ("forced again", 1)]);
}

/// An fsync that fails: participants.md, row 5, on this log.
#[tokio::test]
async fn a_failed_fsync_is_an_unknown_and_is_read_again_at_the_next_start() {
    let phases = trace_child_in_phases();
    // The thread that forces syncs first while it opens the log, then once for each round.
    let writer = &phases[1].1[0];
    let at_opening = phases[0].1.iter().filter(|thread| *thread == writer).count();
    let store = TempSqlite(TempDir::new().unwrap());
    let inject = format!("inject=fsync,fdatasync:error=EIO:when={}+", at_opening + 5);
    let wrapper = ["strace", "-f", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e", &inject];
    let child = "decision_log::sqlite::tests::disk::child_forces_until_the_disk_says_no";
    let (status, said) = Child::start(child, store.0.path(), &wrapper).finish();
    assert!(status.success(), "{said:?}");
    assert!(said.iter().any(|said| said.contains("disk I/O error")), "{said:?}");
    let acknowledged = last_round(&said[1..]);
    assert!((3..=6).contains(&acknowledged), "{said:?}");
    let (log, _) = open(&store).await.unwrap();
    let newest = rounds(&log, said[0].parse().unwrap(), acknowledged).await;
    println!("{acknowledged} rounds were acknowledged, {newest} are there");
}

#[tokio::test]
#[ignore = "a child of the test below"]
async fn child_opens() {
    let Some(dir) = rerun::dir() else { return };
    match SqliteLog::open(&dir, ANY_DISK).await {
        Ok((_, opened)) => rerun::say(opened.position.epoch),
        Err(error) => rerun::say(error),
    }
}

/// Whichever fsync of the opening fails: nothing is handed out, and the next opening works.
#[tokio::test]
async fn a_failed_fsync_while_opening_hands_nothing_out() {
    rerun::need(&["strace", "-f", "-o", "/dev/null", "true"]);
    let child = "decision_log::sqlite::tests::disk::child_opens";
    let store = TempSqlite(TempDir::new().unwrap());
    let (log, opened) = open(&store).await.unwrap();
    log.force(&decisions(&[commit(gtrid(opened.position.epoch, 0, 1))])).await.unwrap();
    drop(log);
    let mut refused = 0;
    for when in 1..=8 {
        let inject = format!("inject=fsync,fdatasync:error=EIO:when={when}+");
        let wrapper = ["strace", "-f", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e", &inject];
        let (status, said) = Child::start(child, store.0.path(), &wrapper).finish();
        assert!(status.success(), "{said:?}");
        refused += u32::from(said[0].contains("I/O error") || said[0].contains("Input/output error"));
        let (log, _) = open(&store).await.unwrap();
        assert_eq!(log.unfinished(None, 10).await.unwrap().len(), 1);
        if said[0].parse::<u32>().is_ok() {
            assert!(refused > 2, "{when}: {said:?}");
            return;
        }
    }
    panic!("the log was never opened");
}
