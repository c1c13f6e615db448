//! What runs on a SQLite file: the inventory in docker-compose.yml, and all three without Docker.

#[path = "inventory.rs"]
pub(super) mod inventory;
#[path = "orders.rs"]
#[expect(
    clippy::duplicate_mod,
    reason = "the same service on another database: only the types above it differ"
)]
pub(super) mod orders;
#[path = "payments.rs"]
#[expect(
    clippy::duplicate_mod,
    reason = "the same service on another database: only the types above it differ"
)]
pub(super) mod payments;

use std::str::FromStr as _;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};

use super::{Failure, Settings};

pub(super) type Database = lockstep::Sqlite;
pub(super) type Pool = sqlx::SqlitePool;
pub(super) type Connection = sqlx::SqliteConnection;

/// How long a write outside of any transaction waits for the file.
const PATIENCE: Duration = Duration::from_secs(30);

fn open(settings: &Settings) -> Result<Pool, Failure> {
    let options = SqliteConnectOptions::from_str(&settings.database)?
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(PATIENCE);
    Ok(Pool::connect_lazy_with(options))
}
