//! How long branches are in doubt: what is prepared in the banks' databases, looked at again and again from outside.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::harness::books::Books;
use crate::harness::{Failed, Result, clock};

/// Between two looks. A branch that is prepared for less than this is mostly not seen: those are not in doubt, but on their way.
const GLANCE: Duration = Duration::from_millis(50);

/// Looks until it is told to stop.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Duration>>>,
}

impl Watch {
    /// Of the databases with these books.
    ///
    /// # Errors
    /// If it can't begin.
    pub fn start(books: Vec<Books>) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || watch(&books, &told))
            .map_err(Failed::because("no thread"))?;
        Ok(Self { stop, thread })
    }

    /// For how long each branch that was seen prepared was so at least, the shortest time first.
    ///
    /// # Errors
    /// If it could not look.
    ///
    /// # Panics
    /// If it did.
    pub fn stop(self) -> Result<Vec<Duration>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it does not panic")
    }
}

/// When a branch was first seen, and last.
type Seen = BTreeMap<String, (Instant, Instant)>;

fn watch(books: &[Books], stop: &AtomicBool) -> Result<Vec<Duration>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failed::because("no runtime"))?;
    let mut seen = Seen::new();
    while !stop.load(Ordering::Relaxed) {
        for books in books {
            // A server that is down says nothing: what it had prepared is prepared still.
            if let Ok(prepared) = runtime.block_on(books.prepared()) {
                note(&mut seen, prepared);
            }
        }
        thread::sleep(GLANCE);
    }
    let mut times: Vec<Duration> = seen.into_values().map(|(first, last)| last - first).collect();
    times.sort_unstable();
    Ok(times)
}

fn note(seen: &mut Seen, prepared: Vec<String>) {
    let now = clock::now();
    for branch in prepared {
        seen.entry(branch).or_insert((now, now)).1 = now;
    }
}
