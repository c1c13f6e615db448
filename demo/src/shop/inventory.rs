//! The inventory: what lies on the shelves, and for which order it was taken. What Lockstep needs is marked, and explained in
//! `orders.rs`.

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use lockstep::{Context, Participant}; // lockstep

use super::{Connection, Database, Pool, open};
use crate::shop::http::{PATIENCE, Refused, listen};
use crate::shop::{Failure, Order, Settings};

/// What was ever received stays as it is. What is on the shelves, and what was sold, have to make that.
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS items (name TEXT PRIMARY KEY, received INTEGER NOT NULL, stock INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS reservations (order_id TEXT NOT NULL, item TEXT NOT NULL, quantity INTEGER NOT NULL)";

const FIRST_DELIVERY: &str = "
    INSERT INTO items VALUES ('chair', 1000000, 1000000), ('table', 1000000, 1000000), ('lamp', 1000000, 1000000)";

#[derive(Clone)]
struct Inventory {
    participant: Participant<Database>, // lockstep
    pool: Pool,
}

/// `POST /reservations`: takes from the shelf what an order needs, in its caller's transaction.
async fn reserve(
    State(inventory): State<Inventory>,
    context: Context, // lockstep
    Json(order): Json<Order>,
) -> Result<(), Refused> {
    let mut branch = inventory.participant.join(&context).await?; // lockstep
    take(&mut branch, &order).await?;
    branch.finish().await?; // lockstep
    Ok(())
}

/// `POST /naive/reservations`: the same without Lockstep, in a transaction of its own.
async fn reserve_alone(State(inventory): State<Inventory>, Json(order): Json<Order>) -> Result<(), Refused> {
    let mut local = inventory.pool.begin().await?;
    take(&mut local, &order).await?;
    local.commit().await?;
    Ok(())
}

async fn take(database: &mut Connection, order: &Order) -> Result<(), Refused> {
    let taken = sqlx::query("UPDATE items SET stock = stock - $1 WHERE name = $2 AND stock >= $1")
        .bind(order.quantity)
        .bind(&order.item)
        .execute(&mut *database)
        .await?;
    if taken.rows_affected() == 0 {
        return Err(Refused::Declined(format!("there are no {} of {}", order.quantity, order.item)));
    }
    sqlx::query("INSERT INTO reservations (order_id, item, quantity) VALUES ($1, $2, $3)")
        .bind(&order.id)
        .bind(&order.item)
        .bind(order.quantity)
        .execute(&mut *database)
        .await?;
    Ok(())
}

/// Runs the service until SIGTERM.
pub(crate) async fn serve(settings: Settings) -> Result<(), Failure> {
    let pool = open(&settings)?;
    let database = Database::new(pool.clone()); // lockstep
    let attaching = Participant::builder("inventory-db", database).coordinators(&settings.coordinators); // lockstep
    let participant = attaching.attach().await?; // lockstep
    sqlx::raw_sql(TABLES).execute(&pool).await?;
    if sqlx::query("SELECT 1 FROM items").fetch_optional(&pool).await?.is_none() {
        sqlx::raw_sql(FIRST_DELIVERY).execute(&pool).await?;
    }

    let inventory = Inventory { participant: participant.clone(), pool }; // lockstep
    let service = Router::new()
        .route("/reservations", post(reserve))
        .route("/naive/reservations", post(reserve_alone))
        .with_state(inventory);
    let attached = participant.clone(); // lockstep
    listen(settings.listen, service, move || attached.is_attached()).await?; // lockstep
    participant.detach(PATIENCE).await; // lockstep
    Ok(())
}
