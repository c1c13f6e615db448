//! Payments: who has paid how much for which order. What Lockstep needs is marked, and explained in `orders.rs`.

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use lockstep::{Context, Participant}; // lockstep

use super::{Connection, Database, Pool, open};
use crate::shop::http::{PATIENCE, Refused, listen};
use crate::shop::{Failure, Order, Settings};

/// A second payment for an order is no error of the table: the checker has to find it.
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS payments (order_id VARCHAR(64) NOT NULL, customer VARCHAR(64) NOT NULL, amount BIGINT NOT NULL)";

/// What no card pays at once.
const LIMIT: i64 = 500;

#[derive(Clone)]
struct Payments {
    participant: Participant<Database>, // lockstep
    pool: Pool,
}

/// `POST /payments`: takes the money for an order, in its caller's transaction.
async fn charge(
    State(payments): State<Payments>,
    context: Context, // lockstep
    Json(order): Json<Order>,
) -> Result<(), Refused> {
    let mut branch = payments.participant.join(&context).await?; // lockstep
    take(&mut branch, &order).await?;
    branch.finish().await?; // lockstep
    Ok(())
}

/// `POST /naive/payments`: the same without Lockstep, in a transaction of its own.
async fn charge_alone(State(payments): State<Payments>, Json(order): Json<Order>) -> Result<(), Refused> {
    let mut local = payments.pool.begin().await?;
    take(&mut local, &order).await?;
    local.commit().await?;
    Ok(())
}

async fn take(database: &mut Connection, order: &Order) -> Result<(), Refused> {
    if order.amount > LIMIT {
        return Err(Refused::Declined(format!("{} is above the limit of the card, {LIMIT}", order.amount)));
    }
    sqlx::query("INSERT INTO payments (order_id, customer, amount) VALUES (?, ?, ?)")
        .bind(&order.id)
        .bind(&order.customer)
        .bind(order.amount)
        .execute(database)
        .await?;
    Ok(())
}

/// Runs the service until SIGTERM.
pub(crate) async fn serve(settings: Settings) -> Result<(), Failure> {
    let pool = open(&settings)?;
    let database = Database::new(pool.clone()); // lockstep
    let attaching = Participant::builder("payments-db", database).coordinators(&settings.coordinators); // lockstep
    let participant = attaching.attach().await?; // lockstep
    sqlx::raw_sql(TABLES).execute(&pool).await?;

    let payments = Payments { participant: participant.clone(), pool }; // lockstep
    let service = Router::new().route("/payments", post(charge)).route("/naive/payments", post(charge_alone));
    let attached = participant.clone(); // lockstep
    listen(settings.listen, service.with_state(payments), move || attached.is_attached()).await?; // lockstep
    participant.detach(PATIENCE).await; // lockstep
    Ok(())
}
