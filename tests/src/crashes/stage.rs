//! What all cells share: two PostgreSQL servers.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::harness::books::{Books, Database};
use crate::harness::postgres::PostgresServer;
use crate::harness::roles::Roles;
use crate::harness::{Failed, Result};
use crate::trial::world::BANKS;

/// What every cell shares.
#[derive(Debug)]
pub struct Stage {
    /// Who plays the processes.
    pub roles: Roles,
    /// A server for each of two banks: two resource managers are two servers.
    servers: [PostgresServer; 2],
    /// Databases that were made, so that none has another's name.
    databases: AtomicU64,
}

impl Stage {
    /// With two new servers.
    ///
    /// # Errors
    /// If they don't start.
    pub fn set(roles: &Roles) -> Result<Self> {
        let servers = [PostgresServer::start()?, PostgresServer::start()?];
        Ok(Self { roles: roles.clone(), servers, databases: AtomicU64::new(0) })
    }

    /// New books for a bank, beside which something foreign is prepared.
    ///
    /// # Errors
    /// If they can't be made.
    pub async fn books(&self, kind: Database, bank: usize, directory: &Path) -> Result<Books> {
        let name = BANKS[bank];
        let books = match kind {
            Database::Mariadb | Database::Own => return Err(Failed::new("not in this matrix")),
            Database::Sqlite => Books::in_sqlite(name, directory.join(format!("{name}.db"))).await?,
            Database::Postgres => {
                let database = format!("bank_{}", self.databases.fetch_add(1, Ordering::Relaxed));
                Books::in_postgres(name, &self.servers[bank], &database).await?
            }
        };
        books.plant_foreign().await?;
        Ok(books)
    }
}
