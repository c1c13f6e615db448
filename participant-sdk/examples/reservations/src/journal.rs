//! The journal: one file, written at its end, a line per record.
//!
//! # What is believed
//!
//! A record counts once it is synced; only then does anyone hear of it. So the last line may be cut off by a crash, and is then
//! dropped: nobody was told. Any other line that is not whole was damaged later, and the ledger is not opened.
//!
//! What was read after a crash, or after a sync that failed, may be in the system's memory only. Therefore [`Journal::open`] writes
//! all of it into a new file and syncs that before anything is answered from it. This is also what keeps the file small
//! ([`Journal::compact`]): the new file has the records that lead to the present state, and no others.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::record::{self, BadLine, Record, VERSION};
use crate::state::State;

const NAME: &str = "ledger";
/// Written, synced, and then renamed.
const NEW_NAME: &str = "ledger.new";
/// A journal is written anew when it has grown to this many times what was in it then: each record is copied a few times in its
/// life, and the file is never much larger than the ledger.
const GROWTH: u64 = 4;
/// Smaller ones are left alone.
const MIN_BYTES: u64 = 256 * 1024;

/// Why a journal could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Its content is not what was written. A person has to look; nothing was changed.
    #[error(
        "{path}, line {line}: {why}. Nothing was changed; it may hold prepared branches. Put the file back as it was (a file system check, \
         a backup of this moment), or move it away if its content may be lost"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong there.
        why: String,
    },
    /// The disk.
    #[error("{path}: {error}")]
    Disk {
        /// The file.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
    file: File,
    bytes: u64,
    /// Its size at which it is written anew.
    limit: u64,
}

impl Journal {
    /// Reads the journal in this directory, or makes one, and makes sure that what was read is on disk.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub fn open(directory: &Path) -> Result<(Self, State), JournalError> {
        let path = directory.join(NAME);
        let state = match fs::read(&path) {
            Ok(bytes) => read(&path, &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                State::new(lockstep::resource::ResourceManagerId::from_bytes(rand::random()))
            }
            Err(error) => return Err(JournalError::Disk { path, error }),
        };
        let journal =
            Self::write_anew(directory, &state).map_err(|error| JournalError::Disk { path, error })?;
        Ok((journal, state))
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes a record. It is durable when this returns; after an error it may be there or not, and nothing may be written
    /// behind it: the journal has to be opened again.
    ///
    /// # Errors
    /// What the disk says.
    pub fn append(&mut self, record: &Record) -> io::Result<()> {
        let line = record::encode(record);
        self.file.write_all(line.as_bytes())?;
        crash_point_written(record);
        self.file.sync_data()?;
        crash_point_durable(record);
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Writes the journal anew if it has grown too large. After an error it has to be opened again: which of the two files it
    /// is, is not known.
    ///
    /// # Errors
    /// What the disk says.
    pub fn compact(&mut self, state: &State) -> io::Result<()> {
        if self.bytes > self.limit {
            *self = Self::write_anew(&self.directory, state)?;
        }
        Ok(())
    }

    fn write_anew(directory: &Path, state: &State) -> io::Result<Self> {
        let (new, path) = (directory.join(NEW_NAME), directory.join(NAME));
        let text: String = state.records().iter().map(record::encode).collect();
        fs::write(&new, &text)?;
        let file = OpenOptions::new().append(true).open(&new)?;
        file.sync_all()?;
        fail::fail_point!("reservations-compaction-written");
        fs::rename(&new, &path)?;
        fail::fail_point!("reservations-compaction-renamed");
        File::open(directory)?.sync_all()?;
        let bytes = text.len() as u64;
        Ok(Self { directory: directory.to_owned(), file, bytes, limit: (GROWTH * bytes).max(MIN_BYTES) })
    }
}

/// The state that a journal's content leads to. `path` is for the error.
///
/// # Errors
/// [`JournalError::Damaged`].
pub fn read(path: &Path, bytes: &[u8]) -> Result<State, JournalError> {
    let damaged =
        |line: usize, why: String| JournalError::Damaged { path: path.to_owned(), line: line + 1, why };
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let mut records = Vec::with_capacity(lines.len());
    // What is behind the last end of a line was cut off, however whole it looks, unless it is too long for that.
    let (cut, whole) = lines.split_last().expect("there is one part, if an empty one");
    if record::decode(cut) == Err(BadLine::Damaged) {
        return Err(damaged(whole.len(), "its checksum is wrong".into()));
    }
    for (number, line) in whole.iter().enumerate() {
        match record::decode(line) {
            Ok(Ok(record)) => records.push(record),
            Ok(Err(unknown)) => {
                let why = format!("a record that this program (version {VERSION}) does not know: {unknown}");
                return Err(damaged(number, why));
            }
            Err(BadLine::CutOff) if number + 1 == whole.len() && cut.is_empty() => break,
            Err(BadLine::CutOff | BadLine::Damaged) => {
                return Err(damaged(number, "its checksum is wrong".into()));
            }
        }
    }
    // All up to there was synced before the file got its name: a crash cannot have cut it.
    if !records.contains(&Record::Complete) {
        return Err(damaged(records.len(), "the ledger is cut off, or is none".into()));
    }
    let mut records = records.into_iter().enumerate();
    let mut state = match records.next() {
        Some((_, Record::Ledger { version: VERSION, identity })) => State::new(identity),
        Some((_, other)) => return Err(damaged(0, format!("a ledger does not begin with {other:?}"))),
        None => return Err(damaged(0, "the ledger is empty".into())),
    };
    for (number, record) in records {
        state.apply(&record).map_err(|contradiction| damaged(number, contradiction.to_string()))?;
    }
    Ok(state)
}

fn crash_point_written(record: &Record) {
    match record {
        Record::Prepared { .. } => fail::fail_point!("reservations-prepare-written"),
        Record::Ended { .. } => fail::fail_point!("reservations-end-written"),
        Record::Forgotten { .. } => fail::fail_point!("reservations-forget-written"),
        Record::Bound { .. } => fail::fail_point!("reservations-bind-written"),
        Record::Item { .. } => fail::fail_point!("reservations-item-written"),
        Record::Ledger { .. } | Record::Entry(_) | Record::Seen { .. } | Record::Complete => {}
    }
}

fn crash_point_durable(record: &Record) {
    match record {
        Record::Prepared { .. } => fail::fail_point!("reservations-prepare-durable"),
        Record::Ended { .. } => fail::fail_point!("reservations-end-durable"),
        Record::Forgotten { .. } => fail::fail_point!("reservations-forget-durable"),
        Record::Bound { .. } => fail::fail_point!("reservations-bind-durable"),
        Record::Item { .. } => fail::fail_point!("reservations-item-durable"),
        Record::Ledger { .. } | Record::Entry(_) | Record::Seen { .. } | Record::Complete => {}
    }
}
