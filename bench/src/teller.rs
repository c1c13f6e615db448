//! A teller: a service with accounts in a database of its own. Lockstep drives it as a participant, and the same process, over the same
//! kind of calls, can be driven by hand: that is what Lockstep is compared with.

use std::collections::HashMap;
use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;

use lockstep::{Context, JoinError, Participant, Postgres};
use lockstep_tests::harness::{Failed, Result};
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::generated::teller::teller_server::{Teller, TellerServer};
use crate::generated::teller::{Change, Done, Name};
use crate::peer;

/// What moves money, wherever it runs.
pub const UPDATE: &str = "UPDATE accounts SET balance = balance + $2 WHERE number = $1";
/// PostgreSQL's code for a prepared transaction that is not there.
const UNDEFINED_OBJECT: &str = "42704";
/// The line that a teller prints when it can be called.
pub const SERVES: &str = "the teller serves";

/// The command line of a teller's process.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The resource manager's name
    #[arg(long)]
    name: String,
    /// Where its accounts are
    #[arg(long)]
    database: String,
    /// Where the coordinator is
    #[arg(long)]
    coordinator: String,
    /// Where it is called
    #[arg(long)]
    port: u16,
    /// Connections to the database: each open branch has one
    #[arg(long)]
    connections: u32,
}

struct Service {
    participant: Participant<Postgres>,
    pool: PgPool,
    /// Local transactions that are driven by hand and not prepared yet.
    open: Mutex<HashMap<String, PoolConnection<sqlx::Postgres>>>,
}

#[tonic::async_trait]
impl Teller for Service {
    async fn apply(&self, request: Request<Change>) -> Result<Response<Done>, Status> {
        let context = Context::from_request(&request)?;
        let mut branch = self.participant.join(&context).await.map_err(not_joined)?;
        let changed = apply(&mut branch, request.get_ref()).await;
        changed.map_err(|error| refused(branch.explain(&error)))?;
        branch.finish().await.map_err(refused)?;
        Ok(Response::new(Done {}))
    }

    async fn work(&self, request: Request<Change>) -> Result<Response<Done>, Status> {
        let request = request.into_inner();
        let mut connection = self.pool.acquire().await.map_err(refused)?;
        sqlx::raw_sql("BEGIN").execute(&mut *connection).await.map_err(refused)?;
        apply(&mut connection, &request).await.map_err(refused)?;
        self.open.lock().expect("nobody panics with it").insert(request.name, connection);
        Ok(Response::new(Done {}))
    }

    async fn prepare(&self, request: Request<Name>) -> Result<Response<Done>, Status> {
        let Name { name } = request.into_inner();
        let open = self.open.lock().expect("nobody panics with it").remove(&name);
        let mut connection = open.ok_or_else(|| refused("no such transaction"))?;
        end(&mut connection, "PREPARE TRANSACTION", &name).await.map_err(refused)?;
        Ok(Response::new(Done {}))
    }

    async fn phase_one(&self, request: Request<Change>) -> Result<Response<Done>, Status> {
        let mut connection = self.pool.acquire().await.map_err(refused)?;
        let prepared = prepare_at_once(&mut connection, request.get_ref()).await;
        if let Err(why) = prepared {
            // The database rolls back what is open when the connection goes.
            connection.close_on_drop();
            return Err(refused(why));
        }
        Ok(Response::new(Done {}))
    }

    async fn xa_commit(&self, request: Request<Done>) -> Result<Response<Done>, Status> {
        self.end_for_dtmrs(&request, "COMMIT PREPARED").await
    }

    async fn xa_rollback(&self, request: Request<Done>) -> Result<Response<Done>, Status> {
        self.end_for_dtmrs(&request, "ROLLBACK PREPARED").await
    }

    async fn commit(&self, request: Request<Name>) -> Result<Response<Done>, Status> {
        let mut connection = self.pool.acquire().await.map_err(refused)?;
        end(&mut connection, "COMMIT PREPARED", &request.get_ref().name).await.map_err(refused)?;
        Ok(Response::new(Done {}))
    }
}

impl Service {
    async fn end_for_dtmrs(&self, request: &Request<Done>, how: &str) -> Result<Response<Done>, Status> {
        let name = peer::name_of_branch(request.metadata()).ok_or_else(|| refused("no branch is named"))?;
        let mut connection = self.pool.acquire().await.map_err(not_now)?;
        match end(&mut connection, how, &name).await {
            Err(why) if !is_over(&why) => Err(not_now(why)),
            Ok(()) | Err(_) => Ok(Response::new(Done {})),
        }
    }
}

/// dtmrs calls again if it could not store that a branch has ended: then its name is unknown, and that is success.
fn is_over(why: &sqlx::Error) -> bool {
    why.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == UNDEFINED_OBJECT)
}

async fn prepare_at_once(connection: &mut PgConnection, wanted: &Change) -> sqlx::Result<()> {
    sqlx::raw_sql("BEGIN").execute(&mut *connection).await?;
    apply(connection, wanted).await?;
    end(connection, "PREPARE TRANSACTION", &wanted.name).await
}

async fn apply(connection: &mut PgConnection, wanted: &Change) -> sqlx::Result<()> {
    change(connection, wanted.account, wanted.amount).await
}

/// Moves money on one account.
///
/// # Errors
/// If there is no such account, or no answer.
pub async fn change(connection: &mut PgConnection, account: i64, amount: i64) -> sqlx::Result<()> {
    let done = sqlx::query(UPDATE).bind(account).bind(amount).execute(connection).await?;
    if done.rows_affected() == 1 { Ok(()) } else { Err(sqlx::Error::RowNotFound) }
}

/// `PREPARE TRANSACTION`, `COMMIT PREPARED` or `ROLLBACK PREPARED`. A name can't be bound; ours have no quotes in them.
pub async fn end(connection: &mut PgConnection, how: &str, name: &str) -> sqlx::Result<()> {
    assert!(!name.contains('\''), "a name that was made here has no quotes");
    sqlx::raw_sql(AssertSqlSafe(format!("{how} '{name}'"))).execute(connection).await.map(drop)
}

/// A pool that doesn't ask its connections whether they live each time it lends one: a round trip less for every contender.
pub fn pool(connections: u32) -> PgPoolOptions {
    PgPoolOptions::new().max_connections(connections).test_before_acquire(false)
}

/// A database with no room for another branch says so, and a client may come again.
fn not_joined(why: JoinError) -> Status {
    if let JoinError::NoRoom { .. } = why {
        Status::resource_exhausted(why.to_string())
    } else {
        refused(why)
    }
}

/// What dtmrs tries again. It takes "aborted" for a refusal.
fn not_now(why: impl Display) -> Status {
    Status::unavailable(why.to_string())
}

fn refused(why: impl Display) -> Status {
    Status::aborted(why.to_string())
}

/// A teller's process.
///
/// # Errors
/// If it can't take part, or can't listen.
pub fn run(arguments: &Arguments) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().map_err(Failed::because("no runtime"))?;
    runtime.block_on(async {
        let Arguments { name, database, coordinator, port, connections } = arguments;
        let pool = pool(*connections);
        let pool = pool.connect(database).await.map_err(Failed::because(database.as_str()))?;
        let attaching = Participant::builder(name, Postgres::new(pool.clone())).coordinator(coordinator);
        let participant = attaching.attach().await.map_err(Failed::because("not attached"))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
        let listener = TcpListener::bind(address).await.map_err(Failed::because("cannot listen"))?;
        println!("{SERVES}");
        let service = Service { participant, pool, open: Mutex::default() };
        let server = Server::builder().add_service(TellerServer::new(service));
        // Otherwise an answer waits up to 40 ms for the acknowledgement of its first packet.
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        server.serve_with_incoming(incoming).await.map_err(Failed::because("the teller ended"))
    })
}
