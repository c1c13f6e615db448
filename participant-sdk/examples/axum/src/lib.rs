//! A shop and its stock, two services with a database each, over HTTP.
//!
//! The shop begins a transaction, writes the order into its own database, and has the stock reserve the chair in another one:
//! both happen, or neither. `cargo run -p lockstep-example-axum` orders two chairs of which there is one, with a `lockstep serve`
//! running beside it.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Router, serve};
use lockstep::{AttachError, Client, Context, Participant, Sqlite};
use sqlx::SqlitePool;
use tokio::net::TcpListener;

/// A database that takes part in transactions.
type Database = Participant<Sqlite>;

/// What a handler failed with. Its branch is dropped on the way, and with it the transaction is rolled back.
#[derive(Debug)]
pub struct Refused(String);

impl<E: std::error::Error> From<E> for Refused {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (StatusCode::CONFLICT, self.0).into_response()
    }
}

/// The stock: takes one chair, in its caller's transaction.
async fn reserve(State(stock): State<Database>, context: Context) -> Result<(), Refused> {
    let mut branch = stock.join(&context).await?;
    let sql = sqlx::query("UPDATE items SET free = free - 1 WHERE name = 'chair' AND free > 0");
    if sql.execute(&mut *branch).await?.rows_affected() == 0 {
        return Err(Refused("no chair is left".to_owned()));
    }
    Ok(branch.finish().await?)
}

/// The shop: whoever has its database, a client of the coordinator, and the stock's address.
#[derive(Debug, Clone)]
pub struct Shop {
    orders: Database,
    client: Client,
    http: reqwest::Client,
    stock: String,
}

impl Shop {
    /// Writes an order and has its chair reserved, or neither.
    ///
    /// # Errors
    /// Why nothing was ordered.
    pub async fn order(&self) -> Result<(), Refused> {
        let tx = self.client.begin("order").start().await?;
        let mut branch = self.orders.join(&tx.context()).await?;
        let sql = sqlx::query("INSERT INTO orders (id) VALUES ($1)").bind(tx.gtrid().to_string());
        sql.execute(&mut *branch).await?;
        branch.finish().await?;
        // The last call to the stock: it votes when it has answered, and need not be asked.
        let call = self.http.post(&self.stock).headers(tx.vote().to_headers());
        let answer = call.send().await?;
        if !answer.status().is_success() {
            return Err(Refused(answer.text().await?));
        }
        tx.commit().await?;
        Ok(())
    }
}

async fn order(State(shop): State<Shop>) -> Result<(), Refused> {
    shop.order().await
}

/// The stock's service.
///
/// # Errors
/// If its database cannot take part.
pub async fn stock_service(pool: SqlitePool, coordinator: &str) -> Result<Router, AttachError> {
    let attaching = Participant::builder("example-stock", Sqlite::new(pool)).coordinator(coordinator);
    Ok(Router::new().route("/reserve", post(reserve)).with_state(attaching.attach().await?))
}

/// The shop's service.
///
/// # Errors
/// If its database cannot take part, or the coordinator's address is none.
pub async fn shop_service(pool: SqlitePool, coordinator: &str, stock: String) -> Result<Router, Refused> {
    let attaching = Participant::builder("example-shop", Sqlite::new(pool)).coordinator(coordinator);
    let (orders, client) = (attaching.attach().await?, Client::connect(coordinator).await?);
    let shop = Shop { orders, client, http: reqwest::Client::new(), stock };
    Ok(Router::new().route("/order", post(order)).with_state(shop))
}

/// Both services with new databases, and two orders of a chair of which there is one. What came of each, and what is in the
/// databases then: orders, and chairs that are free.
///
/// # Errors
/// If a service cannot be started.
pub async fn run(coordinator: &str) -> Result<([String; 2], i64, i64), Refused> {
    let directory = tempfile::tempdir()?;
    let open = async |name: &str, schema: &'static str| {
        let file = directory.path().join(name);
        let pool = SqlitePool::connect(&format!("sqlite:{}?mode=rwc", file.display())).await?;
        sqlx::raw_sql(schema).execute(&pool).await?;
        Ok::<_, Refused>(pool)
    };
    let items =
        "CREATE TABLE items (name TEXT PRIMARY KEY, free INTEGER); INSERT INTO items VALUES ('chair', 1)";
    let stock = open("stock.db", items).await?;
    let orders = open("shop.db", "CREATE TABLE orders (id TEXT PRIMARY KEY)").await?;
    let reserve = listen(stock_service(stock.clone(), coordinator).await?, "/reserve").await?;
    let order = listen(shop_service(orders.clone(), coordinator, reserve).await?, "/order").await?;

    let mut answers = [String::new(), String::new()];
    for told in &mut answers {
        let answer = reqwest::Client::new().post(&order).send().await?;
        *told = format!("{} {}", answer.status().as_u16(), answer.text().await?);
    }
    let ordered = sqlx::query_scalar("SELECT count(*) FROM orders").fetch_one(&orders).await?;
    let free = sqlx::query_scalar("SELECT free FROM items").fetch_one(&stock).await?;
    Ok((answers, ordered, free))
}

async fn listen(router: Router, path: &str) -> Result<String, Refused> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}{path}", listener.local_addr()?);
    tokio::spawn(async move { serve(listener, router).await });
    Ok(url)
}
