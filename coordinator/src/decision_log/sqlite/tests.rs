//! The embedded log over real files: the contract of every log, and what only this one can suffer.

mod checkpoints;
mod crash;
mod damage;
mod disk;
mod opening;
mod size;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, SqliteConnection};
use tempfile::TempDir;

use super::{OpenError, Opened, Options, SqliteLog, restore};
use crate::decision_log::contract::Store;
use crate::decision_log::restore::{Order, Restoration, RestoreError};

/// A log in a directory of its own.
pub(crate) struct TempSqlite(pub(crate) TempDir);

impl Store for TempSqlite {
    type Log = SqliteLog;

    async fn create() -> Self {
        Self(TempDir::new().unwrap())
    }

    async fn open(&self) -> SqliteLog {
        open(self).await.unwrap().0
    }

    async fn restore(&self, order: &Order) -> Result<Restoration, RestoreError> {
        restore(self.0.path(), order).await
    }
}

/// Opens the log there, on however small a disk.
pub(super) async fn open(store: &TempSqlite) -> Result<(SqliteLog, Opened), OpenError> {
    SqliteLog::open(store.0.path(), Options { min_free_bytes: 0 }).await
}

/// Another program's connection to the log's file.
pub(crate) async fn stranger(store: &TempSqlite) -> SqliteConnection {
    let file = store.0.path().join("decisions.db");
    SqliteConnectOptions::new().filename(file).connect().await.unwrap()
}

crate::decision_log_contract!(TempSqlite);
