//! Whether a server is fit to take part, what it is, and the tables that are kept in it.
//!
//! Settings that could lose or tear a branch are refused by name, with the statement that mends them (P22): the same
//! judgement that `lockstep doctor` shows ([`judge`]).
//! Nothing is changed in the server but our own tables.

use std::collections::BTreeMap;

use fail::fail_point;
use lockstep_proto::{ClusterId, LogPosition, Positions, ResourceManagerId, ResourceManagerName};
use sqlx::mysql::MySqlRow;
use sqlx::{Row as _, SqlSafeStr as _, SqlStr};

use super::connection::{Failure, Lease, OWN_ANSWER_TIMEOUT, OwnPool, Reply, text};
use super::evidence;
use super::refusal::{ACCESS_DENIED, NO_SUCH_TABLE, RECOVER_DENIED};
use super::sql::{self, Schema};
use crate::doctor::mysql::judge;
use crate::doctor::mysql::server::Server;
use crate::doctor::{Finding, refuse_errors};
use crate::resource::{Attachment, ResourceError, Unresolved};

/// What attaching found out.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) attachment: Attachment,
    /// Where our tables are.
    pub(super) schema: Schema,
}

pub(super) async fn attach(own: &OwnPool, name: &ResourceManagerName) -> Result<Found, ResourceError> {
    let mut lease = Lease::own(own).await.map_err(ResourceError::Unavailable)?;
    let reply = ask(&mut lease, sql::SETTINGS.into_sql_str()).await?;
    let server = Server::of(reply.shown().collect::<BTreeMap<_, _>>());
    refuse_errors(&server.judge())?;
    let place = Place::read(&mut lease).await?;
    check_recover(&mut lease, &place).await?;
    make_tables(&mut lease, &place).await?;
    warn_of_other_engines(&mut lease, name).await?;
    fail_point!("mysql-before-identity");
    ask(&mut lease, place.schema.make_identity(name, uuid::Uuid::new_v4())).await?;
    fail_point!("mysql-after-identity");
    let identity = Identity::read(&mut lease, &place.schema, name).await?;
    let attachment = Attachment {
        identity: identity.identity,
        cluster: identity.cluster,
        seen: identity.seen,
        location: format!("{}, database {}", server.identity(), place.schema.quoted()),
        timeline: 0,
    };
    Ok(Found { attachment, schema: place.schema })
}

/// Who we are there, and the database that we are in.
#[derive(Debug)]
pub(super) struct Place {
    /// Quoted.
    pub(super) user: String,
    pub(super) schema: Schema,
}

impl Place {
    async fn read(lease: &mut Lease) -> Result<Self, ResourceError> {
        let reply = ask(lease, sql::PLACE.into_sql_str()).await?;
        Self::of(the_row(&reply)?).map_err(unreadable)?.ok_or_else(|| {
            ResourceError::Unfit(
                "the pool's connections are in no database, so there is no place for the tables of Lockstep: name it in \
                 the pool's URL or options"
                    .to_owned(),
            )
        })
    }

    /// The row of [`sql::PLACE`]; `None`: in no database.
    pub(super) fn of(row: &MySqlRow) -> sqlx::Result<Option<Self>> {
        let name: Option<&[u8]> = row.try_get_unchecked("place")?;
        if name.is_none() {
            return Ok(None);
        }
        let user = text(row, "user")?;
        let (name, host) = user.rsplit_once('@').unwrap_or((&user, "%"));
        Ok(Some(Self {
            user: format!("'{}'@'{}'", name.replace('\'', "''"), host.replace('\'', "''")),
            schema: Schema::new(&text(row, "place")?),
        }))
    }

    pub(super) fn tables_forbidden(&self, why: &str) -> Finding {
        let create = self.schema.create_tables().map(|statement| statement.as_str().to_owned());
        judge::tables_closed(&self.user, why, create, &self.schema.grants(&self.user))
    }
}

/// Branches that can't be listed can't be recovered.
async fn check_recover(lease: &mut Lease, place: &Place) -> Result<(), ResourceError> {
    match lease.run(sql::RECOVER.into_sql_str(), OWN_ANSWER_TIMEOUT).await {
        Ok(_) => Ok(()),
        Err(Failure::Refused(error))
            if error.number() == RECOVER_DENIED || ACCESS_DENIED.contains(&error.number()) =>
        {
            refuse_errors(&[judge::recover_denied(&place.user, error.message())])
        }
        Err(failure) => Err(unavailable(failure)),
    }
}

/// Makes our tables where they are missing: looked at first, because making them takes a privilege that using
/// them doesn't.
async fn make_tables(lease: &mut Lease, place: &Place) -> Result<(), ResourceError> {
    let denied = |number: u16| ACCESS_DENIED.contains(&number);
    let mut tried = lease.run(place.schema.try_tables(), OWN_ANSWER_TIMEOUT).await;
    if matches!(&tried, Err(Failure::Refused(error)) if error.number() == NO_SUCH_TABLE) {
        for statement in place.schema.create_tables() {
            match lease.run(statement, OWN_ANSWER_TIMEOUT).await {
                Ok(_) => {}
                Err(Failure::Refused(error)) if denied(error.number()) => {
                    return refuse_errors(&[place.tables_forbidden("may not create the tables of Lockstep")]);
                }
                Err(failure) => return Err(unavailable(failure)),
            }
        }
        tried = lease.run(place.schema.try_tables(), OWN_ANSWER_TIMEOUT).await;
    }
    match tried {
        Ok(_) => check_engines(lease).await,
        // A server does not tell a user without any privilege for a table that it is not there.
        Err(Failure::Refused(error)) if denied(error.number()) => {
            refuse_errors(&[place.tables_forbidden("may not use the tables of Lockstep")])
        }
        Err(failure) => Err(unavailable(failure)),
    }
}

/// Evidence in a table that is not rolled back with its branch would be a lie.
async fn check_engines(lease: &mut Lease) -> Result<(), ResourceError> {
    let reply = ask(lease, Schema::engines().into_sql_str()).await?;
    let engines = reply.rows.iter().map(|row| text(row, "engine").map_err(unreadable));
    refuse_errors(&[judge::engines(&engines.collect::<Result<Vec<_>, _>>()?)])
}

/// A branch that changes one of them is turned down; better known before.
async fn warn_of_other_engines(lease: &mut Lease, name: &ResourceManagerName) -> Result<(), ResourceError> {
    let reply = ask(lease, sql::OTHER_ENGINES.into_sql_str()).await?;
    let tables: Vec<String> = reply.rows.iter().filter_map(|row| text(row, "name").ok()).collect();
    if !tables.is_empty() {
        tracing::warn!(
            resource_manager = %name,
            "tables that are not InnoDB can't take part; a branch that changes one is rolled back without it: {}",
            tables.join(", ")
        );
    }
    Ok(())
}

/// What is stored about a resource manager.
#[derive(Debug)]
struct Identity {
    identity: ResourceManagerId,
    cluster: Option<ClusterId>,
    seen: Positions,
}

impl Identity {
    async fn read(
        lease: &mut Lease,
        schema: &Schema,
        name: &ResourceManagerName,
    ) -> Result<Self, ResourceError> {
        let reply = ask(lease, schema.identity_of(name)).await?;
        let row = the_row(&reply)?;
        let format: i64 = row.try_get("format").map_err(unreadable)?;
        refuse_errors(&[judge::format(format)])?;
        let identity = text(row, "identity").map_err(unreadable)?;
        let cluster = text(row, "cluster").map_err(unreadable)?;
        let damaged =
            |what: &str| ResourceError::Unfit(format!("lockstep_identity holds an unreadable {what}"));
        let cluster: Option<ClusterId> = match cluster.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_malformed| damaged("cluster"))?),
        };
        let seen = positions(lease, schema, name, cluster).await?;
        Ok(Self { identity: identity.parse().map_err(|_malformed| damaged("identity"))?, cluster, seen })
    }
}

/// The newest position of each epoch. The index of the evidence has each epoch's newest one beside the next lower epoch's.
async fn positions(
    lease: &mut Lease,
    schema: &Schema,
    name: &ResourceManagerName,
    cluster: Option<ClusterId>,
) -> Result<Positions, ResourceError> {
    let kept = ask(lease, schema.kept_positions(name)).await?;
    let mut positions = kept.rows.iter().map(position).collect::<Result<Positions, _>>()?;
    let Some(cluster) = cluster else { return Ok(positions) };
    let mut below = None;
    loop {
        let reply = ask(lease, schema.newest_position(name, cluster, below)).await?;
        let Some(row) = reply.rows.first() else { return Ok(positions) };
        let newest = position(row)?;
        below = Some(newest.epoch);
        positions.see(newest);
    }
}

fn position(row: &MySqlRow) -> Result<LogPosition, ResourceError> {
    evidence::position(row).map_err(|Unresolved(why)| ResourceError::Unfit(why))
}

async fn ask(lease: &mut Lease, sql: SqlStr) -> Result<Reply, ResourceError> {
    lease.run(sql, OWN_ANSWER_TIMEOUT).await.map_err(unavailable)
}

fn the_row(reply: &Reply) -> Result<&MySqlRow, ResourceError> {
    reply
        .rows
        .first()
        .ok_or_else(|| ResourceError::Unavailable("the database answered with no row".to_owned()))
}

fn unavailable(failure: Failure) -> ResourceError {
    ResourceError::Unavailable(match failure {
        Failure::Refused(error) => format!("the database: {} ({})", error.message(), error.number()),
        Failure::Lost(why) => why,
    })
}

fn unreadable(error: sqlx::Error) -> ResourceError {
    ResourceError::Unavailable(format!("the database answered something unreadable: {error}"))
}
