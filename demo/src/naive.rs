//! The same without Lockstep, for comparison: two plain commits, one in each bank.
//!
//! It is not done carelessly: money is taken before it is put anywhere, so that a bank that declines does no harm. It
//! goes right as long as nothing happens between the two commits.

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use sqlx::SqlitePool;

use crate::application::{Application, CallError};
use crate::bank::{self, Movement, Refusal, put, take};
use crate::ledger::{Operation, Told, Transfer};
use crate::role::Role;

/// One transfer. Compare [`Application::in_one_transaction`].
pub(crate) async fn two_plain_commits(application: &Application<'_>, transfer: &Transfer) -> Told {
    let mut legs = transfer.legs();
    legs.sort_by_key(|leg| leg.operation != Operation::Withdraw);
    let [first, second] = legs;
    application.ledger.begun(transfer.number);
    let work = async {
        application.call(&first, None).await?;
        // The first bank has committed and is not needed any more. Nor is the coordinator, ever: it is killed all the
        // same, so that this run goes through what the other one goes through.
        application.between_calls(transfer, &[Role::Coordinator, second.bank]).await;
        application.call(&second, None).await
    };
    match work.await {
        Ok(()) => Told::Committed,
        Err(CallError::Declined(_)) => Told::Declined,
        Err(CallError::Failed(_)) => Told::RolledBack,
    }
}

/// Runs a bank until SIGTERM. Compare [`bank::serve`], and the handlers below it.
pub(crate) async fn serve(args: bank::Args) -> Result<(), Box<dyn std::error::Error>> {
    let pool = bank::open(&args.database()).await?;
    let mut first = pool.begin().await?;
    bank::make_accounts(&mut first).await?;
    first.commit().await?;
    let app = Router::new().route("/withdraw", post(withdraw)).route("/deposit", post(deposit));
    bank::listen(args.listen, app.with_state(pool.clone())).await?;
    pool.close().await;
    Ok(())
}

async fn withdraw(State(pool): State<SqlitePool>, Json(movement): Json<Movement>) -> Result<(), Refusal> {
    let mut tx = pool.begin().await?;
    take(&mut tx, &movement).await?;
    Ok(tx.commit().await?)
}

async fn deposit(State(pool): State<SqlitePool>, Json(movement): Json<Movement>) -> Result<(), Refusal> {
    let mut tx = pool.begin().await?;
    put(&mut tx, &movement).await?;
    Ok(tx.commit().await?)
}
