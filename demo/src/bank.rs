//! A bank: an HTTP service with a SQLite file of its own. What it does for a transfer and what the other bank does
//! for it are one transaction: both are done, or neither is, whatever crashes.
//!
//! What it needs of Lockstep for that is this, and nothing else:
//! 1. At the start, [`serve`] attaches the database under a name.
//! 2. A handler takes the [`Context`] from its request: the header `lockstep-context` says which transaction it is in.
//! 3. `bank.join(&context)` begins the bank's part of it. It is an ordinary connection, for ordinary SQL.
//! 4. `branch.finish()` says that the part is done. There is no commit here: the application commits, in all banks at
//!    once. An error on the way drops the branch, and with it the whole transaction is rolled back, in all banks.

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use lockstep::{Context, Participant, Sqlite};
use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::naive;

/// Accounts of each bank, numbered from 0.
pub(crate) const ACCOUNTS: i64 = 20;
/// What is on each of them before the first transfer.
pub(crate) const OPENING_BALANCE: i64 = 1_000;

/// How long the bank waits for others to let go of its file.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a bank is told when it starts.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    name: String,
    pub(crate) listen: SocketAddr,
    /// The coordinator's URL.
    coordinator: String,
    #[arg(long)]
    naive: bool,
}

impl Args {
    /// The SQLite file.
    pub(crate) fn database(&self) -> String {
        format!("{}.db", self.name)
    }
}

/// The body of `POST /withdraw` and `POST /deposit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Movement {
    pub(crate) transfer: u32,
    pub(crate) account: i64,
    /// Above zero.
    pub(crate) amount: i64,
}

/// Runs a bank until SIGTERM.
pub(crate) async fn serve(args: Args) -> Result<(), Box<dyn std::error::Error>> {
    if args.naive {
        return naive::serve(args).await;
    }
    let database = Sqlite::new(open(&args.database()).await?);
    let bank =
        Participant::builder(&args.name, database.clone()).coordinator(&args.coordinator).attach().await?;

    // Attach first, write later: a branch that an earlier life of this process left in doubt has the file to itself
    // until it is decided. A local write waits for its turn among the branches.
    let mut first = database.local_write(PATIENCE).await?;
    make_accounts(&mut first).await?;
    first.commit().await?;

    listen(args.listen, router(bank.clone())).await?;
    bank.detach(PATIENCE).await;
    Ok(())
}

fn router(bank: Participant<Sqlite>) -> Router {
    Router::new().route("/withdraw", post(withdraw)).route("/deposit", post(deposit)).with_state(bank)
}

async fn withdraw(
    State(bank): State<Participant<Sqlite>>,
    context: Context,
    Json(movement): Json<Movement>,
) -> Result<(), Refusal> {
    let mut branch = bank.join(&context).await.map_err(Refusal::unavailable)?;
    take(&mut branch, &movement).await?;
    branch.finish().await.map_err(Refusal::unavailable)
}

async fn deposit(
    State(bank): State<Participant<Sqlite>>,
    context: Context,
    Json(movement): Json<Movement>,
) -> Result<(), Refusal> {
    let mut branch = bank.join(&context).await.map_err(Refusal::unavailable)?;
    put(&mut branch, &movement).await?;
    branch.finish().await.map_err(Refusal::unavailable)
}

// From here on: the bank's own business, with or without Lockstep.

/// Takes money from an account, if there is enough on it.
pub(crate) async fn take(db: &mut SqliteConnection, movement: &Movement) -> Result<(), Refusal> {
    change(db, movement, -movement.amount).await
}

/// Puts money on an account.
pub(crate) async fn put(db: &mut SqliteConnection, movement: &Movement) -> Result<(), Refusal> {
    change(db, movement, movement.amount).await
}

/// Two changes that belong together: the balance, and the entry that says which transfer it came from.
async fn change(db: &mut SqliteConnection, movement: &Movement, amount: i64) -> Result<(), Refusal> {
    let changed =
        sqlx::query("UPDATE accounts SET balance = balance + ?1 WHERE number = ?2 AND balance + ?1 >= 0")
            .bind(amount)
            .bind(movement.account)
            .execute(&mut *db)
            .await?;
    if changed.rows_affected() == 0 {
        return Err(Refusal::Declined(format!("no {} on account {}", movement.amount, movement.account)));
    }
    sqlx::query("INSERT INTO entries (transfer, account, amount) VALUES (?1, ?2, ?3)")
        .bind(movement.transfer)
        .bind(movement.account)
        .bind(amount)
        .execute(&mut *db)
        .await?;
    Ok(())
}

/// Opens a bank's database.
pub(crate) async fn open(file: &str) -> Result<SqlitePool, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    // SQLite has one writer at a time: for one connection they queue, instead of trying again and again for a lock.
    SqlitePoolOptions::new().max_connections(1).connect_with(options).await
}

/// Makes the bank's accounts, the first time.
pub(crate) async fn make_accounts(db: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(
        "CREATE TABLE IF NOT EXISTS accounts (
             number INTEGER PRIMARY KEY, balance INTEGER NOT NULL CHECK (balance >= 0)
         ) STRICT;
         CREATE TABLE IF NOT EXISTS entries (
             transfer INTEGER PRIMARY KEY, account INTEGER NOT NULL, amount INTEGER NOT NULL
         ) STRICT;",
    )
    .execute(&mut *db)
    .await?;
    for number in 0..ACCOUNTS {
        sqlx::query("INSERT INTO accounts (number, balance) VALUES (?1, ?2) ON CONFLICT DO NOTHING")
            .bind(number)
            .bind(OPENING_BALANCE)
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}

/// Answers requests until SIGTERM, and finishes those that it has begun to answer.
pub(crate) async fn listen(address: SocketAddr, app: Router) -> std::io::Result<()> {
    let app = app.route("/health", get(async || "open"));
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move {
        terminate.recv().await;
    };
    axum::serve(TcpListener::bind(address).await?, app).with_graceful_shutdown(stop).await
}

/// Why a bank did not do what it was asked for. Nothing of it is done then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// The bank's own no: it would say it again.
    #[error("declined: {0}")]
    Declined(String),
    /// It could not be done now.
    #[error("{0}")]
    Unavailable(String),
}

impl Refusal {
    pub(crate) fn unavailable(cause: impl std::fmt::Display) -> Self {
        Self::Unavailable(cause.to_string())
    }
}

impl From<sqlx::Error> for Refusal {
    fn from(error: sqlx::Error) -> Self {
        Self::unavailable(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Declined(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, self.to_string()).into_response()
    }
}
