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
use lockstep::{Context, MySql, Participant, Postgres, Sqlite};
use reservations::{BookError, Desk, Ledger};
use serde::{Deserialize, Serialize};
use sqlx::mysql::{MySqlConnection, MySqlPoolOptions};
use sqlx::postgres::{PgConnection, PgPoolOptions};
use sqlx::sqlite::{SqliteConnection, SqlitePoolOptions};
use tokio::net::TcpListener;

use super::books::Books;
use super::books::ledger::item;
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
    /// A second resource manager of the same process: its name, and where its accounts are
    #[arg(long, num_args = 2)]
    second: Option<Vec<String>>,
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
    /// Whether it only looks at the account.
    pub only_read: bool,
}

/// Where a bank is asked.
pub const APPLY: &str = "/apply";
/// What stands before it for the second database of a bank that has two.
pub const SECOND: &str = "/second";

/// A bank's process. Its port and its database stay the same over restarts.
#[derive(Debug)]
pub struct Bank {
    roles: Roles,
    /// Its database.
    pub books: Books,
    second: Option<Books>,
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
        Self::start_with(roles, directory, books, None, coordinator, fuse)
    }

    /// The same, with a second database in the same process.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start_with(
        roles: &Roles,
        directory: &Path,
        books: Books,
        second: Option<Books>,
        coordinator: &str,
        fuse: Option<&Fuse>,
    ) -> Result<Self> {
        let port = Port::reserve()?;
        let log = directory.join(format!("{}.log", books.bank));
        let process = launch(roles, &books, second.as_ref(), coordinator, &port, &log, fuse)?;
        let (roles, coordinator) = (roles.clone(), coordinator.to_owned());
        Ok(Self { roles, books, second, coordinator, port, log, process })
    }

    /// Starts it again, after it has died.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start_again(&mut self, fuse: Option<&Fuse>) -> Result<()> {
        let second = self.second.as_ref();
        self.process =
            launch(&self.roles, &self.books, second, &self.coordinator, &self.port, &self.log, fuse)?;
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
    second: Option<&Books>,
    coordinator: &str,
    port: &Port,
    log: &Path,
    fuse: Option<&Fuse>,
) -> Result<Process> {
    let mut command = roles.command("bank");
    command.args(["--name", &books.bank, "--database", &books.url(), "--coordinator", coordinator]);
    command.args(["--port", &port.number().to_string()]);
    if let Some(second) = second {
        command.args(["--second", &second.bank, &second.url()]);
    }
    if let Some(fuse) = fuse {
        fuse.arm(&mut command);
    }
    Process::start(&books.bank, command, log)
}

/// What a bank does in its database: the same for each.
trait Accounts: Resource {
    /// How a statement fails.
    type Error: std::error::Error + 'static;

    fn apply(
        connection: &mut Self::Connection,
        transfer: &str,
        apply: &Apply,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// The same body over two types of connection that have no trait in common that would be shorter than this.
macro_rules! accounts {
    ($resource:ty, $connection:ty) => {
        impl Accounts for $resource {
            type Error = sqlx::Error;

            async fn apply(connection: &mut $connection, transfer: &str, apply: &Apply) -> sqlx::Result<()> {
                let Apply { account, amount, refuse, only_read } = apply;
                if *only_read {
                    let query = sqlx::query("SELECT balance FROM accounts WHERE number = $1").bind(account);
                    return query.fetch_one(&mut *connection).await.map(drop);
                }
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
impl Accounts for MySql {
    type Error = sqlx::Error;

    async fn apply(connection: &mut MySqlConnection, transfer: &str, apply: &Apply) -> sqlx::Result<()> {
        let Apply { account, amount, refuse, only_read } = apply;
        if *only_read {
            let query = sqlx::query("SELECT balance FROM accounts WHERE number = ?").bind(account);
            return query.fetch_one(&mut *connection).await.map(drop);
        }
        sqlx::query("INSERT INTO transfers (transfer, account, amount) VALUES (?, ?, ?)")
            .bind(transfer)
            .bind(account)
            .bind(amount)
            .execute(&mut *connection)
            .await?;
        sqlx::query("UPDATE accounts SET balance = balance + ? WHERE number = ?")
            .bind(amount)
            .bind(account)
            .execute(&mut *connection)
            .await?;
        if *refuse {
            // No constraint is looked at when the work is to be made durable, so this fails at once. A service that does not
            // say so has a branch that is turned down.
            let refused =
                sqlx::query("INSERT INTO refusals (reason) VALUES (1)").execute(&mut *connection).await;
            drop(refused);
        }
        Ok(())
    }
}

/// An account is an item: taking money reserves it, and a transfer is the reference. It has nothing that is refused at the end.
impl Accounts for Ledger {
    type Error = BookError;

    async fn apply(desk: &mut Desk, transfer: &str, apply: &Apply) -> Result<(), BookError> {
        let item = item(apply.account);
        if apply.only_read {
            return desk.left(&item).await.map(drop).map_err(BookError::Ledger);
        }
        let count = u32::try_from(apply.amount.unsigned_abs()).unwrap_or(u32::MAX);
        if apply.amount < 0 {
            desk.reserve(transfer, &item, count).await
        } else {
            desk.restock(transfer, &item, count).await
        }
    }
}

/// A bank's process.
///
/// # Errors
/// If it can't take part, or can't listen.
pub fn run(arguments: &Arguments) -> Result<()> {
    super::roles::log_to_stderr();
    let runtime = tokio::runtime::Runtime::new().map_err(Failed::because("no runtime"))?;
    runtime.block_on(async {
        let Arguments { name, database, coordinator, port, second } = arguments;
        let mut router = attach(name, database, coordinator).await?;
        if let Some([name, database]) = second.as_deref() {
            router = router.nest(SECOND, attach(name, database, coordinator).await?);
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
        let listener = TcpListener::bind(address)
            .await
            .map_err(Failed::because(format!("cannot listen on {address}")))?;
        axum::serve(listener, router).await.map_err(Failed::because("the bank ended"))
    })
}

/// The calls of one database, attached.
async fn attach(name: &str, database: &str, coordinator: &str) -> Result<Router> {
    let cannot = || Failed::because(format!("no connection to {database}"));
    if database.starts_with("sqlite:") {
        let pool = SqlitePoolOptions::new().max_connections(CONNECTIONS);
        let pool = pool.connect(database).await.map_err(cannot())?;
        calls(name, Sqlite::new(pool), coordinator).await
    } else if let Some(directory) = database.strip_prefix("ledger:") {
        calls(name, Ledger::new(directory), coordinator).await
    } else if database.starts_with("mysql:") {
        let pool = MySqlPoolOptions::new().max_connections(CONNECTIONS);
        let pool = pool.connect(database).await.map_err(cannot())?;
        calls(name, MySql::new(pool), coordinator).await
    } else {
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS);
        let pool = pool.connect(database).await.map_err(cannot())?;
        calls(name, Postgres::new(pool), coordinator).await
    }
}

async fn calls<R: Accounts>(name: &str, resource: R, coordinator: &str) -> Result<Router> {
    let attaching = Participant::builder(name, resource).coordinators(coordinator.split(',')).attach();
    let bank = attaching.await.map_err(Failed::because("not attached"))?;
    Ok(Router::new().route(APPLY, post(apply::<R>)).with_state(bank))
}

async fn apply<R: Accounts>(
    State(bank): State<Participant<R>>,
    context: Context,
    Json(request): Json<Apply>,
) -> Result<(), (StatusCode, String)> {
    let mut branch = bank.join(&context).await.map_err(refused)?;
    let applied = R::apply(&mut branch, &context.gtrid().to_string(), &request).await;
    applied.map_err(|error| refused(branch.explain(&error)))?;
    branch.finish().await.map_err(refused)
}

fn refused(error: impl std::fmt::Display) -> (StatusCode, String) {
    (StatusCode::CONFLICT, error.to_string())
}
