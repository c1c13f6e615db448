//! A service's own writes that belong to no global transaction.

use std::ops::{Deref, DerefMut};

use sqlx::SqliteConnection;

use super::turn::Turn;

/// A local write transaction, from [`Sqlite::local_write`](super::Sqlite::local_write): a connection of the service's pool with
/// `BEGIN IMMEDIATE` done, and nobody else writing through the SDK meanwhile.
///
/// Dropped without [`LocalWrite::commit`], it is rolled back.
#[derive(Debug)]
pub struct LocalWrite {
    // Before the turn: it is rolled back, or on its way to be, when the turn is passed on.
    transaction: sqlx::Transaction<'static, sqlx::Sqlite>,
    _turn: Turn,
}

impl LocalWrite {
    pub(super) fn new(transaction: sqlx::Transaction<'static, sqlx::Sqlite>, turn: Turn) -> Self {
        Self { transaction, _turn: turn }
    }

    /// Commits.
    ///
    /// # Errors
    ///
    /// As `sqlx::Transaction::commit`: after one that is not about a constraint, the write may be there or not.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        self.transaction.commit().await
    }
}

impl Deref for LocalWrite {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.transaction
    }
}

impl DerefMut for LocalWrite {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.transaction
    }
}
