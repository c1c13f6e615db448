//! The shop's side: items, entries, and the desk at which an open branch works.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use lockstep::resource::BranchId;
use rustix::fs::FlockOperation;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use crate::journal::{Journal, JournalError};
use crate::record::{Entry, Record};
use crate::state::State;

/// Entries of one branch: they are one record, and held in memory until the decision.
pub const MAX_ENTRIES: usize = 1000;
/// Bytes of a reference, and of an item's name.
pub const MAX_NAME_BYTES: usize = 100;

/// A ledger in a directory. Clones share it.
///
/// Nothing is opened before it is needed first, which is when it is attached.
#[derive(Debug, Clone)]
pub struct Ledger {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    directory: PathBuf,
    /// Held over every look and every write: the journal has one writer, and all agree about what came first.
    store: Arc<tokio::sync::Mutex<Store>>,
    /// What open branches have put aside. A lock of its own, so that a branch that is dropped can let go of it at once, and
    /// never held while anything is waited for. Taken after `store` where both are.
    pub(crate) drafts: Mutex<Drafts>,
}

/// What is held of the directory.
#[derive(Debug, Default)]
struct Store {
    lock: Option<File>,
    /// None before the first use, and after a write that failed: it is read again then.
    open: Option<Opened>,
}

/// An open journal, and what follows from it.
#[derive(Debug)]
pub(crate) struct Opened {
    journal: Journal,
    pub(crate) state: State,
}

/// The right to look and to write.
pub(crate) struct Access {
    store: OwnedMutexGuard<Store>,
}

/// The branches that are open.
#[derive(Debug, Default)]
pub(crate) struct Drafts {
    last_number: u64,
    open: BTreeMap<u64, Draft>,
}

/// What an open branch wants to have done.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    pub(crate) branch: BranchId,
    /// After this it can't be prepared any more, and holds nothing.
    pub(crate) deadline: Instant,
    pub(crate) deadline_ms: u64,
    pub(crate) entries: Vec<Entry>,
}

/// Why the ledger could not be opened, or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Its content, or the disk.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Another process has it.
    #[error("{0}")]
    Occupied(String),
    /// A write failed, and whether it is there is not known. The ledger is read again at its next use.
    #[error("whether the ledger in {directory} has taken this is not known: {error}")]
    Unknown {
        /// The directory.
        directory: PathBuf,
        /// What the disk said.
        error: io::Error,
    },
}

/// Why a desk refused. The branch is as before; its handler may go on, or give up.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    /// There is no such item.
    #[error("there is no item {0:?}")]
    NoSuchItem(String),
    /// Not that many are left.
    #[error("there are {left} {item:?} left that nobody has reserved, and {wanted} were asked for")]
    NotEnough {
        /// The item.
        item: String,
        /// How many there are.
        left: u64,
        /// How many were asked for.
        wanted: u32,
    },
    /// The reference has an entry, or is about to get one.
    #[error("the reference {0:?} is taken: each has one entry")]
    Taken(String),
    /// A text is empty or too long, or a count is 0, or there are too many entries.
    #[error("{0}")]
    Malformed(&'static str),
    /// The transaction's time is over.
    #[error("the transaction's deadline has passed")]
    TooLate,
    /// The ledger cannot be used now.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl Ledger {
    /// The ledger in this directory, which exists.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        let inner = Inner { directory: directory.into(), store: Arc::default(), drafts: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Takes an item into the ledger with so many in stock, unless it is there already. It is no part of any transaction.
    ///
    /// # Errors
    /// See [`BookError`].
    pub async fn add_item(&self, item: &str, stock: u32) -> Result<(), BookError> {
        check_name(item)?;
        let access = self.access().await?;
        if access.opened().state.items.contains_key(item) {
            return Ok(());
        }
        let record = Record::Item { item: item.to_owned(), stock: stock.into() };
        access.write(record).await?;
        Ok(())
    }

    /// How many there are of each item: with what is put aside, without what is not committed yet.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub async fn items(&self) -> Result<BTreeMap<String, u64>, LedgerError> {
        Ok(self.access().await?.opened().state.items.clone())
    }

    /// All entries, by reference: item and change.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub async fn entries(&self) -> Result<BTreeMap<String, (String, i64)>, LedgerError> {
        Ok(self.access().await?.opened().state.entries.clone())
    }

    /// The entry of this reference, if it is committed.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub async fn entry(&self, reference: &str) -> Result<Option<(String, i64)>, LedgerError> {
        Ok(self.access().await?.opened().state.entries.get(reference).cloned())
    }

    /// The right to look and to write; the journal is opened if it is not.
    pub(crate) async fn access(&self) -> Result<Access, LedgerError> {
        let mut store = Arc::clone(&self.inner.store).lock_owned().await;
        if store.open.is_none() {
            let directory = self.inner.directory.clone();
            store = blocking(move || {
                if store.lock.is_none() {
                    store.lock = Some(lock(&directory)?);
                }
                let (journal, state) = Journal::open(&directory)?;
                store.open = Some(Opened { journal, state });
                Ok::<_, LedgerError>(store)
            })
            .await?;
        }
        Ok(Access { store })
    }

    pub(crate) fn open_desk(&self, branch: BranchId, deadline: Instant, deadline_ms: u64) -> Desk {
        let mut drafts = self.inner.drafts();
        drafts.last_number += 1;
        let number = drafts.last_number;
        drafts.open.insert(number, Draft { branch, deadline, deadline_ms, entries: Vec::new() });
        drop(drafts);
        Desk { ledger: self.clone(), number }
    }
}

impl Inner {
    fn drafts(&self) -> std::sync::MutexGuard<'_, Drafts> {
        // Nobody panics while holding it with a change half done.
        self.drafts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Access {
    pub(crate) fn opened(&self) -> &Opened {
        self.store.open.as_ref().expect("access is given to an open ledger")
    }

    /// Writes a record that fits the state, and applies it. Once begun it goes on to its end, whoever waits for it.
    pub(crate) async fn write(mut self, record: Record) -> Result<(), LedgerError> {
        blocking(move || {
            let mut opened = self.store.open.take().expect("access is given to an open ledger");
            if let Err(error) = opened.journal.append(&record) {
                // It stays closed: what is on disk has to be found out before anything is said.
                return Err(LedgerError::Unknown { directory: opened.journal.directory().to_owned(), error });
            }
            opened.state.apply(&record).expect("a record is made from the state that it is applied to");
            match opened.journal.compact(&opened.state) {
                Ok(()) => self.store.open = Some(opened),
                // The record itself is durable. The next use reads whichever file it is.
                Err(error) => tracing::warn!(%error, "the journal could not be written anew"),
            }
            Ok(())
        })
        .await
    }
}

/// Where an open branch works. Dropped, it lets go of all that it has put aside.
#[derive(Debug)]
pub struct Desk {
    ledger: Ledger,
    number: u64,
}

impl Desk {
    /// Puts `count` of the item aside. From here on nobody else gets them, until the branch is rolled back.
    ///
    /// # Errors
    /// See [`BookError`].
    pub async fn reserve(&mut self, reference: &str, item: &str, count: u32) -> Result<(), BookError> {
        self.book(reference, item, count, -i64::from(count)).await
    }

    /// Brings `count` of the item. Nobody can reserve them before the commit.
    ///
    /// # Errors
    /// See [`BookError`].
    pub async fn restock(&mut self, reference: &str, item: &str, count: u32) -> Result<(), BookError> {
        self.book(reference, item, count, i64::from(count)).await
    }

    /// How many of the item are left that nobody has put aside; `None` if there is no such item.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub async fn left(&mut self, item: &str) -> Result<Option<u64>, LedgerError> {
        let access = self.ledger.access().await?;
        Ok(left(&access.opened().state, &self.ledger.inner.drafts(), item))
    }

    async fn book(&mut self, reference: &str, item: &str, count: u32, change: i64) -> Result<(), BookError> {
        check_name(reference)?;
        if count == 0 {
            return Err(BookError::Malformed("a count is at least 1"));
        }
        let access = self.ledger.access().await?;
        let state = &access.opened().state;
        let mut drafts = self.ledger.inner.drafts();
        let Some(left) = left(state, &drafts, item) else {
            return Err(BookError::NoSuchItem(item.to_owned()));
        };
        if change < 0 && left < u64::from(count) {
            return Err(BookError::NotEnough { item: item.to_owned(), left, wanted: count });
        }
        if is_taken(state, &drafts, reference) {
            return Err(BookError::Taken(reference.to_owned()));
        }
        let draft = drafts.open.get_mut(&self.number).expect("a desk has its draft");
        if !draft.is_alive() {
            return Err(BookError::TooLate);
        }
        if draft.entries.len() == MAX_ENTRIES {
            return Err(BookError::Malformed("a branch has at most 1000 entries"));
        }
        draft.entries.push(Entry { reference: reference.to_owned(), item: item.to_owned(), change });
        Ok(())
    }

    /// What the branch wants to have done.
    pub(crate) fn draft(&self) -> Draft {
        self.ledger.inner.drafts().open.get(&self.number).expect("a desk has its draft").clone()
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.ledger.inner.drafts().open.remove(&self.number);
    }
}

impl Draft {
    /// Whether it can still be prepared; if not, what it has put aside is free.
    pub(crate) fn is_alive(&self) -> bool {
        Instant::now() < self.deadline
    }
}

impl Drafts {
    /// What open branches and prepared ones are about to do.
    fn pending<'a>(&'a self, state: &'a State) -> impl Iterator<Item = &'a Entry> {
        let open = self.open.values().filter(|draft| draft.is_alive()).flat_map(|draft| &draft.entries);
        open.chain(state.prepared.values().flat_map(|prepared| &prepared.entries))
    }
}

/// How many of an item are neither gone nor put aside by anyone.
fn left(state: &State, drafts: &Drafts, item: &str) -> Option<u64> {
    let stock = *state.items.get(item)?;
    let aside = drafts.pending(state).filter(|entry| entry.item == item && entry.change < 0);
    Some(stock.saturating_sub(aside.map(|entry| entry.change.unsigned_abs()).sum()))
}

fn is_taken(state: &State, drafts: &Drafts, reference: &str) -> bool {
    state.entries.contains_key(reference) || drafts.pending(state).any(|entry| entry.reference == reference)
}

fn check_name(name: &str) -> Result<(), BookError> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(BookError::Malformed("a reference or an item's name has 1 to 100 bytes"));
    }
    Ok(())
}

/// One process at a time. The kernel lets go of the lock when the process ends, however it ends.
fn lock(directory: &Path) -> Result<File, LedgerError> {
    let path = directory.join("lock");
    let disk = |error| LedgerError::Journal(JournalError::Disk { path: path.clone(), error });
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(disk)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(LedgerError::Occupied(format!(
            "another process has the ledger in {}: stop it, or give this one a directory of its own",
            directory.display()
        ))),
        Err(error) => Err(disk(error.into())),
    }
}

/// Waits for the disk where that keeps nobody else waiting. What was begun is done, even if nobody waits for it any more.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that shuts down cancels it, and then this task is not run any more either.
            Err(_cancelled) => std::future::pending().await,
        },
    }
}
