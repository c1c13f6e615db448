//! Whether a PostgreSQL server is fit to take part, what it is, and the tables that are kept in it.
//!
//! Settings that could lose or tear a branch are refused by name, with the statement that mends them (P22): the same
//! judgement that `lockstep doctor` shows ([`judge`]). Nothing is changed in the server but our own schema.

use fail::fail_point;
use lockstep_proto::museum::mutated;
use lockstep_proto::{ClusterId, Positions, ResourceManagerId, ResourceManagerName};
use sqlx::postgres::{PgDatabaseError, PgRow};
use sqlx::{Row as _, SqlSafeStr as _, SqlStr};

use super::connection::{Failure, Lease, OWN_ANSWER_TIMEOUT, OwnPool, Reply};
use super::refusal::INSUFFICIENT_PRIVILEGE;
use super::{evidence, schema, sql};
use crate::doctor::postgres::judge;
use crate::doctor::postgres::snapshot::{Functions, Server, TableState, Tables};
use crate::doctor::refuse_errors;
use crate::resource::{Attachment, ResourceError, Unresolved};

/// What attaching found out.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) attachment: Attachment,
    /// The server can notice that its client is gone while a statement runs.
    pub(super) can_watch_client: bool,
    /// Our functions are there, and may be called.
    pub(super) has_functions: bool,
}

pub(super) async fn attach(own: &OwnPool, name: &ResourceManagerName) -> Result<Found, ResourceError> {
    let mut lease = Lease::own(own).await.map_err(ResourceError::Unavailable)?;
    let server = read_server(&mut lease).await?;
    refuse_unfit(&server)?;
    make_tables(&mut lease, &server).await?;
    let has_functions = make_functions(&mut lease).await?;
    fail_point!("postgres-before-identity");
    ask(&mut lease, sql::make_identity(name)).await?;
    fail_point!("postgres-after-identity");
    let identity = Identity::read(&mut lease, name).await?;
    refuse_without_slots(&mut lease, &server, name, identity.cluster).await?;
    let can_watch_client = lease.run(sql::WATCH_CLIENT.into_sql_str(), OWN_ANSWER_TIMEOUT).await.is_ok();
    let attachment = Attachment {
        identity: identity.identity,
        cluster: identity.cluster,
        seen: identity.seen,
        location: format!("PostgreSQL system {}, database {}", server.system, server.database),
        timeline: timeline(&server)?,
    };
    Ok(Found { attachment, can_watch_client, has_functions })
}

async fn read_server(lease: &mut Lease) -> Result<Server, ResourceError> {
    let reply = ask(lease, sql::SERVER.into_sql_str()).await?;
    Server::of(the_row(&reply)?).map_err(unreadable)
}

/// What can't be mended by attaching. Whether a slot is left comes later: attaching may free some.
fn refuse_unfit(server: &Server) -> Result<(), ResourceError> {
    if mutated("P22-any-setting-will-do") {
        return Ok(());
    }
    let settings = [
        judge::version(server),
        judge::fsync(server),
        judge::full_page_writes(server),
        judge::standby(server),
    ];
    refuse_errors(&Vec::from_iter(judge::slots_set(server, "").into_iter().chain(settings)))
}

/// No free slot is a reason to wait, unless branches of this resource manager hold some: they are freed by
/// attaching.
async fn refuse_without_slots(
    lease: &mut Lease,
    server: &Server,
    name: &ResourceManagerName,
    cluster: Option<ClusterId>,
) -> Result<(), ResourceError> {
    if server.slots_taken < server.slots {
        return Ok(());
    }
    let mut holds_some = false;
    if let Some(cluster) = cluster {
        let reply = ask(lease, sql::prepared(cluster)).await?;
        holds_some = reply.rows[1..].iter().any(|row| super::recovery::names(row, cluster, name).is_some());
    }
    let slots = judge::slots_left(server, holds_some);
    tracing::warn!(resource_manager = %name, "{}", slots.what);
    refuse_errors(&[slots])
}

fn timeline(server: &Server) -> Result<u32, ResourceError> {
    let digits = server.wal_file.get(..8).unwrap_or_default();
    u32::from_str_radix(digits, 16).map_err(|_none| {
        ResourceError::Unavailable(format!("PostgreSQL names no timeline, but {:?}", server.wal_file))
    })
}

async fn read_tables(lease: &mut Lease) -> Result<Tables, ResourceError> {
    let reply = ask(lease, schema::TABLES.into_sql_str()).await?;
    Tables::of(the_row(&reply)?).map_err(unreadable)
}

/// Makes our tables where they are missing: looked at first, because making them takes a privilege that using
/// them doesn't. Looked at again afterwards: what `IF NOT EXISTS` has found may be somebody else's.
async fn make_tables(lease: &mut Lease, server: &Server) -> Result<(), ResourceError> {
    let tables = read_tables(lease).await?;
    match tables.state {
        TableState::Ready => return refuse_errors(&[judge::tables_form(&tables)]),
        TableState::Absent => {}
        TableState::Forbidden => return refuse_errors(&[judge::tables_forbidden(server)]),
    }
    let making = lease.run(schema::create_tables(), OWN_ANSWER_TIMEOUT).await;
    match making {
        Ok(_) => refuse_errors(&[judge::tables_form(&read_tables(lease).await?)]),
        Err(Failure::Refused(error)) if error.code() == INSUFFICIENT_PRIVILEGE => {
            let why = format!(
                "{} may not create the tables in the schema lockstep ({})",
                server.role,
                error.message()
            );
            refuse_errors(&[judge::tables_closed(server, &why)])
        }
        Err(failure) => Err(unavailable(failure)),
    }
}

/// What is refused here is nothing that a branch needs.
async fn read_functions(lease: &mut Lease) -> Result<Functions, ResourceError> {
    match lease.run(schema::look_at_functions(), OWN_ANSWER_TIMEOUT).await {
        Ok(reply) => Functions::of(the_row(&reply)?).map_err(unreadable),
        Err(Failure::Refused(_)) => Ok(Functions::hidden()),
        Err(lost) => Err(unavailable(lost)),
    }
}

/// Makes our functions where they are missing. Whether they can be called then. A branch costs less with them, and that is all: one that is in the
/// way, or may not be made, is left to a person.
async fn make_functions(lease: &mut Lease) -> Result<bool, ResourceError> {
    let mut functions = read_functions(lease).await?;
    let mut why = String::new();
    if functions.are_missing() {
        let making = lease.run(schema::create_functions(&functions.missing), OWN_ANSWER_TIMEOUT).await;
        why = making.err().map_or_else(String::new, |failure| format!(" ({})", unavailable(failure)));
        functions = read_functions(lease).await?;
    }
    if !functions.are_ready() {
        tracing::info!(
            "branches are prepared without the functions of the schema lockstep{why}, which costs the server more; `lockstep doctor` says \
             what to do"
        );
    }
    Ok(functions.are_ready())
}

/// What is stored about a resource manager.
#[derive(Debug)]
struct Identity {
    identity: ResourceManagerId,
    cluster: Option<ClusterId>,
    seen: Positions,
}

impl Identity {
    async fn read(lease: &mut Lease, name: &ResourceManagerName) -> Result<Self, ResourceError> {
        let reply = ask(lease, sql::identity(name)).await?;
        let row = the_row(&reply)?;
        let format: i64 = row.try_get("format").map_err(unreadable)?;
        refuse_errors(&[judge::format(format)])?;
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
            seen: positions(lease, name).await?,
        })
    }
}

async fn positions(lease: &mut Lease, name: &ResourceManagerName) -> Result<Positions, ResourceError> {
    let reply = ask(lease, sql::positions(name)).await?;
    let positions = reply.rows.iter().map(evidence::position).collect::<Result<_, _>>();
    positions.map_err(|Unresolved(why)| ResourceError::Unfit(why))
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
