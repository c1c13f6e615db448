//! The servers in which cells run. A cell may kill its server, so no two run over one at the same time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::harness::books::{Books, Database};
use crate::harness::mariadb::MariaDbServer;
use crate::harness::postgres::PostgresServer;
use crate::harness::proxy::Proxy;
use crate::harness::proxy::wire::Wire;
use crate::harness::roles::Roles;
use crate::harness::{Failed, Result};

/// What cells share, one after the other.
#[derive(Debug)]
pub struct Stage {
    /// Who plays the processes.
    pub roles: Roles,
    /// Servers that no cell uses now.
    idle: Mutex<Vec<Server>>,
    /// Held while a server is made: several installations of MariaDB's system tables at once fail on a small machine.
    making: Mutex<()>,
    /// Databases that were made, so that none has another's name.
    databases: AtomicU64,
}

/// A server of some kind.
#[derive(Debug)]
pub enum Server {
    /// PostgreSQL.
    Postgres(PostgresServer),
    /// MariaDB.
    Mariadb(MariaDbServer),
}

impl Stage {
    /// Without any server yet.
    #[must_use]
    pub fn set(roles: &Roles) -> Self {
        Self {
            roles: roles.clone(),
            idle: Mutex::default(),
            making: Mutex::default(),
            databases: AtomicU64::new(0),
        }
    }

    /// A server for a cell over this kind of database, if it needs one: an idle one or a new one.
    ///
    /// # Errors
    /// If it does not start.
    pub fn server(&self, kind: Database) -> Result<Option<Server>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = idle.iter().position(|server| server.kind() == kind) {
            return Ok(Some(idle.swap_remove(index)));
        }
        drop(idle);
        let _one_at_a_time = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        match kind {
            Database::Sqlite | Database::Own => Ok(None),
            Database::MariaDb => Ok(Some(Server::Mariadb(MariaDbServer::start()?))),
            Database::Postgres => Ok(Some(Server::Postgres(PostgresServer::start()?))),
        }
    }

    /// Takes a server back that runs.
    pub fn give_back(&self, server: Server) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(server);
    }

    /// A name that no database has.
    #[must_use]
    pub fn fresh_name(&self) -> String {
        format!("bank_{}", self.databases.fetch_add(1, Ordering::Relaxed))
    }
}

impl Server {
    const fn kind(&self) -> Database {
        match self {
            Self::Postgres(_) => Database::Postgres,
            Self::Mariadb(_) => Database::MariaDb,
        }
    }

    /// New books in a database of this name.
    ///
    /// # Errors
    /// If they can't be made.
    pub async fn books(&self, bank: &str, database: &str) -> Result<Books> {
        match self {
            Self::Postgres(server) => Books::in_postgres(bank, server, database).await,
            Self::Mariadb(server) => Books::in_mariadb(bank, server, database).await,
        }
    }

    /// A proxy before it.
    ///
    /// # Errors
    /// If it can't listen.
    pub fn proxy(&self) -> Result<Proxy> {
        match self {
            Self::Postgres(server) => Proxy::start(Wire::Postgres, server.port()),
            Self::Mariadb(server) => Proxy::start(Wire::Mysql, server.port()),
        }
    }

    /// SIGKILL, and started again.
    ///
    /// # Errors
    /// If it can't be killed or does not come back.
    pub fn kill_and_restart(&mut self) -> Result<()> {
        match self {
            Self::Postgres(server) => server.kill().and_then(|()| server.restart()).map_err(Failed::from),
            Self::Mariadb(server) => server.kill().and_then(|()| server.restart()).map_err(Failed::from),
        }
    }
}
