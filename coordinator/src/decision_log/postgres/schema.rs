//! The schema of the log: made and migrated by whoever is permitted to, checked by everyone.
//!
//! A node never works on a schema that is newer than itself: what it does not know of may be what its writes would break.

use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{PgConnection, PgPool};

use super::connect::{Failure, answer};

/// The table that says which migrations were applied.
const APPLIED: &str = "lockstep_log.migrations";
/// How long a look at it may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the schema does not fit.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// There is none, or an older one, and this start may not make it.
    #[error(
        "the database has no decision log of this version (it has migration {found}, {needed} is needed): \
         run `lockstep migrate --log URL`, or start with --migrate-log"
    )]
    Missing {
        /// The newest that was applied; 0 if none was.
        found: i64,
        /// The newest that this version knows.
        needed: i64,
    },
    /// A newer version has changed it.
    #[error(
        "the decision log has migration {found}, which this version does not know: start the newer version that made it"
    )]
    Newer {
        /// The unknown one.
        found: i64,
    },
    /// A migration failed.
    #[error("the decision log's schema could not be migrated: {0}")]
    Migrate(#[from] MigrateError),
    /// The database could not be asked.
    #[error("the decision log's schema could not be read: {0}")]
    Unavailable(String),
}

/// The migrations that this version knows, in a schema of their own.
fn migrations() -> Migrator {
    let mut migrations = sqlx::migrate!("../migrations/postgres");
    migrations.dangerous_set_table_name(APPLIED);
    migrations.create_schema("lockstep_log");
    migrations
}

/// The newest migration that this version knows.
fn newest() -> i64 {
    migrations().iter().map(|migration| migration.version).max().expect("there is a first migration")
}

/// Applies what is missing. Several nodes may do so at once: the first one does it.
pub(super) async fn migrate(pool: &PgPool) -> Result<(), SchemaError> {
    match migrations().run(pool).await {
        Err(MigrateError::VersionMissing(found)) => Err(SchemaError::Newer { found }),
        migrated => Ok(migrated?),
    }
}

/// Checks that the schema is the one that this version knows.
pub(super) async fn check(connection: &mut PgConnection) -> Result<(), SchemaError> {
    const UNDEFINED_TABLE: &str = "42P01";
    let needed = newest();
    let newest_applied = sqlx::query_scalar("SELECT max(version) FROM lockstep_log.migrations WHERE success");
    let rows: Vec<Option<i64>> = match answer(PATIENCE, newest_applied.fetch_all(connection)).await {
        Err(failure) if failure.is(UNDEFINED_TABLE) => Vec::new(),
        Err(failure @ (Failure::Refused { .. } | Failure::Lost(_))) => {
            return Err(SchemaError::Unavailable(failure.to_string()));
        }
        Ok(rows) => rows,
    };
    let found = rows.into_iter().flatten().max().unwrap_or(0);
    match found.cmp(&needed) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Less => Err(SchemaError::Missing { found, needed }),
        std::cmp::Ordering::Greater => Err(SchemaError::Newer { found }),
    }
}
