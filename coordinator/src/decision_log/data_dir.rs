//! The directory that a coordinator keeps its decision log in: whose it is, and whether it can be used.
//!
//! Two processes that write one log under two epochs would each presume the other's transactions rolled back. So the
//! directory is held by an advisory lock of the operating system for as long as the process lives. Such a lock goes with
//! its process, however that ends: after a SIGKILL there is nothing to clean up, and nothing here ever looks at a process
//! id to judge whether a lock is stale. The id in the lock file is for the message to a person, nothing more.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock, statvfs};
use rustix::io::Errno;

use crate::codes::Code;

/// The version of the directory's format that this code writes and reads.
pub const FORMAT_VERSION: u32 = 1;
/// Free space below which a directory is not opened, unless asked otherwise: room for some 500,000 transactions.
pub const DEFAULT_MIN_FREE_BYTES: u64 = 64 * 1024 * 1024;

/// The embedded log itself.
const LOG_FILE: &str = "decisions.db";
/// One decimal number: the format's version.
const VERSION_FILE: &str = "lockstep.version";
/// Locked for the life of the process; holds its id.
const LOCK_FILE: &str = "lockstep.lock";
/// Written and removed again to see whether that works.
const PROBE_FILE: &str = "lockstep.probe";

/// Why a data directory cannot be used, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process has it.
    #[error(
        "the data directory {dir} is in use by {holder}: stop that one first, or give this coordinator a directory of its own"
    )]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// `process 1234`, as far as the lock file tells.
        holder: String,
    },
    /// A newer Lockstep made it.
    #[error(
        "the data directory {dir} has format {found}, and this version reads formats up to {FORMAT_VERSION}: start the newer version that wrote it"
    )]
    Newer {
        /// The directory.
        dir: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The version file is missing beside a log, or says nothing that could be read.
    #[error(
        "the data directory {dir} holds a decision log, but {VERSION_FILE} is {problem}: restore that file from the backup that the log came from"
    )]
    VersionLost {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with the file.
        problem: &'static str,
    },
    /// The path leads to something else.
    #[error("{dir} is not a directory: name a directory, or a path that does not exist yet")]
    NotADirectory {
        /// The path.
        dir: PathBuf,
    },
    /// A copy was to go where something is.
    #[error("the directory {dir} is not empty: name one that does not exist yet")]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// Files cannot be made in it.
    #[error(
        "the data directory {dir} cannot be written to ({source}): make it writable for this user, and its file system not read-only"
    )]
    NotWritable {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file system is nearly full.
    #[error(
        "the file system of the data directory {dir} has {free} bytes free, and {needed} are needed: free some space"
    )]
    NearlyFull {
        /// The directory.
        dir: PathBuf,
        /// Bytes that this user may still write.
        free: u64,
        /// Bytes asked for.
        needed: u64,
    },
    /// A write found the file system full, or a quota used up.
    #[error("there is no room in the data directory {dir} ({source}): free some space, or raise the quota")]
    Full {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Anything else.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl DataDirError {
    /// Its code: docs/errors has a page for it.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Locked { .. } => Code::DataDirInUse,
            Self::Newer { .. } => Code::NewerLog,
            Self::VersionLost { .. } => Code::LogDamaged,
            Self::NotADirectory { .. }
            | Self::NotEmpty { .. }
            | Self::NotWritable { .. }
            | Self::Io { .. } => Code::CannotOpenLog,
            Self::NearlyFull { .. } | Self::Full { .. } => Code::NoRoom,
        }
    }
}

/// There is no log where one was to be worked on.
#[derive(Debug, thiserror::Error)]
#[error("there is no decision log in {}: name the directory that it is in with --data-dir", .0.display())]
pub struct NoLog(PathBuf);

impl NoLog {
    /// Its code: docs/errors has a page for it.
    #[must_use]
    pub fn code(&self) -> Code {
        Code::NoLogThere
    }
}

/// A directory that no coordinator can take until this is dropped.
#[derive(Debug)]
pub struct Held {
    /// Carries the lock, if there is one to hold.
    _lock: Option<File>,
}

/// A data directory that belongs to this process until this is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Carries the lock.
    lock: File,
}

impl Drop for DataDir {
    fn drop(&mut self) {
        // Closing the file alone would leave the lock with a process that is being started right now and has inherited the
        // file, until it gets to its exec. If this fails, closing has to do.
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

impl DataDir {
    /// Takes the directory, making it (mode 0700) if it is missing. `min_free_bytes` must be free in its file system.
    ///
    /// # Errors
    /// [`DataDirError`]. The directory then belongs to nobody, or to whom it belonged before.
    pub fn open(path: &Path, min_free_bytes: u64) -> Result<Self, DataDirError> {
        let path = std::path::absolute(path).map_err(io_error("find", path))?;
        create(&path)?;
        let lock = lock(&path)?;
        check_version(&path)?;
        probe(&path).map_err(write_error("write", &path, PROBE_FILE))?;
        let dir = Self { path, lock };
        let free = dir.free_bytes().map_err(io_error("ask for the free space of", &dir.path))?;
        if free < min_free_bytes {
            return Err(DataDirError::NearlyFull { dir: dir.path.clone(), free, needed: min_free_bytes });
        }
        Ok(dir)
    }

    /// Whether there is a log at this path.
    ///
    /// # Errors
    /// [`NoLog`].
    pub fn expect_log(path: &Path) -> Result<(), NoLog> {
        if path.join(LOG_FILE).exists() { Ok(()) } else { Err(NoLog(path.to_owned())) }
    }

    /// Holds a directory for reading, without writing anything: as long as it is held, no coordinator can take it.
    ///
    /// # Errors
    /// [`DataDirError::Locked`] if one has it; else what the system said.
    pub fn hold(path: &Path) -> Result<Held, DataDirError> {
        let file = path.join(LOCK_FILE);
        let mut lock = match File::open(&file) {
            Ok(lock) => lock,
            // A copy has no lock file, and nobody to be kept away.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Held { _lock: None }),
            Err(source) => return Err(DataDirError::Io { doing: "read", path: file, source }),
        };
        match flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Held { _lock: Some(lock) }),
            Err(Errno::WOULDBLOCK) => {
                Err(DataDirError::Locked { dir: path.to_owned(), holder: holder(&mut lock) })
            }
            Err(error) => Err(DataDirError::Io { doing: "lock", path: file, source: error.into() }),
        }
    }

    /// The format that the directory says to have; `None` if it says none that could be read.
    #[must_use]
    pub fn format(path: &Path) -> Option<u32> {
        fs::read_to_string(path.join(VERSION_FILE)).ok()?.trim().parse().ok()
    }

    /// Makes a directory (mode 0700) that is to take a copy of a log, or takes an empty one. `true`: it was made.
    ///
    /// # Errors
    /// [`DataDirError`]; [`DataDirError::NotEmpty`] if there is something in it.
    pub fn make_for_copy(path: &Path) -> Result<bool, DataDirError> {
        let made = !path.exists();
        create(path)?;
        let mut inside = fs::read_dir(path).map_err(io_error("list", path))?;
        if inside.next().is_some() {
            return Err(DataDirError::NotEmpty { dir: path.to_owned() });
        }
        Ok(made)
    }

    /// Where the log of the directory at this path is.
    #[must_use]
    pub fn log_file_in(path: &Path) -> PathBuf {
        path.join(LOG_FILE)
    }

    /// Writes the format's version beside a copy of the log, durably.
    ///
    /// # Errors
    /// What the system said.
    pub fn write_format(path: &Path) -> Result<(), DataDirError> {
        write_version(path).map_err(write_error("write", path, VERSION_FILE))
    }

    /// The directory, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the embedded log is.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.path.join(LOG_FILE)
    }

    /// Bytes that this process may still write to the directory's file system. One system call.
    ///
    /// # Errors
    /// Where the system does not tell.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let stat = statvfs(&self.path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Bytes of the log's files on disk.
    ///
    /// # Errors
    /// Where the system does not tell.
    pub fn log_bytes(&self) -> io::Result<u64> {
        let mut bytes = 0;
        for suffix in ["", "-wal"] {
            match fs::metadata(self.path.join(format!("{LOG_FILE}{suffix}"))) {
                Ok(metadata) => bytes += metadata.len(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(bytes)
    }

    /// Makes the names in the directory durable: SQLite does not do that for a database file it creates, and a log whose
    /// content is on disk under no name is lost.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

fn io_error<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DataDirError + 'a {
    move |source| DataDirError::Io { doing, path: path.to_owned(), source }
}

/// An error of making or changing something in `dir`.
fn write_error<'a>(
    doing: &'static str,
    dir: &'a Path,
    file: &'a str,
) -> impl FnOnce(io::Error) -> DataDirError + 'a {
    use io::ErrorKind::{NotADirectory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    move |source| {
        let kind = source.kind();
        if matches!(kind, PermissionDenied | ReadOnlyFilesystem) {
            DataDirError::NotWritable { dir: dir.to_owned(), source }
        } else if matches!(kind, StorageFull | QuotaExceeded) {
            DataDirError::Full { dir: dir.to_owned(), source }
        } else if kind == NotADirectory {
            DataDirError::NotADirectory { dir: dir.to_owned() }
        } else {
            DataDirError::Io { doing, path: dir.join(file), source }
        }
    }
}

/// Makes the directory and its parents, durably, so that none of them goes missing with the log in it.
fn create(path: &Path) -> Result<(), DataDirError> {
    if path.is_dir() {
        return Ok(());
    }
    if path.exists() {
        return Err(DataDirError::NotADirectory { dir: path.to_owned() });
    }
    let existing = path.ancestors().find(|parent| parent.exists()).unwrap_or(path);
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(write_error("create", path, ""))?;
    path.ancestors()
        .skip(1)
        .take_while(|parent| parent.starts_with(existing))
        .try_for_each(|parent| File::open(parent)?.sync_all())
        .map_err(io_error("make durable the directories above", path))
}

fn lock(dir: &Path) -> Result<File, DataDirError> {
    let failed = |doing| write_error(doing, dir, LOCK_FILE);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(dir.join(LOCK_FILE))
        .map_err(failed("open"))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            return Err(DataDirError::Locked { dir: dir.to_owned(), holder: holder(&mut file) });
        }
        Err(error) => return Err(failed("lock")(error.into())),
    }
    let write_id = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write_id(&mut file).map_err(failed("write"))?;
    Ok(file)
}

/// Who holds the lock, by what is in the file. Its holder may be just about to write that.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.read_to_string(&mut text).map(|_bytes| text.trim().parse::<u32>()) {
        Ok(Ok(id)) => format!("process {id}"),
        Ok(Err(_)) | Err(_) => "another process".to_owned(),
    }
}

/// Reads the format's version, or writes it where there is no log yet. Under the lock.
fn check_version(dir: &Path) -> Result<(), DataDirError> {
    let lost = |problem| DataDirError::VersionLost { dir: dir.to_owned(), problem };
    let text = match fs::read_to_string(dir.join(VERSION_FILE)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if dir.join(LOG_FILE).exists() {
                return Err(lost("missing"));
            }
            return write_version(dir).map_err(write_error("write", dir, VERSION_FILE));
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(lost("not readable as a number"));
        }
        Err(source) => {
            return Err(DataDirError::Io { doing: "read", path: dir.join(VERSION_FILE), source });
        }
    };
    match text.trim().parse::<u32>() {
        Ok(FORMAT_VERSION) => Ok(()),
        Ok(found) if found > FORMAT_VERSION => Err(DataDirError::Newer { dir: dir.to_owned(), found }),
        Ok(_) | Err(_) => Err(lost("not readable as a number from 1")),
    }
}

/// Writes the version beside its place and moves it there: after a crash there is a whole file or none.
fn write_version(dir: &Path) -> io::Result<()> {
    let new = dir.join(format!("{VERSION_FILE}.new"));
    let mut file = File::create(&new)?;
    writeln!(file, "{FORMAT_VERSION}")?;
    file.sync_all()?;
    fs::rename(new, dir.join(VERSION_FILE))?;
    File::open(dir)?.sync_all()
}

/// Writes a file and removes it: permissions, quotas and read-only file systems all show here, in front of a person, and
/// not later in a force.
fn probe(dir: &Path) -> io::Result<()> {
    let path = dir.join(PROBE_FILE);
    let mut file = File::create(&path)?;
    file.write_all(&[0])?;
    file.sync_all()?;
    fs::remove_file(&path)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::decision_log::rerun::{self, Child};

    fn open(path: &Path) -> Result<DataDir, DataDirError> {
        DataDir::open(path, 0)
    }

    #[test]
    fn a_directory_is_made_and_opened_again() {
        let temp = TempDir::new().unwrap();
        let path = temp.path().join("a/b/c");
        for _ in 0..2 {
            let dir = open(&path).unwrap();
            assert_eq!(dir.path(), path);
            assert_eq!(fs::read_to_string(path.join(VERSION_FILE)).unwrap(), "1\n");
            assert!(!path.join(PROBE_FILE).exists());
            assert!(dir.free_bytes().unwrap() > 0);
            assert_eq!(dir.log_bytes().unwrap(), 0);
        }
    }

    #[test]
    fn a_directory_has_one_owner_who_is_named() {
        let temp = TempDir::new().unwrap();
        let dir = open(temp.path()).unwrap();
        let error = open(temp.path()).unwrap_err();
        assert!(matches!(&error, DataDirError::Locked { .. }), "{error}");
        assert!(error.to_string().contains(&format!("process {}:", std::process::id())), "{error}");
        fs::write(temp.path().join(LOCK_FILE), "").unwrap();
        assert!(open(temp.path()).unwrap_err().to_string().contains("another process"));
        drop(dir);
        open(temp.path()).unwrap();
    }

    #[test]
    #[ignore = "a child of the test below"]
    fn child_holds_the_directory() {
        let Some(path) = rerun::dir() else { return };
        let _dir = open(&path).unwrap();
        rerun::say(std::process::id());
        std::thread::park();
    }

    #[test]
    fn a_killed_owner_leaves_no_lock() {
        let temp = TempDir::new().unwrap();
        let child = "decision_log::data_dir::tests::child_holds_the_directory";
        let mut child = Child::start(child, temp.path(), &[]);
        let id = child.hear().unwrap();
        let error = open(temp.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("process {id}:")), "{error}");
        child.kill();
        // Its file is still there, with its id in it.
        assert!(fs::read_to_string(temp.path().join(LOCK_FILE)).unwrap().starts_with(&id));
        open(temp.path()).unwrap();
    }

    #[test]
    fn a_newer_format_is_refused_by_its_number() {
        let temp = TempDir::new().unwrap();
        drop(open(temp.path()).unwrap());
        fs::write(temp.path().join(VERSION_FILE), "2\n").unwrap();
        let error = open(temp.path()).unwrap_err();
        assert!(matches!(error, DataDirError::Newer { found: 2, .. }), "{error}");
        assert_eq!(fs::read_to_string(temp.path().join(VERSION_FILE)).unwrap(), "2\n");
    }

    #[test]
    fn a_version_that_cannot_be_told_is_not_guessed() {
        let temp = TempDir::new().unwrap();
        drop(open(temp.path()).unwrap());
        for bad in [&b""[..], b"0", b"-1", b"one", b"1.0", b"99999999999", b"\xff\xfe"] {
            fs::write(temp.path().join(VERSION_FILE), bad).unwrap();
            let error = open(temp.path()).unwrap_err();
            assert!(matches!(error, DataDirError::VersionLost { .. }), "{bad:?}: {error}");
        }
        fs::remove_file(temp.path().join(VERSION_FILE)).unwrap();
        fs::write(temp.path().join(LOG_FILE), "a log").unwrap();
        let error = open(temp.path()).unwrap_err();
        assert!(matches!(error, DataDirError::VersionLost { problem: "missing", .. }), "{error}");
    }

    #[test]
    fn a_version_file_that_was_written_halfway_is_written_again() {
        let temp = TempDir::new().unwrap();
        fs::write(temp.path().join(format!("{VERSION_FILE}.new")), "").unwrap();
        fs::write(temp.path().join(PROBE_FILE), "").unwrap();
        open(temp.path()).unwrap();
        assert_eq!(fs::read_to_string(temp.path().join(VERSION_FILE)).unwrap(), "1\n");
    }

    #[test]
    fn a_file_is_not_a_directory() {
        let temp = TempDir::new().unwrap();
        let file = temp.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [file.clone(), file.join("below")] {
            let error = open(&path).unwrap_err();
            assert!(matches!(error, DataDirError::NotADirectory { .. }), "{error}");
        }
    }

    #[test]
    fn more_space_than_there_is_is_refused_with_both_numbers() {
        let temp = TempDir::new().unwrap();
        let error = DataDir::open(temp.path(), u64::MAX).unwrap_err();
        assert!(matches!(error, DataDirError::NearlyFull { needed: u64::MAX, free: 1.., .. }), "{error}");
        // And the directory is free again.
        open(temp.path()).unwrap();
    }

    #[test]
    #[ignore = "a child of the tests below"]
    fn child_opens_its_directory() {
        let Some(path) = rerun::dir() else { return };
        if path.join("fill").exists() || fs::write(path.join("fill"), vec![1; 1 << 20]).is_err() {
            rerun::say("no room");
        }
        rerun::say(open(&path).unwrap_err());
    }

    /// What the child says, on a file system of its own.
    fn on_own_disk(options: &str) -> String {
        let temp = TempDir::new().unwrap();
        let wrapper = rerun::with_own_disk(options);
        let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
        let child = "decision_log::data_dir::tests::child_opens_its_directory";
        let (status, said) = Child::start(child, temp.path(), &wrapper).finish();
        assert!(status.success(), "{said:?}");
        said.last().cloned().expect("the child says something")
    }

    #[test]
    fn a_file_system_that_is_read_only_is_told() {
        let said = on_own_disk("ro");
        assert!(said.contains("cannot be written to (Read-only file system"), "{said}");
    }

    #[test]
    fn a_file_system_that_is_full_is_told() {
        let said = on_own_disk("size=64k");
        assert!(said.contains("there is no room in the data directory"), "{said}");
    }
}
