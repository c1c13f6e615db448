//! Whether a PostgreSQL server is fit to take part, what it is, and the tables that are kept in it.
//!
//! Settings that could lose or tear a branch are refused by name, with the statement that mends them (P22).
//! Nothing is changed in the server but our own schema.

use fail::fail_point;
use lockstep_proto::{ClusterId, LogPosition, ResourceManagerId, ResourceManagerName};
use sqlx::postgres::{PgDatabaseError, PgRow};
use sqlx::{PgPool, Row as _, SqlSafeStr as _, SqlStr};

use super::connection::{Failure, Lease, OWN_ANSWER_TIMEOUT, Reply};
use super::refusal::INSUFFICIENT_PRIVILEGE;
use super::{evidence, sql};
use crate::resource::{Attachment, ResourceError, Unresolved};

/// PostgreSQL 14: older ones get no corrections any more, and can't watch for clients that are gone.
const OLDEST_VERSION: i64 = 140_000;

/// What attaching found out.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) attachment: Attachment,
    /// The server can notice that its client is gone while a statement runs.
    pub(super) can_watch_client: bool,
}

pub(super) async fn attach(own: &PgPool, name: &ResourceManagerName) -> Result<Found, ResourceError> {
    let mut lease = Lease::acquire(own, OWN_ANSWER_TIMEOUT).await.map_err(ResourceError::Unavailable)?;
    let server = Server::read(&mut lease).await?;
    server.check()?;
    make_tables(&mut lease, &server).await?;
    fail_point!("postgres-before-identity");
    ask(&mut lease, sql::make_identity(name)).await?;
    fail_point!("postgres-after-identity");
    let identity = Identity::read(&mut lease, name).await?;
    server.check_slots(&mut lease, name, identity.cluster).await?;
    let can_watch_client = lease.run(sql::WATCH_CLIENT.into_sql_str(), OWN_ANSWER_TIMEOUT).await.is_ok();
    let attachment = Attachment {
        identity: identity.identity,
        cluster: identity.cluster,
        seen: identity.seen,
        location: format!("PostgreSQL system {}, database {}", server.system, server.database),
        timeline: server.timeline()?,
    };
    Ok(Found { attachment, can_watch_client })
}

/// The server as it is.
#[derive(Debug)]
struct Server {
    version: i64,
    in_recovery: bool,
    slots: i64,
    slots_taken: i64,
    fsync: String,
    full_page_writes: String,
    /// Made by initdb; the same on all standbys.
    system: String,
    /// The database's oid: another one after a restore from a dump, the same after a renaming.
    database: i64,
    database_name: String,
    /// Quoted.
    role: String,
    /// The first 8 of its hex digits are the timeline.
    wal_file: String,
}

impl Server {
    async fn read(lease: &mut Lease) -> Result<Self, ResourceError> {
        let reply = ask(lease, sql::SERVER.into_sql_str()).await?;
        let row = the_row(&reply)?;
        Self::of(row).map_err(unreadable)
    }

    fn of(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            version: row.try_get("version")?,
            in_recovery: row.try_get("in_recovery")?,
            slots: row.try_get("slots")?,
            slots_taken: row.try_get("slots_taken")?,
            fsync: row.try_get("fsync")?,
            full_page_writes: row.try_get("full_page_writes")?,
            system: row.try_get("system")?,
            database: row.try_get("database")?,
            database_name: row.try_get("database_name")?,
            role: row.try_get("role")?,
            wal_file: row.try_get("wal_file")?,
        })
    }

    fn check(&self) -> Result<(), ResourceError> {
        if self.version < OLDEST_VERSION {
            return Err(ResourceError::Unfit(format!(
                "PostgreSQL {}.{} is too old: 14 or newer is needed",
                self.version / 10_000,
                self.version % 10_000
            )));
        }
        if self.slots == 0 {
            return Err(unfit(
                "max_prepared_transactions is 0: no branch can be prepared",
                "ALTER SYSTEM SET max_prepared_transactions = 100",
                "restart the server",
            ));
        }
        for (setting, value) in [("fsync", &self.fsync), ("full_page_writes", &self.full_page_writes)] {
            if value != "on" {
                return Err(unfit(
                    &format!(
                        "{setting} is {value}: a crash of the machine could lose prepared and committed branches"
                    ),
                    &format!("ALTER SYSTEM SET {setting} = on"),
                    "SELECT pg_reload_conf()",
                ));
            }
        }
        if self.in_recovery {
            return Err(ResourceError::Unavailable(
                "the server is a standby in recovery: it takes no writes, and can't tell what is prepared"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    /// No free slot is a reason to wait, unless branches of this resource manager hold some: they are freed by
    /// attaching.
    async fn check_slots(
        &self,
        lease: &mut Lease,
        name: &ResourceManagerName,
        cluster: Option<ClusterId>,
    ) -> Result<(), ResourceError> {
        if self.slots_taken < self.slots {
            return Ok(());
        }
        let full = format!(
            "all {} slots of max_prepared_transactions are taken: look for branches in doubt in pg_prepared_xacts, or \
             raise it (a restart of the server is needed)",
            self.slots
        );
        if let Some(cluster) = cluster {
            let reply = ask(lease, sql::prepared(cluster)).await?;
            if reply.rows[1..].iter().any(|row| super::recovery::names(row, cluster, name).is_some()) {
                tracing::warn!(resource_manager = %name, "{full}");
                return Ok(());
            }
        }
        Err(ResourceError::Unavailable(full))
    }

    fn timeline(&self) -> Result<u32, ResourceError> {
        let digits = self.wal_file.get(..8).unwrap_or_default();
        u32::from_str_radix(digits, 16).map_err(|_none| {
            ResourceError::Unavailable(format!("PostgreSQL names no timeline, but {:?}", self.wal_file))
        })
    }

    /// The tables are missing or closed to the role, and what somebody who may has to run.
    fn tables_forbidden(&self, why: &str) -> ResourceError {
        let grants = sql::GRANTS.replace("{role}", &self.role);
        ResourceError::Unfit(format!(
            "{why}. In database {}, as a role that may, run:\n{};\n{grants}",
            self.database_name,
            sql::CREATE_TABLES.replace("; ", ";\n")
        ))
    }
}

/// Makes our tables where they are missing: looked at first, because making them takes a privilege that using
/// them doesn't.
async fn make_tables(lease: &mut Lease, server: &Server) -> Result<(), ResourceError> {
    let reply = ask(lease, sql::TABLES.into_sql_str()).await?;
    let state: String = the_row(&reply)?.try_get("tables").map_err(unreadable)?;
    let role = &server.role;
    match state.as_str() {
        "ready" => return Ok(()),
        "absent" => {}
        _ => {
            return Err(
                server.tables_forbidden(&format!("{role} may not use the tables in the schema lockstep"))
            );
        }
    }
    let making = lease.run(sql::CREATE_TABLES.into_sql_str(), OWN_ANSWER_TIMEOUT).await;
    match making {
        Ok(_) => Ok(()),
        Err(Failure::Refused(error)) if error.code() == INSUFFICIENT_PRIVILEGE => Err(server
            .tables_forbidden(&format!(
                "{role} may not create the tables in the schema lockstep ({})",
                error.message()
            ))),
        Err(failure) => Err(unavailable(failure)),
    }
}

/// What is stored about a resource manager.
#[derive(Debug)]
struct Identity {
    identity: ResourceManagerId,
    cluster: Option<ClusterId>,
    seen: Option<LogPosition>,
}

impl Identity {
    async fn read(lease: &mut Lease, name: &ResourceManagerName) -> Result<Self, ResourceError> {
        let reply = ask(lease, sql::identity(name)).await?;
        let row = the_row(&reply)?;
        let format: i64 = row.try_get("format").map_err(unreadable)?;
        if format != i64::from(sql::FORMAT) {
            return Err(ResourceError::Unfit(format!(
                "the tables in the schema lockstep have format {format}, and this version of Lockstep knows {}: use a \
                 newer one",
                sql::FORMAT
            )));
        }
        let identity: String = row.try_get("identity").map_err(unreadable)?;
        let cluster: String = row.try_get("cluster").map_err(unreadable)?;
        let damaged =
            |what: &str| ResourceError::Unfit(format!("lockstep.identity holds an unreadable {what}"));
        Ok(Self {
            identity: identity.parse().map_err(|_malformed| damaged("identity"))?,
            cluster: match cluster.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|_malformed| damaged("cluster"))?),
            },
            seen: evidence::position(row).map_err(|Unresolved(why)| ResourceError::Unfit(why))?,
        })
    }
}

fn unfit(what: &str, statement: &str, then: &str) -> ResourceError {
    ResourceError::Unfit(format!("{what}. Mend it with: {statement}; then: {then}"))
}

async fn ask(lease: &mut Lease, sql: SqlStr) -> Result<Reply, ResourceError> {
    lease.run(sql, OWN_ANSWER_TIMEOUT).await.map_err(unavailable)
}

fn the_row(reply: &Reply) -> Result<&PgRow, ResourceError> {
    reply.rows.first().ok_or_else(|| ResourceError::Unavailable("PostgreSQL answered with no row".to_owned()))
}

fn unavailable(failure: Failure) -> ResourceError {
    let refused = |error: &PgDatabaseError| format!("PostgreSQL: {} ({})", error.message(), error.code());
    ResourceError::Unavailable(match failure {
        Failure::Refused(error) => refused(&error),
        Failure::Lost(why) => why,
    })
}

fn unreadable(error: sqlx::Error) -> ResourceError {
    ResourceError::Unavailable(format!("PostgreSQL answered something unreadable: {error}"))
}
