//! The journal beside the database: one file, one entry at a time, written in place.
//!
//! A branch is prepared once its entry is durable here, and no longer once the end mark is. Both are one write and one
//! `fdatasync` over space that was allocated before, so that no directory and, for small entries, no file length has to
//! reach the disk with them.
//!
//! ```text
//! 0   magic        8 bytes  "lockstep"
//! 8   version      u32      1
//! 12  kind         u32      0 free, 1 entry
//! 16  length       u64      of what follows the header
//! 24  checksum     u32      crc32c of bytes 0 to 24 and of what follows the header
//! 28  (zero)       u32
//! 32  the entry
//! ```
//!
//! An entry is there, or it is not. A crash in the middle of writing it leaves some of its sectors old and some new;
//! the checksum then fails, and the branch was never prepared: its vote is sent after the `fdatasync` only. For the same
//! reason a torn end mark is an end. A header of another kind or of a later version is never taken for torn, unless it is the
//! beginning of the magic with nothing behind it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files::sync_directory_of;
use crate::resource::ResourceError;

const MAGIC: [u8; 8] = *b"lockstep";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 32;
const CHECKSUM_AT: usize = 24;
/// Space that is written with zeros once, so that small entries change no metadata of the file.
const ALLOCATED_BYTES: u64 = 64 * 1024;
/// A file that grew beyond this for a large entry is cut back at its end.
const KEPT_BYTES: u64 = 4 * 1024 * 1024;
/// The largest entry: it is in memory, twice, while the branch is prepared. A branch that changes more than this is
/// refused with its size.
pub(super) const MAX_ENTRY_BYTES: usize = 64 * 1024 * 1024;

/// What stands in the journal.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// No entry.
    Nothing,
    /// An entry that was never completed.
    Torn,
    /// A complete entry.
    Entry(Vec<u8>),
}

/// The journal's file. Writes must not overlap; the store sees to that.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Kind {
    Free = 0,
    Entry = 1,
}

impl Journal {
    /// Opens it, or makes it.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        let length = file.metadata()?.len();
        if length < ALLOCATED_BYTES {
            let missing = usize::try_from(ALLOCATED_BYTES - length).expect("a few kilobytes");
            // Only behind what is there: a shorter file may be one that somebody cut, and its rest is looked at.
            file.write_all_at(&vec![0; missing], length)?;
            file.sync_all()?;
            sync_directory_of(&path)?;
        }
        Ok(Self { path, file })
    }

    /// Opens it for reading alone; `None` if there is none. Nothing may be written to it.
    pub(super) fn open_to_look(path: PathBuf) -> io::Result<Option<Self>> {
        match File::open(&path) {
            Ok(file) => Ok(Some(Self { path, file })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What stands in it.
    pub(super) fn read(&self) -> Result<Found, ResourceError> {
        let mut bytes = vec![0; HEADER_BYTES];
        let available = self.file.metadata().map_err(|error| self.unavailable(&error))?.len();
        // A file that was cut is filled up with zeros where it is opened for writing.
        let header = usize::try_from(available).map_or(HEADER_BYTES, |available| available.min(HEADER_BYTES));
        self.file.read_exact_at(&mut bytes[..header], 0).map_err(|error| self.unavailable(&error))?;
        if is_torn_in_its_magic(&bytes) {
            return Ok(Found::Torn);
        }
        let length = match self.length_of(&bytes)? {
            None => return Ok(Found::Nothing),
            Some(length) => length,
        };
        if length > MAX_ENTRY_BYTES as u64 || length > available.saturating_sub(HEADER_BYTES as u64) {
            return Ok(Found::Torn);
        }
        let length = usize::try_from(length).expect("it is at most the largest entry");
        bytes.resize(HEADER_BYTES + length, 0);
        self.file
            .read_exact_at(&mut bytes[HEADER_BYTES..], HEADER_BYTES as u64)
            .map_err(|error| self.unavailable(&error))?;
        let whole = checksum(&bytes) == field(&bytes, CHECKSUM_AT) && field(&bytes, 28) == 0;
        match (whole, field(&bytes, 12)) {
            (true, kind) if kind == Kind::Free as u32 => Ok(Found::Nothing),
            (true, kind) if kind == Kind::Entry as u32 => Ok(Found::Entry(bytes.split_off(HEADER_BYTES))),
            (true | false, _) => Ok(Found::Torn),
        }
    }

    /// The length in a header, `None` in one that was never written.
    fn length_of(&self, header: &[u8]) -> Result<Option<u64>, ResourceError> {
        if header.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if header[..8] != MAGIC {
            return Err(self.unfit("it is no journal of Lockstep, or its first bytes were damaged"));
        }
        let version = field(header, 8);
        if version != VERSION {
            return Err(self
                .unfit(&format!("its version is {version}, and this program knows version {VERSION} only")));
        }
        Ok(Some(u64::from_le_bytes(header[16..24].try_into().expect("8 bytes"))))
    }

    /// Whether there is no entry, complete or not. Cheap: it is asked at the beginning of every write (P25).
    pub(super) fn is_free(&self) -> Result<bool, ResourceError> {
        let mut header = [0; HEADER_BYTES];
        self.file.read_exact_at(&mut header, 0).map_err(|error| self.unavailable(&error))?;
        Ok(header == [0; HEADER_BYTES] || header == free_header())
    }

    /// Writes an entry. Durable when this returns; if it fails, the entry may be there or not.
    pub(super) async fn write(self: &Arc<Self>, entry: Vec<u8>) -> io::Result<()> {
        let journal = Arc::clone(self);
        blocking(move || {
            journal.file.write_all_at(&framed(Kind::Entry, &entry), 0)?;
            fail::fail_point!("sqlite-journal-written");
            journal.file.sync_data()
        })
        .await
    }

    /// Writes the end mark: no entry is there any more, durably, when this returns.
    pub(super) async fn end(self: &Arc<Self>) -> io::Result<()> {
        let journal = Arc::clone(self);
        blocking(move || {
            journal.file.write_all_at(&free_header(), 0)?;
            fail::fail_point!("sqlite-journal-end-written");
            journal.file.sync_data()?;
            if journal.file.metadata()?.len() > KEPT_BYTES {
                journal.file.set_len(ALLOCATED_BYTES)?;
            }
            Ok(())
        })
        .await
    }

    fn unfit(&self, why: &str) -> ResourceError {
        ResourceError::Unfit(format!(
            "the journal {}: {why}. It may hold a prepared branch. If it is certain that it does not, or that the branch \
             may be lost, move the file away",
            self.path.display()
        ))
    }

    fn unavailable(&self, error: &io::Error) -> ResourceError {
        ResourceError::Unavailable(format!("the journal {}: {error}", self.path.display()))
    }
}

/// Disk waits do not belong on the threads that run everyone's tasks.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_cancelled) => Err(io::Error::other("the runtime is shutting down")),
        },
    }
}

/// Whether a header ends in its magic, and nothing was ever written behind it: the first write of all was cut off there.
fn is_torn_in_its_magic(header: &[u8]) -> bool {
    let written = header.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    (1..=MAGIC.len()).contains(&written) && header[..written] == MAGIC[..written]
}

fn free_header() -> [u8; HEADER_BYTES] {
    framed(Kind::Free, &[]).try_into().expect("a header and nothing behind it")
}

/// A header and what follows it.
fn framed(kind: Kind, entry: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + entry.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&(kind as u32).to_le_bytes());
    bytes.extend_from_slice(&(entry.len() as u64).to_le_bytes());
    bytes.resize(HEADER_BYTES, 0);
    bytes.extend_from_slice(entry);
    let checksum = checksum(&bytes);
    bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..CHECKSUM_AT]), &bytes[HEADER_BYTES..])
}

fn field(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        directory: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            Self { directory: tempfile::tempdir().unwrap() }
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("bank.db-lockstep")
        }

        fn open(&self) -> Arc<Journal> {
            Arc::new(Journal::open(self.path()).unwrap())
        }
    }

    #[tokio::test]
    async fn an_entry_is_there_from_its_write_to_its_end() {
        let fixture = Fixture::new();
        let journal = fixture.open();
        assert_eq!(journal.read().unwrap(), Found::Nothing);
        assert!(journal.is_free().unwrap());
        for entry in [vec![1, 2, 3], Vec::new(), vec![7; 200_000]] {
            journal.write(entry.clone()).await.unwrap();
            assert!(!journal.is_free().unwrap());
            assert_eq!(fixture.open().read().unwrap(), Found::Entry(entry));
            journal.end().await.unwrap();
            assert!(journal.is_free().unwrap());
            assert_eq!(fixture.open().read().unwrap(), Found::Nothing);
        }
    }

    #[tokio::test]
    async fn a_large_entry_does_not_keep_its_space() {
        let fixture = Fixture::new();
        let journal = fixture.open();
        let large = usize::try_from(KEPT_BYTES).unwrap();
        journal.write(vec![1; large]).await.unwrap();
        journal.end().await.unwrap();
        assert_eq!(std::fs::metadata(fixture.path()).unwrap().len(), ALLOCATED_BYTES);
        assert_eq!(fixture.open().read().unwrap(), Found::Nothing);
    }

    #[tokio::test]
    async fn an_entry_cut_at_any_length_is_no_entry() {
        let fixture = Fixture::new();
        fixture.open().write((0..=255).collect()).await.unwrap();
        let whole = std::fs::read(fixture.path()).unwrap();
        for length in 0..HEADER_BYTES + 256 {
            std::fs::write(fixture.path(), &whole[..length]).unwrap();
            let expected = if length == 0 { Found::Nothing } else { Found::Torn };
            assert_eq!(fixture.open().read().unwrap(), expected, "{length}");
        }
    }

    #[tokio::test]
    async fn an_entry_with_any_bit_flipped_is_no_entry() {
        let fixture = Fixture::new();
        fixture.open().write((0..=255).collect()).await.unwrap();
        let whole = std::fs::read(fixture.path()).unwrap();
        for (at, bit) in (0..HEADER_BYTES + 256).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            std::fs::write(fixture.path(), &bytes).unwrap();
            let found = fixture.open().read();
            // A header of another kind of file, or of another version, is refused: it may mean anything.
            let refused = matches!(found, Err(ResourceError::Unfit(_)));
            let torn = matches!(found, Ok(Found::Torn));
            assert!(if at < 12 { refused } else { torn }, "byte {at}, bit {bit}: {found:?}");
        }
    }

    /// Cut or flipped anywhere, a journal that was ended never has an entry again: neither the one behind the end mark, which
    /// is still whole from byte 32 on, nor another.
    #[tokio::test]
    async fn an_end_that_is_damaged_is_no_entry() {
        let fixture = Fixture::new();
        let journal = fixture.open();
        journal.write((0..=255).collect()).await.unwrap();
        journal.end().await.unwrap();
        let ended = std::fs::read(fixture.path()).unwrap();
        let cut = (0..HEADER_BYTES + 256).map(|length| ended[..length].to_vec());
        let flipped =
            (0..HEADER_BYTES + 256).flat_map(|at| (0..8).map(move |bit| (at, bit))).map(|(at, bit)| {
                let mut bytes = ended.clone();
                bytes[at] ^= 1 << bit;
                bytes
            });
        for bytes in cut.chain(flipped) {
            std::fs::write(fixture.path(), &bytes).unwrap();
            let found = fixture.open().read();
            let is_safe = matches!(found, Ok(Found::Nothing | Found::Torn) | Err(ResourceError::Unfit(_)));
            assert!(is_safe, "{:?}: {found:?}", &bytes[..bytes.len().min(HEADER_BYTES)]);
        }
    }

    /// What a crash leaves of a write in place: any subset of its sectors.
    #[tokio::test]
    async fn a_torn_write_over_an_older_entry_brings_neither_back() {
        const SECTOR: usize = 512;
        let fixture = Fixture::new();
        let journal = fixture.open();
        journal.write(vec![1; 4 * SECTOR]).await.unwrap();
        journal.end().await.unwrap();
        let old = std::fs::read(fixture.path()).unwrap();
        journal.write(vec![2; 3 * SECTOR]).await.unwrap();
        let new = std::fs::read(fixture.path()).unwrap();
        for subset in 0..0b1111 {
            let mut bytes = old.clone();
            for sector in (0..4).filter(|sector| subset & (1 << sector) != 0) {
                let range = sector * SECTOR..(sector + 1) * SECTOR;
                bytes[range.clone()].copy_from_slice(&new[range]);
            }
            std::fs::write(fixture.path(), &bytes).unwrap();
            let found = fixture.open().read().unwrap();
            assert!(matches!(found, Found::Nothing | Found::Torn), "{subset:04b}: {found:?}");
        }
    }

    #[test]
    fn a_later_version_and_another_file_are_refused() {
        let fixture = Fixture::new();
        let mut later = framed(Kind::Free, &[]);
        later[8] = 2;
        std::fs::write(fixture.path(), &later).unwrap();
        let error = fixture.open().read().unwrap_err().to_string();
        assert!(error.contains("its version is 2"), "{error}");
        std::fs::write(fixture.path(), b"someone else's notes, of 32 bytes at least").unwrap();
        let error = fixture.open().read().unwrap_err().to_string();
        assert!(error.contains("no journal of Lockstep"), "{error}");
    }
}
