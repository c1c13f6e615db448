//! What `lockstep doctor` finds in a database and beside it, without taking part: no file is made, no lock is kept.
//!
//! The database is opened as any reader opens it. Where nobody else has it open, SQLite moves a write-ahead log that a crash
//! left behind into the file when that reader closes it.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::UNIX_EPOCH;

use rustix::fs::{Access, FlockOperation, access, flock};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, SqliteConnection};

use super::connection::{self, close};
use super::entry::Entry;
use super::evidence;
use super::files::DatabaseFile;
use super::journal::{Found, Journal};
use super::schema::Schema;
use crate::doctor::Disk;
use crate::doctor::sqlite::{FileSystem, Identity, JournalFound, LockFound, Snapshot};
use crate::resource::{ResourceError, wall_clock};

/// Looks. The error says what stood in the way, without the path.
pub(crate) async fn look(path: &Path) -> Result<Snapshot, String> {
    // Before SQLite has seen it: it would take an empty path for a database of its own.
    let path = std::fs::canonicalize(path).map_err(|error| error.to_string())?;
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(false)
        .busy_timeout(connection::PATIENCE)
        .optimize_on_close(false, None)
        .pragma("query_only", "ON");
    let mut reader = options.connect().await.map_err(|error| error.to_string())?;
    let snapshot = read(&mut reader).await;
    close(reader).await;
    snapshot
}

async fn read(reader: &mut SqliteConnection) -> Result<Snapshot, String> {
    let file = connection::file_of(reader).await.and_then(|path| DatabaseFile::new(&path)).map_err(words)?;
    let failed = |error: sqlx::Error| error.to_string();
    let (version, journal_mode) =
        sqlx::query_as("SELECT sqlite_version(), (SELECT journal_mode FROM pragma_journal_mode)")
            .fetch_one(&mut *reader)
            .await
            .map_err(failed)?;
    let identity = identity(reader).await;
    let is_ours = matches!(identity, Ok(Some(_)));
    let hazards = if is_ours {
        let sql = "SELECT count(*) FROM main.lockstep_evidence WHERE kind = 'hazard'";
        sqlx::query_scalar(sql).fetch_one(&mut *reader).await.map_err(failed)?
    } else {
        0
    };
    let directory = file.path().parent().expect("a file's absolute path has a parent");
    Ok(Snapshot {
        path: file.path().display().to_string(),
        version,
        journal_mode,
        file_system: file.file_system().map_err(words)?,
        unwritable: unwritable(&file, directory),
        schema: Schema::read(reader).await.map(drop).map_err(words),
        identity,
        hazards,
        journal: journal(reader, &file, is_ours).await,
        lock: lock(&file.beside("-lockstep-lock")),
        wal_bytes: std::fs::metadata(file.beside("-wal")).map_or(0, |about| about.len()),
        disk: Disk::of(directory),
    })
}

fn words(error: ResourceError) -> String {
    error.to_string()
}

async fn identity(reader: &mut SqliteConnection) -> Result<Option<Identity>, String> {
    let Some(identity) = evidence::identity(reader).await.map_err(words)? else { return Ok(None) };
    let cluster = evidence::cluster(reader).await.map_err(|error| error.to_string())?;
    Ok(Some(Identity { identity: identity.to_string(), cluster: cluster.map(|cluster| cluster.to_string()) }))
}

/// `is_ours`: the tables are there, and can be asked.
async fn journal(reader: &mut SqliteConnection, file: &DatabaseFile, is_ours: bool) -> JournalFound {
    let path = file.beside("-lockstep");
    let unreadable =
        |why: &dyn std::fmt::Display| JournalFound::Unreadable(format!("{}: {why}", path.display()));
    let found = match Journal::open_to_look(path.clone()) {
        Ok(None) => return JournalFound::Nothing,
        Ok(Some(journal)) => journal.read(),
        Err(error) => return unreadable(&error),
    };
    let entry = match found {
        Ok(Found::Nothing) => return JournalFound::Nothing,
        Ok(Found::Torn) => return JournalFound::Torn,
        Ok(Found::Entry(bytes)) => Entry::decode(&bytes),
        Err(error) => return JournalFound::Unreadable(words(error)),
    };
    let entry = match entry {
        Ok(entry) => entry,
        Err(malformed) => return unreadable(&malformed),
    };
    let known = if is_ours { evidence::identity(reader).await.ok().flatten() } else { None };
    let ended = if is_ours { evidence::kind_of(reader, &entry.branch).await.ok().flatten() } else { None };
    let since = wall_clock().duration_since(UNIX_EPOCH).unwrap_or_default();
    let prepared = std::time::Duration::from_millis(entry.prepared_ms.try_into().unwrap_or_default());
    JournalFound::Entry {
        branch: entry.branch.to_string(),
        gtrid: entry.branch.xid.gtrid.to_string(),
        age: since.saturating_sub(prepared),
        belongs_here: known == Some(entry.identity),
        has_ended: ended.is_some(),
    }
}

/// Takes the lock together with any other one who looks, and lets it go at once. An instance that attaches in this very
/// moment is told that the file is served, and tries again.
fn lock(path: &Path) -> LockFound {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return LockFound::Free,
        Err(error) => return LockFound::Unreadable(format!("{}: {error}", path.display())),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => LockFound::Free,
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let text = io::read_to_string(file).unwrap_or_default();
            let pid = text.trim();
            LockFound::Held(if pid.is_empty() { "unknown".to_owned() } else { pid.to_owned() })
        }
        Err(error) => LockFound::Unreadable(format!("{}: {error}", path.display())),
    }
}

/// What this user may not write, of all that a service has to.
fn unwritable(file: &DatabaseFile, directory: &Path) -> Vec<String> {
    let beside = ["-lockstep", "-lockstep-lock", "-wal", "-shm"].map(|suffix| file.beside(suffix));
    let all = [directory.to_owned(), file.path().to_owned()].into_iter().chain(beside);
    let is_closed = |path: &std::path::PathBuf| {
        // What is not there yet is made in the directory.
        matches!(access(path, Access::WRITE_OK), Err(error) if error != rustix::io::Errno::NOENT)
    };
    all.filter(is_closed).map(|path| path.display().to_string()).collect()
}

impl DatabaseFile {
    /// What its file system can be trusted with.
    pub(super) fn file_system(&self) -> Result<FileSystem, ResourceError> {
        let about = rustix::fs::statfs(self.path()).map_err(|error| {
            ResourceError::Unavailable(format!("the file system of {}: {error}", self.path().display()))
        })?;
        // The numbers of statfs(2).
        Ok(match about.f_type {
            0x6969 => FileSystem::Network("NFS"),
            0x517B | 0xFF53_4D42 | 0xFE53_4D42 => FileSystem::Network("SMB"),
            0x0102_1997 => FileSystem::Network("9P"),
            0x00C3_6400 => FileSystem::Network("Ceph"),
            0x0102_1994 | 0x8584_58F6 => FileSystem::Memory,
            _ => FileSystem::Local,
        })
    }
}
