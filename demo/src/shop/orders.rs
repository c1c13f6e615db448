//! Orders: who has bought what. A service over HTTP with a database of its own, as one would write it anyway.
//!
//! What Lockstep needs are the lines that end in `// lockstep`:
//! 1. At its start the service attaches its database under a name, and detaches it at its end.
//! 2. A handler takes the [`Context`] from its request: a header says which transaction it is in.
//! 3. `join` begins the database's part of it: an ordinary connection, for ordinary SQL.
//! 4. `finish` says that the part is done. There is no commit: the caller commits, in all databases at once. An error on the way
//!    drops the branch, and all of the transaction is rolled back.

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use lockstep::{Context, Participant}; // lockstep

use super::{Connection, Database, Pool, open};
use crate::shop::http::{PATIENCE, Refused, listen};
use crate::shop::{Failure, Order, Settings};

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS customers (name TEXT PRIMARY KEY, orders BIGINT NOT NULL);
    CREATE TABLE IF NOT EXISTS orders (
        id TEXT PRIMARY KEY, customer TEXT NOT NULL, item TEXT NOT NULL, quantity BIGINT NOT NULL, amount BIGINT NOT NULL
    )";

#[derive(Clone)]
struct Orders {
    participant: Participant<Database>, // lockstep
    pool: Pool,
}

/// `POST /orders`: writes an order down, in its caller's transaction.
async fn place(
    State(orders): State<Orders>,
    context: Context, // lockstep
    Json(order): Json<Order>,
) -> Result<(), Refused> {
    let mut branch = orders.participant.join(&context).await?; // lockstep
    write_down(&mut branch, &order).await?;
    branch.finish().await?; // lockstep
    Ok(())
}

/// `POST /naive/orders`: the same without Lockstep, in a transaction of its own.
async fn place_alone(State(orders): State<Orders>, Json(order): Json<Order>) -> Result<(), Refused> {
    let mut local = orders.pool.begin().await?;
    write_down(&mut local, &order).await?;
    local.commit().await?;
    Ok(())
}

async fn write_down(database: &mut Connection, order: &Order) -> Result<(), Refused> {
    sqlx::query(
        "INSERT INTO customers (name, orders) VALUES ($1, 1)
         ON CONFLICT (name) DO UPDATE SET orders = customers.orders + 1",
    )
    .bind(&order.customer)
    .execute(&mut *database)
    .await?;
    sqlx::query("INSERT INTO orders (id, customer, item, quantity, amount) VALUES ($1, $2, $3, $4, $5)")
        .bind(&order.id)
        .bind(&order.customer)
        .bind(&order.item)
        .bind(order.quantity)
        .bind(order.amount)
        .execute(&mut *database)
        .await?;
    Ok(())
}

/// Runs the service until SIGTERM.
pub(crate) async fn serve(settings: Settings) -> Result<(), Failure> {
    let pool = open(&settings)?;
    let database = Database::new(pool.clone()); // lockstep
    let attaching = Participant::builder("orders-db", database).coordinators(&settings.coordinators); // lockstep
    let participant = attaching.attach().await?; // lockstep
    sqlx::raw_sql(TABLES).execute(&pool).await?;

    let orders = Orders { participant: participant.clone(), pool }; // lockstep
    let service = Router::new().route("/orders", post(place)).route("/naive/orders", post(place_alone));
    let attached = participant.clone(); // lockstep
    listen(settings.listen, service.with_state(orders), move || attached.is_attached()).await?; // lockstep
    participant.detach(PATIENCE).await; // lockstep
    Ok(())
}
