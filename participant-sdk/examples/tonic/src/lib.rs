//! A stock over gRPC: it reserves in its caller's transaction, which travels in the metadata of the call.
//!
//! `cargo run -p lockstep-example-tonic` reserves a chair and a table, both or neither, with a `lockstep serve` running beside
//! it: the first time they are there, the second time the table is missing, and the chair stays.

use std::fmt::Display;

use lockstep::{Client, Context, Participant, Sqlite};
use sqlx::SqlitePool;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

/// Generated from `proto/stock.proto`.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    unreachable_pub,
    reason = "generated"
)]
pub mod v1 {
    tonic::include_proto!("stock.v1");
}

use v1::stock_client::StockClient;
use v1::stock_server::{Stock, StockServer};
use v1::{ReserveRequest, ReserveResponse};

/// The service, and its database.
#[derive(Debug)]
struct Service {
    stock: Participant<Sqlite>,
}

#[tonic::async_trait]
impl Stock for Service {
    async fn reserve(&self, request: Request<ReserveRequest>) -> Result<Response<ReserveResponse>, Status> {
        let context = Context::from_request(&request)?;
        let mut branch = self.stock.join(&context).await.map_err(refused)?;
        let sql = "UPDATE items SET free = free - 1 WHERE name = $1 AND free > 0 RETURNING free";
        let taken = sqlx::query_scalar(sql).bind(&request.get_ref().item).fetch_optional(&mut *branch).await;
        // An early return drops the branch, and with it the transaction is rolled back.
        let Some(free) = taken.map_err(refused)? else { return Err(refused("none is left")) };
        branch.finish().await.map_err(refused)?;
        Ok(Response::new(ReserveResponse { free }))
    }
}

fn refused(why: impl Display) -> Status {
    Status::aborted(why.to_string())
}

/// Serves a stock, and says where.
///
/// # Errors
/// If its database cannot take part, or it cannot listen.
pub async fn serve(pool: SqlitePool, coordinator: &str) -> Result<String, Box<dyn std::error::Error>> {
    let attaching = Participant::builder("example-grpc-stock", Sqlite::new(pool)).coordinator(coordinator);
    let service = Service { stock: attaching.attach().await? };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let server = Server::builder().add_service(StockServer::new(service));
    // Without this an answer may wait 40 ms for the acknowledgement of its first packet.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(server.serve_with_incoming(incoming));
    Ok(url)
}

/// Reserves a chair and a table, or neither.
///
/// # Errors
/// Why nothing was reserved.
pub async fn reserve_both(
    client: &Client,
    stock: &StockClient<Channel>,
) -> Result<(), Box<dyn std::error::Error>> {
    client
        .transaction("furnish", async |tx| {
            // The table is the last call to this service in the transaction: with it the branch votes.
            for (item, context) in [("chair", tx.context()), ("table", tx.vote())] {
                let mut request = Request::new(ReserveRequest { item: item.to_owned() });
                context.inject_metadata(request.metadata_mut());
                stock.clone().reserve(request).await?;
            }
            Ok::<_, Status>(())
        })
        .await?;
    Ok(())
}

/// The service with a new database of two chairs and one table, and two attempts to have one of each. What came of the second,
/// and what is free then.
///
/// # Errors
/// If the service cannot be started, or the first attempt fails.
pub async fn run(coordinator: &str) -> Result<(String, Vec<(String, i64)>), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("stock.db");
    let pool = SqlitePool::connect(&format!("sqlite:{}?mode=rwc", file.display())).await?;
    let schema = "CREATE TABLE items (name TEXT PRIMARY KEY, free INTEGER NOT NULL); \
                  INSERT INTO items VALUES ('chair', 2), ('table', 1)";
    sqlx::raw_sql(schema).execute(&pool).await?;
    let url = serve(pool.clone(), coordinator).await?;
    let client = Client::connect(coordinator).await?;
    let stock = StockClient::new(Endpoint::from_shared(url)?.connect().await?);

    reserve_both(&client, &stock).await?;
    let second = match reserve_both(&client, &stock).await {
        Ok(()) => "reserved".to_owned(),
        Err(error) => error.to_string(),
    };
    Ok((second, sqlx::query_as("SELECT name, free FROM items ORDER BY name").fetch_all(&pool).await?))
}
