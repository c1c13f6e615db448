//! The embedded decision log, on a real file: what a bug in it would break.

use std::path::Path;

use lockstep_coordinator::decision_log::sqlite::{Options, SqliteLog};
use lockstep_coordinator::decision_log::{
    AppendError, Batch, DecisionLog, KnownResourceManager, PruneLimits,
};
use lockstep_coordinator::protocol::outcome::Outcome;
use lockstep_coordinator::protocol::presumption::{EpochState, Known, Recorded, conclude};
use lockstep_coordinator::protocol::record::{About, DecisionKind, DecisionRecord, EndRecord};
use lockstep_proto::{Bqual, Epoch, Gtrid, ResourceManagerId};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use tempfile::TempDir;

/// A time that every transaction in here is around.
const NOON_MS: u64 = 1_800_000_000_000;

/// What is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// Nothing is decided under an epoch that somebody has sealed (P1): `one_owner`.
    OneOwner,
    /// A decision never changes (AC2): `stability`.
    Stability,
    /// After a write whose result is not known nothing is written or read (P6): `stability`.
    Broken,
    /// Opening the log seals what came before (P5): `one_owner`.
    Sealed,
    /// What is pruned is below every floor (P7): `no_orphan_left`.
    Floors,
    /// Below the horizon nothing is presumed (P7): `reply_matches_log`.
    Horizon,
}

/// All of them.
pub const PROMISES: [Promise; 6] = [
    Promise::OneOwner,
    Promise::Stability,
    Promise::Broken,
    Promise::Sealed,
    Promise::Floors,
    Promise::Horizon,
];

impl Promise {
    /// The invariant that it is.
    #[must_use]
    pub const fn invariant(self) -> &'static str {
        match self {
            Self::OneOwner | Self::Sealed => "one_owner",
            Self::Stability | Self::Broken => "stability",
            Self::Floors => "no_orphan_left",
            Self::Horizon => "reply_matches_log",
        }
    }
}

/// Whether it is kept, by a new log.
///
/// # Panics
/// If there is no log to be had at all: no directory, no space.
pub async fn keeps(promise: Promise) -> bool {
    let dir = TempDir::new().expect("a directory for a log");
    match promise {
        Promise::OneOwner => one_owner(dir.path()).await,
        Promise::Stability => stability(dir.path()).await,
        Promise::Broken => broken(dir.path()).await,
        Promise::Sealed => sealed(dir.path()).await,
        Promise::Floors => floors(dir.path()).await,
        Promise::Horizon => horizon(dir.path()).await,
    }
}

async fn open(dir: &Path) -> SqliteLog {
    let opened = SqliteLog::open(dir, Options { min_free_bytes: 0 }).await;
    opened.expect("a log that can be opened").0
}

fn gtrid(epoch: Epoch, number: u8) -> Gtrid {
    Gtrid::new(epoch, NOON_MS + u64::from(number), [number; 10])
}

fn bqual(number: u64) -> Bqual {
    Bqual::new(&"orders-db".parse().expect("a name"), number)
}

fn commit(gtrid: Gtrid, branch: u64) -> Batch {
    let about = About::default();
    let branches = vec![bqual(branch)];
    let decision = DecisionRecord { gtrid, kind: DecisionKind::Commit, branches, decided_ms: NOON_MS, about };
    Batch { decisions: vec![decision], ends: Vec::new() }
}

fn ended(gtrid: Gtrid) -> Batch {
    let end = EndRecord {
        gtrid,
        outcome: Outcome::Committed,
        detail: String::new(),
        branches: Vec::new(),
        ended_ms: NOON_MS + 100,
        about: About::default(),
    };
    Batch { ends: vec![end], ..commit(gtrid, 0) }
}

async fn recorded(log: &SqliteLog, gtrid: Gtrid) -> Option<Recorded> {
    let found = log.look_up(&[gtrid]).await.ok()?;
    Some(found.into_iter().next()?.recorded)
}

/// Somebody else changes the epoch's row, as whoever seals it does, and the next decision comes too late.
async fn one_owner(dir: &Path) -> bool {
    let log = open(dir).await;
    let epoch = log.position().epoch;
    let file = SqliteConnectOptions::new().filename(dir.join("decisions.db"));
    let mut stranger = file.connect().await.expect("the log's file can be opened");
    let sealed = sqlx::query("UPDATE epochs SET record = zeroblob(8)").execute(&mut stranger).await;
    sealed.expect("the epoch's row can be written");
    stranger.close().await.expect("the connection is closed");
    let late = log.force(&commit(gtrid(epoch, 1), 1)).await;
    matches!(late, Err(AppendError::Unknown(_)))
}

async fn stability(dir: &Path) -> bool {
    let log = open(dir).await;
    let gtrid = gtrid(log.position().epoch, 1);
    let first = log.force(&commit(gtrid, 1)).await;
    let second = log.force(&commit(gtrid, 2)).await;
    first.is_ok() && matches!(second, Err(AppendError::Unknown(_)))
}

async fn broken(dir: &Path) -> bool {
    let log = open(dir).await;
    let epoch = log.position().epoch;
    let first = log.force(&commit(gtrid(epoch, 1), 1)).await;
    // A contradiction: nothing that this process believes of its log counts any more.
    let second = log.force(&commit(gtrid(epoch, 1), 2)).await;
    let third = log.force(&commit(gtrid(epoch, 3), 3)).await;
    first.is_ok() && second.is_err() && third.is_err() && recorded(&log, gtrid(epoch, 1)).await.is_none()
}

async fn sealed(dir: &Path) -> bool {
    let first = open(dir).await;
    let old = gtrid(first.position().epoch, 1);
    first.close().await;
    drop(first);
    let second = open(dir).await;
    let found = second.look_up(&[old]).await.ok().and_then(|found| found.into_iter().next());
    found.is_some_and(|found| found.epoch == EpochState::Sealed)
}

/// A log with one ended transaction that may be pruned, but for a resource manager that has not reported what it holds.
async fn with_one_ended(dir: &Path, floor: Option<u8>) -> (SqliteLog, Gtrid, u64) {
    let log = open(dir).await;
    let epoch = log.position().epoch;
    let old = gtrid(epoch, 1);
    let known = KnownResourceManager {
        name: "orders-db".parse().expect("a name"),
        identity: ResourceManagerId::from_bytes([1; 16]),
        location: String::new(),
        timeline: 0,
        floor: floor.map(|number| gtrid(epoch, number)),
        retired: false,
    };
    log.remember(&known).await.expect("a resource manager is remembered");
    log.force(&ended(old)).await.expect("a transaction ends");
    let limits = PruneLimits { ended_before_ms: NOON_MS + 200, below: gtrid(epoch, 150), limit: 100 };
    let pruned = log.prune(limits).await.expect("the log can be pruned");
    (log, old, pruned)
}

/// A branch of the oldest transaction may still be prepared: its record stays.
async fn floors(dir: &Path) -> bool {
    let (log, old, pruned) = with_one_ended(dir, Some(1)).await;
    pruned == 0 && matches!(recorded(&log, old).await, Some(Recorded::Ended(Some(_), _)))
}

/// What was pruned is not presumed to be rolled back: it was committed.
async fn horizon(dir: &Path) -> bool {
    let (log, old, pruned) = with_one_ended(dir, Some(9)).await;
    let found = log.look_up(&[old]).await.ok().and_then(|found| found.into_iter().next());
    pruned == 1 && found.is_some_and(|found| matches!(conclude(&found, false), Known::Unknown(_)))
}
