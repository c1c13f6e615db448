//! The embedded log over real files: the contract of every log, and what only this one can suffer.

use tempfile::TempDir;

use super::SqliteLog;
use super::open::{OpenError, Opened, Options};
use crate::decision_log::contract::{self, Store};

/// A log in a directory of its own.
pub(super) struct TempSqlite(pub(super) TempDir);

impl Store for TempSqlite {
    type Log = SqliteLog;

    async fn create() -> Self {
        Self(TempDir::new().unwrap())
    }

    async fn open(&self) -> SqliteLog {
        open(self).await.unwrap().0
    }
}

/// Opens the log there, on however small a disk.
pub(super) async fn open(store: &TempSqlite) -> Result<(SqliteLog, Opened), OpenError> {
    SqliteLog::open(store.0.path(), Options { min_free_bytes: 0 }).await
}

contract::contract!(TempSqlite);
