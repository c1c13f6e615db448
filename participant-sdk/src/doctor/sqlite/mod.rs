//! SQLite: what is found in a file and beside it, and what that means ([`judge`]). The looking itself is
//! `resource/sqlite/look.rs`, beside those who know the journal and the tables.

pub(crate) mod judge;

use std::path::Path;
use std::time::Duration;

use super::{Disk, DoctorError, Report};
use crate::resource::sqlite::look;

/// What `lockstep doctor` looks at.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) path: String,
    /// SQLite's, as it is built into this program.
    pub(crate) version: String,
    /// As it is now: attaching changes it.
    pub(crate) journal_mode: String,
    pub(crate) file_system: FileSystem,
    /// Of the file, its directory and what stands beside it: what this user may not write.
    pub(crate) unwritable: Vec<String>,
    /// Why the schema cannot take part.
    pub(crate) schema: Result<(), String>,
    /// `None` before the first attach; an error if it cannot be used.
    pub(crate) identity: Result<Option<Identity>, String>,
    /// Branches that were to commit and never will.
    pub(crate) hazards: i64,
    pub(crate) journal: JournalFound,
    pub(crate) lock: LockFound,
    pub(crate) wal_bytes: u64,
    pub(crate) disk: Option<Disk>,
}

/// What the file system means for a database that must survive a crash and be locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileSystem {
    Local,
    /// Locks and shared memory do not reach other hosts.
    Network(&'static str),
    /// Gone when the machine restarts.
    Memory,
}

/// What the database says of itself.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) identity: String,
    pub(crate) cluster: Option<String>,
}

/// What stands in the journal beside the database.
#[derive(Debug, Clone)]
pub(crate) enum JournalFound {
    /// No entry, or no journal.
    Nothing,
    /// An entry that was never completed.
    Torn,
    /// No journal of ours, or one that this user may not read.
    Unreadable(String),
    /// A prepared branch.
    Entry {
        branch: String,
        gtrid: String,
        age: Duration,
        /// It is this database's.
        belongs_here: bool,
        /// It has ended, and only its end mark is missing.
        has_ended: bool,
    },
}

/// Who has the lock file.
#[derive(Debug, Clone)]
pub(crate) enum LockFound {
    /// Nobody.
    Free,
    /// An instance, with what it wrote into the file: its process.
    Held(String),
    /// This user may not look.
    Unreadable(String),
}

/// Looks, and judges.
pub(super) async fn examine(path: &Path) -> Result<Report, DoctorError> {
    let snapshot = look::look(path)
        .await
        .map_err(|why| DoctorError::Unreachable(format!("{}: {why}", path.display())))?;
    Ok(Report { database: format!("sqlite://{}", snapshot.path), findings: judge::judge(&snapshot) })
}
