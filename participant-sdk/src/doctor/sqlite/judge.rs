//! What is found in a SQLite file and beside it, and what it means.
//!
//! [`version`] to [`file_system`] are also what attaching goes by. The rest is for people.

use std::time::Duration;

use super::{FileSystem, JournalFound, LockFound, Snapshot};
use crate::doctor::{Disk, Finding, Severity, lasting};

/// SQLite can list tables with their kinds, and has STRICT tables, since this version.
const OLDEST_VERSION: (u32, u32) = (3, 37);
/// A branch is prepared for milliseconds; one that is so for longer than this waits for somebody.
const LONG_PREPARED: Duration = Duration::from_secs(60);
/// A write-ahead log of this size has not been checkpointed for long: a reader has been keeping an old state open.
const LARGE_WAL: u64 = 1 << 30;

/// All of it.
pub(crate) fn judge(snapshot: &Snapshot) -> Vec<Finding> {
    let mut findings = vec![
        version(&snapshot.version),
        file_system(snapshot.file_system, &snapshot.path),
        journal_mode_found(&snapshot.journal_mode),
        privileges(snapshot),
        schema(&snapshot.schema),
        identity(snapshot),
        lock(&snapshot.lock),
        journal(snapshot),
        hazards(snapshot),
        wal(snapshot),
    ];
    findings.extend(snapshot.disk.as_ref().map(Disk::judge));
    findings
}

pub(crate) fn version(version: &str) -> Finding {
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    let found = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    if found < OLDEST_VERSION {
        let (major, minor) = OLDEST_VERSION;
        let what = format!("SQLite {version} is too old: {major}.{minor} is needed");
        return Finding::new("version", Severity::Error, what);
    }
    Finding::new("version", Severity::Ok, format!("SQLite {version}"))
}

/// As it is after attaching has set it.
pub(crate) fn journal_mode_set(mode: &str) -> Finding {
    if mode == "wal" {
        return Finding::new("journal-mode", Severity::Ok, "journal_mode is wal");
    }
    let what = format!("journal_mode is {mode} and could not be changed: a local file system is needed");
    Finding::new("journal-mode", Severity::Error, what).mend(["PRAGMA journal_mode = WAL;"])
}

/// As it is before.
fn journal_mode_found(mode: &str) -> Finding {
    if mode == "wal" {
        return journal_mode_set(mode);
    }
    let what =
        format!("journal_mode is {mode}: attaching changes it to wal, for every program that uses the file");
    Finding::new("journal-mode", Severity::Note, what)
}

/// As it is after attaching has set it.
pub(crate) fn synchronous(value: i64) -> Finding {
    if value == 2 {
        return Finding::new("synchronous", Severity::Ok, "synchronous is FULL");
    }
    let what = format!("synchronous is {value} and could not be changed: FULL (2) is needed");
    Finding::new("synchronous", Severity::Error, what).mend(["PRAGMA synchronous = FULL;"])
}

pub(crate) fn file_system(found: FileSystem, path: &str) -> Finding {
    let finding = |severity, what: String| Finding::new("file-system", severity, what);
    match found {
        FileSystem::Local => finding(Severity::Ok, "it is on a local file system".to_owned()),
        FileSystem::Network(name) => finding(
            Severity::Error,
            format!(
                "{path} is on a network file system ({name}): neither its lock nor its write-ahead log can be trusted there; \
                 move it to a local disk"
            ),
        ),
        FileSystem::Memory => finding(
            Severity::Warning,
            format!(
                "{path} is on a file system in memory: when the machine stops, committed and prepared branches are gone; move \
                 it to a disk"
            ),
        ),
    }
}

fn privileges(snapshot: &Snapshot) -> Finding {
    if snapshot.unwritable.is_empty() {
        return Finding::new("privileges", Severity::Ok, "this user may write the file and beside it");
    }
    let what = format!(
        "this user may not write {}; if the service runs as this user",
        snapshot.unwritable.join(", ")
    );
    let mend = snapshot.unwritable.iter().map(|path| format!("chmod u+w {}", shell(path)));
    Finding::new("privileges", Severity::Error, what).mend(mend)
}

fn schema(schema: &Result<(), String>) -> Finding {
    match schema {
        Ok(()) => Finding::new("schema", Severity::Ok, "all tables can take part"),
        Err(why) => Finding::new("schema", Severity::Error, why),
    }
}

fn identity(snapshot: &Snapshot) -> Finding {
    match &snapshot.identity {
        Err(why) => Finding::new("identity", Severity::Error, why),
        Ok(None) => Finding::new(
            "identity",
            Severity::Note,
            "it was never attached: the first attach makes two tables",
        ),
        Ok(Some(found)) => {
            let cluster = match &found.cluster {
                None => "not bound to a cluster yet".to_owned(),
                Some(cluster) => format!("cluster {cluster}"),
            };
            Finding::new("identity", Severity::Ok, format!("{cluster}, identity {}", found.identity))
        }
    }
}

fn lock(lock: &LockFound) -> Finding {
    let finding = |severity, what: String| Finding::new("lock", severity, what);
    match lock {
        LockFound::Free => finding(Severity::Ok, "no instance serves it now".to_owned()),
        LockFound::Held(pid) => finding(
            Severity::Ok,
            format!("process {pid} serves it; a second instance would wait until that one has ended"),
        ),
        LockFound::Unreadable(why) => {
            finding(Severity::Note, format!("whether an instance serves it is not to be seen: {why}"))
        }
    }
}

fn journal(snapshot: &Snapshot) -> Finding {
    let finding = |severity, what: String| Finding::new("prepared", severity, what);
    let served = matches!(snapshot.lock, LockFound::Held(_));
    match &snapshot.journal {
        JournalFound::Nothing => finding(Severity::Ok, "no branch is prepared".to_owned()),
        JournalFound::Torn => finding(
            Severity::Note,
            "the journal holds an entry that was never completed: that branch was not prepared, and the next attach clears it"
                .to_owned(),
        ),
        JournalFound::Unreadable(why) => finding(Severity::Error, why.clone()),
        JournalFound::Entry { branch, belongs_here: false, .. } => finding(
            Severity::Error,
            format!(
                "the journal holds the prepared branch {branch} of another database: put the two files that belong together \
                 in one place"
            ),
        ),
        JournalFound::Entry { branch, has_ended: true, .. } => finding(
            Severity::Note,
            format!("the journal holds {branch}, which has ended: the next attach clears it"),
        ),
        JournalFound::Entry { branch, gtrid, age, .. } => {
            let what = format!("the branch {branch} is prepared, for {}", lasting(*age));
            let finding = |severity, what: String| finding(severity, what).figure("oldest_seconds", age.as_secs());
            match (served, *age < LONG_PREPARED) {
                (true, true) => finding(Severity::Note, what),
                (true, false) => finding(Severity::Warning, format!("{what}: it waits for its coordinator"))
                    .mend([format!("lockstep tx show {gtrid}")]),
                (false, true | false) => finding(
                    Severity::Warning,
                    format!(
                        "{what}, and no instance holds its lock: start the service, and let nothing else write the file before"
                    ),
                )
                .mend([format!("lockstep tx show {gtrid}")]),
            }
        }
    }
}

fn hazards(snapshot: &Snapshot) -> Finding {
    let count = snapshot.hazards;
    if count == 0 {
        return Finding::new("hazards", Severity::Ok, "no branch was lost to another writer")
            .figure("count", 0);
    }
    let what = format!(
        "branches that were to commit and could not be written again after a crash: {count}; what each would have changed stands \
         beside the database"
    );
    let list = format!("ls {}-lockstep-hazard-*", shell(&snapshot.path));
    Finding::new("hazards", Severity::Warning, what).figure("count", count).mend([list])
}

fn wal(snapshot: &Snapshot) -> Finding {
    let mib = snapshot.wal_bytes >> 20;
    let finding = |severity, what: String| Finding::new("wal", severity, what).figure("wal_mib", mib);
    if snapshot.wal_bytes < LARGE_WAL {
        return finding(Severity::Ok, format!("the write-ahead log has {mib} MiB"));
    }
    let what = format!(
        "the write-ahead log has {mib} MiB: some reader has been keeping an old state open; end it, and then shorten the log"
    );
    let shorten = format!("sqlite3 {} 'PRAGMA wal_checkpoint(TRUNCATE);'", shell(&snapshot.path));
    finding(Severity::Warning, what).mend([shorten])
}

/// A path as a word of a shell's command.
fn shell(path: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_');
    if path.chars().all(plain) { path.to_owned() } else { format!("'{}'", path.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests;
