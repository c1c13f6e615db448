//! The files: where the database is, which files stand beside it, and the lock that lets one instance have it (P25).
//!
//! `<db>-lockstep` is the journal, `<db>-lockstep-lock` the lock file. Both belong to the database as its `-wal` does: they move with
//! it, and nobody removes them.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lockstep_proto::museum::mutated;
use rustix::fs::FlockOperation;

use crate::resource::ResourceError;

/// The database file.
#[derive(Debug, Clone)]
pub(super) struct DatabaseFile {
    /// Without symbolic links: two names of one file must find the same lock.
    path: PathBuf,
}

impl DatabaseFile {
    /// `path` as SQLite says it (`PRAGMA database_list`); empty for a database in memory.
    pub(super) fn new(path: &str) -> Result<Self, ResourceError> {
        if path.is_empty() {
            return Err(ResourceError::Unfit(
                "a database in memory cannot take part: what it prepared would be gone with its process; use a file".into(),
            ));
        }
        let path = std::fs::canonicalize(path)
            .map_err(|error| ResourceError::Unavailable(format!("the database file {path}: {error}")))?;
        Ok(Self { path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file that stands beside the database.
    pub(super) fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(suffix);
        PathBuf::from(name)
    }

    /// Host, path, device and inode (P21): a copy that was put in place of the file differs in at least one of them.
    pub(super) fn location(&self) -> Result<String, ResourceError> {
        let about = std::fs::metadata(&self.path).map_err(|error| self.unavailable(&error))?;
        let system = rustix::system::uname();
        let host = system.nodename().to_string_lossy();
        Ok(format!("{host}:{}#{}:{}", self.path.display(), about.dev(), about.ino()))
    }

    /// Takes the lock, or says who has it.
    pub(super) fn lock(&self) -> Result<InstanceLock, ResourceError> {
        let path = self.beside("-lockstep-lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| ResourceError::Unavailable(format!("{}: {error}", path.display())))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) if mutated("P25-two-instances-of-a-file") => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(self.occupied(&mut file)),
            Err(error) => {
                return Err(ResourceError::Unavailable(format!("locking {}: {error}", path.display())));
            }
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(|error| ResourceError::Unavailable(format!("{}: {error}", path.display())))?;
        Ok(InstanceLock { _file: file })
    }

    fn occupied(&self, lock_file: &mut File) -> ResourceError {
        let mut pid = String::new();
        // For the message only: without it, it still says what is wrong.
        let pid = match lock_file.read_to_string(&mut pid) {
            Ok(_) if !pid.trim().is_empty() => pid.trim(),
            Ok(_) | Err(_) => "unknown",
        };
        ResourceError::Unavailable(format!(
            "another instance (process {pid}) serves {}: a SQLite file is served by one instance at a time; stop that one, or give \
             this one a file of its own",
            self.path.display()
        ))
    }

    fn unavailable(&self, error: &std::io::Error) -> ResourceError {
        ResourceError::Unavailable(format!("{}: {error}", self.path.display()))
    }
}

/// Held for as long as this lives. The kernel releases it when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct InstanceLock {
    _file: File,
}

/// Makes a file's name durable: the entry in its directory.
pub(super) fn sync_directory_of(path: &Path) -> std::io::Result<()> {
    let directory = path.parent().expect("a file's absolute path has a parent");
    File::open(directory)?.sync_all()
}
