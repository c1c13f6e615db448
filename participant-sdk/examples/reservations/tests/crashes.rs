//! A process is killed at every crash point of the ledger, and the next one finds what was promised.
//!
//! The contract kit kills at waits and at times; here it is between the write and the sync of each kind of record, and in the
//! middle of writing the journal anew.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the message")]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lockstep::resource::{
    Bqual, BranchId, Epoch, Fate, Gtrid, Incarnation, LogPosition, Prepared, Resource, ResourceManagerName,
    Xid,
};
use reservations::Ledger;

const POINTS: [&str; 12] = [
    "reservations-item-written",
    "reservations-item-durable",
    "reservations-bind-written",
    "reservations-bind-durable",
    "reservations-prepare-written",
    "reservations-prepare-durable",
    "reservations-end-written",
    "reservations-end-durable",
    "reservations-forget-written",
    "reservations-forget-durable",
    "reservations-compaction-written",
    "reservations-compaction-renamed",
];

fn name() -> ResourceManagerName {
    "shop".parse().unwrap()
}

fn branch(number: u8) -> BranchId {
    let gtrid = Gtrid::new(Epoch::new(3).unwrap(), 1_700_000_000_000, [number; 10]);
    let bqual = Bqual::new(&name(), number.into());
    BranchId { cluster: "7c1f09ae".parse().unwrap(), xid: Xid { gtrid, bqual } }
}

fn position(sequence: u64) -> LogPosition {
    let incarnation = Incarnation::from_bytes([7; 16]);
    LogPosition { epoch: Epoch::new(3).unwrap(), incarnation, sequence }
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "child: {text}").unwrap();
    out.flush().unwrap();
}

/// As nothing else ends a process.
fn die() {
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
    std::thread::park();
}

/// Played in a process of its own: one reservation is committed, one rolled back, and the evidence of the first forgotten.
#[tokio::test]
#[ignore = "other tests start it"]
async fn child() {
    let directory = std::env::var("RESERVATIONS_TEST_DIRECTORY").unwrap();
    fail::cfg_callback(std::env::var("RESERVATIONS_TEST_POINT").unwrap(), die).unwrap();
    let ledger = Ledger::new(directory);
    ledger.add_item("chair", 10).await.unwrap();
    say("item");
    ledger.bind(branch(1).cluster).await.unwrap();
    say("bound");
    for number in [1, 2] {
        let mut desk = ledger.begin(&branch(number), Duration::from_secs(600)).await.unwrap();
        desk.reserve(&format!("order {number}"), "chair", 1).await.unwrap();
        let vote = ledger.prepare(&branch(number), desk, &position(5)).await.unwrap();
        assert_eq!(vote, Prepared::Yes);
        say(&format!("voted {number}"));
    }
    assert_eq!(ledger.commit(&branch(1), &position(6)).await.unwrap(), Fate::Committed);
    say("committed");
    assert_eq!(ledger.rollback(&branch(2), &position(7)).await.unwrap(), Fate::RolledBack);
    ledger.forget(&[branch(1)]).await.unwrap();
    say("forgotten");
}

/// What the child said before it died at the point.
fn killed_at(point: &str, directory: &Path) -> BTreeSet<String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env("RESERVATIONS_TEST_DIRECTORY", directory)
        .env("RESERVATIONS_TEST_POINT", point)
        .output()
        .unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(9), "{point} was not reached: {complaints}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| Some(line.split_once("child: ")?.1.to_owned())).collect()
}

/// Plays the coordinator: what voted gets its decision, what did not is presumed rolled back.
async fn check(ledger: &Ledger, heard: &BTreeSet<String>, is_first_life: bool, case: &str) {
    let attachment = ledger.attach(&name()).await.unwrap();
    let listed = ledger.prepared(branch(1).cluster, &name()).await.unwrap();
    if heard.contains("bound") {
        assert_eq!(attachment.cluster, Some(branch(1).cluster), "{case}");
    }
    if is_first_life
        && heard.contains("voted 2")
        && !heard.contains("forgotten")
        && !heard.contains("committed")
    {
        assert!(listed.contains(&branch(2).xid), "{case}: {listed:?}");
    }
    if heard.contains("committed") {
        assert!(attachment.seen.newest().unwrap().sequence >= 6, "{case}");
    }
    let committed = heard.contains("voted 1");
    if heard.contains("forgotten") {
        assert_eq!(ledger.oldest_evidence(branch(1).cluster).await.unwrap(), None, "{case}");
    } else if !heard.contains("committed") {
        let fate = if committed {
            ledger.commit(&branch(1), &position(8)).await.unwrap()
        } else {
            ledger.rollback(&branch(1), &position(8)).await.unwrap()
        };
        assert_eq!(fate, if committed { Fate::Committed } else { Fate::RolledBack }, "{case}");
    }
    assert_eq!(ledger.rollback(&branch(2), &position(8)).await.unwrap(), Fate::RolledBack, "{case}");
    assert_eq!(ledger.prepared(branch(1).cluster, &name()).await.unwrap(), [], "{case}");
    assert_eq!(ledger.entry("order 1").await.unwrap().is_some(), committed, "{case}");
    assert_eq!(ledger.entry("order 2").await.unwrap(), None, "{case}");
    if heard.contains("item") {
        assert_eq!(ledger.items().await.unwrap()["chair"], if committed { 9 } else { 10 }, "{case}");
    }
}

#[tokio::test]
async fn killed_at_each_point() {
    for point in POINTS {
        let directory = tempfile::tempdir().unwrap();
        let heard = killed_at(point, directory.path());
        let identity = Ledger::new(directory.path()).attach(&name()).await.unwrap().identity;
        for life in 0..2 {
            let ledger = Ledger::new(directory.path());
            check(&ledger, &heard, life == 0, &format!("{point}, life {life}, after {heard:?}")).await;
            assert_eq!(ledger.attach(&name()).await.unwrap().identity, identity, "{point}");
        }
    }
}

#[test]
fn every_point_is_tried() {
    let source =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/journal.rs")).unwrap();
    let declared: BTreeSet<_> =
        source.split("fail_point!(\"").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0)).collect();
    assert_eq!(declared, POINTS.into_iter().collect());
    for file in ["ledger", "resource", "state", "record", "service", "main"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/{file}.rs"));
        assert!(!std::fs::read_to_string(path).unwrap().contains("fail_point!"), "{file}");
    }
}
