//! MariaDB and MySQL: what is found in a server, and what that means ([`server`], [`judge`]). The looking itself is
//! `resource/mysql/look.rs`, beside the statements and the names of our branches.

pub(crate) mod judge;
pub(crate) mod server;

use std::str::FromStr as _;
use std::time::Duration;

use sqlx::mysql::MySqlConnectOptions;

use super::{Disk, DoctorError, Finding, Report};
use crate::resource::BranchId;
use crate::resource::mysql::look;
use server::Server;

/// What `lockstep doctor` looks at.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) server: Server,
    /// What attaching would refuse or make: our tables.
    pub(crate) tables: Vec<Finding>,
    /// `None` where the tables can't be read.
    pub(crate) identities: Option<Vec<Identity>>,
    /// Tables of this database that a branch can't roll back.
    pub(crate) other_engines: Vec<String>,
    /// An error says why they can't be listed.
    pub(crate) prepared: Result<Prepared, Finding>,
    /// `None` where the user may not see it.
    pub(crate) blocked: Option<Vec<Blocked>>,
    /// Quoted.
    pub(crate) user: String,
    pub(crate) clock: (i64, i64),
    pub(crate) disk: Option<Disk>,
}

/// What is stored about a resource manager.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) format: i64,
    pub(crate) identity: String,
    /// Empty before it was first bound to one.
    pub(crate) cluster: String,
}

/// The prepared branches of the whole server.
#[derive(Debug, Clone, Default)]
pub(crate) struct Prepared {
    /// With the time since its transaction began: the server does not tell since when it is prepared.
    pub(crate) branches: Vec<(BranchId, Duration)>,
    /// How many have other format ids.
    pub(crate) foreign: usize,
}

/// A session that waits for a lock which a prepared branch holds.
#[derive(Debug, Clone)]
pub(crate) struct Blocked {
    pub(crate) session: i64,
    pub(crate) object: String,
    pub(crate) since: Duration,
}

/// Looks, and judges.
pub(super) async fn examine(url: &str) -> Result<Report, DoctorError> {
    let options = options(url)?;
    let database = format!(
        "mysql://{}@{}:{}/{}",
        options.get_username(),
        options.get_host(),
        options.get_port(),
        options.get_database().unwrap_or_default()
    );
    if options.get_database().is_none_or(str::is_empty) {
        return Err(DoctorError::Url(format!("the URL names no database; {FORM}")));
    }
    let snapshot =
        look::look(options).await.map_err(|why| DoctorError::Unreachable(format!("{database}: {why}")))?;
    Ok(Report { database, findings: judge::judge(&snapshot) })
}

const FORM: &str = "write one such as mysql://USER@HOST:3306/DATABASE";

fn options(url: &str) -> Result<MySqlConnectOptions, DoctorError> {
    if !url.starts_with("mysql://") && !url.starts_with("mariadb://") {
        return Err(DoctorError::Url(format!("it does not begin with mysql://; {FORM}")));
    }
    // The parser's own words may repeat parts of the URL.
    MySqlConnectOptions::from_str(url).map_err(|_may_hold_a_password| {
        DoctorError::Url(format!("this is no URL of a MySQL database; {FORM}"))
    })
}
