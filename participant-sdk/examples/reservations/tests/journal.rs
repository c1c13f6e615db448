//! Journals that are not as they were written, disks that have no room, and processes that want the same directory.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the message")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use lockstep::resource::{
    Bqual, BranchId, Epoch, Fate, Gtrid, Incarnation, LogPosition, Prepared, Resource, ResourceError, Xid,
};
use reservations::journal::{Journal, JournalError, read};
use reservations::record::{Ended, Entry, Record, Text};
use reservations::state::State;
use reservations::{BookError, Ledger};

const LONG: Duration = Duration::from_secs(600);

fn branch(number: u8) -> BranchId {
    let gtrid = Gtrid::new(Epoch::new(3).unwrap(), 1_700_000_000_000 + u64::from(number), [number; 10]);
    let bqual = Bqual::new(&"shop".parse().unwrap(), number.into());
    BranchId { cluster: "7c1f09ae".parse().unwrap(), xid: Xid { gtrid, bqual } }
}

fn position(sequence: u64) -> LogPosition {
    let incarnation = Incarnation::from_bytes([7; 16]);
    LogPosition { epoch: Epoch::new(3).unwrap(), incarnation, sequence }
}

fn entry(reference: &str, change: i64) -> Entry {
    Entry { reference: reference.to_owned(), item: "chair \"größer\"\n".to_owned(), change }
}

fn ended(number: u8, outcome: Ended, entries: Vec<Entry>) -> Record {
    Record::Ended { branch: branch(number), outcome, entries, deadline_ms: 9, position: position(4) }
}

fn prepared(number: u8, entries: Vec<Entry>) -> Record {
    Record::Prepared { branch: branch(number), entries, deadline_ms: 7, position: position(3) }
}

/// Records of each kind that are written at a journal's end.
fn records() -> Vec<Record> {
    vec![
        Record::Item { item: entry("", 0).item, stock: 10 },
        Record::Bound { cluster: branch(1).cluster },
        prepared(1, vec![entry("a", -3), entry("b", 2)]),
        prepared(2, vec![entry("c", -1)]),
        ended(1, Ended::Committed, Vec::new()),
        ended(3, Ended::RolledBack, Vec::new()),
        Record::Forgotten { branches: vec![Text(branch(1))] },
        ended(4, Ended::Committed, vec![entry("d", -1)]),
    ]
}

/// A journal's bytes, how many of them were there from the beginning, and the state after each record, with the length then.
fn written() -> (Vec<u8>, usize, Vec<(usize, State)>) {
    let directory = tempfile::tempdir().unwrap();
    let (mut journal, mut state) = Journal::open(directory.path()).unwrap();
    let length = || fs::read(directory.path().join("ledger")).unwrap().len();
    let from_the_beginning = length();
    let mut states = vec![(from_the_beginning, state.clone())];
    for record in records() {
        journal.append(&record).unwrap();
        state.apply(&record).unwrap();
        states.push((length(), state.clone()));
    }
    (fs::read(directory.path().join("ledger")).unwrap(), from_the_beginning, states)
}

fn reread(bytes: &[u8]) -> Result<State, JournalError> {
    read(Path::new("ledger"), bytes)
}

#[test]
fn what_is_read_is_what_was_written() {
    let (bytes, _, states) = written();
    let (_, last) = states.last().unwrap();
    assert_eq!(reread(&bytes).unwrap(), *last);
    assert_eq!(last.items["chair \"größer\"\n"], 10 - 3 + 2 - 1);
    assert_eq!(last.prepared.keys().collect::<Vec<_>>(), [&branch(2)]);

    // And when it was written anew.
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("ledger"), &bytes).unwrap();
    let (_, state) = Journal::open(directory.path()).unwrap();
    assert_eq!(state, *last);
    let anew = fs::read(directory.path().join("ledger")).unwrap();
    assert_eq!(reread(&anew).unwrap(), *last);
}

/// What a crash leaves of the last write is dropped, and nothing else: cut anywhere, the journal says what was synced
/// before, or that it was damaged.
#[test]
fn a_journal_cut_at_any_byte_says_what_was_synced_before() {
    let (bytes, from_the_beginning, states) = written();
    for length in 0..bytes.len() {
        let found = reread(&bytes[..length]);
        match states.iter().rev().find(|(written, _)| *written <= length) {
            Some((_, state)) => assert_eq!(found.unwrap(), *state, "{length}"),
            None => {
                assert!(length < from_the_beginning);
                assert!(matches!(found, Err(JournalError::Damaged { .. })), "{length}: {found:?}");
            }
        }
    }
}

#[test]
fn a_journal_with_any_bit_flipped_is_damaged_or_ends_before_it() {
    let (bytes, _, states) = written();
    let (last_line, before_last) = &states[states.len() - 2];
    for (at, bit) in (0..bytes.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << bit;
        match reread(&bytes) {
            Ok(state) => {
                assert!(at >= *last_line, "byte {at}, bit {bit}");
                assert_eq!(state, *before_last, "byte {at}, bit {bit}");
            }
            Err(JournalError::Damaged { .. }) => {}
            Err(error) => panic!("byte {at}, bit {bit}: {error}"),
        }
    }
}

/// A file that grew before its content was there.
#[test]
fn zeros_at_the_end_are_a_record_that_was_cut_off() {
    let (bytes, _, states) = written();
    let padded = [&bytes[..], &[0; 4096]].concat();
    assert_eq!(reread(&padded).unwrap(), states.last().unwrap().1);
}

#[test]
fn what_is_no_ledger_is_left_alone() {
    for content in ["", "notes\n", "notes\nand more\n"] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger");
        fs::write(&path, content).unwrap();
        let error = Journal::open(directory.path()).unwrap_err().to_string();
        assert!(error.contains("Nothing was changed"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }
}

#[test]
fn records_that_contradict_each_other_are_damage() {
    let contradictions = [
        (prepared(2, Vec::new()), "after it had a record"),
        (prepared(3, Vec::new()), "after it had a record"),
        (ended(3, Ended::Committed, Vec::new()), "ended twice"),
        (ended(5, Ended::Committed, vec![entry("a", 1)]), "entered twice"),
        (ended(5, Ended::Committed, vec![entry("e", -9)]), "takes more"),
        (Record::Item { item: entry("", 0).item, stock: 1 }, "is there twice"),
    ];
    for (record, why) in contradictions {
        let bytes = [written().0, reservations::record::encode(&record).into_bytes()].concat();
        let error = reread(&bytes).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert!(error.contains("line 11"), "{error}");
    }
    let later = br#"{"record":"from-the-future"}"#;
    let summed = [format!("{} ", later.len()).as_bytes(), later].concat();
    let line = [format!("{:08x} ", crc32c::crc32c(&summed)).as_bytes(), &summed, b"\n"].concat();
    let error = reread(&[written().0, line].concat()).unwrap_err().to_string();
    assert!(error.contains("does not know"), "{error}");
}

async fn ledger_with(stock: u32) -> (tempfile::TempDir, Ledger) {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(directory.path());
    ledger.add_item("chair", stock).await.unwrap();
    (directory, ledger)
}

#[tokio::test]
async fn one_process_has_a_directory() {
    let (directory, ledger) = ledger_with(10).await;
    let second = Ledger::new(directory.path());
    let name = "shop".parse().unwrap();
    match second.attach(&name).await {
        Err(ResourceError::Unavailable(why)) => {
            assert!(why.contains("another process has the ledger"), "{why}")
        }
        other => panic!("{other:?}"),
    }
    ledger.attach(&name).await.unwrap();
    drop(ledger);
    second.attach(&name).await.unwrap();
}

#[tokio::test]
async fn damage_is_told_when_it_attaches() {
    let (directory, ledger) = ledger_with(10).await;
    drop(ledger);
    // So that it is not the last record any more, which could have been cut off.
    Ledger::new(directory.path()).attach(&"shop".parse().unwrap()).await.unwrap();
    let path = directory.path().join("ledger");
    let text = fs::read_to_string(&path).unwrap().replace("\"stock\":10", "\"stock\":99");
    fs::write(&path, text).unwrap();
    match Ledger::new(directory.path()).attach(&"shop".parse().unwrap()).await {
        Err(ResourceError::Unfit(why)) => assert!(why.contains("line 2: its checksum is wrong"), "{why}"),
        other => panic!("{other:?}"),
    }
}

/// Reservations do not wait for each other, and never take more than there is.
#[tokio::test]
async fn what_is_put_aside_is_nobody_elses() {
    let (_directory, ledger) = ledger_with(10).await;
    let mut first = ledger.begin(&branch(1), LONG).await.unwrap();
    let mut second = ledger.begin(&branch(2), LONG).await.unwrap();
    first.reserve("order 1", "chair", 6).await.unwrap();
    let error = second.reserve("order 2", "chair", 5).await.unwrap_err().to_string();
    assert_eq!(error, "there are 4 \"chair\" left that nobody has reserved, and 5 were asked for");
    second.reserve("order 2", "chair", 4).await.unwrap();
    assert!(matches!(second.restock("order 1", "chair", 1).await, Err(BookError::Taken(_))));
    second.restock("delivery", "chair", 5).await.unwrap();
    assert_eq!(first.left("chair").await.unwrap(), Some(0), "what comes is not there before its commit");

    assert_eq!(ledger.prepare(&branch(1), first, &position(1)).await.unwrap(), Prepared::Yes);
    assert_eq!(second.left("chair").await.unwrap(), Some(0), "what is prepared stays put aside");
    assert_eq!(ledger.items().await.unwrap()["chair"], 10);
    assert_eq!(ledger.rollback(&branch(1), &position(1)).await.unwrap(), Fate::RolledBack);
    assert_eq!(second.left("chair").await.unwrap(), Some(6));
    assert_eq!(ledger.prepare(&branch(2), second, &position(1)).await.unwrap(), Prepared::Yes);
    assert_eq!(ledger.commit(&branch(2), &position(1)).await.unwrap(), Fate::Committed);
    assert_eq!(ledger.items().await.unwrap()["chair"], 10 - 4 + 5);
    assert_eq!(ledger.entry("order 2").await.unwrap(), Some(("chair".to_owned(), -4)));
}

#[tokio::test]
async fn what_a_branch_held_is_free_after_its_deadline() {
    let (_directory, ledger) = ledger_with(1).await;
    let soon = Duration::from_millis(300);
    let mut late = ledger.begin(&branch(1), soon).await.unwrap();
    late.reserve("order 1", "chair", 1).await.unwrap();
    tokio::time::sleep(soon).await;
    assert!(matches!(late.reserve("more", "chair", 1).await, Err(BookError::TooLate)));
    let mut next = ledger.begin(&branch(2), LONG).await.unwrap();
    next.reserve("order 1", "chair", 1).await.unwrap();
    let vote = ledger.prepare(&branch(1), late, &position(1)).await.unwrap();
    assert_eq!(vote, Prepared::No("the transaction's deadline has passed".to_owned()));
}

/// The journal stays small, whatever has happened.
#[tokio::test]
async fn a_journal_does_not_grow_with_what_is_over() {
    let (directory, ledger) = ledger_with(10).await;
    let path = directory.path().join("ledger");
    let mut most = 0;
    let mut shrunk = false;
    for number in 0..1_500_u64 {
        let gtrid = Gtrid::new(Epoch::new(3).unwrap(), number, rand::random());
        let branch = BranchId { xid: Xid { gtrid, ..branch(1).xid }, ..branch(1) };
        ledger.rollback(&branch, &position(number)).await.unwrap();
        ledger.forget(&[branch]).await.unwrap();
        let bytes = fs::metadata(&path).unwrap().len();
        shrunk |= bytes < most;
        most = most.max(bytes);
    }
    assert!(shrunk, "{most}");
    assert!(most < 300 * 1024, "{most}");
    drop(ledger);
    let again = Ledger::new(directory.path());
    assert_eq!(again.attach(&"shop".parse().unwrap()).await.unwrap().seen.newest(), Some(position(1_499)));
    assert_eq!(again.items().await.unwrap()["chair"], 10);
    assert!(fs::metadata(&path).unwrap().len() < 1_000);
}
