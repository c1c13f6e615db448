//! A bank: a service with accounts in a database of its own, that takes part in its callers' transactions.
//!
//! It is what a user of the SDK writes: an HTTP handler that joins the caller's transaction, runs its own SQL, and answers.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use lockstep::resource::Resource;
use lockstep::{Context, Participant, Postgres, Sqlite};
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgConnection, PgPoolOptions};
use sqlx::sqlite::{SqliteConnection, SqlitePoolOptions};
use tokio::net::TcpListener;

use super::books::Books;
use super::crash_points::Fuse;
use super::ports::Port;
use super::process::Process;
use super::roles::Roles;
use super::{Failed, Result};

/// Connections of a bank to its database: open branches have one each.
const CONNECTIONS: u32 = 6;

/// The command line of a bank's process.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The resource manager's name
    #[arg(long)]
    name: String,
    /// Where its accounts are
    #[arg(long)]
    database: String,
    /// Where the coordinators are, with commas between them
    #[arg(long)]
    coordinator: String,
    /// Where it is called
    #[arg(long)]
    port: u16,
}

/// What a bank is asked to do inside the caller's transaction.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Apply {
    /// Which account.
    pub account: i64,
    /// What is added to it.
    pub amount: i64,
    /// Whether the branch is to vote rollback when it is to be prepared: a constraint of the bank's own is then violated.
    pub refuse: bool,
}

/// Where a bank is asked.
pub const APPLY: &str = "/apply";

/// A bank's process. Its port and its database stay the same over restarts.
#[derive(Debug)]
pub struct Bank {
    roles: Roles,
    /// Its database.
    pub books: Books,
    coordinator: String,
    port: Port,
    log: std::path::PathBuf,
    process: Process,
}

impl Bank {
    /// Starts a bank over these books, attached to this coordinator or to these, with commas between them. Does not wait for it: it listens once it has attached.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start(
        roles: &Roles,
        directory: &Path,
        books: Books,
        coordinator: &str,
        fuse: Option<&Fuse>,
    ) -> Result<Self> {
        let port = Port::reserve()?;
        let log = directory.join(format!("{}.log", books.bank));
        let process = launch(roles, &books, coordinator, &port, &log, fuse)?;
        Ok(Self { roles: roles.clone(), books, coordinator: coordinator.to_owned(), port, log, process })
    }

    /// Starts it again, after it has died.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start_again(&mut self, fuse: Option<&Fuse>) -> Result<()> {
        self.process = launch(&self.roles, &self.books, &self.coordinator, &self.port, &self.log, fuse)?;
        Ok(())
    }

    /// Where it is called.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.number())
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What it writes, over all its lives.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }
}

fn launch(
    roles: &Roles,
    books: &Books,
    coordinator: &str,
    port: &Port,
    log: &Path,
    fuse: Option<&Fuse>,
) -> Result<Process> {
    let mut command = roles.command("bank");
    command.args(["--name", &books.bank, "--database", &books.url(), "--coordinator", coordinator]);
    command.args(["--port", &port.number().to_string()]);
    if let Some(fuse) = fuse {
        fuse.arm(&mut command);
    }
    Process::start(&books.bank, command, log)
}

/// What a bank does in its database: the same SQL for each.
trait Accounts: Resource {
    fn apply(
        connection: &mut Self::Connection,
        transfer: &str,
        apply: &Apply,
    ) -> impl Future<Output = sqlx::Result<()>> + Send;
}

/// The same body over two types of connection that have no trait in common that would be shorter than this.
macro_rules! accounts {
    ($resource:ty, $connection:ty) => {
        impl Accounts for $resource {
            async fn apply(connection: &mut $connection, transfer: &str, apply: &Apply) -> sqlx::Result<()> {
                let Apply { account, amount, refuse } = apply;
                sqlx::query("INSERT INTO transfers (transfer, account, amount) VALUES ($1, $2, $3)")
                    .bind(transfer)
                    .bind(account)
                    .bind(amount)
                    .execute(&mut *connection)
                    .await?;
                sqlx::query("UPDATE accounts SET balance = balance + $2 WHERE number = $1")
                    .bind(account)
                    .bind(amount)
                    .execute(&mut *connection)
                    .await?;
                if *refuse {
                    sqlx::query("INSERT INTO refusals (reason) VALUES (1)").execute(&mut *connection).await?;
                }
                Ok(())
            }
        }
    };
}

accounts!(Postgres, PgConnection);
accounts!(Sqlite, SqliteConnection);

/// A bank's process.
///
/// # Errors
/// If it can't take part, or can't listen.
pub fn run(arguments: &Arguments) -> Result<()> {
    super::roles::log_to_stderr();
    let runtime = tokio::runtime::Runtime::new().map_err(Failed::because("no runtime"))?;
    runtime.block_on(async {
        let database = &arguments.database;
        let cannot = || Failed::because(format!("no connection to {database}"));
        if database.starts_with("sqlite:") {
            let pool = SqlitePoolOptions::new()
                .max_connections(CONNECTIONS)
                .connect(database)
                .await
                .map_err(cannot())?;
            serve(Sqlite::new(pool), arguments).await
        } else {
            let pool =
                PgPoolOptions::new().max_connections(CONNECTIONS).connect(database).await.map_err(cannot())?;
            serve(Postgres::new(pool), arguments).await
        }
    })
}

async fn serve<R: Accounts>(resource: R, arguments: &Arguments) -> Result<()> {
    let attaching = Participant::builder(&arguments.name, resource)
        .coordinators(arguments.coordinator.split(','))
        .attach();
    let bank = attaching.await.map_err(Failed::because("not attached"))?;
    let router = Router::new().route(APPLY, post(apply::<R>)).with_state(bank);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, arguments.port));
    let listener =
        TcpListener::bind(address).await.map_err(Failed::because(format!("cannot listen on {address}")))?;
    axum::serve(listener, router).await.map_err(Failed::because("the bank ended"))
}

async fn apply<R: Accounts>(
    State(bank): State<Participant<R>>,
    context: Context,
    Json(request): Json<Apply>,
) -> Result<(), (StatusCode, String)> {
    let mut branch = bank.join(&context).await.map_err(refused)?;
    R::apply(&mut branch, &context.gtrid().to_string(), &request).await.map_err(refused)?;
    branch.finish().await.map_err(refused)
}

fn refused(error: impl std::fmt::Display) -> (StatusCode, String) {
    (StatusCode::CONFLICT, error.to_string())
}
