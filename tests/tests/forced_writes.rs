//! What has to be durable is on the disk before anyone hears of it: the forced writes of the real processes, counted and in their order.
//!
//! SIGKILL leaves the page cache as it is, so no kill shows that a write was forced. Here `strace` sees the system calls of a coordinator
//! and of two banks on SQLite files while one transfer commits, and the bytes of each call say what it is about. (What a disk does that
//! forgets what was not forced is the simulation's matter: its power fails.) The forces of a database server are its own: whether it
//! forces at all is asked when a participant attaches.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use lockstep_tests::harness::books::Books;
use lockstep_tests::harness::client::Plan;
use lockstep_tests::harness::clock::wait_for;
use lockstep_tests::harness::roles::Roles;
use lockstep_tests::harness::tools::need_strace;
use lockstep_tests::trial::world::{BANKS, World};

/// Longer than a transfer takes under `strace` on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A listing names branches too: with none under way, what names one is said by the protocol.
const NO_LISTINGS: &[&str] = &["--report-interval=1h"];

/// A system call.
#[derive(Debug, Clone)]
struct Call {
    /// The lines of the trace on which it began, and ended.
    begun: usize,
    ended: usize,
    name: String,
    /// What its first argument, a file descriptor, stands for.
    file: String,
    /// Everything behind that, with the bytes that it wrote.
    bytes: Vec<u8>,
}

impl Call {
    fn is_write_to(&self, ending: &str) -> bool {
        matches!(self.name.as_str(), "write" | "pwrite64" | "writev") && self.file.ends_with(ending)
    }

    fn is_force_of(&self, ending: &str) -> bool {
        matches!(self.name.as_str(), "fsync" | "fdatasync") && self.file.ends_with(ending)
    }

    fn has(&self, bytes: &[u8]) -> bool {
        self.bytes.windows(bytes.len()).any(|window| window == bytes)
    }

    fn is_to_another_process(&self) -> bool {
        self.file.starts_with("socket:")
    }

    /// Whether it sends something with this in it to another process.
    fn says(&self, text: &str) -> bool {
        self.is_to_another_process() && self.has(text.as_bytes())
    }
}

/// What `strace -f -y` wrote, in the order in which the calls began. Of a call that another thread's came in between of, there are two lines.
fn calls(trace: &str) -> Vec<Call> {
    let mut unfinished: HashMap<&str, Call> = HashMap::new();
    let mut calls = Vec::new();
    for (line, text) in trace.lines().enumerate() {
        let Some((thread, rest)) = text.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if rest.starts_with("<... ") {
            calls.extend(unfinished.remove(thread).map(|call| Call { ended: line, ..call }));
        } else if let Some((name, arguments)) = rest.split_once('(') {
            let file = arguments.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
            let Some((file, text)) = file else { continue };
            let (name, file) = (name.to_owned(), file.to_owned());
            let call = Call { begun: line, ended: line, name, file, bytes: unescaped(text) };
            if rest.ends_with("<unfinished ...>") {
                unfinished.insert(thread, call);
            } else {
                calls.push(call);
            }
        }
    }
    calls.sort_by_key(|call| call.begun);
    calls
}

/// The bytes that `strace` wrote as a string in C would be: everything that is not printed has a name or a number of up to three octal digits.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes().peekable();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        let mut octal = None;
        while octal.is_none_or(|(_, digits)| digits < 3)
            && let Some(digit) = rest.next_if(|byte| matches!(byte, b'0'..=b'7'))
        {
            let (value, digits) = octal.unwrap_or((0_u8, 0));
            octal = Some((value * 8 + (digit - b'0'), digits + 1));
        }
        match octal {
            Some((value, _)) => bytes.push(value),
            None => bytes.extend(rest.next().map(|named| match named {
                b'n' => b'\n',
                b't' => b'\t',
                b'r' => b'\r',
                b'v' => 0x0b,
                b'f' => 0x0c,
                itself => itself,
            })),
        }
    }
    bytes
}

/// The branches of a bank in the bytes of a call: by their names, or as the log has them, which is the bank's name and a number in protobuf.
/// A page of a database has those of earlier transactions too.
fn branches_in(call: &Call, bank: &str) -> Vec<String> {
    let found = call.bytes.windows(bank.len()).enumerate().filter(|(_, window)| *window == bank.as_bytes());
    let branch = |(at, _): (usize, &[u8])| {
        let behind = &call.bytes[at + bank.len()..];
        match behind.first()? {
            b'.' => {
                let digits = str::from_utf8(behind.get(1..17)?).ok()?;
                u64::from_str_radix(digits, 16).ok()
            }
            // Its second field, eight bytes long.
            0x11 => Some(u64::from_le_bytes(behind.get(1..9)?.try_into().ok()?)),
            _other => None,
        }
    };
    found.filter_map(branch).map(|number| format!("{bank}.{number:016x}")).collect()
}

/// The branch of a bank that is spoken of last: the one that commits. (A transfer before it may have failed while somebody still attached.)
fn last_branch(calls: &[Call], bank: &str) -> String {
    let mut said = calls.iter().rev().filter(|call| call.is_to_another_process());
    said.find_map(|call| branches_in(call, bank).pop()).expect("a branch is spoken of")
}

/// The first of these writes that has this branch.
fn first_write<'a>(
    calls: &'a [Call],
    is_write: impl Fn(&Call) -> bool,
    bank: &str,
    branch: &String,
) -> &'a Call {
    let mut writes = calls.iter().filter(|call| is_write(call));
    writes.find(|call| branches_in(call, bank).contains(branch)).expect("the branch is written")
}

/// The forces of a file that began after one line and had ended before another.
fn forces_between<'a>(calls: &'a [Call], ending: &str, after: &Call, before: &Call) -> Vec<&'a Call> {
    let within = |call: &&Call| call.begun > after.ended && call.ended < before.begun;
    calls.iter().filter(|call| call.is_force_of(ending)).filter(within).collect()
}

/// The first call that sends something of this name after another call has begun.
fn said_after<'a>(calls: &'a [Call], name: &str, after: &Call) -> &'a Call {
    let mut said = calls.iter().filter(|call| call.says(name) && call.begun > after.begun);
    said.next().unwrap_or_else(|| panic!("nothing was sent of {name} any more"))
}

/// The traces of a coordinator and of two banks, over one transfer that commits.
fn trace_a_transfer(directory: &Path) -> (Vec<Call>, [Vec<Call>; 2]) {
    need_strace().unwrap_or_else(|failed| panic!("{failed}"));
    // Each process has a trace of its own. The tracer is the grandchild: signals go to the process itself.
    let traced = "trace=fsync,fdatasync,write,pwrite64,writev,sendto,sendmsg";
    let prefix = directory.join("trace");
    let script = "trace=$1; shift; exec strace -D -f -y -q -s 100000 -e \"$0\" -o \"$trace.$$\" -- \"$@\"";
    let under = ["sh", "-c", script, traced, prefix.to_str().unwrap()].map(str::to_owned);
    let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove")).under(under);
    let mut world = World::start(&roles, &directory.join("world"), NO_LISTINGS, None, None).unwrap();
    for bank in BANKS {
        let books = Books::in_sqlite(bank, directory.join(format!("{bank}.db")));
        let books = world.block_on(books).unwrap();
        world.start_bank(books, None).unwrap();
    }
    world.prove_health(Plan::Commit, PATIENCE).unwrap_or_else(|failed| panic!("{failed}\n{}", world.logs()));
    let ids =
        [world.coordinator.process().id(), world.banks[0].process().id(), world.banks[1].process().id()];
    world.remove().unwrap();
    let [coordinator, first, second] = ids.map(|id| {
        // The tracer ends after the process that it traces, and writes the rest of what it has seen.
        let path = format!("{}.{id}", prefix.display());
        let whole = wait_for("the end of the trace", PATIENCE, || {
            let trace = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
            let ends = trace.lines().any(|line| line.starts_with(&format!("{id} ")) && line.contains("+++ "));
            Ok(ends.then_some(trace))
        });
        calls(&whole.unwrap_or_else(|failed| panic!("{failed}")).0)
    });
    (coordinator, [first, second])
}

#[test]
fn a_decision_is_forced_once_before_a_commit_is_sent_and_a_branch_before_its_vote_and_its_acknowledgement() {
    let directory = tempfile::tempdir().unwrap();
    let (coordinator, banks) = trace_a_transfer(directory.path());
    the_decision_is_forced_once_before_anyone_is_told(&coordinator);
    for (calls, bank) in banks.iter().zip(BANKS) {
        the_journal_is_forced_before_the_vote_and_before_the_acknowledgement(calls, bank);
    }
}

fn the_decision_is_forced_once_before_anyone_is_told(calls: &[Call]) {
    let log = "decisions.db-wal";
    for bank in BANKS {
        let branch = last_branch(calls, bank);
        let decision = first_write(calls, |call| call.is_write_to(log), bank, &branch);
        let before = calls.iter().any(|call| call.says(&branch) && call.ended < decision.begun);
        assert!(before, "{branch} is asked to prepare before there is a decision");
        let commit = said_after(calls, &branch, decision);
        let forces = forces_between(calls, log, decision, commit);
        assert_eq!(forces.len(), 1, "forces between the decision and {branch} being told: {forces:?}");
    }
}

fn the_journal_is_forced_before_the_vote_and_before_the_acknowledgement(calls: &[Call], bank: &str) {
    let is_entry = |call: &Call| call.has(b"lockstep\x01\0\0\0\x01\0\0\0");
    let branch = last_branch(calls, bank);
    let entry = first_write(calls, is_entry, bank, &branch);
    let journal = entry.file.clone();
    let vote = said_after(calls, &branch, entry);
    let forces = forces_between(calls, &journal, entry, vote);
    assert_eq!(forces.len(), 1, "forces between the entry and the vote of {branch}: {forces:?}");

    let is_mark = |call: &&Call| {
        call.is_write_to(&journal) && call.has(b"lockstep\x01\0\0\0\0\0\0\0") && call.begun > vote.begun
    };
    let mark = calls.iter().find(is_mark).expect("the entry ends");
    let database = format!("{bank}.db-wal");
    let commits = forces_between(calls, &database, vote, mark);
    assert_eq!(commits.len(), 1, "forces of the database between vote and end mark of {branch}: {commits:?}");
    let acknowledgement = said_after(calls, &branch, vote);
    let forces = forces_between(calls, &journal, mark, acknowledgement);
    assert_eq!(
        forces.len(),
        1,
        "forces between the end mark and the acknowledgement of {branch}: {forces:?}"
    );
}
