//! What all cells share: two servers of each kind.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::harness::Result;
use crate::harness::books::{Books, Database};
use crate::harness::mariadb::MariaDbServer;
use crate::harness::postgres::PostgresServer;
use crate::harness::roles::Roles;
use crate::trial::world::BANKS;

/// What every cell shares.
#[derive(Debug)]
pub struct Stage {
    /// Who plays the processes.
    pub roles: Roles,
    /// A server for each of two banks: two resource managers are two servers.
    servers: [PostgresServer; 2],
    mariadb_servers: [MariaDbServer; 2],
    /// Databases that were made, so that none has another's name.
    databases: AtomicU64,
}

impl Stage {
    /// With two new servers of each kind.
    ///
    /// # Errors
    /// If they don't start.
    pub fn set(roles: &Roles) -> Result<Self> {
        let servers = [PostgresServer::start()?, PostgresServer::start()?];
        let mariadb_servers = [MariaDbServer::start()?, MariaDbServer::start()?];
        Ok(Self { roles: roles.clone(), servers, mariadb_servers, databases: AtomicU64::new(0) })
    }

    /// New books for a bank, beside which something foreign is prepared.
    ///
    /// # Errors
    /// If they can't be made.
    pub async fn books(&self, kind: Database, bank: usize, directory: &Path) -> Result<Books> {
        let name = BANKS[bank];
        let books = match kind {
            Database::Sqlite => Books::in_sqlite(name, directory.join(format!("{name}.db"))).await?,
            Database::Postgres => Books::in_postgres(name, &self.servers[bank], &self.fresh_name()).await?,
            Database::MariaDb => {
                Books::in_mariadb(name, &self.mariadb_servers[bank], &self.fresh_name()).await?
            }
            Database::Own => Books::in_ledger(name, directory.join(name)).await?,
        };
        books.plant_foreign().await?;
        Ok(books)
    }

    /// A database for a coordinator's log.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn fresh_log(&self) -> Result<String> {
        let name = format!("log_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let server = &self.servers[0];
        server.create_database(&name)?;
        Ok(server.url(&name))
    }

    fn fresh_name(&self) -> String {
        format!("bank_{}", self.databases.fetch_add(1, Ordering::Relaxed))
    }
}
