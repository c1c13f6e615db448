//! A small shop: three services, each with a database of its own, and a storefront that sells in one transaction over all of them.
//!
//! `docker-compose.yml` runs it on servers, `demo shop` alone runs the same services on SQLite files in a temporary directory. Read
//! in this order:
//! - [`orders`](postgres::orders), [`payments`](mariadb::payments), [`inventory`](sqlite::inventory): the services, as a user would write
//!   them. The lines that Lockstep needs are marked.
//! - [`storefront`]: the application. It begins a transaction for each order and calls the services in it.
//! - [`postgres`], [`mariadb`], [`sqlite`]: the kinds of databases, and which services run on each.
//! - [`http`]: what every service says to its callers.
//! - [`load`]: customers who buy without end. [`buy`]: one who waits at the till, for the acts.
//! - [`look`], [`books`]: the checker. It looks into the databases from outside.
//! - [`house`]: all of it in one command, without Docker.

mod books;
mod buy;
mod house;
mod http;
mod load;
mod look;
mod mariadb;
mod postgres;
mod sqlite;
mod storefront;
mod told;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

/// Why a part of the shop cannot go on.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What has no stock: an order for it needs the orders and the payments only.
const GIFT_CARD: &str = "gift-card";

/// What somebody wants to buy. The body of every call to a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Order {
    /// Made by the customer, and never used again.
    id: String,
    customer: String,
    item: String,
    quantity: i64,
    /// What all of it costs.
    amount: i64,
}

/// `demo shop`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Shop {
    #[command(flatten)]
    house: house::Options,
    #[command(subcommand)]
    part: Option<Part>,
}

/// One part of the shop, in a process of its own.
#[derive(Debug, Subcommand)]
enum Part {
    /// Run one of the three services, until SIGTERM
    Serve(Settings),
    /// Buy without end, until SIGTERM
    Load(load::Options),
    /// Buy something, and wait at the till if wanted
    Buy(buy::Options),
    /// Look into the databases from outside, and check the books
    Check(look::Options),
    /// Ask a part of the shop whether it is well
    Health {
        /// Where it listens
        #[arg(env = "SHOP_LISTEN")]
        address: SocketAddr,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Service {
    Orders,
    Payments,
    Inventory,
}

/// What a service is told when it starts.
#[derive(Debug, Args)]
struct Settings {
    service: Service,
    #[arg(long, env = "SHOP_LISTEN")]
    listen: SocketAddr,
    /// The service's own database, as a URL without a password
    #[arg(long, env = "SHOP_DATABASE")]
    database: String,
    /// The file that has the password
    #[arg(long, env = "SHOP_PASSWORD_FILE")]
    password_file: Option<PathBuf>,
    /// The addresses of all coordinators
    #[arg(long, env = "SHOP_COORDINATORS", value_delimiter = ',', required = true)]
    coordinators: Vec<String>,
    /// End when stdin does: with the process that has started this one
    #[arg(long, hide = true)]
    until_stdin_ends: bool,
}

impl Shop {
    pub(crate) fn run(self) -> ExitCode {
        let filter = tracing_subscriber::EnvFilter::new("info");
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(false)
            .with_writer(std::io::stderr)
            .init();
        let runtime = tokio::runtime::Runtime::new().map_err(Failure::from);
        match runtime.and_then(|runtime| runtime.block_on(self.go())) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::FAILURE
            }
        }
    }

    async fn go(self) -> Result<ExitCode, Failure> {
        match self.part {
            None => house::run(&self.house).await,
            Some(Part::Serve(settings)) => serve(settings).await.map(|()| ExitCode::SUCCESS),
            Some(Part::Load(options)) => load::run(options).await.map(|()| ExitCode::SUCCESS),
            Some(Part::Buy(options)) => buy::run(&options).await,
            Some(Part::Check(options)) => look::run(&options).await,
            Some(Part::Health { address }) => http::is_well(address).await,
        }
    }
}

/// The kind of database is in its URL.
async fn serve(settings: Settings) -> Result<(), Failure> {
    if settings.until_stdin_ends {
        crate::role::end_with_parent();
    }
    let kind = settings.database.split(':').next().unwrap_or_default().to_owned();
    match (settings.service, kind.as_str()) {
        (Service::Orders, "postgres") => postgres::orders::serve(settings).await,
        (Service::Orders, "sqlite") => sqlite::orders::serve(settings).await,
        (Service::Payments, "mysql") => mariadb::payments::serve(settings).await,
        (Service::Payments, "sqlite") => sqlite::payments::serve(settings).await,
        (Service::Inventory, "sqlite") => sqlite::inventory::serve(settings).await,
        (service, _) => Err(format!("{service:?} does not run on {}", settings.database).into()),
    }
}

/// A URL with the password of a file in it, if there is one. What the demo makes as passwords needs no escapes.
fn with_password(url: &str, file: Option<&PathBuf>) -> Result<String, Failure> {
    let Some(file) = file else { return Ok(url.to_owned()) };
    let password = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let (before, after) = url.split_once('@').ok_or_else(|| format!("{url} names no user for a password"))?;
    Ok(format!("{before}:{}@{after}", password.trim_end()))
}
