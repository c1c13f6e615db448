//! The checker: reads the three databases from outside, past services and coordinator, and judges with [`super::books`].
//!
//! It looks again for a while before it calls anything wrong: orders may be under way, and a database may be down.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use comfy_table::{Table, presets};
use serde_json::json;
use sqlx::mysql::MySqlConnection;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::time::{Instant, sleep, timeout};

use super::books::{Look, Violation, check};
use super::http::listen;
use super::{Failure, Order, told, with_password};

/// How long one look may take: a database that was stopped does not answer at all.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(300);
/// What a person reads of a long list.
const MAX_NAMED: usize = 10;

#[derive(Debug, Clone, Args)]
pub(super) struct Options {
    #[command(flatten)]
    pub(super) databases: Databases,
    /// The file in which the customers wrote down what they were told
    #[arg(long, env = "SHOP_TOLD")]
    pub(super) told: Option<PathBuf>,
    /// Seconds to look again before something is called wrong
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(super) patience: u64,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub(super) json: bool,
    /// Check again after so many seconds, and go on until SIGTERM
    #[arg(long, value_name = "SECONDS", requires = "listen")]
    every: Option<u64>,
    /// Where it can be asked for its health: whether the last check was right
    #[arg(long, env = "SHOP_LISTEN")]
    listen: Option<SocketAddr>,
}

impl Options {
    /// One check, and no more.
    pub(super) fn once(databases: Databases, told: PathBuf, patience: u64) -> Self {
        Self { databases, told: Some(told), patience, json: false, every: None, listen: None }
    }
}

/// The three databases, as URLs without passwords, and the files that have those.
#[derive(Debug, Clone, Args)]
pub(super) struct Databases {
    #[arg(long, env = "SHOP_ORDERS_DB")]
    pub(super) orders_db: String,
    #[arg(long, env = "SHOP_ORDERS_PASSWORD_FILE")]
    pub(super) orders_password: Option<PathBuf>,
    #[arg(long, env = "SHOP_PAYMENTS_DB")]
    pub(super) payments_db: String,
    #[arg(long, env = "SHOP_PAYMENTS_PASSWORD_FILE")]
    pub(super) payments_password: Option<PathBuf>,
    #[arg(long, env = "SHOP_INVENTORY_DB")]
    pub(super) inventory_db: String,
}

/// What a check has come to.
pub(super) struct Checked {
    pub(super) look: Look,
    pub(super) violations: Vec<Violation>,
}

type OrderRow = (String, String, String, i64, i64);
type PaymentRow = (String, String, i64);

impl Databases {
    async fn look(&self) -> Result<Look, Failure> {
        let mut look = Look::default();
        self.orders(&mut look).await.map_err(|error| format!("orders-db: {error}"))?;
        self.payments(&mut look).await.map_err(|error| format!("payments-db: {error}"))?;
        self.inventory(&mut look).await.map_err(|error| format!("inventory-db: {error}"))?;
        Ok(look)
    }

    async fn orders(&self, look: &mut Look) -> Result<(), Failure> {
        const ORDERS: &str = "SELECT id, customer, item, quantity, amount FROM orders";
        let (rows, prepared): (Vec<OrderRow>, _) = if self.orders_db.starts_with("sqlite:") {
            let (file, mut database) = open(&self.orders_db).await?;
            (sqlx::query_as(ORDERS).fetch_all(&mut database).await?, prepared_in(&file)?)
        } else {
            let url = with_password(&self.orders_db, self.orders_password.as_ref())?;
            let mut database = PgConnection::connect(&url).await?;
            let listed = "SELECT count(*) FROM pg_prepared_xacts WHERE gid LIKE 'lockstep:%'";
            let prepared: i64 = sqlx::query_scalar(listed).fetch_one(&mut database).await?;
            let rows = sqlx::query_as(ORDERS).fetch_all(&mut database).await?;
            database.close().await?;
            (rows, prepared.unsigned_abs())
        };
        look.prepared.insert("orders-db", prepared);
        look.orders = rows
            .into_iter()
            .map(|(id, customer, item, quantity, amount)| {
                (id.clone(), Order { id, customer, item, quantity, amount })
            })
            .collect();
        Ok(())
    }

    async fn payments(&self, look: &mut Look) -> Result<(), Failure> {
        const PAYMENTS: &str = "SELECT order_id, customer, amount FROM payments";
        let (rows, prepared): (Vec<PaymentRow>, _) = if self.payments_db.starts_with("sqlite:") {
            let (file, mut database) = open(&self.payments_db).await?;
            (sqlx::query_as(PAYMENTS).fetch_all(&mut database).await?, prepared_in(&file)?)
        } else {
            let url = with_password(&self.payments_db, self.payments_password.as_ref())?;
            let mut database = MySqlConnection::connect(&url).await?;
            let prepared = sqlx::raw_sql("XA RECOVER").fetch_all(&mut database).await?.len();
            let rows = sqlx::query_as(PAYMENTS).fetch_all(&mut database).await?;
            database.close().await?;
            (rows, u64::try_from(prepared)?)
        };
        look.prepared.insert("payments-db", prepared);
        for (order, customer, amount) in rows {
            look.payments.entry(order).or_default().push((customer, amount));
        }
        Ok(())
    }

    async fn inventory(&self, look: &mut Look) -> Result<(), Failure> {
        let (file, mut database) = open(&self.inventory_db).await?;
        look.prepared.insert("inventory-db", prepared_in(&file)?);
        let mut one_moment = database.begin().await?;
        let items: Vec<(String, i64, i64)> =
            sqlx::query_as("SELECT name, received, stock FROM items").fetch_all(&mut *one_moment).await?;
        let reservations: Vec<(String, String, i64)> =
            sqlx::query_as("SELECT order_id, item, quantity FROM reservations")
                .fetch_all(&mut *one_moment)
                .await?;
        look.items = items.into_iter().map(|(item, received, stock)| (item, (received, stock))).collect();
        for (order, item, quantity) in reservations {
            look.reservations.entry(order).or_default().push((item, quantity));
        }
        Ok(())
    }
}

async fn open(url: &str) -> Result<(PathBuf, SqliteConnection), Failure> {
    let options = SqliteConnectOptions::from_str(url)?.read_only(true);
    Ok((options.get_filename().to_owned(), options.connect().await?))
}

fn prepared_in(file: &Path) -> std::io::Result<u64> {
    crate::books::has_prepared_branch(file).map(u64::from)
}

/// Looks until nothing is wrong, or patience has an end.
pub(super) async fn until_right(options: &Options) -> Result<Checked, Failure> {
    let until = Instant::now() + Duration::from_secs(options.patience);
    loop {
        // Read before the databases: what was told before they are looked into has to be in them.
        let told = options.told.as_deref().map_or_else(|| Ok(BTreeMap::new()), told::read)?;
        let looked = timeout(LOOK_TIMEOUT, options.databases.look()).await;
        let looked = looked.unwrap_or_else(|_elapsed| Err("a database does not answer".into()));
        let checked = looked.map(|look| Checked { violations: check(&look, &told), look });
        match checked {
            Ok(checked) if checked.violations.is_empty() => return Ok(checked),
            result if Instant::now() >= until => return result,
            _ => sleep(LOOK_AGAIN).await,
        }
    }
}

pub(super) async fn run(options: &Options) -> Result<ExitCode, Failure> {
    if let (Some(every), Some(address)) = (options.every, options.listen) {
        return go_on(options.clone(), Duration::from_secs(every), address).await;
    }
    let checked = until_right(options).await?;
    print!("{}", if options.json { format!("{}\n", checked.json()) } else { checked.table() });
    Ok(if checked.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn go_on(options: Options, every: Duration, address: SocketAddr) -> Result<ExitCode, Failure> {
    let right = Arc::new(AtomicBool::new(false));
    let checking = tokio::spawn({
        let right = Arc::clone(&right);
        async move {
            loop {
                match until_right(&options).await {
                    Ok(checked) => {
                        right.store(checked.violations.is_empty(), Ordering::Relaxed);
                        tracing::info!("{}", checked.json());
                    }
                    Err(error) => {
                        right.store(false, Ordering::Relaxed);
                        tracing::warn!("could not look: {error}");
                    }
                }
                sleep(every).await;
            }
        }
    });
    listen(address, axum::Router::new(), move || right.load(Ordering::Relaxed)).await?;
    checking.abort();
    Ok(ExitCode::SUCCESS)
}

impl Checked {
    pub(super) fn json(&self) -> serde_json::Value {
        let named: Vec<_> = self.violations.iter().take(MAX_NAMED).map(ToString::to_string).collect();
        json!({
            "orders": self.look.orders.len(),
            "paid": self.look.paid(),
            "in_doubt": self.look.prepared.values().sum::<u64>(),
            "violations": self.violations.len(),
            "named": named,
        })
    }

    pub(super) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.add_row(["orders", &self.look.orders.len().to_string()]);
        table.add_row(["paid", &format!("{} in {} payments", self.look.paid(), self.look.payments.len())]);
        for (item, (received, stock)) in &self.look.items {
            let sold = self.look.sold(item);
            table
                .add_row([item, &format!("{stock} in stock + {sold} sold = {} of {received}", stock + sold)]);
        }
        let lost = [("paid for nothing", self.look.paid_for_nothing()), ("never paid", self.look.unpaid())];
        for (what, (orders, money)) in lost.into_iter().filter(|(_, (orders, _))| *orders > 0) {
            table.add_row([what, &format!("{money} in {orders} orders")]);
        }
        table.add_row(["in doubt", &self.look.prepared.values().sum::<u64>().to_string()]);
        table.add_row(["violations", &self.violations.len().to_string()]);
        let mut text = format!("{table}\n");
        for violation in self.violations.iter().take(MAX_NAMED) {
            text.push_str(&format!("  {violation}\n"));
        }
        if let Some(more @ 1..) = self.violations.len().checked_sub(MAX_NAMED) {
            text.push_str(&format!("  and {more} more\n"));
        }
        text
    }
}
