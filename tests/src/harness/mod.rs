//! Real things for tests to break: processes, database servers, files; killed like anything else, and looked at from outside.
//!
//! - [`process`]: a process of ours: started, killed, reaped, started again. [`roles`] says what it plays.
//! - [`coordinator`], [`bank`], [`client`]: the three roles.
//! - [`crash_points`]: SIGKILL at a named place, and the proof that it was there.
//! - [`postgres`], [`mariadb`]: database servers made from nothing; [`books`]: a bank's database as the harness sees it.
//! - [`procfs`]: processes as the kernel sees them, and how to stop one in its tracks.
//! - [`proxy`]: between a bank and its server, to break their connection at a chosen statement.
//! - [`disk`]: one that is full, and one that fails to force.
//! - [`clock`], [`ports`], `files`: what the others share.

pub mod bank;
pub mod books;
pub mod client;
pub mod clock;
pub mod coordinator;
pub mod crash_points;
mod debian;
pub mod disk;
mod files;
mod janitor;
pub mod mariadb;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod procfs;
pub mod proxy;
pub mod roles;
pub mod tools;

/// Something that the harness needed did not work: it says what was tried and what came of it. Never a verdict on what is
/// being tested.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Failed(String);

/// What the harness's functions return.
pub type Result<T, E = Failed> = std::result::Result<T, E>;

impl Failed {
    /// A failure in these words.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }

    /// For `map_err`: `what` could not be done, and why.
    pub fn because<E: std::fmt::Display>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |cause| Self(format!("{what}: {cause}"))
    }
}

impl From<mariadb::MariaDbError> for Failed {
    fn from(error: mariadb::MariaDbError) -> Self {
        Self(error.to_string())
    }
}

impl From<postgres::PostgresError> for Failed {
    fn from(error: postgres::PostgresError) -> Self {
        Self(error.to_string())
    }
}
