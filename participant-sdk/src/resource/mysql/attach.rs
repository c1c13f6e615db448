//! Whether a server is fit to take part, what it is, and the tables that are kept in it.
//!
//! Settings that could lose or tear a branch are refused by name, with the statement that mends them (P22).
//! Nothing is changed in the server but our own two tables.

use std::collections::BTreeMap;

use fail::fail_point;
use lockstep_proto::{ClusterId, LogPosition, ResourceManagerId, ResourceManagerName};
use sqlx::mysql::MySqlRow;
use sqlx::{MySqlPool, Row as _, SqlSafeStr as _, SqlStr};

use super::connection::{Failure, Lease, OWN_ANSWER_TIMEOUT, Reply, text};
use super::evidence;
use super::refusal::{ACCESS_DENIED, NO_SUCH_TABLE, RECOVER_DENIED};
use super::server::Server;
use super::sql::{self, Schema};
use crate::resource::{Attachment, ResourceError, Unresolved};

/// What attaching found out.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) attachment: Attachment,
    /// Where our tables are.
    pub(super) schema: Schema,
}

pub(super) async fn attach(own: &MySqlPool, name: &ResourceManagerName) -> Result<Found, ResourceError> {
    let mut lease = Lease::acquire(own, OWN_ANSWER_TIMEOUT).await.map_err(ResourceError::Unavailable)?;
    let reply = ask(&mut lease, sql::SETTINGS.into_sql_str()).await?;
    let server = Server::of(reply.shown().collect::<BTreeMap<_, _>>());
    server.check()?;
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
struct Place {
    /// Quoted.
    user: String,
    schema: Schema,
}

impl Place {
    async fn read(lease: &mut Lease) -> Result<Self, ResourceError> {
        let reply = ask(lease, sql::PLACE.into_sql_str()).await?;
        let row = the_row(&reply)?;
        let name: Option<&[u8]> = row.try_get_unchecked("place").map_err(unreadable)?;
        if name.is_none() {
            return Err(ResourceError::Unfit(
                "the pool's connections are in no database, so there is no place for the tables of Lockstep: name it in \
                 the pool's URL or options"
                    .to_owned(),
            ));
        }
        let user = text(row, "user").map_err(unreadable)?;
        let (name, host) = user.rsplit_once('@').unwrap_or((&user, "%"));
        Ok(Self {
            user: format!("'{}'@'{}'", name.replace('\'', "''"), host.replace('\'', "''")),
            schema: Schema::new(&text(row, "place").map_err(unreadable)?),
        })
    }

    /// The tables are missing or closed to the user, and what somebody who may has to run.
    fn tables_forbidden(&self, why: &str) -> ResourceError {
        let [evidence, identity] = self.schema.create_tables();
        ResourceError::Unfit(format!(
            "{user} {why}. As a user that may, run:\n{};\n{};\n{}",
            evidence.as_str(),
            identity.as_str(),
            self.schema.grants(&self.user),
            user = self.user,
        ))
    }
}

/// Branches that can't be listed can't be recovered.
async fn check_recover(lease: &mut Lease, place: &Place) -> Result<(), ResourceError> {
    match lease.run(sql::RECOVER.into_sql_str(), OWN_ANSWER_TIMEOUT).await {
        Ok(_) => Ok(()),
        Err(Failure::Refused(error))
            if error.number() == RECOVER_DENIED || ACCESS_DENIED.contains(&error.number()) =>
        {
            let user = &place.user;
            Err(ResourceError::Unfit(format!(
                "{user} may not list prepared branches ({}). Mend it with: GRANT XA_RECOVER_ADMIN ON *.* TO {user}",
                error.message()
            )))
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
                    return Err(place.tables_forbidden("may not create the tables of Lockstep"));
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
            Err(place.tables_forbidden("may not use the tables of Lockstep"))
        }
        Err(failure) => Err(unavailable(failure)),
    }
}

/// Evidence in a table that is not rolled back with its branch would be a lie.
async fn check_engines(lease: &mut Lease) -> Result<(), ResourceError> {
    let reply = ask(lease, Schema::engines().into_sql_str()).await?;
    for row in &reply.rows {
        let engine = text(row, "engine").map_err(unreadable)?;
        if engine != "InnoDB" {
            return Err(ResourceError::Unfit(format!(
                "the tables of Lockstep have the engine {engine}. Mend it with: ALTER TABLE lockstep_evidence ENGINE = \
                 InnoDB; ALTER TABLE lockstep_identity ENGINE = InnoDB"
            )));
        }
    }
    Ok(())
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
    seen: Option<LogPosition>,
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
        if format != sql::FORMAT {
            return Err(ResourceError::Unfit(format!(
                "the tables of Lockstep in this database have format {format}, and this version of Lockstep knows {}: \
                 use a newer one",
                sql::FORMAT
            )));
        }
        let identity = text(row, "identity").map_err(unreadable)?;
        let cluster = text(row, "cluster").map_err(unreadable)?;
        let damaged =
            |what: &str| ResourceError::Unfit(format!("lockstep_identity holds an unreadable {what}"));
        let cluster: Option<ClusterId> = match cluster.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_malformed| damaged("cluster"))?),
        };
        let pruned = position(row)?;
        let in_evidence = match cluster {
            Some(cluster) => {
                let reply = ask(lease, schema.newest_position(name, cluster)).await?;
                reply.rows.first().map(position).transpose()?.flatten()
            }
            None => None,
        };
        let seen = pruned.into_iter().chain(in_evidence).max_by_key(|seen| (seen.epoch, seen.sequence));
        Ok(Self { identity: identity.parse().map_err(|_malformed| damaged("identity"))?, cluster, seen })
    }
}

fn position(row: &MySqlRow) -> Result<Option<LogPosition>, ResourceError> {
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
