//! What runs on PostgreSQL in docker-compose.yml: the orders.

#[path = "orders.rs"]
pub(super) mod orders;

use sqlx::postgres::PgPoolOptions;

use super::{Failure, Settings, with_password};

pub(super) type Database = lockstep::Postgres;
pub(super) type Pool = sqlx::PgPool;
pub(super) type Connection = sqlx::PgConnection;

/// As many connections as branches may be open at once.
const CONNECTIONS: u32 = 32;

fn open(settings: &Settings) -> Result<Pool, Failure> {
    let url = with_password(&settings.database, settings.password_file.as_ref())?;
    Ok(PgPoolOptions::new().max_connections(CONNECTIONS).connect_lazy(&url)?)
}
