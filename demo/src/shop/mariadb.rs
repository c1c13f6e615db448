//! What runs on MariaDB in docker-compose.yml: the payments.

#[path = "payments.rs"]
pub(super) mod payments;

use sqlx::mysql::MySqlPoolOptions;

use super::{Failure, Settings, with_password};

pub(super) type Database = lockstep::MySql;
pub(super) type Pool = sqlx::MySqlPool;
pub(super) type Connection = sqlx::MySqlConnection;

/// As many connections as branches may be open at once.
const CONNECTIONS: u32 = 32;

fn open(settings: &Settings) -> Result<Pool, Failure> {
    let url = with_password(&settings.database, settings.password_file.as_ref())?;
    Ok(MySqlPoolOptions::new().max_connections(CONNECTIONS).connect_lazy(&url)?)
}
